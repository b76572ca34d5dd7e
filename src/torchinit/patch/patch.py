"""``patch_nn_init``: speeds up existing code without changing it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar
from weakref import ReferenceType, ref

from torch import Tensor
from torch.nn import Module

from torchinit.errors import ArgumentError, check_flag
from torchinit.native.torch_private import storage_users
from torchinit.patch.frames import Frame, module_that_draws
from torchinit.patch.handlers import FillAtOnce, FillByName
from torchinit.patch.swap import enter, leave
from torchinit.streams.canonical import gather, places_of
from torchinit.streams.named_keys import check_seed, keys_of_names


class _NamesOf:
    """The names of a model's tensors and modules, which may be replaced meanwhile."""

    def __init__(self, model: Module) -> None:
        self._model = model
        # A reference, since another module may get the number of one that is gone.
        self._modules: dict[int, tuple[ReferenceType[Module], str]] = {}

    def tensors(self) -> list[tuple[str, Tensor]]:
        """The canonical names of parameters and buffers, as in ``init_model_``."""
        found = gather(self._model)
        return [(named.name, named.tensor) for named in (*found.parameters, *found.buffers)]

    def may_have(self, tensor: Tensor) -> bool:
        """Whether a tensor may be one of the model's, or a view: quicker than listing them all."""
        if type(tensor) is not Tensor or storage_users(tensor) > 1:
            return True
        buffers = (part._buffers.values() for part in self._model.modules())
        return any(tensor is one for some in buffers for one in some)

    def module_that_draws(self) -> str | None:
        """The name of the module whose method draws."""
        module = module_that_draws()
        if module is None:
            return None
        known = self._modules.get(id(module))
        if known is None or known[0]() is not module:
            places = reversed(places_of(self._model))
            self._modules = {id(one): (ref(one), at.rstrip(".")) for at, one in places}
            known = self._modules.get(id(module))
        return None if known is None else known[1]


_Function = TypeVar("_Function", bound=Callable[..., Any])


def patch_nn_init(
    seed: int | None = None, names_from: Module | None = None, *, generators: bool = False
) -> Patch:
    """Runs existing code that calls ``torch.nn.init`` with torchinit's functions instead.

    >>> import torch, torchinit
    >>> with torchinit.patch_nn_init():
    ...     model = torch.nn.Linear(3, 4)

    It intercepts the functions of ``torch.nn.init`` (including references taken earlier, such as
    those held by Transformers), ``Tensor.normal_``, ``Tensor.uniform_``, and ``torch.randn``,
    ``rand``, ``randn_like``, ``rand_like`` and ``normal`` when looked up in ``torch``. Each gives
    the values of torchinit's function. Functions of timm and Transformers that compute their values
    (timm's truncated normals) are intercepted too, if the library is imported before the block
    begins. Torch still fills unsupported dtypes and subclasses; under compilers and transforms of
    ``torch.func``; for methods of tensors that require grad outside ``torch.no_grad()``; constants
    of less than 1 MiB, which it writes faster with the same values; and for calls with a generator
    other than ``torch.default_generator``, since the code may rely on torch's values.

    Other threads and asyncio tasks are not affected. When the last block ends, torch is restored.
    Blocks may be nested: the innermost applies. The returned object can be reused, and can decorate
    functions.

    Args:
        seed, names_from: given together: a seed, as for ``torch.manual_seed``, and a model. Fills
            of its parameters take keys derived from the seed and the parameter's name
            (docs/streams.md), not from the order of calls. Parameters may be replaced inside. A
            tied parameter has its smallest name; draws into parts of a parameter are numbered in
            order. A draw into any other tensor is a numbered part of the module whose method makes
            it; draws outside the model's modules are keyed as without names, and a warning at the
            end lists them. Direct calls of torchinit's functions draw from their own generators.
        generators: whether to serve calls with a generator too, as torchinit's functions do: keys
            are drawn from it, unless they are derived from names.

    Raises:
        ValueError: for a seed without names_from, or the reverse; for a seed out of range.
        TypeError: if seed is not an integer, names_from no module or generators no bool; if what it
            decorates is not a function, or is a generator.
    """
    return Patch(seed, names_from, generators)


class Patch:
    """The result of ``patch_nn_init``: a reusable context manager and decorator."""

    def __init__(self, seed: int | None, names_from: Module | None, generators: bool) -> None:
        check_flag("generators", generators)
        if (seed is None) != (names_from is None):
            raise ArgumentError(
                f"seed={seed!r} and names_from={type(names_from).__name__} must be given "
                "together: keys are derived from both"
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
        names = _NamesOf(self._names_from)
        return FillByName(
            keys_of_names(self._seed),
            names.tensors,
            may_be_new=names.may_have,
            name_elsewhere=names.module_that_draws,
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
        """The block to end: the last one that the caller began, not one of another thread."""
        for i in reversed(range(len(self._open))):
            if self._open[i].is_callers():
                return self._open.pop(i)
        return self._open.pop()  # a generator closed in another thread

    def __call__(self, function: _Function) -> _Function:
        """Decorates a function, so that each of its calls is a block."""
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(
                f"{function.__name__} is a generator, which runs on after its call: use a with "
                "statement inside it"
            )
        if not inspect.isroutine(function) and not isinstance(function, functools.partial):
            raise TypeError(f"{function!r} is not a function, which patch_nn_init(...) decorates")
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
