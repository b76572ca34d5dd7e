"""Names byte ranges of storages, so that any view of a named tensor is recognised."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, UntypedStorage

from torchinit.fill import checks
from torchinit.native.torch_private import StorageWeakRef
from torchinit.placement.distributed import local_memory


class ByteRange(NamedTuple):
    """The bytes that a tensor covers in its storage.

    Attributes:
        storage: the identity of the storage, valid during its lifetime.
        begin, end: the half-open range of bytes, from the start of the storage.
        numel: the number of elements, which need not fill the range.
    """

    storage: int
    begin: int
    end: int
    numel: int


def storage_of(tensor: Tensor) -> UntypedStorage | None:
    """The storage of a dense tensor, including meta tensors; None if it has none.

    For a DTensor it is that of the local shard: the DTensor's own storage has no memory.
    """
    try:
        tensor = local_memory(tensor)
        if tensor.layout is not torch.strided:
            return None
        return tensor.untyped_storage()
    except (RuntimeError, NotImplementedError):  # a subclass, or a transform's wrapper
        return None


def byte_range_of(tensor: Tensor, storage: UntypedStorage) -> ByteRange:
    """The byte range of a tensor in its storage; numel is that of the full tensor of a DTensor."""
    numel = tensor.numel()
    tensor = local_memory(tensor)
    begin = int(tensor.storage_offset()) * tensor.element_size()
    return ByteRange(storage._cdata, begin, begin + checks.extent(tensor), numel)


class _Holders:
    """The named byte ranges of one storage, to find the smallest that contains another range.

    Sorted by begin, they are grouped as in a binary indexed tree, so those that begin early enough
    make up a few full groups. Each group is sorted by end, with the smallest range of every suffix.
    """

    def __init__(self, names: Mapping[ByteRange, str]) -> None:
        ordered = sorted(names)
        self._begins = [one.begin for one in ordered]
        groups: list[list[ByteRange]] = [[] for _ in range(len(ordered) + 1)]
        for i, one in enumerate(ordered, 1):
            while i < len(groups):
                groups[i].append(one)
                i += i & -i
        self._groups: list[tuple[list[int], list[tuple[int, str]]]] = []
        for group in groups:
            group.sort(key=lambda one: one.end)
            sizes = [(one.end - one.begin, names[one]) for one in reversed(group)]
            smallest = list(itertools.accumulate(sizes, min))
            self._groups.append(([one.end for one in group], smallest[::-1]))

    def name(self, region: ByteRange) -> str | None:
        """The name of the smallest range that contains a range; of equal ones, the first name."""
        found: list[tuple[int, str]] = []
        i = bisect.bisect_right(self._begins, region.begin)
        while i:
            ends, smallest = self._groups[i]
            first = bisect.bisect_left(ends, region.end)
            if first < len(ends):
                found.append(smallest[first])
            i -= i & -i
        return min(found)[1] if found else None


class Names:
    """The names of tensors, by byte range.

    It keeps no storage alive, and does not confuse a freed storage with a later one.
    """

    def __init__(self, pairs: Iterable[tuple[str, Tensor]]) -> None:
        """Takes names and tensors; of several names of one byte range the smallest is kept."""
        self._by_storage: dict[int, dict[ByteRange, str]] = {}
        self._holders: dict[int, _Holders] = {}
        # While a reference is held, no other storage gets the same identity.
        self._held: dict[int, StorageWeakRef] = {}
        for name, tensor in pairs:
            storage = storage_of(tensor)
            if storage is None:
                continue
            region = byte_range_of(tensor, storage)
            if region.storage not in self._held:
                self._held[region.storage] = StorageWeakRef(storage)
            names = self._by_storage.setdefault(region.storage, {})
            names[region] = min(name, names.get(region, name))

    def whole(self, region: ByteRange) -> str | None:
        """The name of the tensor with exactly this byte range."""
        return self._by_storage.get(region.storage, {}).get(region)

    def holding(self, region: ByteRange) -> str | None:
        """The name of the smallest tensor that contains a byte range."""
        names = self._by_storage.get(region.storage)
        if names is None:
            return None
        if region.storage not in self._holders:
            self._holders[region.storage] = _Holders(names)
        return self._holders[region.storage].name(region)
