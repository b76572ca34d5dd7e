"""Runs a model's own init methods on stand-ins, and decides if they give its default values."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import Parameter, is_lazy
from torch.nn.utils.parametrize import is_parametrized

from torchinit.fill.route import PLAIN_TYPES
from torchinit.frameworks.conventions import RESETS, parameters_of_method
from torchinit.frameworks.transformers import INITIALIZED_FLAG
from torchinit.models.carry_out import put_parameter
from torchinit.placement.distributed import is_dtensor, local_memory
from torchinit.streams.canonical import Named, gather, is_wrapper, places_of

# Their layers are equal copies after the constructor; resets would make them differ.
_COPIES = (nn.TransformerEncoder, nn.TransformerDecoder)


def resets_of(module: nn.Module) -> list[Callable[[], object]]:
    """A module's reset methods, which the constructors of torch's modules call last."""
    return [call for method in RESETS if (call := bound(module, method)) is not None]


def bound(module: nn.Module, method: str) -> Callable[[], object] | None:
    """A method as a call without arguments, buffers on the CPU; None if it needs arguments."""
    parameters = parameters_of_method(module, method)
    if isinstance(module, torch.jit.ScriptModule) or parameters is None:
        return None
    arguments = {}
    if "buffer_device" in parameters:
        arguments["buffer_device"] = torch.device("cpu")
    try:
        inspect.Signature(list(parameters.values())).bind(**arguments)
    except TypeError:
        return None
    return functools.partial(getattr(module, method), **arguments)


def put_twins(parameters: Sequence[Named], buffers: Sequence[Named]) -> dict[int, Tensor]:
    """Replaces a model's parameters by unwritten tensors on the CPU, and its buffers by copies.

    Returns:
        What stands for each tensor, by its id.
    """
    twins: dict[int, Tensor] = {}
    for named in parameters:
        old = named.tensor
        if is_lazy(old) or not (type(old) in PLAIN_TYPES or is_dtensor(old)):
            continue
        twin = Parameter(_on_cpu(old), old.requires_grad)
        twin.__dict__.update(
            {name: x for name, x in old.__dict__.items() if name != INITIALIZED_FLAG}
        )
        twins[id(old)] = twin
        for slot in named.slots:
            put_parameter(slot, twin)
    for named in buffers:
        old, here = named.tensor, local_memory(named.tensor).detach()
        # There is no full tensor to copy for a shard: it starts unwritten.
        is_unknown = old.is_meta or here.shape != old.shape
        copy_ = _on_cpu(old) if is_unknown else here.clone()
        twins[id(old)] = copy_
        for slot in named.slots:
            slot.module._buffers[slot.attribute] = copy_
    return twins


def _on_cpu(like: Tensor) -> Tensor:
    """Uninitialised memory on the CPU with a tensor's shape, strides and dtype."""
    return torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device="cpu")


@contextlib.contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """Restores every parameter, buffer and tensor attribute at the end of the block."""
    parameters = gather(model).parameters
    held = []
    for module in model.modules():
        if not isinstance(module, torch.jit.ScriptModule):
            own = module.__dict__
            plain = {name: one for name, one in own.items() if isinstance(one, Tensor)}
            held.append((own, plain, dict(own["_parameters"]), dict(own["_buffers"])))
    try:
        yield
    finally:
        for own, plain, its_parameters, its_buffers in held:
            own.update(plain)
            for name, before in (("_parameters", its_parameters), ("_buffers", its_buffers)):
                own[name].clear()
                own[name].update(before)
        for named in parameters:
            for slot in named.slots:
                put_parameter(slot, named.tensor)


def own_class(module: nn.Module) -> Any:
    """The class of a module, without the subclasses that torch makes of it.

    Those of ``fully_shard``, ``replicate`` and parametrizations.
    """
    kind: Any = type(module)
    while True:
        above = kind.__bases__
        if len(above) == 2 and above[0].__module__.startswith("torch.distributed"):
            kind = above[1]
        elif kind.__module__ == "torch.nn.utils.parametrize" and len(above) == 1:
            kind = above[0]
        else:
            return kind


def why_not_by_resets(model: nn.Module) -> str:
    """Why resets may not reproduce a model's default initialisation; empty if they do."""
    for prefix, module in places_of(model):
        if is_wrapper(module):
            continue
        kind, name = own_class(module), prefix.rstrip(".") or "the model"
        if not kind.__module__.startswith("torch.nn.modules.") or kind is nn.Module:
            return f"only the constructor of {kind.__name__} knows its initialisation"
        if is_parametrized(module):
            return f"{name} is parametrized"
        if isinstance(module, _COPIES):
            return f"the layers of {kind.__name__} are copies of one layer"
        hooks = [
            hook for attribute in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
            for hook in getattr(module, attribute, {}).values()
        ]  # fmt: skip
        if not all(map(_is_torchs, hooks)):
            return f"{name} has a hook"
    return ""


def copy_among(parameters: Sequence[Named]) -> str | None:
    """The name of a parameter that was never written to, if others were.

    It is probably a copy of another parameter, and resets would make the two differ. After
    ``to_empty``, no parameter has been written to.
    """
    plain = [one for one in parameters if type(one.tensor) is Parameter and one.tensor.numel()]
    fresh = [one.name for one in plain if not one.tensor.is_inference() and not one.tensor._version]
    return fresh[0] if 0 < len(fresh) < len(plain) else None


def _is_torchs(hook: Any) -> bool:
    while isinstance(hook, functools.partial):
        hook = hook.func
    return str(getattr(hook, "__module__", type(hook).__module__)).startswith("torch.")


def was_written_to(tensor: Any, twin: Any) -> bool:
    """Whether a tensor was written to more often than its module's resets write to it.

    The version counter of a copy is 0, and so is that of new memory, as after ``to_empty``; on the
    meta device a counter of 0 always means a copy.
    """
    if is_dtensor(tensor) or tensor.is_inference() or not isinstance(tensor, Parameter):
        return False
    return tensor._version > twin._version or (tensor.is_meta and not tensor._version)
