"""Fills collected and done together: one call of the kernels, and on a GPU few launches."""

from __future__ import annotations

import asyncio
import threading
from contextvars import ContextVar
from operator import attrgetter
from types import TracebackType
from typing import TypeAlias

from torch import Tensor

from torchinit.native import calls
from torchinit.native.numbers import DTYPE_NUMBERS
from torchinit.schemes.draw import Draw

# Draw, number of the dtype, key, tensor, address, place, and how often it had been written to.
_Row: TypeAlias = tuple[Draw, int, int, Tensor, int, calls.Place, int]

_dtype = attrgetter("dtype")


def batch() -> Batch:
    """Collects the fills within a ``with`` block and does them all at its end.

    ::

        with torchinit.batch():
            for layer in layers:
                torchinit.trunc_normal_(layer.weight, std=0.02)
                torchinit.zeros_(layer.bias)

    A thousand parameters cost a few launches on a GPU, and one parallel region on a CPU. The values
    are those of the same calls outside a batch: every call is checked, and draws its key, where it
    stands. Until the block ends the tensors hold what they held before: do not read them, nor write
    to them, inside.

    ``orthogonal_``, ``sparse_``, ``eye_``, ``dirac_``, and whatever ``torch.nn.init`` serves, are
    done at once. A batch inside a batch is part of it; other threads and other asyncio tasks are
    not. If the block raises, what was collected before is filled all the same, as it would have
    been without the batch. A generator that is suspended inside the block keeps the batch open for
    the code that it is suspended for: close it, or let the batch end, before that fills.

    Raises:
        RuntimeError: at the end of the block, if a collected tensor was written to, converted,
            moved, resized or given other memory after its call, so that its fill would come too
            late or to the wrong place. Nothing collected is filled then.
    """
    return Batch()


# The batch that collects what this thread or asyncio task fills; it may have ended.
open_batch: ContextVar[Batch | None] = ContextVar("torchinit.batch", default=None)


class Batch:
    """What ``batch`` returns: a context manager for one ``with`` statement."""

    def __init__(self, *, discards: bool = False) -> None:
        """With discards, a block that raises fills nothing."""
        self._discards = discards
        self._rows: list[_Row] = []
        self._owner: tuple[int, object] | None = None
        self._before: Batch | None = None
        self._part_of: Batch | None = None

    def __enter__(self) -> None:
        if self._owner is not None or self._part_of is not None:
            raise RuntimeError("this batch was entered before: call torchinit.batch() anew")
        self._before = open_batch.get()
        if self._before is not None and self._before.collects():
            self._part_of = self._before
        else:
            self._owner = _owner()
            open_batch.set(self)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._part_of is not None:
            return
        self._owner = (0, None)  # nobody: entered once, and over
        # A generator may be closed in another thread or context, where it is not this batch's turn.
        if open_batch.get() is self:
            open_batch.set(self._before)
        rows, self._rows = self._rows, []
        if rows and not (self._discards and kind is not None):
            _fill_rows(rows)

    def collects(self) -> bool:
        """Whether the block is open, and the caller's: contexts are copied to other tasks."""
        return self._owner == _owner()

    def collect(
        self, draw: Draw, dtype: int, key: int, tensor: Tensor, address: int, place: calls.Place
    ) -> None:
        """Takes a fill of a tensor whose memory is at hand, with everything checked."""
        self._rows.append((draw, dtype, key, tensor, address, place, _version(tensor)))


def _owner() -> tuple[int, object]:
    """The thread and the asyncio task that runs."""
    thread = threading.get_ident()
    if asyncio._get_running_loop() is None:
        return thread, None
    return thread, asyncio.current_task()


def _version(tensor: Tensor) -> int:
    """How often torch has seen a tensor written to; of inference tensors it does not count."""
    try:
        return tensor._version
    except RuntimeError:
        return 0


def _fill_rows(rows: list[_Row]) -> None:
    draws, dtypes, keys, tensors, addresses, places, versions = zip(*rows, strict=True)
    # Column by column: thousands of small tensors are what this is for.
    if (
        list(map(Tensor.data_ptr, tensors)) != list(addresses)
        or list(map(DTYPE_NUMBERS.get, map(_dtype, tensors))) != list(dtypes)
        or list(map(_version, tensors)) != list(versions)
    ):
        _complain(rows)
    calls.fill_list(*map(list, (draws, dtypes, keys, tensors, addresses, places)))


def _complain(rows: list[_Row]) -> None:
    """Raises for the first tensor that is not what it was when its fill was collected."""
    for _, dtype, _, tensor, address, _, version in rows:
        shape = f"a tensor of shape {tuple(tensor.shape)}"
        since = "since its fill was collected by torchinit.batch()"
        if tensor.device.type not in ("cpu", "cuda"):
            raise RuntimeError(f"{shape} has moved to {tensor.device} {since}: move it after")
        if DTYPE_NUMBERS.get(tensor.dtype) != dtype:
            raise RuntimeError(f"{shape} has become {tensor.dtype} {since}: convert it after")
        if tensor.data_ptr() != address:
            lost = "no memory any more" if tensor.data_ptr() == 0 else "other memory"
            raise RuntimeError(f"{shape} has {lost} {since}: replace it after the block")
        if _version(tensor) != version:
            raise RuntimeError(f"{shape} was written to {since}: write to it after the block")
