"""Canonical names: what a parameter is called whatever its model is wrapped in.

Wrappers of ``torch.compile``, of activation checkpoints and of FSDP put atoms of their own into
names; data parallelism puts ``module.`` before them; a parametrized parameter goes by another name;
PEFT moves a whole model down. A key by name must not depend on any of it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor, nn
from torch.nn.parameter import Parameter

from torchinit.errors import ArgumentError

Rename: TypeAlias = "Mapping[str, str] | Callable[[str], str] | None"

_WRAPPERS = frozenset({"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"})
# Modules whose child "module" is the model: (where they are defined, name).
_ROOTS = (
    ("torch.nn.parallel.distributed", "DistributedDataParallel"),
    ("torch.nn.parallel.data_parallel", "DataParallel"),
    ("torch.optim.swa_utils", "AveragedModel"),
)


class Slot(NamedTuple):
    """Where a tensor is registered.

    Attributes:
        name: canonical.
        module: that registers it.
        attribute: the name it is registered by there.
        owner: the module that it belongs to: of a parametrized parameter, the one that it is a
            parameter of.
    """

    name: str
    module: nn.Module
    attribute: str
    owner: nn.Module


def parameter_slots(model: nn.Module, rename: Rename = None) -> Iterator[tuple[Slot, Parameter]]:
    """All places that parameters are registered at, of tied ones every one."""
    change = _renamer(rename)
    for prefix, module in canonical_modules(model):
        for attribute, parameter in module._parameters.items():
            if parameter is not None:
                yield _slot(prefix, module, attribute, change), parameter


def buffer_slots(model: nn.Module, rename: Rename = None) -> Iterator[tuple[Slot, Tensor]]:
    """All places that buffers are registered at."""
    change = _renamer(rename)
    for prefix, module in canonical_modules(model):
        for attribute, buffer in module._buffers.items():
            if buffer is not None:
                yield _slot(prefix, module, attribute, change), buffer


class Prefix(NamedTuple):
    """What stands before the names of a module's own parameters.

    Attributes:
        text: with a dot at the end, unless it is empty.
        parametrized: the module whose parametrizations this one holds, and the name of the
            parameter; None for any other module.
    """

    text: str
    parametrized: tuple[nn.Module, str] | None = None


def canonical_modules(model: nn.Module) -> Iterator[tuple[Prefix, nn.Module]]:
    """All modules of a model, shared ones at every place, parents before children."""
    yield from _walk(Prefix(""), _inner(model))
    if _inner(model) is not model:
        yield from _wrapper_buffers(model)


def _wrapper_buffers(model: nn.Module) -> Iterator[tuple[Prefix, nn.Module]]:
    inner, module = _inner(model), model
    while module is not inner:
        yield Prefix(""), module
        module = _below(module) or inner


def _inner(model: nn.Module) -> nn.Module:
    """The model within the wrappers of a root."""
    while (below := _below(model)) is not None:
        model = below
    return model


def _below(module: nn.Module) -> nn.Module | None:
    for name in _WRAPPERS:
        if name in module._modules:
            return module._modules[name]
    for where, name in _ROOTS:
        if _is_a(module, where, name):
            return module._modules["module"]
    if _is_a(module, "peft", "PeftModel"):
        tuner = module._modules["base_model"]
        if tuner is not None and _is_a(tuner, "peft.tuners.tuners_utils", "BaseTuner"):
            return tuner._modules["model"]
        return tuner
    return None


def _is_a(module: nn.Module, where: str, name: str) -> bool:
    """Whether a module is of a class that may not have been imported at all."""
    kind = getattr(sys.modules.get(where), name, None)
    return kind is not None and isinstance(module, kind)


def _walk(prefix: Prefix, module: nn.Module) -> Iterator[tuple[Prefix, nn.Module]]:
    yield prefix, module
    for name, child in module._modules.items():
        if child is not None:
            yield from _walk(_child_prefix(prefix, module, name, child), child)


def _child_prefix(prefix: Prefix, module: nn.Module, name: str, child: nn.Module) -> Prefix:
    text = prefix.text
    if name in _WRAPPERS:
        return prefix
    if name == "parametrizations" and hasattr(module, "parametrizations"):
        return Prefix(text, (module, ""))
    if prefix.parametrized is not None and prefix.parametrized[1] == "":
        return Prefix(text, (prefix.parametrized[0], name))
    if prefix.parametrized is not None:
        return Prefix(f"{text}parametrizations.{prefix.parametrized[1]}.{name}.")
    if name in ("base_layer", "original_module") and _is_adapted(module, name):
        return prefix
    del child
    return Prefix(f"{text}{name}.")


def _is_adapted(module: nn.Module, name: str) -> bool:
    if name == "base_layer":
        return _is_a(module, "peft.tuners.tuners_utils", "BaseTunerLayer")
    return _is_a(module, "peft.utils.other", "AuxiliaryTrainingWrapper")


def _slot(
    prefix: Prefix, module: nn.Module, attribute: str, change: Callable[[str], str] | None
) -> Slot:
    if prefix.parametrized is None:
        name, owner = prefix.text + attribute, module
    else:
        owner, parameter = prefix.parametrized
        if attribute == "original":
            name = prefix.text + parameter
        else:
            name = f"{prefix.text}parametrizations.{parameter}.{attribute}"
    return Slot(name if change is None else change(name), module, attribute, owner)


def _renamer(rename: Rename) -> Callable[[str], str] | None:
    if rename is None:
        return None
    if isinstance(rename, Mapping):
        names = dict(rename)
        change: Callable[[str], str] = lambda name: names.get(name, name)  # noqa: E731
    elif callable(rename):
        change = rename
    else:
        raise TypeError(
            f"rename must be a mapping or a function of a name, not {type(rename).__name__}"
        )

    def checked(name: str) -> str:
        new = change(name)
        if not isinstance(new, str) or not new:
            raise ArgumentError(f"rename gave {new!r} for {name!r}: expected a name")
        return new

    return checked


class Named(NamedTuple):
    """A parameter or buffer, and the places that it is registered at.

    Attributes:
        name: the smallest of its canonical names, which its key is made of.
        tensor: itself.
        slots: the places.
    """

    name: str
    tensor: Any
    slots: list[Slot]


def gather(slots: Iterator[tuple[Slot, Any]]) -> list[Named]:
    """Tensors once each, in the order of their first place.

    Raises:
        ArgumentError: for two tensors of one name: they would be the same values.
    """
    found: dict[int, tuple[Any, list[Slot]]] = {}
    for slot, tensor in slots:
        known = found.get(id(tensor))
        if known is None:
            found[id(tensor)] = tensor, [slot]
        else:
            known[1].append(slot)
    names: set[str] = set()
    gathered = []
    for tensor, places in found.values():
        name = places[0].name if len(places) == 1 else min(slot.name for slot in places)
        if name in names:
            raise ArgumentError(f"two parameters are named {name!r}: they would have equal values")
        names.add(name)
        gathered.append(Named(name, tensor, places))
    return gathered
