"""Where tensors lie: which bytes of which storage, whatever tensor objects show them."""

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
    """The bytes of a tensor.

    Attributes:
        storage: the identity of its storage, as long as that lives.
        begin, end: the first byte, and past the last one, from the storage's beginning.
        numel: of elements; where those leave gaps, it is less than the bytes hold.
    """

    storage: int
    begin: int
    end: int
    numel: int


def storage_of(tensor: Tensor) -> UntypedStorage | None:
    """The storage of a dense tensor, meta tensors included; None if it has none that is known.

    A DTensor's is that of what lies here: its own is one that nobody else has, and has no memory.
    """
    try:
        tensor = local_memory(tensor)
        if tensor.layout is not torch.strided:
            return None
        return tensor.untyped_storage()
    except (RuntimeError, NotImplementedError):  # a subclass, or a transform's wrapper
        return None


def byte_range_of(tensor: Tensor, storage: UntypedStorage) -> ByteRange:
    """The region of a tensor in its storage; the elements of a DTensor are those of the whole."""
    numel = tensor.numel()
    tensor = local_memory(tensor)
    begin = int(tensor.storage_offset()) * tensor.element_size()
    return ByteRange(storage._cdata, begin, begin + checks.extent(tensor), numel)


class _Holders:
    """Named regions of one storage, asked for the smallest that holds another one.

    In the order of their beginnings, they are summed up in groups as a binary indexed tree has
    them: those that begin early enough are a few whole groups. Of each group the regions are sorted
    by their ends, and each place knows the smallest of those from there on.
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
        """The name of the smallest that holds a region; of equal ones, the smallest name."""
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
    """The names of tensors, by their regions.

    It holds no memory alive, and a storage that has taken a dead one's place is none of its own.
    """

    def __init__(self, pairs: Iterable[tuple[str, Tensor]]) -> None:
        """Takes names and tensors; of several names of one region the smallest counts."""
        self._by_storage: dict[int, dict[ByteRange, str]] = {}
        self._holders: dict[int, _Holders] = {}
        # While one is held, no other storage has the same identity.
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
        """The name of the tensor that fills a region."""
        return self._by_storage.get(region.storage, {}).get(region)

    def holding(self, region: ByteRange) -> str | None:
        """The name of the tensor that a region is a part of: the smallest such tensor's."""
        names = self._by_storage.get(region.storage)
        if names is None:
            return None
        if region.storage not in self._holders:
            self._holders[region.storage] = _Holders(names)
        return self._holders[region.storage].name(region)
