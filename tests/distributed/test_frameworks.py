"""The integrations with the frameworks themselves, where they are installed (`--no-deps` will do).

Tried with megatron-core 0.16.1, deepspeed 0.19.8, torchtitan 0.3.0 and sglang 0.5.23, on the CPU.
"""

from __future__ import annotations

import importlib.util
import os
import re
import types
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import nn
from worlds import in_worlds

import torchinit
from conftest import long, native_only

pytestmark = [long, native_only]


def needs(package):
    found = importlib.util.find_spec(package)
    return pytest.mark.skipif(found is None, reason=f"needs {package}")


def parts_of(model):
    """The parameters of every rank's model, by name."""
    here = {name: parameter.detach() for name, parameter in model.named_parameters()}
    everywhere = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, here)
    return everywhere


def gpt(tensor=1, pipeline=1, expert=1, *, experts, perform):
    """A filled model of Megatron-Core, or this rank's share of it."""
    from megatron.core import parallel_state as state
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.transformer import TransformerConfig

    from torchinit.integrations import megatron

    sizes = {
        "tensor_model_parallel_size": tensor, "pipeline_model_parallel_size": pipeline,
        "expert_model_parallel_size": expert, "expert_tensor_parallel_size": tensor,
    }  # fmt: skip
    state.destroy_model_parallel()
    state.initialize_model_parallel(**sizes)
    config = TransformerConfig(
        num_layers=4, hidden_size=32, num_attention_heads=4, num_query_groups=2, ffn_hidden_size=48,
        use_cpu_initialization=True, perform_initialization=perform, gated_linear_unit=True,
        activation_func=nn.functional.silu, pipeline_dtype=torch.float32,
        add_bias_linear=not experts, num_moe_experts=experts, moe_ffn_hidden_size=experts and 48,
        moe_router_load_balancing_type="none", **sizes,
    )  # fmt: skip
    spec = get_gpt_layer_local_spec(num_experts=experts, moe_grouped_gemm=False)
    model = GPTModel(
        config, spec, vocab_size=64, max_sequence_length=16,
        share_embeddings_and_output_weights=False,
        pre_process=state.is_pipeline_first_stage(), post_process=state.is_pipeline_last_stage(),
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    gate_up = torchinit.Blocks({"gate": 48, "up": 48}, torchinit.VarianceScaling())
    rules = {"**layernorm.weight": "ones", "**.linear_fc1.weight": gate_up, "**.bias": "zeros"}
    rules["**"] = torchinit.Normal(0.02)
    return megatron.init_model_(model, rules, seed=0, strict=False)


def joined(name, whole, parts):
    """The full parameter of Megatron's shares; of a gated unit each holds a gate and an up."""
    dims = [d for d in range(whole.dim()) if whole.shape[d] != parts[0].shape[d]]
    if not dims:
        assert torch.equal(parts[0], parts[1])
        return parts[0]
    if "linear_fc1" in name:
        parts = [half for number in (0, 1) for half in (p.chunk(2)[number] for p in parts)]
    return torch.cat(parts, dims[0])


@needs("megatron")
@in_worlds(2, seconds=400)
def test_megatron():
    for experts in (None, 4):
        whole = {n: p.detach() for n, p in gpt(experts=experts, perform=False).named_parameters()}
        assert all(p.isfinite().all() for p in whole.values())
        for perform in (False, True):
            both = parts_of(gpt(tensor=2, experts=experts, perform=perform))
            for name, one in whole.items():
                assert torch.equal(joined(name, one, [part[name] for part in both]), one), name
        both = parts_of(gpt(pipeline=2, experts=experts, perform=False))
        for name, one in whole.items():
            local, stage = name, 0 if name in both[0] else 1
            if layer := re.match(r"decoder\.layers\.(\d)", name):
                stage = int(layer[1]) // 2
                local = f"decoder.layers.{int(layer[1]) % 2}{name[layer.end() :]}"
            assert torch.equal(both[stage][local], one), name
    both = parts_of(gpt(expert=2, experts=4, perform=False))
    for name, one in whole.items():
        number = re.search(r"(?<=local_experts\.)\d", name)
        rank = int(number[0]) // 2 if number else 0
        local = re.sub(r"(?<=local_experts\.)\d", lambda n: str(int(n[0]) % 2), name)
        assert torch.equal(both[rank][local], one), name


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Embedding(33, 20, padding_idx=7), nn.LayerNorm(33)
        self.hidden, self.head = nn.Linear(20, 33), nn.Linear(33, 7, bias=False)

    def forward(self, tokens):
        return self.head(self.norm(self.hidden(self.embed(tokens)))).logsumexp(-1).mean()


@needs("deepspeed")
@in_worlds(1, 2, seconds=300)
def test_deepspeed():
    os.environ |= {"DS_ACCELERATOR": "cpu", "LOCAL_RANK": str(dist.get_rank())}
    import deepspeed

    from torchinit.integrations import deepspeed as zero3

    deepspeed.init_distributed(dist_backend="gloo")
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 50},
        "optimizer": {"type": "Adam", "params": {"torch_adam": True}},
    }
    rules = {"**norm.weight": "ones", "**.bias": "zeros", "**": torchinit.Orthogonal()}
    whole = dict(torchinit.init_model_(Net(), rules, seed=0).named_parameters())
    with deepspeed.zero.Init(config_dict_or_path=config):
        model = Net()
    zero3.init_model_(model, rules, seed=0)
    engine, *_ = deepspeed.initialize(model=model, config=config)
    engine.backward(engine(torch.arange(5)[None]))  # gathers and releases all
    for name, parameter in engine.module.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter]):
            assert torch.equal(parameter.detach(), whole[name].detach()), name


@needs("torchtitan")
def test_torchtitan():
    models = pytest.importorskip("torchtitan.models.llama3")
    from torchinit.integrations import torchtitan

    made = []
    for with_rules in (False, True):
        with torch.device("meta"):
            model = models.llama3_configs["debugmodel"](attn_backend="flex").build()
        rules = torchtitan.rules_of(model) if with_rules else None
        made.append(torchinit.init_model_(model, rules, seed=0, device="cpu").state_dict())
    assert list(made[0]) == list(made[1])
    for name, tensor in made[0].items():
        assert torch.equal(tensor, made[1][name]), name


@needs("sglang")
def test_sglang(monkeypatch):
    linear = pytest.importorskip("sglang.srt.layers.linear")
    vocabulary = pytest.importorskip("sglang.srt.layers.vocab_parallel_embedding")
    from torchinit.integrations.serving import init_dummy_weights_

    def build(rank, size):
        def group(_):
            return linear._LogicalGroup(rank, size)

        for module in (linear, vocabulary):
            monkeypatch.setattr(module, "_resolve_linear_group", group)
        parallel = types.SimpleNamespace(tp_rank=rank, tp_size=size)
        monkeypatch.setattr(vocabulary, "get_parallel", lambda: parallel)
        plain = {"bias": False, "params_dtype": torch.bfloat16}
        return nn.ModuleDict({
            "qkv": linear.QKVParallelLinear(32, 8, 8, 2, params_dtype=torch.bfloat16),
            "up": linear.MergedColumnParallelLinear(32, [48, 48], **plain),
            "down": linear.RowParallelLinear(48, 32, **plain),
            "gate": linear.ReplicatedLinear(32, 4, **plain),
            "embed": vocabulary.VocabParallelEmbedding(500, 32, params_dtype=torch.bfloat16),
        })  # fmt: skip

    def rows(parts, sizes):
        """Of several parts, each on every so many ranks."""
        pieces = [part.split([size for size, _ in sizes]) for part in parts]
        return torch.cat([
            piece[number] for number, (_, every) in enumerate(sizes) for piece in pieces[::every]
        ])  # fmt: skip

    one = build(0, 1)
    init_dummy_weights_(one)
    for size in (2, 4):
        copies, ranks = size // 2, [build(rank, size) for rank in range(size)]
        heads = 8 * max(1, 2 // size)
        assert [init_dummy_weights_(rank) for rank in ranks] == [[]] * size
        join = {
            "qkv": partial(rows, sizes=[(64 // size, 1), (heads, copies), (heads, copies)]),
            "up": partial(rows, sizes=[(48 // size, 1)] * 2),
            "down": partial(torch.cat, dim=1), "embed": torch.cat, "gate": lambda parts: parts[0],
        }  # fmt: skip
        for name, whole in one.named_parameters():
            parts = [rank.get_parameter(name).data for rank in ranks]
            assert torch.equal(join[name.partition(".")[0]](parts), whole.data), name
