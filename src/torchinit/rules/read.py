"""Converts strings, functions of torch.nn.init, partials of them and callables to schemes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch.nn import init as torch_init

from torchinit import functional
from torchinit.errors import ArgumentError, UnknownSchemeError
from torchinit.rules.elementwise import Called
from torchinit.rules.scheme import Scheme
from torchinit.rules.structured import ByFunction, Custom, FromModel, Keep, Orthogonal
from torchinit.schemes.calls import FUNCTIONS, Call, read_call

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


def as_scheme(value: Any) -> Scheme:
    """Converts the value of a rule to a scheme.

    Args:
        value: a scheme; the name of one that needs no numbers; a function of ``torchinit`` or
            ``torch.nn.init``, or a ``functools.partial`` of one; any other callable of a tensor.

    Raises:
        UnknownSchemeError: for an unknown name, or the name of a scheme that needs numbers.
        TypeError: for any other value, and for arguments that the function does not take.
        ArgumentError: for a partial with a generator, since the seed sets the values.
    """
    if isinstance(value, Scheme):
        return value
    if isinstance(value, str):
        return _named(value)
    if isinstance(value, type) and issubclass(value, Scheme):
        raise TypeError(f"{value.__name__} is a class: call it, as in {value.__name__}(...)")
    if not callable(value):
        raise TypeError(
            f"{value!r} is not a scheme: expected one (torchinit.Normal(0.02), ...), its name "
            f"({', '.join(_STRINGS)}), or a callable of a tensor"
        )
    function, args, kwargs = value, (), {}
    if isinstance(value, functools.partial):
        function, args, kwargs = value.func, value.args, value.keywords
    name = _known(function)
    if name is None or name == "sparse_":
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


def _known(function: Callable[..., Any]) -> str | None:
    """The name of a function of torchinit or torch.nn.init; None for any other."""
    name = getattr(function, "__name__", None)
    if name in FUNCTIONS and function in (getattr(torch_init, name), getattr(functional, name)):
        return str(name)
    return None
