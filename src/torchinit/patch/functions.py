"""The functions of ``torch.nn.init``: their code objects, exchanged for ones that ask first.

Code objects and not attributes: whoever took a reference earlier holds the same function, and
Transformers' own init holds all of them. What is exchanged calls its hook through its constants, so
nothing appears among the names of ``torch.nn.init``. So are functions of other libraries, where one
of these is what they come to.
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
from torchinit.patch.factories import only_device_modes
from torchinit.patch.frames import Frame, current
from torchinit.schemes.calls import FUNCTIONS, Call

# What is exchanged, and the function whose call it is. Of the helpers of torch.nn.init, which some
# import, the other ones call a method of the tensor, which is intercepted itself.
_NAMES = {name: name for name in FUNCTIONS} | {"_no_grad_trunc_normal_": "trunc_normal_"}

# Reads what a function is called with: the tensor and all other arguments but a generator. None if
# the original is to run.
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


# Functions of other libraries that compute what they fill with, by the module that defines them,
# and the calls whose laws they have. What only calls others of these, or torch's, needs no line.
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

# Copies of the functions as they were, by module and name: what runs when nobody takes a call. Read
# by the code that is exchanged, when it is traced.
originals: dict[str, FunctionType] = {}

_PLACEHOLDER = "torchinit's hook"


class Exchange:
    """One function, and its two code objects.

    Args:
        function: of torch or of another library.
        read: what its calls are.
        is_torchs: whether function modes may know it.
    """

    def __init__(self, function: FunctionType, read: Read, *, is_torchs: bool) -> None:
        self.function = function
        self._before = function.__code__
        self._name = f"{function.__module__}.{function.__qualname__}"
        originals[self._name] = original = FunctionType(
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
        """Lets the function ask."""
        self.function.__code__ = self._ours

    def undo(self) -> None:
        """Gives the function its code back, unless somebody else has exchanged it since."""
        if self.function.__code__ is self._ours:
            self.function.__code__ = self._before


def exchanges(known: Collection[FunctionType] = ()) -> list[Exchange]:
    """What is to be exchanged beside known functions: torch's, and of libraries that are there."""
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
    """A function's parameters after the tensor but for the generator; whether it has one."""
    _, *others = inspect.signature(function).parameters
    has_generator = others[-1:] == ["generator"]
    return (others[:-1] if has_generator else others), has_generator


def _code_that_asks(function: FunctionType, name: str, hook: Callable[..., Tensor]) -> CodeType:
    """Code of a function's parameters and place, which calls a hook with them all.

    Dynamo traces the original instead; it could not take the hook for a constant.
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
    """What the exchanged code of a function calls, with its arguments by position."""
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
                return original(tensor, *values)  # type: ignore[no-any-return]  # they see its parts
            # The whole of the call to the modes, as torchinit's own functions do it: torch would
            # hand over the pieces of some. It comes back here when they are through.
            return handle_torch_function(  # type: ignore[no-any-return]
                function, (tensor,), tensor, *values
            )
        return serve(frame, tensor, values)

    def serve(frame: Frame, tensor: Tensor, values: tuple[Any, ...]) -> Tensor:
        if not is_transforming() and not has_torch_function_unary(tensor):
            call = read(tensor, *values)
            if call is None:  # but its parts are asked about
                return original(tensor, *values)  # type: ignore[no-any-return]
            if frame.ask(call, tensor, values[count] if has_generator else None):
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
