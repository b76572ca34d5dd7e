"""Megatron-Core: parameters cut by tensor, pipeline and expert parallelism."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from torchinit.errors import ArgumentError
from torchinit.integrations.shards import LocalShard, cut, fill, whole
from torchinit.models.inspect_model import local_parameters
from torchinit.streams.canonical import Named, Rename, places_of, renamer

# What layers have whose outputs, or tokens, are divided.
_BY_ROWS = ("output_size_per_partition", "num_embeddings_per_partition")


def init_model_(
    model: nn.Module,
    rules: Mapping[Any, Any],
    *,
    seed: int,
    rename: Rename = None,
    strict: bool = True,
) -> nn.Module:
    """Fills a model of Megatron-Core on this rank, without communication.

    Build the model with ``perform_initialization=False``, and call this before the optimizer is
    made. Every value is that of one process: layers have their global numbers (from
    ``layer_number``) and experts theirs, a gated ``linear_fc1`` is a gate and an up projection, and
    what is not divided (norms, routers, biases of rows) is the same on all ranks. This holds for
    Transformer Engine's layers too.

    Args:
        model: a model or a chunk of a virtual pipeline, inside Megatron's wrappers or not.
        rules, seed, rename: as for ``torchinit.init_model_``, with global names. A tied output
            layer on the last stage needs
            ``rename={"output_layer.weight": "embedding.word_embeddings.weight"}``.
        strict: False allows rules that match nothing, as on a stage of a pipeline.

    Returns:
        model.

    Raises:
        ArgumentError: as ``torchinit.init_model_``; for experts of the legacy ``GroupedMLP``, which
            one matrix holds. Nothing has then been written.

    Example, where ``gpt`` is a ``GPTModel`` and the rules are those of ``scaled_init_method``::

        from torchinit.integrations import megatron

        rules = {
            "**layernorm.weight": "ones",
            "**.bias": "zeros",
            "**.{linear_proj,linear_fc2}.weight": torchinit.Normal(0.02 / (2 * layers) ** 0.5),
            "**": torchinit.Normal(0.02),
        }
        megatron.init_model_(gpt, rules, seed=0)
    """
    from megatron.core import parallel_state as ranks

    while type(model).__module__.startswith("megatron.") and "module" in model._modules:
        model = model.module  # type: ignore[assignment]
    modules = {prefix[:-1]: module for prefix, module in places_of(model)}
    first = ranks.get_expert_model_parallel_rank()
    change = renamer(rename) or str
    shards: list[LocalShard] = []
    full_name = lambda name: change(_global_name(name, modules, first))  # noqa: E731
    for named in local_parameters(model, full_name):
        dim, parts = _division(named)
        if dim is None:
            shards.append(whole(named))
            continue
        kind = "expert_tensor" if ".experts." in named.name else "tensor_model"
        rank = getattr(ranks, f"get_{kind}_parallel_rank")()
        size = getattr(ranks, f"get_{kind}_parallel_world_size")()
        full = named.tensor.shape[dim] * size // parts
        shards += cut(named, dim, [(full, rank, size)] * parts)
    fill(shards, rules, seed, strict=strict)
    return model


def _division(named: Named) -> tuple[int | None, int]:
    """The dimension that is divided, if one is, and the number of parts that each are."""
    tensor, layer = named.tensor, named.owner
    dim, parts = None, getattr(tensor, "partition_stride", 1)
    if getattr(tensor, "tensor_model_parallel", False):
        dim = tensor.partition_dim
    # Unless it calls init_method, Megatron leaves these attributes out.
    elif named.attribute in ("weight", "bias") and any(hasattr(layer, one) for one in _BY_ROWS):
        dim = 0
    elif named.attribute == "weight" and hasattr(layer, "input_size_per_partition"):
        dim = 1
    is_gated = getattr(getattr(layer, "config", None), "gated_linear_unit", False)
    if is_gated and dim == 0 and "linear_fc1" in named.name.split("."):
        parts = 2  # Transformer Engine's layers say 1
    return dim, parts


def _global_name(name: str, modules: Mapping[str, nn.Module], expert_rank: int) -> str:
    """A parameter's name with the global numbers of its layer and expert."""
    parts, experts = name.split("."), 0
    for depth, part in enumerate(parts):
        module = modules.get(".".join(name.split(".")[: depth + 1]))
        number = getattr(module, "layer_number", None)
        if part.isdigit() and isinstance(number, int):
            parts[depth] = str(number - 1)
        elif experts and (local := re.fullmatch(r"(|weight|bias)([0-9]+)", part)):
            if parts[depth - 1] == "experts":
                raise ArgumentError(
                    f"{name!r} holds all experts of a GroupedMLP: build the model with "
                    "SequentialMLP or TEGroupedMLP"
                )
            parts[depth] = f"{local[1]}{expert_rank * experts + int(local[2])}"
        experts = experts or getattr(module, "num_local_experts", 0) * (part == "experts")
    return ".".join(parts)
