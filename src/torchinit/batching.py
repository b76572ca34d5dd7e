"""Fills collected and done together: one call of the kernels, and on a GPU few launches."""

from __future__ import annotations

import itertools
import threading
from types import TracebackType

from torch import Generator, Tensor

from torchinit import kernels
from torchinit.keys import draw_key_numbers

# How many batches are open in all threads: looked at before anything of a thread.
open_batches = 0
_count_lock = threading.Lock()


class _State(threading.local):
    batch: Batch | None = None


_state = _State()


def batch() -> Batch:
    """Collects the fills within a ``with`` block and does them all at its end.

    ::

        with torchinit.batch():
            for layer in layers:
                torchinit.trunc_normal_(layer.weight, std=0.02)
                torchinit.zeros_(layer.bias)

    A thousand parameters cost a few launches on a GPU, and one parallel region on a CPU. The values
    are those of the same calls outside a batch. Until the block ends the tensors hold what they
    held before: do not read them, nor write to them, inside.

    The parameters of every call are checked where it stands, the tensors at the end.
    ``orthogonal_``, ``sparse_``, ``eye_``, ``dirac_``, and whatever ``torch.nn.init`` serves, are
    done at once. Keys are drawn in the order of the calls, but late: other draws from the same
    generator inside the block come before them. A batch inside a batch is part of it; other threads
    are not. If the block raises, nothing collected is filled.

    Raises:
        ArgumentError: at the end of the block, for a tensor that cannot be written to.
        RuntimeError: likewise, if a collected tensor was written to after its call, so that its
            fill would come too late. Nothing collected is filled then.
    """
    return Batch()


class Batch:
    """What ``batch`` returns: a context manager for one ``with`` statement."""

    def __init__(self) -> None:
        # What was collected, column by column: thousands of small tensors are what this is for.
        self._fills: list[kernels.Fill] = []
        self._tensors: list[Tensor] = []
        self._generators: list[Generator | None] = []
        self._keys: list[int] = []  # of the first fills; the others' are not drawn yet
        self._versions: list[tuple[Tensor, int]] = []
        self._outer: Batch | None = None
        self._entered = False
        self.is_open = False

    def __enter__(self) -> None:
        global open_batches
        if self._entered:
            raise RuntimeError("this batch was entered before: call torchinit.batch() anew")
        self._entered = True
        self._outer = current()
        if self._outer is None:
            _state.batch = self
            self.is_open = True
            with _count_lock:
                open_batches += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        global open_batches
        if self._outer is not None:
            return
        # A generator may be closed in another thread: the state of its own is left to current().
        self.is_open = False
        with _count_lock:
            open_batches -= 1
        if _state.batch is self:
            _state.batch = None
        if kind is None:
            self._finish()

    def _finish(self) -> None:
        if not self._fills:
            return
        for tensor, version in self._versions:
            if _version(tensor) != version:
                raise RuntimeError(
                    f"a tensor of shape {tuple(tensor.shape)} was written to after its fill was "
                    "collected by torchinit.batch(): write to it after the block"
                )
        plain = kernels.check_together(self._fills, self._tensors)
        self.draw_keys()
        kernels.fill_together(self._fills, self._tensors, self._keys, plain)

    def collect(self, fill: kernels.Fill, tensor: Tensor, generator: Generator | None) -> None:
        """Takes a fill of a tensor whose memory is at hand, with checked parameters."""
        self._fills.append(fill)
        self._tensors.append(tensor)
        self._generators.append(generator)
        self.watch(tensor)

    def watch(self, tensor: Tensor) -> None:
        """Makes it an error to write to a tensor from now on."""
        self._versions.append((tensor, _version(tensor)))

    def draw_keys(self) -> None:
        """Draws the keys of the fills collected so far, constants left out."""
        fills, first = self._fills, len(self._keys)
        self._keys += [0] * (len(fills) - first)
        random = [i for i in range(first, len(fills)) if fills[i][0] != kernels.CONSTANT]
        for _, group in itertools.groupby(random, lambda i: id(self._generators[i])):
            places = list(group)
            keys = draw_key_numbers(len(places), self._generators[places[0]])
            for place, key in zip(places, keys, strict=True):
                self._keys[place] = key


def _version(tensor: Tensor) -> int:
    """How often torch has seen a tensor written to; of inference tensors it does not count."""
    try:
        return tensor._version
    except RuntimeError:
        return 0


def current() -> Batch | None:
    """The batch that collects this thread's fills."""
    if not open_batches:
        return None
    batch = _state.batch
    return batch if batch is not None and batch.is_open else None


def settle_keys() -> None:
    """Draws the keys of the fills collected so far, because something else is about to draw."""
    if (batch := current()) is not None:
        batch.draw_keys()
