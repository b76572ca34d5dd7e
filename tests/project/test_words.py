"""One word for one thing: no class has two meanings, and no two files one name."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import torchinit

SOURCE = Path(torchinit.__file__).parent
# Each sub-command has the name of what it runs.
_COMMANDS = {"cli"}


def _defined(path: Path) -> list[str]:
    """The classes and aliases that a file defines at its top."""
    found = []
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef):
            found.append(node.name)
        elif isinstance(node, ast.AnnAssign) and "TypeAlias" in ast.unparse(node.annotation):
            found.append(ast.unparse(node.target))
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if name[0].isupper() and not name.isupper():
                found.append(name)
    return found


def _twice(places: dict[str, list[str]]) -> dict[str, list[str]]:
    return {name: files for name, files in places.items() if len(files) > 1}


def test_no_class_is_defined_twice() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for path in SOURCE.rglob("*.py"):
        for name in _defined(path):
            places[name].append(str(path.relative_to(SOURCE)))
    assert len(places) > 100
    assert _twice(places) == {}


def test_no_file_name_is_used_twice() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for path in SOURCE.rglob("*.py"):
        parts = path.relative_to(SOURCE).parts
        if path.stem != "__init__" and parts[0] not in _COMMANDS:
            places[path.name].append("/".join(parts))
    assert len(places) > 50
    assert _twice(places) == {}
