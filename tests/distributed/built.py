"""Small models that are initialised in every manner, and the ways in which ranks hold them.

Stand-ins are written as the code that they stand for: Mamba, DiT and nanoGPT fill their parameters
in constructors, by arithmetic and in loops; torchtitan's modules do it when they are asked to.
"""

from __future__ import annotations

import copy
import functools
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from layouts import mesh_of
from torch import nn
from torch.nn import functional

from fills import bits
from torchinit.fill.sharded import view_of
from torchinit.placement.box import cut_out
from torchinit.placement.distributed import is_dtensor, read_sharded

WIDTH = 16


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=50, hidden_size=WIDTH, intermediate_size=44, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=16,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def gpt2():
    """With tied embeddings, and a scaled c_proj."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=51, n_embd=WIDTH, n_layer=2, n_head=4, n_positions=10, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


# In the manner of torchtitan.


class TitanModule(nn.Module):
    """Children first; then what a module holds itself."""

    param_init: dict[str, Callable] | None = None

    def init_states(self, *, buffer_device=None):
        for child in self.children():
            if isinstance(child, nn.ModuleDict):
                for each in filter(None, child.values()):
                    each.init_states(buffer_device=buffer_device)
            else:
                child.init_states(buffer_device=buffer_device)
        for name, parameter in self.named_parameters(recurse=False):
            self.param_init[name](parameter)
        self._init_self_buffers(buffer_device=buffer_device)

    def _init_self_buffers(self, *, buffer_device=None):
        pass


def normal_by(std):
    return functools.partial(nn.init.trunc_normal_, std=std, a=-3 * std, b=3 * std)


class TitanLinear(nn.Linear, TitanModule):
    def __init__(self, inputs, outputs, std=0.02, bias=False):
        super().__init__(inputs, outputs, bias)
        self.param_init = {"weight": normal_by(std), "bias": nn.init.zeros_}


class TitanEmbedding(nn.Embedding, TitanModule):
    param_init = {"weight": nn.init.normal_}  # noqa: RUF012


class TitanNorm(nn.RMSNorm, TitanModule):
    param_init = {"weight": nn.init.ones_}  # noqa: RUF012


class TitanRope(TitanModule):
    def __init__(self):
        super().__init__()
        self.register_buffer("cache", self._precompute(), persistent=False)

    def _precompute(self):
        freqs = 1.0 / (10000 ** (torch.arange(0, 8, 2).float() / 8))
        freqs = torch.outer(torch.arange(12, device=freqs.device), freqs).float()
        return torch.polar(torch.ones_like(freqs), freqs)

    def _init_self_buffers(self, *, buffer_device=None):
        with torch.device(buffer_device or self.cache.device):
            self.cache = self._precompute()


class TitanExperts(TitanModule):
    def __init__(self, std):
        super().__init__()
        self.w1 = nn.Parameter(torch.empty(3, 20, WIDTH))
        self.w2 = nn.Parameter(torch.empty(3, WIDTH, 20))
        self.register_buffer("expert_bias", torch.zeros(3))
        self.register_buffer("tokens_per_expert", torch.zeros(3), persistent=False)
        self.param_init = {"w1": normal_by(0.02), "w2": self._by_expert(normal_by(std))}

    def _by_expert(self, fill):
        def fill_each(parameter):
            for expert in parameter:
                fill(expert)

        return fill_each

    def _init_self_buffers(self, *, buffer_device=None):
        with torch.device(buffer_device or self.expert_bias.device):
            self.tokens_per_expert = torch.zeros(3)
            self.expert_bias = torch.zeros(3)


class TitanBlock(TitanModule):
    def __init__(self, number):
        super().__init__()
        std = 0.02 / (2 * (number + 1)) ** 0.5
        self.wqkv = TitanLinear(WIDTH, 3 * WIDTH)
        self.wo = TitanLinear(WIDTH, WIDTH, std)
        self.moe = TitanExperts(std)
        self.w1, self.w2 = TitanLinear(WIDTH, 44), TitanLinear(44, WIDTH, std, bias=True)
        self.norm = TitanNorm(WIDTH)


class Titan(TitanModule):
    def __init__(self):
        super().__init__()
        self.tok_embeddings = TitanEmbedding(50, WIDTH)
        self.rope = TitanRope()
        self.register_buffer("freqs_cis", self.rope.cache, persistent=False)
        self.layers = nn.ModuleDict({str(number): TitanBlock(number) for number in range(2)})
        self.norm = TitanNorm(WIDTH)
        self.output = TitanLinear(WIDTH, 50, WIDTH**-0.5)

    def init_states(self, *, buffer_device=None):
        super().init_states(buffer_device=buffer_device or self.freqs_cis.device)

    def _init_self_buffers(self, *, buffer_device=None):
        rope = self.rope
        if rope is None:  # a stage of a pipeline: it has been pruned
            rope = TitanRope()
            rope.init_states(buffer_device=buffer_device)
        self.freqs_cis = rope.cache


class TiedTitan(Titan):
    """Ties its embeddings anew each time, as ``to_empty`` has broken the tie."""

    def __init__(self):
        super().__init__()
        self._tie()

    def _tie(self):
        self.tok_embeddings.weight = self.output.weight

    def init_states(self, *, buffer_device=None):
        self._tie()
        super().init_states(buffer_device=buffer_device)


class OldTitan(nn.Module):
    """As it was before: a method of another name, which goes through the layers."""

    def __init__(self):
        super().__init__()
        self.tok_embeddings = nn.Embedding(50, WIDTH)
        self.register_buffer("freqs_cis", self._precompute(), persistent=False)
        self.layers = nn.ModuleDict({str(number): OldTitanBlock(number) for number in range(2)})
        self.norm = nn.RMSNorm(WIDTH)
        self.output = nn.Linear(WIDTH, 50, bias=False)

    def _precompute(self):
        return torch.outer(torch.arange(12).float(), 1 / torch.arange(1, 5).float())

    def init_weights(self, buffer_device=None):
        with torch.device(buffer_device or self.freqs_cis.device):
            self.freqs_cis = self._precompute()
        if self.tok_embeddings is not None:
            nn.init.normal_(self.tok_embeddings.weight)
        for layer in filter(None, self.layers.values()):
            layer.init_weights()
        if self.norm is not None:
            self.norm.reset_parameters()
        if self.output is not None:
            normal_by(WIDTH**-0.5)(self.output.weight)


class OldTitanBlock(nn.Module):
    def __init__(self, number):
        super().__init__()
        self.std = 0.02 / (2 * (number + 1)) ** 0.5
        self.attention, self.norm = nn.Linear(WIDTH, WIDTH, bias=False), nn.RMSNorm(WIDTH)
        self.w1, self.w2 = nn.Linear(WIDTH, 44, bias=False), nn.Linear(44, WIDTH, bias=False)

    def init_weights(self):
        self.norm.reset_parameters()
        for linear in (self.attention, self.w1):
            nn.init.trunc_normal_(linear.weight, mean=0.0, std=0.02)
        nn.init.trunc_normal_(self.w2.weight, mean=0.0, std=self.std)


# Computed in constructors.


class Mamba(nn.Module):
    """With a copy of a block beside it, as of a teacher, and values that operators give."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(50, WIDTH)
        self.layers = nn.ModuleList(MambaBlock() for _ in range(2))
        self.head = nn.Linear(WIDTH, 50, bias=False)
        self.register_buffer("mix", torch.rand(6))
        for name, parameter in self.named_parameters():
            if name.endswith("out_proj.weight"):
                nn.init.kaiming_uniform_(parameter, a=math.sqrt(5))
                with torch.no_grad():
                    parameter /= math.sqrt(4)
        self.teacher = copy.deepcopy(self.layers[0]).requires_grad_(False)


class MambaBlock(nn.Module):
    def __init__(self):
        super().__init__()
        inner = 2 * WIDTH
        self.in_proj = nn.Linear(WIDTH, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, 3, groups=inner // 2)
        self.dt_proj = nn.Linear(2, inner)
        self.out_proj = nn.Linear(inner, WIDTH, bias=False)
        nn.init.uniform_(self.dt_proj.weight, -(2**-0.5), 2**-0.5)
        with torch.no_grad():
            self.dt_proj.bias.copy_(self._inverse_of_softplus(inner))
        self.dt_bias = nn.Parameter(self._inverse_of_softplus(12))
        states = torch.arange(1, 9, dtype=torch.float32).repeat(inner, 1)
        self.A_log = nn.Parameter(torch.log(states))
        self.A_log_2 = nn.Parameter(torch.log(torch.empty(16).uniform_(1, 16)))
        self.D = nn.Parameter(torch.ones(inner))
        self.gate = nn.Parameter(torch.sigmoid(torch.randn(9, 5)))
        self.steps = nn.Parameter(functional.softplus(torch.rand(9, 5) - 0.5))
        self.powers = nn.Parameter(torch.randn(9, 5).abs().pow(1.3))
        self.scaled = nn.Parameter((torch.rand(9, 5) - 0.5) * 0.2)

    @staticmethod
    def _inverse_of_softplus(size):
        low, high = math.log(0.001), math.log(0.1)
        dt = torch.exp(torch.rand(size) * (high - low) + low).clamp(min=1e-4)
        return dt + torch.log(-torch.expm1(-dt))


class DiT(nn.Module):
    """Everything again in ``initialize_weights``, which the constructor calls."""

    def __init__(self):
        super().__init__()
        self.x_embedder = nn.Conv2d(3, WIDTH, 2, 2)
        self.y_embedder = nn.Embedding(11, WIDTH)
        self.t_embedder = nn.Sequential(nn.Linear(8, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.pos_embed = nn.Parameter(torch.zeros(1, 25, WIDTH), requires_grad=False)
        self.blocks = nn.ModuleList(DiTBlock() for _ in range(2))
        self.final = nn.Linear(WIDTH, 12)
        self.register_buffer("freqs", torch.exp(-math.log(1e4) * torch.arange(4) / 4))
        self.initialize_weights()

    def initialize_weights(self):
        def basic(module):
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.constant_(module.bias, 0)

        self.apply(basic)
        angles = np.outer(np.arange(25), 1 / 10000 ** (np.arange(8) / 8))
        table = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
        self.pos_embed.data.copy_(torch.from_numpy(table).float().unsqueeze(0))
        weight = self.x_embedder.weight.data
        nn.init.xavier_uniform_(weight.view([weight.shape[0], -1]))
        nn.init.constant_(self.x_embedder.bias, 0)
        nn.init.normal_(self.y_embedder.weight, std=0.02)
        nn.init.normal_(self.t_embedder[0].weight, std=0.02)
        for block in self.blocks:
            nn.init.constant_(block.modulation.weight, 0)
            nn.init.constant_(block.modulation.bias, 0)
        nn.init.constant_(self.final.weight, 0)


class DiTBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.modulation = nn.Linear(WIDTH, 6 * WIDTH)


class NanoGPT(nn.Module):
    """Tied embeddings; projections drawn again in a loop; biases of a gate written by slices."""

    def __init__(self):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(50, WIDTH), nn.Embedding(12, WIDTH)
        self.h = nn.ModuleList(NanoBlock() for _ in range(2))
        self.lm_head = nn.Linear(WIDTH, 50, bias=False)
        self.wte.weight = self.lm_head.weight
        self.apply(self._init_weights)
        for name, parameter in self.named_parameters():
            if name.endswith("c_proj.weight"):
                nn.init.normal_(parameter, mean=0.0, std=0.02 / math.sqrt(4))

    def _init_weights(self, module):
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, mean=0.0, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, mean=0.0, std=0.02)


class NanoBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.ln_1 = nn.LayerNorm(WIDTH)
        self.c_attn, self.c_proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(WIDTH, 44), "c_proj": nn.Linear(44, WIDTH)})
        self.gates = nn.Parameter(torch.zeros(30))
        with torch.no_grad():
            self.gates[:10] = 1
            self.gates[10:20].uniform_(-0.1, 0.1)
        self.register_buffer("mix", torch.rand(6))
        self.mixer = nn.Parameter(torch.empty(12, 8))
        for rows in self.mixer.chunk(3):
            nn.init.orthogonal_(rows)


def torchs_own():
    """Nothing but modules of torch, with buffers."""
    layers = [
        nn.Sequential(nn.Linear(WIDTH, 44), nn.BatchNorm1d(44), nn.Linear(44, WIDTH))
        for _ in range(2)
    ]
    parts = {
        "embedding": nn.Embedding(50, WIDTH, padding_idx=2),
        "layers": nn.Sequential(*layers),
        "attention": nn.MultiheadAttention(WIDTH, 2),
        "norm": nn.LayerNorm(WIDTH),
        "head": nn.Linear(WIDTH, 50),
    }
    return nn.Sequential(OrderedDict(parts))


class EveryMake(nn.Module):
    """Parameters of whatever layout, dtype and origin."""

    def __init__(self, contiguous=False):
        super().__init__()
        self.linear = nn.Linear(8, 12)
        self.linear.weight.data[:4].mul_(0)
        self.linear.weight.data[4:8] *= 2
        self.lstm = nn.LSTM(8, 8)
        for name, parameter in self.lstm.named_parameters():
            if "bias" in name:
                parameter.data[8:16].fill_(1)
            elif "weight_hh" in name:
                for gate in parameter.data.chunk(4):
                    nn.init.orthogonal_(gate)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
        self.padded = nn.Embedding(10, 8, padding_idx=3)
        drawn = torch.randn(12, 8)
        made = {
            "view": drawn[:6],
            "view_of_the_middle": drawn.chunk(3)[1].clone(),
            "triangle": torch.tril(torch.randn(8, 8)),
            "eye": nn.init.eye_(torch.empty(8, 8)),
            "dirac": nn.init.dirac_(torch.empty(8, 4, 3)),
            "sparse": nn.init.sparse_(torch.empty(8, 8), 0.3),
            "orthogonal": nn.init.orthogonal_(torch.empty(8, 4, 3), 2.0),
            "halved": nn.init.orthogonal_(torch.empty(8, 8)).mul_(0.5),
            "coins": torch.bernoulli(torch.full((8, 8), 0.3)),
            "joined": torch.cat([torch.rand(4, 8), torch.randn(4, 8)]),
            "of_16_bits": torch.randn(8, 8, dtype=torch.float16) * 0.1,
            "numbers": torch.randint(0, 9, (8, 8)),
            "permutation": torch.randperm(16).float(),
            "complex_": torch.randn(8, 4, dtype=torch.complex64),
            "masked": (torch.rand(8, 8) > 0.5).float() * torch.randn(8, 8),
            "shuffled": torch.randn(8, 8)[torch.randperm(8)],
            "added": torch.zeros(8, 8).add_(torch.randn(8, 8)),
            "of_another": self.linear.weight.detach() * 2,
            "few": torch.sigmoid(torch.randn(2, 8)),
        }
        if not contiguous:
            made["transposed"] = torch.randn(6, 8).t()
            made["transposed_values"] = (torch.rand(6, 8) - 0.5).t()
            made["channels_last"] = torch.randn(4, 6, 2, 2).to(memory_format=torch.channels_last)
        for name, values in made.items():
            floating = values.is_floating_point() or values.is_complex()
            self.register_parameter(name, nn.Parameter(values, floating))


class Kind(NamedTuple):
    """A model, and what sharding has to know of it.

    Attributes:
        build: makes it, initialised.
        layers: the list or dict of its blocks, by name.
        plan: of tensor parallelism: columns, rows, or both as they are cut; by globs.
        stages: names of what the first and second half of a pipeline hold, but for blocks; None if
            it has none.
        plain: makes it as it is before ``init_model_`` without rules; None if that does not know
            its initialisation.
    """

    build: Callable[[], nn.Module]
    layers: str
    plan: dict[str, str]
    stages: tuple[Sequence[str], Sequence[str]] | None = None
    plain: Callable[[], nn.Module] | None = None


def titan(kind=Titan):
    model = kind()
    model.init_states()
    return model


def old_titan():
    model = OldTitan()
    model.init_weights()
    return model


TITAN_PLAN = {
    "tok_embeddings": "rows",
    "output": "columns",
    "layers.*.wqkv": "columns",
    "layers.*.wo": "rows",
    "layers.*.w2": "rows",
    "layers.*.moe": "cut 2",
    "norm": "sequence",
}
KINDS = {
    "Llama": Kind(
        llama,
        "model.layers",
        {
            "model.embed_tokens": "rows",
            "lm_head": "columns",
            "model.layers.*.self_attn.[qkv]_proj": "columns",
            "model.layers.*.self_attn.o_proj": "rows",
            "model.layers.*.mlp.up_proj": "columns",
            "model.layers.*.mlp.down_proj": "rows",
            "model.norm": "sequence",
        },
        (["model.embed_tokens"], ["model.norm", "lm_head"]),
        llama,
    ),
    "GPT-2": Kind(
        gpt2,
        "transformer.h",
        {
            "transformer.wte": "rows",
            "lm_head": "columns",
            "transformer.h.*.attn.c_attn": "cut 1",
            "transformer.h.*.mlp.c_proj": "cut 0",
            "transformer.ln_f": "sequence",
        },
        (["transformer.wte", "transformer.wpe"], ["transformer.ln_f", "lm_head"]),
        gpt2,
    ),
    "torchtitan": Kind(
        titan, "layers", TITAN_PLAN, (["tok_embeddings", "rope"], ["norm", "output"]), Titan
    ),
    "torchtitan, tied": Kind(
        functools.partial(titan, TiedTitan), "layers", TITAN_PLAN, plain=TiedTitan
    ),
    "torchtitan's init_weights": Kind(
        old_titan,
        "layers",
        {"tok_embeddings": "rows", "output": "columns", "layers.*.w1": "columns"},
        (["tok_embeddings"], ["norm", "output"]),
        OldTitan,
    ),
    "modules of torch": Kind(
        torchs_own,
        "layers",
        {
            "embedding": "rows",
            "layers.*.0": "columns",
            "layers.*.1": "cut 0",
            "layers.*.2": "rows",
            "head": "columns",
        },
        (["embedding"], ["attention", "norm", "head"]),
        torchs_own,
    ),
    "Mamba": Kind(
        Mamba,
        "layers",
        {
            "embedding": "rows",
            "layers.*.in_proj": "columns",
            "layers.*.out_proj": "rows",
            "layers.*": "cut 1",
            "teacher": "cut 0",
        },
        (["embedding"], ["head", "teacher"]),
    ),
    "DiT": Kind(
        DiT,
        "blocks",
        {
            "x_embedder": "cut 1",
            "y_embedder": "columns",
            "blocks.*.qkv": "columns",
            "blocks.*.proj": "rows",
            "final": "cut 1",
        },
        (["x_embedder", "y_embedder", "t_embedder"], ["final"]),
    ),
    "nanoGPT": Kind(
        NanoGPT,
        "h",
        {
            "wte": "rows",
            "lm_head": "columns",
            "h.*.c_attn": "columns",
            "h.*.c_proj": "rows",
            "h.*": "cut 1",
        },
        (["wte", "wpe"], ["lm_head"]),
    ),
}


# How ranks hold them.


def style(words):
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel

    kind, *numbers = words.split()
    if kind == "cut":
        return cut_by(int(*numbers))
    styles = {"columns": ColwiseParallel, "rows": RowwiseParallel, "sequence": SequenceParallel}
    return styles[kind]()


def cut_by(dim):
    """A style that cuts every parameter of any module, along a dimension or its last."""
    from torch.distributed.tensor import Shard, distribute_module, distribute_tensor
    from torch.distributed.tensor.parallel import ParallelStyle

    def partition(name, module, mesh):  # noqa: ARG001
        for key, parameter in module.named_parameters(recurse=False):
            if not is_dtensor(parameter):
                shards = [Shard(min(dim, parameter.dim() - 1))]
                cut = distribute_tensor(parameter.detach(), mesh, shards)
                module.register_parameter(key, nn.Parameter(cut, parameter.requires_grad))

    class Cut(ParallelStyle):
        def _apply(self, module, device_mesh):
            return distribute_module(module, device_mesh, partition)

    return Cut()


def tensor_parallel(model, kind, mesh):
    from torch.distributed.tensor.parallel import parallelize_module

    return parallelize_module(model, mesh, {name: style(how) for name, how in kind.plan.items()})


def fully_sharded(model, kind, mesh):
    from torch.distributed.fsdp import fully_shard

    layers = model.get_submodule(kind.layers)._modules.values()
    for layer in layers:
        if layer is not None and list(layer.parameters()):
            fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def both(model, kind, mesh):
    return fully_sharded(tensor_parallel(model, kind, mesh["b"]), kind, mesh["a"])


LAYOUTS = {
    "FSDP2": (fully_sharded, {2: (2,), 4: (4,)}),
    "HSDP": (fully_sharded, {4: (2, 2)}),
    "TP": (tensor_parallel, {2: (2,), 4: (4,)}),
    "FSDP2 and TP": (both, {4: (2, 2)}),
}


def layouts():
    """Name and spreading function of each layout of this world."""
    for name, (spread, shapes) in LAYOUTS.items():
        shape = shapes.get(dist.get_world_size())
        if shape is not None:
            yield name, functools.partial(spread, mesh=mesh_of(*shape))


def nothing(parent, name):
    setattr(parent, name, None)


def identity(parent, name):
    setattr(parent, name, nn.Identity())


def deleted(parent, name):
    """As torchtitan: blocks go from the dict, other modules are None."""
    if isinstance(parent, nn.ModuleDict):
        del parent[name]
    else:
        parent._modules[name] = None


def stage_of(model, kind, half, remove):
    """Removes what the other half of a pipeline holds."""
    others = [f"{kind.layers}.{1 - half}", *kind.stages[1 - half]]
    for name in others:
        above, _, own = name.rpartition(".")
        remove(model.get_submodule(above), own)
    return model


def on_meta(build):
    with torch.device("meta"):
        return build()


def in_bfloat16(model):
    """A model on the meta device with other parameters; buffers keep their dtypes."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    return model


def tensors(model):
    """All parameters and buffers by each of their names."""
    named = dict(model.named_parameters(remove_duplicate=False))
    return named | dict(model.named_buffers(remove_duplicate=False))


def assert_equal(model, plain, where, *, gather=True):
    """Compares bits of everything in a model, which may be a part, with those of the plain one.

    Args:
        model: sharded, or not.
        plain: in memory.
        where: for the error.
        gather: whether ranks gather what they hold; else each compares that, which is quicker.
    """
    wanted = tensors(plain)
    for name, tensor in tensors(model).items():
        expected, found = wanted[name].detach(), tensor.detach()
        said = f"{where}: {name}"
        assert found.dtype == expected.dtype, (said, found.dtype, expected.dtype)
        assert found.shape == expected.shape, (said, found.shape, expected.shape)
        pairs = [(found, expected)]
        if is_dtensor(found) and gather:
            pairs = [(found.full_tensor(), expected)]
        elif is_dtensor(found):
            sharded = read_sharded(found)
            pairs = [
                (view_of(sharded.local, piece), cut_out(expected, piece.offset, piece.size))
                for piece in sharded.pieces
            ]
        for got, right in pairs:
            if not torch.equal(_bits(got), _bits(right)):
                raise AssertionError(f"{said}\n{got}\nand not\n{right}")


def _bits(tensor):
    return bits(torch.view_as_real(tensor) if tensor.is_complex() else tensor)
