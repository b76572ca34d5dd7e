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
        self.param_init = {"weight": partial(nn.init.trunc_normal_, std=0.02, a=-0.06, b=0.06)}
        for name, child in children.items():
            self.add_module(name, child)

    def init_weights(self, *, buffer_device=None):
        for child in self.children():
            child.init_weights(buffer_device=buffer_device)
        for name, parameter in self.named_parameters(recurse=False):
            self.param_init[name](parameter)
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


class Zero:
    """What zero.Init makes of a model, as one of several ranks has it."""

    def __init__(self, model, rank, ranks):
        self.parameters = dict(model.named_parameters())
        for parameter in self.parameters.values():
            parameter.ds_shape, parameter.ds_numel = parameter.shape, parameter.numel()
            parameter.ds_process_group = dist.group.WORLD
            held = -(-parameter.ds_numel // ranks)
            part = parameter.detach().flatten()[rank * held : (rank + 1) * held]
            parameter.ds_tensor = torch.full((held,), torch.nan)
            parameter.ds_tensor[: part.numel()] = part
            parameter.data = torch.empty(0)

    def named_parameters(self):
        return self.parameters.items()


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
        "zero_model": Zero(small(), rank, world),
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
    scheme = torchinit.TruncNormal(0.02, cut=3)
    assert_equals(titan, torchinit.init_model_(plain, {"**": scheme}, seed=0))
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


def whole_of(shape, name, scheme):
    zeros = (0,) * len(shape)
    return torchinit.init_shard_(
        torch.empty(shape), scheme, global_shape=shape, offset=zeros, seed=0, name=name
    )


@in_worlds(1)
def test_partitions_of_megatron():
    fill = run_page()["Megatron-Core"]["fill_partition"]
    scheme = torchinit.VarianceScaling()
    for shape, dim, stride in (((24, 10), 0, 1), ((24, 10), 0, 2), ((10, 24), 1, 1), ((24,), 0, 2)):
        used = scheme if len(shape) > 1 else torchinit.Normal(0.3)
        whole = whole_of(shape, "weight", used)
        for size in (1, 2, 3, 4):
            chunks = whole.chunk(size * stride, dim)  # of which Megatron gives ranks every size-th
            for rank in range(size):
                wanted = torch.cat(chunks[rank::size], dim)
                weight = nn.Parameter(torch.empty_like(wanted))
                weight.tensor_model_parallel = True
                weight.partition_dim, weight.partition_stride = dim, stride
                fill(weight, used, rank, size, seed=0)
                assert torch.equal(weight.detach(), wanted), (shape, stride, size, rank)


@in_worlds(2)
def test_megatrons_init_method():
    init_method = run_page()["Megatron-Core"]["init_method"]
    torch.manual_seed(4)
    weight = nn.Parameter(torch.empty(6, 5))
    weight.partition_dim, weight.partition_stride = 0, 1
    init_method(weight)
    torch.manual_seed(4)
    seed = int(torch.randint(2**62, ()))
    whole = torchinit.init_shard_(
        torch.empty(12, 5),
        torchinit.Normal(0.02),
        global_shape=(12, 5),
        offset=(0, 0),
        seed=seed,
        name="weight",
    )
    assert torch.equal(weight.detach(), whole.chunk(2)[dist.get_rank()])


@in_worlds(1, 2)
def test_ranges_of_zero():
    names = run_page()["DeepSpeed ZeRO-3"]
    found = names["zero_model"].parameters
    held = found["0.weight"].ds_tensor
    world, rank = dist.get_world_size(), dist.get_rank()
    whole = whole_of((7, 12), "0.weight", torchinit.Normal(0.02)).flatten()
    assert torch.equal(held, whole.chunk(world)[rank])
    assert found["1.weight"].ds_tensor.nan_to_num(1).eq(1).all()  # as its constructor left it
    for ranks in (1, 2, 3, 4, 5, 11, 100):
        for rank in range(ranks):
            parameter = Zero(small(), rank, ranks).parameters["0.weight"]
            parameter.ds_tensor.fill_(torch.nan)
            names["fill_range"](parameter, torchinit.Normal(0.02), rank, seed=0, name="0.weight")
            size = parameter.ds_tensor.numel()
            part = whole[rank * size : (rank + 1) * size]
            assert torch.equal(parameter.ds_tensor[: part.numel()], part)
            assert parameter.ds_tensor[part.numel() :].isnan().all()  # padding


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
