"""The base class of schemes, which describe the values of a parameter of any shape and name."""

from __future__ import annotations

import re
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from torchinit.errors import ArgumentError
from torchinit.values.apply import fill_parts, streams_of
from torchinit.values.region import Part, Region, Shape


class Target(NamedTuple):
    """A parameter, as ``by`` passes it to a function.

    Attributes:
        name: its canonical name; empty if a scheme is called on a tensor.
        shape: of the logical tensor to fill.
        dtype: of the parameter.
        module: the module that owns it; None if a scheme is called on a tensor.
    """

    name: str
    shape: Shape
    dtype: torch.dtype
    module: nn.Module | None = None

    @property
    def depth(self) -> int:
        """The first number in the name, which is the layer's index.

        Raises:
            ValueError: if the name has no number.
        """
        for component in self.name.split("."):
            if re.fullmatch(r"[0-9]+", component):
                return int(component)
        raise ArgumentError(f"the name {self.name!r} has no number, so it has no depth")


class Scheme:
    """Describes a parameter's values. Calling it on a tensor fills that, like an init function."""

    __slots__ = ()

    def parts(self, region: Region, target: Target) -> list[Part]:
        """Splits a region of a parameter into parts, each with its values.

        Raises:
            ValueError: for a shape or dtype that the scheme cannot fill.
        """
        raise NotImplementedError

    def __call__(self, tensor: Tensor, generator: Generator | None = None) -> Tensor:
        """Fills a tensor in place, drawing a key for each random part.

        Args:
            tensor: a tensor whose shape the scheme supports.
            generator: the source of keys; None is torch's default CPU generator.
        """
        shape = tuple(tensor.shape)
        parts = self.parts(Region("", shape), Target("", shape, tensor.dtype))
        fill_parts([(tensor, part) for part in parts], streams_of(parts, generator))
        return tensor
