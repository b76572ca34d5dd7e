"""init_model_ by rules and by what was built, plan_model, patch_nn_init: on parallel models.

Each rank has the plain model's values. Models that build_model is right for are in the module
test_own_sharded.
"""

from __future__ import annotations

import copy
import functools
import warnings

import pytest
import torch
import torch.distributed as dist
from layouts import mesh_of
from torch import nn
from worlds import in_worlds, of_eight

import torchinit
from torchinit import Blocks, Normal, Orthogonal, Stack, TruncNormal, build_model, init_model_
from torchinit.native import load
from torchinit.placement.distributed import is_dtensor, local_of

NATIVE = load.module is not None
WIDTH = 24


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, WIDTH + 16, bias=False)
        self.up = nn.Linear(WIDTH, 40)
        self.down = nn.Linear(40, WIDTH)
        self.experts = nn.Parameter(torch.empty(5, 6, 7))
        self.register_buffer("scale", torch.ones(3))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As models write it: views, a whole in a lower law, a computed value, a stack."""
        with torch.no_grad():
            nn.init.normal_(self.qkv.weight[:WIDTH], std=0.5)
            nn.init.uniform_(self.qkv.weight[WIDTH:], -1, 1)
            for expert in self.experts:
                nn.init.xavier_uniform_(expert)
        self.scale.fill_(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(self.up(self.norm(x)).relu())


class Model(nn.Module):
    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(33, WIDTH, padding_idx=2)
        self.layers = nn.ModuleList(Block() for _ in range(2))
        self.conv = nn.Conv1d(6, 4, 3)
        self.head = nn.Linear(WIDTH, 33, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


RULES = {
    "**.norm.weight": "ones",
    "**.bias": "zeros",
    "**.qkv.weight": Blocks({"q": WIDTH, "k": 8, "v": 8}, "xavier_uniform", groups=4),
    "**.experts": Stack("kaiming_normal"),
    "conv.weight": "dirac",
    "**.up.weight": Orthogonal(0.5),
    "**": TruncNormal(0.02),
}
PLANS = {"rules": RULES, "own": None}


def on_meta(*args):
    with torch.device("meta"):
        return Model(*args)


def prepared(rules):
    """A model on the meta device; without rules, one that remembers what it was built as."""
    return build_model(Model, seed=0, device="meta") if rules is None else on_meta()


def made(rules, seed, dtype=None):
    """The plain model."""
    if rules is None:
        return build_model(Model, seed=seed, dtype=dtype)
    return init_model_(on_meta(), rules, seed=seed, device="cpu", dtype=dtype)


def fully_sharded(model, mesh, **options):
    from torch.distributed.fsdp import fully_shard

    for layer in model.layers:
        fully_shard(layer, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


def tensor_parallel(model, mesh):
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        SequenceParallel,
        parallelize_module,
    )

    plan = {
        "embed": RowwiseParallel(input_layouts=Replicate()),
        "head": ColwiseParallel(output_layouts=Replicate()),
    }
    for number in range(2):
        plan[f"layers.{number}.norm"] = SequenceParallel()
        plan[f"layers.{number}.qkv"] = ColwiseParallel()
        plan[f"layers.{number}.up"] = ColwiseParallel()
        plan[f"layers.{number}.down"] = RowwiseParallel()
    return parallelize_module(model, mesh, plan)


def by_columns(parameter):
    """Along dimension 1 where torch can: evenly."""
    from torch.distributed.tensor import Shard

    even = parameter.dim() > 1 and parameter.shape[1] % dist.get_world_size() == 0
    return Shard(1) if even else Shard(0)


def offloaded(model, mesh):
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy

    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    return fully_sharded(
        model, mesh, offload_policy=CPUOffloadPolicy(pin_memory=False), mp_policy=policy
    )


def both(model, mesh):
    return fully_sharded(tensor_parallel(model, mesh["b"]), mesh["a"])


def hybrid_both(model, mesh):
    return fully_sharded(tensor_parallel(model, mesh["c"]), mesh["a", "b"])


WAYS = {
    "FSDP2": (fully_sharded, 1),
    "FSDP2 by columns": (functools.partial(fully_sharded, shard_placement_fn=by_columns), 1),
    "offloaded, mixed": (offloaded, 1),
    "TP": (tensor_parallel, 1),
    "HSDP": (fully_sharded, 2),
    "FSDP2 and TP": (both, 2),
    "HSDP and TP": (hybrid_both, 3),
}
MESHES = {1: [(1,)], 2: [(2,)], 3: [(3,)], 4: [(4,), (2, 2)], 8: [(8,), (2, 4), (2, 2, 2)]}


def cases():
    for shape in MESHES[dist.get_world_size()]:
        for name, (way, dims) in WAYS.items():
            if dims == len(shape):
                yield name, way, mesh_of(*shape)


def assert_equal(model, plain, what):
    named = dict(plain.named_parameters(remove_duplicate=False))
    for name, parameter in model.named_parameters(remove_duplicate=False):
        whole = parameter.detach()
        if is_dtensor(whole):
            whole = whole.full_tensor()
        assert torch.equal(whole, named[name].detach()), (what, name)
    for (name, buffer), (_, other) in zip(
        model.named_buffers(), plain.named_buffers(), strict=True
    ):
        assert torch.equal(buffer, other), (what, name)


@in_worlds(1, 2, 3, 4, 8, each=PLANS, long=of_eight)
def test_from_meta(rules):
    for dtype in (None, torch.bfloat16):
        plain = made(rules, 5, dtype)
        for name, way, mesh in cases():
            if dtype is not None and name == "FSDP2 and TP":
                continue
            model = way(prepared(rules), mesh)
            generators = torch.get_rng_state()
            assert init_model_(model, rules, seed=5, dtype=dtype) is model
            assert torch.equal(torch.get_rng_state(), generators)
            assert_equal(model, plain, name)
            if dtype is None and "TP" not in name:
                model(torch.arange(6).view(1, 6)).sum().backward()


@in_worlds(2, 4, each=PLANS)
def test_in_memory_and_after_a_forward(rules):
    """What fully_shard has gathered is put back first, else the values would be lost."""
    plain = made(rules, 6)
    for name, way, mesh in cases():
        model = way(prepared(rules), mesh)
        model.to_empty(device="cpu")
        with torch.no_grad():
            for parameter in model.parameters():
                local_of(parameter).fill_(0.5) if is_dtensor(parameter) else parameter.fill_(0.5)
            for layer in model.layers:
                layer.scale.fill_(3)
        if "TP" not in name:
            model(torch.arange(6).view(1, 6)).sum().backward()
        before = {id(tensor): tensor._version for tensor in model.parameters()}
        parameters = list(model.parameters())
        init_model_(model, rules, seed=6)
        assert_equal(model, plain, name)
        if "TP" in name:
            assert all(p is q for p, q in zip(parameters, model.parameters(), strict=True))
            assert all(p._version > before[id(p)] for p in model.parameters())
        else:
            model(torch.arange(6).view(1, 6)).sum().backward()
            for module in model.modules():
                if hasattr(module, "reshard"):
                    module.reshard()
            assert_equal(model, plain, f"{name} after a forward")


def declare_tie(model):
    model.config = type("Config", (), {"tie_word_embeddings": True})()
    model.get_input_embeddings = lambda: model.embed
    model.get_output_embeddings = lambda: model.head


@in_worlds(2, 4)
def test_broken_ties_are_told_and_joined():
    plain = init_model_(on_meta(True), RULES, seed=7, device="cpu")
    rename = {"head.weight": "embed.weight"}
    for name, way, mesh in cases():
        if "TP" not in name:
            continue
        model = way(on_meta(True), mesh)
        assert model.head.weight is not model.embed.weight, "torch keeps this tie now"
        init_model_(model, RULES, seed=7, rename=rename)
        assert_equal(model, plain, name)
        assert (plain.embed.weight[2] == 0).all()
        model = way(on_meta(True), mesh)
        declare_tie(model)
        with pytest.warns(UserWarning, match="'embed.weight' and 'head.weight'.*rename=.*'head.w"):
            init_model_(model, RULES, seed=7)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            init_model_(model, RULES, seed=7, rename=rename)
        with pytest.raises(torchinit.ArgumentError, match="two parameters that get different"):
            init_model_(model, {nn.Linear: "ones", "**": "zeros"}, seed=7, rename=rename)


@in_worlds(2, 4)
def test_broken_ties_of_a_built_model_stay_equal():
    build = functools.partial(Model, True)
    plain = build_model(build, seed=7)
    for name, way, mesh in cases():
        model = way(build_model(build, seed=7, device="meta"), mesh)
        declare_tie(model)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            init_model_(model, seed=7)
        assert_equal(model, plain, name)


@in_worlds(2, 3)
def test_callables_are_given_the_whole():
    def ramp(tensor):
        assert not is_dtensor(tensor)
        with torch.no_grad():
            tensor.copy_(torch.arange(tensor.numel()).view(tensor.shape)).mul_(0.5)
            tensor += torch.rand(tensor.shape)

    rules = {"embed.weight": ramp, "**.experts": Stack(ramp), "**": Normal(1.0)}
    plain = init_model_(on_meta(), rules, seed=8, device="cpu")
    for name, way, mesh in cases():
        assert_equal(init_model_(way(on_meta(), mesh), rules, seed=8), plain, name)


@in_worlds(2, 4)
def test_plans_name_global_shapes():
    plain = str(torchinit.plan_model(on_meta(), RULES))
    for name, way, mesh in cases():
        assert str(torchinit.plan_model(way(on_meta(), mesh), RULES)) == plain, name


@in_worlds(2, 4, where=lambda size, _: NATIVE)  # noqa: ARG005
def test_patch_by_names():
    """Code that initialises a sharded model by torch.nn.init, unchanged."""

    def init_weights(model):
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv1d):
                nn.init.trunc_normal_(module.weight, std=0.02, a=-0.04, b=0.04)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                module.weight.data.normal_(0, 0.5)
            elif isinstance(module, nn.LayerNorm):
                with torch.no_grad():
                    module.weight.fill_(1)
                nn.init.constant_(module.bias, 0.1)
            elif isinstance(module, Block):
                nn.init.uniform_(module.experts, generator=torch.Generator())
                with torch.no_grad():
                    nn.init.normal_(module.experts[:, :, :3])

    plain = on_meta().to_empty(device="cpu")
    with torchinit.patch_nn_init(seed=9, names_from=plain, generators=True):
        init_weights(plain)
    for name, way, mesh in cases():
        if "columns" in name:
            continue  # a slice of a dimension that is sharded is a copy
        model = way(on_meta(), mesh).to_empty(device="cpu")
        with torchinit.patch_nn_init(seed=9, names_from=model, generators=True):
            init_weights(model)
        for (key, parameter), other in zip(
            model.named_parameters(), plain.parameters(), strict=True
        ):
            whole = parameter.detach()
            whole = whole.full_tensor() if is_dtensor(whole) else whole
            assert torch.equal(whole, other.detach()), (name, key)


@in_worlds(2)
def test_bad_models_stay_as_they_are():
    from torch.distributed.tensor import DTensor, Partial, Shard

    mesh = mesh_of(2)
    for local, placements, shape, said in (
        (torch.zeros(4, 4), [Partial()], (4, 4), "partial"),
        (torch.zeros(3, 4), [Shard(0)], (4, 4), "should be"),
    ):
        model = nn.Linear(4, 4)
        torch.manual_seed(0)
        model.reset_parameters()
        bias = model.bias.detach().clone()
        bad = DTensor.from_local(
            local, mesh, placements, run_check=False, shape=torch.Size(shape), stride=(4, 1)
        )
        model.weight = nn.Parameter(bad)
        with pytest.raises(torchinit.ArgumentError, match=f"parameter 'weight'.*{said}"):
            init_model_(model, {"**": Normal(1)}, seed=0)
        assert torch.equal(model.bias, bias)
        assert (model.weight.detach().to_local() == 0).all()


@in_worlds(2)
def test_flat_pieces_of_fsdp1_are_refused():
    from torch.distributed.fsdp import FullyShardedDataParallel

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    wrapped = FullyShardedDataParallel(
        copy.deepcopy(model), device_id=torch.device("cpu"), use_orig_params=True
    )
    before = [parameter.detach().clone() for parameter in wrapped.parameters()]
    for parameter in wrapped.parameters():
        with pytest.raises(torchinit.ArgumentError, match="init_shard_"):
            torchinit.normal_(parameter)
    with pytest.raises(torchinit.ArgumentError, match="param_init_fn"):
        init_model_(wrapped, {"**": Normal(1)}, seed=0)
    after = [parameter.detach() for parameter in wrapped.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
