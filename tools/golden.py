"""Writes tests/data/golden.csv: a hash and the first values of every case of tests/data.

    python tools/golden.py

Run it after an intended change of numbers, and say which and why in CHANGELOG.md under the stream
version. Needs only a C++ compiler (CXX). Every instruction set of this machine must agree.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "tests" / "data"
BIT_FLAGS = [
    line.split()[1]
    for line in (ROOT / "csrc" / "flags.txt").read_text().splitlines()
    if line.startswith("cxx ")
]


def main() -> int:
    """Compiles tests/native/digest.cpp, writes the table, and returns the status."""
    sources = [*(ROOT / "csrc" / "job").glob("*.cpp"), *(ROOT / "csrc" / "cpu").glob("*.cpp")]
    sources.append(ROOT / "tests" / "native" / "digest.cpp")
    golden = DATA / "golden.csv"
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "digest"
        compiler = [os.environ.get("CXX", "c++"), *BIT_FLAGS, "-O2"]
        subprocess.run([*compiler, *sources, "-o", program], check=True)
        table = subprocess.run([program, DATA, "--golden"], check=True, stdout=subprocess.PIPE)
        before = golden.read_bytes().splitlines() if golden.exists() else []
        golden.write_bytes(table.stdout)
        after = table.stdout.splitlines()
        status = subprocess.run([program, DATA, "--check", golden], check=False).returncode
    print(f"{golden}: {len(after) - 1} rows, {len(set(after) - set(before))} new or changed")
    return status


if __name__ == "__main__":
    sys.exit(main())
