"""Hooks: what replaces torch's methods and factories while a block of interception is open.

The methods ``normal_`` and ``uniform_`` draw, and so do factories such as ``torch.randn``, which
become ``torch.empty`` and a fill by the handler. Other methods access memory past the dispatcher.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling, is_dynamo_compiling
from torch.overrides import has_torch_function_unary

from torchinit.fill.route import PLAIN_TYPES
from torchinit.native.torch_private import (
    DeviceContext,
    function_mode_stack,
    function_modes,
    is_tracing,
    is_transforming,
)
from torchinit.patch.frames import FactoryCall, Frame, current
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
        # After function modes and subclasses, torch calls this method again.
        if frame is None or is_compiling() or has_torch_function_unary(self):
            return original(self, *args, **kwargs)
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
        frame = None if is_dynamo_compiling() else current()
        look = getattr(frame.handler, "look", None) if frame else None
        if frame and look:
            frame.busy = True
            try:
                look(self, at_address=at_address)
            finally:
                frame.busy = False
        return original(self, *args, **kwargs)

    return method


_NORMAL = FactoryCall("normal_", {"mean": 0.0, "std": 1.0})
_UNIFORM = FactoryCall("uniform_", {"a": 0.0, "b": 1.0})

# Keywords that torch.empty and torch.empty_like also accept.
_PASSED_ON = frozenset(
    {"size", "dtype", "layout", "device", "pin_memory", "requires_grad", "memory_format"}
)


def factory_hook(name: str, original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function that replaces a factory."""
    # Makes and fills a tensor; returns None to leave the call to the original.
    makers: dict[str, Callable[..., Tensor | None]] = {
        "randn": partial(_fill_empty, torch.empty, _NORMAL),
        "rand": partial(_fill_empty, torch.empty, _UNIFORM),
        "randn_like": partial(_fill_like, _NORMAL),
        "rand_like": partial(_fill_like, _UNIFORM),
        "normal": _fill_normal,
    }
    make = makers[name]

    def factory(*args: Any, **kwargs: Any) -> Tensor:
        frame = None if is_compiling() else current()
        # Transforms, tracers and function modes have to see the call of the factory.
        if frame and not is_transforming() and not is_tracing() and only_device_modes():
            made = make(frame, args, kwargs)
            if made is not None:
                return made
        return original(*args, **kwargs)

    factory.__name__ = factory.__qualname__ = name
    factory.__module__ = "torch"
    factory.__doc__ = original.__doc__
    return factory


def only_device_modes() -> bool:
    """Whether all active function modes are torch's device contexts."""
    return function_modes() == 0 or all(
        isinstance(mode, DeviceContext) for mode in function_mode_stack()
    )


def _fill_empty(
    empty: Callable[..., Tensor],
    call: FactoryCall,
    frame: Frame,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Tensor | None:
    generator, others = None, kwargs
    if kwargs:
        others = {name: value for name, value in kwargs.items() if value is not None}
        generator = others.pop("generator", None)
        if not _PASSED_ON.issuperset(others):
            return None
        if not others.get("dtype", torch.float32).is_floating_point:
            return None
    grad = others.get("requires_grad")
    try:
        made = empty(*args, **({**others, "requires_grad": False} if grad else others))
    except (TypeError, ValueError, RuntimeError):
        return None  # the original raises, naming its own function
    if (
        not made.dtype.is_floating_point
        or made.layout is not torch.strided
        or (generator is not None and generator.device.type != made.device.type)
        or not frame.ask(call, made, generator)
    ):
        return None
    return made.requires_grad_() if grad else made


def _fill_like(
    call: FactoryCall, frame: Frame, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Tensor | None:
    if not args or type(args[0]) not in PLAIN_TYPES:
        return None
    return _fill_empty(torch.empty_like, call, frame, args, kwargs)


def _fill_normal(frame: Frame, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """``torch.normal(mean, std, size)`` where mean and std are numbers."""
    given = dict(zip(("mean", "std", "size"), args, strict=False)) | kwargs
    if len(args) > 3 or len(given) != len(args) + len(kwargs) or given.get("size") is None:
        return None
    size, mean, std = given.pop("size"), given.pop("mean", None), given.pop("std", None)
    if not (isinstance(mean, int | float) and isinstance(std, int | float) and std >= 0):
        return None
    call = FactoryCall("normal_", {"mean": mean, "std": std})
    return _fill_empty(torch.empty, call, frame, (size,), given)
