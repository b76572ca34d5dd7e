"""A scheme: what a parameter of any shape and name is filled with."""

from __future__ import annotations

import re
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from torchinit.values.apply import fill_parts, streams_of
from torchinit.values.region import Part, Region, Shape


class Target(NamedTuple):
    """A parameter, as ``by`` shows it to a function.

    Attributes:
        name: canonical; empty where a scheme is called on a tensor.
        shape: of the logical tensor that the scheme is for.
        dtype: of the parameter.
        module: that owns the parameter; None where a scheme is called on a tensor.
    """

    name: str
    shape: Shape
    dtype: torch.dtype
    module: nn.Module | None = None

    @property
    def depth(self) -> int:
        """The first number in the name: of the layer.

        Raises:
            ValueError: if there is none.
        """
        for atom in self.name.split("."):
            if re.fullmatch(r"[0-9]+", atom):
                return int(atom)
        raise ValueError(f"the name {self.name!r} has no number that says how deep it lies")


class Scheme:
    """What a parameter gets. Called on a tensor, fills it: so it fits wherever a function would."""

    __slots__ = ()

    # Whether the draw is the same for every name, module, dtype and shape.
    is_uniform = False

    def parts(self, region: Region, target: Target) -> list[Part]:
        """What the parts of a region of a parameter are filled with.

        Raises:
            ValueError: for a shape or dtype that the scheme cannot fill.
        """
        raise NotImplementedError

    def __call__(self, tensor: Tensor, generator: Generator | None = None) -> Tensor:
        """Fills a tensor in place, every random part by a key drawn from a generator.

        Args:
            tensor: of a shape that the scheme can fill.
            generator: where keys are drawn from; None is torch's default CPU generator.
        """
        shape = tuple(tensor.shape)
        parts = self.parts(Region("", shape), Target("", shape, tensor.dtype))
        fill_parts([(tensor, part) for part in parts], streams_of(parts, generator))
        return tensor
