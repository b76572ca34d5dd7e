"""Writes the kernels' raw words to standard output, and tabulates dieharder's verdict on them.

    python benchmarks/battery.py words sequential --key 7 | dieharder -a -g 200 -Y 1 -k 2
    python benchmarks/battery.py words neighbours --key 0 | dieharder -a -g 200 -Y 1 -k 2
    python benchmarks/battery.py report sequential.txt ... > benchmarks/results/battery.md

``sequential`` is one key's stream, element after element. ``neighbours`` takes one element of each
of 256 successive keys in turn, then the next element of each, as in a model whose layers use
similar keys.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

import torch

import torchinit  # noqa: F401  (registers the operators)

CHUNK = 1 << 20  # words
KEYS = 1 << 8  # successive keys that take turns
_LARGE = 2**62  # the logical length: anything longer than what is read


def words(stream: str, key: int, chunk: int) -> torch.Tensor:
    """Chunk number ``chunk``, of CHUNK words."""
    keys, length = (1, CHUNK) if stream == "sequential" else (KEYS, CHUNK // KEYS)
    rows = torch.empty((keys, length), dtype=torch.int32)
    for row in range(keys):
        torch.ops.torchinit.random_words_(
            rows[row], torch.tensor(key + row), [_LARGE], [chunk * length]
        )
    return rows.t().contiguous()


def write(stream: str, key: int) -> None:
    """Writes words until the reader has enough."""
    chunk = 0
    try:
        while True:
            sys.stdout.buffer.write(words(stream, key, chunk).numpy().data)
            chunk += 1
    except BrokenPipeError:
        sys.stderr.close()  # or the interpreter reports the closed pipe again


def assessments(text: str) -> list[list[str]]:
    """Test, n-tuple, samples, tries, p-value and verdict from dieharder's table."""
    rows = ([cell.strip() for cell in line.split("|")] for line in text.splitlines())
    return [row for row in rows if row[-1] in {"PASSED", "WEAK", "FAILED"}]


def report(paths: list[Path]) -> str:
    """All results of some runs in Markdown, each run headed by its file's name."""
    parts = [
        "# dieharder on the raw words\n\n"
        "`dieharder -a -g 200 -Y 1 -k 2` on the streams of `benchmarks/battery.py`. WEAK: a "
        "p-value below 0.005 or above 0.995, which one in a hundred has by chance; such a test is "
        "repeated with more samples until it passes or fails, in the next rows.\n"
    ]
    for path in paths:
        rows = assessments(path.read_text())
        counts = Counter(row[-1] for row in rows)
        summary = ", ".join(f"{counts[name]} {name}" for name in ("PASSED", "WEAK", "FAILED"))
        parts.append(f"## {path.stem}\n\n{len(rows)} results: {summary}.\n")
        parts.append("| test | n-tuple | samples | p-samples | p-value | verdict |")
        parts.append("|---|---|---|---|---|---|")
        parts += [f"| {' | '.join(row)} |" for row in rows]
        parts.append("")
    return "\n".join(parts)


def main() -> None:
    """Runs one of the two commands."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    commands = parser.add_subparsers(dest="command", required=True)
    source = commands.add_parser("words")
    source.add_argument("stream", choices=["sequential", "neighbours"])
    source.add_argument("--key", type=int, default=0)
    verdicts = commands.add_parser("report")
    verdicts.add_argument("files", nargs="+", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.command == "words":
        write(arguments.stream, arguments.key)
    else:
        print(report(arguments.files), end="")


if __name__ == "__main__":
    main()
