"""Canonical names: what a parameter is called whatever its model is wrapped in.

Wrappers of ``torch.compile``, of activation checkpoints and of FSDP put atoms of their own into
names; data parallelism puts ``module.`` before them; a parametrized parameter goes by another name;
PEFT moves a whole model down. A key by name must not depend on any of it.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from torchinit.errors import ArgumentError

Rename: TypeAlias = "Mapping[str, str] | Callable[[str], str] | None"

# What a named tuple's own constructor does, in half the time: models have thousands of parameters.
new_tuple: Callable[..., Any] = tuple.__new__

_WRAPPERS = frozenset({"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"})
# Children that may have no part in names.
_TRANSPARENT = _WRAPPERS | {"parametrizations", "base_layer", "original_module"}
# Modules whose child "module" is the model: (where they are defined, name).
_ROOTS = (
    ("torch.nn.parallel.distributed", "DistributedDataParallel"),
    ("torch.nn.parallel.data_parallel", "DataParallel"),
    ("torch.optim.swa_utils", "AveragedModel"),
)


# A module at one of its places in a model: the prefix of its parameters' canonical names, with a
# dot at the end or empty; itself; and, of a module that holds the parametrizations of a parameter,
# the module that this one belongs to and its name.
Place: TypeAlias = "tuple[str, nn.Module, tuple[nn.Module, str] | None]"


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


class Named(NamedTuple):
    """A parameter or buffer, and where it is registered.

    Attributes:
        name: the smallest of its canonical names, which its key is made of.
        tensor: itself.
        module, attribute, owner: of the first place that it is registered at, as in a Slot.
        ties: all places, of a tensor that has more than one.
    """

    name: str
    tensor: Any
    module: nn.Module
    attribute: str
    owner: nn.Module
    ties: Sequence[Slot] = ()

    @property
    def slots(self) -> Sequence[Slot]:
        """All places."""
        return self.ties or (Slot(self.name, self.module, self.attribute, self.owner),)


def places_of(model: nn.Module) -> list[Place]:
    """All modules of a model, shared ones at every place, parents before children."""
    places: list[Place] = []
    while (below := _below(model)) is not None:
        places.append(("", model, None))  # a wrapper, which may have buffers of its own
        model = below
    places.append(("", model, None))
    _walk("", model, None, places)
    return places


def named_parameters(places: Sequence[Place], rename: Rename = None) -> list[Named]:
    """All parameters, tied ones once.

    Raises:
        ArgumentError: for two parameters of one name, or a rename that gives no name.
    """
    return _gather(places, "_parameters", _renamer(rename))


def named_buffers(places: Sequence[Place], rename: Rename = None) -> list[Named]:
    """All buffers; raises as ``named_parameters``."""
    return _gather(places, "_buffers", _renamer(rename))


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


def _walk(
    prefix: str, module: nn.Module, within: tuple[nn.Module, str] | None, places: list[Place]
) -> None:
    """Adds what lies below a module; within is as in a Place, in a container without a name."""
    for name, child in module.__dict__["_modules"].items():
        if child is None:
            continue
        below, inside = f"{prefix}{name}.", None
        if within is not None:
            owner, parameter = within
            if parameter:
                below = f"{prefix}parametrizations.{parameter}.{name}."
            else:
                below, inside = prefix, (owner, name)
        elif name in _TRANSPARENT:
            if name == "parametrizations" and is_parametrized(module):
                below, inside = prefix, (module, "")
            elif name in _WRAPPERS or _is_adapted(module, name):
                below = prefix
        places.append((below, child, inside))
        if child.__dict__["_modules"]:
            _walk(below, child, inside, places)


def _is_adapted(module: nn.Module, name: str) -> bool:
    """Whether a child is what PEFT has put an adapter around."""
    if name == "base_layer":
        return _is_a(module, "peft.tuners.tuners_utils", "BaseTunerLayer")
    return name == "original_module" and _is_a(
        module, "peft.utils.other", "AuxiliaryTrainingWrapper"
    )


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


def _gather(
    places: Sequence[Place], registry: str, change: Callable[[str], str] | None
) -> list[Named]:
    found: dict[int, Named] = {}
    for prefix, module, parametrizes in places:
        registered = module.__dict__[registry]
        if not registered:
            continue
        for attribute, tensor in registered.items():
            if tensor is None:
                continue
            name, owner = prefix + attribute, module
            if parametrizes is not None:
                owner = parametrizes[0]
                name = f"{prefix}{_parametrized(parametrizes[1], attribute)}"
            if change is not None:
                name = change(name)
            number = id(tensor)
            if number in found:
                found[number] = _tie(found[number], Slot(name, module, attribute, owner))
            else:
                found[number] = new_tuple(Named, (name, tensor, module, attribute, owner, ()))
    gathered = list(found.values())
    if len({named[0] for named in gathered}) < len(gathered):
        name, _ = Counter(named.name for named in gathered).most_common(1)[0]
        raise ArgumentError(f"two parameters are named {name!r}: they would have equal values")
    return gathered


def _tie(named: Named, slot: Slot) -> Named:
    ties = (*named.slots, slot)
    return named._replace(name=min(slot.name for slot in ties), ties=ties)


def _parametrized(parameter: str, attribute: str) -> str:
    if attribute == "original":
        return parameter
    return f"parametrizations.{parameter}.{attribute}"
