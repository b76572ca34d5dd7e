"""Megatron-Core's shapes: what its layers set, and the names of its stages and experts."""

from __future__ import annotations

import sys
import types
from itertools import product

import pytest
import torch
from torch import nn

import torchinit
from conftest import native_only
from torchinit import ArgumentError
from torchinit.integrations import megatron

pytestmark = native_only

RULES = {"**norm.*": "ones", "**.bias": "zeros", "**": torchinit.VarianceScaling()}


class Layer(nn.Module):
    """A layer of Megatron, of which one of several ranks holds a share.

    Args:
        shape: of the full weight.
        dim: the dimension that is divided.
        size: the number of ranks.
        says: whether it has set attributes on the weight, as after ``init_method``.
        stride: that it sets.
    """

    def __init__(self, shape, dim, size, says=False, stride=1, **config):
        super().__init__()
        local = list(shape)
        local[dim] //= size
        self.weight = nn.Parameter(torch.full(local, torch.nan))
        self.config = types.SimpleNamespace(**config)
        if says:
            self.weight.tensor_model_parallel = True
            self.weight.partition_dim, self.weight.partition_stride = dim, stride
        else:
            setattr(self, ("output" if dim == 0 else "input") + "_size_per_partition", local[dim])
        self.bias = nn.Parameter(torch.full(local[:1] if dim == 0 else shape[:1], torch.nan))


def ranks(monkeypatch, tensor=(0, 1), expert_tensor=(0, 1), expert=0):
    state = types.ModuleType("megatron.core.parallel_state")
    state.get_tensor_model_parallel_rank = lambda: tensor[0]
    state.get_tensor_model_parallel_world_size = lambda: tensor[1]
    state.get_expert_tensor_parallel_rank = lambda: expert_tensor[0]
    state.get_expert_tensor_parallel_world_size = lambda: expert_tensor[1]
    state.get_expert_model_parallel_rank = lambda: expert
    core = types.ModuleType("megatron.core")
    core.parallel_state = state
    monkeypatch.setitem(sys.modules, "megatron", types.ModuleType("megatron"))
    monkeypatch.setitem(sys.modules, "megatron.core", core)
    monkeypatch.setitem(sys.modules, "megatron.core.parallel_state", state)


def weight(shape, name, scheme=RULES["**"]):
    whole = {"global_shape": shape, "offset": (0,) * len(shape)}
    return torchinit.init_shard_(torch.empty(shape), scheme, **whole, seed=3, name=name)


@pytest.mark.parametrize(("says", "size"), [*product((True, False), (1, 2, 3))])
def test_tensor_parallelism(monkeypatch, says, size):
    for rank in range(size):
        ranks(monkeypatch, (rank, size))
        model = nn.ModuleDict({
            "a": Layer((12, 10), 0, size, says), "b": Layer((10, 12), 1, size, says),
            "norm": nn.LayerNorm(10),
            "linear_fc1": Layer((24, 10), 0, size, says, gated_linear_unit=True),
            "strided": Layer((24, 10), 0, size, True, stride=2),
        })  # fmt: skip
        megatron.init_model_(model, RULES, seed=3)
        assert torch.equal(model.a.weight, weight((12, 10), "a.weight").chunk(size)[rank])
        assert torch.equal(model.b.weight, weight((10, 12), "b.weight").chunk(size, 1)[rank])
        for name in ("linear_fc1", "strided"):  # the attributes of linear_fc1 may say 1
            gate, up = weight((24, 10), f"{name}.weight").chunk(2)
            wanted = torch.cat([gate.chunk(size)[rank], up.chunk(size)[rank]])
            assert torch.equal(model[name].weight, wanted)
        assert not model.a.bias.any()
        assert not model.b.bias.any()
        assert model.norm.weight.eq(1).all()


def test_layers_and_experts_have_their_global_numbers(monkeypatch):
    ranks(monkeypatch, (0, 4), expert_tensor=(1, 2), expert=3)

    def experts():
        local = nn.ModuleList(nn.ModuleDict({"fc": Layer((4, 6), 0, 2)}) for _ in range(2))
        made = nn.ModuleDict({"local_experts": local, "linear_fc1": nn.Module()})
        made.num_local_experts = 2
        made.linear_fc1.weight1 = nn.Parameter(torch.empty(4, 6))  # of TEGroupedMLP
        return nn.ModuleDict({"mlp": nn.ModuleDict({"experts": made})})

    model = nn.ModuleDict({"layers": nn.ModuleList([experts(), experts()])})
    model.layers[0].layer_number, model.layers[1].layer_number = 7, 8
    megatron.init_model_(model, RULES, seed=3, rename=lambda name: f"decoder.{name}", strict=False)
    found = model.layers[1].mlp.experts
    prefix = "decoder.layers.7.mlp.experts."
    wanted = weight((4, 6), f"{prefix}local_experts.7.fc.weight")
    assert torch.equal(found.local_experts[1].fc.weight, wanted[2:])
    assert torch.equal(found.linear_fc1.weight1, weight((4, 6), f"{prefix}linear_fc1.weight7"))


def test_wrappers_of_megatron_and_a_tied_head(monkeypatch):
    ranks(monkeypatch)
    wrapper = type("Float16Module", (nn.Module,), {"__module__": "megatron.core.transformer"})()
    wrapper.module = nn.ModuleDict({"output_layer": nn.Linear(4, 6, bias=False)})
    same = {"output_layer.weight": "embedding.word_embeddings.weight"}
    megatron.init_model_(wrapper, {"**": RULES["**"]}, seed=3, rename=same)
    wanted = weight((6, 4), "embedding.word_embeddings.weight")
    assert torch.equal(wrapper.module.output_layer.weight, wanted)


def test_what_is_refused_leaves_the_model_as_it_is(monkeypatch):
    ranks(monkeypatch, (1, 2))
    model = nn.ModuleDict({"a": Layer((4, 6), 0, 2), "b": Layer((4, 6), 1, 2)})
    with pytest.raises(ArgumentError, match=r"no rule matches 2 of 4 parameters: a.bias, b.bias"):
        megatron.init_model_(model, {"**.weight": "ones"}, seed=0)
    with pytest.raises(ArgumentError, match="match no parameter: 'c'"):
        megatron.init_model_(model, {"c": "ones", **RULES}, seed=0, strict=True)
    orthogonal = {"a.weight": "ones", "**": "orthogonal"}  # a bias is no matrix
    with pytest.raises(ArgumentError, match="is not a matrix"):
        megatron.init_model_(model, orthogonal, seed=0)
    model.b.weight.tensor_model_parallel = True
    model.b.weight.partition_dim, model.b.weight.partition_stride = 1, 2
    model.b.weight.data = torch.full((4, 3), torch.nan)
    with pytest.raises(ArgumentError, match=r"'b.weight' of shape \(4, 3\) does not hold equal"):
        megatron.init_model_(model, {"**": "ones"}, seed=0)
    assert all(p.isnan().all() for p in model.parameters())
    experts = nn.ModuleDict({"experts": nn.Module()})
    experts.experts.num_local_experts = 2
    experts.experts.weight1 = nn.Parameter(torch.empty(4, 6))
    with pytest.raises(ArgumentError, match=r"'experts.weight1' holds all experts of a GroupedMLP"):
        megatron.init_model_(experts, {"**": "ones"}, seed=0)
