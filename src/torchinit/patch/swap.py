"""Interception: installs hooks in torch while any block is open.

The hooks are visible to all threads, but only calls inside a block go to a handler; all others go
straight to torch.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any

import torch
from torch.compiler import is_dynamo_compiling

from torchinit.native.kernels import hold_while_forking
from torchinit.native.torch_private import (
    device_constructors,
    forget_functions,
    remember_functions,
    teach_jit,
    unteach_jit,
)
from torchinit.patch import functions, hooks
from torchinit.patch.frames import Frame, Handler, handlers

_FACTORIES = ("randn", "rand", "randn_like", "rand_like", "normal")
_METHODS = ("normal_", "uniform_")
# Functions that access tensors without torch's dispatcher: DistributedDataParallel broadcasts
# parameters with this one.
_UNSEEN = (("torch.distributed", "_broadcast_coalesced"),)

_MISSING: Any = object()


@contextlib.contextmanager
def intercept(handler: Handler) -> Iterator[None]:
    """Passes calls of torch inside the block to a handler; the innermost block applies.

    Calls go straight to the original under a compiler's trace or a ``torch.func`` transform, for
    tensors with their own ``__torch_function__``, and for methods of tensors that require grad
    while grad mode is on. Function modes receive the call first.
    """
    frame = enter(handler)
    try:
        yield
    finally:
        leave(frame)


def enter(handler: Handler) -> Frame:
    """Begins a block of ``intercept``."""
    frame = Frame(handler)
    _hooks.need(frame)
    frame.open()
    return frame


def leave(frame: Frame) -> None:
    """Ends a block of ``intercept``."""
    frame.close()
    _hooks.need_no_more(frame)


def _passing(name: str, original: Callable[..., Any]) -> Callable[..., Any]:  # noqa: ARG001
    """A function that first makes each of the caller's handlers execute its pending fills."""

    @functools.wraps(original)
    def passing(*args: Any, **kwargs: Any) -> Any:
        if not is_dynamo_compiling():
            for handler in handlers():
                getattr(handler, "do_all", lambda: None)()
        return original(*args, **kwargs)

    return passing


class _Attribute:
    """An attribute of torch that is replaced by a hook around the original."""

    def __init__(self, owner: Any, name: str, make: Callable[[str, Any], Any]) -> None:
        self._owner, self._name, self._make = owner, name, make
        self._own: Any = _MISSING
        self._made: tuple[Any, Any] = (_MISSING, None)  # the last original, and its hook

    def do(self) -> None:
        """Puts a hook in place, unless one is there."""
        own = vars(self._owner).get(self._name, _MISSING)  # a class may inherit it
        if self._is_hook(own):
            return
        original = getattr(self._owner, self._name) if own is _MISSING else own
        before, hook = self._made
        if before is not original:
            hook = self._make(self._name, original)
            hook.torchinits = self
            self._made = original, hook
        self._own = own
        setattr(self._owner, self._name, hook)

    def undo(self) -> None:
        """Restores the original, unless other code has replaced the hook since.

        If that code later puts the hook back, it does no harm: outside a block it calls the
        original.
        """
        hook = vars(self._owner).get(self._name, _MISSING)
        if not self._is_hook(hook):
            return
        unteach_jit(hook)
        if self._own is _MISSING:
            with contextlib.suppress(AttributeError):  # a handler of a signal has done it
                delattr(self._owner, self._name)
        else:
            setattr(self._owner, self._name, self._own)

    def _is_hook(self, value: Any) -> bool:
        return getattr(value, "__dict__", {}).get("torchinits") is self


class _Hooks:
    """The hooks, installed while any block is open.

    A handler of a signal may begin and end blocks at any point of the code below, in the same
    thread, and may raise. So each step can be done again, and none relies on the one before: what
    is interrupted finds either the state that it left, or a complete one.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._open: set[Frame] = set()
        self._is_in_place = False
        self._is_remembered = True
        self._exchanges: dict[FunctionType, functions.Exchange] = {}
        self._attributes: dict[tuple[str, str], _Attribute] = {}

    def need(self, frame: Frame) -> None:
        """Puts the hooks in place for a block."""
        with self.lock:
            self._open.add(frame)
            try:
                self._settle()
            except BaseException:
                self._open.discard(frame)
                self._settle()
                raise

    def need_no_more(self, frame: Frame) -> None:
        """Takes the hooks away if the block is the last one."""
        with self.lock:
            self._open.discard(frame)
            try:
                self._settle()
            except BaseException:
                self._settle()
                raise

    def _settle(self) -> None:
        """Brings the hooks into the state that the open blocks need."""
        while True:
            is_needed = bool(self._open)
            if not is_needed:
                self._take_away()
            elif self._is_in_place:
                self._exchange_more()
            else:
                self._put_in_place()
            if is_needed == bool(self._open):
                return

    def _put_in_place(self) -> None:
        # torch's caches of its functions have to hold the originals, not the hooks.
        device_constructors()
        self._is_remembered = remember_functions()
        wanted: list[tuple[Any, str, Callable[[str, Any], Any]]] = [
            *((torch.Tensor, name, hooks.draw_hook) for name in _METHODS),
            *((torch.Tensor, name, hooks.look_hook) for name in hooks.LOOKS),
            *((torch, name, hooks.factory_hook) for name in _FACTORIES),
            *(
                (sys.modules[owner], name, _passing)
                for owner, name in _UNSEEN
                if hasattr(sys.modules.get(owner), name)
            ),
        ]
        for owner, name, make in wanted:
            place = owner.__name__, name
            if place not in self._attributes:
                self._attributes.setdefault(place, _Attribute(owner, name, make))
            self._attributes[place].do()
        for exchange in list(self._exchanges.values()):
            exchange.do()
        self._exchange_more()
        for name in _FACTORIES:
            teach_jit(getattr(torch, name), f"aten::{name}")
        self._is_in_place = True

    def _exchange_more(self) -> None:
        """Exchanges functions of libraries that were imported since the last call."""
        for one in functions.exchanges(self._exchanges):
            self._exchanges.setdefault(one.function, one).do()

    def _take_away(self) -> None:
        self._is_in_place = False
        for exchange in list(self._exchanges.values()):
            exchange.undo()
        for attribute in list(self._attributes.values()):
            attribute.undo()
        if not self._is_remembered:
            forget_functions()
        self._is_in_place = False  # whoever interrupted has left them half-way


_hooks = _Hooks()
hold_while_forking(_hooks.lock)
