"""Methods by which libraries initialise modules: a new library's convention is a name in a table.

What needs more than a method's name has a file of its own beside this one, which may use
``attribute``.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

# torch's own modules, and any that the rule "reset_parameters" is for; called without arguments.
RESETS = ("reset_parameters", "_reset_parameters")
# Whole models of torchtitan; called with buffer_device. The first that a model has is used.
TORCHTITAN = ("init_states", "init_weights")
# Fill non-persistent buffers: timm's and torchtitan's besides torch's.
FILL_BUFFERS = (*RESETS, "init_non_persistent_buffers", "_init_self_buffers")


def attribute(module: Any, name: str) -> Any:
    """An attribute of code that is not ours; None if it has none, or raises when it is asked."""
    try:
        return getattr(module, name, None)
    except Exception:
        return None


def parameters_of_method(module: nn.Module, name: str) -> Mapping[str, inspect.Parameter] | None:
    """The parameters of a module's method; None if it has no such method."""
    method = attribute(module, name)
    try:
        return inspect.signature(method).parameters if callable(method) else None
    except (TypeError, ValueError):  # of C
        return None


def torchtitan_method(module: nn.Module) -> str | None:
    """The name of the method by which torchtitan initialises a model; None for other models."""
    names = (name for name in TORCHTITAN if callable(attribute(module, name)))
    return next(
        (name for name in names if "buffer_device" in (parameters_of_method(module, name) or ())),
        None,
    )
