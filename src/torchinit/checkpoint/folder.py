"""The folder of a checkpoint: what is written in which order, and how an interrupted run resumes.

First comes ``torchinit.json``, the record of what decides the bytes, then the small files, then
shard after shard, each renamed once it is complete. The index, or the only shard, comes last: a
folder that has it is complete.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from torchinit.checkpoint.safetensors import BLOCK, INDEX, Layout, Shard
from torchinit.checkpoint.writer import TEMPORARY, sync_folder, write_file
from torchinit.errors import ArgumentError
from torchinit.models.init_model import Prepared
from torchinit.native import load
from torchinit.streams.named_keys import check_seed
from torchinit.values.kinds import digest
from torchinit.values.region import Part
from torchinit.version import STREAM_VERSION, __version__

try:
    import fcntl
except ImportError:  # not POSIX: two writers at once go unnoticed
    fcntl = None  # type: ignore[assignment]

RECORD = "torchinit.json"

# What errors call each field of the record.
_WORDS = {
    "torchinit": "torchinit's version",
    "streams": "the version of the streams",
    "numbers": "whose numbers are used",
    "seed": "the seed",
    "dtype": "the dtype",
    "shard_size": "the shard size",
    "config": "the config",
    "tensors": "the names, shapes or dtypes of the tensors",
    "rules": "the rules, or what the model's own initialisation does",
}


# The order.


def write_folder(
    path: Path,
    layout: Layout,
    small: Mapping[str, bytes],
    fingerprint: Mapping[str, object],
    write: Callable[[Path, Sequence[Shard]], None],
    *,
    resume: bool,
) -> None:
    """Writes what a checkpoint still lacks.

    Args:
        path: of the folder, which is made, with its parents.
        layout: of the weights.
        small: names and contents of the other files.
        fingerprint: what decides the bytes.
        write: writes shards into a folder.
        resume: whether complete shards are kept.

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
            begun = _check(path, fingerprint, resume=resume)
            _write(path, layout, small, fingerprint, write, begun=begun)
    finally:
        if is_new:
            with suppress(OSError):  # not empty
                path.rmdir()


def _check(path: Path, fingerprint: Mapping[str, object], *, resume: bool) -> bool:
    """Whether an earlier run has begun the folder."""
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
    _check_same(path / RECORD, fingerprint)
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
    left = [shard for shard in layout.shards if not (begun and is_complete(path, shard))]
    index = {} if layout.index_file is None else {INDEX: layout.index_file}
    others = {**small, **index}
    _check_room(path, left, sum(map(len, others.values())))
    try:
        if not begun:
            write_file(path / RECORD, (json.dumps(fingerprint, indent=2) + "\n").encode())
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


def is_complete(path: Path, shard: Shard) -> bool:
    """Whether a shard is on the disk: it has its name only once all of it is."""
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


# The record.


def fingerprint_of(
    prepared: Prepared,
    layout: Layout,
    *,
    seed: int,
    dtype: torch.dtype | None,
    shard_size: int,
    config: bytes | None,
    rules_source: bytes | None,
) -> dict[str, object]:
    """What decides the bytes of a checkpoint.

    Args:
        prepared: what each tensor is filled with.
        layout: of the files.
        seed, dtype, shard_size: as given.
        config: as it is stored; None for a model without one.
        rules_source: the text of the rules; without it, callables are compared by their own.
    """
    tensors = (f"{shard.filename} {shard.size}".encode() + shard.header for shard in layout.shards)
    return {
        "torchinit": __version__,
        "streams": STREAM_VERSION,
        "numbers": "torchinit" if load.module is not None else f"torch {torch.__version__}",
        "seed": check_seed(seed),
        "dtype": None if dtype is None else str(dtype).removeprefix("torch."),
        "shard_size": shard_size,
        "config": None if config is None else digest([_without_version(config)]),
        "tensors": digest(tensors),
        "rules": digest(_contents(prepared, rules_source)),
    }


def _check_same(path: Path, fingerprint: Mapping[str, object]) -> None:
    """Raises ArgumentError if a record is of another checkpoint, and says what differs."""
    try:
        there = json.loads(path.read_bytes())
    except ValueError:
        there = None
    if not isinstance(there, dict):
        raise ArgumentError(f"{path} cannot be read: remove the folder, and write it again")
    differs = [key for key in fingerprint if there.get(key) != fingerprint[key]]
    if differs:
        said = "; ".join(_difference(key, there.get(key), fingerprint[key]) for key in differs)
        raise ArgumentError(
            f"resume: {path.parent} was begun otherwise: {said}. Repeat its "
            "arguments, or give another path"
        )


def _difference(key: str, there: object, asked: object) -> str:
    if key in ("config", "tensors", "rules"):
        return f"{_WORDS[key]} differ" if key != "config" else "the config differs"
    return f"{_WORDS[key]} ({there} there, {asked} asked for)"


def _without_version(config: bytes) -> bytes:
    """A config without the version of Transformers that wrote it."""
    said = json.loads(config)
    said.pop("transformers_version", None)
    return json.dumps(said, sort_keys=True).encode()


def _contents(prepared: Prepared, rules_source: bytes | None) -> Iterator[bytes]:
    for one in prepared.assignments:
        yield repr((one.named.name, one.draw, list(one.pads))).encode()
        for part in one.parts:
            yield _content(part, rules_source)
    for one in prepared.filled:
        yield one.named.name.encode()
        yield from (_content(part, rules_source) for part in one.parts)


def _content(part: Part, rules_source: bytes | None) -> bytes:
    values = part.values
    said = values.fingerprint()
    if values.function is not None and rules_source is not None:
        said = rules_source
    return repr((part.region, type(values).__name__, said)).encode()
