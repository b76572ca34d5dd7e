"""Runs code that fills tensors, with keys derived from names for its draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import init as torch_init
from torch.overrides import TorchFunctionMode

from torchinit.patch.frames import Handler
from torchinit.patch.handlers import FillByName
from torchinit.patch.swap import intercept
from torchinit.schemes.calls import FUNCTIONS, read_call
from torchinit.streams.named_keys import KeyOfName
from torchinit.values.kinds import seeded


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
    handler = FillByName(
        key_of_name, lambda: [(name, tensor)], name_elsewhere=lambda: name, generators=True
    )
    keys = seeded(key_of_name(name), tensor.device)
    with keys, torch.no_grad(), intercept(handler), _OwnFunctions(handler):
        function(tensor)
