"""Serving engines (vLLM, SGLang): dummy weights that leave scales alone."""

from __future__ import annotations

import re
from typing import Any, cast

from torch import nn

from torchinit.dtypes import ALL_DTYPES
from torchinit.integrations.shards import LocalShard, cut, fill, whole
from torchinit.models.inspect_model import local_parameters
from torchinit.rules.elementwise import Uniform
from torchinit.streams.canonical import Named

# In an attribute's name, and in the name of a parameter's class, between other words or not.
_SCALES = re.compile(r"(^|_)(q?scales?(_|$)|q?zeros?$|zero_?points?$)")
_KINDS = re.compile("Scale|Packed|ZeroPoint")


def init_dummy_weights_(
    model: nn.Module, *, low: float = -1e-3, high: float = 1e-3, seed: int = 1234
) -> list[str]:
    """Fills a model's weights with U[low, high), and leaves all else as the engine allocated it.

    The engines' own ``initialize_dummy_weights`` fills scales too, gives all tensors of one size
    the same values, and other ones to each number of ranks. Here each name has its own values, and
    a rank of tensor parallelism holds its share of those of one process, for linear layers
    (fused ones and repeated key-value heads too) and embeddings; experts get the values of their
    local shape.

    Args:
        model: the whole model, not one layer: keys are made from full names.
        low, high, seed: as the engines have them.

    Returns:
        The names of parameters that are left alone: scales and zero points (by their names or
        classes), integers, packed weights, and tensors without dimensions.

    SGLang then uses it for ``--load-format dummy``, and vLLM for ``--load-format torchinit``::

        from sglang.srt.model_loader import loader

        loader.initialize_dummy_weights = init_dummy_weights_

        from vllm.model_executor.model_loader import dummy_loader, register_model_loader

        @register_model_loader("torchinit")
        class Loader(dummy_loader.DummyModelLoader):
            def load_weights(self, model, model_config):
                init_dummy_weights_(model)

    >>> import torch
    >>> from torchinit.integrations.serving import init_dummy_weights_
    >>> layer = torch.nn.Linear(4, 4)
    >>> layer.weight_scale = torch.nn.Parameter(torch.ones(4))
    >>> init_dummy_weights_(layer)
    ['weight_scale']
    >>> bool(layer.weight.abs().max() <= 1e-3), layer.weight_scale.tolist()
    (True, [1.0, 1.0, 1.0, 1.0])
    """
    parameters = local_parameters(model)
    left = [one.name for one in parameters if _is_left(one)]
    shards = [part for one in parameters if not _is_left(one) for part in _shards(one)]
    fill(shards, {"**": Uniform(low, high)}, seed, strict=False)
    return left


def _is_left(named: Named) -> bool:
    tensor = named.tensor
    return (
        tensor.is_meta or not tensor.dim() or tensor.dtype not in ALL_DTYPES
        or _SCALES.search(named.attribute) is not None
        or _KINDS.search(type(tensor).__name__) is not None
    )  # fmt: skip


def _shards(named: Named) -> list[LocalShard]:
    """By the attributes of the engines' layers that tell how they are divided."""
    tensor, layer = named.tensor, cast(Any, named.owner)
    rows, columns = getattr(tensor, "output_dim", None), getattr(tensor, "input_dim", None)
    if rows is not None and hasattr(layer, "num_embeddings_padded"):
        full, held = layer.num_embeddings_padded, layer.num_embeddings_per_partition
        rank = layer.shard_indices.padded_org_vocab_start_index // held
        return [*cut(named, rows, [(full, rank, full // held)])]
    group = getattr(layer, "tp_group", None)  # of newer SGLang; vLLM's layers know both numbers
    rank = getattr(layer, "tp_rank", getattr(group, "rank_in_group", 0))
    size = getattr(layer, "tp_size", getattr(group, "world_size", 1))
    if columns is not None and tensor.shape[columns] * size == getattr(layer, "input_size", 0):
        return [*cut(named, columns, [(layer.input_size, rank, size)])]
    sizes = getattr(layer, "output_sizes", None) or [getattr(layer, "output_size", 0)]
    if rows is None or tensor.shape[rows] * size != sum(sizes):
        return [whole(named)]
    # Of queries, keys and values; each key-value head is on `copies` ranks.
    copies = [1, *[getattr(layer, "num_kv_head_replicas", 1)] * 2]
    copies = copies if len(sizes) == 3 else [1] * len(sizes)
    parts = [(full // k, rank // k, size // k) for full, k in zip(sizes, copies, strict=True)]
    return [*cut(named, rows, parts)]
