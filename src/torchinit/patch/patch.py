"""``patch_nn_init``: existing code made fast, unchanged."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, TypeVar

from torch import Tensor
from torch.nn import Module

from torchinit.patch.deferred import Deferred, can_defer
from torchinit.patch.eager import Eager
from torchinit.patch.frames import Frame
from torchinit.patch.named import Named
from torchinit.patch.swap import enter, leave
from torchinit.streams.names import check_seed


def names_of(model: Module) -> Iterable[tuple[str, Tensor]]:
    """The names of a model's parameters, with all names of those that are tied."""
    return model.named_parameters(remove_duplicate=False)


_Function = TypeVar("_Function", bound=Callable[..., Any])


def patch_nn_init(
    seed: int | None = None, names_from: Module | None = None, defer: bool = False
) -> Patch:
    """TODO."""
    return Patch(seed, names_from, defer)


class Patch:
    """What ``patch_nn_init`` returns: a context manager and a decorator, to be used again."""

    def __init__(self, seed: int | None, names_from: Module | None, defer: bool) -> None:
        if (seed is None) != (names_from is None):
            raise ValueError(
                f"seed={seed!r} and names_from={type(names_from).__name__} go together: values by "
                "name are those of a seed and of the names of a model"
            )
        if seed is not None:
            check_seed(seed)
        if names_from is not None and not isinstance(names_from, Module):
            raise TypeError(
                f"names_from must be a torch.nn.Module, not {type(names_from).__name__}"
            )
        self._seed, self._names_from, self._defer = seed, names_from, defer
        self._open: list[Frame] = []

    def __enter__(self) -> None:
        handler = self._handler()
        if not self._defer or not can_defer():
            self._open.append(enter(handler))
            return
        deferred = Deferred(handler)
        frame = enter(deferred)
        self._open.append(frame)
        deferred.begin(frame)

    def _handler(self) -> Eager:
        if self._seed is None or self._names_from is None:
            return Eager()
        model = self._names_from
        return Named(self._seed, lambda: names_of(model))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        frame = self._last()
        leave(frame)
        handler = frame.handler
        if isinstance(handler, Deferred):
            handler.end()
            handler = handler.inner
        if kind is None and isinstance(handler, Eager):
            handler.warn()

    def _last(self) -> Frame:
        """The block to be ended: the last that the caller has begun, whatever others have."""
        for i in reversed(range(len(self._open))):
            if self._open[i].is_callers():
                return self._open.pop(i)
        return self._open.pop()  # a generator, closed elsewhere

    def __call__(self, function: _Function) -> _Function:
        """Decorates a function: each of its calls is a block."""
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(
                f"{function.__name__} is a generator, which runs piecemeal: use a with statement "
                "inside it"
            )
        if not inspect.isroutine(function) and not isinstance(function, functools.partial):
            raise TypeError(f"{function!r} is not a function: patch_nn_init(...) decorates those")
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def inside_task(*args: Any, **kwargs: Any) -> Any:
                with self._anew():
                    return await function(*args, **kwargs)

            return inside_task  # type: ignore[return-value]

        @functools.wraps(function)
        def inside(*args: Any, **kwargs: Any) -> Any:
            with self._anew():
                return function(*args, **kwargs)

        return inside  # type: ignore[return-value]

    def _anew(self) -> Patch:
        return Patch(self._seed, self._names_from, self._defer)
