"""Checks that no #include of csrc runs upward, and counts the links between its folders.

    python tools/check_includes.py [folder]

Data flows python -> cpu | cuda -> job -> math -> simd -> base: a file may include files of its own
folder and of those to the right, so a reader of a folder needs only those to its right.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent / "csrc"
# Lowest first. Folders of one layer must not include each other.
LAYERS = (("base",), ("simd",), ("math",), ("job",), ("cpu", "cuda"), ("python",))
LAYER = {folder: layer for layer, folders in enumerate(LAYERS) for folder in folders}
INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.MULTILINE)


class Link(NamedTuple):
    """One #include: paths from the root; the target is None if there is no such file."""

    source: str
    target: str | None
    text: str


def links(root: Path) -> list[Link]:
    """The includes in quotes of all files below a folder."""
    found = []
    for source in sorted(path for path in root.rglob("*") if path.is_file()):
        for text in INCLUDE.findall(source.read_text()):
            target = (source.parent / text).resolve()
            inside = target.is_file() and target.is_relative_to(root.resolve())
            name = target.relative_to(root.resolve()).as_posix() if inside else None
            found.append(Link(source.relative_to(root).as_posix(), name, text))
    return found


def top(path: str) -> str:
    """The first folder of a path."""
    return path.split("/")[0]


def violations(root: Path) -> list[str]:
    """A line for each include that breaks the order, and for each cycle of files."""
    found = []
    graph: dict[str, list[str]] = {}
    for source, target, text in links(root):
        if target is None:
            found.append(f'{source} includes "{text}", which is no file of {root.name}')
            continue
        graph.setdefault(source, []).append(target)
        here, there = top(source), top(target)
        for folder in {here, there} - set(LAYER):
            found.append(f"{source} or {target} lies in {folder}, which has no place in LAYERS")
        if here == there or here not in LAYER or there not in LAYER:
            continue
        if LAYER[there] > LAYER[here]:
            found.append(f"{source} includes {target}: {there} lies above {here}")
        elif LAYER[there] == LAYER[here]:
            found.append(f"{source} includes {target}: {there} lies beside {here}")
    return found + [f"a ring: {' -> '.join(ring)}" for ring in rings(graph)]


def rings(graph: dict[str, list[str]]) -> list[list[str]]:
    """A path for each edge that closes a cycle in a depth-first walk."""
    found: list[list[str]] = []
    done: set[str] = set()

    def walk(path: list[str]) -> None:
        for target in graph.get(path[-1], []):
            if target in path:
                found.append([*path[path.index(target) :], target])
            elif target not in done:
                walk([*path, target])
        done.add(path[-1])

    for source in graph:
        if source not in done:
            walk([source])
    return found


def main() -> int:
    """Prints the links between folders and what is wrong with them; returns the status."""
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT
    between = Counter(
        (top(source), top(target))
        for source, target, _ in links(root)
        if target is not None and top(source) != top(target)
    )
    for (here, there), count in sorted(between.items()):
        print(f"{here:>6} -> {there:<6} {count:3}")
    wrong = violations(root)
    print(*wrong, sep="\n", end="\n" if wrong else "")
    total = sum(between.values())
    print(f"{len(between)} links between folders, {total} includes, {len(wrong)} violations")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
