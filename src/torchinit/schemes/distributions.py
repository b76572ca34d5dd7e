"""The distributions: their parameters, checks of the parameters, and the law of the values.

``DISTRIBUTIONS`` is the only list of them in Python, read by operators, the fallback, tests and
rules that name a function of ``torch.nn.init``. The kernels have a sampler for each in
``csrc/math/samplers.h`` (see CONTRIBUTING.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from enum import IntEnum
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch

from torchinit.dtypes import ALL_DTYPES, WITHOUT_INFINITY
from torchinit.errors import ArgumentError, shown
from torchinit.schemes.law import Law, law_of_constant, law_of_truncated_normal


class Distribution(IntEnum):
    """The numbers of ``csrc/job/plan.h``; a test compares them with the native module's."""

    WORDS = 0
    UNIFORM = 1
    NORMAL = 2
    TRUNCATED_NORMAL = 3
    CONSTANT = 4


# As plain numbers: members of an IntEnum are slow to look up, and small fills are common.
WORDS, UNIFORM, NORMAL, TRUNCATED_NORMAL, CONSTANT = map(int, Distribution)

_LIMITS = {dtype: torch.finfo(dtype).max for dtype in ALL_DTYPES}
# Largest values of the dtype that a fill is computed in.
_WORKING_LIMITS = {dtype: max(_LIMITS[torch.float32], limit) for dtype, limit in _LIMITS.items()}
_INFINITY = math.inf

# A draw: (distribution, p0, p1, p2, p3); unused parameters are 0.
#
# UNIFORM (a, b) is U[a, b); NORMAL (mean, std); TRUNCATED_NORMAL (mean, std, a, b); CONSTANT (val),
# val as it was given; WORDS are the random bits themselves. A plain tuple: making a named one would
# take a twentieth of a small fill's time.
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
    """A number as a float.

    Raises:
        TypeError: for anything else, strings included.
        ArgumentError: for an integer or fraction beyond the range of floats.
    """
    if isinstance(value, str | bytes | bytearray):
        raise TypeError(f"{name}={value!r} must be a number, not {type(value).__name__}")
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name}={value!r} must be a number, not {type(value).__name__}") from None
    except OverflowError:
        raise ArgumentError(f"{name}={shown(value)} is beyond the range of floats") from None


def check_finite(**arguments: float) -> None:
    """Raises ArgumentError for the first argument that is NaN or infinite."""
    for name, value in arguments.items():
        if not -_INFINITY < value < _INFINITY:
            raise ArgumentError(f"{name}={value} must be a finite number")


def check_normal(mean: float, std: float) -> None:
    """Raises ArgumentError unless mean is finite and std finite and not negative."""
    if -_INFINITY < mean < _INFINITY and 0 <= std < _INFINITY:
        return
    check_finite(mean=mean, std=std)
    raise ArgumentError(f"std={std} must not be negative")


def check_interval(a: float, b: float) -> None:
    """Raises ArgumentError unless a <= b; a may be minus infinity, b plus infinity."""
    if not a <= b or a == _INFINITY or b == -_INFINITY:
        raise ArgumentError(f"a={a} must not be greater than b={b}, and neither may be NaN")


def _check_truncated(_dtype: torch.dtype, mean: float, std: float, a: float, b: float) -> None:
    check_normal(mean, std)
    check_interval(a, b)


def _check_normal(dtype: torch.dtype, mean: float, std: float, *_: float) -> None:
    limit = _WORKING_LIMITS[dtype]
    if -limit <= mean <= limit and 0 <= std <= limit:
        return
    check_normal(mean, std)
    name, value = ("std", std) if std > limit else ("mean", mean)
    raise ArgumentError(
        f"{name}={value} is out of the range that fills of {dtype} are computed in, up to {limit}"
    )


def _check_uniform(dtype: torch.dtype, a: float, b: float, *_: float) -> None:
    limit = _LIMITS[dtype]
    if -limit <= a <= b <= limit and b - a <= limit:
        return
    check_finite(a=a, b=b)
    if a > b:
        raise ArgumentError(f"a={a} must not be greater than b={b}")
    for name, value in (("a", a), ("b", b)):
        if not -limit <= value <= limit:
            raise ArgumentError(
                f"{name}={value} is out of the range of {dtype}, {-limit} to {limit}"
            )
    raise ArgumentError(f"the width of [a={a}, b={b}) exceeds the range of {dtype}, {limit}")


def _check_constant(dtype: torch.dtype, val: float, *_: float) -> None:
    """Infinity is in range for most dtypes."""
    if type(val) is not float:
        val = as_float("val", val)
    limit = _LIMITS[dtype]
    if abs(val) > limit and (math.isfinite(val) or dtype in WITHOUT_INFINITY):
        raise ArgumentError(f"val={val} is out of the range of {dtype}, {-limit} to {limit}")


def _uniform_law(a: float, b: float) -> Law:
    if a == b:
        return law_of_constant(a)
    return Law(
        mean=a + (b - a) / 2,
        std=(b - a) / math.sqrt(12),
        kurtosis=1.8,
        low=a,
        high=math.nextafter(b, -math.inf),
        density=partial(_uniform_density, a, b),
        mean_shift=(b - a) / 4,
    )


def _uniform_density(a: float, b: float, x: float) -> float:
    return 1 / (b - a) if a <= x < b else 0.0


def _normal_law(mean: float, std: float) -> Law:
    if std == 0:
        return law_of_constant(mean)
    return Law(mean, std, kurtosis=3.0, density=partial(_normal_density, mean, std))


def _normal_density(mean: float, std: float, x: float) -> float:
    return math.exp(-(((x - mean) / std) ** 2) / 2) / (std * math.sqrt(2 * math.pi))


class DistributionRow(NamedTuple):
    """One distribution.

    Attributes:
        name: of its function and of ``torch.nn.init``'s, without the underscore.
        parameters: their names, in the order of a draw.
        check: called with the dtype and the parameters; raises ArgumentError.
        law: gives the law of the parameters; None for words, which are not numbers.
        is_random: whether a fill takes a key.
        by_torch: fills where kernels cannot, called with the tensor, the parameters and a generator
            or None; None for ``torch.nn.init``'s function of the same name.
    """

    name: str
    parameters: tuple[str, ...]
    check: Callable[..., None]
    law: Callable[..., Law] | None
    is_random: bool = True
    by_torch: Callable[..., torch.Tensor] | None = None


DISTRIBUTIONS: dict[int, DistributionRow] = {
    WORDS: DistributionRow("random_words", (), lambda *_: None, None),
    UNIFORM: DistributionRow("uniform", ("a", "b"), _check_uniform, _uniform_law),
    NORMAL: DistributionRow("normal", ("mean", "std"), _check_normal, _normal_law),
    TRUNCATED_NORMAL: DistributionRow(
        "trunc_normal", ("mean", "std", "a", "b"), _check_truncated, law_of_truncated_normal
    ),
    CONSTANT: DistributionRow(
        "constant", ("val",), _check_constant, law_of_constant, is_random=False
    ),
}


def parameters_of(draw: Draw) -> tuple[Any, ...]:
    """The parameters of a draw, as many as its distribution has."""
    return draw[1 : 1 + len(DISTRIBUTIONS[draw[0]].parameters)]


def draw_from(distribution: int, parameters: Iterable[Any]) -> Draw:
    """The draw of a distribution with its parameters, which ``parameters_of`` gives back."""
    p0, p1, p2, p3 = [*parameters, 0.0, 0.0, 0.0, 0.0][:4]
    return distribution, p0, p1, p2, p3


def draw_in_words(draw: Draw) -> str:
    """A draw written as the call of its function.

    >>> draw_in_words(normal_draw(0.0, 0.02))
    'normal(mean=0, std=0.02)'
    """
    row = DISTRIBUTIONS[draw[0]]
    values = zip(row.parameters, parameters_of(draw), strict=True)
    return f"{row.name}({', '.join(f'{name}={value:g}' for name, value in values)})"


def check_draw(draw: Draw, dtype: torch.dtype) -> None:
    """Raises ArgumentError unless a fill of this dtype can have the draw's parameters."""
    DISTRIBUTIONS[draw[0]].check(dtype, *draw[1:])


def law_of(draw: Draw) -> Law:
    """The law of a draw.

    Raises:
        ValueError: for random words, which are not numbers.
    """
    law = DISTRIBUTIONS[draw[0]].law
    if law is None:
        raise ValueError(f"{draw} has no law")
    return law(*parameters_of(draw))
