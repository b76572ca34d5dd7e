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
from contextlib import suppress
from itertools import groupby
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from torchinit.checkpoint.fillers import FileTensor
from torchinit.checkpoint.safetensors import BLOCK, PlacedTensor, Shard
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


class _Use(NamedTuple):
    """A tensor in a piece that needs all values of its parameter."""

    filename: str
    begin: int
    name: str


class _StoppedError(Exception):
    """Another thread failed."""


def pieces_of(shards: Sequence[Shard], size: int) -> Iterator[FilePiece]:
    """The pieces of files, in order."""
    for shard in shards:
        for begin in range(0, shard.size, size):
            yield FilePiece(shard, begin, min(begin + size, shard.size))


def tensors_in(piece: FilePiece) -> Iterator[PlacedTensor]:
    """The tensors that have bytes in a piece."""
    placed = piece.shard.placed
    for number in range(bisect_right(placed, piece.begin, key=_end), len(placed)):
        if placed[number].begin >= piece.end:
            return
        if placed[number].tensor.numel:
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
        shards: to be written.
        files: opens them.
        tell: called from any thread with the number of bytes just written.
        piece_size: bytes filled and written together, a multiple of a block.
        threads: how many; None is one more than there are processors, at most three.

    Raises:
        OSError: of the first write that fails. Unfinished files are removed.
        Exception: whatever making values raises, likewise.
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
        torch.set_num_threads(before)  # torch gives new threads the number that was set last
        files.abandon()
    writer.check()


class _Writer:
    """What the threads share: the next piece, and the one tensor that is made as a whole."""

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
        """Makes the threads end before their next piece."""
        self._stopped.set()
        self._wholes.wake()

    def check(self) -> None:
        """Raises the first error of any thread."""
        if self._error is not None:
            raise self._error

    def run(self) -> None:
        """Runs in each thread."""
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

    def _take(self) -> tuple[FilePiece, OpenFile] | None:
        with self._lock:
            if self._stopped.is_set():
                return None
            piece = next(self._pieces, None)
            return None if piece is None else (piece, self._files.open(piece.shard.filename))

    def _fill(self, piece: FilePiece, buffer: Tensor) -> None:
        head = piece.shard.header[piece.begin : piece.end]
        if head:
            buffer[: len(head)] = torch.frombuffer(bytearray(head), dtype=torch.uint8)
        for tensor, begin, end in tensors_in(piece):
            low, high = max(begin, piece.begin), min(end, piece.end)
            memory = buffer[low - piece.begin : high - piece.begin].view(tensor.dtype)
            first = (low - begin) // tensor.dtype.itemsize
            if tensor.needs_whole:
                self._wholes.copy(piece, tensor, memory, first)
            else:
                tensor.filler.fill(memory, tensor.first + first)


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
            (_Use(piece.shard.filename, piece.begin, placed.tensor.name), placed.tensor.of)
            for piece in pieces
            for placed in tensors_in(piece)
            if placed.tensor.needs_whole
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
        """Makes waiting threads check whether to stop."""
        with self._changed:
            self._changed.notify_all()

    def copy(self, piece: FilePiece, tensor: FileTensor, memory: Tensor, first: int) -> None:
        """Copies values of a tensor from its parameter, which is made first if need be."""
        run = self._run_of[_Use(piece.shard.filename, piece.begin, tensor.name)]
        whole = self._get(run, tensor)
        flat = _view(whole, tensor).reshape(-1)
        memory.copy_(flat[first : first + memory.numel()])
        del flat, whole
        with self._changed:
            self._left[run] -= 1
            if not self._left[run]:
                self._turn, self._is_begun, self._whole = run + 1, False, None
                self._changed.notify_all()

    def _get(self, run: int, tensor: FileTensor) -> Tensor:
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
            whole = tensor.filler.make().contiguous()
        finally:
            torch.set_num_threads(1)
        with self._changed:
            self._whole = whole
            self._changed.notify_all()
        return whole


def _view(whole: Tensor, tensor: FileTensor) -> Tensor:
    flat = whole.detach().view(-1)
    if tensor.strides is not None:
        return flat.as_strided(tensor.shape, tensor.strides, tensor.first)
    return flat[tensor.first : tensor.first + tensor.numel]


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


class OpenFiles:
    """The files of a folder that are being written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, OpenFile] = {}
        self._turn = threading.Lock()

    def open(self, name: str) -> OpenFile:
        """A file, opened under a temporary name on first use."""
        file = self._files.get(name)
        if file is None:
            file = self._files[name] = OpenFile(self._folder / name, self._turn)
        return file

    def abandon(self) -> None:
        """Removes unfinished files."""
        for file in self._files.values():
            file.abandon()


class OpenFile:
    """A file that several threads write pieces of.

    All write at once past the page cache. Where the file system refuses that, they write through it
    one at a time: concurrent buffered writes to one file take several times as long.

    Args:
        path: of the finished file.
        turn: held while writing through the page cache.
    """

    def __init__(self, path: Path, turn: threading.Lock) -> None:
        self._path = path
        self._temporary = path.with_name(path.name + TEMPORARY)
        self._turn = turn
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | getattr(os, "O_CLOEXEC", 0)
        self._direct = -1
        self._buffered = os.open(self._temporary, flags, 0o666)
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
        try:
            done = 0
            if self._direct >= 0:
                done = self._write_direct(memory, begin, -(-count // BLOCK) * BLOCK)
            if done < count:
                with self._turn:
                    _write_all(self._buffered, memory[done:count], begin + done)
        except OSError as error:
            error.filename = os.fspath(self._path)
            raise

    def _write_direct(self, memory: memoryview, begin: int, count: int) -> int:
        """Writes whole blocks; returns the bytes written before the file system refused."""
        done = 0
        while done < count:
            try:
                written = os.pwrite(self._direct, memory[done:count], begin + done)
            except OSError as error:
                if error.errno in _REFUSED:
                    return done
                raise
            done += written
            if written % BLOCK:
                return done
        return done

    def finish(self, size: int) -> None:
        """Flushes the file to the disk, and renames it."""
        try:
            os.ftruncate(self._buffered, size)
            os.fsync(self._buffered)
        except OSError as error:
            error.filename = os.fspath(self._path)
            raise
        self._close()
        self._temporary.replace(self._path)
        sync_folder(self._path.parent)

    def abandon(self) -> None:
        """Removes the file, unless it is finished."""
        if self._buffered >= 0:
            self._close()
            self._temporary.unlink(missing_ok=True)

    def _close(self) -> None:
        for number in (self._direct, self._buffered):
            if number >= 0:
                os.close(number)
        self._direct = self._buffered = -1


def _write_all(number: int, memory: memoryview, begin: int) -> None:
    done = 0
    while done < len(memory):
        done += os.pwrite(number, memory[done:], begin + done)
