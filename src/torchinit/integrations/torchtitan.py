"""torchtitan: a model's ``param_init`` as rules."""

from __future__ import annotations

from typing import Any

from torch import nn

from torchinit.errors import ArgumentError
from torchinit.streams.canonical import Slot, gather

_SKIP = "skip_param_init"  # torchtitan's function that leaves a parameter to another module


def rules_of(model: nn.Module) -> dict[str, Any]:
    """The rules of a torchtitan model: what its ``param_init`` says, by full names.

    ``torchinit.init_model_(model, seed=0)`` alone makes torchtitan's values. With the rules at hand
    you can change some, see them by ``plan_model``, and write a seed checkpoint for them.

    Args:
        model: built from a config of torchtitan, on the meta device or not, sharded or not.

    Returns:
        A rule for each parameter: the function of its module's ``param_init``,
        "reset_parameters" where there is none, and "keep" for ``skip_param_init``. A tied
        parameter has the rule of the module that torchtitan initialises last.

    Raises:
        ArgumentError: for a parameter that torchtitan would not initialise.

    Example, where ``model`` is a part of a pipeline, or all::

        from torchinit.integrations import torchtitan

        rules = torchtitan.rules_of(model) | {"lm_head.weight": "zeros"}
        torchinit.init_model_(model, rules, seed=0, strict=False)
    """
    rules = {}
    for named in gather(model).parameters:
        found = [_rule(slot) for slot in named.slots]
        rules[named.name] = next((rule for rule in reversed(found) if rule != "keep"), "keep")
    return rules


def _rule(slot: Slot) -> Any:
    functions = getattr(slot.owner, "_param_init", None)
    if functions is None and callable(getattr(slot.owner, "reset_parameters", None)):
        return "reset_parameters"
    if functions is None or slot.attribute not in functions:
        raise ArgumentError(
            f"{type(slot.owner).__name__} has no param_init for parameter {slot.name!r}"
        )
    function = functions[slot.attribute]
    return "keep" if getattr(function, "__name__", "") == _SKIP else function
