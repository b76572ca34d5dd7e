"""Canonical names: a parameter's name (FQN) without what wrappers add to it.

``torch.compile``, activation checkpoints and FSDP insert parts into names; data parallelism and
Lightning Fabric add a prefix; parametrizations rename a parameter; PEFT nests the whole model. Keys
made from names must not depend on any of these.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from torchinit.errors import ArgumentError

Rename: TypeAlias = "Mapping[str, str] | Callable[[str], str] | None"

# Does what a named tuple's constructor does in half the time: models have thousands of parameters.
new_tuple: Callable[..., Any] = tuple.__new__


class _Wrapper(NamedTuple):
    """A module that wraps another one, and that names are to leave out.

    Attributes:
        child: the attribute that holds the wrapped module.
        where, kind: the module and name of the wrapper's class; empty if the child's name suffices.
        is_root: whether it is a wrapper only at the root of a model.
    """

    child: str
    where: str = ""
    kind: str = ""
    is_root: bool = False


_WRAPPERS = (
    _Wrapper("_orig_mod"),  # torch.compile
    _Wrapper("_checkpoint_wrapped_module"),
    _Wrapper("_fsdp_wrapped_module"),
    _Wrapper("base_layer", "peft.tuners.tuners_utils", "BaseTunerLayer"),
    _Wrapper("original_module", "peft.utils.other", "AuxiliaryTrainingWrapper"),
    _Wrapper("module", "torch.nn.parallel.distributed", "DistributedDataParallel", is_root=True),
    _Wrapper("module", "torch.nn.parallel.data_parallel", "DataParallel", is_root=True),
    _Wrapper("module", "torch.optim.swa_utils", "AveragedModel", is_root=True),
    _Wrapper("_forward_module", "lightning.fabric.wrappers", "_FabricModule", is_root=True),
    _Wrapper("_forward_module", "lightning_fabric.wrappers", "_FabricModule", is_root=True),
    _Wrapper("base_model", "peft", "PeftModel", is_root=True),
    _Wrapper("base_model", "peft", "PeftMixedModel", is_root=True),
    _Wrapper("model", "peft.tuners.tuners_utils", "BaseTuner", is_root=True),
    _Wrapper("lora_model", "peft.tuners.xlora", "XLoraModel", is_root=True),
)
_ANYWHERE = [wrapper for wrapper in _WRAPPERS if not wrapper.is_root]
# Children that names may have to leave out.
_TRANSPARENT = {*(wrapper.child for wrapper in _ANYWHERE), "parametrizations"}


# (prefix of the canonical names of the module's parameters, empty or ending in a dot; the module).
ModuleAt: TypeAlias = "tuple[str, nn.Module]"
# For a module that holds the parametrizations of a parameter: (the parametrized module, the name of
# the parameter); for the container of all parametrizations the name is empty.
_Within: TypeAlias = "tuple[nn.Module, str] | None"
_Place: TypeAlias = "tuple[str, nn.Module, _Within]"


class Slot(NamedTuple):
    """Where a tensor is registered.

    Attributes:
        name: canonical.
        module: that registers it.
        attribute: its name there.
        owner: the module that it belongs to, which for a parametrized parameter is the
            parametrized module.
    """

    name: str
    module: nn.Module
    attribute: str
    owner: nn.Module

    @property
    def tensor(self) -> Any:
        """What is registered there now."""
        return getattr(self.module, self.attribute)


class Named(NamedTuple):
    """A parameter or buffer, and where it is registered.

    Attributes:
        name: the smallest of its canonical names, from which its key is made.
        tensor: the parameter or buffer itself.
        module, attribute, owner: of its first slot.
        ties: all its slots, if there is more than one.
    """

    name: str
    tensor: Any
    module: nn.Module
    attribute: str
    owner: nn.Module
    ties: Sequence[Slot] = ()

    @property
    def slots(self) -> Sequence[Slot]:
        """All its slots."""
        return self.ties or (Slot(self.name, self.module, self.attribute, self.owner),)


def is_saved(buffer: Named) -> bool:
    """Whether a ``state_dict`` has a buffer."""
    return buffer.attribute not in getattr(buffer.module, "_non_persistent_buffers_set", ())


def places_of(model: nn.Module) -> list[ModuleAt]:
    """All modules of a model with their prefixes, parents first; shared ones more than once."""
    wrappers, root = _unwrap(model)
    places = [("", wrapper, None) for wrapper, _ in wrappers] + _walk(root)
    for wrapper, name in wrappers:
        places += _walk(wrapper, name)[1:]
    return [(prefix, module) for prefix, module, _ in places]


def _walk(root: nn.Module, but: str = "") -> list[_Place]:
    """A tree of modules, parents first, without the child `but` of its root.

    Shared modules come once for each path. Cycles, as of a child that knows its parent, are cut.
    """
    found: list[_Place] = [("", root, None)]
    above: set[int] = set()

    def visit(prefix: str, module: nn.Module, within: _Within, children: Any) -> None:
        above.add(id(module))
        for name, child in children:
            if child is None or id(child) in above:
                continue
            place: _Place = f"{prefix}{name}.", child, None
            if within is not None or name in _TRANSPARENT:
                place = _below(prefix, module, within, name, child)
            found.append(place)
            if grandchildren := child._modules:
                visit(*place, grandchildren.items())
        above.remove(id(module))

    visit("", root, None, [child for child in root._modules.items() if child[0] != but])
    return found


class Gathered(NamedTuple):
    """What a model holds.

    Attributes:
        parameters, buffers: all of them, tied ones once.
        canonical: the parameters by their canonical names, before rename.
    """

    parameters: list[Named]
    buffers: list[Named]
    canonical: list[Named]


def gather(model: nn.Module, rename: Rename = None) -> Gathered:
    """All parameters and all buffers of a model, tied ones once.

    A rename may give the same name to copies of a tensor that is tied elsewhere, of one shape, so
    that they get the same values. It must then be a mapping, or leave one of the names unchanged.

    Raises:
        ArgumentError: if two have the same name otherwise, or rename returns no name.
    """
    change = renamer(rename)
    wrappers, root = _unwrap(model)
    found, buffers = _find(root)
    for wrapper, name in wrappers:
        more_parameters, more_buffers = _find(wrapper, but=name)
        _add_beside(found, more_parameters)
        _add_beside(buffers, more_buffers)
    canonical = parameters = list(found.values())
    of_buffers = list(buffers.values())
    if change is not None:
        parameters = [_renamed(one, change) for one in canonical]
        of_buffers = [_renamed(one, change) for one in of_buffers]
    _check_names(parameters, "parameters", rename)
    _check_names(of_buffers, "buffers", rename)
    return Gathered(parameters, of_buffers, canonical)


def _find(root: nn.Module, but: str = "") -> tuple[dict[int, Named], dict[int, Named]]:
    """The parameters and buffers of a tree of modules by id, without those of the child `but`."""
    parameters: dict[int, Named] = {}
    buffers: dict[int, Named] = {}
    for prefix, module, within in _walk(root, but):
        own = module.__dict__
        if "_parameters" not in own:
            own = _registered(module)
        if within is None:
            # Models have thousands of parameters, so the common case is inlined.
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
            _register(parameters, own["_parameters"], prefix, module, within)
        if own["_buffers"]:
            _register(buffers, own["_buffers"], prefix, module, within)
    return parameters, buffers


def _registered(module: nn.Module) -> dict[str, Any]:
    """What a module of torch.jit registers, which keeps it elsewhere than other modules."""
    return {
        "_parameters": dict(module.named_parameters(recurse=False, remove_duplicate=False)),
        "_buffers": dict(module.named_buffers(recurse=False, remove_duplicate=False)),
    }


def _add_beside(found: dict[int, Named], beside: dict[int, Named]) -> None:
    """Adds what a wrapper holds besides the model; what is also in the model keeps its name."""
    for number, named in beside.items():
        known = found.get(number)
        if known is None:
            found[number] = named
        else:
            slots = (slot._replace(name=known.name) for slot in named.slots)
            found[number] = known._replace(ties=(*known.slots, *slots))


def _check_names(gathered: Sequence[Named], what: str, rename: Rename) -> None:
    if len({named[0] for named in gathered}) < len(gathered):
        shapes: dict[str, Any] = {}
        for name, tensor, *_ in gathered:
            if name not in shapes:
                shapes[name] = tensor.shape
            elif not isinstance(rename, Mapping) and (rename is None or rename(name) != name):
                raise ArgumentError(
                    f"two {what} are named {name!r} and would get equal values. If they are "
                    "meant to, as copies of one, pass rename as a mapping"
                )
            elif shapes[name] != tensor.shape:
                raise ArgumentError(
                    f"rename gives the name {name!r} to {what} of shapes {tuple(shapes[name])} and "
                    f"{tuple(tensor.shape)}: only copies of one tensor can share a name"
                )


def _register(
    found: dict[int, Named],
    registered: Mapping[str, Any],
    prefix: str,
    module: nn.Module,
    within: _Within,
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
        number = id(tensor)
        if number in found:
            found[number] = _tie(found[number], Slot(name, module, attribute, owner))
        else:
            found[number] = Named(name, tensor, module, attribute, owner)


def _tie(named: Named, slot: Slot) -> Named:
    ties = named.ties or list(named.slots)
    ties.append(slot)  # type: ignore[attr-defined]  # not a copy: many modules may share a tensor
    return named._replace(name=min(named.name, slot.name), ties=ties)


def _unwrap(model: nn.Module) -> tuple[list[tuple[nn.Module, str]], nn.Module]:
    """The wrappers at the root, each with the attribute that holds the next; and the model."""
    wrappers: list[tuple[nn.Module, str]] = []
    while True:
        name = _child_of_wrapper(model, _WRAPPERS)
        if not name or any(model is wrapper for wrapper, _ in wrappers):
            return wrappers, model
        wrappers.append((model, name))
        model = dict(model._modules.items())[name]  # type: ignore[assignment]


def _child_of_wrapper(module: nn.Module, wrappers: Sequence[_Wrapper]) -> str:
    """The attribute that holds what a module wraps; empty if it is none of these wrappers."""
    children = dict(module._modules.items())
    return next(
        (one.child for one in wrappers
         if children.get(one.child) is not None and _is_wrapper(module, one)),
        "",
    )  # fmt: skip


def is_wrapper(module: nn.Module) -> bool:
    """Whether a module only wraps another one, and names leave it out."""
    return _child_of_wrapper(module, _ANYWHERE) != ""


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside the wrappers at the root."""
    return _unwrap(model)[1]


def _is_wrapper(module: nn.Module, wrapper: _Wrapper) -> bool:
    return not wrapper.kind or _is_a(module, wrapper.where, wrapper.kind)


def _is_a(module: nn.Module, where: str, name: str) -> bool:
    """Whether a module is an instance of a class that may not have been imported."""
    kind = getattr(sys.modules.get(where), name, None)
    return kind is not None and isinstance(module, kind)


def _below(prefix: str, module: nn.Module, within: _Within, name: str, child: nn.Module) -> _Place:
    """The prefix of a child's names, the child, and the parametrization that it is within."""
    if within is not None:
        owner, parameter = within
        if not parameter:
            return prefix, child, (owner, name)
        return f"{prefix}parametrizations.{parameter}.{name}.", child, None
    if name == "parametrizations" and is_parametrized(module):
        return prefix, child, (module, "")
    if any(one.child == name and _is_wrapper(module, one) for one in _ANYWHERE):
        return prefix, child, None
    return f"{prefix}{name}.", child, None


def _renamed(named: Named, change: Callable[[str], str]) -> Named:
    slots = [slot._replace(name=change(slot.name)) for slot in named.slots]
    name = min(slot.name for slot in slots)
    return named._replace(name=name, ties=slots if named.ties else ())


def renamer(rename: Rename) -> Callable[[str], str] | None:
    """A rename as a function that checks its results; None if there is nothing to rename."""
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
            raise ArgumentError(f"rename returned {new!r} for {name!r}: expected a name")
        return new

    return checked
