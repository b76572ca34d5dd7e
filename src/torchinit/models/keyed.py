"""Runs code that fills tensors, with keys derived from names for its draws."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import init as torch_init
from torch.overrides import TorchFunctionMode

from torchinit.fill.door import fill
from torchinit.fill.route import is_native
from torchinit.native.torch_private import storage_number
from torchinit.orthogonal import fill_orthogonal
from torchinit.patch.swap import Handler, intercept
from torchinit.schemes.calls import FUNCTIONS, Call, draw_of, read_call
from torchinit.schemes.distributions import DISTRIBUTIONS
from torchinit.streams.named_keys import KeyOfName, part_of
from torchinit.values.kinds import seeded


class KeyedFills:
    """Fills a full named tensor with its name's key, and anything else with the key of a part.

    Args:
        key_of_name: maps names to keys under the seed.
        named: names and tensors, each in its own storage.
        default: draws into any other tensor are parts of this name.
    """

    def __init__(
        self, key_of_name: KeyOfName, named: Iterable[tuple[str, Tensor]], default: str
    ) -> None:
        self._key_of_name = key_of_name
        self._named = {storage_number(tensor): (name, tensor.numel()) for name, tensor in named}
        self._ordinals: dict[str, int] = {}
        self._default = default

    def fill(self, call: Call, tensor: Tensor, generator: Generator | None) -> bool:  # noqa: ARG002
        """Executes a call if it can; returns whether it did."""
        draw = draw_of(call, tensor.shape)
        is_matrix = call.name == "orthogonal_"
        if tensor.is_meta or not is_native(tensor) or (draw is None and not is_matrix):
            return False
        key = 0
        if draw is None or DISTRIBUTIONS[draw[0]].is_random:
            name, numel = self._named.get(storage_number(tensor), (self._default, -1))
            key = self._key_of_name(name if tensor.numel() == numel else self._part(name))
        if draw is None:
            fill_orthogonal(tensor, float(call.arguments["gain"]), key)
        else:
            fill(draw, tensor, key)
        return True

    def _part(self, name: str) -> str:
        ordinal = self._ordinals.get(name, 0)
        self._ordinals[name] = ordinal + 1
        return part_of(name, ordinal)


class _OwnFunctions(TorchFunctionMode):
    """Passes calls of torchinit's functions, which are not intercepted, to a handler."""

    def __init__(self, handler: Handler) -> None:
        super().__init__()
        self._handler = handler

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", None)
        if (
            name in FUNCTIONS
            and func.__module__ == torch_init.__name__
            and func is not getattr(torch_init, name)  # these are intercepted already
        ):
            arguments = dict(kwargs)
            tensor = arguments.pop("tensor") if "tensor" in arguments else args[0]
            call = read_call(name, args[1:], arguments)
            if self._handler.fill(call, tensor, kwargs.get("generator")):
                return tensor
        return func(*args, **kwargs)


def run_callable(
    function: Callable[[Tensor], object], tensor: Tensor, name: str, key_of_name: KeyOfName
) -> None:
    """Calls a function on a tensor, with all its randomness derived from a name.

    Draws that are not intercepted (``torch.randperm``, ``bernoulli_``) come from torch's
    generators, which are seeded with the name's key while the function runs.
    """
    handler = KeyedFills(key_of_name, [(name, tensor)], name)
    keys = seeded(key_of_name(name), tensor.device)
    with keys, torch.no_grad(), intercept(handler), _OwnFunctions(handler):
        function(tensor)
