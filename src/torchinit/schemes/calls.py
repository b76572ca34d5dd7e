"""Calls of ``torch.nn.init``'s functions as values: a name and arguments, without the tensor.

Used for rules that name a function, and for recorded calls.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch.nn import init as torch_init

from torchinit.schemes import fans
from torchinit.schemes.distributions import (
    DISTRIBUTIONS,
    Draw,
    as_float,
    constant_draw,
    draw_from,
    uniform_draw,
)


class Call(NamedTuple):
    """A call of a function, without the tensor.

    Attributes:
        name: of the function, such as ``normal_``.
        arguments: by name, with defaults, without the tensor and the generator.
    """

    name: str
    arguments: dict[str, Any]


def read_call(name: str, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Call:
    """Reads the arguments after the tensor of a call.

    Args:
        name: of a function of ``torch.nn.init`` that fills, with its underscore.
        args, kwargs: of the call, without the tensor; a generator is dropped.

    Raises:
        TypeError: for arguments that the function does not take, and for missing ones.
    """
    bound = _SIGNATURES[name].bind(None, *args, **(kwargs or {}))
    bound.apply_defaults()
    arguments = dict(bound.arguments)
    arguments.pop("tensor")
    arguments.pop("generator", None)
    return Call(name, arguments)


def call_by_position(name: str, values: Sequence[Any]) -> Call | None:
    """A call of a distribution's function or ``orthogonal_`` by position; None for others."""
    names = {f"{row.name}_": row.parameters for row in DISTRIBUTIONS.values()}
    names["orthogonal_"] = ("gain",)
    if name not in FUNCTIONS or len(names.get(name, ())) != len(values):
        return None
    return Call(name, dict(zip(names[name], values, strict=True)))


def draw_of(call: Call, shape: Sequence[int]) -> Draw | None:
    """The draw of a call on a tensor of a shape.

    Returns:
        The draw; None for functions that do not fill elementwise (``orthogonal_``, ``eye_``,
        ``dirac_``, ``sparse_``).

    Raises:
        ValueError: as the function does, for a shape without fans or invalid arguments.
    """
    draw = _DRAWS.get(call.name)
    return None if draw is None else draw(shape, **call.arguments)


def _elementwise(distribution: int) -> Callable[..., Draw]:
    names = DISTRIBUTIONS[distribution].parameters

    def of_shape(_shape: Sequence[int], **arguments: Any) -> Draw:
        return draw_from(distribution, [as_float(name, arguments[name]) for name in names])

    return of_shape


def _kaiming(draw: Callable[..., Draw]) -> Callable[..., Draw]:
    def of_shape(shape: Sequence[int], **arguments: Any) -> Draw:
        # Empty tensors are no error, as in the functions.
        return uniform_draw(0.0, 0.0) if 0 in shape else draw(shape, **arguments)

    return of_shape


_DRAWS: dict[str, Callable[..., Draw]] = {
    **{
        f"{row.name}_": _elementwise(distribution)
        for distribution, row in DISTRIBUTIONS.items()
        if hasattr(torch_init, f"{row.name}_")
    },
    "ones_": lambda _shape: constant_draw(1.0),
    "zeros_": lambda _shape: constant_draw(0.0),
    "xavier_uniform_": fans.xavier_uniform,
    "xavier_normal_": fans.xavier_normal,
    "kaiming_uniform_": _kaiming(fans.kaiming_uniform),
    "kaiming_normal_": _kaiming(fans.kaiming_normal),
}

# The names of all functions that fill a tensor.
FUNCTIONS: tuple[str, ...] = (*_DRAWS, "orthogonal_", "eye_", "dirac_", "sparse_")

_SIGNATURES = {name: inspect.signature(getattr(torch_init, name)) for name in FUNCTIONS}
