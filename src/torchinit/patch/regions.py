"""Where tensors lie: which bytes of which storage, whatever tensor objects show them."""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, UntypedStorage

from torchinit.fill import checks
from torchinit.native.torch_private import StorageWeakRef
from torchinit.placement.distributed import local_memory


class Region(NamedTuple):
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


def region_of(tensor: Tensor, storage: UntypedStorage) -> Region:
    """The region of a tensor in its storage; the elements of a DTensor are those of the whole."""
    numel = tensor.numel()
    tensor = local_memory(tensor)
    begin = int(tensor.storage_offset()) * tensor.element_size()
    return Region(storage._cdata, begin, begin + checks.extent(tensor), numel)


class Names:
    """The names of tensors, by their regions.

    It holds no memory alive, and a storage that has taken a dead one's place is none of its own.
    """

    def __init__(self, pairs: Iterable[tuple[str, Tensor]]) -> None:
        """Takes names and tensors; of several names of one region the smallest counts."""
        self._names: dict[Region, str] = {}
        self._by_storage: dict[int, list[Region]] = {}
        # While one is held, no other storage has the same identity.
        self._held: dict[int, StorageWeakRef] = {}
        for name, tensor in pairs:
            storage = storage_of(tensor)
            if storage is None:
                continue
            region = region_of(tensor, storage)
            before = self._names.get(region)
            if before is None:
                if region.storage not in self._held:
                    self._held[region.storage] = StorageWeakRef(storage)
                bisect.insort(self._by_storage.setdefault(region.storage, []), region)
            if before is None or name < before:
                self._names[region] = name

    def whole(self, region: Region) -> str | None:
        """The name of the tensor that fills a region."""
        return self._names.get(region)

    def holding(self, region: Region) -> str | None:
        """The name of the tensor that a region is a part of: the smallest such tensor's."""
        found = [
            one
            for one in self._by_storage.get(region.storage, ())
            if one.begin <= region.begin and region.end <= one.end
        ]
        if not found:
            return None
        return self._names[min(found, key=lambda one: (one.end - one.begin, self._names[one]))]
