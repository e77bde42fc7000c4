#!/usr/bin/env python3
"""Runs clang-tidy over the program's own sources, and not the tests', to keep the whole run short.

usage: tests/tidy.py BUILD

BUILD is the build directory. Sources of one library are looked at several at a time, as one file that includes them:
most of the time goes to the headers, which they share. Exit status 0 only if nothing was found.
"""

import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

# Names in anonymous namespaces are used once in each of them, so that sources can share a file.
TOGETHER = {"store": 8, "fs": 8, "cmd": 8}


def groups(build, root):
    """Yields lists of entries of the compilation database that are looked at together."""
    entries = json.loads((build / "compile_commands.json").read_text())
    seen = set()
    for folder, size in TOGETHER.items():
        found = []
        for entry in entries:
            path = (pathlib.Path(entry["directory"]) / entry["file"]).resolve()
            if path.parent == root / folder and path not in seen:
                seen.add(path)
                found.append((path, entry))
        for first in range(0, len(found), size):
            yield found[first : first + size]


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    build = pathlib.Path(sys.argv[1]).resolve()
    root = pathlib.Path(__file__).resolve().parent.parent
    place = build / "tidy"
    place.mkdir(exist_ok=True)
    database = []
    for number, group in enumerate(groups(build, root)):
        path, entry = group[0]
        # The analyzer takes what is included for code, and not for a header, in files of this name only.
        unified = place / f"UnifiedSource{number}.cpp"
        unified.write_text("".join(f'#include "{path}"\n' for path, _ in group))
        command = [str(unified) if word == entry["file"] else word for word in shlex.split(entry["command"])]
        database.append({"directory": entry["directory"], "file": str(unified), "command": shlex.join(command)})
    (place / "compile_commands.json").write_text(json.dumps(database))
    if not database:
        sys.exit(f"{build}: has no sources of cowfs")

    # How many states of one function the analyzer looks at: what clang's own shallow mode takes, a third of the default,
    # in half of the time.
    analyzer = [f"-extra-arg={word}" for word in ("-Xclang", "-analyzer-config", "-Xclang", "max-nodes=75000")]
    # Including sources is what such a file is for.
    run = subprocess.run(
        ["run-clang-tidy", "-quiet", "-j", str(len(os.sched_getaffinity(0))), "-p", str(place)]
        + [*analyzer, "-checks=-bugprone-suspicious-include", str(place)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    for line in run.stdout.splitlines():
        if line and not re.match(r"clang-tidy|.*warnings? generated|Enabled checks|    [a-z]+[-.a-zA-Z0-9]*$", line):
            print(line)
    sys.exit(run.returncode)


if __name__ == "__main__":
    main()
