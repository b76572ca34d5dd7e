"""docs/sharded.md runs, block by block, and its recipes give the values of the whole model.

Frameworks that are not here have stand-ins: what they set on parameters, and when they call what.
"""

from __future__ import annotations

import sys
import types
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from layouts import mesh_of
from torch import nn
from worlds import in_worlds

import torchinit
from conftest import native_only
from doc_blocks import blocks_of

pytestmark = native_only

PAGE = Path(__file__).parents[2] / "docs" / "sharded.md"


class Titan(nn.Module):
    """As torchtitan's modules: functions of torch.nn.init by local names, children first."""

    def __init__(self, **children):
        super().__init__()
        self._param_init = {"weight": partial(nn.init.trunc_normal_, std=0.02, a=-0.06, b=0.06)}
        for name, child in children.items():
            self.add_module(name, child)

    def init_weights(self, *, buffer_device=None):
        for child in self.children():
            child.init_weights(buffer_device=buffer_device)
        for name, parameter in self.named_parameters(recurse=False):
            self._param_init[name](parameter)
        if hasattr(self, "cache"):
            self.cache = torch.arange(4.0, device=buffer_device)


class TitanLinear(Titan):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.register_buffer("cache", torch.empty(4), persistent=False)

    def forward(self, x):
        return x


class Olmo(nn.Module):
    """Names as those of OLMo-core."""

    def __init__(self):
        super().__init__()
        self.embeddings = nn.Embedding(100, 16)
        block = {"w1": nn.Linear(16, 48, bias=False), "attention_norm": nn.RMSNorm(16)}
        self.blocks = nn.ModuleDict({"0": nn.ModuleDict(block)})
        self.lm_head = nn.ModuleDict({"norm": nn.RMSNorm(16), "w_out": nn.Linear(16, 100)})


def partitioned(model, rank, ranks):
    """What zero.Init makes of a model, as one of several ranks has it."""
    for parameter in model.parameters():
        parameter.ds_shape, parameter.ds_numel = parameter.shape, parameter.numel()
        parameter.ds_process_group = dist.group.WORLD
        held = -(-parameter.ds_numel // ranks)
        part = parameter.detach().flatten()[rank * held : (rank + 1) * held]
        parameter.ds_tensor = torch.full((held,), torch.nan)
        parameter.ds_tensor[: part.numel()] = part
        parameter.data = torch.empty(0)
    return model


class Mlp(nn.Module):
    """Names as those of Megatron-Core, and what its layers say of their weights."""

    def __init__(self, size):
        super().__init__()
        self.linear_fc1 = nn.Linear(8, 48 // size)
        self.linear_fc1.output_size_per_partition = 48 // size
        self.linear_fc1.config = types.SimpleNamespace(gated_linear_unit=True)
        self.linear_fc2 = nn.Linear(24 // size, 8, bias=False)
        self.linear_fc2.input_size_per_partition = 24 // size
        self.pre_mlp_layernorm = nn.LayerNorm(8)


def small():
    return nn.Sequential(nn.Linear(12, 7), nn.LayerNorm(7), nn.Linear(7, 30, bias=False))


def on_meta(build):
    with torch.device("meta"):
        return build()


def module(name, **contents):
    made = types.ModuleType(name)
    made.__dict__.update(contents)
    return made


def stand_ins(rank, world):
    state = module(
        "megatron.core.parallel_state",
        get_tensor_model_parallel_rank=lambda: rank,
        get_tensor_model_parallel_world_size=lambda: world,
        get_expert_model_parallel_rank=lambda: 0,
    )
    lightning = {name: module(name) for name in ("lightning", "lightning.fabric")}
    strategies = module("lightning.fabric.strategies", ModelParallelStrategy=dict)
    return {
        "megatron": module("megatron"),
        "megatron.core": module("megatron.core", parallel_state=state),
        **lightning,
        "lightning.fabric.strategies": strategies,
    }


def prepared(rank, world):
    """What the page takes from frameworks."""
    from torch.distributed.fsdp import fully_shard

    titan = on_meta(lambda: Titan(a=TitanLinear(6, 10), b=TitanLinear(10, 5)))
    olmo = on_meta(Olmo)
    mesh = mesh_of(world)
    fully_shard(titan.a, mesh=mesh)
    fully_shard(olmo.blocks["0"]["w1"], mesh=mesh)
    return {
        "model_parts": [titan],
        "init_device": "cpu",
        "buffer_device": "cpu",
        "olmo": olmo,
        "zero_model": partitioned(small(), rank, world),
        "gpt": Mlp(world),
        "meta_model": on_meta(small),
    }


def run_page():
    """Runs the blocks; returns their names, by heading, as they are after the last of each."""
    rank, world = dist.get_rank(), dist.get_world_size()
    names, after = prepared(rank, world), {}
    sys.modules.update(stand_ins(rank, world))
    for heading, line, code in blocks_of(PAGE):
        exec(compile("\n" * line + code, str(PAGE), "exec"), names)
        after[heading] = dict(names)
        if "whole models" in heading.lower() and "config" in names:
            assert_equals(names["model"], plain_llama(names, names["config"]))
    return after


def plain_llama(names, config):
    model = on_meta(lambda: names["LlamaForCausalLM"](config))
    return torchinit.init_model_(model, seed=0, dtype=torch.bfloat16, device="cpu")


def full(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor.detach()


def assert_equals(model, plain):
    wanted = dict(plain.named_parameters())
    found = dict(model.named_parameters())
    assert list(found) == list(wanted)
    for name, parameter in found.items():
        assert torch.equal(full(parameter), wanted[name].detach()), name


@in_worlds(1, 2, seconds=180)
def test_the_page():
    after = run_page()

    torch.manual_seed(0)
    weight = torchinit.kaiming_normal_(torch.empty(4096, 1024))
    assert torch.equal(full(after["Functions on DTensors"]["weight"]), weight)

    tied = after["Ties"]["model"]
    assert torch.equal(full(tied.lm_head.weight), full(tied.model.embed_tokens.weight))

    names = after["Plain shards"]
    linear = nn.Linear(256, 512, bias=False)
    change = {"weight": "layers.0.w1.weight"}
    torchinit.init_model_(linear, {"**": names["scheme"]}, seed=0, rename=change)
    assert torch.equal(names["rows"], linear.weight.detach()[384:])
    assert torch.equal(names["flat"], linear.weight.detach().flatten()[130_072:])

    (titan,) = after["torchtitan"]["model_parts"]
    plain = Titan(a=TitanLinear(6, 10), b=TitanLinear(10, 5))
    rules = {"b.weight": "zeros", "**": torchinit.TruncNormal(0.02, cut=3)}
    assert_equals(titan, torchinit.init_model_(plain, rules, seed=0))
    assert torch.equal(titan.b.cache, torch.arange(4.0))

    names = after["OLMo-core"]
    assert_equals(names["olmo"], torchinit.init_model_(Olmo(), names["rules"], seed=0))

    names = after["Lightning Fabric"]
    names["config"].tie_word_embeddings = False
    model = on_meta(lambda: names["LlamaForCausalLM"](names["config"]))
    made = names["parallelize"](model, {"data_parallel": names["mesh"]})
    assert names["strategy"]["parallelize_fn"] is names["parallelize"]
    assert_equals(made.bfloat16(), plain_llama(names, names["config"]))

    check_fsdp1(after["FSDP1"]["wrapped"])


def check_fsdp1(wrapped):
    from torch.distributed.fsdp import FullyShardedDataParallel

    plain = small()
    with torchinit.patch_nn_init(seed=0, names_from=plain):
        for layer in plain:
            layer.reset_parameters()
    with FullyShardedDataParallel.summon_full_params(wrapped, writeback=False):
        for layer, wanted in zip(wrapped.module, plain, strict=True):
            for name, parameter in wanted.named_parameters():
                assert torch.equal(getattr(layer, name), parameter), name


@in_worlds(1, 2)
def test_megatron_and_zero():
    after, rank, world = run_page(), dist.get_rank(), dist.get_world_size()
    names = after["Megatron-Core"]
    whole = torchinit.init_model_(Mlp(1), names["rules"], seed=0, strict=False)
    gate, up = (part.chunk(world)[rank] for part in whole.linear_fc1.weight.chunk(2))
    assert torch.equal(names["gpt"].linear_fc1.weight, torch.cat([gate, up]))
    assert torch.equal(
        names["gpt"].linear_fc2.weight, whole.linear_fc2.weight.chunk(world, 1)[rank]
    )

    names = after["DeepSpeed ZeRO-3"]
    whole = torchinit.init_model_(small(), names["rules"], seed=0)
    held = names["zero_model"][0].weight.ds_tensor
    assert torch.equal(held, whole[0].weight.detach().flatten().chunk(world)[rank])
    assert names["zero_model"][1].weight.ds_tensor.nan_to_num(1).eq(1).all()  # kept


@in_worlds(2)
def test_models_are_filled_without_communication():
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.debug import CommDebugMode

    model = on_meta(small)
    fully_shard(model, mesh=mesh_of(2))
    with CommDebugMode() as said:
        torchinit.init_model_(model, {"**": torchinit.Normal(0.02)}, seed=0)
        torchinit.normal_(model[0].weight)
    assert said.get_total_counts() == 0
    with CommDebugMode() as said:
        full(model[0].weight)
    assert said.get_total_counts() == 1
