"""The handler that fills at once, as torchinit's functions of the same names do."""

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
# torchinit has torch do these.
TORCHS = frozenset({"eye_", "dirac_", "sparse_"})
WITHOUT_KEYS = CONSTANTS | TORCHS - {"sparse_"}
# Constants of fewer bytes are torch's: it writes the same, and is quicker.
SMALL = 1 << 20

_TRUNCATED = ("mean", "std", "a", "b")


class FillAtOnce:
    """Fills with keys from torch's default generator.

    Where another one is given, the code that gives it may count on torch's values, as an adapter
    does that is made again from its seed: those calls are torch's.
    """

    def __init__(self, *, generators: bool = False) -> None:
        """Takes whether to serve calls with a generator too, with keys that are drawn from it."""
        self._generators = generators

    def leaves(self, generator: Generator | None) -> bool:
        """Whether a call is torch's for the generator that it is given."""
        return not (self._generators or generator is None or generator is torch.default_generator)

    def fill(self, call: Call, tensor: Tensor, generator: Generator | None) -> bool:
        """As torchinit's function of the name, on what it serves itself."""
        if self.leaves(generator) or not serves(call, tensor):
            return False
        function = getattr(functional, call.name)
        if call.name in WITHOUT_KEYS:
            function(tensor, **call.arguments)
        else:
            function(tensor, **call.arguments, generator=generator)
        return True

    def stream_of(self, call: Call, tensor: Tensor, generator: Generator | None) -> Stream:  # noqa: ARG002
        """Where the key of a random fill comes from."""
        return functional.check_generator(generator)

    def warn(self, stacklevel: int = 2) -> None:
        """Says at the end of the block what was not as asked for."""


def serves(call: Call, tensor: Tensor) -> bool:
    """Whether a call is torchinit's to serve, rather than torch's."""
    if type(tensor) not in PLAIN_TYPES and is_dtensor(tensor):
        return True  # of which torch knows no places
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
    """The warnings of the function of a call, for those that fill by its draw."""
    if call.name == "trunc_normal_":
        mean, std, a, b = (as_float(name, call.arguments[name]) for name in _TRUNCATED)
        functional.warn_if_remote(tensor, mean, std, a, b)
    elif call.name.startswith("kaiming") and 0 in tensor.shape:
        warnings.warn("Initializing zero-element tensors is a no-op", stacklevel=2)
