"""The conventions by which models fill themselves: what to call, of which module, in which order.

There is no one convention. torch's modules have ``reset_parameters`` (attention and transformers
``_reset_parameters``); Transformers has ``_init_weights(module)``, of the model that a module
belongs to; torchtitan and timm ``init_weights``, with buffers by ``_init_self_buffers`` and
``init_non_persistent_buffers``; code in the manner of minGPT an ``_init_weights`` to be applied.
Children come first: what a model does to them is to stay. Of a Transformers model all that
constructors would do comes before all that ``_init_weights`` does, as when it is built.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.parametrize import cached, is_parametrized

from torchinit.streams.canonical import places_of

_OWN = ("reset_parameters", "_reset_parameters")
# What Transformers marks modules and parameters by that are loaded, or initialised.
HF_FLAG = "_is_hf_initialized"
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
    names = {id(module): prefix.rstrip(".") for prefix, module in reversed(places_of(model))}
    walk = _Walk(names, device)
    walk.collect(model)
    return walk.steps


class _Walk:
    """Collects the steps of modules, of each once."""

    def __init__(self, names: dict[int, str], device: torch.device) -> None:
        self.steps: list[Step] = []
        self._names = names
        self._device = device
        self._seen: set[int] = set()

    def collect(self, module: nn.Module) -> None:
        """Steps of a module and all below."""
        if _is_transformers_model(module):
            unseen = [below for below in _children_first(module) if self._is_new(below)]
            for below in unseen:
                self._defaults(below)
            self._by_transformers(module, module, {id(below) for below in unseen})
            return
        if not self._is_new(module):
            return
        for child in module.children():
            self.collect(child)
        self._defaults(module)
        kind = type(module).__name__
        if (call := _bind(module, "init_weights", self._device)) is not None:
            self._add(module, f"{kind}.init_weights()", call)
        elif (call := _bind(module, "_init_weights", self._device)) is not None:
            self._add(module, f"{kind}._init_weights()", call)
        elif _takes_a_module(getattr(module, "_init_weights", None)):
            for below in _children_first(module):
                self._apply(module, below)

    def _is_new(self, module: nn.Module) -> bool:
        is_new = id(module) not in self._seen
        self._seen.add(id(module))
        return is_new

    def _add(self, module: nn.Module, label: str, call: Callable[[], object]) -> None:
        self.steps.append(Step(self._names.get(id(module), ""), label, module, call))

    def _apply(self, owner: nn.Module, module: nn.Module, *, marks: bool = False) -> None:
        function: Callable[[nn.Module], object] = owner._init_weights  # type: ignore[assignment]
        label = f"{type(owner).__name__}._init_weights({type(module).__name__})"
        call = partial(_run_marked, function, module) if marks else partial(function, module)
        self._add(module, label, call)

    def _defaults(self, module: nn.Module) -> None:
        """What a constructor would do."""
        for method in (*_OWN, *_BUFFERS):
            if (call := _bind(module, method, self._device)) is not None:
                if method in _OWN and _has_weight_norm(module):
                    call = partial(_reset_normed, module, call)
                self._add(module, f"{type(module).__name__}.{method}()", call)
        conv = getattr(sys.modules.get("transformers.pytorch_utils"), "Conv1D", None)
        if conv is not None and type(module) is conv:
            self._add(module, "Conv1D()", partial(_reset_conv1d, module))

    def _by_transformers(self, module: nn.Module, owner: nn.Module, left: set[int]) -> None:
        """``_init_weights`` of the nearest model above, for every module but those done before."""
        if id(module) not in left:
            return
        left.discard(id(module))
        if _is_transformers_model(module):
            owner = module
        for child in module.children():
            self._by_transformers(child, owner, left)
        self._apply(owner, module, marks=True)


def _run_marked(function: Callable[[nn.Module], object], module: nn.Module) -> None:
    """Transformers marks every module that is through, and init of modules above may ask."""
    module.__dict__.pop(HF_FLAG, None)
    function(module)
    module.__dict__[HF_FLAG] = True


def _reset_conv1d(module: nn.Module) -> None:
    """What GPT-2's linear layer does when it is built; it has no method that does."""
    nn.init.normal_(module.weight, std=0.02)  # type: ignore[arg-type]
    nn.init.zeros_(module.bias)  # type: ignore[arg-type]


def _has_weight_norm(module: nn.Module) -> bool:
    """Whether parameters of a module are kept as direction and length, and by nothing else."""
    if not is_parametrized(module):
        return False
    lists = module.parametrizations.values()  # type: ignore[operator]
    return all(len(one) == 1 and isinstance(one[0], _WeightNorm) for one in lists)


def _reset_normed(module: nn.Module, reset: Callable[[], object]) -> None:
    """Resets a module as if its parameters were not parametrized, and takes them apart then.

    What a call writes to them otherwise is lost: they are computed anew at every look.
    """
    lists: Any = module.parametrizations
    with cached():
        whole = {name: getattr(module, name) for name in lists}
        reset()
    for name, tensor in whole.items():
        setattr(module, name, tensor)


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
