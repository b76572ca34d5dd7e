"""init_model_: a whole model by rules, by names, all or nothing."""

from __future__ import annotations

import functools
import gc
import re
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import torchinit
from conftest import native_only
from torchinit import (
    Blocks,
    Constant,
    Normal,
    Orthogonal,
    Stack,
    TruncNormal,
    Uniform,
    VarianceScaling,
    by,
    init_model_,
)
from torchinit.streams.named_keys import keys_of_names

RULES = {"**.bias": "zeros", "**.norm*.weight": "ones", "**": Normal(0.02)}


class Block(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width // 2)
        self.v = nn.Linear(width, width // 2)


class Model(nn.Module):
    def __init__(self, layers: int = 3, width: int = 16, tied: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(32, width)
        self.layers = nn.ModuleList(Block(width) for _ in range(layers))
        self.head = nn.Linear(width, 32, bias=False)
        if tied:
            self.head.weight = self.embed.weight


def on_meta(make=Model, *args, **kwargs):
    with torch.device("meta"):
        return make(*args, **kwargs)


def values(model: nn.Module) -> dict[str, torch.Tensor]:
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in named}


def same(left: dict, right: dict) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)


def test_every_parameter_gets_the_first_rule_that_matches():
    model = init_model_(on_meta(), RULES, seed=0, device="cpu")
    assert all((p == 0).all() for n, p in model.named_parameters() if n.endswith("bias"))
    assert all((p == 1).all() for n, p in model.named_parameters() if "norm1.weight" in n)
    weights = torch.cat([p.flatten() for n, p in model.named_parameters() if ".q.weight" in n])
    assert 0.9 < weights.std() / 0.02 < 1.1
    reversed_rules = {"**": Normal(0.02), "**.bias": "zeros"}
    with pytest.raises(torchinit.ArgumentError, match=r"'\*\*\.bias'"):
        init_model_(on_meta(), reversed_rules, seed=0, device="cpu")


@native_only
def test_the_key_is_that_of_the_name():
    model = init_model_(on_meta(), RULES, seed=7, device="cpu")
    weight = torch.empty(16, 16)
    torchinit.functional.fill(
        torchinit.schemes.distributions.normal_draw(0.0, 0.02),
        weight,
        keys_of_names(7)("layers.1.q.weight"),
    )
    assert torch.equal(model.layers[1].q.weight, weight)


def test_keys_of_names_are_the_contract_s():
    # Worked out by hand: hashlib.blake2b(b"a.weight", digest_size=8, key=bytes(8)).
    assert keys_of_names(0)("a.weight") == 4361549062596889287
    assert keys_of_names(-1)("a.weight") == keys_of_names(2**64 - 1)("a.weight")
    assert keys_of_names(1)("a.weight") != keys_of_names(0)("a.weight")


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1])
def test_seeds_that_torch_does_not_take_are_errors(seed):
    with pytest.raises(ValueError, match="seed="):
        init_model_(on_meta(), RULES, seed=seed)


@pytest.mark.parametrize("seed", ["0", 1.0, None, True])
def test_a_seed_is_an_integer(seed):
    with pytest.raises(TypeError, match="seed="):
        init_model_(on_meta(), RULES, seed=seed)


def test_a_model_in_memory_gets_the_values_of_one_from_meta():
    in_memory = Model()
    weight = in_memory.layers[0].q.weight
    assert init_model_(in_memory, RULES, seed=3) is in_memory
    assert in_memory.layers[0].q.weight is weight
    assert same(values(in_memory), values(init_model_(on_meta(), RULES, seed=3, device="cpu")))


def test_ties_requires_grad_and_attributes_are_kept():
    model = on_meta()
    model.layers[0].q.weight.requires_grad_(False)
    model.layers[0].k.weight.partition_dim = 0
    init_model_(model, RULES, seed=0, device="cpu")
    assert model.head.weight is model.embed.weight
    assert not model.layers[0].q.weight.requires_grad
    assert model.layers[0].k.weight.requires_grad
    assert model.layers[0].k.weight.partition_dim == 0


def test_a_tie_is_keyed_by_its_smallest_name():
    tied = init_model_(on_meta(), RULES, seed=0, device="cpu")
    untied = init_model_(on_meta(tied=False), RULES, seed=0, device="cpu")
    assert torch.equal(tied.embed.weight, untied.embed.weight)
    assert not torch.equal(untied.embed.weight, untied.head.weight)
    joined = init_model_(
        on_meta(tied=False), RULES, seed=0, device="cpu", rename={"head.weight": "x"}
    )
    head = nn.Module()
    head.head = on_meta(nn.Linear, 16, 32, bias=False)
    init_model_(head, RULES, seed=0, strict=False, rename={"head.weight": "embed.weight"})
    assert torch.equal(head.head.weight, tied.embed.weight)
    assert not torch.equal(joined.head.weight, untied.head.weight)


def test_names_of_one_parameter_that_match_different_rules_are_an_error():
    rules = {"embed.weight": Normal(1.0), "head.weight": Normal(0.5), **RULES}
    with pytest.raises(torchinit.ArgumentError, match=r"embed\.weight.*head\.weight"):
        init_model_(on_meta(), rules, seed=0)
    agreeing = {"embed.weight": Normal(0.5), "head.weight": Normal(0.5), **RULES}
    init_model_(on_meta(), agreeing, seed=0, device="cpu")


def test_parameters_without_a_rule_are_all_named():
    with pytest.raises(torchinit.ArgumentError, match=r"6 of 25.*layers\.0\.norm1\.weight") as e:
        init_model_(
            on_meta(),
            {"**.bias": "zeros", "embed.weight": "ones", "**.{q,k}.weight": "ones"},
            seed=0,
        )
    assert "layers.2.v.weight" in str(e.value)


def test_a_rule_without_a_parameter_is_an_error_that_names_the_nearest():
    rules = {"**.embedding.weight": Normal(1.0), **RULES}
    with pytest.raises(torchinit.ArgumentError, match=r"embedding.*nearest: embed\.weight"):
        init_model_(on_meta(), rules, seed=0, device="cpu")
    init_model_(on_meta(), rules, seed=0, device="cpu", strict=False)


def test_a_type_of_module_matches_what_such_modules_own():
    rules = {nn.LayerNorm: "ones", nn.Linear: Uniform(-1, 1), nn.Embedding: Normal(1.0)}
    model = init_model_(on_meta(tied=False), rules, seed=0, device="cpu")
    assert (model.layers[0].norm1.bias == 1).all()
    assert model.layers[0].q.bias.abs().max() > 0.3
    with pytest.raises(torchinit.ArgumentError, match="Conv2d"):
        init_model_(model, {nn.Conv2d: "ones", **rules}, seed=0)


def test_a_compiled_pattern_matches_the_whole_name():
    rules = {re.compile(r".*\.[qkv]\.weight"): "ones", re.compile(r"weight"): "zeros", **RULES}
    with pytest.raises(torchinit.ArgumentError, match=r"re\.compile"):
        init_model_(on_meta(), rules, seed=0)
    model = init_model_(on_meta(), rules, seed=0, strict=False, device="cpu")
    assert (model.layers[0].q.weight == 1).all()


def test_a_fan_scheme_on_a_vector_fails_in_the_plan():
    for scheme in (VarianceScaling(), "xavier_normal", "kaiming_uniform", "orthogonal"):
        with pytest.raises(torchinit.ArgumentError, match=r"embed|norm1\.weight|bias"):
            torchinit.plan_model(Model(), {"**": scheme})


# The same values whatever else is in the model.


def test_inserting_reordering_and_halving_change_nothing_else():
    whole = values(init_model_(on_meta(layers=4), RULES, seed=0, device="cpu"))
    longer = values(init_model_(on_meta(layers=5), RULES, seed=0, device="cpu"))
    assert all(torch.equal(whole[name], longer[name]) for name in whole)

    other_order = on_meta(layers=4)
    other_order._modules = OrderedDict(reversed(other_order._modules.items()))
    assert same(
        dict(sorted(values(init_model_(other_order, RULES, seed=0, device="cpu")).items())),
        dict(sorted(whole.items())),
    )

    half = on_meta(layers=4)
    del half.embed, half.head
    for layer in ("0", "2"):
        half.layers._modules.pop(layer)
    stage = values(init_model_(half, RULES, seed=0, device="cpu"))
    assert stage
    assert all(torch.equal(whole[name], stage[name]) for name in stage)


class FusedBlock(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 2 * width)


@pytest.mark.parametrize(
    "scheme", [Normal(0.02), VarianceScaling(2.0), Orthogonal(), Uniform(-1, 1)]
)
@pytest.mark.parametrize("groups", [1, 4])
def test_fused_parts_have_the_values_of_unfused_ones(scheme, groups):
    sizes = {"q": 16, "k": 8, "v": 8}
    apart = init_model_(
        on_meta(Block),
        {"norm1.*": "ones", "*.bias": Normal(1.0), "**": scheme},
        seed=0,
        device="cpu",
    )
    fused = init_model_(
        on_meta(FusedBlock),
        {
            "norm1.*": "ones",
            "*.bias": Blocks(sizes, Normal(1.0), groups=groups),
            "**": Blocks(sizes, scheme, groups=groups),
        },
        seed=0,
        device="cpu",
    )
    for attribute in ("weight", "bias"):
        parts = [getattr(getattr(apart, name), attribute) for name in sizes]
        shares = [part.chunk(groups) for part in parts]
        whole = torch.cat([share[g] for g in range(groups) for share in shares])
        assert torch.equal(getattr(fused.qkv, attribute), whole)


def test_a_part_that_stands_in_the_model_too_is_an_error():
    model = on_meta(FusedBlock)
    with torch.device("meta"):
        model.q = nn.Linear(16, 16)
    rules = {"qkv.*": Blocks({"q": 16, "k": 8, "v": 8}, Normal(1.0)), "**": Normal(1.0)}
    with pytest.raises(torchinit.ArgumentError, match=r"q\.weight"):
        init_model_(model, rules, seed=0, device="cpu")


def test_wrappers_do_not_change_names():
    plain = values(init_model_(Model(), RULES, seed=0))
    compiled = Model()
    init_model_(torch.compile(compiled), RULES, seed=0)
    assert same(values(compiled), plain)
    inner = Model()
    inner.layers[1] = torch.compile(inner.layers[1])
    init_model_(inner, RULES, seed=0)
    assert torch.equal(inner.layers[1]._orig_mod.q.weight, plain["layers.1.q.weight"])
    for wrap in (nn.DataParallel, torch.optim.swa_utils.AveragedModel):
        wrapped = wrap(Model())
        init_model_(wrapped, RULES, seed=0)
        assert same(values(wrapped.module), plain)
    # A module that is called "module" is none of these.
    named_so = nn.Module()
    named_so.module = Model()
    init_model_(named_so, {"module.**": Normal(0.02)}, seed=0)
    assert not torch.equal(named_so.module.layers[0].q.weight, plain["layers.0.q.weight"])


def test_checkpoint_wrappers_do_not_change_names():
    wrapper = pytest.importorskip(
        "torch.distributed.algorithms._checkpoint.checkpoint_wrapper"
    ).checkpoint_wrapper
    plain = values(init_model_(Model(), RULES, seed=0))
    model = Model()
    model.layers[0] = wrapper(model.layers[0])
    init_model_(model, RULES, seed=0)
    assert torch.equal(
        model.layers[0]._checkpoint_wrapped_module.q.weight, plain["layers.0.q.weight"]
    )


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_ddp_does_not_change_names():
    distributed = torch.distributed
    store = distributed.HashStore()
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        model = Model(tied=False)
        wrapped = nn.parallel.DistributedDataParallel(model)
        init_model_(wrapped, RULES, seed=0)
        assert same(values(model), values(init_model_(Model(tied=False), RULES, seed=0)))
    finally:
        distributed.destroy_process_group()


@native_only
def test_bfloat16_is_float32_rounded():
    single = init_model_(on_meta(), RULES, seed=0, device="cpu")
    narrow = init_model_(on_meta(), RULES, seed=0, device="cpu", dtype=torch.bfloat16)
    assert narrow.embed.weight.dtype == torch.bfloat16
    for one, other in zip(single.parameters(), narrow.parameters(), strict=True):
        assert torch.equal(one.bfloat16(), other)


def test_a_parametrized_parameter_is_known_by_its_own_name():
    model = nn.Linear(16, 16)
    parametrizations.spectral_norm(model)
    init_model_(model, {"bias": "zeros", "weight": Normal(1.0)}, seed=0)
    plain = init_model_(nn.Linear(16, 16), {"bias": "zeros", "weight": Normal(1.0)}, seed=0)
    assert torch.equal(model.parametrizations.weight.original, plain.weight)
    by_type = init_model_(model, {nn.Linear: Normal(1.0)}, seed=0)
    assert torch.equal(by_type.parametrizations.weight.original, plain.weight)
    normed = parametrizations.weight_norm(nn.Linear(4, 4))
    names = {row.name for row in torchinit.plan_model(normed, {"**": "ones"})}
    assert names == {
        "bias",
        "parametrizations.weight.original0",
        "parametrizations.weight.original1",
    }


def test_rename_is_a_mapping_or_a_function():
    plain = init_model_(on_meta(), RULES, seed=0, device="cpu")
    inner = on_meta()
    init_model_(
        inner, {"m.**.bias": "zeros", "m.**.norm*.weight": "ones", "m.**": Normal(0.02)},
        seed=0, device="cpu", rename=lambda name: f"m.{name}",
    )  # fmt: skip
    outer = nn.Module()
    outer.m = on_meta()
    init_model_(outer, RULES, seed=0, device="cpu")
    assert torch.equal(outer.m.layers[0].q.weight, inner.layers[0].q.weight)
    assert not torch.equal(outer.m.layers[0].q.weight, plain.layers[0].q.weight)
    with pytest.raises(torchinit.ArgumentError, match="rename gives the name 'x'"):
        init_model_(on_meta(), RULES, seed=0, rename=lambda _: "x")
    pair = nn.ParameterDict({"a": torch.empty(4, 3), "b": torch.empty(4, 5)})
    with pytest.raises(torchinit.ArgumentError, match=r"'b' .*\(4, 3\).*\(4, 5\): only copies"):
        init_model_(pair, {"**": Normal(1.0)}, seed=0, rename={"a": "b"})
    with pytest.raises(torchinit.ArgumentError, match="rename"):
        init_model_(on_meta(), RULES, seed=0, rename=lambda _: None)
    with pytest.raises(TypeError, match="rename"):
        init_model_(on_meta(), RULES, seed=0, rename=3)


# Devices, dtypes, buffers.


def test_meta_parameters_alone_take_device_and_dtype():
    model = Model()
    with torch.device("meta"):
        model.layers.append(Block())
    init_model_(model, RULES, seed=0, device="cpu", dtype=torch.float64, only="layers.3.**")
    assert model.layers[0].q.weight.dtype == torch.float32
    assert model.layers[3].q.weight.dtype == torch.float64
    with pytest.raises(torchinit.ArgumentError, match="meta"):
        init_model_(on_meta(), RULES, seed=0, device="meta")
    with torch.device("meta"), pytest.raises(torchinit.ArgumentError, match="meta"):
        init_model_(Model(), RULES, seed=0)
    with pytest.raises(torchinit.ArgumentError, match="dtype"):
        init_model_(on_meta(), RULES, seed=0, dtype=torch.int32)


@native_only  # torch draws in the order of memory
def test_strides_survive():
    with torch.device("meta"):
        model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    init_model_(model, {"bias": "zeros", "weight": Normal(1.0)}, seed=0, device="cpu")
    assert model.weight.is_contiguous(memory_format=torch.channels_last)
    plain = init_model_(nn.Conv2d(3, 4, 3), {"bias": "zeros", "weight": Normal(1.0)}, seed=0)
    assert torch.equal(model.weight, plain.weight)


IN_MEMORY = {
    "dtype": (lambda: nn.Linear(2, 2), {"dtype": torch.bfloat16}, r"model\.to\(torch\.bfloat16\)"),
    "wider dtype": (lambda: nn.Linear(2, 2).half(), {"dtype": torch.float32}, "torch.float16"),
    "device": (
        lambda: nn.Linear(2, 2),
        {"device": "cuda"},
        r"device='cuda' .* model\.to\('cuda'\)",
    ),
    "index": (
        lambda: nn.Linear(2, 2),
        {"device": torch.device("cuda", 1)},
        "'weight' is in memory",
    ),
    "partly": (
        lambda: nn.Sequential(nn.Linear(2, 2, device="meta"), nn.Linear(2, 2)),
        {"device": "cpu", "dtype": torch.bfloat16},
        r"'1\.weight' is in memory, with torch\.float32",
    ),
    "only": (lambda: nn.Linear(2, 2), {"dtype": torch.float64, "only": "bias"}, "'bias' is in mem"),
    "kept": (lambda: nn.Linear(2, 2), {"rules": {"**": "keep"}, "dtype": torch.float64}, "weight"),
    "own": (lambda: nn.Linear(2, 2), {"rules": None, "dtype": torch.float64}, "weight"),
}


@pytest.mark.parametrize("name", IN_MEMORY)
def test_a_device_or_dtype_that_parameters_in_memory_do_not_have_is_an_error(name):
    make, options, said = IN_MEMORY[name]
    model = make()
    before = values(model)
    with pytest.raises(torchinit.ArgumentError, match=said):
        init_model_(model, **{"rules": {"**": Normal(1.0)}, "seed": 0, **options})
    after = values(model)
    assert all(after[n].is_meta or torch.equal(after[n], one) for n, one in before.items())


def test_a_device_and_dtype_that_parameters_in_memory_have_are_no_error():
    model = nn.Sequential(nn.Linear(2, 2).double(), nn.Linear(2, 2, device="meta"))
    model[0].table = nn.Parameter(torch.ones(2, dtype=torch.int64), requires_grad=False)
    rules = {"**.table": "keep", "**": Normal(1.0)}
    init_model_(model, rules, seed=0, device=torch.device("cpu", 0), dtype=torch.float64)
    assert {one.dtype for one in model.parameters()} == {torch.float64, torch.int64}


def test_buffers_come_from_the_model_s_own_code():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    init_model_(model, {"**": Normal(1.0)}, seed=0, device="cpu", dtype=torch.bfloat16)
    assert (model[1].running_var == 1).all()
    assert model[1].running_var.dtype == torch.float32
    assert model[1].num_batches_tracked == 0
    assert model[1].weight.abs().max() > 0  # what reset_parameters does to parameters is not kept
    assert (model[1].weight != 1).any()


def test_a_buffer_that_nobody_fills_is_an_error():
    with torch.device("meta"):
        model = nn.Linear(4, 4)
        model.register_buffer("mask", torch.ones(4))
    before = dict(model.named_parameters())
    with pytest.raises(torchinit.ArgumentError, match="mask"):
        init_model_(model, {"**": Normal(1.0)}, seed=0, device="cpu")
    assert all(model.get_parameter(name) is p for name, p in before.items())
    assert model.mask.is_meta


def test_buffers_in_memory_stay_when_there_are_rules():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    model[1].running_mean.fill_(3.0)
    init_model_(model, {"**": Normal(1.0)}, seed=0)
    assert (model[1].running_mean == 3).all()


def test_padding_rows_are_zero():
    for model in (on_meta(nn.Embedding, 8, 4, padding_idx=2), nn.Embedding(8, 4, padding_idx=2)):
        init_model_(model, {"**": Normal(1.0)}, seed=0, device="cpu")
        assert (model.weight[2] == 0).all()
        assert (model.weight[[0, 1, 3]] != 0).all()


def test_padding_rows_of_copies_are_zero():
    """Of a tie that is broken on the meta device, and joined by name: the head has no padding."""
    with torch.device("meta"):
        model = nn.ModuleDict({"embed": nn.Embedding(8, 4, padding_idx=2)})
        model["head"] = nn.Linear(4, 8, bias=False)
    rename = {"head.weight": "embed.weight"}
    init_model_(model, {"**": Normal(1.0)}, seed=0, device="cpu", rename=rename)
    assert torch.equal(model["head"].weight, model["embed"].weight)
    assert (model["head"].weight[2] == 0).all()


def test_frozen_parameters_stay_so_whatever_they_take():
    """More than a draw: rows of padding, parts, a callable."""
    with torch.device("meta"):
        model = nn.ModuleDict({"embed": nn.Embedding(8, 4, padding_idx=2)})
        model["fused"], model["called"] = nn.Linear(4, 8, bias=False), nn.Linear(4, 4, bias=False)
    model.requires_grad_(False)
    parts = torchinit.Blocks({"q": 4, "k": 4}, Normal(1.0))
    rules = {"fused.*": parts, "called.*": lambda tensor: tensor.fill_(1), "**": Normal(1.0)}
    init_model_(model, rules, seed=0, device="cpu")
    assert [parameter.requires_grad for parameter in model.parameters()] == [False] * 3


def test_recurrent_layers_use_their_new_weights():
    model = on_meta(nn.LSTM, 4, 4)
    init_model_(model, {"**": Uniform(-1, 1)}, seed=0, device="cpu")
    assert all(a is b for a, b in zip(model._flat_weights, model.parameters(), strict=True))
    model(torch.ones(2, 4))


def test_experts_are_stacked_matrices():
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.empty(5, 64, 32))

    one = init_model_(on_meta(Experts), {"w": Stack(VarianceScaling())}, seed=0, device="cpu")
    assert 0.9 < one.w.std() * 32**0.5 < 1.1
    matrices = init_model_(on_meta(Experts), {"w": Stack("orthogonal")}, seed=0, device="cpu")
    products = matrices.w.mT @ matrices.w
    assert torch.allclose(products, torch.eye(32).expand(5, 32, 32), atol=1e-5)
    alone = nn.Module()
    alone.register_parameter("w", nn.Parameter(torch.empty(64, 32)))
    init_model_(alone, {"**": Orthogonal()}, seed=0, rename=lambda name: f"{name}\x003")
    assert torch.equal(alone.w, matrices.w[3])


def test_views_of_one_memory_on_meta_are_an_error():
    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            whole = torch.empty(4, 4)
            self.a, self.b = nn.Parameter(whole[:2]), nn.Parameter(whole[2:])

    with pytest.raises(torchinit.ArgumentError, match="'a' and 'b'"):
        init_model_(on_meta(Views), {"**": "ones"}, seed=0, device="cpu")


# Callables.


def test_functions_that_are_known_become_schemes():
    trunc = functools.partial(nn.init.trunc_normal_, std=0.02, a=-0.04, b=0.04)
    for one, other in [
        (functools.partial(nn.init.normal_, std=0.02), Normal(0.02)),
        (functools.partial(torchinit.normal_, std=0.02), Normal(0.02)),
        (trunc, TruncNormal(0.02, cut=2.0)),
        (functools.partial(nn.init.constant_, val=2), Constant(2.0)),
        (nn.init.xavier_uniform_, "xavier_uniform"),
        (nn.init.orthogonal_, Orthogonal()),
        (lambda w: nn.init.normal_(w, std=0.02), Normal(0.02)),
        (lambda w: w.data.normal_(0.0, 0.02), Normal(0.02)),
        (lambda w: torchinit.normal_(w, std=0.02), Normal(0.02)),
    ]:
        left = init_model_(nn.Linear(8, 8, bias=False), {"**": one}, seed=0)
        right = init_model_(
            on_meta(nn.Linear, 8, 8, bias=False), {"**": other}, seed=0, device="cpu"
        )
        assert torch.equal(left.weight, right.weight), one


def test_an_unknown_callable_is_keyed_by_the_name():
    def halves(w):
        nn.init.normal_(w[:4])
        w[4:] = torch.rand_like(w[4:]) + torch.bernoulli(torch.full_like(w[4:], 0.5))

    def run(**kwargs):
        torch.manual_seed(kwargs.pop("state", 0))
        model = on_meta(Block, 8)
        state = torch.get_rng_state()
        init_model_(
            model, {"**.bias": "zeros", "norm1.weight": "ones", "**": halves}, seed=5, **kwargs
        )
        assert torch.equal(torch.get_rng_state(), state)
        return values(model)

    first = run(device="cpu")
    assert same(first, run(state=1, device="cpu"))
    assert not torch.equal(first["k.weight"], first["v.weight"])
    assert not torch.equal(first["q.weight"][:4], first["q.weight"][4:])


def test_all_or_nothing():
    def raises(w):
        w.fill_(3.0)
        raise KeyError("half-way")

    for make in (Model, on_meta):
        model = make()
        before, objects = {}, dict(model.named_parameters())
        if make is Model:
            before = values(model)
        with pytest.raises(torchinit.ArgumentError, match=r"layers\.0\.v\.weight.*half-way"):
            init_model_(model, {"**.v.weight": raises, **RULES}, seed=0, device="cpu")
        assert all(model.get_parameter(name) is p for name, p in objects.items())
        if make is Model:
            assert same(values(model), before)


def test_a_callable_that_writes_nothing_or_not_all_is_an_error():
    for function in (lambda _: None, lambda w: torch.randn_like(w), lambda w: w[:2].fill_(1.0)):
        with pytest.raises(torchinit.ArgumentError, match="weight"):
            init_model_(
                on_meta(nn.Linear, 4, 4, bias=False), {"**": function}, seed=0, device="cpu"
            )
    with pytest.raises(torchinit.ArgumentError, match="wrote nothing"):
        init_model_(nn.Linear(4, 4, bias=False), {"**": lambda _: None}, seed=0)
    scaled = nn.Linear(4, 4, bias=False)
    before = scaled.weight.detach().clone()
    init_model_(scaled, {"**": lambda w: w.mul_(2)}, seed=0)
    assert torch.equal(scaled.weight, before * 2)


def test_keep():
    model = nn.Linear(4, 4)
    weight = model.weight.detach().clone()
    init_model_(model, {"weight": "keep", "**": "ones"}, seed=0)
    assert torch.equal(model.weight, weight)
    with pytest.raises(torchinit.ArgumentError, match=r"'weight' is on the meta device"):
        init_model_(on_meta(nn.Linear, 4, 4), {"weight": "keep", "**": "ones"}, seed=0)


def test_by_sees_name_shape_depth_and_module():
    seen = {}

    def scheme(p):
        seen[p.name] = (p.shape, p.depth, type(p.module))
        return Normal(0.02 / (p.depth + 1))

    model = init_model_(
        on_meta(), {"layers.**.q.weight": by(scheme), **RULES}, seed=0, device="cpu"
    )
    assert seen["layers.2.q.weight"] == ((16, 16), 2, nn.Linear)
    plain = init_model_(on_meta(), {"**.bias": "zeros", "**": Normal(0.02)}, seed=0, device="cpu")
    assert torch.allclose(model.layers[1].q.weight * 2, plain.layers[1].q.weight)
    with pytest.raises(torchinit.ArgumentError, match=r"embed\.weight.*no number"):
        init_model_(on_meta(tied=False), {"embed.weight": by(scheme), **RULES}, seed=0)


# Bad input.


@pytest.mark.parametrize(
    ("rules", "error", "match"),
    [
        ({"**": 3}, TypeError, r"rule for '\*\*'"),
        ({"**": "normal"}, ValueError, "Normal"),
        ({"**": "trunc_normal"}, ValueError, "TruncNormal"),
        ({"**": "constant"}, ValueError, "Constant"),
        ({"**": "no such"}, ValueError, "no such"),
        ({"**": Normal}, TypeError, "class"),
        ({"a{b": "ones"}, ValueError, "'a{b'"),
        ({"": "ones"}, ValueError, "''"),
        ({3: "ones"}, TypeError, "key 3"),
        (
            {"**": functools.partial(nn.init.normal_, std=-1.0)},
            ValueError,
            r"'embed\.weight'.*std=-1",
        ),
        ({"**": functools.partial(nn.init.normal_, 0.0)}, TypeError, "tensor"),
        (["**"], TypeError, "mapping"),
    ],
)
def test_bad_rules(rules, error, match):
    model = on_meta()
    with pytest.raises(error, match=match):
        init_model_(model, rules, seed=0, device="cpu")
    assert all(p.is_meta for p in model.parameters())


def test_no_model():
    with pytest.raises(TypeError, match="Module"):
        init_model_(torch.empty(3), RULES, seed=0)


def test_lazy_and_quantised_parameters_are_named():
    lazy = nn.Sequential(nn.LazyLinear(4))
    with pytest.raises(torchinit.ArgumentError, match=r"0\.weight.*lazy"):
        init_model_(lazy, RULES, seed=0, strict=False)

    class Params4bit(nn.Parameter):
        pass

    quantised = nn.Linear(4, 4)
    quantised.weight = Params4bit(torch.zeros(4, 4, dtype=torch.uint8), requires_grad=False)
    bias = quantised.bias.detach().clone()
    with pytest.raises(TypeError, match=r"'weight'.*Params4bit"):
        init_model_(quantised, {"**": Normal(1.0)}, seed=0)
    assert torch.equal(quantised.bias, bias)
    quantised.weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(TypeError, match=r"'weight'.*uint8"):
        init_model_(quantised, {"**": Normal(1.0)}, seed=0)
    init_model_(quantised, {"weight": "keep", "**": Normal(1.0)}, seed=0)


def test_memory_that_cannot_be_written_to_is_found_before_anything_is():
    model = nn.Module()
    model.a = nn.Parameter(torch.zeros(4))
    model.b = nn.Parameter(torch.zeros(1).expand(4))
    with pytest.raises(torchinit.ArgumentError, match="'b'"):
        init_model_(model, {"**": Normal(1.0)}, seed=0)
    assert (model.a == 0).all()


def test_the_collector_of_cycles_is_as_it_was():
    assert gc.isenabled()
    init_model_(on_meta(), RULES, seed=0, device="cpu")
    assert gc.isenabled()
    gc.disable()
    try:
        init_model_(on_meta(), RULES, seed=0, device="cpu")
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_torch_s_generators_are_left_alone():
    model = nn.Sequential(nn.Linear(4, 4), nn.LSTM(4, 4))
    state = torch.get_rng_state()
    init_model_(on_meta(), RULES, seed=0, device="cpu")
    init_model_(model, seed=0)
    assert torch.equal(torch.get_rng_state(), state)


# The plan.


def test_the_plan_says_who_gets_what_and_writes_nothing():
    model = on_meta()
    plan = torchinit.plan_model(model, RULES)
    assert all(p.is_meta for p in model.parameters())
    row = next(row for row in plan if row.name == "layers.0.k.weight")
    assert (row.shape, row.fans, row.rule) == ((8, 16), (16, 8), "**")
    assert row.std == row.law.std == 0.02
    assert repr(row) == (
        "Row('layers.0.k.weight', 8x16, float32, normal(mean=0, std=0.02) by **, fan_in=16, "
        "fan_out=8, std=0.02)"
    )
    text = str(plan)
    assert max(map(len, text.splitlines())) <= 100
    assert "layers.0.k.weight" in text
    assert "normal(mean=0, std=0.02)" in text
    fused = torchinit.plan_model(
        on_meta(FusedBlock),
        {"qkv.*": Blocks({"q": 16, "k": 8, "v": 8}, Normal(1.0), groups=2), "**": "ones"},
    )
    assert {row.name for row in fused} >= {"q.weight", "k.weight", "v.bias"}


def test_plan_of_the_model_s_own_init():
    plan = torchinit.plan_model(nn.Linear(8, 4))
    assert plan[0].law.high == pytest.approx(8**-0.5)
    assert "reset_parameters" in plan[0].rule


def test_a_bar_is_shown_on_a_terminal_alone(monkeypatch, capfd):
    monkeypatch.setattr("torchinit.progress._LEAST", 1)
    monkeypatch.setattr("torchinit.progress._STEP", 1000)
    plain = values(init_model_(on_meta(), RULES, seed=0, device="cpu"))
    assert capfd.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert same(values(init_model_(on_meta(), RULES, seed=0, device="cpu")), plain)
    assert "init_model_" in capfd.readouterr().err


def test_types_that_own_one_parameter_and_disagree_are_an_error():
    rules = {nn.Linear: Normal(1.0), nn.Embedding: Normal(0.5), **RULES}
    with pytest.raises(torchinit.ArgumentError, match=r"embed\.weight.*head\.weight"):
        init_model_(on_meta(), rules, seed=0, strict=False)


def _resize(tensor):
    tensor.resize_(1).fill_(3)


def _convert(tensor):
    tensor.data = torch.ones(tensor.shape, dtype=torch.float64)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("function", [_resize, _convert])
def test_a_callable_that_changes_shape_or_dtype_is_an_error(function, device):
    model = nn.Linear(4, 4, bias=False, device=device)
    with pytest.raises(torchinit.ArgumentError, match=r"turned parameter 'weight' into a tensor"):
        init_model_(model, {"**": function}, seed=0, device="cpu")


def test_a_callable_in_inference_mode():
    model = on_meta(nn.Linear, 4, 4)
    with torch.inference_mode():
        init_model_(model, {"**": lambda t: t.normal_()}, seed=0, device="cpu")
        assert model.weight.std() > 0


@pytest.mark.parametrize("rules", [None, {"**": Normal(1.0)}])
@pytest.mark.parametrize("made_inside", [False, True])
@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_models_in_inference_mode(device, made_inside, rules):
    """Buffers are filled by the model's own code, whose writes are counted there too."""

    def make(device):
        with torch.device(device):
            layers = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Embedding(4, 4, padding_idx=0)
            return nn.Sequential(*layers)

    expected = init_model_(make("meta"), rules, seed=0, device="cpu").state_dict()
    model = make(device)
    with torch.inference_mode():
        model = init_model_(make(device) if made_inside else model, rules, seed=0)
    assert all(map(torch.equal, model.state_dict().values(), expected.values()))


@native_only
def test_inside_a_batch_models_are_filled_at_once():
    expected = init_model_(nn.Embedding(8, 4, padding_idx=0), {"**": Normal(1.0)}, seed=0)
    with torchinit.batch():
        model = init_model_(nn.Embedding(8, 4, padding_idx=0), {"**": Normal(1.0)}, seed=0)
        assert torch.equal(model.weight, expected.weight)
    assert torch.equal(model.weight, expected.weight)


def test_two_parameters_in_one_memory():
    """Equal views of it are one parameter; others would lose the values of one."""
    model = nn.ModuleDict({"a": nn.Linear(8, 8), "b": nn.Linear(8, 8)})
    model["b"].weight.data = model["a"].weight.data
    before = values(model)
    with pytest.raises(torchinit.ArgumentError, match="one parameter has 2 names that match"):
        init_model_(model, {"a.*": "ones", "b.*": "zeros"}, seed=0)
    assert same(before, values(model))
    init_model_(model, {"**.bias": "zeros", "**": torchinit.Normal(1)}, seed=0)
    other = init_model_(nn.ModuleDict({"a": nn.Linear(8, 8)}), {"**": torchinit.Normal(1)}, seed=0)
    assert torch.equal(model["b"].weight, other["a"].weight)
    model["b"].weight.data = model["a"].weight.data.T
    with pytest.raises(torchinit.ArgumentError, match=r"'a\.weight' and 'b\.weight' share memory"):
        init_model_(model, {"**": "ones"}, seed=0)
    halves = torch.zeros(2, 8, 8)  # one after the other in one storage, but apart
    model["a"].weight.data, model["b"].weight.data = halves[0], halves[1]
    init_model_(model, {"a.*": "ones", "b.*": "zeros"}, seed=0)
    assert halves[0].min() == 1
    assert halves[1].max() == 0


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.float32, torch.bfloat16])
def test_parameters_that_are_written_in_part_are_errors(dtype):
    model = nn.Module()
    model.weight = nn.Parameter(torch.zeros(4, dtype=dtype, device="meta"), requires_grad=False)

    def first(tensor):
        tensor[:1] = 3

    with pytest.raises(torchinit.ArgumentError, match="weight"):
        init_model_(model, {"**": first}, seed=0, device="cpu")


def test_adapters_do_not_change_names():
    peft = pytest.importorskip("peft")
    plain = values(init_model_(Model(tied=False), RULES, seed=0))
    config = peft.LoraConfig(r=2, target_modules=["q"], modules_to_save=["k"])
    model = peft.get_peft_model(Model(tied=False), config)
    init_model_(model, RULES, seed=0)
    block = model.base_model.model.layers[0]
    assert torch.equal(block.q.base_layer.weight, plain["layers.0.q.weight"])
    assert torch.equal(block.k.original_module.weight, plain["layers.0.k.weight"])
