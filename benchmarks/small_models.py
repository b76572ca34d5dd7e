"""Times init_model_ on many small parameters against only making their memory and Parameters."""

from __future__ import annotations

import gc
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import Parameter

import torchinit

_SHAPES = {"64x64": (64, 64), "16": (16,)}
_NAMES = ("query", "key", "value", "out", "gate", "up", "down", "router")
RULES: dict[str, Any] = {
    "**.{query,key}.weight": torchinit.Normal(0.02),
    "**.value.weight": torchinit.TruncNormal(0.02),
    "**.{out,down}.weight": torchinit.Normal(0.01),
    "**.router.weight": torchinit.Uniform(-0.1, 0.1),
    "**": torchinit.Normal(0.03),
}


class _Holder(nn.Module):
    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.weight = Parameter(torch.empty(shape, device="meta"))


def _model(shape: tuple[int, ...], count: int) -> nn.Module:
    """A list of blocks of eight modules, each with one parameter, as in large models."""
    return nn.ModuleList(
        nn.ModuleDict({name: _Holder(shape) for name in _NAMES})
        for _ in range(count // len(_NAMES))
    )


def _allocate(metas: list[Parameter]) -> list[Parameter]:
    return [Parameter(torch.empty(meta.shape, dtype=meta.dtype)) for meta in metas]


def time_small(count: int, rounds: int) -> list[dict[str, Any]]:
    """Microseconds per parameter, in turn in this process; the first round is not counted."""
    results = []
    for title, shape in _SHAPES.items():
        model = _model(shape, count)
        holders = [module for module in model.modules() if isinstance(module, _Holder)]
        metas = [holder.weight for holder in holders]
        times: dict[str, list[float]] = {"init_model_": [], "alone": []}
        for _ in range(rounds + 1):
            for holder, meta in zip(holders, metas, strict=True):
                holder.weight = meta
            gc.collect()
            start = perf_counter()
            torchinit.init_model_(model, RULES, seed=0, device="cpu")
            middle = perf_counter()
            alone = _allocate(metas)
            end = perf_counter()
            del alone
            times["init_model_"].append((middle - start) / len(metas) * 1e6)
            times["alone"].append((end - middle) / len(metas) * 1e6)
        results.append(
            {
                "shape": title,
                "parameters": len(metas),
                "rules": len(RULES),
                "microseconds": {name: values[1:] for name, values in times.items()},
            }
        )
    return results


def rows(results: list[dict[str, Any]]) -> list[list[str]]:
    """Lines of a table."""
    lines = []
    for samples in results:
        ours, alone = (samples["microseconds"][name] for name in ("init_model_", "alone"))
        ratios = [a / b for a, b in zip(ours, alone, strict=True)]
        lines.append(
            [
                f"{samples['parameters']:,} of {samples['shape']}",
                f"{median(ours):.2f}",
                f"{median(alone):.2f}",
                f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
            ]
        )
    return lines


HEADER = ("parameters", "`init_model_`, µs each", "memory and `Parameter` alone", "ratio")
