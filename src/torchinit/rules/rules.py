"""Rules: the scheme of a parameter, by its name or by the module that owns it.

Keys are globs, compiled patterns and types of modules; values are schemes, or what stands for one.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import init as torch_init

from torchinit import functional
from torchinit.errors import ArgumentError, UnknownSchemeError, counted
from torchinit.rules.elementwise import Called
from torchinit.rules.globs import glob_matcher, is_literal, is_slow, translate
from torchinit.rules.scheme import Scheme
from torchinit.rules.structured import ByFunction, Custom, FromModel, GivenTensor, Keep, Orthogonal
from torchinit.schemes.calls import FUNCTIONS, Call, read_call

Key: TypeAlias = "str | re.Pattern[str] | type[nn.Module]"
# Returns the index of the rule for a name and its owner, or -1.
_Matcher: TypeAlias = Callable[[str, nn.Module], int]

# A name, and the module that owns what has it.
NameAndOwner: TypeAlias = "tuple[str, nn.Module]"
# What a buffer takes, in errors.
FOR_BUFFERS = "which takes a tensor, a function of the shape, or 'keep'"
_SHOWN = 10  # rules in an error

# Strings for functions of torch.nn.init with their default arguments, and for other schemes.
_STRINGS = (
    "zeros", "ones", "dirac", "xavier_uniform", "xavier_normal", "kaiming_uniform",
    "kaiming_normal", "orthogonal", "keep", "own", "reset_parameters",
)  # fmt: skip
_NEED_NUMBERS = {
    "normal": "Normal(std=...)",
    "trunc_normal": "TruncNormal(std=...), whose cut is in standard deviations",
    "uniform": "Uniform(a=..., b=...)",
    "constant": "Constant(val=...)",
}


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


class Places:
    """Names of tensors with the modules that own them.

    Attributes:
        all: in order; renamed copies may share a name.
        named: the first of each name.
    """

    def __init__(self, all_: Iterable[NameAndOwner]) -> None:
        self.all = list(all_)
        self.named = {one[0]: one for one in reversed(self.all)}


class Rules:
    """An ordered mapping from patterns to schemes; the first match wins.

    Args:
        rules: keys are globs (see ``translate``), compiled patterns for a full name, or module
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
        self._matchers = _matchers(list(rules))
        self._alike = _alike(rules)
        self._memory: dict[tuple[bytes, type], int] = {}

    def find(self, name: str, owner: nn.Module) -> int:
        """The index of the first rule that matches a name or its owner; -1 if none does.

        Results are cached, since many layers match the same rules.
        """
        if self._alike is None:
            return self._search(name, owner)
        case = name.encode(errors="surrogatepass").translate(self._alike), type(owner)
        found = self._memory.get(case)
        if found is None:
            found = self._memory[case] = self._search(name, owner)
        return found

    def _search(self, name: str, owner: nn.Module) -> int:
        return _first(self._matchers, name, owner)

    def finder_among(self, numbers: Sequence[int]) -> _Matcher:
        """A function like ``find`` that knows only some rules."""
        matchers = _matchers([self.rules[number].key for number in numbers])

        def find(name: str, owner: nn.Module) -> int:
            found = _first(matchers, name, owner)
            return -1 if found < 0 else numbers[found]

        return find

    def first_match(self, number: int, places: Places) -> NameAndOwner | None:
        """The first place that a rule matches, whatever the earlier ones do; None if none is."""
        key = self.rules[number].key
        if isinstance(key, str) and is_literal(key):
            return places.named.get(key)
        (match,) = _matchers([key])
        return next((one for one in places.all if match(*one) == 0), None)


def _alike(keys: Iterable[Any]) -> bytes | None:
    """A table for ``bytes.translate``: digits that occur in no pattern become one digit.

    Names that it makes equal match the same rules. None if compiled patterns may tell them apart.
    """
    digits = set("0123456789")
    for key in keys:
        if isinstance(key, re.Pattern):
            return None
        if isinstance(key, str):
            digits -= set(key)
    free = "".join(sorted(digits)).encode()
    return bytes.maketrans(free, free[:1] * len(free))


def _matchers(keys: Sequence[Any]) -> list[_Matcher]:
    """Joins neighbouring globs into one alternation, which halves the time of matching."""
    matchers: list[_Matcher] = []
    globs: list[tuple[int, str]] = []
    for number, key in enumerate(keys):
        if isinstance(key, str):
            translate(key)  # raises for a bad one
            if is_slow(key):
                matchers.append(_by_match(glob_matcher(key), number))
                continue
            globs.append((number, key))
            following = keys[number + 1] if number + 1 < len(keys) else None
            if not isinstance(following, str) or is_slow(following):
                matchers.append(_by_globs(globs))
                globs = []
        elif isinstance(key, re.Pattern) and isinstance(key.pattern, str):
            matchers.append(_by_match(key.fullmatch, number))
        elif isinstance(key, type) and issubclass(key, nn.Module):
            matchers.append(_by_type(key, number))
        else:
            raise TypeError(
                f"the key {key!r} of a rule must be a glob, a compiled re.Pattern of str or a "
                f"module type, not {type(key).__name__}"
            )
    return matchers


def _first(matchers: Iterable[_Matcher], name: str, owner: nn.Module) -> int:
    results = (matcher(name, owner) for matcher in matchers)
    return next((number for number in results if number >= 0), -1)


def _by_globs(globs: Sequence[tuple[int, str]]) -> _Matcher:
    """Finds the first of some globs, given with their numbers, that matches a name.

    Those without wildcards are looked up, so that a rule for each parameter takes no longer.
    """
    literals = {glob: number for number, glob in reversed(globs) if is_literal(glob)}
    others = [(number, translate(glob)) for number, glob in globs if not is_literal(glob)]
    match = re.compile("|".join(f"({regex})" for _, regex in others), re.DOTALL).fullmatch

    def find(name: str, _owner: nn.Module) -> int:
        literal = literals.get(name, -1)
        found = match(name) if others else None
        if found is None:
            return literal
        other = others[(found.lastindex or 0) - 1][0]
        return other if literal < 0 else min(literal, other)

    return find


def _by_match(match: Callable[[str], object], number: int) -> _Matcher:
    return lambda name, _owner: number if match(name) else -1


def _by_type(kind: type[nn.Module], number: int) -> _Matcher:
    return lambda _name, owner: number if isinstance(owner, kind) else -1


def check_unused(rules: Rules, used: Iterable[int], parameters: Places, buffers: Places) -> None:
    """Raises ArgumentError if a rule is used for nothing, and says why.

    Args:
        rules: all of them.
        used: the indices of those that are used.
        parameters, buffers: all of the model's.
    """
    unmatched: list[str] = []
    late: list[str] = []
    names = parameters.named
    for number in sorted({*range(len(rules.rules))} - {*used}):
        rule = rules.rules[number]
        match = rules.first_match(number, parameters)
        if match is not None:
            earlier = rules.rules[rules.find(*match)].title
            late.append(f"{rule.title!r} (the earlier rule {earlier!r} takes {match[0]})")
            continue
        hint = ""
        if len(unmatched) < _SHOWN and is_for_buffers(rule.key):
            buffer = rules.first_match(number, buffers)
            hint = f" (but the buffer {buffer[0]}, {FOR_BUFFERS})" if buffer else ""
        if len(unmatched) < _SHOWN and not hint:
            near = _nearest(rule, names)
            hint = f" (nearest: {near})" if near else ""
        unmatched.append(repr(rule.title) + hint)
    said = [
        f"{len(some)} of {counted(len(rules.rules), 'rule')} {what[len(some) > 1]}: "
        + "; ".join(some[:_SHOWN])
        + (f" and {len(some) - _SHOWN} more" if len(some) > _SHOWN else "")
        for some, what in (
            (unmatched, ("matches no parameter", "match no parameter")),
            (late, ("comes too late", "come too late")),
        ) if some
    ]  # fmt: skip
    if said:
        raise ArgumentError(f"{'. '.join(said)}. strict=False allows this, as for a pipeline stage")


def is_for_buffers(key: Key) -> bool:
    """Whether a key may match buffers: by their names, but not all names."""
    return isinstance(key, re.Pattern) or (isinstance(key, str) and key.strip("*?.") != "")


def _nearest(rule: Rule, names: Iterable[str]) -> str | None:
    """The name closest to an unused rule's pattern; None if no name is close."""
    if not isinstance(rule.key, str):
        return None
    plain = re.sub(r"[*?{}]+", "", rule.key).strip(".")
    if not plain:
        return None
    count = plain.count(".") + 1  # of components
    tails: dict[str, str] = {}
    for name in names:
        tails.setdefault(".".join(name.split(".")[-count:]), name)
    found = difflib.get_close_matches(plain, tails, n=1, cutoff=0.5)
    return tails[found[0]] if found else None


# The values of rules.


def as_scheme(value: Any) -> Scheme:
    """Converts the value of a rule to a scheme.

    Args:
        value: a scheme; the name of one that needs no numbers; a function of ``torchinit`` or
            ``torch.nn.init``, or a ``functools.partial`` of one; any other callable of a tensor;
            a tensor.

    Raises:
        UnknownSchemeError: for an unknown name, or the name of a scheme that needs numbers.
        TypeError: for any other value, and for arguments that the function does not take.
        ArgumentError: for a partial with a generator, since the seed sets the values.
    """
    if isinstance(value, Scheme):
        return value
    if isinstance(value, str):
        return _named(value)
    if isinstance(value, Tensor):
        if value.is_meta or value.layout is not torch.strided:
            where = "on the meta device" if value.is_meta else f"of layout {value.layout}"
            raise ArgumentError(f"a tensor {where} has no values to copy: give a dense one")
        return GivenTensor(value)
    if isinstance(value, type) and issubclass(value, Scheme):
        raise TypeError(f"{value.__name__} is a class: call it, as in {value.__name__}(...)")
    if not callable(value):
        raise TypeError(
            f"{value!r} is not a scheme: expected one (torchinit.Normal(0.02), ...), its name "
            f"({', '.join(_STRINGS)}), a callable of a tensor, or a tensor"
        )
    function, args, kwargs = value, (), {}
    if isinstance(value, functools.partial):
        function, args, kwargs = value.func, value.args, value.keywords
    name = str(getattr(function, "__name__", ""))
    is_known = name in FUNCTIONS and function in (
        getattr(torch_init, name), getattr(functional, name)
    )  # fmt: skip
    if not is_known or name == "sparse_":
        return Custom(value)
    if kwargs.get("generator") is not None:
        raise ArgumentError(f"{name} was given a generator: leave it out, the seed sets the values")
    if args:
        raise TypeError(
            f"partial({name}, {args[0]!r}, ...) would pass {args[0]!r} as the tensor: use keywords"
        )
    return _of_call(read_call(name, (), kwargs))


def _of_call(call: Call) -> Scheme:
    if call.name == "orthogonal_":
        return Orthogonal(**call.arguments)
    if call.name in ("dirac_", "eye_"):
        return ByFunction(call)
    return Called(call)


def _named(name: str) -> Scheme:
    plain = name.rstrip("_")
    if plain == "keep":
        return Keep()
    if plain in ("own", "reset_parameters"):
        return FromModel(plain)
    if plain in _STRINGS:
        return _of_call(read_call(f"{plain}_"))
    if plain in _NEED_NUMBERS:
        raise UnknownSchemeError(f"{name!r} needs numbers: write {_NEED_NUMBERS[plain]}")
    raise UnknownSchemeError(f"scheme {name!r} is unknown, choose one of {', '.join(_STRINGS)}")
