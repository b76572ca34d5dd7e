"""Collects fills and does them together: one call of the kernels, few launches on a GPU."""

from __future__ import annotations

from asyncio import _get_running_loop, current_task
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from operator import attrgetter
from threading import get_ident
from types import TracebackType
from typing import TypeAlias

from torch import Tensor, UntypedStorage

from torchinit.errors import ArgumentError
from torchinit.fill import checks
from torchinit.native import kernels
from torchinit.native.numbers import DTYPE_NUMBERS
from torchinit.placement.box import Box
from torchinit.placement.distributed import local_of
from torchinit.schemes.distributions import CONSTANT, Draw, constant_draw

# For each fill: draw, number of the dtype, key, tensor, address, the tensor's version (-1 if it has
# none), and extent.
_Columns: TypeAlias = tuple[
    list[Draw], list[int], list[int], list[Tensor], list[int], list[int], list[kernels.Extent]
]

_dtype, _counted_version = attrgetter("dtype"), attrgetter("_version")


def batch() -> Batch:
    """Collects the fills within a ``with`` block, and does them all at its end.

    >>> import torch, torchinit
    >>> layers = [torch.nn.Linear(16, 16) for _ in range(3)]
    >>> with torchinit.batch():
    ...     for layer in layers:
    ...         _ = torchinit.trunc_normal_(layer.weight, std=0.02)
    ...         _ = torchinit.zeros_(layer.bias)

    A thousand parameters cost a few launches on a GPU, and one parallel region on a CPU. The values
    are those of the same calls outside a batch: each call draws its key, and checks its arguments,
    when it is made. Tensors are checked when the block ends. Until then they keep their old values:
    do not read or write them inside the block.

    ``orthogonal_``, ``sparse_``, ``eye_``, ``dirac_``, and whatever ``torch.nn.init`` fills, are
    done at once. A nested batch joins the outer one; other threads and asyncio tasks do not. If the
    block raises, what was collected so far is still filled, as it would have been without the
    batch. A Python generator that is suspended inside the block leaves the batch open for the code
    that runs meanwhile: close the generator, or let the batch end, before that code fills.

    Writes are detected by torch's version counter, which ``.data`` bypasses:
    ``layer.weight.data[row].zero_()`` inside the block is not noticed, and is overwritten. Inside a
    graph of ``torch.compile`` a batch is a graph break.

    Raises:
        ArgumentError: at the end of the block, for a tensor that cannot be written to.
        RuntimeError: at the end of the block, if a collected tensor has since been written to,
            converted, moved, resized or given other memory, so that its fill would be too late or
            in the wrong place. None of the collected fills is done then.
    """
    return Batch()


# The batch that collects the fills of this thread or asyncio task; it may have ended.
open_batch: ContextVar[Batch | None] = ContextVar("torchinit.batch", default=None)


@contextmanager
def without_batch() -> Iterator[None]:
    """A block whose fills no open batch collects: their values are needed at once."""
    before = open_batch.set(None)
    try:
        yield
    finally:
        open_batch.reset(before)


class Batch:
    """What ``batch`` returns: a context manager for one ``with`` statement."""

    def __init__(self, *, discards: bool = False) -> None:
        """If discards is true, a block that raises fills nothing."""
        self._discards = discards
        self._entered = False
        # The thread and task whose fills are collected, while the block is open.
        self._thread = 0
        self._task: object = None
        # In columns, which is fast for thousands of small tensors.
        self._columns: _Columns = ([], [], [], [], [], [], [])
        self._boxes: dict[int, Box] = {}  # by number of the fill
        # DTensors whose local tensors are to be filled: with version and local tensor.
        self._owners: list[tuple[Tensor, int, Tensor]] = []
        # For the native module's quick path, which adds full tensors on the CPU: the thread, and
        # the columns. None if it would have to find out which asyncio task is running.
        self.quick: tuple[int, _Columns] | None = None
        self._before: Batch | None = None
        self._part_of: Batch | None = None

    def __enter__(self) -> None:
        if self._entered:
            raise RuntimeError("this batch was entered before: call torchinit.batch() anew")
        self._entered = True
        self._before = open_batch.get()
        if self._before is not None and self._before.collects():
            self._part_of = self._before
            return
        self._thread, self._task = get_ident(), _get_running_loop() and current_task()
        if self._task is None:
            self.quick = self._thread, self._columns
        open_batch.set(self)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._part_of is not None:
            return
        self._thread, self.quick = 0, None
        # A suspended generator may be closed in another thread or context, with another batch open.
        if open_batch.get() is self:
            open_batch.set(self._before)
        columns, self._columns = self._columns, ([], [], [], [], [], [], [])
        if columns[0] and not (kind is not None and self._discards):
            self._check(columns)
            draws, dtypes, keys, tensors, addresses, _, extents = columns
            kernels.run_fills(draws, dtypes, keys, tensors, addresses, extents)
        for owner, *_ in self._owners:
            kernels.count_write(owner)

    def _check(self, columns: _Columns) -> None:
        """Raises if one of the tensors can no longer be filled."""
        _check_columns(columns, self._boxes)
        for owner, version, local in self._owners:
            if _version(owner) != version or local_of(owner) is not local:
                raise RuntimeError(
                    f"a DTensor of shape {tuple(owner.shape)} was written to, or has another local "
                    "tensor, since its fill was collected by torchinit.batch(): do that after the "
                    "block"
                )

    def own(self, owner: Tensor, local: Tensor) -> None:
        """Notes a DTensor whose local tensor's fills have been collected."""
        self._owners.append((owner, _version(owner), local))

    def collects(self, tensor: Tensor | None = None) -> bool:
        """Whether the block is open in this thread and task, to which contexts may be copied.

        With a tensor: also whether it has an address, which a delayed fill needs.
        """
        if self._thread != get_ident() or self._task is not (
            _get_running_loop() and current_task()
        ):
            return False
        try:
            return tensor is None or tensor.data_ptr() >= 0
        except RuntimeError:
            return False

    def collect(self, draw: Draw, tensor: Tensor, key: int, box: Box | None = None) -> None:
        """Takes a fill of a tensor that kernels write; the draw and the box have been checked.

        The tensor is checked when the block ends.
        """
        if draw[0] == CONSTANT:
            draw = constant_draw(float(draw[1]))  # a tensor may change before the block ends
        if box is not None:
            self._boxes[len(self._columns[0])] = box
        number, address = DTYPE_NUMBERS[tensor.dtype], tensor.data_ptr()
        row = (draw, number, key, tensor, address, _version(tensor), kernels.extent_of(tensor, box))
        for column, value in zip(self._columns, row, strict=True):
            column.append(value)  # type: ignore[attr-defined]


def _check_columns(columns: _Columns, boxes: dict[int, Box]) -> None:
    """Raises if one of the collected tensors cannot be filled."""
    _, dtypes, _, tensors, addresses, versions, extents = columns
    counted = min(versions) >= 0
    whole = not boxes and all(map(Tensor.is_contiguous, tensors))
    if (
        list(map(Tensor.data_ptr, tensors)) != addresses
        or list(map(DTYPE_NUMBERS.get, map(_dtype, tensors))) != dtypes
        or list(map(_counted_version if counted else _version, tensors)) != versions
        or (list(map(Tensor.numel, tensors)) if whole else _extents(tensors, boxes)) != extents
    ):
        _complain(columns, boxes)
    if not (
        counted
        and whole
        and min(addresses) > checks.LEAST_ADDRESS
        and all(map(UntypedStorage.resizable, map(Tensor.untyped_storage, tensors)))
        and not any(map(Tensor.is_neg, tensors))
    ):
        for tensor in tensors:
            if tensor.is_neg():
                raise ArgumentError(
                    f"a tensor of shape {tuple(tensor.shape)} is a view with the negative bit set, "
                    "which torch.nn.init fills: fill it outside torchinit.batch()"
                )
            checks.check_target(tensor)


def _extents(tensors: list[Tensor], boxes: dict[int, Box]) -> list[kernels.Extent]:
    return [kernels.extent_of(tensor, boxes.get(i)) for i, tensor in enumerate(tensors)]


def _version(tensor: Tensor) -> int:
    try:
        return tensor._version
    except RuntimeError:
        return -1


def _complain(columns: _Columns, boxes: dict[int, Box]) -> None:
    """Raises for the first tensor that has changed since its fill was collected."""
    _, dtypes, _, tensors, addresses, versions, extents = columns
    for i, tensor in enumerate(tensors):
        dtype, address, version = dtypes[i], addresses[i], versions[i]
        shape = f"a tensor of shape {tuple(tensor.shape)}"
        since = "since its fill was collected by torchinit.batch()"
        if tensor.device.type not in kernels.DEVICES:
            raise RuntimeError(f"{shape} has moved to {tensor.device} {since}: move it after")
        if DTYPE_NUMBERS.get(tensor.dtype) != dtype:
            raise RuntimeError(f"{shape} has become {tensor.dtype} {since}: convert it after")
        if tensor.data_ptr() != address:
            lost = "no memory any more" if tensor.data_ptr() == 0 else "other memory"
            raise RuntimeError(f"{shape} has {lost} {since}: replace it after the block")
        if _version(tensor) != version:
            raise RuntimeError(f"{shape} was written to {since}: write to it after the block")
        if kernels.extent_of(tensor, boxes.get(i)) != extents[i]:
            raise RuntimeError(f"{shape} had another shape or other strides {since}: view it after")
