"""The folder of a checkpoint: what is written in which order, and how an interrupted run resumes.

First comes ``torchinit.json``, the record of what decides the bytes, then the small files, then
shard after shard, each renamed once it is complete. The index, or the only shard, comes last: a
folder that has it is complete.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from torchinit.checkpoint.safetensors import BLOCK, INDEX, Layout, Shard
from torchinit.checkpoint.writer import TEMPORARY, sync_folder, write_file, write_shards
from torchinit.errors import ArgumentError
from torchinit.progress import progress

try:
    import fcntl
except ImportError:  # not POSIX: two writers at once go unnoticed
    fcntl = None  # type: ignore[assignment]

RECORD = "torchinit.json"

# What errors call the fields of the record: those whose values they show, and digests.
_VALUES = {
    "torchinit": "torchinit's version",
    "streams": "the version of the streams",
    "numbers": "whose numbers are used",
    "seed": "the seed",
    "dtype": "the dtype",
    "shard_size": "the shard size",
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
) -> None:
    """Writes what a checkpoint still lacks.

    Args:
        path: of the folder, which is made, with its parents.
        layout: of the weights.
        small: names and contents of the other files.
        record: what decides the bytes.
        resume: whether complete shards are kept.
        piece_size: bytes that are filled and written together.

    Raises:
        ArgumentError: for a folder with other files in it, or one that was begun with other
            arguments, or that another process is writing to; for too little room on the disk.
        OSError: for a folder that cannot be written to.
    """
    is_new = not path.exists()
    if not is_new and not path.is_dir():
        raise ArgumentError(f"{path} is a file: a checkpoint is a folder")
    path.mkdir(parents=True, exist_ok=True)
    sync_folder(path.parent)
    try:
        with _locked(path):
            begun = _is_begun(path, record, resume=resume)
            _write(path, layout, small, record, begun=begun, piece_size=piece_size)
    finally:
        if is_new:
            with suppress(OSError):  # not empty
                path.rmdir()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keeps other processes from writing to the folder, if the file system has locks."""
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


def _is_begun(path: Path, record: Mapping[str, object], *, resume: bool) -> bool:
    """Whether an earlier run has begun the folder, with the same record."""
    names = sorted(one.name for one in path.iterdir())
    if not names or names == [RECORD + TEMPORARY]:
        return False
    some = ", ".join(names[:3]) + ", ..." * (len(names) > 3)
    if not resume:
        begun = ", which an earlier run has begun: resume goes on from it" * (RECORD in names)
        raise ArgumentError(f"{path} is not empty ({some}){begun}. Give another path")
    if RECORD not in names:
        raise ArgumentError(
            f"resume: {path} has files in it ({some}), and no {RECORD} that says how they "
            "were made. Give another path"
        )
    try:
        there = json.loads((path / RECORD).read_bytes())
    except ValueError:
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
        raise ArgumentError(
            f"resume: {path} was begun otherwise: {differs}. Repeat its arguments, or give "
            "another path"
        )
    return True


def _write(
    path: Path,
    layout: Layout,
    small: Mapping[str, bytes],
    record: Mapping[str, object],
    *,
    begun: bool,
    piece_size: int,
) -> None:
    for shard in layout.shards:
        (path / (shard.filename + TEMPORARY)).unlink(missing_ok=True)
    left = [shard for shard in layout.shards if not (begun and is_complete(path, shard))]
    index = {} if layout.index_file is None else {INDEX: layout.index_file}
    others = {**small, **index}
    _check_room(path, left, sum(map(len, others.values())))
    try:
        if not begun:
            write_file(path / RECORD, (json.dumps(record, indent=2) + "\n").encode())
        if left or not _holds(path / INDEX, layout.index_file):
            (path / INDEX).unlink(missing_ok=True)
        _write_missing(path, small)
        if left:
            with progress("checkpoint", sum(shard.size for shard in left)) as advance:
                write_shards(path, left, advance, piece_size=piece_size)
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


def is_complete(path: Path, shard: Shard) -> bool:
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
