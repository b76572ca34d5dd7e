"""``init_``: a layer's weight and bias by the name of a scheme."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import Generator, Tensor
from torch.overrides import has_torch_function_unary

from torchinit import functional
from torchinit.dtypes import ALL_DTYPES
from torchinit.errors import ArgumentError, UnknownSchemeError, shown
from torchinit.fill import checks
from torchinit.fill.door import fill
from torchinit.schemes.distributions import DISTRIBUTIONS, Draw, as_float, parameters_of
from torchinit.schemes.init_table import (
    INIT_SCHEMES,
    SCHEMES,
    Arguments,
    InitializationType,
    SchemeRow,
)

_NARROW_DTYPES = frozenset({torch.float16, torch.bfloat16})
_NARROW_ORTHOGONAL_GAIN = 0.01


def init_(
    weight: Tensor,
    bias: Tensor | InitializationType | None = None,
    init: InitializationType | None = None,
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

    ``init_(weight, "orthogonal")`` is ``init_(weight, None, "orthogonal")``.

    | init | weight | bias |
    |---|---|---|
    | orthogonal | (semi-)orthogonal, times gain | 0 |
    | normal | N(mean, std^2) | 0 |
    | biased_normal | N(mean, std^2) | N(mean, std^2) |
    | uniform | U[0, scale) | 0 |
    | kaiming_uniform, kaiming_normal | fan_in, gain sqrt(2) | U(-r, r); 0 where fan_in is 0 |
    | xavier_uniform, xavier_normal | gain 1 | the same |
    | trunc_normal | N(mean, std^2) within trunc_clip | 0 |
    | dirac | Dirac delta, by groups | 0 |
    | constant | scale | 0 |
    | zeros, ones | 0, 1 | 0 |

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
        UnknownSchemeError: (a ``NotImplementedError``) init is not the name of a scheme.
        TypeError: weight or bias is not a tensor, or has a dtype or layout that cannot be
            initialised.
        ArgumentError: (a ``ValueError``) any other bad argument. Nothing has been written then.
            Every parameter is checked, whether or not the scheme uses it.

    >>> import torch, torchinit
    >>> linear = torch.nn.Linear(3, 2)
    >>> _ = torch.manual_seed(0)
    >>> torchinit.init_(linear.weight, linear.bias, "kaiming_uniform")
    (tensor([[ 1.1916, -1.1284, -0.1241],
            [ 0.5149, -0.2653, -1.1576]]), tensor([-0.5145,  0.4400]))
    """
    if init is None and not isinstance(bias, Tensor):
        bias, init = None, bias
    elif isinstance(bias, str):
        raise TypeError(f"bias must be a tensor, not {bias!r}: write init_(weight, bias, init)")
    scheme = SCHEMES.get(init or "")
    if init is None or scheme is None or not scheme.in_init:
        raise UnknownSchemeError(
            f"init={init!r} is not implemented, choose one of {', '.join(INIT_SCHEMES)}"
        )
    functional.check_generator(generator)
    arguments = _checked_arguments(mean, std, scale, groups, trunc_clip, gain)
    _check_tensor("weight", weight)
    _check_dimensions(weight, init, scheme, arguments.groups)
    if bias is not None:
        _check_tensor("bias", bias)
        if bias.device != weight.device:
            raise ArgumentError(
                f"bias is on {bias.device} and weight on {weight.device}: move one of them"
            )
    if init in ("uniform", "constant"):
        _check_scale(weight, init, arguments.scale)
    if weight.is_meta:
        return weight, bias

    if init == "trunc_normal":
        functional.warn_if_remote(weight, arguments.mean, arguments.std, *arguments.trunc_clip)
    if scheme.draw is not None:
        _fill(scheme.draw(weight.shape, arguments), weight, generator)
    elif init == "orthogonal":
        if gain is None:
            gain = _NARROW_ORTHOGONAL_GAIN if weight.dtype in _NARROW_DTYPES else 1.0
        functional.orthogonal_(weight, gain, generator)
    else:
        functional.dirac_(weight, arguments.groups)
    if bias is not None:
        _fill(scheme.bias_draw(weight.shape, arguments), bias, generator)
        bias = bias.data
    return weight.data, bias


def _fill(draw: Draw, tensor: Tensor, generator: Generator | None) -> None:
    if not has_torch_function_unary(tensor):
        fill(draw, tensor, generator)
        return
    # Modes see the function that does the same.
    row = DISTRIBUTIONS[draw[0]]
    keywords = {"generator": generator} if row.is_random else {}
    getattr(functional, f"{row.name}_")(tensor, *parameters_of(draw), **keywords)


_DEFAULTS = Arguments()


def _checked_arguments(
    mean: Any, std: Any, scale: Any, groups: Any, trunc_clip: Any, gain: Any
) -> Arguments:
    """All arguments, each checked whether or not the scheme uses it."""
    given = (mean, std, scale, groups, trunc_clip, gain)
    if type(groups) is int and type(trunc_clip) is tuple and tuple(_DEFAULTS) == given:
        return _DEFAULTS
    mean, std, scale = as_float("mean", mean), as_float("std", std), as_float("scale", scale)
    if gain is not None:
        gain = as_float("gain", gain)
    for name, value in (("mean", mean), ("std", std), ("scale", scale), ("gain", gain)):
        if value is not None and not -math.inf < value < math.inf:
            raise ArgumentError(f"{name}={value} must be a finite number")
    if std < 0:
        raise ArgumentError(f"std={std} must not be negative")
    try:
        whole = operator.index(groups)
    except TypeError:
        whole = 0
    if isinstance(groups, bool) or whole < 1:
        raise ArgumentError(f"groups={shown(groups)} must be a positive integer")
    try:
        a, b = (as_float("trunc_clip", bound) for bound in trunc_clip)
    except (TypeError, ValueError):
        raise ArgumentError(f"trunc_clip={shown(trunc_clip)} must be a pair of bounds") from None
    if not a <= b or a == math.inf or b == -math.inf:
        raise ArgumentError(f"trunc_clip={trunc_clip} must be bounds (a, b) with a <= b, not NaN")
    return Arguments(mean, std, scale, whole, (a, b), gain)


def _check_scale(weight: Tensor, init: str, scale: float) -> None:
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
        return  # a traced tensor has no memory to check; the operators do that when they run
    if tensor.is_meta:
        return
    try:
        checks.check_target(tensor)
    except ArgumentError as error:
        raise ArgumentError(f"{name}: {error}") from None


def _check_dimensions(weight: Tensor, init: str, scheme: SchemeRow, groups: int) -> None:
    least, most = scheme.dimensions
    if not least <= weight.dim() <= most:
        wanted = f"at least {least}" if most == math.inf else f"{least} to {most}"
        raise ArgumentError(
            f"weight of shape {tuple(weight.shape)} needs {wanted} dimensions for {init}"
        )
    if init == "dirac" and weight.shape[0] % groups != 0:
        raise ArgumentError(
            f"groups={shown(groups)} does not divide shape[0] of weight, {weight.shape[0]}"
        )
