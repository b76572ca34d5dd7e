"""Writes the files of a checkpoint: threads that fill pieces of files, past the page cache.

Each thread fills a piece on its own, with one thread of torch, and writes it while the others fill
theirs. So memory holds one piece a thread, and one tensor whose values can only be made all at
once. Files have temporary names until they are on the disk.
"""

from __future__ import annotations

import errno
import mmap
import os
import threading
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from itertools import groupby
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from torchinit.checkpoint.safetensors import BLOCK, FileTensor, PlacedTensor, Shard
from torchinit.native import load

PIECE = 1 << 26  # bytes
TEMPORARY = ".tmp"  # suffix of a file that is not complete
_MOST_THREADS = 3  # more take more memory, and rarely less time
_DIRECT = getattr(os, "O_DIRECT", 0)
# Errors from file systems that do not support O_DIRECT, or not with this alignment.
_REFUSED = (errno.EINVAL, errno.EOPNOTSUPP)

_end = attrgetter("end")


# Threads.


class FilePiece(NamedTuple):
    """A range of the bytes of a file."""

    shard: Shard
    begin: int
    end: int

    def tensors(self) -> Iterator[PlacedTensor]:
        """The tensors that have bytes in it."""
        placed = self.shard.placed
        for number in range(bisect_right(placed, self.begin, key=_end), len(placed)):
            if placed[number].begin >= self.end:
                return
            if placed[number].tensor.numel:
                yield placed[number]


class _StoppedError(Exception):
    """Another thread failed."""


def write_shards(
    folder: Path,
    shards: Sequence[Shard],
    tell: Callable[[int], object],
    *,
    piece_size: int = PIECE,
    threads: int | None = None,
) -> None:
    """Fills shards and writes them.

    Args:
        folder: to write them into.
        shards: to be written.
        tell: called from any thread with the number of bytes just written.
        piece_size: bytes filled and written together, a multiple of a block.
        threads: how many; None is one more than there are processors, at most three.

    Raises:
        OSError: of the first write that fails. Unfinished files are removed.
        Exception: whatever making values raises, likewise.
    """
    if threads is None:
        threads = min((os.cpu_count() or 1) + 1, _MOST_THREADS)
    pieces = [
        FilePiece(shard, begin, min(begin + piece_size, shard.size))
        for shard in shards
        for begin in range(0, shard.size, piece_size)
    ]
    before = torch.get_num_threads()
    is_forked = load.module is not None and load.module.is_forked()
    writer = _Writer(folder, pieces, tell, piece_size, 1 if is_forked else before)
    threads = min(threads, len(pieces))
    pool = ThreadPoolExecutor(threads, "torchinit-checkpoint")
    try:
        running = [pool.submit(writer.run) for _ in range(threads)]
        done, _ = wait(running, return_when=FIRST_EXCEPTION)
        for one in done:
            one.result()
    finally:
        writer.stop()
        pool.shutdown()
        torch.set_num_threads(before)  # torch gives new threads the number that was set last
        writer.abandon()
    if writer.error is not None:
        raise writer.error


class _Writer:
    """What the threads share: the next piece, the open files, and the one tensor made as a whole.

    Attributes:
        error: the first of any thread.
    """

    def __init__(
        self,
        folder: Path,
        pieces: Sequence[FilePiece],
        tell: Callable[[int], object],
        piece_size: int,
        torch_threads: int,
    ) -> None:
        self.error: BaseException | None = None
        self._folder = folder
        self._files: dict[str, OpenFile] = {}
        self._buffered = threading.Lock()
        self._tell = tell
        self._size = piece_size
        self._left = Counter(piece.shard.filename for piece in pieces)
        self._pieces = iter(pieces)
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._wholes = _Wholes(pieces, self._stopped, torch_threads)

    def stop(self) -> None:
        """Makes the threads end before their next piece."""
        self._stopped.set()
        self._wholes.wake()

    def abandon(self) -> None:
        """Removes unfinished files."""
        for file in self._files.values():
            file.abandon()

    def run(self) -> None:
        """Runs in each thread."""
        torch.set_num_threads(1)  # of this thread
        try:
            self._run(memoryview(mmap.mmap(-1, self._size)))  # page-aligned
        except _StoppedError:
            pass
        except BaseException as error:
            with self._lock:
                self.error = self.error or error
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

    def _take(self) -> tuple[FilePiece, OpenFile] | None:
        with self._lock:
            piece = None if self._stopped.is_set() else next(self._pieces, None)
            if piece is None:
                return None
            name = piece.shard.filename
            if name not in self._files:
                self._files[name] = OpenFile(self._folder / name, self._buffered)
            return piece, self._files[name]

    def _fill(self, piece: FilePiece, buffer: Tensor) -> None:
        head = piece.shard.header[piece.begin : piece.end]
        if head:
            buffer[: len(head)] = torch.frombuffer(bytearray(head), dtype=torch.uint8)
        for tensor, begin, end in piece.tensors():
            low, high = max(begin, piece.begin), min(end, piece.end)
            memory = buffer[low - piece.begin : high - piece.begin].view(tensor.dtype)
            first = (low - begin) // tensor.dtype.itemsize
            if tensor.fill is None:
                self._wholes.copy(piece, tensor, memory, first)
            else:
                tensor.fill(memory, first)


class _Wholes:
    """Holds one parameter as a whole, until the last piece that needs it has copied its part.

    Parameters are made in file order, each for a run of neighbouring tensors. Pieces are taken in
    that order too, so a thread that waits for its run waits only for pieces that other threads
    already have. (A parameter whose tensors are not neighbours has several runs.)
    """

    def __init__(
        self, pieces: Sequence[FilePiece], stopped: threading.Event, torch_threads: int
    ) -> None:
        uses = [
            ((piece.shard.filename, piece.begin, placed.tensor.name), placed.tensor.of)
            for piece in pieces
            for placed in piece.tensors()
            if placed.tensor.needs_whole
        ]
        self._run_of: dict[tuple[str, int, str], int] = {}
        self._left: Counter[int] = Counter()  # uses of each run
        for run, (_, group) in enumerate(groupby(uses, key=itemgetter(1))):
            for use, _ in group:
                self._run_of[use] = run
                self._left[run] += 1
        self._turn = 0
        self._whole: Tensor | None = None
        self._stopped = stopped
        self._threads = torch_threads
        self._changed = threading.Condition()

    def wake(self) -> None:
        """Makes waiting threads check whether to stop."""
        with self._changed:
            self._changed.notify_all()

    def copy(self, piece: FilePiece, tensor: FileTensor, memory: Tensor, first: int) -> None:
        """Copies values of a tensor from its parameter, which is made first if need be."""
        run = self._run_of[piece.shard.filename, piece.begin, tensor.name]
        with self._changed:
            self._changed.wait_for(lambda: self._turn == run or self._stopped.is_set())
            if self._stopped.is_set():
                raise _StoppedError
            if self._whole is None:  # threads that need it too wait for the lock meanwhile
                self._whole = self._make(tensor)
            flat = self._whole.view(-1)
        if tensor.strides is not None:
            flat = flat.as_strided(tensor.shape, tensor.strides, tensor.first).reshape(-1)
        else:
            flat = flat[tensor.first : tensor.first + tensor.numel]
        memory.copy_(flat[first : first + memory.numel()])
        del flat
        with self._changed:
            self._left[run] -= 1
            if not self._left[run]:
                self._turn, self._whole = run + 1, None
                self._changed.notify_all()

    def _make(self, tensor: FileTensor) -> Tensor:
        torch.set_num_threads(self._threads)
        try:
            return tensor.make().detach().contiguous()
        finally:
            torch.set_num_threads(1)


# Files.


def write_file(path: Path, data: bytes) -> None:
    """Writes a small file, under a temporary name until it is on the disk."""
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Flushes the names in a folder to the disk."""
    with suppress(OSError):  # some file systems refuse fsync of a folder
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


class OpenFile:
    """A file that several threads write pieces of.

    All write at once past the page cache. Where the file system refuses that, they write through it
    one at a time: concurrent buffered writes to one file take several times as long.

    Args:
        path: of the finished file; until then it has a temporary name.
        turn: held while writing through the page cache.
    """

    def __init__(self, path: Path, turn: threading.Lock) -> None:
        self._path = path
        self._temporary = path.with_name(path.name + TEMPORARY)
        self._turn = turn
        self._direct = -1
        self._buffered = os.open(self._temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        if _DIRECT:
            try:
                self._direct = os.open(self._temporary, os.O_WRONLY | _DIRECT)
            except OSError as error:
                if error.errno not in _REFUSED:
                    self.abandon()
                    raise

    def write(self, memory: memoryview, begin: int, count: int) -> None:
        """Writes the first bytes of memory at an offset that is a multiple of a block.

        Args:
            memory: page-aligned; the rest of the last block may be written too.
            begin: the offset.
            count: of bytes.

        Raises:
            OSError: naming the file.
        """
        with self._naming():
            done = 0
            if self._direct >= 0:
                done = self._write_direct(memory, begin, -(-count // BLOCK) * BLOCK)
            if done < count:
                with self._turn:
                    while done < count:
                        done += os.pwrite(self._buffered, memory[done:count], begin + done)

    def _write_direct(self, memory: memoryview, begin: int, count: int) -> int:
        """Writes whole blocks; returns the bytes written before the file system refused."""
        done = 0
        while done < count and not done % BLOCK:
            try:
                done += os.pwrite(self._direct, memory[done:count], begin + done)
            except OSError as error:
                if error.errno in _REFUSED:
                    return done
                raise
        return done

    def finish(self, size: int) -> None:
        """Flushes the file to the disk, and renames it."""
        with self._naming():
            os.ftruncate(self._buffered, size)
            os.fsync(self._buffered)
        self._close()
        self._temporary.replace(self._path)
        sync_folder(self._path.parent)

    def abandon(self) -> None:
        """Removes the file, unless it is finished."""
        if self._buffered >= 0:
            self._close()
            self._temporary.unlink(missing_ok=True)

    @contextmanager
    def _naming(self) -> Iterator[None]:
        """Adds the name of the file to errors of calls that know only its number."""
        try:
            yield
        except OSError as error:
            error.filename = os.fspath(self._path)
            raise

    def _close(self) -> None:
        for number in (self._direct, self._buffered):
            if number >= 0:
                os.close(number)
        self._direct = self._buffered = -1
