"""Private names of torch, imported only here, each with a stand-in.

A name that no longer exists is noted in ``missing``, which ``torchinit info`` lists. Its stand-in
sends every fill to the operators, which need none of these: slower for small tensors, but correct.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from contextlib import nullcontext
from operator import attrgetter
from typing import Any

import torch
from torch.autograd import forward_ad, graph

missing: list[str] = []


def _find(module: str, name: str, stand_in: Any) -> Any:
    try:
        return attrgetter(name)(importlib.import_module(module))
    except (ImportError, AttributeError):
        missing.append(f"{module}.{name}")
        return stand_in


# Neither None nor a value that torch returns, so fills go to the operators, which decide
# themselves.
_UNKNOWN = "unknown"


class _NoFakeTensor:
    """Stands in for FakeTensor: nothing is an instance."""


# How many TorchDispatchModes are on.
dispatch_modes: Callable[[], int] = _find("torch._C", "_len_torch_dispatch_stack", lambda: 1)
# How many TorchFunctionModes are on.
function_modes: Callable[[], int] = _find("torch._C", "_len_torch_function_stack", lambda: 0)
# The innermost transform of torch.func, or None.
innermost_transform: Callable[[], object] = _find(
    "torch._C._functorch", "peek_interpreter_stack", lambda: _UNKNOWN
)
# All of them, outermost first; None if there are none.
transforms: Callable[[], list[Any] | None] = _find(
    "torch._C._functorch", "get_interpreter_stack", lambda: None
)
# What torch.jit.trace is recording, or None.
jit_trace: Callable[[], object] = _find("torch._C", "_get_tracing_state", lambda: _UNKNOWN)
# Increases the versions of tensors, for autograd; inference tensors are skipped.
count_writes: Callable[[Any], None] = _find(
    "torch._C", "_increment_version", graph.increment_version
)
# Does what Parameter(data, requires_grad) does, without its checks.
make_parameter: Callable[[type, Any, bool], Any] = _find(
    "torch", "Tensor._make_subclass", lambda kind, data, requires_grad: kind(data, requires_grad)
)
# A number that is equal for tensors of one storage, also on the meta device.
storage_number: Callable[[Any], int] = _find(
    "torch", "_C._storage_id", lambda tensor: tensor.untyped_storage()._cdata
)
# The reference count of a storage: see storage_users.
_use_count: Callable[[int], int] = _find("torch", "_C._storage_Use_Count", lambda _: 1 << 30)
FakeTensor: type = _find("torch._subclasses.fake_tensor", "FakeTensor", _NoFakeTensor)


_set_strategy: Any = _find("torch._C._dynamo.eval_frame", "set_code_exec_strategy", None)
_FrameAction: Any = _find("torch._C._dynamo.eval_frame", "_FrameAction", None)
_FrameStrategy: Any = _find("torch._C._dynamo.eval_frame", "_FrameExecStrategy", None)


def never_compile(function: Any) -> bool:
    """Makes ``torch.compile`` skip a function and its callees; False if that is impossible.

    Like ``torch.compiler.disable``, but without a wrapper, which would take as long as a small
    function, and without importing the compiler.
    """
    if _set_strategy is None or _FrameAction is None or _FrameStrategy is None:
        return False
    skip = _FrameAction.SKIP
    _set_strategy(function.__code__, _FrameStrategy(skip, skip))
    return True


def storage_users(tensor: Any) -> int:
    """How many tensors share a tensor's storage; a larger number where torch does not say."""
    probe = torch.empty(0)
    probe.untyped_storage()  # its Python object counts as one more
    tensor.untyped_storage()
    return _use_count(storage_number(tensor)) - _use_count(storage_number(probe)) + 1


def _level_unknown() -> int:
    return 0


def _level() -> int:
    return forward_ad._current_level


# The innermost open level of forward-mode differentiation; negative if there is none.
dual_level: Callable[[], int] = _level
level_is_known = hasattr(forward_ad, "_current_level")
if not level_is_known:
    missing.append("torch.autograd.forward_ad._current_level")
    dual_level = _level_unknown


is_zero: Callable[[Any], bool] = _find("torch", "Tensor._is_zerotensor", lambda _: False)
_is_functional: Callable[[Any], bool] = _find("torch", "_is_functional_tensor", lambda _: False)


def is_functionalizing(tensor: Any) -> bool:
    """Whether ``torch.func.functionalize`` is active, or a tensor is one of its values."""
    if innermost_transform() is None:
        return _is_functional(tensor)
    return any(transform.key().name == "Functionalize" for transform in transforms() or ())


_in_functorch: Callable[[Any], bool] = _find(
    "torch._C._functorch", "is_functorch_wrapped_tensor", lambda _: False
)


def is_wrapped(tensor: Any) -> bool:
    """Whether a tensor is a value of a transform of torch.func, which hides its memory."""
    return _is_functional(tensor) or _in_functorch(tensor)


def is_transforming() -> bool:
    """Whether a transform of torch.func is known to be active."""
    return innermost_transform() not in (None, _UNKNOWN)


def is_tracing() -> bool:
    """Whether torch.jit.trace is known to be recording."""
    return jit_trace() not in (None, _UNKNOWN)


def vmap_level(tensor: Any) -> tuple[str, bool]:
    """The randomness mode of the innermost vmap, and whether a tensor is batched by it."""
    from torch._C import _functorch
    from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter

    interpreter: Any = retrieve_current_functorch_interpreter()
    level = interpreter.level()
    batched = _functorch.is_batchedtensor(tensor) and _functorch.maybe_get_level(tensor) == level
    return interpreter.randomness(), bool(batched)


def below_vmap() -> Any:
    """A context in which the dispatcher skips vmap's own checks."""
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.FuncTorchVmapMode)
    return torch._C._ExcludeDispatchKeyGuard(keys)


# The TorchFunctionModes that are on, outermost first.
function_mode_stack: Callable[[], list[Any]] = _find(
    "torch.overrides", "_get_current_function_mode_stack", lambda: ["unknown"]
)


class _NoDeviceContext:
    """Stands in for DeviceContext: nothing is an instance."""


# The mode that ``with torch.device(...)`` and ``torch.set_default_device`` push.
DeviceContext: type = _find("torch.utils._device", "DeviceContext", _NoDeviceContext)
# The functions to which it passes its device: a set that torch makes once and keeps.
device_constructors: Callable[[], object] = _find(
    "torch.utils._device", "_device_constructors", lambda: None
)


class _StrongReference:
    """Stands in for StorageWeakRef: nothing expires."""

    def __init__(self, storage: Any) -> None:
        self.storage = storage
        self.cdata = id(storage)

    def expired(self) -> bool:
        return False


# Knows whether a storage is alive, without keeping it so; keeps its address from being reused.
StorageWeakRef: Any = _find("torch.multiprocessing.reductions", "StorageWeakRef", _StrongReference)
# From the cdata of such a reference: its storage, or None if that is gone. None if torch lacks it.
storage_of_reference: Callable[[int], Any] | None = _find(
    "torch", "UntypedStorage._new_with_weak_ptr", None
)
# A context that hides calls from function modes and tensor subclasses.
unseen: Callable[[], Any] = _find("torch._C", "DisableTorchFunction", nullcontext)


# Tells torch.jit that a Python function stands for one of its operators; and their table.
_teach_jit: Callable[[Any, str], None] = _find(
    "torch.jit._builtins", "_register_builtin", lambda *_: None
)
_known_to_jit: Callable[[], dict[int, str]] = _find(
    "torch.jit._builtins", "_get_builtin_table", dict
)


def teach_jit(function: Any, operator: str) -> None:
    """Lets ``torch.jit.script`` take a function for an operator."""
    _teach_jit(function, operator)


def unteach_jit(function: Any) -> None:
    """Undoes ``teach_jit``."""
    _known_to_jit().pop(id(function), None)


_DYNAMO = "torch._dynamo.trace_rules"
# What torch.compile caches about torch's own functions, by their identity.
_MEMORIES = ("get_torch_obj_rule_map", "get_tensor_method")


def remember_functions() -> bool:
    """Makes ``torch.compile`` cache torch's functions as they are; False if it is not loaded."""
    rules = sys.modules.get(_DYNAMO)
    for name in _MEMORIES if rules else ():
        getattr(rules, name, bool)()
    return rules is not None


def forget_functions() -> None:
    """Clears what ``torch.compile`` has cached about torch's functions."""
    rules = sys.modules.get(_DYNAMO)
    for name in _MEMORIES if rules else ():
        getattr(getattr(rules, name, None), "cache_clear", bool)()
