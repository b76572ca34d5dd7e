"""Finds the handler of the innermost open block of this thread or asyncio task.

Also finds the module whose method draws.
"""

from __future__ import annotations

import sys
from asyncio import _get_running_loop, current_task
from contextvars import ContextVar
from threading import get_ident
from typing import Protocol

from torch import Generator, Tensor
from torch.nn import Module

from torchinit.schemes.calls import Call


class FactoryCall(Call):
    """A call that fills a tensor just made by a factory (``torch.randn``)."""

    __slots__ = ()


class Handler(Protocol):
    """Receives the fills that code inside a block requests from torch.

    A handler may also have ``look(tensor, at_address)``, called before a tensor's memory is
    accessed without torch's dispatcher or its address is taken; and ``do_all()``, called before
    that may happen to any tensor.
    """

    def fill(self, call: Call, tensor: Tensor, generator: Generator | None) -> bool:
        """Fills a tensor, or leaves it unchanged.

        Nothing is intercepted while this method runs, or the original after it, so both may call
        functions of ``torch.nn.init``.

        Args:
            call: the function's name (``normal_`` or ``uniform_`` for methods and factories) and
                its arguments, unchecked.
            tensor: the tensor, of any type, dtype and device, including meta.
            generator: the call's generator.

        Returns:
            False if the original should run.
        """


class Frame:
    """An open block of interception."""

    __slots__ = ("_task", "_thread", "before", "busy", "handler")

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        # Whether the handler or an original is running, so that nothing is intercepted.
        self.busy = False
        self._thread = 0
        self._task: object = None
        self.before: Frame | None = None

    def open(self) -> None:
        """Makes this block the innermost one of the caller."""
        self._thread, self._task = get_ident(), _get_running_loop() and current_task()
        self.before = _innermost.get()
        _innermost.set(self)

    def close(self) -> None:
        """Ends the block, possibly in another thread or context, as generators can."""
        self._thread = 0
        if _innermost.get() is self:
            _innermost.set(self.before)

    def is_callers(self) -> bool:
        """Whether the block is open and the caller's own: other tasks inherit copied contexts."""
        return self._thread == get_ident() and self._task is (
            _get_running_loop() and current_task()
        )

    def ask(self, call: Call, tensor: Tensor, generator: Generator | None) -> bool:
        """Passes a call to the handler; returns whether it filled the tensor."""
        self.busy = True
        try:
            return self.handler.fill(call, tensor, generator)
        finally:
            self.busy = False


_innermost: ContextVar[Frame | None] = ContextVar("torchinit.patch", default=None)


def handlers() -> list[Handler]:
    """The handlers of all the caller's open blocks, innermost first."""
    found, frame = [], _innermost.get()
    while frame is not None:
        if frame.is_callers():
            found.append(frame.handler)
        frame = frame.before
    return found


def current() -> Frame | None:
    """The block whose handler receives the caller's calls; None if there is none."""
    frame = _innermost.get()
    if frame is None or frame.busy or not frame.is_callers():
        return None
    return frame


def module_that_draws() -> Module | None:
    """The module whose method is innermost on the call stack; None if there is none."""
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_argcount and code.co_varnames[0] == "self":
            found = frame.f_locals.get("self")
            if isinstance(found, Module):
                return found
        frame = frame.f_back  # type: ignore[assignment]
    return None
