"""Methods by which libraries initialise modules: a new library's convention is a name in a table.

What needs more than a method's name has a file of its own beside this one.
"""

from __future__ import annotations

import inspect

from torch import nn

# torch's own modules, and any that the rule "reset_parameters" is for; called without arguments.
RESETS = ("reset_parameters", "_reset_parameters")
# Whole models of torchtitan; called with buffer_device. The first that a model has is used.
TORCHTITAN = ("init_states", "init_weights")
# Fill non-persistent buffers: timm's and torchtitan's besides torch's.
FILL_BUFFERS = (*RESETS, "init_non_persistent_buffers", "_init_self_buffers")


def torchtitan_method(module: nn.Module) -> str | None:
    """The name of the method by which torchtitan initialises a model; None for other models."""
    for name in TORCHTITAN:
        method = getattr(module, name, None)
        if callable(method) and "buffer_device" in inspect.signature(method).parameters:
            return name
    return None
