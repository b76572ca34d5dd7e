"""Runs a model's own init methods on stand-ins for its tensors."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.parameter import Parameter, is_lazy

from torchinit.fill.route import PLAIN_TYPES
from torchinit.frameworks.conventions import RESETS
from torchinit.frameworks.transformers import INITIALIZED_FLAG
from torchinit.models.materialise import put_parameter
from torchinit.placement.distributed import is_dtensor, local_memory
from torchinit.streams.canonical import Named, gather


def resets_of(module: nn.Module) -> list[Callable[[], object]]:
    """A module's reset methods, which the constructors of torch's modules call last."""
    return [call for method in RESETS if (call := bound(module, method)) is not None]


def bound(module: nn.Module, method: str) -> Callable[[], object] | None:
    """A method as a call without arguments, buffers on the CPU; None if it needs arguments."""
    function = getattr(module, method, None)
    if isinstance(module, torch.jit.ScriptModule) or not callable(function):
        return None
    parameters = inspect.signature(function).parameters
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    required = {
        name for name, one in parameters.items()
        if one.default is inspect.Parameter.empty and one.kind not in variadic
    }  # fmt: skip
    if not required <= {"buffer_device"}:
        return None
    call = function
    if "buffer_device" in parameters:
        call = functools.partial(function, buffer_device=torch.device("cpu"))
        functools.update_wrapper(call, function)
    return call  # type: ignore[no-any-return]


def put_twins(parameters: Sequence[Named], buffers: Sequence[Named]) -> None:
    """Replaces a model's parameters by unwritten tensors on the CPU, and its buffers by copies."""
    for named in parameters:
        old = named.tensor
        if is_lazy(old) or not (type(old) in PLAIN_TYPES or is_dtensor(old)):
            continue
        memory = torch.empty_strided(old.shape, old.stride(), dtype=old.dtype, device="cpu")
        twin = Parameter(memory, old.requires_grad)
        twin.__dict__.update(
            {name: x for name, x in old.__dict__.items() if name != INITIALIZED_FLAG}
        )
        for slot in named.slots:
            put_parameter(slot, twin)
    for named in buffers:
        old, here = named.tensor, local_memory(named.tensor).detach()
        copy_ = (  # of a shard, only what modules write is known
            torch.empty_strided(old.shape, old.stride(), dtype=old.dtype, device="cpu")
            if old.is_meta or here.shape != old.shape else here.clone()
        )  # fmt: skip
        for slot in named.slots:
            slot.module._buffers[slot.attribute] = copy_


def _attributes(module: nn.Module) -> dict[str, Tensor]:
    """A module's plain tensor attributes, which are not registered."""
    return {name: one for name, one in module.__dict__.items() if isinstance(one, Tensor)}


@contextlib.contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """Restores every parameter, buffer and tensor attribute at the end of the block."""
    parameters = gather(model)[0]
    registered = [
        (module, dict(module._parameters), dict(module._buffers), _attributes(module))
        for module in model.modules()
        if not isinstance(module, torch.jit.ScriptModule)
    ]
    try:
        yield
    finally:
        for module, its_parameters, its_buffers, attributes in registered:
            for name, value in attributes.items():
                module.__dict__[name] = value
            module._parameters.clear()
            module._parameters.update(its_parameters)
            module._buffers.clear()
            module._buffers.update(its_buffers)
        for named in parameters:
            for slot in named.slots:
                put_parameter(slot, named.tensor)
