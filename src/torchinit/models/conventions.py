"""The conventions by which models fill themselves: what to call, of which module, in which order.

There is no one convention. torch's modules have ``reset_parameters`` (attention and transformers
``_reset_parameters``); Transformers has ``_init_weights(module)``, of the model that a module
belongs to; torchtitan and timm ``init_weights``, with buffers by ``_init_self_buffers`` and
``init_non_persistent_buffers``; code in the manner of minGPT an ``_init_weights`` to be applied.
Children come first: what a model does to them is to stay.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from torchinit.models.names import places_of

_OWN = ("reset_parameters", "_reset_parameters")
_BUFFERS = ("init_non_persistent_buffers", "_init_self_buffers")


class Step(NamedTuple):
    """One call.

    Attributes:
        name: canonical, of the module that is filled.
        label: what is called, in words.
        module: the module that is filled.
        run: makes the call.
    """

    name: str
    label: str
    module: nn.Module
    run: Callable[[], object]


def find_steps(model: nn.Module, device: torch.device) -> list[Step]:
    """The calls by which a model fills itself, in order.

    Args:
        model: of any kind.
        device: where buffers are to lie, for conventions that ask.
    """
    places = places_of(model)
    names = {id(module): prefix.rstrip(".") for prefix, module in reversed(places)}
    steps: list[Step] = []
    seen: set[int] = set()
    _collect(model, None, names, device, steps, seen)
    return steps


def _collect(
    module: nn.Module,
    owner: nn.Module | None,
    names: dict[int, str],
    device: torch.device,
    steps: list[Step],
    seen: set[int],
) -> None:
    """Steps of a module and all below; owner is the Transformers model that it belongs to."""
    if id(module) in seen:
        return
    seen.add(id(module))
    if _is_transformers_model(module):
        owner = module
    for child in module.children():
        _collect(child, owner, names, device, steps, seen)
    name = names.get(id(module), "")
    kind = type(module).__name__
    for method in (*_OWN, *_BUFFERS):
        if (call := _bind(module, method, device)) is not None:
            steps.append(Step(name, f"{kind}.{method}()", module, call))
    if owner is not None:
        label = f"{type(owner).__name__}._init_weights({kind})"
        steps.append(Step(name, label, module, partial(_by_owner(owner), module)))
        return
    if (call := _bind(module, "init_weights", device)) is not None:
        steps.append(Step(name, f"{kind}.init_weights()", module, call))
    elif (call := _bind(module, "_init_weights", device)) is not None:
        steps.append(Step(name, f"{kind}._init_weights()", module, call))
    elif _takes_a_module(getattr(module, "_init_weights", None)):
        for below in _children_first(module):
            label = f"{kind}._init_weights({type(below).__name__})"
            call = partial(_by_owner(module), below)
            steps.append(Step(names.get(id(below), ""), label, below, call))


def _by_owner(owner: nn.Module) -> Callable[[nn.Module], object]:
    function: Callable[[nn.Module], object] = owner._init_weights  # type: ignore[assignment]
    return function


def _is_transformers_model(module: nn.Module) -> bool:
    return (
        callable(getattr(module, "initialize_weights", None))
        and callable(getattr(module, "_initialize_weights", None))
        and _takes_a_module(getattr(module, "_init_weights", None))
    )


def _children_first(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        yield from _children_first(child)
    yield module


def _required(function: Any) -> list[str] | None:
    """Names of the arguments that a call must give; None for what is no function."""
    if not callable(function):
        return None
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [
        parameter.name
        for parameter in parameters
        if parameter.default is inspect.Parameter.empty and parameter.kind not in variadic
    ]


def _takes_a_module(function: Any) -> bool:
    required = _required(function)
    return required is not None and len(required) == 1


def _bind(module: nn.Module, method: str, device: torch.device) -> Callable[[], object] | None:
    """A method as a call without arguments, the device for buffers given; None if it needs more."""
    if isinstance(module, torch.jit.ScriptModule):
        return None
    function = getattr(module, method, None)
    required = _required(function)
    if function is None or required is None or not set(required) <= {"buffer_device"}:
        return None
    if "buffer_device" in inspect.signature(function).parameters:
        return partial(function, buffer_device=device)
    return function  # type: ignore[no-any-return]
