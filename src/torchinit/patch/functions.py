"""The functions of ``torch.nn.init``: their code objects, exchanged for ones that ask first.

Code objects and not attributes: whoever took a reference earlier holds the same function, and
Transformers' own init holds all of them. What is exchanged calls its hook through its constants, so
nothing appears among the names of ``torch.nn.init``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any

from torch import Tensor
from torch.compiler import is_compiling
from torch.nn import init as torch_init
from torch.overrides import handle_torch_function, has_torch_function_unary

from torchinit.native.torch_private import function_modes, is_transforming
from torchinit.patch.frames import Frame, current
from torchinit.schemes.calls import FUNCTIONS, Call

# What is exchanged, and the function whose call it is. Of the helpers of torch.nn.init, which some
# import, the other ones call a method of the tensor, which is intercepted itself.
_NAMES = {name: name for name in FUNCTIONS} | {"_no_grad_trunc_normal_": "trunc_normal_"}

# Copies of the functions as they were, by name: what runs when nobody takes a call. Read by the
# code that is exchanged, when it is traced.
originals: dict[str, FunctionType] = {}

_PLACEHOLDER = "torchinit's hook"


class Exchange:
    """One function, and its two code objects."""

    def __init__(self, function: FunctionType, name: str) -> None:
        self.function = function
        self._before = function.__code__
        originals[function.__name__] = original = FunctionType(
            function.__code__,
            function.__globals__,
            function.__name__,
            function.__defaults__,
            function.__closure__,
        )
        original.__kwdefaults__ = function.__kwdefaults__
        original.__module__ = function.__module__
        original.__qualname__ = function.__qualname__
        self._ours = _code_that_asks(function, _hook(function, original, name))

    def do(self) -> None:
        """Lets the function ask."""
        self.function.__code__ = self._ours

    def undo(self) -> None:
        """Gives the function its code back, unless somebody else has exchanged it since."""
        if self.function.__code__ is self._ours:
            self.function.__code__ = self._before


def exchanges() -> list[Exchange]:
    """What is to be exchanged in the functions as they are now."""
    return [Exchange(_functions[name], call) for name, call in _NAMES.items() if name in _functions]


def _code_that_asks(function: FunctionType, hook: Callable[..., Tensor]) -> CodeType:
    """Code of a function's parameters and place, which calls a hook with them all.

    Dynamo traces the original instead; it could not take the hook for a constant.
    """
    code = function.__code__
    parameters = ", ".join(code.co_varnames[: code.co_argcount])
    source = f"""
def {function.__name__}({parameters}):
    if torch.compiler.is_dynamo_compiling():
        from torchinit.patch.functions import originals
        return originals[{function.__name__!r}]({parameters})
    hook = {_PLACEHOLDER!r}
    return hook({parameters})
"""
    names: dict[str, Any] = {}
    exec(compile(source, code.co_filename, "exec"), names)
    ours: CodeType = names[function.__name__].__code__
    return ours.replace(
        co_consts=tuple(hook if value == _PLACEHOLDER else value for value in ours.co_consts),
        co_firstlineno=code.co_firstlineno,
    )


def _hook(function: FunctionType, original: FunctionType, name: str) -> Callable[..., Tensor]:
    """What the exchanged code of a function calls, with its arguments by position."""
    parameters = list(inspect.signature(function).parameters)
    has_generator = parameters[-1] == "generator"
    others = parameters[1:-1] if has_generator else parameters[1:]
    count = len(others)

    def hook(tensor: Tensor, *values: Any) -> Tensor:
        frame = current()
        if frame is None or not isinstance(tensor, Tensor) or is_compiling():
            return original(tensor, *values)  # type: ignore[no-any-return]
        if has_torch_function_unary(tensor) and function_modes():
            # The whole of the call to the modes, as torchinit's own functions do it: torch would
            # hand over the pieces of some. It comes back here when they are through.
            return handle_torch_function(  # type: ignore[no-any-return]
                function, (tensor,), tensor, *values
            )
        return serve(frame, tensor, values)

    def serve(frame: Frame, tensor: Tensor, values: tuple[Any, ...]) -> Tensor:
        if not is_transforming() and not has_torch_function_unary(tensor):
            generator = values[count] if has_generator else None
            call = Call(name, dict(zip(others, values, strict=False)))
            if frame.ask(call, tensor, generator):
                return tensor
        frame.busy = True
        try:
            return original(tensor, *values)  # type: ignore[no-any-return]
        finally:
            frame.busy = False

    return hook


# Taken when this is imported: while Transformers builds a model, the attributes are its own.
_functions: dict[str, FunctionType] = {
    name: function
    for name in _NAMES
    if isinstance(function := getattr(torch_init, name, None), FunctionType)
}
