"""The handler that fills named tensors with keys derived from their names."""

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
    """Fills with keys derived from a seed and the tensors' names.

    Every draw into a full named tensor takes the name's own key. Draws into parts of it take the
    keys of parts 0, 1, … in order; draws into unnamed tensors, those of the parts of the module
    whose method draws. Draws outside the model's modules, or left to torch, are keyed as without
    names, and counted. If calls with a generator are served, named draws ignore the generator.
    """

    def __init__(
        self,
        seed: int,
        names: Callable[[], Iterable[tuple[str, Tensor]]],
        *,
        modules: Callable[[], Mapping[int, str]] = dict,
        generators: bool = False,
    ) -> None:
        """Makes a handler.

        Args:
            seed: for the keys.
            names: returns names and their tensors. It is called now, and again for a draw into an
                unknown tensor, which may be a new parameter of the model.
            modules: returns the names of modules by their ``id``.
            generators: as for ``FillAtOnce``.
        """
        super().__init__(generators=generators)
        self._key_of_name = keys_of_names(seed)
        self._list_names, self._list_modules = names, modules
        self._names = Names(names())
        self._parts: Counter[str] = Counter()
        self._unnamed: Counter[tuple[tuple[int, ...], str]] = Counter()

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
