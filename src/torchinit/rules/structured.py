"""Schemes for full matrices, callables and kept values, and for default initialisation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from torchinit.errors import ArgumentError
from torchinit.rules.scheme import Scheme, Target
from torchinit.schemes.calls import Call
from torchinit.schemes.distributions import as_float, check_finite
from torchinit.streams.named_keys import part_of
from torchinit.values.kinds import (
    FunctionValues,
    GivenValues,
    KeptValues,
    MatrixValues,
    PatternValues,
    Values,
    converted,
    name_of_callable,
)
from torchinit.values.region import Part, Region


class _Each(Scheme):
    """A scheme that fills the matrices of a stack one by one, each with its own key."""

    __slots__ = ()

    def values(self, region: Region) -> Values:
        """The values of one matrix."""
        raise NotImplementedError

    def parts(self, region: Region, target: Target) -> list[Part]:  # noqa: ARG002
        values = self.values(region)
        if not region.stacked:
            return [Part(region, values)]
        if region.stacked > 1:
            raise ArgumentError(f"{self} cannot be used in a Stack of a Stack")
        return [Part(_matrix(region, number), values) for number in range(region.shape[0])]


def _matrix(region: Region, number: int) -> Region:
    """The region of one matrix of a stack."""
    return region._replace(
        name=part_of(region.name, number),
        shape=region.shape[1:],
        stacked=0,
        number=number,
        offset=None if region.offset is None else region.offset[1:],
    )


@dataclass(frozen=True)
class Orthogonal(_Each):
    """A (semi-)orthogonal matrix over (shape[0], rest), uniformly distributed, times gain.

    As ``torchinit.orthogonal_`` (Saxe et al. 2014). The gain is 1 in every dtype.

    Raises:
        ArgumentError: if gain is not finite.

    >>> import torch, torchinit
    >>> weight = torchinit.Orthogonal()(torch.empty(64, 16))
    >>> torch.allclose(weight.T @ weight, torch.eye(16), atol=1e-5)
    True
    """

    gain: float = 1.0

    def __post_init__(self) -> None:
        gain = as_float("gain", self.gain)
        check_finite(gain=gain)
        object.__setattr__(self, "gain", gain)

    def values(self, region: Region) -> Values:
        if len(region.matrix_shape) < 2:
            raise ArgumentError(
                f"shape {region.matrix_shape} is not a matrix: it needs at least 2 dimensions"
            )
        return MatrixValues(self.gain)


_DIMENSIONS = {"dirac_": (3, 4, 5), "eye_": (2,)}


@dataclass(frozen=True)
class ByFunction(_Each):
    """``dirac_`` or ``eye_`` of ``torch.nn.init``, which are deterministic."""

    call: Call

    def values(self, region: Region) -> Values:
        wanted, shape = _DIMENSIONS[self.call.name], region.matrix_shape
        if len(shape) not in wanted:
            raise ArgumentError(
                f"shape {shape} must have {' or '.join(map(str, wanted))} dimensions for "
                f"{self.call.name}"
            )
        groups = self.call.arguments.get("groups", 1)
        if shape[0] % groups:
            raise ArgumentError(f"groups={groups} must divide shape[0]={shape[0]}")
        return PatternValues(self.call)

    def __hash__(self) -> int:
        return hash(self.call.name)

    def __repr__(self) -> str:
        return self.call.name


@dataclass(frozen=True)
class Custom(_Each):
    """An arbitrary callable of a tensor."""

    function: Callable[[Tensor], object]

    def values(self, region: Region) -> Values:  # noqa: ARG002
        return FunctionValues(self.function)

    def __repr__(self) -> str:
        return name_of_callable(self.function)


@dataclass(frozen=True, eq=False)
class GivenTensor(Scheme):
    """The values of a tensor."""

    tensor: Tensor

    def parts(self, region: Region, target: Target) -> list[Part]:
        values = converted(self.tensor, region.shape, target.dtype)
        return [Part(region, GivenValues(values))]

    def __repr__(self) -> str:
        return f"a tensor of shape {tuple(self.tensor.shape)}"


@dataclass(frozen=True)
class Keep(Scheme):
    """Leaves a parameter unchanged; an error on the meta device, where it has no values."""

    def parts(self, region: Region, target: Target) -> list[Part]:  # noqa: ARG002
        return [Part(region, KeptValues())]

    def __repr__(self) -> str:
        return "keep"


@dataclass(frozen=True)
class FromModel(Scheme):
    """A parameter's default initialisation, or that of its module's reset_parameters."""

    how: str

    def parts(self, region: Region, target: Target) -> list[Part]:  # noqa: ARG002
        """Not available without the model.

        Raises:
            ArgumentError: always; ``init_model_`` does not call this.
        """
        raise ArgumentError(
            f"{self.how!r} needs the model: it can only be the value of a rule of init_model_"
        )

    def __repr__(self) -> str:
        return self.how
