"""The handlers of ``patch_nn_init``: fill at once, with keys drawn or keys of names."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Generator, Tensor, UntypedStorage

from torchinit import functional
from torchinit.dtypes import FLOAT8_DTYPES
from torchinit.errors import counted
from torchinit.fill.door import fill
from torchinit.fill.route import FLOAT_NUMBERS, PLAIN_TYPES, is_native
from torchinit.native import load
from torchinit.native.torch_private import StorageWeakRef
from torchinit.orthogonal import fill_orthogonal
from torchinit.patch.frames import FactoryCall
from torchinit.placement.distributed import is_dtensor, local_memory
from torchinit.schemes.calls import Call, draw_of
from torchinit.schemes.distributions import as_float
from torchinit.streams.named_keys import DrawNames, Elements, KeyOfName, Name, elements_of

_CONSTANTS = frozenset({"constant_", "ones_", "zeros_"})
# torchinit leaves these to torch.
_TORCHS = frozenset({"eye_", "dirac_", "sparse_"})
_WITHOUT_KEYS = _CONSTANTS | _TORCHS - {"sparse_"}
# Constants of fewer bytes are left to torch, which writes the same values faster.
_SMALL = 1 << 20
_TRUNCATED = ("mean", "std", "a", "b")
_EXAMPLES = 3


class FillAtOnce:
    """Fills with keys from torch's default generator.

    Calls with another generator are left to torch, since the code may rely on torch's values, like
    an adapter that is rebuilt from its seed.
    """

    def __init__(self, *, generators: bool = False) -> None:
        """Makes a handler; if generators is true, it serves calls with a generator as well."""
        self._generators = generators

    def serves(self, call: Call, tensor: Tensor, generator: Generator | None) -> bool:
        """Whether torchinit serves a call, rather than torch."""
        if not (self._generators or generator is None or generator is torch.default_generator):
            return False
        if type(tensor) not in PLAIN_TYPES and is_dtensor(tensor):
            return True  # torch ignores the position of the shard
        if call.name in _TORCHS or tensor.layout is not torch.strided:
            return False
        if (
            call.name in _CONSTANTS
            and tensor.dtype not in FLOAT8_DTYPES
            and tensor.numel() * tensor.element_size() < _SMALL
        ):
            return False
        is_kernels = (
            type(tensor) in PLAIN_TYPES
            and tensor.is_cpu
            and tensor.dtype in FLOAT_NUMBERS
            and load.module is not None
        )
        return is_kernels or is_native(tensor)  # the quicker question first

    def fill(self, call: Call, tensor: Tensor, generator: Generator | None) -> bool:
        """Calls torchinit's function of the same name, if it serves the call."""
        if not self.serves(call, tensor, generator):
            return False
        function = getattr(functional, call.name)
        if call.name in _WITHOUT_KEYS:
            function(tensor, **call.arguments)
        else:
            function(tensor, **call.arguments, generator=generator)
        return True

    def warn(self, stacklevel: int = 2) -> None:
        """Warns at the end of the block of fills that were not served as requested."""


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
        may_be_new: Callable[[Tensor], bool] = lambda _: True,
        name_elsewhere: Callable[[], str | None] = lambda: None,
        generators: bool = False,
    ) -> None:
        """Makes a handler.

        Args:
            key_of_name: maps names to keys under the seed.
            named: returns names and their tensors. It is called now, and again for a draw into an
                unknown tensor that may be a new parameter of the model.
            may_be_new: whether an unknown tensor may be one.
            name_elsewhere: returns the name of which draws into any other tensor are parts; None
                if there is none.
            generators: as for ``FillAtOnce``.
        """
        super().__init__(generators=generators)
        self._key_of_name = key_of_name
        self._named, self._may_be_new = named, may_be_new
        self._name_elsewhere = name_elsewhere
        # While a reference is held, no other storage gets the same identity.
        self._held: list[StorageWeakRef] = []
        self._names = DrawNames(self._list())
        self._unnamed: Counter[tuple[tuple[int, ...], str]] = Counter()

    def fill(self, call: Call, tensor: Tensor, generator: Generator | None) -> bool:
        """Fills like ``FillAtOnce``, with keys from names."""
        if call.name in _WITHOUT_KEYS:
            return super().fill(call, tensor, generator)
        is_served = self.serves(call, tensor, generator)
        name = self._name(call, tensor) if is_served and call.name != "sparse_" else None
        if name is None:
            if not tensor.is_meta:  # where nothing is drawn
                kind = tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")
                self._unnamed[kind] += 1
            return is_served and super().fill(call, tensor, generator)
        key = self._key_of_name(name.text)
        draw = draw_of(call, tensor.shape)
        if draw is None:
            fill_orthogonal(tensor, call.arguments["gain"], key)
            return True
        if call.name == "trunc_normal_":
            mean, std, a, b = (as_float(one, call.arguments[one]) for one in _TRUNCATED)
            functional.warn_if_remote(tensor, mean, std, a, b)
        elif call.name.startswith("kaiming") and 0 in tensor.shape:
            warnings.warn("Initializing zero-element tensors is a no-op", stacklevel=2)
        fill(draw, tensor, key)
        return True

    def _name(self, call: Call, tensor: Tensor) -> Name | None:
        name = None
        storage = None if isinstance(call, FactoryCall) else _storage_of(tensor)
        if storage is not None:
            drawn = _elements(tensor, storage)
            name = self._names.of(drawn)
            if name is None and self._may_be_new(tensor):
                self._names.rename(self._list())
                name = self._names.of(drawn)
        if name is None and (base := self._name_elsewhere()) is not None:
            return self._names.part(base)
        return name

    def _list(self) -> Iterator[tuple[str, Elements]]:
        held: dict[int, StorageWeakRef] = {}
        for name, tensor in self._named():
            storage = _storage_of(tensor)
            if storage is not None:
                if storage._cdata not in held:
                    held[storage._cdata] = StorageWeakRef(storage)
                yield name, _elements(tensor, storage)
        self._held = list(held.values())

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
            f"{counted(count, 'random fill')} inside patch_nn_init drew from torch's "
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
