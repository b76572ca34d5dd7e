"""DeepSpeed ZeRO-3: parameters of which each rank holds a flat range."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import distributed, nn

from torchinit.errors import ArgumentError
from torchinit.integrations.shards import LocalShard, fill, whole
from torchinit.models.inspect_model import local_parameters
from torchinit.placement.distributed import local_memory
from torchinit.streams.canonical import Rename


def init_model_(
    model: nn.Module,
    rules: Mapping[Any, Any],
    *,
    seed: int,
    rename: Rename = None,
    strict: bool = True,
) -> nn.Module:
    """Fills this rank's ranges of a model that ``deepspeed.zero.Init`` made, and gathers nothing.

    Call it before ``deepspeed.initialize``, which copies the values. They are those of one process.

    Args:
        model: a model whose parameters are partitioned, or some of them.
        rules, seed, rename, strict: as for ``torchinit.init_model_``. The rule "keep" leaves a
            parameter as its constructor made it.

    Returns:
        model.

    Raises:
        ArgumentError: as ``torchinit.init_model_``; for parameters that are gathered, quantised, on
            NVMe, or held a second time (``zero_hpz_partition_size``). Nothing is then written.

    Example, where ``Net`` is a model of yours and ``config`` DeepSpeed's configuration::

        from torchinit.integrations import deepspeed as zero3

        with deepspeed.zero.Init(config_dict_or_path=config):
            model = Net()
        zero3.init_model_(model, {"**.bias": "zeros", "**": torchinit.Normal(0.02)}, seed=0)
        engine, *_ = deepspeed.initialize(model=model, config=config)
    """
    shards = []
    memory_of = lambda tensor: getattr(tensor, "ds_tensor", local_memory(tensor))  # noqa: E731
    for named in local_parameters(model, rename, memory_of):
        held = getattr(named.tensor, "ds_tensor", None)
        if held is None:
            shards.append(whole(named))
            continue
        parameter = named.tensor
        reasons = {
            "is gathered": parameter.numel() >= parameter.ds_numel > 0,
            "is quantised": hasattr(held, "ds_quant_scale"),
            "is on NVMe": not held.numel() and parameter.ds_numel,
            "is held a second time": getattr(parameter, "ds_secondary_tensor", None) is not None,
        }
        for reason, holds in reasons.items():
            if holds:
                raise ArgumentError(f"parameter {named.name!r} {reason}: its range is not filled")
        first = distributed.get_rank(parameter.ds_process_group) * held.numel()
        count = max(0, min(held.numel(), parameter.ds_numel - first))  # the rest is padding
        first = min(first, parameter.ds_numel)
        shards.append(LocalShard(named, held[:count], parameter.ds_shape, first))
    fill(shards, rules, seed, strict=strict)
    return model
