"""A draw: a distribution with its parameters, and the checks that it must pass."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import torch

from torchinit.dtypes import ALL_DTYPES
from torchinit.errors import ArgumentError
from torchinit.native.numbers import Distribution

# As plain numbers: members of an IntEnum are slow to look up, and small fills are common.
WORDS, UNIFORM, NORMAL, TRUNCATED_NORMAL, CONSTANT = map(int, Distribution)

_LIMITS = {dtype: torch.finfo(dtype).max for dtype in ALL_DTYPES}
# Largest values of the dtype that a fill is computed in.
_WORKING_LIMITS = {dtype: max(_LIMITS[torch.float32], limit) for dtype, limit in _LIMITS.items()}
_INFINITY = math.inf
# Means and stds of less than this are within the range of every dtype that fills are computed in.
USUAL = 1e38


# A draw: (distribution, p0, p1, p2, p3), the parameters that a distribution has not being 0.
#
# UNIFORM (a, b) is U[a, b); NORMAL (mean, std); TRUNCATED_NORMAL (mean, std, a, b); CONSTANT (val),
# val as it was given; WORDS are the random bits themselves. A plain tuple: a class of its own would
# take a twentieth of the time of a small fill.
Draw: TypeAlias = tuple[int, Any, float, float, float]


def uniform_draw(a: float, b: float) -> Draw:
    """U[a, b)."""
    return UNIFORM, a, b, 0.0, 0.0


def normal_draw(mean: float, std: float) -> Draw:
    """N(mean, std^2)."""
    return NORMAL, mean, std, 0.0, 0.0


def truncated_draw(mean: float, std: float, a: float, b: float) -> Draw:
    """N(mean, std^2) truncated to [a, b]."""
    return TRUNCATED_NORMAL, mean, std, a, b


def constant_draw(val: Any) -> Draw:
    """One value."""
    return CONSTANT, val, 0.0, 0.0, 0.0


def as_float(name: str, value: Any) -> float:
    """A number as a float; TypeError for what is none, strings included."""
    if isinstance(value, str | bytes | bytearray):
        raise TypeError(f"{name}={value!r} must be a number, not {type(value).__name__}")
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name}={value!r} must be a number, not {type(value).__name__}") from None


def check_finite(**arguments: float) -> None:
    """Raises ArgumentError for the first argument that is NaN or infinite."""
    for name, value in arguments.items():
        if not -_INFINITY < value < _INFINITY:
            raise ArgumentError(f"{name}={value} must be a finite number")


def check_draw(draw: Draw, dtype: torch.dtype) -> None:
    """Raises ArgumentError unless a fill of the dtype can have these parameters."""
    distribution, p0, p1, p2, p3 = draw
    if distribution == NORMAL:
        limit = _WORKING_LIMITS[dtype]
        if -limit <= p0 <= limit and 0 <= p1 <= limit:
            return
        _check_normal(dtype, p0, p1, limit)
    elif distribution == UNIFORM:
        limit = _LIMITS[dtype]
        if -limit <= p0 <= p1 <= limit and p1 - p0 <= limit:
            return
        _check_uniform(dtype, p0, p1, limit)
    elif distribution == TRUNCATED_NORMAL:
        check_normal(p0, p1)
        check_interval(p2, p3)
    elif distribution == CONSTANT:
        _check_constant(dtype, p0)


def check_normal(mean: float, std: float) -> None:
    """Raises ArgumentError unless mean is finite and std finite and not negative."""
    if -_INFINITY < mean < _INFINITY and 0 <= std < _INFINITY:
        return
    check_finite(mean=mean, std=std)
    raise ArgumentError(f"std={std} must not be negative")


def check_interval(a: float, b: float) -> None:
    """Raises ArgumentError unless a <= b, where a may be minus and b plus infinity."""
    if not a <= b or a == _INFINITY or b == -_INFINITY:
        raise ArgumentError(f"a={a} must not be greater than b={b}, and neither may be NaN")


def _check_normal(dtype: torch.dtype, mean: float, std: float, limit: float) -> None:
    check_normal(mean, std)
    name, value = ("std", std) if std > limit else ("mean", mean)
    raise ArgumentError(
        f"{name}={value} is out of the range that fills of {dtype} are computed in, up to {limit}"
    )


def _check_uniform(dtype: torch.dtype, a: float, b: float, limit: float) -> None:
    check_finite(a=a, b=b)
    if a > b:
        raise ArgumentError(f"a={a} must not be greater than b={b}")
    for name, value in (("a", a), ("b", b)):
        if not -limit <= value <= limit:
            raise ArgumentError(
                f"{name}={value} is out of the range of {dtype}, {-limit} to {limit}"
            )
    raise ArgumentError(f"the width of [a={a}, b={b}) exceeds the range of {dtype}, {limit}")


def _check_constant(dtype: torch.dtype, val: float) -> None:
    """Infinity is in most ranges."""
    limit = _LIMITS[dtype]
    if abs(val) > limit and (math.isfinite(val) or dtype == torch.float8_e4m3fn):
        raise ArgumentError(f"val={val} is out of the range of {dtype}, {-limit} to {limit}")
