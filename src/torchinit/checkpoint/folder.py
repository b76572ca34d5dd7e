"""The folder of a checkpoint: what is written in which order, and how an interrupted run resumes.

First comes ``torchinit.json``, the record of what decides the bytes, then the small files, then
shard after shard, each renamed once it is complete. The index, or the only shard, comes last: a
folder that has it is complete.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from pathlib import Path

from torchinit.checkpoint.safetensors import BLOCK, INDEX, LAST, Layout, Shard
from torchinit.checkpoint.writer import finished_name, sync_folder, write_file, write_shards
from torchinit.errors import ArgumentError
from torchinit.progress import progress

try:
    import fcntl
except ImportError:  # not POSIX: two writers at once go unnoticed
    fcntl = None  # type: ignore[assignment]

RECORD = "torchinit.json"
# Errors from file systems that have no locks.
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)

# What errors call the fields of the record: those whose values they show, and digests.
_VALUES = {
    "torchinit": "torchinit's version",
    "streams": "the version of the streams",
    "numbers": "whose numbers are used",
    "seed": "the seed",
    "dtype": "the dtype",
    "shard_size": "the shard size",
    "layout": "the layout",
    "formats": "the formats",
}
_DIGESTS = {
    "config": "the config differs",
    "tensors": "the names, shapes or dtypes of the tensors differ",
    "rules": "the rules, or what the model's own initialisation does, differ",
}


def write_folder(
    path: Path,
    layout: Layout,
    small: Mapping[str, bytes],
    record: Mapping[str, object],
    *,
    resume: bool,
    piece_size: int,
) -> bool:
    """Writes what a checkpoint still lacks.

    Args:
        path: of the folder, which is made, with its parents.
        layout: of the weights.
        small: names and contents of the other files.
        record: what decides the bytes.
        resume: whether complete files are kept.
        piece_size: bytes that are filled and written together.

    Returns:
        Whether anything was lacking.

    Raises:
        ArgumentError: for a folder with other files in it, or one that was begun with other
            arguments, or that another process is writing to; for too little room on the disk.
        OSError: for a folder that cannot be written to.
    """
    index = {} if layout.index_file is None else {INDEX: layout.index_file}
    names = {RECORD, *small, *index, *(shard.filename for shard in layout.shards)}
    with _made(path) as is_locked:
        begun = _is_begun(path, names, record, resume=resume)
        if is_locked:
            for file in [one for one in path.iterdir() if finished_name(one.name) in names]:
                file.unlink(missing_ok=True)
        lacking = [
            name for name, data in {**small, **index}.items() if not _holds(path / name, data)
        ]
        left = [shard for shard in layout.shards if not (begun and _is_complete(path, shard))]
        if begun and not left and not lacking:
            return False
        _check_room(path, left, sum(len(data) for data in (*small.values(), *index.values())))
        try:
            if not begun:
                _write_record(path, record, is_locked=is_locked)
            if left and is_locked:  # otherwise another writer may just have finished
                for name in index:
                    (path / name).unlink(missing_ok=True)
            _write_lacking(path, small)
            if left:
                with progress("checkpoint", sum(shard.size for shard in left)) as advance:
                    write_shards(path, left, advance, piece_size=piece_size)
            _write_lacking(path, index)
        except BaseException:
            if is_locked and not begun:
                with suppress(OSError):
                    _undo(path, names, layout)
            raise
        return True


@contextmanager
def _made(path: Path) -> Iterator[bool]:
    """Makes a folder, and keeps other processes from writing to it.

    Yields:
        Whether it does: some file systems have no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new, number, is_locked = _open(path)
    try:
        if is_new:
            sync_folder(path.parent)
        yield is_locked
    finally:
        if is_new and is_locked:  # others would be writing to it without a lock
            with suppress(OSError):  # not empty
                path.rmdir()
        with suppress(OSError):
            if is_locked:
                fcntl.flock(number, fcntl.LOCK_UN)  # closing is not enough after a fork
            os.close(number)


def _open(path: Path) -> tuple[bool, int, bool]:
    """Whether a folder is new, its file descriptor, and whether it is locked."""
    for _ in range(9):
        is_new = True
        try:
            path.mkdir()
        except OSError as error:
            if not path.is_dir():
                if isinstance(error, FileExistsError):
                    raise ArgumentError(f"{path} is a file: a checkpoint is a folder") from None
                raise
            is_new = False
        with suppress(FileNotFoundError):
            number = os.open(path, os.O_RDONLY)
            try:
                is_locked = _lock(number, path)
                if os.path.samestat(os.fstat(number), path.stat()):
                    return is_new, number, is_locked
            except BaseException:
                os.close(number)
                raise
            os.close(number)
        # Another process that had made it failed, and has removed it.
    raise ArgumentError(f"another process removes {path} again and again")


def _lock(number: int, path: Path) -> bool:
    if fcntl is None:
        return False
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ArgumentError(f"another process is writing to {path}") from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return False
    return True


def _is_begun(path: Path, ours: Set[str], record: Mapping[str, object], *, resume: bool) -> bool:
    """Whether an earlier run has begun the folder, with the same record."""
    names = sorted(one.name for one in path.iterdir())
    if all(finished_name(name) in ours for name in names):
        return False
    some = ", ".join(names[:3]) + ", ..." * (len(names) > 3)
    is_finished = any(name in names for name in LAST)
    if RECORD not in names:
        if not resume:
            raise ArgumentError(f"{path} is not empty ({some}). Give another path")
        raise ArgumentError(
            f"resume=True: {path} has files in it ({some}), and no {RECORD} that says how "
            "they were made. Give another path"
        )
    if not resume:
        if is_finished:
            raise ArgumentError(f"{path} holds a finished checkpoint ({some}). Give another path")
        raise ArgumentError(
            f"{path} holds an unfinished checkpoint ({some}). Go on with resume=True, or give "
            "another path"
        )
    _check_record(path, record, is_finished=is_finished)
    return True


def _check_record(path: Path, record: Mapping[str, object], *, is_finished: bool) -> None:
    try:
        there = json.loads((path / RECORD).read_bytes())
    except (ValueError, RecursionError):
        there = None
    if not isinstance(there, dict):
        raise ArgumentError(
            f"{path / RECORD} cannot be read: remove the folder, and write it again"
        )
    differs = "; ".join(
        _DIGESTS.get(key) or f"{_VALUES[key]} ({there.get(key)} there, {asked} asked for)"
        for key, asked in record.items()
        if there.get(key) != asked
    )
    if differs:
        standing = "was begun with other arguments"
        if is_finished:
            standing = "holds a finished checkpoint of other arguments"
        raise ArgumentError(
            f"resume=True: {path} {standing}: {differs}. Repeat its arguments, or give another path"
        )


def _write_record(path: Path, record: Mapping[str, object], *, is_locked: bool) -> None:
    data = (json.dumps(record, indent=2) + "\n").encode()
    try:
        write_file(path / RECORD, data, is_first=not is_locked)
    except FileExistsError:  # of another process, which has begun meanwhile
        _check_record(path, record, is_finished=False)


def _write_lacking(path: Path, files: Mapping[str, bytes]) -> None:
    for name, data in files.items():
        if not _holds(path / name, data):
            if (path / name).exists():
                warnings.warn(
                    f"{path / name} had other contents, and is written again", stacklevel=2
                )
            write_file(path / name, data)


def _holds(file: Path, data: bytes) -> bool:
    try:
        return file.read_bytes() == data
    except FileNotFoundError:
        return False


def _undo(path: Path, names: Set[str], layout: Layout) -> None:
    """Removes what a run that has begun a folder wrote, unless a shard is complete.

    The record goes last, and only if nothing else is left.
    """
    if any((path / shard.filename).exists() for shard in layout.shards):
        return
    for name in names - {RECORD}:
        (path / name).unlink(missing_ok=True)
    if [one.name for one in path.iterdir()] == [RECORD]:
        (path / RECORD).unlink()


def _is_complete(path: Path, shard: Shard) -> bool:
    """Whether a shard is on the disk: it has its name only once all of it is."""
    try:
        with (path / shard.filename).open("rb") as opened:
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
