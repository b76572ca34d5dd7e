"""Patterns of parameter names: globs whose wildcards know the dots between atoms."""

from __future__ import annotations

import re

from torchinit.errors import ArgumentError

_ATOM_CHARACTER = "[^.]"


def translate(glob: str) -> str:
    """Returns a regular expression, without groups of its own, for a glob over a whole name.

    ``**`` matches any characters, dots and none included, and ``**.`` where an atom begins also no
    atom at all; ``*`` and ``?`` match any and one character of an atom; ``{a,b}`` matches a or b,
    which may contain ``*`` and ``?`` and lie within one atom. Everything else stands for itself.

    Raises:
        ArgumentError: for a glob that is empty, braces that do not close or nest, an alternative
            that leaves its atom, or three stars.
    """
    if not glob:
        raise ArgumentError("the pattern '' matches no name: '**' matches every one")
    parts, place, in_braces = [], 0, False
    while place < len(glob):
        rest = glob[place:]
        character = rest[0]
        if rest.startswith("***"):
            raise _bad(glob, "has three stars: '**' matches any characters, '*' within an atom")
        if rest.startswith("**"):
            if in_braces:
                raise _bad(glob, "has '**' in braces, whose alternatives lie within one atom")
            if rest.startswith("**.") and (place == 0 or glob[place - 1] == "."):
                parts.append(r"(?:.*\.)?")
                place += 3
            else:
                parts.append(".*")
                place += 2
            continue
        if character == "{":
            if in_braces:
                raise _bad(glob, "has braces in braces")
            in_braces = True
            parts.append("(?:")
        elif character == "}":
            if not in_braces:
                raise _bad(glob, "has '}' without '{'")
            in_braces = False
            parts.append(")")
        elif character == "," and in_braces:
            parts.append("|")
        elif character == "." and in_braces:
            raise _bad(
                glob,
                "has a dot in braces, whose alternatives lie within one atom: write a rule for "
                "each, or a compiled re.Pattern",
            )
        elif character == "*":
            parts.append(_ATOM_CHARACTER + "*")
        elif character == "?":
            parts.append(_ATOM_CHARACTER)
        else:
            parts.append(re.escape(character))
        place += 1
    if in_braces:
        raise _bad(glob, "has '{' without '}'")
    return "".join(parts)


def _bad(glob: str, why: str) -> ArgumentError:
    return ArgumentError(f"the pattern {glob!r} {why}")
