"""Compares the output of tests/native/digest.cpp on several machines.

    python tools/compare_digests.py here=build/digest_here Arm=build/digest_arm

Every instruction set of every machine must have the same cases with the same hashes.
"""

from __future__ import annotations

import sys
from pathlib import Path


def read(text: str) -> dict[str, dict[str, str]]:
    """The hash of each case, by instruction set."""
    found: dict[str, dict[str, str]] = {}
    for line in text.splitlines():
        instruction_set, case, value = line.split()
        found.setdefault(instruction_set, {})[case] = value
    return found


def differences(digests: dict[str, dict[str, str]]) -> list[str]:
    """A line for each case that is missing somewhere, or whose hash differs from the first."""
    if not any(digests.values()):
        return ["there is no case"]
    wanted: dict[str, str] = {}
    for cases in digests.values():
        wanted = {**cases, **wanted}
    return [
        f"{name}: {case} " + ("is missing" if case not in cases else "differs")
        for name, cases in digests.items()
        for case, value in wanted.items()
        if cases.get(case) != value
    ]


def main(words: list[str]) -> int:
    """Prints what differs, and returns the status."""
    digests = {}
    for word in words:
        machine, path = word.split("=", 1)
        for instruction_set, cases in read(Path(path).read_text()).items():
            digests[f"{instruction_set} ({machine})"] = cases
    for name, cases in digests.items():
        print(f"{name}: {len(cases)} cases")
    wrong = differences(digests)
    print(*wrong, "bits differ" if wrong else "all bits equal", sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
