"""Files under temporary names, written past the page cache where the file system lets it."""

from __future__ import annotations

import errno
import os
import threading
from contextlib import suppress
from pathlib import Path

from torchinit.checkpoint.safetensors import BLOCK

TEMPORARY = ".tmp"  # added to the name of a file that is not whole
_DIRECT = getattr(os, "O_DIRECT", 0)
# What file systems say to O_DIRECT that they do not know, or not in these blocks.
_REFUSED = (errno.EINVAL, errno.EOPNOTSUPP)


def write_file(path: Path, data: bytes) -> None:
    """Writes a small file: under a temporary name, renamed when it is on the disk."""
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
    """Has the names in a folder written to the disk."""
    with suppress(OSError):  # some file systems have nothing to do for a folder, and say so
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


class OpenFiles:
    """The files of a folder that are being written.

    Args:
        folder: that they lie in.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, OpenFile] = {}
        self._turn = threading.Lock()

    def open(self, name: str) -> OpenFile:
        """The file of a name, opened under a temporary one if it is not yet."""
        file = self._files.get(name)
        if file is None:
            file = self._files[name] = OpenFile(self._folder / name, self._turn)
        return file

    def abandon(self) -> None:
        """Removes files that were not finished."""
        for file in self._files.values():
            file.abandon()


class OpenFile:
    """A file that several threads write pieces of.

    Past the page cache by all at once; where the file system refuses that, through it, and by one
    at a time: several on one file take several times as long.

    Args:
        path: that it has when it is finished.
        turn: held by who writes through the page cache.
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
        """Writes the first bytes of memory to a place that is a multiple of a block.

        Args:
            memory: page-aligned; what follows the bytes, up to a whole block, may be written too.
            begin, count: of the bytes.

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
        """Writes whole blocks; returns how many bytes were written before that was refused."""
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
        """Has the file written to the disk, and gives it its name."""
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
