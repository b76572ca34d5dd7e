"""Fans and gains, and the draws that are scaled by them, from the shape of a weight.

References: Glorot and Bengio 2010 (xavier); He et al. 2015 (kaiming).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch.nn.init import calculate_gain

from torchinit.errors import ArgumentError, shown
from torchinit.schemes.distributions import (
    Draw,
    as_float,
    check_finite,
    constant_draw,
    normal_draw,
    uniform_draw,
)

__all__ = [
    "calculate_fan",
    "calculate_fans",
    "calculate_gain",
    "fan_in_uniform",
    "kaiming_normal",
    "kaiming_std",
    "kaiming_uniform",
    "xavier_normal",
    "xavier_std",
    "xavier_uniform",
]

_SQRT3 = math.sqrt(3.0)


def calculate_fans(shape: Sequence[int]) -> tuple[int, int]:
    """Returns ``(fan_in, fan_out)`` of a weight of the given shape, as torch counts them.

    The shape is ``(out, in, *kernel)``; each fan is multiplied by the number of kernel positions.

    Raises:
        ValueError: if the shape has fewer than two dimensions.
    """
    if len(shape) < 2:
        raise ArgumentError(
            "Fan in and fan out can not be computed for tensor with fewer than 2 dimensions, "
            f"got shape {tuple(shape)}"
        )
    positions = math.prod(shape[2:])
    return shape[1] * positions, shape[0] * positions


def calculate_fan(shape: Sequence[int], mode: str) -> int:
    """Returns the fan for a mode, ``fan_in`` or ``fan_out`` in upper or lower case."""
    lowered = mode.lower()
    if lowered not in ("fan_in", "fan_out"):
        raise ArgumentError(
            f"Mode {lowered} not supported, please use one of ['fan_in', 'fan_out']"
        )
    fan_in, fan_out = calculate_fans(shape)
    return fan_in if lowered == "fan_in" else fan_out


def xavier_std(shape: Sequence[int], gain: float) -> float:
    """Returns the standard deviation ``gain * sqrt(2 / (fan_in + fan_out))``; 0 without fans."""
    fan_in, fan_out = calculate_fans(shape)
    fans = fan_in + fan_out
    return gain * math.sqrt(2.0 / float(fans)) if fans else 0.0


def kaiming_std(shape: Sequence[int], a: float | None, mode: str, nonlinearity: str) -> float:
    """Returns the standard deviation ``gain / sqrt(fan)``; 0 where the fan is 0.

    Raises:
        ValueError: for a mode, nonlinearity or slope that torch does not know either.
        ArgumentError: if the slope a is NaN or infinite.
    """
    if isinstance(a, float):
        check_finite(a=a)
    fan = calculate_fan(shape, mode)
    try:
        gain = calculate_gain(nonlinearity, a)  # type: ignore[arg-type]
    except OverflowError:
        raise ArgumentError(f"a={shown(a)} is beyond the range of floats") from None
    return gain / math.sqrt(fan) if fan else 0.0


def xavier_uniform(shape: Sequence[int], gain: float = 1.0) -> Draw:
    """U(-r, r), r = gain sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio 2010)."""
    _check_gain(gain)
    bound = _SQRT3 * xavier_std(shape, gain)
    return uniform_draw(-bound, bound)


def xavier_normal(shape: Sequence[int], gain: float = 1.0) -> Draw:
    """N(0, s^2), s = gain sqrt(2 / (fan_in + fan_out)) (Glorot and Bengio 2010)."""
    _check_gain(gain)
    return normal_draw(0.0, xavier_std(shape, gain))


def kaiming_uniform(
    shape: Sequence[int],
    a: float | None = 0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
) -> Draw:
    """U(-r, r), r = gain sqrt(3 / fan) (He et al. 2015)."""
    bound = _SQRT3 * kaiming_std(shape, a, mode, nonlinearity)
    return uniform_draw(-bound, bound)


def kaiming_normal(
    shape: Sequence[int],
    a: float | None = 0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
) -> Draw:
    """N(0, s^2), s = gain / sqrt(fan) (He et al. 2015)."""
    return normal_draw(0.0, kaiming_std(shape, a, mode, nonlinearity))


def fan_in_uniform(shape: Sequence[int]) -> Draw:
    """U(-r, r), r = 1 / sqrt(fan_in), for a bias from the weight's shape; 0 if fan_in is 0."""
    fan_in, _ = calculate_fans(shape)
    if fan_in == 0:
        return constant_draw(0.0)
    bound = 1 / math.sqrt(fan_in)
    return uniform_draw(-bound, bound)


def _check_gain(gain: float) -> None:
    if type(gain) is not float:
        gain = as_float("gain", gain)
    check_finite(gain=gain)
    if gain < 0:
        raise ArgumentError(f"gain={gain} must not be negative")
