"""Families of models whose default initialisation is known, and the conditions for each."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.nn.parameter import Parameter
from torch.nn.utils.parametrize import is_parametrized

from torchinit.placement.distributed import is_dtensor
from torchinit.streams.canonical import Named, is_wrapper, places_of

# Their layers are equal copies after the constructor; resets would make them differ.
_COPIES = (nn.TransformerEncoder, nn.TransformerDecoder)


def own_class(module: nn.Module) -> Any:
    """The class of a module, without the subclasses of ``fully_shard`` and ``replicate``."""
    kind: Any = type(module)
    while len(kind.__bases__) == 2 and kind.__bases__[0].__module__.startswith("torch.distributed"):
        kind = kind.__bases__[1]
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
