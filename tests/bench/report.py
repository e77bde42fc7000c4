"""How figures are shown, and the issue's targets held against them."""

import statistics


class Targets:
    """Collects whether each target was met."""

    def __init__(self):
        self.met, self.missed = 0, []

    def check(self, what, good):
        """Returns the mark that stands beside the figure."""
        if good:
            self.met += 1
            return "ok"
        self.missed.append(what)
        return "MISSED"

    def summary(self):
        text = f"targets: {self.met} met, {len(self.missed)} missed"
        return text + "".join(f"\n  missed: {what}" for what in self.missed)


def spread(values, scale=1.0):
    """`median (min..max)` in a readable precision."""
    low, middle, high = min(values) * scale, statistics.median(values) * scale, max(values) * scale
    digits = 0 if middle >= 100 else 1 if middle >= 10 else 2
    return f"{middle:.{digits}f} ({low:.{digits}f}..{high:.{digits}f})"


def mib(size):
    return f"{size / 2**20:.1f} MiB"


def table(heads, rows):
    """Prints rows under heads, the first column to the left, the others to the right."""
    widths = [max(len(str(row[column])) for row in [heads, *rows]) for column in range(len(heads))]
    for row in [heads, *rows]:
        first, *others = zip(row, widths)
        print("  ".join([str(first[0]).ljust(first[1]), *(str(cell).rjust(width) for cell, width in others)]).rstrip())
