"""The safetensors format: how a checkpoint is split into files, and their headers.

A file is eight bytes with the length of the header, the header in JSON, and the values without
gaps. The header is padded with spaces so that the values begin at a whole block of the file.
"""

from __future__ import annotations

import collections
import json
import math
import re
from collections.abc import Callable, Sequence
from itertools import accumulate, groupby, pairwise
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from torchinit.errors import ArgumentError, shown

BLOCK = 4096  # bytes: O_DIRECT wants offsets, sizes and memory in multiples of it
SUFFIX = ".safetensors"
INDEX = f"model{SUFFIX}.index.json"
LAST = (INDEX, f"model{SUFFIX}")  # what is written last: the index, or the only shard
_METADATA = {"format": "pt"}
_MOST_HEADER = 100_000_000  # bytes that readers take
_UNITS = {"TB": 10**12, "GB": 10**9, "MB": 10**6, "KB": 10**3}
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
    "C64": torch.complex64,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


# Writing.


class FileTensor(NamedTuple):
    """A tensor of a file: all of a parameter or buffer, a view of it, or scales of one.

    Attributes:
        name: in the file.
        shape: in the file.
        dtype: of the values.
        of: the name of the parameter or buffer.
        make: makes all its values; of a quantised one the payload, the scales of blocks, and that
            of the whole.
        fill: fills a contiguous vector with the tensor's values from an index on, in row-major
            order; None if that takes all values of the parameter.
        first: index of the tensor's first value in the parameter.
        strides: of a view that is not contiguous; else None.
        part: which of the tensors that ``make`` returns it is of.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    of: str
    make: Callable[[], Tensor | tuple[Tensor, ...]]
    fill: Callable[[Tensor, int], object] | None = None
    first: int = 0
    strides: tuple[int, ...] | None = None
    part: int = 0

    @property
    def numel(self) -> int:
        """How many values it has."""
        return math.prod(self.shape)

    @property
    def needs_whole(self) -> bool:
        """Whether all values of the parameter are made for it."""
        return self.fill is None and self.numel > 0


class PlacedTensor(NamedTuple):
    """A tensor, and where its bytes begin and end in a file."""

    tensor: FileTensor
    begin: int
    end: int


class Shard(NamedTuple):
    """One file.

    Attributes:
        filename: without the folder.
        header: its first bytes, up to the values.
        placed: its tensors, in order.
        size: in bytes.
    """

    filename: str
    header: bytes
    placed: Sequence[PlacedTensor]
    size: int


class Layout(NamedTuple):
    """The files of a checkpoint.

    Attributes:
        shards: hold the weights.
        index_file: names the shard of each tensor; None if there is one shard.
    """

    shards: Sequence[Shard]
    index_file: bytes | None

    @property
    def nbytes(self) -> int:
        """Of all shards."""
        return sum(shard.size for shard in self.shards)


def has_files(folder: Path) -> bool:
    """Whether a folder has files of a checkpoint."""
    return any(file.suffix == SUFFIX for file in folder.iterdir())


def lay_out(tensors: Sequence[FileTensor], shard_size: int, parameters: int) -> Layout:
    """Splits tensors into shards, as Transformers does, and finds the place of each.

    Wide dtypes come first, so that all tensors are aligned; with one dtype the order is kept.
    Payload and scales of a weight stay together where that aligns them.

    Args:
        tensors: of the checkpoint; those of one parameter are neighbours.
        shard_size: bytes of values in a file; a larger tensor gets a file of its own.
        parameters: how many values all parameters have, for the index.

    Raises:
        ArgumentError: for no tensors, two of one name, or a dtype that safetensors lacks.
        ImportError: without huggingface_hub.
    """
    try:
        from huggingface_hub import split_torch_state_dict_into_shards
    except ImportError as error:
        raise ImportError(
            f"a checkpoint needs huggingface_hub: pip install 'torchinit[checkpoint]' ({error})"
        ) from None
    if not tensors:
        raise ArgumentError("the model has no parameters: there is nothing to write")
    for one in tensors:
        _check_name(one.name)
        if one.dtype not in _NAMES:
            raise ArgumentError(f"{one.name!r} has dtype {one.dtype}, which safetensors lacks")
    by_name = {one.name: one for one in _aligned(tensors)}
    if len(by_name) < len(tensors):
        names = collections.Counter(one.name for one in tensors)
        raise ArgumentError(
            f"{names.most_common(1)[0][0]!r} would be the name of two tensors of the checkpoint: "
            "store weights with formats from a model without scales in it"
        )
    metas: dict[str, Tensor] = {
        name: torch.empty(one.shape, dtype=one.dtype, device="meta")
        for name, one in by_name.items()
    }
    split = split_torch_state_dict_into_shards(
        metas, filename_pattern=f"model{{suffix}}{SUFFIX}", max_shard_size=shard_size
    )
    shards = [
        _shard(filename, [by_name[name] for name in names])
        for filename, names in split.filename_to_tensors.items()
    ]
    if not split.is_sharded:
        return Layout(shards, None)
    index = {
        "metadata": {"total_parameters": parameters, **split.metadata},
        "weight_map": split.tensor_to_filename,
    }
    return Layout(shards, (json.dumps(index, indent=2, sort_keys=True) + "\n").encode())


def _aligned(tensors: Sequence[FileTensor]) -> list[FileTensor]:
    """Tensors in an order in which each begins at a multiple of its item's size."""
    keyed = []
    for _, group in groupby(tensors, key=attrgetter("of")):
        held = list(group)
        widest = max(one.dtype.itemsize for one in held)
        is_even = all(one.numel * one.dtype.itemsize % widest == 0 for one in held)
        keyed += [(widest if is_even else one.dtype.itemsize, one) for one in held]
    return [one for _, one in sorted(keyed, key=lambda pair: -pair[0])]


def checked_size(shard_size: int | str) -> int:
    """A size in bytes.

    Raises:
        ArgumentError: unless it is positive.
        TypeError: unless it is an integer or a string.
    """
    number = shard_size
    if isinstance(number, str):
        found = re.fullmatch(
            r"\s*(\d{1,18}(?:\.\d*)?)\s*([TGMK]B)\s*", number, re.ASCII | re.IGNORECASE
        )
        if found is None:
            raise ArgumentError(
                f"shard_size={shard_size!r} must be a number and TB, GB, MB or KB, such as '5GB'"
            )
        number = int(float(found[1]) * _UNITS[found[2].upper()])
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"shard_size={shard_size!r} must be bytes, or a string such as '5GB'")
    number = min(number, 2**63 - 1)  # all in one file
    if number <= 0:
        raise ArgumentError(f"shard_size={shown(shard_size)} must be positive")
    return number


def _check_name(name: str) -> None:
    """Raises ArgumentError for a name that no reader would find again."""
    if not isinstance(name, str):
        raise ArgumentError(f"{name!r} cannot name a tensor: it is not a string")
    if name == "__metadata__":
        raise ArgumentError(f"{name!r} cannot name a tensor: safetensors has another use for it")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ArgumentError(f"{name!r} cannot name a tensor: it is not Unicode") from None


def _shard(filename: str, tensors: Sequence[FileTensor]) -> Shard:
    ends = list(accumulate((one.numel * one.dtype.itemsize for one in tensors), initial=0))
    ranges = list(zip(tensors, pairwise(ends), strict=True))
    entries = {
        one.name: {"dtype": _NAMES[one.dtype], "shape": list(one.shape), "data_offsets": offsets}
        for one, offsets in ranges
    }
    said = json.dumps({"__metadata__": _METADATA, **entries}, separators=(",", ":")).encode()
    length = -(-(8 + len(said)) // BLOCK) * BLOCK
    if length - 8 > _MOST_HEADER:
        raise ArgumentError(
            f"{filename} would have {len(tensors):,} tensors, and a header of {length:,} bytes: "
            f"readers take {_MOST_HEADER:,}. Give a smaller shard_size"
        )
    header = (length - 8).to_bytes(8, "little") + said.ljust(length - 8)
    placed = [PlacedTensor(one, length + begin, length + end) for one, (begin, end) in ranges]
    return Shard(filename, header, placed, length + ends[-1])
