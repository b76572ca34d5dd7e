"""Who is asked: the handler of the innermost open block of this thread or asyncio task.

And who asks: the module whose method draws.
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
    """A call for a tensor that a factory (``torch.randn``) has just made."""

    __slots__ = ()


class Handler(Protocol):
    """Takes the fills that code inside a block asks torch for.

    A handler may also have ``look(tensor, at_address)``, called before somebody looks at a tensor's
    memory past torch's dispatcher, or takes its address; and ``do_all()``, before something does
    that to any tensor.
    """

    def fill(self, call: Call, tensor: Tensor, generator: Generator | None) -> bool:
        """Fills a tensor, or leaves it alone.

        While this runs, and while the original runs after it, nothing is intercepted: either may
        call the functions of ``torch.nn.init``.

        Args:
            call: the function's name and arguments (of methods and factories: ``normal_`` or
                ``uniform_``); the arguments are as they were given, and not checked.
            tensor: as it was given: any type, dtype, device, meta included.
            generator: as it was given.

        Returns:
            False if the original is to run.
        """


class Frame:
    """An open block."""

    __slots__ = ("_task", "_thread", "before", "busy", "handler")

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        # Whether the handler, or an original, is at work: then nobody is asked.
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
        """Ends the block; a generator may do so in another thread or context than it began."""
        self._thread = 0
        if _innermost.get() is self:
            _innermost.set(self.before)

    def is_callers(self) -> bool:
        """Whether the block is open, and the caller's: contexts are copied to other tasks."""
        return self._thread == get_ident() and self._task is (
            _get_running_loop() and current_task()
        )

    def ask(self, call: Call, tensor: Tensor, generator: Generator | None) -> bool:
        """Whether the handler takes a call."""
        self.busy = True
        try:
            return self.handler.fill(call, tensor, generator)
        finally:
            self.busy = False


_innermost: ContextVar[Frame | None] = ContextVar("torchinit.patch", default=None)


def handlers() -> list[Handler]:
    """The handlers of all blocks that are open where the caller is, the innermost first."""
    found, frame = [], _innermost.get()
    while frame is not None:
        if frame.is_callers():
            found.append(frame.handler)
        frame = frame.before
    return found


def current() -> Frame | None:
    """The block whose handler is to be asked."""
    frame = _innermost.get()
    if frame is None or frame.busy or not frame.is_callers():
        return None
    return frame


def module_that_draws() -> Module | None:
    """The module whose method is running, the nearest one; None if none is."""
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_argcount and code.co_varnames[0] == "self":
            found = frame.f_locals.get("self")
            if isinstance(found, Module):
                return found
        frame = frame.f_back  # type: ignore[assignment]
    return None
