"""Fan and gain arithmetic: shapes in, numbers out.

References: Glorot and Bengio 2010 (xavier); He et al. 2015 (kaiming).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch.nn.init import calculate_gain

from torchinit.schemes.distributions import check_finite

__all__ = ["calculate_fan", "calculate_fans", "calculate_gain", "kaiming_std", "xavier_std"]


def calculate_fans(shape: Sequence[int]) -> tuple[int, int]:
    """Returns ``(fan_in, fan_out)`` of a weight of the given shape, as torch counts them.

    The shape is ``(out, in, *kernel)``; each fan is multiplied by the number of kernel positions.

    Raises:
        ValueError: if the shape has fewer than two dimensions.
    """
    if len(shape) < 2:
        raise ValueError(
            "Fan in and fan out can not be computed for tensor with fewer than 2 dimensions, "
            f"got shape {tuple(shape)}"
        )
    positions = math.prod(shape[2:])
    return shape[1] * positions, shape[0] * positions


def calculate_fan(shape: Sequence[int], mode: str) -> int:
    """Returns the fan that a mode, ``fan_in`` or ``fan_out`` in any case of letters, asks for."""
    lowered = mode.lower()
    if lowered not in ("fan_in", "fan_out"):
        raise ValueError(f"Mode {lowered} not supported, please use one of ['fan_in', 'fan_out']")
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
    gain = calculate_gain(nonlinearity, a)  # type: ignore[arg-type]
    return gain / math.sqrt(fan) if fan else 0.0
