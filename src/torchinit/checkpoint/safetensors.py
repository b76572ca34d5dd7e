"""The safetensors format: how a checkpoint is split into files, their headers, and reading them.

A file is eight bytes with the length of the header, the header in JSON, and the values without
gaps. The header is padded with spaces so that the values begin at a whole block of the file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from torchinit.checkpoint.values import Entry
from torchinit.errors import ArgumentError

BLOCK = 4096  # bytes: O_DIRECT wants offsets, sizes and memory in multiples of it
SUFFIX = ".safetensors"
INDEX = f"model{SUFFIX}.index.json"
_METADATA = {"format": "pt"}
_UNITS = {"TB": 10**12, "GB": 10**9, "MB": 10**6, "KB": 10**3}
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "C64": torch.complex64,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


# Writing.


class Placed(NamedTuple):
    """A tensor and where its bytes lie in a file."""

    entry: Entry
    begin: int
    end: int


class Shard(NamedTuple):
    """One file.

    Attributes:
        filename: of it.
        header: its first bytes, up to the values.
        placed: its tensors, in order.
        size: in bytes.
    """

    filename: str
    header: bytes
    placed: Sequence[Placed]
    size: int


class Layout(NamedTuple):
    """The files of a checkpoint.

    Attributes:
        shards: of the weights.
        index_file: that names the shard of each tensor; None where there is one shard.
    """

    shards: Sequence[Shard]
    index_file: bytes | None

    @property
    def nbytes(self) -> int:
        """Of all shards."""
        return sum(shard.size for shard in self.shards)

    @property
    def entries(self) -> Iterator[Entry]:
        """All tensors, in order."""
        return (placed.entry for shard in self.shards for placed in shard.placed)


def lay_out(entries: Sequence[Entry], shard_size: int | str, parameters: int) -> Layout:
    """Splits tensors into shards, as Transformers does, and finds the place of each.

    Wide dtypes come first, so that all tensors are aligned: with one dtype the order stays.

    Args:
        entries: all tensors; those of one parameter are neighbours.
        shard_size: bytes of values in a file, or a string as ``"5GB"``; a tensor that is larger has
            a file of its own.
        parameters: how many values all parameters have, for the index.

    Raises:
        ArgumentError: for no tensors, a dtype that safetensors has not, a bad shard_size.
    """
    try:
        from huggingface_hub import split_torch_state_dict_into_shards
    except ImportError as error:
        raise ImportError(
            f"a checkpoint needs huggingface_hub: pip install 'torchinit[checkpoint]' ({error})"
        ) from None
    if not entries:
        raise ArgumentError("the model has no parameters: there is nothing to write")
    for entry in entries:
        if entry.dtype not in _NAMES:
            raise ArgumentError(
                f"{entry.name!r} has dtype {entry.dtype}, which safetensors has not"
            )
    ordered = sorted(entries, key=lambda entry: -entry.dtype.itemsize)
    by_name = {entry.name: entry for entry in ordered}
    metas: dict[str, Tensor] = {
        entry.name: torch.empty(entry.shape, dtype=entry.dtype, device="meta") for entry in ordered
    }
    split = split_torch_state_dict_into_shards(
        metas, filename_pattern=f"model{{suffix}}{SUFFIX}", max_shard_size=checked_size(shard_size)
    )
    shards = [
        _shard(filename, [by_name[name] for name in names])
        for filename, names in split.filename_to_tensors.items()
    ]
    if not split.is_sharded:
        return Layout(shards, None)
    said = {
        "metadata": {"total_parameters": parameters, **split.metadata},
        "weight_map": split.tensor_to_filename,
    }
    return Layout(shards, (json.dumps(said, indent=2, sort_keys=True) + "\n").encode())


def checked_size(shard_size: int | str) -> int:
    """A size in bytes.

    Raises:
        ArgumentError: for what is no positive size.
        TypeError: for what is no number or string.
    """
    number = shard_size
    if isinstance(number, str):
        found = re.fullmatch(r"\s*(\d+\.?\d*)\s*([TGMK]B)\s*", number, re.IGNORECASE)
        if found is None:
            raise ArgumentError(
                f"shard_size={shard_size!r} must be a number with a unit, as '5GB' (TB, GB, MB, KB)"
            )
        number = int(float(found[1]) * _UNITS[found[2].upper()])
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"shard_size={shard_size!r} must be bytes, or a string as '5GB'")
    if number <= 0:
        raise ArgumentError(f"shard_size={shard_size!r} must be positive")
    return number


def _shard(filename: str, entries: Sequence[Entry]) -> Shard:
    spans: list[tuple[int, int]] = []
    end = 0
    for entry in entries:
        spans.append((end, end + entry.nbytes))
        end += entry.nbytes
    header = _header(
        {
            entry.name: {
                "dtype": _NAMES[entry.dtype],
                "shape": list(entry.shape),
                "data_offsets": list(span),
            }
            for entry, span in zip(entries, spans, strict=True)
        }
    )
    begin = len(header)
    placed = [
        Placed(entry, begin + span[0], begin + span[1])
        for entry, span in zip(entries, spans, strict=True)
    ]
    return Shard(filename, header, placed, begin + end)


def _header(tensors: Mapping[str, object]) -> bytes:
    said = json.dumps({"__metadata__": _METADATA, **tensors}, separators=(",", ":")).encode()
    length = -(-(8 + len(said)) // BLOCK) * BLOCK - 8
    return length.to_bytes(8, "little") + said.ljust(length)


# Reading.


class Held(NamedTuple):
    """A tensor in a checkpoint: its name, shape, dtype, and what reads it."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    load: Callable[[], Tensor]


def read_checkpoint(path: Path) -> list[Held]:
    """The tensors of a checkpoint; the values of each are read only when they are asked for.

    Args:
        path: a safetensors file, or a directory with one, or with shards and their index.

    Raises:
        ArgumentError: if there is no checkpoint at the path, or a shard is missing.
        ImportError: without the safetensors library.
    """
    held = [one for file in _files(path) for one in _read(file)]
    if len({one.name for one in held}) < len(held):
        raise ArgumentError(f"{path} has tensors of one name in several files")
    return held


def _files(path: Path) -> Sequence[Path]:
    if path.is_file():
        if path.suffix != SUFFIX:
            raise ArgumentError(f"{path} is no checkpoint: expected a directory or a file {SUFFIX}")
        return [path]
    if not path.is_dir():
        raise ArgumentError(f"no such checkpoint: {path}")
    indices = sorted(path.glob(f"*{SUFFIX}.index.json"))
    if len(indices) > 1:
        raise ArgumentError(f"{path} has {len(indices)} indices of shards: name one file")
    if indices:
        return _indexed(indices[0])
    files = sorted(path.glob(f"*{SUFFIX}"))
    if len(files) != 1:
        what = f"{len(files)} files {SUFFIX} and no index" if files else f"no file {SUFFIX}"
        raise ArgumentError(f"{path} is no checkpoint: it has {what}")
    return files


def _indexed(index: Path) -> Sequence[Path]:
    try:
        shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ArgumentError(f"{index} is no index of shards: {error!r}") from None
    missing = [name for name in shards if not (index.parent / name).is_file()]
    if missing:
        raise ArgumentError(f"{index} names shards that are not there: {', '.join(missing)}")
    return [index.parent / name for name in shards]


def _read(file: Path) -> list[Held]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise ImportError(
            "reading checkpoints needs safetensors: pip install 'torchinit[report]'"
        ) from None
    held = []
    try:
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (no mapping)
                part = opened.get_slice(name)
                kind = part.get_dtype()
                if kind not in _DTYPES:
                    raise ArgumentError(f"{file}: {name!r} has dtype {kind}, which is not known")
                shape = tuple(part.get_shape())
                held.append(Held(name, shape, _DTYPES[kind], partial(_load, file, name)))
    except SafetensorError as error:
        raise ArgumentError(f"{file} cannot be read: {error}") from None
    return held


def _load(file: Path, name: str) -> Tensor:
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        return opened.get_tensor(name)  # type: ignore[no-any-return]
