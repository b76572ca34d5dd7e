"""``init_``: a layer's weight and bias by the name of a scheme."""

from __future__ import annotations

import math
from typing import Literal, cast, get_args

import torch
from torch import Generator, Tensor

from torchinit import batching, checks, functional
from torchinit.dtypes import ALL_DTYPES
from torchinit.errors import ArgumentError, UnknownSchemeError
from torchinit.fans import calculate_fans

InitializationType = Literal[
    "orthogonal",
    "normal",
    "biased_normal",
    "uniform",
    "kaiming_uniform",
    "kaiming_normal",
    "xavier_uniform",
    "xavier_normal",
    "trunc_normal",
    "dirac",
    "constant",
    "zeros",
    "ones",
]

SCHEMES: tuple[str, ...] = get_args(InitializationType)

# Schemes whose scale follows from the fans, and whose bias from fan_in.
_FAN_SCHEMES = frozenset({"kaiming_uniform", "kaiming_normal", "xavier_uniform", "xavier_normal"})
_NARROW_DTYPES = frozenset({torch.float16, torch.bfloat16})
_NARROW_ORTHOGONAL_GAIN = 0.01


def cast_init_type(s: str) -> InitializationType:
    """Returns a string as an ``InitializationType``.

    Raises:
        UnknownSchemeError: (a ``ValueError`` and an ``AssertionError``) if it is not the name of a
            scheme.

    >>> cast_init_type("kaiming_uniform")
    'kaiming_uniform'
    """
    if s not in SCHEMES:
        raise UnknownSchemeError(
            f"initialization type {s!r} is unknown, choose one of {', '.join(SCHEMES)}"
        )
    return cast(InitializationType, s)


def init_(
    weight: Tensor,
    bias: Tensor | None,
    init: InitializationType,
    *,
    mean: float = 0.0,
    std: float = 0.01,
    scale: float = 0.02,
    groups: int = 1,
    trunc_clip: tuple[float, float] = (-2.0, 2.0),
    gain: float | None = None,
    generator: Generator | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Initialises a weight, and a bias if there is one, in place.

    ===================================  ====================================  ====================
    init                                 weight                                bias
    ===================================  ====================================  ====================
    orthogonal                           (semi-)orthogonal, times gain         0
    normal                               N(mean, std^2)                        0
    biased_normal                        N(mean, std^2)                        N(mean, std^2)
    uniform                              U[0, scale)                           0
    kaiming_uniform, kaiming_normal      fan_in, gain sqrt(2)                  U(-r, r); 0 without
    xavier_uniform, xavier_normal        gain 1                                the same
    trunc_normal                         N(mean, std^2) within trunc_clip      0
    dirac                                Dirac delta, by groups                0
    constant                             scale                                 0
    zeros, ones                          0, 1                                  0
    ===================================  ====================================  ====================

    with r = 1 / sqrt(fan_in) of the weight.

    Args:
        weight: float64, float32, float16, bfloat16, float8_e4m3fn or float8_e5m2. At least two
            dimensions for orthogonal, kaiming and xavier, three to five for dirac. A ``Parameter``
            is unwrapped.
        bias: any shape, same device as the weight; or None.
        init: the scheme.
        mean, std: of normal, biased_normal and trunc_normal; finite, std >= 0.
        scale: of uniform (not negative) and constant; finite.
        groups: of dirac; a positive divisor of weight.shape[0].
        trunc_clip: bounds (a, b) of trunc_normal, as values (not multiples of std), a <= b; may be
            infinite.
        gain: of orthogonal. None means 1, but **0.01 for float16 and bfloat16** weights, which are
            computed in float32 and rounded.
        generator: where the keys are drawn from, the weight's first and then the bias's, one for
            each random fill; None is torch's default CPU generator.

    Returns:
        The tensors filled: plain ones where Parameters were given. If the weight is a meta tensor,
        weight and bias themselves, untouched.

    Raises:
        NotImplementedError: init is not the name of a scheme.
        TypeError: weight or bias is no tensor, or has a dtype or layout that cannot be initialised.
        ArgumentError: (a ``ValueError``) any other bad argument. Nothing has been written then.
            Every parameter is checked, whether or not the scheme uses it.
    """
    if init not in SCHEMES:
        raise NotImplementedError(
            f"init={init!r} is not implemented, choose one of {', '.join(SCHEMES)}"
        )
    _check_parameters(mean, std, scale, groups, trunc_clip, gain)
    _check_tensor("weight", weight)
    _check_dimensions(weight, init, groups)
    if bias is not None:
        _check_tensor("bias", bias)
        if bias.device != weight.device:
            raise ArgumentError(
                f"bias is on {bias.device} and weight on {weight.device}: move one of them"
            )
    _check_scale(weight, init, scale)
    if weight.is_meta:
        return weight, bias

    given = (weight,) if bias is None else (weight, bias)
    weight = weight.data
    _fill_weight(weight, init, mean, std, scale, groups, trunc_clip, gain, generator)
    if bias is not None:
        bias = bias.data
        if init == "biased_normal":
            functional.normal_(bias, mean, std, generator)
        elif init in _FAN_SCHEMES and (fan_in := calculate_fans(weight.shape)[0]) > 0:
            bound = 1 / math.sqrt(fan_in)
            functional.uniform_(bias, -bound, bound, generator)
        else:
            functional.zeros_(bias)
    if (batch := batching.current()) is not None:
        for tensor in given:  # .data has a count of writes of its own
            batch.watch(tensor)
    return weight, bias


def _fill_weight(
    weight: Tensor,
    init: InitializationType,
    mean: float,
    std: float,
    scale: float,
    groups: int,
    trunc_clip: tuple[float, float],
    gain: float | None,
    generator: Generator | None,
) -> None:
    if init in ("normal", "biased_normal"):
        functional.normal_(weight, mean, std, generator)
    elif init == "trunc_normal":
        functional.trunc_normal_(weight, mean, std, *trunc_clip, generator)
    elif init == "uniform":
        functional.uniform_(weight, 0.0, scale, generator)
    elif init == "kaiming_uniform":
        functional.kaiming_uniform_(weight, generator=generator)
    elif init == "kaiming_normal":
        functional.kaiming_normal_(weight, generator=generator)
    elif init == "xavier_uniform":
        functional.xavier_uniform_(weight, generator=generator)
    elif init == "xavier_normal":
        functional.xavier_normal_(weight, generator=generator)
    elif init == "orthogonal":
        if gain is None:
            gain = _NARROW_ORTHOGONAL_GAIN if weight.dtype in _NARROW_DTYPES else 1.0
        functional.orthogonal_(weight, gain, generator)
    elif init == "dirac":
        functional.dirac_(weight, groups)
    else:
        functional.constant_(weight, {"constant": scale, "zeros": 0.0, "ones": 1.0}[init])


def _check_parameters(
    mean: float,
    std: float,
    scale: float,
    groups: int,
    trunc_clip: tuple[float, float],
    gain: float | None,
) -> None:
    checks.check_normal(mean, std)
    if not -math.inf < scale < math.inf or gain is not None:
        checks.check_finite(scale=scale, gain=1.0 if gain is None else gain)
    if isinstance(groups, bool) or not isinstance(groups, int) or groups < 1:
        raise ArgumentError(f"groups={groups} must be a positive integer")
    try:
        a, b = trunc_clip
    except (TypeError, ValueError):
        raise ArgumentError(f"trunc_clip={trunc_clip} must be a pair of bounds") from None
    if not a <= b or a == math.inf or b == -math.inf:
        raise ArgumentError(f"trunc_clip={trunc_clip} must be bounds (a, b) with a <= b, not NaN")


def _check_scale(weight: Tensor, init: InitializationType, scale: float) -> None:
    if init not in ("uniform", "constant"):
        return
    if init == "uniform" and scale < 0:
        raise ArgumentError(f"scale={scale} must not be negative for uniform")
    if abs(scale) > (limit := torch.finfo(weight.dtype).max):
        raise ArgumentError(f"scale={scale} is out of the range of {weight.dtype}, up to {limit}")


def _check_tensor(name: str, tensor: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
    if tensor.dtype not in ALL_DTYPES:
        raise TypeError(
            f"{name} has dtype {tensor.dtype}, which cannot be initialised: "
            f"expected one of {', '.join(map(str, ALL_DTYPES))}"
        )
    if tensor.layout is not torch.strided:
        raise TypeError(f"{name} has layout {tensor.layout}, expected torch.strided")
    if torch.compiler.is_compiling():
        return  # a traced tensor has no memory to look at; the operators check it when they run
    try:
        checks.check_target(tensor)
    except ArgumentError as error:
        raise ArgumentError(f"{name}: {error}") from None


def _check_dimensions(weight: Tensor, init: InitializationType, groups: int) -> None:
    shape = tuple(weight.shape)
    if (init in _FAN_SCHEMES or init == "orthogonal") and len(shape) < 2:
        raise ArgumentError(f"weight of shape {shape} needs at least 2 dimensions for {init}")
    if init == "dirac":
        if not 3 <= len(shape) <= 5:
            raise ArgumentError(f"weight of shape {shape} needs 3, 4 or 5 dimensions for dirac")
        if shape[0] % groups != 0:
            raise ArgumentError(f"groups={groups} does not divide shape[0] of weight, {shape[0]}")
