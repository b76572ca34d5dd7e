"""``patch_nn_init``: existing code made fast, unchanged."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, TypeVar

from torch import Tensor
from torch.nn import Module

from torchinit.patch.eager import FillAtOnce
from torchinit.patch.frames import Frame
from torchinit.patch.named import FillByName
from torchinit.patch.swap import enter, leave
from torchinit.streams.canonical import gather, places_of
from torchinit.streams.named_keys import check_seed


def names_of(model: Module) -> Iterable[tuple[str, Tensor]]:
    """The canonical names of a model's parameters and buffers, as ``init_model_`` keys them."""
    parameters, buffers = gather(model)
    return [(named.name, named.tensor) for named in (*parameters, *buffers)]


_Function = TypeVar("_Function", bound=Callable[..., Any])


def patch_nn_init(
    seed: int | None = None, names_from: Module | None = None, *, generators: bool = False
) -> Patch:
    """Serves code that calls ``torch.nn.init``, unchanged, by torchinit's functions.

    >>> import torch, torchinit
    >>> with torchinit.patch_nn_init():
    ...     model = torch.nn.Linear(3, 4)

    Served are the functions of ``torch.nn.init`` (references taken earlier too, such as those that
    Transformers holds), ``Tensor.normal_``, ``Tensor.uniform_``, and ``torch.randn``, ``rand``,
    ``randn_like``, ``rand_like`` and ``normal`` when they are looked up in ``torch``: each as
    torchinit's function would do it, with the same values. So are functions of timm and of
    Transformers that compute what they fill with (timm's truncated normals), if the library is
    imported before a block begins. What torchinit does not serve, torch
    fills as ever: other dtypes and subclasses, under compilers and transforms of ``torch.func``,
    methods of tensors that require grad outside ``torch.no_grad()``, constants of less than 1 MiB,
    whose values are the same and which torch writes sooner, and calls that are given a generator
    other than ``torch.default_generator``: who gives one may count on torch's values.

    Other threads and other asyncio tasks see nothing of it. When the last block ends, torch is as
    it was. Blocks may be nested, the inner one counts; what this returns may be used again, and
    decorates functions too.

    Args:
        seed, names_from: they go together. A seed, as ``torch.manual_seed`` takes it, and a model:
            fills of its parameters take keys that follow from the seed and the parameter's name
            (docs/streams.md), not from the order of calls. Parameters may be replaced inside. A
            tie counts by its smallest name; a draw into part of a parameter is numbered by order.
            A draw into another tensor is a numbered part of the module whose method makes it; those
            that no module of the model makes come from generators as without names, and a warning
            at the end says how many and which. Direct calls of torchinit's functions draw from
            theirs.
        generators: serves calls that are given a generator too, as torchinit's functions do: keys
            are drawn from it, but for fills that take theirs from names.

    Raises:
        ValueError: a seed without names_from, or the reverse; a seed out of range.
        TypeError: a seed that is no integer, names_from that is no module; as a decorator, what is
            no function, or is a generator.
    """
    return Patch(seed, names_from, generators)


class Patch:
    """What ``patch_nn_init`` returns: a context manager and a decorator, to be used again."""

    def __init__(self, seed: int | None, names_from: Module | None, generators: bool) -> None:
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
        self._seed, self._names_from, self._generators = seed, names_from, generators
        self._open: list[Frame] = []

    def __enter__(self) -> None:
        self._open.append(enter(self._handler()))

    def _handler(self) -> FillAtOnce:
        if self._seed is None or self._names_from is None:
            return FillAtOnce(generators=self._generators)
        model = self._names_from
        return FillByName(
            self._seed,
            lambda: names_of(model),
            modules=lambda: {id(one): at.rstrip(".") for at, one in reversed(places_of(model))},
            generators=self._generators,
        )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        frame = self._last()
        leave(frame)
        handler = frame.handler
        if kind is None and isinstance(handler, FillAtOnce):
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
        return Patch(self._seed, self._names_from, self._generators)
