"""The handler that fills at once, like torchinit's functions of the same names."""

from __future__ import annotations

import warnings

import torch
from torch import Generator, Tensor

from torchinit import functional
from torchinit.dtypes import FLOAT8_DTYPES
from torchinit.fill.route import FLOAT_NUMBERS, PLAIN_TYPES, is_native
from torchinit.native import load
from torchinit.placement.distributed import is_dtensor
from torchinit.schemes.calls import Call
from torchinit.schemes.distributions import as_float
from torchinit.streams.keys import Stream

CONSTANTS = frozenset({"constant_", "ones_", "zeros_"})
# torchinit leaves these to torch.
TORCHS = frozenset({"eye_", "dirac_", "sparse_"})
WITHOUT_KEYS = CONSTANTS | TORCHS - {"sparse_"}
# Constants of fewer bytes are left to torch, which writes the same values faster.
SMALL = 1 << 20

_TRUNCATED = ("mean", "std", "a", "b")


class FillAtOnce:
    """Fills with keys from torch's default generator.

    Calls with another generator are left to torch, since the code may rely on torch's values, like
    an adapter that is rebuilt from its seed.
    """

    def __init__(self, *, generators: bool = False) -> None:
        """Makes a handler; if generators is true, it serves calls with a generator as well."""
        self._generators = generators

    def leaves(self, generator: Generator | None) -> bool:
        """Whether a call is left to torch because of its generator."""
        return not (self._generators or generator is None or generator is torch.default_generator)

    def fill(self, call: Call, tensor: Tensor, generator: Generator | None) -> bool:
        """Calls torchinit's function of the same name, if it serves the call."""
        if self.leaves(generator) or not serves(call, tensor):
            return False
        function = getattr(functional, call.name)
        if call.name in WITHOUT_KEYS:
            function(tensor, **call.arguments)
        else:
            function(tensor, **call.arguments, generator=generator)
        return True

    def stream_of(self, call: Call, tensor: Tensor, generator: Generator | None) -> Stream:  # noqa: ARG002
        """The key of a random fill, or the generator that gives it."""
        return functional.check_generator(generator)

    def warn(self, stacklevel: int = 2) -> None:
        """Warns at the end of the block of fills that were not served as requested."""


def serves(call: Call, tensor: Tensor) -> bool:
    """Whether torchinit serves a call, rather than torch."""
    if type(tensor) not in PLAIN_TYPES and is_dtensor(tensor):
        return True  # torch ignores the position of the shard
    if call.name in TORCHS or tensor.layout is not torch.strided:
        return False
    if (
        call.name in CONSTANTS
        and tensor.dtype not in FLOAT8_DTYPES
        and tensor.numel() * tensor.element_size() < SMALL
    ):
        return False
    return _is_native(tensor)


def _is_native(tensor: Tensor) -> bool:
    if (
        type(tensor) in PLAIN_TYPES
        and tensor.is_cpu
        and tensor.dtype in FLOAT_NUMBERS
        and tensor.layout is torch.strided
        and load.module is not None
    ):
        return True  # quicker than is_native
    return is_native(tensor)


def warn_as_functional(call: Call, tensor: Tensor) -> None:
    """Issues the warnings of a call's function, for handlers that fill by its draw."""
    if call.name == "trunc_normal_":
        mean, std, a, b = (as_float(name, call.arguments[name]) for name in _TRUNCATED)
        functional.warn_if_remote(tensor, mean, std, a, b)
    elif call.name.startswith("kaiming") and 0 in tensor.shape:
        warnings.warn("Initializing zero-element tensors is a no-op", stacklevel=2)
