"""Reading checkpoints: what the index and the headers say, and where they differ.

Headers are read here and not by the safetensors library, which refuses a whole file for one dtype
that it does not know. Files are never trusted: whatever is wrong with them is an ``ArgumentError``.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor

from torchinit.checkpoint.safetensors import DTYPES, SUFFIX
from torchinit.errors import ArgumentError
from torchinit.untrusted import LARGEST_JSON, check_inside, first_names, parse_json, printable

_INDEX = f"{SUFFIX}.index.json"
_DTYPES = {
    **DTYPES, "F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
}  # fmt: skip
# What other files begin with, and what they are.
_STARTS = (
    (b"version https://git-lfs", "is a pointer of Git LFS, not the file: run git lfs pull"),
    (b"<", "is a web page or XML, not the file: download it again"),
    (b"PK", "is a zip archive, as torch.save writes: save it as safetensors"),
    (b"\x80", "is a pickle, as torch.save writes: save it as safetensors"),
    (b"GGUF", "is a GGUF file: give the safetensors checkpoint that it was made of"),
)
# Where a checkpoint may be, if not in the folder itself: below it, or in a cache of the hub.
_DEEPER = ("*", "snapshots/*", "models--*/snapshots/*")
_READ = 2**30  # bytes read at a time
# What a shape can be: dimensions, and values.
_DIMENSIONS, _LARGEST = 64, 2**62


class StoredTensor(NamedTuple):
    """A tensor in a checkpoint, and what reads its values."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    load: Callable[[], Tensor]


class Unmeasured(NamedTuple):
    """A tensor, or a file of tensors, that a report does not have, and why."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


class _Entry(NamedTuple):
    """A tensor as the header of a file has it; its bytes begin and end there in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_checkpoint(path: Path) -> tuple[list[StoredTensor], list[Unmeasured]]:
    """The tensors of a checkpoint in the order of the model, and what is not among them.

    With an index, the tensors are those that it names. No values are read yet.

    Args:
        path: a safetensors file, an index, or a directory with one of them.

    Raises:
        ArgumentError: if there is no checkpoint at the path, or it is damaged.
        OSError: if a file cannot be read.
    """
    files, index, unmeasured = _files(path)
    entries = [(file, entry) for file in files for entry in _in_order(_header(file))]
    found: dict[str, list[Path]] = {}
    for file, entry in entries:
        found.setdefault(entry.name, []).append(file)
    for name, several in found.items():
        if len(several) > 1:
            names = " and ".join(printable(file.name) for file in several)
            raise ArgumentError(f"{printable(path)} has {name!r} in {names}: remove one of them")
    tensors: list[StoredTensor] = []
    for file, entry in entries:
        if index is not None and index.get(entry.name) != file.name:
            reason = f"is in {file.name}, and not in the index"
            if entry.name in index:
                reason = f"is in {file.name}, and in {index[entry.name]} by the index"
            unmeasured.append(Unmeasured(entry.name, reason))
        elif entry.dtype not in _DTYPES:
            unmeasured.append(
                Unmeasured(entry.name, f"has dtype {entry.dtype}, which is not measured")
            )
        else:
            dtype = _DTYPES[entry.dtype]
            load = partial(_load, file, entry.begin, entry.end - entry.begin, dtype, entry.shape)
            tensors.append(StoredTensor(entry.name, entry.shape, dtype, load))
    for name, filename in (index or {}).items():
        if name not in found:
            unmeasured.append(Unmeasured(name, f"is in {filename} by the index, and in no file"))
    if not tensors and not unmeasured:
        raise ArgumentError(f"{printable(path)} is a checkpoint without tensors")
    return _encoders_first(tensors), unmeasured


# Files.


def _files(path: Path) -> tuple[list[Path], dict[str, str] | None, list[Unmeasured]]:
    """The files to read, what the index says if there is one, and files that it does not name."""
    said = printable(path)
    if path.is_file():
        if path.name.endswith(_INDEX):
            files, index = _indexed(path)
            return files, index, []
        if path.suffix != SUFFIX:
            raise ArgumentError(
                f"{said} is not a checkpoint: expected a directory, a {SUFFIX} file or its index"
            )
        return [path], None, []
    if not path.is_dir():
        raise ArgumentError(f"no such checkpoint: {said}")
    indices = _ending(path, _INDEX)
    if len(indices) > 1:
        raise ArgumentError(
            f"{said} has {len(indices)} indices of shards: give one, such as "
            f"{printable(path / indices[0])}"
        )
    if indices:
        check_inside(path / indices[0], path)
        files, index = _indexed(path / indices[0])
        extra = sorted(set(_ending(path, SUFFIX)) - set(index.values()))
        reason = "is in the folder, and not in the index: give the index to leave it out"
        return files, index, [Unmeasured(name, reason) for name in extra]
    names = _ending(path, SUFFIX)
    if len(names) > 1:
        best = f"model{SUFFIX}" if f"model{SUFFIX}" in names else names[0]
        raise ArgumentError(
            f"{said} has {len(names)} files {SUFFIX} and no index: give one, such as "
            f"{printable(path / best)}"
        )
    if not names:
        below = next((one for one in map(partial(_below, path), _DEEPER) if one), None)
        where = f": give {printable(below)}" if below else ""
        raise ArgumentError(f"{said} is not a checkpoint: it has no {SUFFIX} file{where}")
    check_inside(path / names[0], path)
    return [path / names[0]], None, []


def _ending(folder: Path, suffix: str) -> list[str]:
    """The names of the files of a folder that end so, in natural order."""
    names = (file.name for file in folder.iterdir() if file.name.endswith(suffix))
    return sorted((name for name in names if (folder / name).is_file()), key=_natural)


def _below(folder: Path, pattern: str) -> Path | None:
    """A folder below that has files of safetensors."""
    return next((file.parent for file in sorted(folder.glob(f"{pattern}/*{SUFFIX}"))), None)


def _indexed(index: Path) -> tuple[list[Path], dict[str, str]]:
    """The shards that an index names, and the shard of each tensor.

    Only files that a listing of the folder has are read, so no name leads elsewhere.
    """
    said = printable(index)
    if index.stat().st_size > LARGEST_JSON:
        raise ArgumentError(f"{said} is not an index: it has more than {LARGEST_JSON:,} bytes")
    found = parse_json(index.read_bytes(), index)
    shards = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(shards, dict) or not all(isinstance(one, str) for one in shards.values()):
        raise ArgumentError(
            f"{said} is not an index of shards: its weight_map must be an object that names the "
            "file of each tensor"
        )
    if not shards:
        raise ArgumentError(f"{said} names no tensors: its weight_map is empty")
    names = sorted(set(shards.values()), key=_natural)
    there = set(_ending(index.parent, SUFFIX))
    missing = [repr(name) for name in names if name not in there]
    if missing:
        raise ArgumentError(
            f"{said} names shards that are not in its folder: {first_names(missing)}"
        )
    for name in names:
        check_inside(index.parent / name, index.parent)
    return [index.parent / name for name in names], shards


# Headers.


def _header(file: Path) -> list[_Entry]:
    """The tensors of a file, in the order of their values."""
    said, size = printable(file), file.stat().st_size
    with file.open("rb") as opened:
        start = opened.read(64)
        length = int.from_bytes(start[:8], "little")
        if not 2 <= length <= min(size - 8, LARGEST_JSON):
            raise ArgumentError(f"{said} cannot be read: {_sniff(start, length, size)}")
        opened.seek(8)
        header = parse_json(opened.read(length), f"the header of {printable(file)}")
    if not isinstance(header, dict):
        raise ArgumentError(f"{said} cannot be read: its header is not a JSON object")
    entries = [_entry(said, n, one) for n, one in header.items() if n != "__metadata__"]
    entries.sort(key=lambda entry: (entry.begin, entry.end))
    ends = [0, *(entry.end for entry in entries)]
    for (name, *_, begin, _), end in zip(entries, ends, strict=False):
        if begin != end:
            raise ArgumentError(
                f"{said} cannot be read: {name!r} begins at {begin:,}, and what is before it ends "
                f"at {end:,}"
            )
    values = size - 8 - length
    if ends[-1] != values:
        cut = "it is cut off: " if ends[-1] > values else ""
        raise ArgumentError(
            f"{said} cannot be read: {cut}it has {values:,} bytes of values, and its header says "
            f"{ends[-1]:,}"
        )
    first = 8 + length
    return [one._replace(begin=first + one.begin, end=first + one.end) for one in entries]


def _sniff(start: bytes, length: int, size: int) -> str:
    """What is wrong with a file whose header cannot be as long as it says."""
    for what, reason in _STARTS:
        if start.lstrip().startswith(what):
            return f"it {reason}"
    if size < 8:
        return f"it has {size} bytes" if size else "it is empty"
    return (
        f"it is not a safetensors file, or cut off: its header would have {length:,} bytes, and "
        f"the file has {size:,}"
    )


def _entry(said: str, name: str, entry: Any) -> _Entry:
    """Checks what a header says of a tensor."""
    fields = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = map(fields.get, ("dtype", "shape", "data_offsets"))
    if (
        isinstance(dtype, str)
        and _are_sizes(shape)
        and _are_sizes(offsets)
        and len(offsets) == 2
        and offsets[0] <= offsets[1]
    ):
        nbytes = offsets[1] - offsets[0]
        is_right = dtype not in _DTYPES or nbytes == math.prod(shape) * _DTYPES[dtype].itemsize
        if is_right and math.prod(size or 1 for size in shape) < _LARGEST:
            return _Entry(name, dtype, tuple(shape), *offsets)
    raise ArgumentError(
        f"{said} cannot be read: its header says of {name!r}: {printable(reprlib.repr(entry))}"
    )


def _are_sizes(sizes: object) -> TypeGuard[list[int]]:
    """Whether this is a list of a few numbers that a tensor can have as sizes."""
    return (
        isinstance(sizes, list)
        and len(sizes) <= _DIMENSIONS
        and all(type(size) is int and 0 <= size < _LARGEST for size in sizes)
    )


def _load(file: Path, begin: int, nbytes: int, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
    if not nbytes:
        return torch.empty(shape, dtype=dtype)
    values = bytearray(nbytes)
    view = memoryview(values)
    with file.open("rb", buffering=0) as opened:
        opened.seek(begin)
        done = 0
        while done < nbytes:
            count = opened.readinto(view[done : done + _READ])
            if not count:
                raise OSError(f"{printable(file)} was cut off while it was read")
            done += count
    return torch.frombuffer(values, dtype=dtype).view(shape)


# Order.


def _natural(name: str) -> list[tuple[int, int, str]]:
    """A key that sorts numbers in names by their size."""
    return [
        (1, len(digits.lstrip("0")), digits.lstrip("0")) if digits else (0, 0, text)
        for text, digits in re.findall(r"(\D+)|(\d+)", name)
    ]


def _in_order(entries: list[_Entry]) -> list[_Entry]:
    """The order of the values; by names if the library sorted them, which it does by dtype."""
    by_dtype: dict[str, list[str]] = {}
    for entry in entries:
        by_dtype.setdefault(entry.dtype, []).append(entry.name)
    if all(names == sorted(names) for names in by_dtype.values()):
        return sorted(entries, key=lambda entry: _natural(entry.name))
    return entries


def _encoders_first(tensors: list[StoredTensor]) -> list[StoredTensor]:
    """Moves decoders behind the last encoder."""
    parts = [_part(tensor.name) for tensor in tensors]
    if "encoder" not in parts or "decoder" not in parts:
        return tensors
    first, last = parts.index("decoder"), len(parts) - parts[::-1].index("encoder")
    if first >= last:
        return tensors
    middle = sorted(tensors[first:last], key=lambda tensor: _part(tensor.name) == "decoder")
    return [*tensors[:first], *middle, *tensors[last:]]


def _part(name: str) -> str:
    """Whether a name is of an encoder or a decoder; else an empty string."""
    return next((part for part in name.split(".") if part in ("encoder", "decoder")), "")
