"""Libraries that keep values elsewhere than in the parameters: what is written there is lost."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from torch import nn


def offloaded(model: nn.Module) -> Iterator[nn.Module]:
    """The modules whose parameters Accelerate's hooks replace before each forward."""
    if "accelerate" not in sys.modules:
        return
    for module in model.modules():
        hook: Any = module.__dict__.get("_hf_hook")
        for one in getattr(hook, "hooks", (hook,)):  # a SequentialHook has several
            if getattr(one, "offload", False):
                yield module
                if getattr(one, "place_submodules", False):
                    yield from module.modules()


def is_partitioned(tensor: Any) -> bool:
    """Whether a parameter is one of DeepSpeed ZeRO-3 that is not gathered, and has no elements."""
    if "deepspeed" not in sys.modules:
        return False
    return bool(getattr(tensor, "ds_numel", 0) > tensor.numel())
