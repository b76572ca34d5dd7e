"""Methods of tensors that look at memory past torch's dispatcher: they ask first."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.compiler import is_dynamo_compiling

from torchinit.patch.frames import current

# Those that leave an address with somebody, who may look again at any time, and those that do not.
_WITH_ADDRESS = ("data_ptr", "numpy", "untyped_storage", "__dlpack__", "share_memory_")
NAMES = (*_WITH_ADDRESS, "tolist")


def hook(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    """The method that takes a method's place."""
    at_address = name in _WITH_ADDRESS

    @functools.wraps(original)
    def method(self: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not is_dynamo_compiling():
            frame = current()
            if frame is not None:
                look = getattr(frame.handler, "look", None)
                if look is not None:
                    frame.busy = True
                    try:
                        look(self, at_address=at_address)
                    finally:
                        frame.busy = False
        return original(self, *args, **kwargs)

    return method
