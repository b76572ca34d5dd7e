"""Rules: choose a parameter's scheme by its name or by the module that owns it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from torch import nn

from torchinit.errors import ArgumentError
from torchinit.rules.pattern import translate
from torchinit.rules.read import as_scheme
from torchinit.rules.scheme import Scheme

Key: TypeAlias = "str | re.Pattern[str] | type[nn.Module]"
# Returns the index of the rule for a name and its owner, or -1.
_Matcher: TypeAlias = Callable[[str, nn.Module], int]


class Rule(NamedTuple):
    """One rule.

    Attributes:
        key: a glob, a compiled pattern or a module type.
        scheme: the scheme of parameters that match.
    """

    key: Key
    scheme: Scheme

    @property
    def title(self) -> str:
        """The key as text."""
        if isinstance(self.key, str):
            return self.key
        if isinstance(self.key, re.Pattern):
            return f"re.compile({self.key.pattern!r})"
        return self.key.__name__


class Rules:
    """An ordered mapping from patterns to schemes; the first match wins.

    Args:
        rules: keys are globs (``pattern.translate``), compiled patterns for a full name, or module
            types, which match every parameter that such a module owns directly. Values are those
            of ``as_scheme``.

    Raises:
        TypeError, ArgumentError: for an invalid key or value, which the error names.
    """

    def __init__(self, rules: Mapping[Any, Any]) -> None:
        if not isinstance(rules, Mapping):
            raise TypeError(
                f"rules must be a mapping from patterns to schemes, not {type(rules).__name__}"
            )
        self.rules: list[Rule] = []
        for key, value in rules.items():
            try:
                self.rules.append(Rule(key, as_scheme(value)))
            except (TypeError, ValueError, NotImplementedError) as error:
                raise type(error)(f"the rule for {key!r}: {error}") from error
        self._matchers = _matchers(self.rules)
        self._alike = _alike(rules)
        self._memory: dict[tuple[bytes, type], int] = {}

    def find(self, name: str, owner: nn.Module) -> int:
        """The index of the first rule that matches a name or its owner; -1 if none does.

        Results are cached, since many layers match the same rules.
        """
        if self._alike is None:
            return self._search(name, owner)
        case = name.encode().translate(self._alike), type(owner)
        found = self._memory.get(case)
        if found is None:
            found = self._memory[case] = self._search(name, owner)
        return found

    def _search(self, name: str, owner: nn.Module) -> int:
        for matcher in self._matchers:
            found = matcher(name, owner)
            if found >= 0:
                return found
        return -1


def _alike(keys: Iterable[Any]) -> bytes | None:
    """A table that maps names to cache keys: digits that occur in no pattern become one digit.

    Returns:
        A table for ``bytes.translate``; None if compiled patterns may distinguish any digits.
    """
    digits = set("0123456789")
    for key in keys:
        if isinstance(key, re.Pattern):
            return None
        if isinstance(key, str):
            digits -= set(key)
    same = ord(min(digits, default="0"))
    return bytes(same if chr(code) in digits else code for code in range(256))


def _matchers(rules: Sequence[Rule]) -> list[_Matcher]:
    """Joins neighbouring globs into one alternation, which halves the time of matching."""
    matchers: list[_Matcher] = []
    globs: list[str] = []
    for number, (key, _) in enumerate(rules):
        if isinstance(key, str):
            globs.append(translate(key))
            continue
        if globs:
            matchers.append(_by_globs(globs, number - len(globs)))
            globs = []
        if isinstance(key, re.Pattern):
            if not isinstance(key.pattern, str):
                raise TypeError(f"{key!r} must be a pattern of str, not of bytes")
            matchers.append(_by_pattern(key, number))
        elif isinstance(key, type) and issubclass(key, nn.Module):
            matchers.append(_by_type(key, number))
        else:
            raise TypeError(
                f"the key {key!r} of a rule must be a glob, a compiled re.Pattern or a module "
                f"type, not {type(key).__name__}"
            )
    if globs:
        matchers.append(_by_globs(globs, len(rules) - len(globs)))
    return matchers


def _by_globs(globs: list[str], first: int) -> _Matcher:
    match = re.compile("|".join(f"({glob})" for glob in globs), re.DOTALL).fullmatch

    def find(name: str, _owner: nn.Module) -> int:
        found = match(name)
        return -1 if found is None else first - 1 + (found.lastindex or 0)

    return find


def _by_pattern(pattern: re.Pattern[str], number: int) -> _Matcher:
    return lambda name, _owner: number if pattern.fullmatch(name) else -1


def _by_type(kind: type[nn.Module], number: int) -> _Matcher:
    return lambda _name, owner: number if isinstance(owner, kind) else -1


def nearest(rule: Rule, names: Iterable[str]) -> str | None:
    """The name closest to an unused rule's pattern; None if no name is close."""
    if not isinstance(rule.key, str):
        return None
    plain = re.sub(r"[*?{}]+", "", rule.key).strip(".")
    if not plain:
        return None
    atoms = plain.count(".") + 1
    tails: dict[str, str] = {}
    for name in names:
        tails.setdefault(".".join(name.split(".")[-atoms:]), name)
    found = difflib.get_close_matches(plain, tails, n=1, cutoff=0.5)
    return tails[found[0]] if found else None


def check_unused(rules: Rules, used: Iterable[int], names: Sequence[str]) -> None:
    """Raises ArgumentError if a rule matched nothing."""
    unused = [rules.rules[n] for n in range(len(rules.rules)) if n not in set(used)]
    if unused:
        said = []
        for rule in unused:
            near = nearest(rule, names)
            said.append(f"{rule.title!r}" + (f" (nearest: {near})" if near else ""))
        raise ArgumentError(
            f"{len(unused)} of {len(rules.rules)} rules match no parameter: {'; '.join(said)}. "
            "strict=False allows this, as for a pipeline stage"
        )
