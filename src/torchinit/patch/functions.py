"""Intercepts the functions of ``torch.nn.init`` by exchanging their code objects.

Exchanging code objects instead of attributes also intercepts references taken earlier, such as
those that Transformers' init holds. The new code finds its hook in its constants, so nothing is
added to the names of ``torch.nn.init``. Equivalent functions of other libraries are intercepted in
the same way.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Collection
from types import CodeType, FunctionType
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.nn import init as torch_init
from torch.overrides import handle_torch_function, has_torch_function_unary

from torchinit.native.torch_private import function_modes, is_transforming
from torchinit.patch.frames import Frame, current
from torchinit.patch.hooks import only_device_modes
from torchinit.schemes.calls import FUNCTIONS, Call

# The functions to exchange, and the function that each call is read as. The other private helpers
# of torch.nn.init call a method of the tensor, which is intercepted itself.
_NAMES = {name: name for name in FUNCTIONS} | {"_no_grad_trunc_normal_": "trunc_normal_"}

# Reads a function's arguments, the tensor first, without a generator. Returns None to run the
# original.
Read: TypeAlias = "Callable[..., Call | None]"


def _truncated(_tensor: Tensor, mean: Any, std: Any, a: Any, b: Any) -> Call | None:
    numbers = {"mean": mean, "std": std, "a": a, "b": b}
    if not all(isinstance(one, int | float) for one in numbers.values()) or std <= 0 or a >= b:
        return None
    return Call("trunc_normal_", numbers)


def _truncated_at_stds(_tensor: Tensor, mean: Any, std: Any, a: Any, b: Any) -> Call | None:
    call = _truncated(_tensor, mean, std, a, b)
    return call and _truncated(_tensor, mean, std, mean + a * std, mean + b * std)


def _orthogonal(tensor: Tensor, gain: Any) -> Call | None:
    is_loaded = getattr(tensor, "_is_hf_initialized", False)
    return None if is_loaded else Call("orthogonal_", {"gain": gain})


# Functions of other libraries that compute their values, by defining module, and the calls with the
# same distributions. Functions that only call these or torch's need no line.
LIBRARIES: dict[str, dict[str, Read]] = {
    "timm.layers.weight_init": {
        "trunc_normal_": _truncated,
        "trunc_normal_tf_": _truncated_at_stds,
    },
    "transformers.initialization": {"orthogonal_": _orthogonal},
    # Transformers 4
    "transformers.models.siglip.modeling_siglip": {"trunc_normal_tf_": _truncated_at_stds},
    "transformers.models.siglip2.modeling_siglip2": {"trunc_normal_tf_": _truncated_at_stds},
    "transformers.models.phi4_multimodal.modeling_phi4_multimodal": {
        "trunc_normal_tf_": _truncated_at_stds
    },
}

# Copies of the original functions by module and name, which run when no handler takes a call. The
# exchanged code reads them when it is traced.
originals: dict[str, FunctionType] = {}

_PLACEHOLDER = "torchinit's hook"


class Exchange:
    """One function with its original and intercepting code objects.

    Args:
        function: a function of torch or another library.
        read: reads its calls.
        is_torchs: whether it is torch's, so that function modes handle it.
    """

    def __init__(self, function: FunctionType, read: Read, *, is_torchs: bool) -> None:
        self.function = function
        self._before = function.__code__
        self._name = f"{function.__module__}.{function.__qualname__}"
        self._original = original = FunctionType(
            function.__code__,
            function.__globals__,
            function.__name__,
            function.__defaults__,
            function.__closure__,
        )
        original.__kwdefaults__ = function.__kwdefaults__
        original.__module__ = function.__module__
        original.__qualname__ = function.__qualname__
        hook = _hook(function, original, read, is_torchs=is_torchs)
        self._ours = _code_that_asks(function, self._name, hook)

    def do(self) -> None:
        """Installs the intercepting code; does nothing if it is there."""
        originals[self._name] = self._original
        self.function.__code__ = self._ours

    def undo(self) -> None:
        """Restores the original code, unless other code has replaced it since."""
        if self.function.__code__ is self._ours:
            self.function.__code__ = self._before


def exchanges(known: Collection[FunctionType] = ()) -> list[Exchange]:
    """Exchanges for functions of torch and of imported libraries that are not known yet."""
    found = [
        Exchange(function, _reader(name, function), is_torchs=True)
        for name, function in _functions.items()
        if function not in known
    ]
    for where, readers in LIBRARIES.items():
        module = sys.modules.get(where)
        for name, read in readers.items() if module is not None else ():
            function = vars(module).get(name)
            if (
                isinstance(function, FunctionType)
                and function not in known
                and _parameters(function)[0] == _parameters(read)[0]
                and function.__closure__ is None
                and function.__globals__.get("torch") is torch
            ):
                found.append(Exchange(function, read, is_torchs=False))
    return found


def _reader(name: str, function: Callable[..., Any]) -> Read:
    """Reads the calls of a function of ``torch.nn.init``."""
    others, _ = _parameters(function)
    call = _NAMES[name]
    return lambda _tensor, *values: Call(call, dict(zip(others, values, strict=False)))


def _parameters(function: Callable[..., Any]) -> tuple[list[str], bool]:
    """A function's parameters without tensor and generator, and whether it has a generator."""
    _, *others = inspect.signature(function).parameters
    has_generator = others[-1:] == ["generator"]
    return (others[:-1] if has_generator else others), has_generator


def _code_that_asks(function: FunctionType, name: str, hook: Callable[..., Tensor]) -> CodeType:
    """Code with a function's parameters and source location that calls a hook.

    Dynamo traces the original instead, since it does not accept the hook as a constant.
    """
    code = function.__code__
    parameters = ", ".join(code.co_varnames[: code.co_argcount])
    source = f"""
def {function.__name__}({parameters}):
    if torch.compiler.is_dynamo_compiling():
        from torchinit.patch.functions import originals
        return originals[{name!r}]({parameters})
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


def _hook(
    function: FunctionType, original: FunctionType, read: Read, *, is_torchs: bool
) -> Callable[..., Tensor]:
    """The function that the exchanged code calls, with all arguments by position."""
    others, has_generator = _parameters(function)
    count = len(others)
    if has_generator and not is_torchs:
        read_all = read
        read = lambda tensor, *values: read_all(tensor, *values[:count])  # noqa: E731

    def hook(tensor: Tensor, *values: Any) -> Tensor:
        frame = current()
        if frame is None or not isinstance(tensor, Tensor) or is_compiling():
            return original(tensor, *values)  # type: ignore[no-any-return]
        if has_torch_function_unary(tensor) and function_modes():
            if not is_torchs and not only_device_modes():
                return original(tensor, *values)  # type: ignore[no-any-return]  # modes see its ops
            # Function modes receive the whole call, as from torchinit's own functions; torch would
            # pass them only the operators of some. It returns here after the modes.
            return handle_torch_function(  # type: ignore[no-any-return]
                function, (tensor,), tensor, *values
            )
        return serve(frame, tensor, values)

    def serve(frame: Frame, tensor: Tensor, values: tuple[Any, ...]) -> Tensor:
        if not is_transforming() and not has_torch_function_unary(tensor):
            call = read(tensor, *values)
            if call is None:  # the calls inside it are still intercepted
                return original(tensor, *values)  # type: ignore[no-any-return]
            if frame.ask(call, tensor, values[count] if has_generator else None):
                return tensor
        frame.busy = True
        try:
            return original(tensor, *values)  # type: ignore[no-any-return]
        finally:
            frame.busy = False

    return hook


# Taken at import, since Transformers replaces the attributes while it builds a model.
_functions: dict[str, FunctionType] = {
    name: function
    for name in _NAMES
    if isinstance(function := getattr(torch_init, name, None), FunctionType)
}
