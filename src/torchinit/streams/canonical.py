"""Canonical names: what a parameter is called whatever its model is wrapped in.

Wrappers of ``torch.compile``, of activation checkpoints and of FSDP put atoms of their own into
names; data parallelism puts ``module.`` before them; a parametrized parameter goes by another name;
PEFT moves a whole model down. A key by name must not depend on any of it.
"""

from __future__ import annotations

import sys
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


# The prefix of the canonical names of a module's parameters, with a dot at the end or empty; the
# module.
Place: TypeAlias = "tuple[str, nn.Module]"
# Of a module that holds the parametrizations of a parameter: the module that this one belongs to,
# and its name; of the container of all parametrizations, no name.
_Within: TypeAlias = "tuple[nn.Module, str] | None"


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
    model = _unwrap(model, lambda wrapper: places.append(("", wrapper)))

    def visit(prefix: str, module: nn.Module, within: _Within) -> None:
        places.append((prefix, module))
        for name, child in module._modules.items():
            if child is not None:
                visit(*_below(prefix, module, within, name, child))

    visit("", model, None)
    return places


def gather(model: nn.Module, rename: Rename = None) -> tuple[list[Named], list[Named]]:
    """All parameters, and all buffers, of a model; tied ones once.

    A rename may give two of one shape one name: copies of what is tied elsewhere, which get the
    same values. It is to be a mapping then, or to leave one of the names as it is.

    Raises:
        ArgumentError: for two of one name otherwise, or a rename that gives no name.
    """
    change = renamer(rename)
    parameters: dict[int, Named] = {}
    buffers: dict[int, Named] = {}

    def visit(above: str, parent: nn.Module, outside: _Within, children: Any) -> None:
        # Models have thousands of modules: what most of them need is done in this loop.
        for name, module in children:
            if module is None:
                continue
            if outside is None and name not in _TRANSPARENT:
                prefix, within = f"{above}{name}.", None
            else:
                prefix, _, within = _below(above, parent, outside, name, module)
            own = module.__dict__
            if within is None and change is None:
                for attribute, tensor in own["_parameters"].items():
                    if tensor is None:
                        continue
                    number = id(tensor)
                    if number in parameters:
                        slot = Slot(prefix + attribute, module, attribute, module)
                        parameters[number] = _tie(parameters[number], slot)
                    else:
                        named = (prefix + attribute, tensor, module, attribute, module, ())
                        parameters[number] = new_tuple(Named, named)
            elif own["_parameters"]:
                _register(parameters, own["_parameters"], prefix, module, within, change)
            if own["_buffers"]:
                _register(buffers, own["_buffers"], prefix, module, within, change)
            if own["_modules"]:
                visit(prefix, module, within, own["_modules"].items())

    def take_wrapper(wrapper: nn.Module) -> None:
        _register(buffers, wrapper._buffers, "", wrapper, None, change)

    root = _unwrap(model, take_wrapper)
    _register(parameters, root._parameters, "", root, None, change)
    _register(buffers, root._buffers, "", root, None, change)
    visit("", root, None, root._modules.items())
    return _checked(parameters, "parameters", rename), _checked(buffers, "buffers", rename)


def _checked(found: dict[int, Named], what: str, rename: Rename) -> list[Named]:
    gathered = list(found.values())
    if len({named[0] for named in gathered}) < len(gathered):
        shapes: dict[str, Any] = {}
        for name, tensor, *_ in gathered:
            if name not in shapes:
                shapes[name] = tensor.shape
            elif not isinstance(rename, Mapping) and (rename is None or rename(name) != name):
                raise ArgumentError(
                    f"two {what} are named {name!r}: they would have equal values. If that is "
                    "meant, for copies of one, let rename be a mapping"
                )
            elif shapes[name] != tensor.shape:
                raise ArgumentError(
                    f"rename gives the name {name!r} to {what} of shape {tuple(shapes[name])} and "
                    f"of {tuple(tensor.shape)}: only copies of one can be joined"
                )
    return gathered


def _register(
    found: dict[int, Named],
    registered: Mapping[str, Any],
    prefix: str,
    module: nn.Module,
    within: _Within,
    change: Callable[[str], str] | None,
) -> None:
    """Adds a module's own parameters or buffers to those found."""
    for attribute, tensor in registered.items():
        if tensor is None:
            continue
        name, owner = prefix + attribute, module
        if within is not None:
            owner, parameter = within
            tail = f"parametrizations.{parameter}.{attribute}"
            name = prefix + (parameter if attribute == "original" else tail)
        if change is not None:
            name = change(name)
        number = id(tensor)
        if number in found:
            found[number] = _tie(found[number], Slot(name, module, attribute, owner))
        else:
            found[number] = Named(name, tensor, module, attribute, owner)


def _tie(named: Named, slot: Slot) -> Named:
    ties = (*named.slots, slot)
    return named._replace(name=min(slot.name for slot in ties), ties=ties)


def _unwrap(model: nn.Module, see: Callable[[nn.Module], None]) -> nn.Module:
    """The model within the wrappers of a root, each of which is shown."""
    while (inner := _wrapped(model)) is not None:
        see(model)
        model = inner
    return model


def unwrapped(model: nn.Module) -> nn.Module:
    """The model within the wrappers of a root."""
    return _unwrap(model, lambda _: None)


def _wrapped(module: nn.Module) -> nn.Module | None:
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


def _below(
    prefix: str, module: nn.Module, within: _Within, name: str, child: nn.Module
) -> tuple[str, nn.Module, _Within]:
    """The prefix of a child's names, the child, and what it is within."""
    if within is not None:
        owner, parameter = within
        if not parameter:
            return prefix, child, (owner, name)
        return f"{prefix}parametrizations.{parameter}.{name}.", child, None
    if name == "parametrizations" and is_parametrized(module):
        return prefix, child, (module, "")
    if name in _WRAPPERS or _is_adapted(module, name):
        return prefix, child, None
    return f"{prefix}{name}.", child, None


def _is_adapted(module: nn.Module, name: str) -> bool:
    """Whether a child is what PEFT has put an adapter around."""
    if name == "base_layer":
        return _is_a(module, "peft.tuners.tuners_utils", "BaseTunerLayer")
    return name == "original_module" and _is_a(
        module, "peft.utils.other", "AuxiliaryTrainingWrapper"
    )


def renamer(rename: Rename) -> Callable[[str], str] | None:
    """A rename as a function, which checks what it gives; None if names stay."""
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
