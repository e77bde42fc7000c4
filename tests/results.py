#!/usr/bin/env python3
"""Counts the single test cases in a log of `meson test`.

usage: results.py LOG [--skips-fail]

LOG is Meson's testlog.json: one JSON object a line, one line a test program. A GoogleTest program counts by
its cases, read from its output rather than from its result file, since a program that crashes writes none: the
case that was running then has failed. Any other test counts as one case.

On standard error: what each failed case printed, and the name and reason of each skipped one.
On standard output: `PASSED FAILED SKIPPED SECONDS`, then the name of each failed case, one a line.
With --skips-fail a skipped case that is not in EXPECTED_SKIPS counts as failed.
"""

import json
import re
import sys

# Cases (Suite.Name) that may be skipped in CI, each with the reason.
EXPECTED_SKIPS = set()

RUN = re.compile(r"^\[ RUN      \] (\S+)")
# A test that prints without a newline has its verdict on the same line, hence no anchor.
END = re.compile(r"\[ +(OK|FAILED|SKIPPED) +\] ([^\s,]+)(?:, where .*)? \(\d+ ms\)")
MESON_SKIP, MESON_PASSED = "SKIP", ("OK", "EXPECTEDFAIL")
LONGEST_OUTPUT = 200  # lines shown of one failed case


class Case:
    def __init__(self, name):
        self.name = name
        self.verdict = None  # "OK", "FAILED", "SKIPPED"; None while it runs
        self.lines = []


def google_test_cases(output):
    """The cases of one GoogleTest program in the order they ran; empty for other programs."""
    cases = {}
    current = None
    for line in output.splitlines():
        if start := RUN.match(line):
            current = cases[start[1]] = Case(start[1])
        elif current:
            current.lines.append(line)
        if current and (end := END.search(line)) and end[2] == current.name:
            current.verdict = end[1]
            current = None
    return list(cases.values())


def cases_of(test):
    """All cases of one line of the log, with a case of its own for a program that failed outside its cases."""
    cases = google_test_cases(test.get("stdout", ""))
    result = test["result"]
    errors = test.get("stderr", "").splitlines()
    if not cases:
        case = Case(test["name"])
        case.verdict = "OK" if result in MESON_PASSED else "SKIPPED" if result == MESON_SKIP else "FAILED"
        if "[==========]" in test.get("stdout", "") and case.verdict == "OK":
            case.verdict = "SKIPPED"  # a GoogleTest program that ran no case has shown nothing
        case.lines = test.get("stdout", "").splitlines() + errors
        return [case]
    for case in cases:
        if case.verdict is None:
            case.verdict = "FAILED"
            case.lines += errors + [f"(the program ended in this case: {result}, status {test['returncode']})"]
    if result not in MESON_PASSED + (MESON_SKIP,) and all(case.verdict != "FAILED" for case in cases):
        case = Case(test["name"] + " (the program as a whole)")
        case.verdict = "FAILED"
        case.lines = errors + [f"(every case passed, yet: {result}, status {test['returncode']})"]
        cases.append(case)
    elif any(case.verdict == "FAILED" for case in cases) and errors:
        next(case for case in cases if case.verdict == "FAILED").lines += ["standard error:"] + errors
    return cases


def show(title, lines):
    if len(lines) > LONGEST_OUTPUT:
        half = LONGEST_OUTPUT // 2
        lines = lines[:half] + [f"... {len(lines) - 2 * half} lines left out ..."] + lines[-half:]
    print(f"--- {title}", *("    " + line for line in lines), sep="\n", file=sys.stderr)


def main(arguments):
    skips_fail = "--skips-fail" in arguments
    paths = [argument for argument in arguments if not argument.startswith("--")]
    if len(paths) != 1:
        sys.exit(__doc__)
    passed, skipped, failed, seconds = 0, 0, [], 0.0
    with open(paths[0], encoding="utf-8", errors="replace") as log:
        for line in log:
            test = json.loads(line)
            seconds += test.get("duration") or 0
            for case in cases_of(test):
                where = f"{case.name} in {test['name']}"
                if case.verdict == "OK":
                    passed += 1
                elif case.verdict == "FAILED":
                    failed.append(case.name)
                    show(f"FAILED: {where}", case.lines)
                else:
                    reason = " ".join(text for text in case.lines if ": Skipped" not in text and "SKIPPED" not in text)
                    print(f"skipped: {where}: {reason.strip()}", file=sys.stderr)
                    if skips_fail and case.name not in EXPECTED_SKIPS:
                        failed.append(case.name + " (skipped where no skip is expected)")
                    else:
                        skipped += 1
    print(passed, len(failed), skipped, round(seconds))
    print(*failed, sep="\n")


if __name__ == "__main__":
    main(sys.argv[1:])
