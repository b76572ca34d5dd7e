"""Intercepts tensor methods: those that draw, and those that bypass torch's dispatcher."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling, is_dynamo_compiling
from torch.overrides import has_torch_function_unary

from torchinit.native.torch_private import is_transforming
from torchinit.patch.frames import Frame, current
from torchinit.schemes.calls import Call

# By method: the parameter names of the init function of the same name, and the method's keywords
# for these parameters. Their defaults are 0 and 1.
_PARAMETERS = {"normal_": ("mean", "std"), "uniform_": ("a", "b")}
_KEYWORDS = {"normal_": {"mean": "mean", "std": "std"}, "uniform_": {"from": "a", "to": "b"}}


def read_method_call(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
    """Reads the call of a method; None if it is invalid, so that torch raises the error."""
    if len(args) > 2:
        return None
    arguments: dict[str, Any] = dict(zip(_PARAMETERS[name], (0.0, 1.0), strict=True))
    arguments.update(zip(_PARAMETERS[name], args, strict=False))
    for keyword, value in kwargs.items():
        if keyword == "generator":
            continue
        parameter = _KEYWORDS[name].get(keyword)
        if parameter is None or parameter in _PARAMETERS[name][: len(args)]:
            return None
        arguments[parameter] = value
    return Call(name, arguments)


def draw_hook(name: str, original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The method that replaces ``normal_`` or ``uniform_``."""
    # Dynamo can trace the operator, but not the method of the base class.
    operator = getattr(torch.ops.aten, name).default

    def method(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if is_dynamo_compiling():
            return operator(self, *args, **kwargs)  # type: ignore[no-any-return]
        frame = current()
        if frame is None or is_compiling():
            return original(self, *args, **kwargs)
        if has_torch_function_unary(self):
            # After modes and subclasses, torch calls this method again.
            return original(self, *args, **kwargs)
        return serve(frame, self, args, kwargs)

    def serve(frame: Frame, self: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        call = read_method_call(name, args, kwargs)
        if (
            call is not None
            and not is_transforming()
            # Autograd has to record or reject it.
            and not (self.requires_grad and torch.is_grad_enabled())
            and frame.ask(call, self, kwargs.get("generator"))
        ):
            return self
        return original(self, *args, **kwargs)

    method.__name__ = name
    method.__qualname__ = f"Tensor.{name}"
    method.__doc__ = original.__doc__
    return method


# Methods that give out an address, through which memory may be accessed later; and one that reads.
_WITH_ADDRESS = ("data_ptr", "numpy", "untyped_storage", "__dlpack__", "share_memory_")
LOOKS = (*_WITH_ADDRESS, "tolist")


def look_hook(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    """The method that replaces one that accesses memory without torch's dispatcher."""
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
