"""Schemes that draw values independently from a distribution, which may depend on the fans."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from torchinit.errors import ArgumentError, check_flag, shown
from torchinit.rules.scheme import Scheme, Target
from torchinit.schemes.calls import Call, draw_of
from torchinit.schemes.distributions import (
    Draw,
    as_float,
    check_finite,
    check_interval,
    check_normal,
    constant_draw,
    normal_draw,
    truncated_draw,
    uniform_draw,
)
from torchinit.schemes.law import truncated_std
from torchinit.values.kinds import DrawnValues
from torchinit.values.region import Part, Region, Shape


class Elementwise(Scheme):
    """A scheme whose values are one draw."""

    __slots__ = ()

    def draw(self, shape: Shape) -> Draw:
        """The draw for a logical tensor, or for one matrix of a stack."""
        raise NotImplementedError

    def parts(self, region: Region, target: Target) -> list[Part]:  # noqa: ARG002
        return [Part(region, DrawnValues(self.draw(region.matrix_shape)))]


@dataclass(frozen=True)
class _Fixed(Elementwise):
    """A scheme whose draw is the same for every shape."""

    _draw: Draw = field(init=False, repr=False, compare=False)

    def draw(self, shape: Shape) -> Draw:  # noqa: ARG002
        return self._draw


def _set(scheme: object, **values: object) -> None:
    """Sets attributes of a frozen dataclass."""
    for name, value in values.items():
        object.__setattr__(scheme, name, value)


_Kind = TypeVar("_Kind", bound=type[_Fixed])


def _only_std_by_position(kind: _Kind) -> _Kind:
    """Refuses more than one argument by position: torch and NumPy have the mean first."""
    init = kind.__init__

    @functools.wraps(init)
    def checked(self: _Fixed, *args: Any, **kwargs: Any) -> None:
        if len(args) > 1:
            said = ", ".join(map(repr, args))
            meant = f"{args[1]!r}, mean={args[0]!r}" if len(args) == 2 else "std, mean=..., cut=..."
            raise TypeError(
                f"{kind.__name__}({said}): only std can be given by position, since torch and "
                f"NumPy have the mean first. Write {kind.__name__}({meant})"
            )
        init(self, *args, **kwargs)

    kind.__init__ = checked  # type: ignore[method-assign]
    return kind


def _check_random(kind: str, mean: float, std: float) -> None:
    check_normal(mean, std)
    if std == 0:
        raise ArgumentError(f"{kind} with std=0 is a constant: write Constant({mean:g})")


@_only_std_by_position
@dataclass(frozen=True)
class Normal(_Fixed):
    """N(mean, std^2).

    Only std can be given by position, since torch and NumPy have the mean first.

    Raises:
        ArgumentError: if std is not positive, or either number is not finite.
        TypeError: if mean is given by position.

    >>> import torch, torchinit
    >>> _ = torch.manual_seed(0)
    >>> torchinit.Normal(0.02)(torch.empty(3))
    tensor([ 0.0037,  0.0111, -0.0072])
    """

    std: float
    mean: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        std, mean = as_float("std", self.std), as_float("mean", self.mean)
        _check_random("Normal", mean, std)
        _set(self, std=std, mean=mean, _draw=normal_draw(mean, std))


@_only_std_by_position
@dataclass(frozen=True)
class TruncNormal(_Fixed):
    """N(mean, std^2) truncated to mean +- cut std. Only std can be given by position.

    Args:
        std, mean: of the normal before truncation; if corrected, std is that of the values.
        cut: the truncation bound **in standard deviations** (``torch.nn.init.trunc_normal_``
            takes values). With cut=3 the values' std is 0.987 std, with cut=2 it is 0.880 std.
        corrected: whether to widen the normal so that the values have the given std.

    Raises:
        ArgumentError: if std or cut is not positive, or a number is not finite.
        TypeError: if another argument than std is given by position; if corrected is neither True
            nor False.

    >>> import torch, torchinit
    >>> _ = torch.manual_seed(0)
    >>> torchinit.TruncNormal(0.02, cut=2)(torch.empty(3))
    tensor([ 0.0259, -0.0236, -0.0021])
    """

    std: float
    mean: float = field(default=0.0, kw_only=True)
    cut: float = field(default=3.0, kw_only=True)
    corrected: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        std, mean, cut = (as_float(n, getattr(self, n)) for n in ("std", "mean", "cut"))
        _check_random("TruncNormal", mean, std)
        check_finite(cut=cut)
        check_flag("corrected", self.corrected)
        if cut <= 0:
            raise ArgumentError(f"cut={cut} must be positive: it counts standard deviations")
        wide = std / truncated_std(cut) if self.corrected else std
        draw = truncated_draw(mean, wide, mean - cut * wide, mean + cut * wide)
        _set(self, std=std, mean=mean, cut=cut, _draw=draw)


@dataclass(frozen=True)
class Uniform(_Fixed):
    """U[a, b).

    Raises:
        ArgumentError: if a > b, or either is not finite.

    >>> import torch, torchinit
    >>> _ = torch.manual_seed(0)
    >>> torchinit.Uniform(-1, 1)(torch.empty(3))
    tensor([ 0.8426, -0.7979, -0.0877])
    """

    a: float
    b: float

    def __post_init__(self) -> None:
        a, b = as_float("a", self.a), as_float("b", self.b)
        check_finite(a=a, b=b)
        check_interval(a, b)
        _set(self, a=a, b=b, _draw=uniform_draw(a, b))


@dataclass(frozen=True)
class Constant(_Fixed):
    """The same value everywhere.

    >>> import torch, torchinit
    >>> torchinit.Constant(0.5)(torch.empty(2))
    tensor([0.5000, 0.5000])
    """

    val: float

    def __post_init__(self) -> None:
        val = as_float("val", self.val)
        _set(self, val=val, _draw=constant_draw(val))


_Mode = Literal["fan_in", "fan_out", "fan_avg"]
_Shape = Literal["normal", "truncated_normal", "uniform"]
_MODES, _DISTRIBUTIONS = ("fan_in", "fan_out", "fan_avg"), ("normal", "truncated_normal", "uniform")
_CUT = 2.0


@dataclass(frozen=True)
class VarianceScaling(Elementwise):
    """Values of variance scale / fan: LeCun's (1, fan_in), He's (2, fan_in), Glorot's (1, fan_avg).

    Args:
        scale: finite, not negative.
        mode: ``fan_in``, ``fan_out`` or ``fan_avg``, their mean.
        distribution: ``normal``, ``uniform`` or ``truncated_normal``, which is truncated at two
            standard deviations and widened to keep the given variance.
        in_axes, out_axes: the input and output dimensions; negative ones count from the end. The
            other dimensions are the kernel's and multiply both fans. None for both is torch's
            layout, ``(out, in, *kernel)``.

    Raises:
        ArgumentError: for an invalid argument.

    Equivalent to ``jax.nn.initializers.variance_scaling``. Sources: LeCun et al. 1998, Glorot and
    Bengio 2010, He et al. 2015.

    >>> import torch, torchinit
    >>> _ = torch.manual_seed(0)
    >>> he = torchinit.VarianceScaling(2, "fan_in")
    >>> he(torch.empty(2, 3))
    tensor([[ 0.1492,  0.4540, -0.2942],
            [ 0.1894,  0.1480, -0.5051]])
    >>> heads = torchinit.VarianceScaling(in_axes=0, out_axes=(1, 2))  # (D, heads, head)
    >>> heads.fans((64, 8, 16))
    (64, 128)
    """

    scale: float = 1.0
    mode: _Mode = "fan_in"
    distribution: _Shape = "normal"
    in_axes: Sequence[int] | int | None = None
    out_axes: Sequence[int] | int | None = None

    def __post_init__(self) -> None:
        scale = as_float("scale", self.scale)
        check_finite(scale=scale)
        if scale < 0:
            raise ArgumentError(f"scale={scale} must not be negative")
        if self.mode not in _MODES:
            raise ArgumentError(f"mode={self.mode!r} must be one of {', '.join(_MODES)}")
        if self.distribution not in _DISTRIBUTIONS:
            raise ArgumentError(
                f"distribution={self.distribution!r} must be one of {', '.join(_DISTRIBUTIONS)}"
            )
        if (self.in_axes is None) != (self.out_axes is None):
            raise ArgumentError(
                f"in_axes={self.in_axes} and out_axes={self.out_axes} must be given together"
            )
        _set(self, scale=scale, in_axes=_axes(self.in_axes), out_axes=_axes(self.out_axes))

    def fans(self, shape: Shape) -> tuple[int, int]:
        """(fan_in, fan_out) of a logical tensor.

        Raises:
            ArgumentError: for a shape without these dimensions.
        """
        if len(shape) < 2:
            raise ArgumentError(f"shape {shape} has no fans: use another scheme for a vector")
        if self.in_axes is None or self.out_axes is None:
            ins, outs = {1}, {0}
        else:
            ins, outs = (_dims(axes, shape) for axes in (self.in_axes, self.out_axes))
        if ins & outs:
            raise ArgumentError(
                f"in_axes and out_axes of {self} both contain dimension {min(ins & outs)} of shape "
                f"{shape}"
            )
        kernel = math.prod(size for dim, size in enumerate(shape) if dim not in ins | outs)
        return (
            kernel * math.prod(shape[dim] for dim in ins),
            kernel * math.prod(shape[dim] for dim in outs),
        )

    def draw(self, shape: Shape) -> Draw:
        fan_in, fan_out = self.fans(shape)
        fan = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[self.mode]
        std = math.sqrt(self.scale / fan) if fan else 0.0
        if self.distribution == "normal":
            return normal_draw(0.0, std)
        if self.distribution == "uniform":
            return uniform_draw(-math.sqrt(3) * std, math.sqrt(3) * std)
        wide = std / truncated_std(_CUT)
        return truncated_draw(0.0, wide, -_CUT * wide, _CUT * wide)


def _axes(axes: Sequence[int] | int | None) -> tuple[int, ...] | None:
    return None if axes is None else (axes,) if isinstance(axes, int) else tuple(axes)


def _dims(axes: Sequence[int] | int, shape: Shape) -> set[int]:
    dims = set()
    for axis in _axes(axes) or ():
        if not -len(shape) <= axis < len(shape):
            raise ArgumentError(f"axis {shown(axis)} is out of range for shape {shape}")
        dims.add(axis % len(shape))
    return dims


@dataclass(frozen=True)
class Called(Elementwise):
    """The scheme of a call of a ``torch.nn.init`` function."""

    call: Call

    def draw(self, shape: Shape) -> Draw:
        draw = draw_of(self.call, shape)
        if draw is None:
            raise ArgumentError(f"{self.call.name} does not draw its values independently")
        return draw

    def __hash__(self) -> int:
        return hash(self.call.name)

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.call.arguments.items())
        return f"{self.call.name}({arguments})"
