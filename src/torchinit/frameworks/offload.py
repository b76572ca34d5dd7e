"""Libraries that keep values elsewhere than in the parameters: what is written there is lost."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
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


def partitioned(parameters: Iterable[Any]) -> Iterator[Any]:
    """Those of DeepSpeed ZeRO-3 that are not gathered, and so have no elements."""
    if "deepspeed" in sys.modules:
        yield from (one for one in parameters if getattr(one, "ds_numel", 0) > one.numel())
