"""Interception: installs hooks in torch while any block is open.

The hooks are visible to all threads, but only calls inside a block go to a handler; all others go
straight to torch.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.compiler import is_dynamo_compiling

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
    _hooks.need()
    frame.open()
    return frame


def leave(frame: Frame) -> None:
    """Ends a block of ``intercept``."""
    frame.close()
    _hooks.need_no_more()


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
        self._owner, self._name = owner, name
        self._own = vars(owner).get(name, _MISSING)  # a class may inherit it
        self.hook = make(name, getattr(owner, name))

    def do(self) -> None:
        setattr(self._owner, self._name, self.hook)

    def undo(self) -> None:
        """Restores the original, unless other code has replaced the hook since.

        If that code later puts the hook back, it does no harm: outside a block it calls the
        original.
        """
        if vars(self._owner).get(self._name) is not self.hook:
            return
        if self._own is _MISSING:
            delattr(self._owner, self._name)
        else:
            setattr(self._owner, self._name, self._own)


class _Hooks:
    """The hooks, installed while any block is open."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._count = 0
        self._is_remembered = True
        self._exchanges: list[functions.Exchange] = []
        self._attributes: list[_Attribute] = []

    def need(self) -> None:
        with self.lock:
            if self._count == 0:
                self._put_in_place()
            else:
                self._exchange_more()
            self._count += 1

    def need_no_more(self) -> None:
        with self.lock:
            self._count -= 1
            if self._count == 0:
                self._take_away()

    def _put_in_place(self) -> None:
        # torch's caches of its functions have to hold the originals, not the hooks.
        device_constructors()
        self._is_remembered = remember_functions()
        self._attributes = [
            *(_Attribute(torch.Tensor, name, hooks.draw_hook) for name in _METHODS),
            *(_Attribute(torch.Tensor, name, hooks.look_hook) for name in hooks.LOOKS),
            *(_Attribute(torch, name, hooks.factory_hook) for name in _FACTORIES),
            *(
                _Attribute(sys.modules[owner], name, _passing)
                for owner, name in _UNSEEN
                if hasattr(sys.modules.get(owner), name)
            ),
        ]
        for one in self._all():
            one.do()
        self._exchange_more()
        for name in _FACTORIES:
            teach_jit(getattr(torch, name), f"aten::{name}")

    def _exchange_more(self) -> None:
        """Exchanges functions of libraries that were imported since the last call."""
        more = functions.exchanges([one.function for one in self._exchanges])
        for one in more:
            one.do()
        self._exchanges += more

    def _take_away(self) -> None:
        for one in self._all():
            one.undo()
        for one in self._attributes:
            unteach_jit(one.hook)
        self._attributes = []
        if not self._is_remembered:
            forget_functions()

    def _all(self) -> list[functions.Exchange | _Attribute]:
        return [*self._exchanges, *self._attributes]


_hooks = _Hooks()
# A fork waits until no other thread is putting hooks in place, which would leave them half-way.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_hooks.lock.acquire,
        after_in_parent=_hooks.lock.release,
        after_in_child=_hooks.lock.release,
    )
