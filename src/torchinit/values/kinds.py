"""The kinds of values: each describes itself and fills a full tensor or a box of one.

A new kind is a new class here; all other code uses only its attributes and methods.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor

from torchinit import functional
from torchinit.errors import ArgumentError, counted
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
        draw: the draw, if the values are drawn independently.
        function: the callable, if one writes the values.
        keeps: whether nothing is written.
        is_random: whether the values are random, so that two parts must not share a name.
        takes_key: whether torchinit draws them with a key.
        by_shape: whether they depend on the region's shape as well as the index.
        has_boxes: whether any box can be filled without the full tensor.
        is_shared: whether the shares of one full tensor are cut from one copy.
        is_orthogonal: whether they are an orthogonal matrix, times a gain.
    """

    draw: Draw | None = None
    function: Callable[[Tensor], object] | None = None
    keeps = False
    is_random = takes_key = by_shape = is_orthogonal = False
    has_boxes = is_shared = True

    def fill(self, tensor: Tensor, stream: Stream) -> None:
        """Fills a full tensor.

        Args:
            tensor: a tensor of any layout.
            stream: the key, or the generator to draw it from.
        """
        raise NotImplementedError

    def fill_box(self, tensor: Tensor, box: Box, stream: Stream) -> None:
        """Fills a tensor with a box of the values, if ``has_boxes``."""
        raise NotImplementedError

    def __str__(self) -> str:
        """A short description for tables."""
        raise NotImplementedError

    def statistics(self, shape: Sequence[int]) -> Law | None:  # noqa: ARG002
        """Mean, std and bounds for a shape; None if they are not known."""
        return None

    def fingerprint(self) -> object:
        """What determines the values, with the same ``repr`` in every process."""
        return self


@dataclass(frozen=True)
class DrawnValues(Values):
    """Values drawn independently from one distribution."""

    draw: Draw

    @property
    def is_random(self) -> bool:  # type: ignore[override]
        """Whether the distribution is not a constant."""
        return self.draw[0] != CONSTANT

    takes_key = is_random

    def fill(self, tensor: Tensor, stream: Stream) -> None:
        fill(self.draw, tensor, stream)

    def fill_box(self, tensor: Tensor, box: Box, stream: Stream) -> None:
        fill(self.draw, tensor, stream, box)

    def __str__(self) -> str:
        return draw_in_words(self.draw)

    def statistics(self, shape: Sequence[int]) -> Law | None:  # noqa: ARG002
        # Random words are not numbers.
        return None if DISTRIBUTIONS[self.draw[0]].law is None else law_of(self.draw)


@dataclass(frozen=True)
class MatrixValues(Values):
    """One (semi-)orthogonal matrix, times gain."""

    gain: float
    is_random = takes_key = by_shape = is_orthogonal = True

    def fill(self, tensor: Tensor, stream: Stream) -> None:
        fill_orthogonal(tensor, self.gain, stream)

    def fill_box(self, tensor: Tensor, box: Box, stream: Stream) -> None:
        fill_orthogonal(tensor, self.gain, stream, box)

    def __str__(self) -> str:
        return f"orthogonal(gain={self.gain:g})"

    def statistics(self, shape: Sequence[int]) -> Law | None:
        rows, *rest = shape
        return law_of_orthogonal(rows, torch.Size(rest).numel(), self.gain)


@dataclass(frozen=True)
class PatternValues(Values):
    """``eye_`` or ``dirac_``, whose values depend only on the index."""

    call: Call
    by_shape = True

    def fill(self, tensor: Tensor, stream: Stream) -> None:  # noqa: ARG002
        getattr(functional, self.call.name)(tensor, **self.call.arguments)

    def fill_box(self, tensor: Tensor, box: Box, stream: Stream) -> None:  # noqa: ARG002
        with torch.no_grad():
            PATTERNS[self.call.name](tensor, box, **self.call.arguments)

    def __str__(self) -> str:
        return self.call.name.rstrip("_")


@dataclass(frozen=True)
class FunctionValues(Values):
    """The values that an arbitrary callable writes."""

    function: Callable[[Tensor], object]
    is_random = True
    has_boxes = False

    def fill(self, tensor: Tensor, stream: Stream) -> None:  # noqa: ARG002
        self.function(tensor)

    def __str__(self) -> str:
        return name_of_callable(self.function)

    def fingerprint(self) -> object:
        return _source_of(self.function)


@dataclass(frozen=True)
class ReturnedValues(Values):
    """The tensor that a function of the shape returns."""

    returns: Callable[[Any], object]
    has_boxes = False

    def function(self, tensor: Tensor) -> None:
        """Calls the function, and copies what it returns."""
        tensor.copy_(converted(self.returns(tensor.shape), tensor.shape, tensor.dtype))

    def fill(self, tensor: Tensor, stream: Stream) -> None:  # noqa: ARG002
        self.function(tensor)

    def __str__(self) -> str:
        return name_of_callable(self.returns)

    def fingerprint(self) -> object:
        return _source_of(self.returns)


class ComputedValues(Values):
    """The results of a computation, which subclasses define."""

    has_boxes = is_shared = False

    def make(self) -> Tensor:
        """Computes all values on the CPU."""
        raise NotImplementedError

    def make_box(self, offset: Sequence[int], into: Tensor) -> None:
        """Computes a box of the values, if ``has_boxes``."""
        raise NotImplementedError

    def describe(self) -> Iterator[bytes]:
        """Everything that determines the values, to distinguish two computations."""
        raise NotImplementedError

    def fill(self, tensor: Tensor, stream: Stream) -> None:  # noqa: ARG002
        with torch.no_grad():
            tensor.copy_(self.make())

    def fill_box(self, tensor: Tensor, box: Box, stream: Stream) -> None:  # noqa: ARG002
        self.make_box(box.offset, tensor.detach())

    def __str__(self) -> str:
        return "computed"

    def fingerprint(self) -> object:
        return digest(self.describe())


@dataclass(frozen=True)
class GivenValues(Values):
    """The values of a tensor of the region's shape."""

    tensor: Tensor
    by_shape = True

    def fill(self, tensor: Tensor, stream: Stream) -> None:  # noqa: ARG002
        with torch.no_grad():
            tensor.copy_(self.tensor)

    def fill_box(self, tensor: Tensor, box: Box, stream: Stream) -> None:  # noqa: ARG002
        with torch.no_grad():
            tensor.copy_(cut_out(self.tensor, box.offset, tensor.shape))

    def __str__(self) -> str:
        return "computed values"

    def fingerprint(self) -> object:
        return digest([bytes_of(self.tensor)])


class KeptValues(Values):
    """The existing values, left unchanged."""

    keeps = True

    def fill(self, tensor: Tensor, stream: Stream) -> None:
        """Does nothing."""

    def __str__(self) -> str:
        return "keep"

    def __repr__(self) -> str:
        return "KeptValues()"


@contextmanager
def seeded(key: Stream, device: torch.device) -> Iterator[None]:
    """Seeds torch's default generators with a key inside the block; does nothing without a key."""
    if not isinstance(key, int):
        yield
        return
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(key)
        yield


def digest(data: Iterator[bytes] | Sequence[bytes]) -> str:
    """A hash of byte strings and their lengths."""
    state = blake2b(digest_size=16)
    for each in data:
        state.update(len(each).to_bytes(8, "little"))
        state.update(each)
    return state.hexdigest()


def bytes_of(tensor: Tensor) -> bytes:
    """The bytes of a tensor's elements, in row-major order."""
    flat = tensor.detach().cpu().contiguous().view(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def converted(value: object, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A tensor in another dtype, without loss but for rounding.

    Raises:
        ArgumentError: if it is not a tensor, has another shape, or would lose more than that.
    """
    if not isinstance(value, Tensor):
        raise ArgumentError(f"{value!r} is a {type(value).__name__} and not a tensor")
    if tuple(value.shape) != tuple(shape):
        raise ArgumentError(f"a tensor of shape {tuple(value.shape)} must be of {tuple(shape)}")
    value = value.detach()
    new = value.to(dtype)
    if not torch.can_cast(value.dtype, dtype) and not torch.equal(new.to(value.dtype), value):
        raise ArgumentError(f"a tensor of {value.dtype} has values that {dtype} cannot represent")
    if value.dtype != dtype and new.is_floating_point():
        beyond = _beyond(value, new)
        if beyond.any():
            raise ArgumentError(
                f"a tensor of {value.dtype} has {counted(int(beyond.sum()), 'value')} beyond the "
                f"range of {dtype}, such as {value[beyond][0].item():.6g}: clamp them first"
            )
    return new


def _beyond(value: Tensor, new: Tensor) -> Tensor:
    """Where values have become infinite, or the largest of a dtype without infinities."""
    info = torch.finfo(new.dtype)
    past = info.max + info.eps * 2.0 ** math.floor(math.log2(info.max)) / 2  # rounds to no number
    # torch has no isfinite for dtypes of one byte.
    value, new = (one.float() if one.dtype.itemsize == 1 else one for one in (value, new))
    is_finite = torch.isfinite(new)
    return (torch.isfinite(value) & ~is_finite) | ((value.abs() > past) & is_finite)


def name_of_callable(function: Callable[..., Any]) -> str:
    """What a callable is called in plans and errors."""
    return getattr(function, "__qualname__", None) or repr(function)


def _source_of(function: Callable[..., Any]) -> str:
    """A callable's name and source text, without its closure."""
    if isinstance(function, functools.partial):
        return f"{_source_of(function.func)} {function.args!r} {function.keywords!r}"
    text = ""
    with suppress(OSError, TypeError):
        text = inspect.getsource(function)
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{getattr(function, '__module__', '')}.{name} {text}"
