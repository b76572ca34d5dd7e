"""What is not ours: names of tensors, headers, indices, configs, and streams to write to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torchinit.errors import ArgumentError

# Bytes of a header or an index: the most that safetensors reads.
LARGEST_JSON = 100_000_000
_SHOWN = 10  # names in a message


def printable(text: object) -> str:
    r"""Text with everything escaped that a terminal acts on or cannot encode, on one line.

    >>> print(printable("a\x1b[31m\n\u202eb\ud800"))
    a\x1b[31m\n\u202eb\ud800
    """
    said = str(text)
    if said.isprintable():
        return said
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in said)


def is_terminal(stream: Any) -> bool:
    """Whether a standard stream is a terminal: it may be None, closed, or any object that writes.

    >>> is_terminal(None), is_terminal(object())
    (False, False)
    """
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):
        return False


def first_names(names: Sequence[str]) -> str:
    """The first few names, for a message."""
    shown = printable(", ".join(names[:_SHOWN]))
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"


def parse_json(data: bytes, source: object, *, strict: bool = True) -> Any:
    """Parses JSON.

    Args:
        data: the text.
        source: what it is, for errors.
        strict: whether names that are given twice or are no Unicode text, NaN and infinities are
            errors. Configs have infinities.

    Raises:
        ArgumentError: unless it is JSON.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            raise ValueError(f"{next(n for n in names if names.count(n) > 1)!r} is given twice")
        if lone := [name for name in found if any("\ud800" <= c <= "\udfff" for c in name)]:
            raise ValueError(f"{lone[0]!r} is not Unicode text")
        return found

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not a number")

    hooks: dict[str, Any] = (
        {"object_pairs_hook": unique, "parse_constant": refuse} if strict else {}
    )
    try:
        return json.loads(data.decode("utf-8"), **hooks)
    except (ValueError, RecursionError) as error:
        why = "too deeply nested" if isinstance(error, RecursionError) else printable(error)
        raise ArgumentError(f"{printable(source)} is not JSON: {why}") from None


def check_inside(file: Path, folder: Path) -> None:
    """Raises ArgumentError if a file of a folder is a link that leads out of it.

    Snapshots of the Hugging Face cache link to the blobs of their repository.
    """
    target, root = file.resolve(), folder.resolve()
    roots = [root, root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [root]
    if not any(target.is_relative_to(one) for one in roots):
        raise ArgumentError(
            f"{printable(file)} is a link to {printable(target)}, outside its folder: give that "
            "file, or the folder that it is in"
        )
