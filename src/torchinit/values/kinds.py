"""The kinds of values: each says what it is, and fills a tensor or a box of one.

To add a kind is to add a class here. Everything else asks its attributes and methods.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor

from torchinit import functional
from torchinit.fill.door import fill
from torchinit.fill.positional import PATTERNS
from torchinit.orthogonal import fill_orthogonal
from torchinit.placement.box import Box, cut_out
from torchinit.schemes.calls import Call
from torchinit.schemes.distributions import CONSTANT, DISTRIBUTIONS, Draw, draw_in_words, law_of
from torchinit.schemes.law import Law, law_of_orthogonal
from torchinit.streams.keys import Stream


class Values:
    """What a region of a parameter is filled with.

    Attributes:
        draw: of values that are drawn independently.
        function: of values that a callable writes.
        keeps: whether nothing is written.
        is_random: whether they change with the seed.
        takes_key: whether torchinit draws them, by a key.
        by_shape: whether they depend on the region's shape, beyond the index.
        has_boxes: whether any part of them can be made alone.
        is_shared: whether shares of one full tensor are cut from one copy.
    """

    draw: Draw | None = None
    function: Callable[[Tensor], object] | None = None
    keeps = False
    is_random = takes_key = by_shape = False
    has_boxes = is_shared = True

    def fill(self, tensor: Tensor, stream: Stream) -> None:
        """Fills a full tensor.

        Args:
            tensor: of any layout.
            stream: where its key is drawn from, or the key.
        """
        raise NotImplementedError

    def fill_box(self, tensor: Tensor, box: Box, stream: Stream) -> None:
        """Fills a tensor with a box of the values, if they can be made so."""
        raise NotImplementedError

    def __str__(self) -> str:
        """In words, for tables."""
        raise NotImplementedError

    def statistics(self, shape: Sequence[int]) -> Law | None:  # noqa: ARG002
        """Mean, std and bounds on a shape; None if they are not known."""
        return None

    def fingerprint(self) -> object:
        """What decides the values, with a ``repr`` that is the same in every process."""
        return self


@dataclass(frozen=True)
class DrawnValues(Values):
    """Values drawn independently from one distribution."""

    draw: Draw

    @property
    def is_random(self) -> bool:  # type: ignore[override]
        """Unless they are constant."""
        return self.draw[0] != CONSTANT

    takes_key = is_random

    def fill(self, tensor: Tensor, stream: Stream) -> None:
        """One fill."""
        fill(self.draw, tensor, stream)

    def fill_box(self, tensor: Tensor, box: Box, stream: Stream) -> None:
        """One fill."""
        fill(self.draw, tensor, stream, box)

    def __str__(self) -> str:
        return draw_in_words(self.draw)

    def statistics(self, shape: Sequence[int]) -> Law | None:  # noqa: ARG002
        """The distribution's; None for random words, which are no numbers."""
        return None if DISTRIBUTIONS[self.draw[0]].law is None else law_of(self.draw)


@dataclass(frozen=True)
class MatrixValues(Values):
    """One (semi-)orthogonal matrix, times gain."""

    gain: float
    is_random = takes_key = by_shape = True

    def fill(self, tensor: Tensor, stream: Stream) -> None:
        """One matrix."""
        fill_orthogonal(tensor, self.gain, stream)

    def fill_box(self, tensor: Tensor, box: Box, stream: Stream) -> None:
        """A part of one."""
        fill_orthogonal(tensor, self.gain, stream, box)

    def __str__(self) -> str:
        return f"orthogonal(gain={self.gain:g})"

    def statistics(self, shape: Sequence[int]) -> Law | None:
        """Those of one element of the matrix."""
        rows, *rest = shape
        return law_of_orthogonal(rows, torch.Size(rest).numel(), self.gain)


@dataclass(frozen=True)
class PatternValues(Values):
    """``eye_`` or ``dirac_``: they draw nothing, and depend on the indices alone."""

    call: Call
    by_shape = True

    def fill(self, tensor: Tensor, stream: Stream) -> None:  # noqa: ARG002
        """By the function of that name."""
        getattr(functional, self.call.name)(tensor, **self.call.arguments)

    def fill_box(self, tensor: Tensor, box: Box, stream: Stream) -> None:  # noqa: ARG002
        """By the pattern of that name."""
        with torch.no_grad():
            PATTERNS[self.call.name](tensor, box, **self.call.arguments)

    def __str__(self) -> str:
        return self.call.name.rstrip("_")


@dataclass(frozen=True)
class FunctionValues(Values):
    """What a callable writes, of which nothing is known."""

    function: Callable[[Tensor], object]
    is_random = True
    has_boxes = False

    def fill(self, tensor: Tensor, stream: Stream) -> None:  # noqa: ARG002
        """Calls it."""
        self.function(tensor)

    def __str__(self) -> str:
        return getattr(self.function, "__qualname__", None) or repr(self.function)

    def fingerprint(self) -> object:
        """Its name and source text; not what it closes over."""
        return _source_of(self.function)


class ComputedValues(Values):
    """Values that follow from a computation. Its subclasses say which."""

    has_boxes = is_shared = False

    def make(self) -> Tensor:
        """All of them, on the CPU."""
        raise NotImplementedError

    def make_box(self, offset: Sequence[int], into: Tensor) -> None:
        """Writes those from an index on, if ``has_boxes``."""
        raise NotImplementedError

    def describe(self) -> Iterator[bytes]:
        """What decides them, for two computations to be told apart by."""
        raise NotImplementedError

    def fill(self, tensor: Tensor, stream: Stream) -> None:  # noqa: ARG002
        """Copies them."""
        with torch.no_grad():
            tensor.copy_(self.make())

    def fill_box(self, tensor: Tensor, box: Box, stream: Stream) -> None:  # noqa: ARG002
        """Makes those of the box."""
        self.make_box(box.offset, tensor.detach())

    def __str__(self) -> str:
        return "computed"

    def fingerprint(self) -> object:
        """A digest of the computation."""
        return digest(self.describe())


@dataclass(frozen=True)
class GivenValues(Values):
    """The values of a tensor of the region's shape."""

    tensor: Tensor
    by_shape = True

    def fill(self, tensor: Tensor, stream: Stream) -> None:  # noqa: ARG002
        """Copies them."""
        with torch.no_grad():
            tensor.copy_(self.tensor)

    def fill_box(self, tensor: Tensor, box: Box, stream: Stream) -> None:  # noqa: ARG002
        """Copies those of the box."""
        with torch.no_grad():
            tensor.copy_(cut_out(self.tensor, box.offset, tensor.shape))

    def __str__(self) -> str:
        return "computed values"

    def fingerprint(self) -> object:
        """A digest of the values."""
        return digest([bytes_of(self.tensor)])


class KeptValues(Values):
    """What is there stays."""

    keeps = True

    def fill(self, tensor: Tensor, stream: Stream) -> None:
        """Does nothing."""

    def __str__(self) -> str:
        return "keep"

    def __repr__(self) -> str:
        return "KeptValues()"


@contextmanager
def seeded(key: Stream, device: torch.device) -> Iterator[None]:
    """Seeds torch's default generators with a key within a block; does nothing without a key."""
    if not isinstance(key, int):
        yield
        return
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(key)
        yield


def digest(data: Iterator[bytes] | Sequence[bytes]) -> str:
    """A hash of strings of bytes, and of where each ends."""
    state = blake2b(digest_size=16)
    for each in data:
        state.update(len(each).to_bytes(8, "little"))
        state.update(each)
    return state.hexdigest()


def bytes_of(tensor: Tensor) -> bytes:
    """A tensor's elements in order."""
    flat = tensor.detach().cpu().contiguous().view(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def _source_of(function: Callable[..., Any]) -> str:
    if isinstance(function, functools.partial):
        return f"{_source_of(function.func)} {function.args!r} {function.keywords!r}"
    text = ""
    with suppress(OSError, TypeError):
        text = inspect.getsource(function)
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{getattr(function, '__module__', '')}.{name} {text}"
