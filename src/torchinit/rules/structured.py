"""Schemes that fill a matrix as a whole, by a callable, or not at all."""

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
    KeptValues,
    MatrixValues,
    PatternValues,
    Values,
)
from torchinit.values.region import Part, Region


class _Each(Scheme):
    """A scheme whose matrices in a stack are filled one by one, each by a key of its own."""

    __slots__ = ()

    def values(self, region: Region) -> Values:
        """What one matrix is filled with."""
        raise NotImplementedError

    def parts(self, region: Region, target: Target) -> list[Part]:  # noqa: ARG002
        """One, or one for each matrix of a stack."""
        values = self.values(region)
        if not region.stacked:
            return [Part(region, values)]
        if region.stacked > 1:
            raise ArgumentError(f"{self} cannot stand in a Stack of a Stack")
        return [Part(_matrix(region, number), values) for number in range(region.shape[0])]


def _matrix(region: Region, number: int) -> Region:
    """One matrix of a stack as a region of its own."""
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
        ArgumentError: gain not finite.

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
        """A matrix."""
        if len(region.matrix_shape) < 2:
            raise ArgumentError(f"shape {region.matrix_shape} is no matrix: it needs 2 dimensions")
        return MatrixValues(self.gain)


_DIMENSIONS = {"dirac_": (3, 4, 5), "eye_": (2,)}


@dataclass(frozen=True)
class ByFunction(_Each):
    """``dirac_`` or ``eye_`` of ``torch.nn.init``, which draw nothing."""

    call: Call

    def values(self, region: Region) -> Values:
        """The pattern."""
        wanted, shape = _DIMENSIONS[self.call.name], region.matrix_shape
        if len(shape) not in wanted:
            raise ArgumentError(
                f"shape {shape} must have {' or '.join(map(str, wanted))} dimensions for "
                f"{self.call.name}"
            )
        groups = self.call.arguments.get("groups", 1)
        if shape[0] % groups:
            raise ArgumentError(f"groups={groups} does not divide shape[0], {shape[0]}")
        return PatternValues(self.call)

    def __hash__(self) -> int:
        return hash(self.call.name)

    def __repr__(self) -> str:
        return self.call.name


@dataclass(frozen=True)
class Custom(_Each):
    """A callable of a tensor that nothing is known of."""

    function: Callable[[Tensor], object]

    def values(self, region: Region) -> Values:  # noqa: ARG002
        """The callable."""
        return FunctionValues(self.function)

    def __repr__(self) -> str:
        return getattr(self.function, "__qualname__", None) or repr(self.function)


@dataclass(frozen=True)
class Keep(Scheme):
    """Leaves the parameter as it is; an error for one on the meta device, which is nothing yet."""

    def parts(self, region: Region, target: Target) -> list[Part]:  # noqa: ARG002
        """One, that is left alone."""
        return [Part(region, KeptValues())]

    def __repr__(self) -> str:
        return "keep"


@dataclass(frozen=True)
class FromModel(Scheme):
    """What a model gives a parameter: its constructor, or the reset_parameters of its module."""

    how: str

    def parts(self, region: Region, target: Target) -> list[Part]:  # noqa: ARG002
        """None that could be said without the model.

        Raises:
            ArgumentError: always; ``init_model_`` does not ask.
        """
        raise ArgumentError(
            f"{self.how!r} is what a model gives a parameter: it stands as a rule of init_model_"
        )

    def __repr__(self) -> str:
        return self.how
