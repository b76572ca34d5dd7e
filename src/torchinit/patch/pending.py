"""Fills that are still to be done, by the storage that they go to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import UntypedStorage, get_num_threads

from torchinit.native import calls
from torchinit.native.torch_private import StorageWeakRef, storage_of_reference
from torchinit.schemes.distributions import Draw


class Fill(NamedTuple):
    """A fill of bytes of a storage.

    Attributes:
        begin, end: its first byte, and past its last one, from the storage's beginning.
        is_dense: whether it writes to all of them.
        draw, dtype, key, place: as ``native/calls.py`` takes them.
    """

    begin: int
    end: int
    is_dense: bool
    draw: Draw
    dtype: int
    key: int
    place: calls.Place


class _Storage:
    """A storage and its fills in order.

    It is held alive only where its memory is somebody else's (numpy's, shared) and outlives it.
    """

    __slots__ = ("_held", "_reference", "fills")

    def __init__(self, storage: UntypedStorage) -> None:
        self._reference = StorageWeakRef(storage)
        self._held = None if storage.resizable() else storage
        self.fills: list[Fill] = []

    def add(self, fill: Fill) -> None:
        """Adds a fill; those that it writes over are no more to be done."""
        if self.fills:
            self.drop(fill.begin, fill.end, fill.is_dense)
        self.fills.append(fill)

    def drop(self, begin: int, end: int, is_dense: bool) -> None:
        if is_dense:
            self.fills = [fill for fill in self.fills if fill.begin < begin or end < fill.end]

    def address(self) -> int:
        """Where the storage's memory is; 0 if there is none any more."""
        assert storage_of_reference is not None  # else nothing is deferred
        storage = storage_of_reference(self._reference.cdata)
        if storage is None or storage.nbytes() == 0:
            return 0
        if storage.nbytes() < max(fill.end for fill in self.fills):
            raise RuntimeError(
                f"a storage was resized to {storage.nbytes()} bytes while a fill of it was "
                "deferred by patch_nn_init: do that after the block"
            )
        return int(storage.data_ptr())


class Pending:
    """The fills of one block."""

    def __init__(self) -> None:
        self._storages: dict[int, _Storage] = {}

    def __bool__(self) -> bool:
        return bool(self._storages)

    def __contains__(self, storage: int) -> bool:
        return storage in self._storages

    def add(self, storage: UntypedStorage, fill: Fill) -> None:
        """Adds a fill of a storage."""
        identity = storage._cdata
        held = self._storages.get(identity)
        if held is None:
            held = self._storages[identity] = _Storage(storage)
        held.add(fill)

    def take(self, storage: int) -> Any:
        """Takes out what is to be done with a storage, to be put back or done; None if nothing."""
        return self._storages.pop(storage, None)

    def put_back(self, storage: int, taken: Any) -> None:
        """Undoes ``take``."""
        self._storages[storage] = taken

    def do(self, storage: int) -> None:
        """Does what is to be done with one storage."""
        if storage in self._storages:
            _do([self._storages.pop(storage)])

    def do_all(self) -> None:
        """Does everything, in one call of the kernels."""
        storages, self._storages = self._storages, {}
        _do(storages.values())


def _do(storages: Iterable[_Storage]) -> None:
    fills: list[Fill] = []
    addresses: list[int] = []
    for storage in storages:
        address = storage.address()
        if address:
            fills += storage.fills
            addresses += [address + fill.begin for fill in storage.fills]
    if fills:
        _, _, _, draws, dtypes, keys, places = zip(*fills, strict=True)
        calls.cpu_module().fill_list(
            list(draws), list(dtypes), list(keys), addresses, list(places), get_num_threads()
        )
