"""Dummy weights: what is left alone, and the same values on any number of ranks."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from conftest import native_only
from torchinit.integrations.serving import init_dummy_weights_

pytestmark = native_only


class PackedvLLMParameter(nn.Parameter):
    pass


class PerTensorScaleParameter(nn.Parameter):
    pass


def parameter(*shape, kind=nn.Parameter, dtype=torch.float32, **attributes):
    made = kind(torch.full(shape, 7, dtype=dtype), requires_grad=False)
    made.__dict__.update(attributes)
    return made


LEFT = {
    "weight_scale": parameter(4),
    "weight_scale_inv": parameter(2, 2),
    "w13_weight_scale_2": parameter(2),
    "k_scale": parameter(1),
    "weight_zero_point": parameter(4),
    "scales": parameter(4, dtype=torch.float16),
    "logit_factor": parameter(),
    "qweight": parameter(4, 4, dtype=torch.int32),
    "qzeros": parameter(4, dtype=torch.int32),
    "block_exponents": parameter(4, dtype=torch.float32, kind=PerTensorScaleParameter),
    "packed": parameter(4, 4, kind=PackedvLLMParameter),
}
FILLED = {
    "weight": parameter(64, 64, dtype=torch.bfloat16),
    "payload": parameter(64, 64, dtype=torch.float8_e4m3fn),
    "scaled_up": parameter(64),
    "zero_centered_gamma": parameter(64),
}


def test_what_is_left_alone():
    model = nn.Module()
    for name, one in {**LEFT, **FILLED}.items():
        setattr(model, name, nn.Parameter.__new__(type(one), one.data.clone(), False))
    model.register_buffer("cache", torch.full((4,), 7.0))
    left = init_dummy_weights_(model, low=-0.5, high=0.5)
    assert sorted(left) == sorted(LEFT)
    for name in (*LEFT, "cache"):
        assert getattr(model, name).eq(7).all(), name
    for name in FILLED:
        values = getattr(model, name).float()
        assert values.abs().max() <= 0.5, name
        assert values.std() > 0.2, name
    assert not torch.equal(model.scaled_up, model.zero_centered_gamma)


def layers(rank, size, *, style):
    """Layers with the attributes of the engines'; `style` is where the rank is said."""

    def layer(shape, dim, **attributes):
        made, local = nn.Module(), list(shape)
        if dim is not None:
            local[dim] //= size
        made.weight = parameter(*local, output_dim=0, input_dim=1)
        made.bias = parameter(local[0], output_dim=0)
        made.input_size, made.output_size = shape[1], shape[0]
        made.__dict__.update(attributes)
        if style == "group":
            made.tp_group = SimpleNamespace(rank_in_group=rank, world_size=size)
        else:
            made.tp_rank, made.tp_size = rank, size
        return made

    copies = max(1, size // 2)  # of each of two key-value heads of 8
    sizes = [64, 16 * copies, 16 * copies]
    shard = SimpleNamespace(padded_org_vocab_start_index=rank * 64 // size)
    return nn.ModuleDict({
        "column": layer((24, 12), 0), "row": layer((12, 24), 1), "same": layer((4, 12), None),
        "merged": layer((48, 12), 0, output_sizes=[24, 24]),
        "qkv": layer((sum(sizes), 12), 0, output_sizes=sizes, num_kv_head_replicas=copies),
        "embed": layer((64, 12), 0, num_embeddings_padded=64,
                       num_embeddings_per_partition=64 // size, shard_indices=shard),
        "norm": nn.LayerNorm(5),
    })  # fmt: skip


def joined(parts, sizes):
    """Rows of several parts from all ranks; of each (rows of a rank, ranks that hold the same)."""
    pieces = [part.split([rows for rows, _ in sizes]) for part in parts]
    return torch.cat([
        piece[number] for number, (_, copies) in enumerate(sizes) for piece in pieces[::copies]
    ])  # fmt: skip


@pytest.mark.parametrize("style", ["group", "numbers"])
@pytest.mark.parametrize("size", [2, 4])
def test_ranks_hold_shares_of_one_process(size, style):
    one = layers(0, 1, style=style)
    init_dummy_weights_(one, seed=5)
    ranks = [layers(rank, size, style=style) for rank in range(size)]
    for rank in ranks:
        assert init_dummy_weights_(rank, seed=5) == []
    copies = max(1, size // 2)
    rows = {
        "column": [(24 // size, 1)], "merged": [(24 // size, 1)] * 2, "embed": [(64 // size, 1)],
        "qkv": [(64 // size, 1), (16 * copies // size, copies), (16 * copies // size, copies)],
    }  # fmt: skip
    for name, whole in one.named_parameters():
        parts = [rank.get_parameter(name) for rank in ranks]
        layer = name.partition(".")[0]
        if layer in rows:
            assert torch.equal(joined(parts, rows[layer]), whole), name
        elif name == "row.weight":
            assert torch.equal(torch.cat(parts, 1), whole)
        else:
            assert all(torch.equal(part, whole) for part in parts), name
        assert whole.abs().max() <= 1e-3
