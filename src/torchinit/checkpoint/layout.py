"""Which bytes lie where: the shards of a checkpoint, and the header of each.

The format is that of safetensors: eight bytes with the header's length, the header in JSON, padded
with spaces so that values begin at a whole block of the file, and the values without gaps.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from torchinit.checkpoint.values import Values
from torchinit.errors import ArgumentError

BLOCK = 4096  # bytes: what O_DIRECT wants places, sizes and memory in multiples of
_PATTERN = "model{suffix}.safetensors"
INDEX = "model.safetensors.index.json"
_METADATA = {"format": "pt"}
_UNITS = {"TB": 10**12, "GB": 10**9, "MB": 10**6, "KB": 10**3}
_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.complex64: "C64",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16", torch.uint8: "U8",
    torch.bool: "BOOL",
}  # fmt: skip


class Entry(NamedTuple):
    """A tensor of a checkpoint.

    Attributes:
        name: in the file.
        shape: there.
        values: that it is of.
        of: name of the parameter or buffer whose values these are.
        first: index in them of the tensor's first value, if it is a range of them.
        strides: of a view of them that is none; values are made as a whole then.
    """

    name: str
    shape: tuple[int, ...]
    values: Values
    of: str
    first: int
    strides: tuple[int, ...] | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Of the values."""
        return self.values.dtype

    @property
    def numel(self) -> int:
        """How many values it has."""
        return torch.Size(self.shape).numel()

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.numel * self.dtype.itemsize

    @property
    def needs_whole(self) -> bool:
        """Whether all values of the parameter are made for it."""
        return self.numel > 0 and (self.values.is_whole or self.strides is not None)


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
        if entry.dtype not in _DTYPES:
            raise ArgumentError(
                f"{entry.name!r} has dtype {entry.dtype}, which safetensors has not"
            )
    ordered = sorted(entries, key=lambda entry: -entry.dtype.itemsize)
    by_name = {entry.name: entry for entry in ordered}
    metas: dict[str, Tensor] = {
        entry.name: torch.empty(entry.shape, dtype=entry.dtype, device="meta") for entry in ordered
    }
    split = split_torch_state_dict_into_shards(
        metas, filename_pattern=_PATTERN, max_shard_size=checked_size(shard_size)
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
                "dtype": _DTYPES[entry.dtype],
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
