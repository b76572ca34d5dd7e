"""Globs for parameter names, whose wildcards respect the dots between name components."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from torchinit.errors import ArgumentError

_MOST_STARS = 4
# "**." is one token only where a component begins.
_TOKEN = re.compile(r"\*\*\*|(?:^|(?<=\.))\*\*\.|\*\*|.", re.DOTALL)
_REGEX = {"**.": r"(?:.*\.)?", "**": ".*", "*": "[^.]*", "?": "[^.]", "{": "(?:", "}": ")"}


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
    parts, in_braces = [], False
    for token in _TOKEN.findall(glob):
        why = ""
        if token == "***":
            why = "has three stars: use '**' for any characters, '*' without dots"
        elif in_braces and token in ("**", "**."):
            why = "has '**' in braces: an alternative is within one name component"
        elif in_braces and token == ".":
            why = (
                "has a dot in braces: an alternative is within one name component. Write one rule "
                "for each, or a compiled re.Pattern"
            )
        elif token == "{" and in_braces:
            why = "has nested braces"
        elif token == "}" and not in_braces:
            why = "has '}' without '{'"
        if why:
            raise ArgumentError(f"the pattern {glob!r} {why}")
        in_braces = token == "{" or (in_braces and token != "}")
        if token == "," and in_braces:
            parts.append("|")
        else:
            parts.append(_REGEX.get(token) or re.escape(token))
    if in_braces:
        raise ArgumentError(f"the pattern {glob!r} has '{{' without '}}'")
    return "".join(parts)


def is_literal(glob: str) -> bool:
    """Whether a glob matches only the name that it is."""
    return not any(character in "*?{}" for character in glob)


def is_slow(glob: str) -> bool:
    """Whether a regular expression for it, with many stars, may backtrack exponentially."""
    return sum("*" in token for token in _TOKEN.findall(glob)) > _MOST_STARS


def glob_matcher(glob: str) -> Callable[[str], bool]:
    """A function that tells whether a glob matches a full name.

    Raises:
        ArgumentError: as ``translate``.
    """
    match = re.compile(translate(glob), re.DOTALL).fullmatch
    if not is_slow(glob):
        return lambda name: match(name) is not None
    tokens = _TOKEN.findall(glob)
    return lambda name: match_tokens(tokens, name)


def match_tokens(tokens: Sequence[str], name: str) -> bool:
    """Whether a glob matches a name, in time linear in both.

    The positions reached so far are the bits of an integer, and each token maps them to the next.
    """
    length = len(name)
    at: dict[str, int] = {}
    for place, character in enumerate(name):
        at[character] = at.get(character, 0) | 1 << place
    dots = at.get(".", 0)
    others = (1 << length) - 1 - dots
    here, in_braces, begin, ends = 1, False, 0, 0
    for token in tokens:
        from_first_on = -(here & -here) & ((2 << length) - 1)
        if token == "{":
            in_braces, begin, ends = True, here, 0
        elif token == "," and in_braces:
            here, ends = begin, ends | here
        elif token == "}":
            in_braces, here = False, here | ends
        elif token == "**":
            here = from_first_on
        elif token == "**.":
            here |= (dots & from_first_on) << 1
        elif token == "*":
            while (more := here | (here & others) << 1) != here:
                here = more
        elif token == "?":
            here = (here & others) << 1
        else:
            here = (here & at.get(token, 0)) << 1
    return bool(here >> length & 1)
