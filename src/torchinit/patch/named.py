"""The handler that fills named tensors with keys derived from their names."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Generator, Tensor, UntypedStorage

from torchinit.fill.door import fill
from torchinit.native.torch_private import StorageWeakRef
from torchinit.orthogonal import fill_orthogonal
from torchinit.patch.eager import (
    WITHOUT_KEYS,
    FillAtOnce,
    serves,
    warn_as_functional,
)
from torchinit.patch.frames import FactoryCall
from torchinit.placement.distributed import local_memory
from torchinit.schemes.calls import Call, draw_of
from torchinit.streams.keys import Stream
from torchinit.streams.named_keys import DrawNames, Elements, KeyOfName, elements_of

_EXAMPLES = 3


class FillByName(FillAtOnce):
    """Fills with keys derived from the names of tensors, by section 7 of docs/streams.md.

    Every draw into a full named tensor takes the name's own key. Draws that no name is found for,
    or that are left to torch, are keyed as without names, and counted. If calls with a generator
    are served, named draws ignore the generator.
    """

    def __init__(
        self,
        key_of_name: KeyOfName,
        named: Callable[[], Iterable[tuple[str, Tensor]]],
        *,
        name_elsewhere: Callable[[], str | None] = lambda: None,
        generators: bool = False,
    ) -> None:
        """Makes a handler.

        Args:
            key_of_name: maps names to keys under the seed.
            named: returns names and their tensors. It is called now, and again for a draw into an
                unknown tensor, which may be a new parameter of the model.
            name_elsewhere: returns the name of which draws into any other tensor are parts; None
                if there is none.
            generators: as for ``FillAtOnce``.
        """
        super().__init__(generators=generators)
        self._key_of_name = key_of_name
        self._named, self._name_elsewhere = named, name_elsewhere
        # While a reference is held, no other storage gets the same identity.
        self._held: list[StorageWeakRef] = []
        self._names = DrawNames(self._list())
        self._unnamed: Counter[tuple[tuple[int, ...], str]] = Counter()

    def _list(self) -> Iterator[tuple[str, Elements]]:
        held: dict[int, StorageWeakRef] = {}
        for name, tensor in self._named():
            storage = _storage_of(tensor)
            if storage is not None:
                if storage._cdata not in held:
                    held[storage._cdata] = StorageWeakRef(storage)
                yield name, _elements(tensor, storage)
        self._held = list(held.values())

    def fill(self, call: Call, tensor: Tensor, generator: Generator | None) -> bool:
        """Fills like ``FillAtOnce``, with keys from names."""
        if self.leaves(generator) or not serves(call, tensor):
            if call.name in WITHOUT_KEYS:
                return False
            if not tensor.is_meta:
                self._count(tensor)
            return False
        if call.name == "sparse_":  # of a DTensor
            self._count(tensor)
            return super().fill(call, tensor, generator)
        if call.name in WITHOUT_KEYS:
            return super().fill(call, tensor, generator)
        stream = self.stream_of(call, tensor, generator)
        if stream is generator:
            return super().fill(call, tensor, generator)
        if call.name == "orthogonal_":
            fill_orthogonal(tensor, call.arguments["gain"], stream)
            return True
        draw = draw_of(call, tensor.shape)
        assert draw is not None  # of every other function
        warn_as_functional(call, tensor)
        fill(draw, tensor, stream)
        return True

    def stream_of(self, call: Call, tensor: Tensor, generator: Generator | None) -> Stream:
        """The key of a random fill, or the generator to draw it from; counts unnamed fills."""
        name = None
        storage = None if isinstance(call, FactoryCall) else _storage_of(tensor)
        if storage is not None:
            drawn = _elements(tensor, storage)
            name = self._names.of(drawn)
            if name is None:
                self._names.rename(self._list())
                name = self._names.of(drawn)
        if name is None and (base := self._name_elsewhere()) is not None:
            name = self._names.part(base)
        if name is not None:
            return self._key_of_name(name.text)
        self._count(tensor)
        return super().stream_of(call, tensor, generator)

    def _count(self, tensor: Tensor) -> None:
        self._unnamed[tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")] += 1

    def warn(self, stacklevel: int = 2) -> None:
        """Warns once of the fills that were not keyed by name, if there were any."""
        count = self._unnamed.total()
        if not count:
            return
        examples = [
            f"{dtype}{list(shape)}" + (f" ({times} times)" if times > 1 else "")
            for (shape, dtype), times in self._unnamed.most_common(_EXAMPLES)
        ]
        if len(self._unnamed) > _EXAMPLES:
            examples.append("…")
        warnings.warn(
            f"{count} random fill{'s' * (count > 1)} inside patch_nn_init drew from torch's "
            "generators, because the tensor has no name in names_from, the call was given a "
            "generator, or torch fills such tensors: " + ", ".join(examples),
            stacklevel=stacklevel + 1,
        )


def _storage_of(tensor: Tensor) -> UntypedStorage | None:
    """The storage of a dense tensor or local shard, also on meta; None if it has none."""
    try:
        tensor = local_memory(tensor)
        return tensor.untyped_storage() if tensor.layout is torch.strided else None
    except (RuntimeError, NotImplementedError):  # a subclass, or a transform's wrapper
        return None


def _elements(tensor: Tensor, storage: UntypedStorage) -> Elements:
    local = local_memory(tensor)
    found = elements_of(
        storage._cdata, local.shape, local.stride(), int(local.storage_offset()), local.itemsize
    )
    return found if local is tensor else found._replace(nbytes=tensor.numel() * local.itemsize)
