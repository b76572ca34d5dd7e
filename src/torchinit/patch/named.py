"""The handler that fills named tensors with keys of their names."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from torch import Generator, Tensor

from torchinit.fill.door import fill
from torchinit.orthogonal import fill_orthogonal
from torchinit.patch.eager import (
    WITHOUT_KEYS,
    FillAtOnce,
    serves,
    warn_as_functional,
)
from torchinit.patch.frames import FactoryCall, module_that_draws
from torchinit.patch.regions import Names, byte_range_of, storage_of
from torchinit.schemes.calls import Call, draw_of
from torchinit.streams.keys import Stream
from torchinit.streams.named_keys import keys_of_names, part_of

_EXAMPLES = 3


class FillByName(FillAtOnce):
    """Fills with keys that follow from a seed and the tensors' names.

    A draw that covers a whole named tensor takes the name's own key, however often there is one;
    draws into parts of one take the keys of its parts 0, 1, …, in the order in which they are made;
    draws into what has no name, those of the parts of the module whose method draws. Those of no
    module of the model, or filled by torch, are drawn as without names, and counted. A generator
    that is given to a draw of a name is not drawn from, where such draws are served.
    """

    def __init__(
        self,
        seed: int,
        names: Callable[[], Iterable[tuple[str, Tensor]]],
        *,
        modules: Callable[[], Mapping[int, str]] = dict,
        generators: bool = False,
    ) -> None:
        """Takes what gives the names.

        Args:
            seed: of the keys.
            names: returns names and their tensors. It is called at once, and again when a draw
                meets a tensor that is not among them, for that may be a new parameter of the model.
            modules: returns the names of modules, by their identity.
            generators: as ``FillAtOnce`` takes it.
        """
        super().__init__(generators=generators)
        self._key_of_name = keys_of_names(seed)
        self._list_names, self._list_modules = names, modules
        self._names = Names(names())
        self._parts: Counter[str] = Counter()
        self._unnamed: Counter[tuple[tuple[int, ...], str]] = Counter()

    def fill(self, call: Call, tensor: Tensor, generator: Generator | None) -> bool:
        """As ``FillAtOnce`` does, with the keys of names."""
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
        """Where the key of a random fill comes from; counts what has no name."""
        storage = storage_of(tensor)
        if storage is not None and not isinstance(call, FactoryCall):
            region = byte_range_of(tensor, storage)
            for attempt in range(2):
                if (name := self._names.whole(region)) is not None:
                    return self._key_of_name(name)
                if (name := self._names.holding(region)) is not None:
                    self._parts[name] += 1
                    return self._key_of_name(part_of(name, self._parts[name] - 1))
                if attempt == 0:
                    self._names = Names(self._list_names())
        module = module_that_draws()
        name = None if module is None else self._list_modules().get(id(module))
        if name is not None:
            self._parts[name] += 1
            return self._key_of_name(part_of(name, self._parts[name] - 1))
        self._count(tensor)
        return super().stream_of(call, tensor, generator)

    def _count(self, tensor: Tensor) -> None:
        self._unnamed[tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")] += 1

    def warn(self, stacklevel: int = 2) -> None:
        """Says once what was not drawn by name, if anything was."""
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
            f"{count} random fill{'s' * (count > 1)} inside patch_nn_init went to tensors that "
            "have no name in names_from, were given a generator, or are torch's to fill, and drew "
            "from torch's generators: " + ", ".join(examples),
            stacklevel=stacklevel + 1,
        )
