"""Intercepts ``torch.randn`` and similar factories: ``torch.empty`` and a fill by the handler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from torchinit.fill.route import PLAIN_TYPES
from torchinit.native.torch_private import (
    DeviceContext,
    function_mode_stack,
    function_modes,
    is_tracing,
    is_transforming,
)
from torchinit.patch.frames import FactoryCall, Frame, current

_NORMAL = FactoryCall("normal_", {"mean": 0.0, "std": 1.0})
_UNIFORM = FactoryCall("uniform_", {"a": 0.0, "b": 1.0})

# Keywords that torch.empty and torch.empty_like also accept.
_PASSED_ON = frozenset(
    {"size", "dtype", "layout", "device", "pin_memory", "requires_grad", "memory_format"}
)


def hook(name: str, original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function that replaces a factory."""
    make = {
        "randn": _filled_empty(torch.empty, _NORMAL),
        "rand": _filled_empty(torch.empty, _UNIFORM),
        "randn_like": _filled_like(_NORMAL),
        "rand_like": _filled_like(_UNIFORM),
        "normal": _normal,
    }[name]

    def factory(*args: Any, **kwargs: Any) -> Tensor:
        if not is_compiling():
            frame = current()
            if frame is not None and _is_seen_by_torch_alone():
                made = make(frame, args, kwargs)
                if made is not None:
                    return made
        return original(*args, **kwargs)

    factory.__name__ = factory.__qualname__ = name
    factory.__module__ = "torch"
    factory.__doc__ = original.__doc__
    return factory


def _is_seen_by_torch_alone() -> bool:
    """Whether no transform, tracer or function mode has to see the factory's call."""
    return not is_transforming() and not is_tracing() and only_device_modes()


def only_device_modes() -> bool:
    """Whether all active function modes are torch's device contexts."""
    return function_modes() == 0 or all(
        isinstance(mode, DeviceContext) for mode in function_mode_stack()
    )


# Makes and fills a tensor from a call's arguments; returns None to leave the call to the original.
_Make = Callable[[Frame, tuple[Any, ...], dict[str, Any]], "Tensor | None"]


def _filled_empty(empty: Callable[..., Tensor], call: FactoryCall) -> _Make:
    def make(frame: Frame, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        generator, others = None, kwargs
        if kwargs:
            others = {name: value for name, value in kwargs.items() if value is not None}
            generator = others.pop("generator", None)
            if not _PASSED_ON.issuperset(others) or not _is_float(others.get("dtype")):
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

    return make


def _filled_like(call: FactoryCall) -> _Make:
    make_empty = _filled_empty(torch.empty_like, call)

    def make(frame: Frame, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        like = args[0] if args else None
        if type(like) not in PLAIN_TYPES:
            return None
        return make_empty(frame, args, kwargs)

    return make


def _normal(frame: Frame, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """``torch.normal(mean, std, size)`` where mean and std are numbers."""
    names = ("mean", "std", "size")
    given = dict(zip(names, args, strict=False)) | kwargs
    if len(args) > 3 or len(given) != len(args) + len(kwargs):
        return None
    if given.get("size") is None:
        return None
    size, mean, std = given.pop("size"), given.pop("mean", None), given.pop("std", None)
    if not (isinstance(mean, int | float) and isinstance(std, int | float) and std >= 0):
        return None
    made = _filled_empty(torch.empty, FactoryCall("normal_", {"mean": mean, "std": std}))
    return made(frame, (size,), given)


def _is_float(dtype: torch.dtype | None) -> bool:
    return dtype is None or dtype.is_floating_point
