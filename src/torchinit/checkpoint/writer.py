"""Writes the files of a checkpoint: threads that fill pieces of files, past the page cache.

Each thread fills a piece on its own, with one thread of torch, and writes it while the others fill
theirs. So memory holds one piece a thread, and one tensor whose values can only be made all at
once. Files have temporary names until they are on the disk.
"""

from __future__ import annotations

import errno
import mmap
import os
import re
import secrets
import threading
from _thread import start_new_thread
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import groupby
from operator import attrgetter, itemgetter
from pathlib import Path
from queue import SimpleQueue
from time import sleep
from typing import NamedTuple

import torch
from torch import Tensor

from torchinit.checkpoint.safetensors import BLOCK, FileTensor, PlacedTensor, Shard
from torchinit.native import load

PIECE = 1 << 26  # bytes
_MOST_THREADS = 3  # more take more memory, and rarely less time
_DIRECT = getattr(os, "O_DIRECT", 0)
# Errors from file systems that do not support O_DIRECT, or not with this alignment.
_REFUSED = (errno.EINVAL, errno.EOPNOTSUPP)
# Errors from those that cannot flush a folder.
_NO_FLUSH = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EACCES, errno.EPERM)

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
    try:
        writer.run(min(threads, len(pieces)))
    finally:
        writer.stop()
        torch.set_num_threads(before)  # torch gives new threads the number that was set last
        writer.abandon()


class _Writer:
    """What the threads share: the next piece, the open files, and the one tensor made as a whole.

    The calling thread takes no lock, not even that of ``Thread.start``: Ctrl-C could leave it so.
    """

    def __init__(
        self,
        folder: Path,
        pieces: Sequence[FilePiece],
        tell: Callable[[int], object],
        piece_size: int,
        torch_threads: int,
    ) -> None:
        self._folder = folder
        self._files: dict[str, OpenFile] = {}
        self._buffered = threading.Lock()
        self._tell = tell
        self._size = piece_size
        self._left = Counter(piece.shard.filename for piece in pieces)
        self._pieces = iter(pieces)
        self._lock = threading.Lock()
        self._running = 0
        self._is_stopped = False
        self._ended: SimpleQueue[BaseException | None] = SimpleQueue()
        self._wholes = _Wholes(pieces, lambda: self._is_stopped, torch_threads)

    def run(self, threads: int) -> None:
        """Runs threads until all is written; raises the first error of any."""
        for _ in range(threads):
            start_new_thread(self._work, ())
        for _ in range(threads):
            error = self._ended.get()
            if error is not None:
                raise error

    def stop(self) -> None:
        """Has the threads end before their next piece, and waits for that.

        A thread that has not begun yet never will: Ctrl-C can come while it is being started.
        """
        self._is_stopped = True
        while self._running:
            with suppress(KeyboardInterrupt):  # files are still being written to
                sleep(0.01)

    def abandon(self) -> None:
        """Removes unfinished files."""
        for file in self._files.values():
            file.abandon()

    def _work(self) -> None:
        with self._lock:
            self._running += 1
        error: BaseException | None = None
        try:
            torch.set_num_threads(1)  # of this thread
            if not self._is_stopped:
                self._run(memoryview(mmap.mmap(-1, self._size)))  # page-aligned
        except _StoppedError:
            pass
        except BaseException as raised:
            error = raised
            self._is_stopped = True
        with self._lock:
            self._running -= 1
        self._ended.put(error)

    def _run(self, memory: memoryview) -> None:
        buffer = torch.frombuffer(memory, dtype=torch.uint8)
        while (taken := self._take()) is not None:
            piece, file = taken
            self._fill(piece, buffer)
            if self._is_stopped:
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
            piece = None if self._is_stopped else next(self._pieces, None)
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
        self, pieces: Sequence[FilePiece], is_stopped: Callable[[], bool], torch_threads: int
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
        self._whole: list[Tensor] | None = None
        self._is_stopped = is_stopped
        self._threads = torch_threads
        self._changed = threading.Condition()

    def copy(self, piece: FilePiece, tensor: FileTensor, memory: Tensor, first: int) -> None:
        """Copies values of a tensor from its parameter, which is made first if need be."""
        run = self._run_of[piece.shard.filename, piece.begin, tensor.name]
        with self._changed:
            while self._turn != run and not self._is_stopped():
                self._changed.wait(0.1)
            if self._is_stopped():
                raise _StoppedError
            if self._whole is None:  # threads that need it too wait for the lock meanwhile
                self._whole = self._make(tensor)
            flat = self._whole[tensor.part].view(-1)
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

    def _make(self, tensor: FileTensor) -> list[Tensor]:
        torch.set_num_threads(self._threads)
        try:
            made = tensor.make()
            parts = made if isinstance(made, tuple) else (made,)
            return [one.detach().contiguous() for one in parts]
        finally:
            torch.set_num_threads(1)


# Files.


def temporary_name(name: str) -> str:
    """A new name for a file that is not complete: another writer's are never touched."""
    return f"{name}.{secrets.token_hex(4)}.tmp"


def finished_name(temporary: str) -> str | None:
    """The name that a file with a temporary name was to get; None for any other name."""
    found = re.fullmatch(r"(.+)\.[0-9a-f]{8}\.tmp", temporary)
    return None if found is None else found[1]


def write_file(path: Path, data: bytes, *, is_first: bool = False) -> None:
    """Writes a small file, under a temporary name until it is on the disk.

    Args:
        path, data: of the file.
        is_first: whether to leave a file of that name alone.

    Raises:
        OSError: FileExistsError for a file that is left alone.
    """
    temporary = path.with_name(temporary_name(path.name))
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if is_first:
            _name_first(temporary, path)
        else:
            temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _name_first(temporary: Path, path: Path) -> None:
    """Renames a file, unless there is one of the new name."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        temporary.replace(path)
    else:
        temporary.unlink()


def sync_folder(folder: Path) -> None:
    """Flushes the names in a folder to the disk, where the file system can."""
    try:
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
    except OSError as error:
        if error.errno not in _NO_FLUSH:
            raise


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
        self._temporary: Path | None = path.with_name(temporary_name(path.name))
        self._turn = turn
        self._direct = -1
        self._buffered = os.open(self._temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
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
                        done += _write(self._buffered, memory[done:count], begin + done)

    def _write_direct(self, memory: memoryview, begin: int, count: int) -> int:
        """Writes whole blocks; returns the bytes written before the file system refused."""
        done = 0
        while done < count and not done % BLOCK:
            try:
                done += _write(self._direct, memory[done:count], begin + done)
            except OSError as error:
                if error.errno in _REFUSED:
                    return done
                raise
        return done

    def finish(self, size: int) -> None:
        """Flushes the file to the disk, and renames it."""
        assert self._temporary is not None
        with self._naming():
            os.ftruncate(self._buffered, size)
            os.fsync(self._buffered)
            self._close()
        self._temporary.replace(self._path)
        self._temporary = None
        sync_folder(self._path.parent)

    def abandon(self) -> None:
        """Removes the file, unless it is finished; a disk that fails is left as it is."""
        with suppress(OSError):
            self._close()
        if self._temporary is not None:
            with suppress(OSError):
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
        # A number is closed even by a close that fails, and may be another file's then.
        numbers = [number for number in (self._direct, self._buffered) if number >= 0]
        self._direct = self._buffered = -1
        with ExitStack() as stack:
            for number in numbers:
                stack.callback(os.close, number)


def _write(number: int, memory: memoryview, begin: int) -> int:
    written = os.pwrite(number, memory, begin)
    if not written:
        raise OSError(errno.EIO, "the file system wrote nothing")
    return written
