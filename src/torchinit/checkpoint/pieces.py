"""Fills files piece by piece: each thread fills a piece alone, on one thread, and writes it.

So fills and writes overlap, and no more is in memory than a piece a thread, and one tensor that can
only be made as a whole.
"""

from __future__ import annotations

import mmap
import os
import threading
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from itertools import groupby
from operator import attrgetter, itemgetter
from typing import NamedTuple

import torch
from torch import Tensor

from torchinit.checkpoint.files import OpenFile, OpenFiles
from torchinit.checkpoint.safetensors import BLOCK, Placed, Shard
from torchinit.checkpoint.values import Entry
from torchinit.native import load

PIECE = 1 << 26  # bytes
_MOST_THREADS = 3  # more take more memory, and seldom less time

_end = attrgetter("end")


class Piece(NamedTuple):
    """Bytes of a file, from one to another."""

    shard: Shard
    begin: int
    end: int


class _Use(NamedTuple):
    """A piece, and a tensor in it that needs all of its parameter."""

    filename: str
    begin: int
    name: str


class _StoppedError(Exception):
    """Another thread has failed."""


def pieces_of(shards: Sequence[Shard], size: int) -> Iterator[Piece]:
    """The pieces of files, in order."""
    for shard in shards:
        for begin in range(0, shard.size, size):
            yield Piece(shard, begin, min(begin + size, shard.size))


def tensors_in(piece: Piece) -> Iterator[Placed]:
    """The tensors that have bytes in a piece."""
    placed = piece.shard.placed
    for number in range(bisect_right(placed, piece.begin, key=_end), len(placed)):
        if placed[number].begin >= piece.end:
            return
        if placed[number].entry.numel:
            yield placed[number]


def write_shards(
    shards: Sequence[Shard],
    files: OpenFiles,
    tell: Callable[[int], object],
    *,
    piece_size: int = PIECE,
    threads: int | None = None,
) -> None:
    """Fills shards and writes them.

    Args:
        shards: those that are to be written.
        files: which open, write to and finish a file each.
        tell: is called with a number of bytes whenever they have been written, by any thread.
        piece_size: bytes that are filled and written together, a multiple of a block.
        threads: that do; None is one more than there are processors, three at most.

    Raises:
        OSError: whatever the first write that fails raises. Files that are not finished are gone.
        Exception: whatever values that are made as a whole raise, likewise.
    """
    assert piece_size % BLOCK == 0
    if threads is None:
        threads = min((os.cpu_count() or 1) + 1, _MOST_THREADS)
    before = torch.get_num_threads()
    is_forked = load.module is not None and load.module.is_forked()
    writer = _Writer(shards, files, tell, piece_size, 1 if is_forked else before)
    threads = min(threads, writer.count)
    pool = ThreadPoolExecutor(threads, "torchinit-checkpoint")
    try:
        running = [pool.submit(writer.run) for _ in range(threads)]
        done, _ = wait(running, return_when=FIRST_EXCEPTION)
        for one in done:
            one.result()
    finally:
        writer.stop()
        pool.shutdown()
        torch.set_num_threads(before)  # new threads of torch take the number that was set last
        files.abandon()
    writer.check()


class _Writer:
    """What threads share: which piece is next, and which tensor is there as a whole."""

    def __init__(
        self,
        shards: Sequence[Shard],
        files: OpenFiles,
        tell: Callable[[int], object],
        piece_size: int,
        torch_threads: int,
    ) -> None:
        self._files = files
        self._tell = tell
        self._size = piece_size
        pieces = list(pieces_of(shards, piece_size))
        self.count = len(pieces)
        self._left = Counter(piece.shard.filename for piece in pieces)
        self._pieces = iter(pieces)
        self._lock = threading.Lock()
        self._error: BaseException | None = None
        self._stopped = threading.Event()
        self._wholes = _Wholes(pieces, self._stopped, torch_threads)

    def stop(self) -> None:
        """Has threads end before their next piece."""
        self._stopped.set()
        self._wholes.wake()

    def check(self) -> None:
        """Raises the first error of any thread."""
        if self._error is not None:
            raise self._error

    def run(self) -> None:
        """What one thread does."""
        torch.set_num_threads(1)  # of this thread
        try:
            self._run(memoryview(mmap.mmap(-1, self._size)))  # page-aligned
        except _StoppedError:
            pass
        except BaseException as error:
            with self._lock:
                self._error = self._error or error
            self.stop()

    def _run(self, memory: memoryview) -> None:
        buffer = torch.frombuffer(memory, dtype=torch.uint8)
        while (taken := self._take()) is not None:
            piece, file = taken
            self._fill(piece, buffer)
            if self._stopped.is_set():
                return
            file.write(memory, piece.begin, piece.end - piece.begin)
            self._tell(piece.end - piece.begin)
            with self._lock:
                self._left[piece.shard.filename] -= 1
                is_last = not self._left[piece.shard.filename]
            if is_last:
                file.finish(piece.shard.size)

    def _take(self) -> tuple[Piece, OpenFile] | None:
        with self._lock:
            if self._stopped.is_set():
                return None
            piece = next(self._pieces, None)
            return None if piece is None else (piece, self._files.open(piece.shard.filename))

    def _fill(self, piece: Piece, buffer: Tensor) -> None:
        head = piece.shard.header[piece.begin : piece.end]
        if head:
            buffer[: len(head)] = torch.frombuffer(bytearray(head), dtype=torch.uint8)
        for entry, begin, end in tensors_in(piece):
            low, high = max(begin, piece.begin), min(end, piece.end)
            memory = buffer[low - piece.begin : high - piece.begin].view(entry.dtype)
            first = (low - begin) // entry.dtype.itemsize
            if entry.needs_whole:
                self._wholes.copy(piece, entry, memory, first)
            else:
                entry.values.fill(memory, entry.first + first)


class _Wholes:
    """The one parameter that is there as a whole, until the last piece has what it needs of it.

    They are made in the order of the files, each for a run of neighbours among the tensors. Pieces
    are taken in that order, so whoever waits for the next run waits only for pieces that others
    have already taken. (Of a parameter whose tensors are not neighbours there are several runs.)
    """

    def __init__(
        self, pieces: Sequence[Piece], stopped: threading.Event, torch_threads: int
    ) -> None:
        uses = [
            (_Use(piece.shard.filename, piece.begin, placed.entry.name), placed.entry.of)
            for piece in pieces
            for placed in tensors_in(piece)
            if placed.entry.needs_whole
        ]
        self._run_of: dict[_Use, int] = {}
        self._left: list[int] = []  # uses of each run
        for number, (_, run) in enumerate(groupby(uses, key=itemgetter(1))):
            numbers = dict.fromkeys((use for use, _ in run), number)
            self._run_of.update(numbers)
            self._left.append(len(numbers))
        self._turn = 0
        self._is_begun = False
        self._whole: Tensor | None = None
        self._stopped = stopped
        self._threads = torch_threads
        self._changed = threading.Condition()

    def wake(self) -> None:
        """Has those who wait look whether all is to stop."""
        with self._changed:
            self._changed.notify_all()

    def copy(self, piece: Piece, entry: Entry, memory: Tensor, first: int) -> None:
        """Copies values of an entry, and makes all of its parameter if they are not there."""
        run = self._run_of[_Use(piece.shard.filename, piece.begin, entry.name)]
        whole = self._get(run, entry)
        flat = _view(whole, entry).reshape(-1)
        memory.copy_(flat[first : first + memory.numel()])
        del flat, whole
        with self._changed:
            self._left[run] -= 1
            if not self._left[run]:
                self._turn, self._is_begun, self._whole = run + 1, False, None
                self._changed.notify_all()

    def _get(self, run: int, entry: Entry) -> Tensor:
        with self._changed:
            while self._turn != run or (self._is_begun and self._whole is None):
                if self._stopped.is_set():
                    raise _StoppedError
                self._changed.wait()
            if self._whole is not None:
                return self._whole
            self._is_begun = True
        torch.set_num_threads(self._threads)
        try:
            whole = entry.values.make().contiguous()
        finally:
            torch.set_num_threads(1)
        with self._changed:
            self._whole = whole
            self._changed.notify_all()
        return whole


def _view(whole: Tensor, entry: Entry) -> Tensor:
    flat = whole.detach().view(-1)
    if entry.strides is not None:
        return flat.as_strided(entry.shape, entry.strides, entry.first)
    return flat[entry.first : entry.first + entry.numel]
