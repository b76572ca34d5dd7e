"""The folder of a checkpoint: empty, or one that a run of the same kind has begun.

The record comes first, then the small files, then shard after shard, each renamed when it is whole,
and last the index, or the one shard that there is: what has its last file is whole.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from torchinit.checkpoint.files import TEMPORARY, sync_folder, write_file
from torchinit.checkpoint.fingerprint import RECORD, check_same, write_record
from torchinit.checkpoint.safetensors import BLOCK, INDEX, Layout, Shard
from torchinit.errors import ArgumentError

try:
    import fcntl
except ImportError:  # no POSIX: two writers at once are not noticed
    fcntl = None  # type: ignore[assignment]


def write_folder(
    path: Path,
    layout: Layout,
    small: Mapping[str, bytes],
    fingerprint: Mapping[str, object],
    write: Callable[[Path, Sequence[Shard]], None],
    *,
    resume: bool,
) -> None:
    """Writes what of a checkpoint is not there yet.

    Args:
        path: of the folder; it is made, with those above it.
        layout: of the weights.
        small: names and contents of other files.
        fingerprint: what decides the bytes.
        write: writes shards into a folder, each renamed when it is whole.
        resume: whether whole shards that are there stay.

    Raises:
        ArgumentError: for a folder with other files in it, or one that was begun otherwise; for one
            that another process is writing to.
        OSError: for a folder that cannot be written to, a disk without room, ...
    """
    is_new = not path.exists()
    if not is_new and not path.is_dir():
        raise ArgumentError(f"{path} is a file: a checkpoint is a folder")
    path.mkdir(parents=True, exist_ok=True)
    sync_folder(path.parent)
    try:
        with _locked(path):
            begun = _check(path, fingerprint, resume=resume)
            _write(path, layout, small, fingerprint, write, begun=begun)
    finally:
        if is_new:
            with suppress(OSError):  # there is something in it
                path.rmdir()


def _check(path: Path, fingerprint: Mapping[str, object], *, resume: bool) -> bool:
    """Whether the folder has been begun."""
    names = sorted(one.name for one in path.iterdir())
    if not names or names == [RECORD + TEMPORARY]:
        return False
    if not resume:
        begun = ", which an earlier run has begun: resume goes on from it" * (RECORD in names)
        raise ArgumentError(f"{path} is not empty ({_some(names)}){begun}. Give another path")
    if RECORD not in names:
        raise ArgumentError(
            f"resume: {path} has files in it ({_some(names)}), and no {RECORD} that says how they "
            "were made. Give another path"
        )
    check_same(path / RECORD, fingerprint)
    return True


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _write(
    path: Path,
    layout: Layout,
    small: Mapping[str, bytes],
    fingerprint: Mapping[str, object],
    write: Callable[[Path, Sequence[Shard]], None],
    *,
    begun: bool,
) -> None:
    for shard in layout.shards:
        (path / (shard.filename + TEMPORARY)).unlink(missing_ok=True)
    left = [shard for shard in layout.shards if not (begun and is_whole(path, shard))]
    index = {} if layout.index_file is None else {INDEX: layout.index_file}
    others = {**small, **index}
    _check_room(path, left, sum(map(len, others.values())))
    try:
        if not begun:
            write_file(path / RECORD, write_record(fingerprint))
        if left or not _holds(path / INDEX, index.get(INDEX)):
            (path / INDEX).unlink(missing_ok=True)
        _write_missing(path, small)
        write(path, left)
        _write_missing(path, index)
    except BaseException:
        if not any((path / shard.filename).exists() for shard in layout.shards):
            for name in (*others, RECORD):
                (path / name).unlink(missing_ok=True)
        raise


def _write_missing(path: Path, files: Mapping[str, bytes]) -> None:
    for name, data in files.items():
        if not (path / name).exists():
            write_file(path / name, data)


def _holds(file: Path, data: bytes | None) -> bool:
    return file.exists() and file.read_bytes() == data


def is_whole(path: Path, shard: Shard) -> bool:
    """Whether a shard is there: it has its name only when all of it is on the disk."""
    file = path / shard.filename
    try:
        with file.open("rb") as opened:
            return (
                os.fstat(opened.fileno()).st_size == shard.size
                and opened.read(len(shard.header)) == shard.header
            )
    except FileNotFoundError:
        return False


def _check_room(path: Path, shards: Sequence[Shard], more: int) -> None:
    needed = more + sum(-(-shard.size // BLOCK) * BLOCK for shard in shards)
    free = shutil.disk_usage(path).free
    if shards and needed > free:
        raise ArgumentError(
            f"{path} needs {needed:,} bytes, and its disk has {free:,} free: nothing was written"
        )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keeps other processes that write to the same folder out, where the file system can."""
    number = os.open(path, os.O_RDONLY)
    try:
        if fcntl is not None:
            try:
                fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ArgumentError(f"another process is writing to {path}") from None
            except OSError:
                pass  # a file system without locks
        yield
    finally:
        os.close(number)
