"""Globs for parameter names, whose wildcards respect the dots between name components."""

from __future__ import annotations

import re

from torchinit.errors import ArgumentError

_ATOM_CHARACTER = "[^.]"


def translate(glob: str) -> str:
    """Returns a regular expression without capturing groups for a glob over a full name.

    ``**`` matches any characters, including dots and none; ``**.`` at the start of a component also
    matches an empty prefix. Within one component, ``*`` matches any characters, ``?`` one
    character, and ``{a,b}`` either alternative, which may contain ``*`` and ``?``. Everything else
    is literal.

    Raises:
        ArgumentError: for an empty glob, unbalanced or nested braces, an alternative with a dot or
            ``**``, or three stars.
    """
    if not glob:
        raise ArgumentError("the pattern '' matches no name: use '**' to match every name")
    parts, place, in_braces = [], 0, False
    while place < len(glob):
        rest = glob[place:]
        character = rest[0]
        if rest.startswith("***"):
            raise _bad(glob, "has three stars: use '**' for any characters, '*' without dots")
        if rest.startswith("**"):
            if in_braces:
                raise _bad(glob, "has '**' in braces: an alternative is within one name component")
            if rest.startswith("**.") and (place == 0 or glob[place - 1] == "."):
                parts.append(r"(?:.*\.)?")
                place += 3
            else:
                parts.append(".*")
                place += 2
            continue
        if character == "{":
            if in_braces:
                raise _bad(glob, "has nested braces")
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
                "has a dot in braces: an alternative is within one name component. Write one rule "
                "for each, or a compiled re.Pattern",
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
