"""``init_model_(model, seed=...)`` without rules: what the constructor gives, known or refused."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable

import pytest
import torch
from compared import assert_alike, assert_same, made, on_meta, refusal, values
from torch import nn
from torch.nn.utils import parametrizations

import torchinit
from torchinit import ArgumentError, build_model, init_model_, plan_model

# Modules of torch.nn.

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "Linear": lambda: nn.Linear(64, 48),
    "Linear without bias": lambda: nn.Linear(64, 48, bias=False),
    "Bilinear": lambda: nn.Bilinear(16, 12, 32),
    "Conv1d": lambda: nn.Conv1d(16, 32, 3),
    "Conv2d of groups": lambda: nn.Conv2d(16, 32, 3, groups=4),
    "Conv3d": lambda: nn.Conv3d(8, 16, 3),
    "ConvTranspose2d": lambda: nn.ConvTranspose2d(16, 32, 3),
    "Embedding": lambda: nn.Embedding(64, 32),
    "Embedding with padding": lambda: nn.Embedding(64, 32, padding_idx=3),
    "EmbeddingBag": lambda: nn.EmbeddingBag(64, 32),
    "LayerNorm": lambda: nn.LayerNorm(32),
    "RMSNorm": lambda: nn.RMSNorm(32),
    "GroupNorm": lambda: nn.GroupNorm(4, 32),
    "BatchNorm2d": lambda: nn.BatchNorm2d(32),
    "InstanceNorm2d": lambda: nn.InstanceNorm2d(32, affine=True, track_running_stats=True),
    "PReLU": lambda: nn.PReLU(8),
    "MultiheadAttention": lambda: nn.MultiheadAttention(32, 4),
    "MultiheadAttention with bias_kv": lambda: nn.MultiheadAttention(32, 4, add_bias_kv=True),
    "MultiheadAttention of kdim": lambda: nn.MultiheadAttention(32, 4, kdim=16, vdim=24),
    "LSTM": lambda: nn.LSTM(32, 48, num_layers=2, bidirectional=True),
    "LSTM with proj_size": lambda: nn.LSTM(32, 48, proj_size=16),
    "GRU": lambda: nn.GRU(32, 48),
    "RNN": lambda: nn.RNN(32, 48),
    "LSTMCell": lambda: nn.LSTMCell(32, 48),
    "TransformerEncoderLayer": lambda: nn.TransformerEncoderLayer(32, 4, 64),
    "TransformerDecoderLayer": lambda: nn.TransformerDecoderLayer(32, 4, 64),
    "AdaptiveLogSoftmaxWithLoss": lambda: nn.AdaptiveLogSoftmaxWithLoss(64, 100, [20, 50]),
    "containers": lambda: nn.Sequential(nn.ModuleList([nn.Linear(24, 24)]), nn.ReLU()),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_of_torch(name: str) -> None:
    assert_alike(LAYERS[name])
    real = LAYERS[name]()
    parameters = dict(real.named_parameters())
    assert_same(init_model_(real, seed=0), made(LAYERS[name]))
    assert all(parameter is parameters[name] for name, parameter in real.named_parameters())


@pytest.mark.parametrize("name", LAYERS)
def test_plan_says_what_constructors_do(name: str) -> None:
    torch.manual_seed(0)
    plain = dict(LAYERS[name]().named_parameters())
    for row in plan_model(on_meta(LAYERS[name])):
        assert row.rule == "reset_parameters()"
        assert row.law is not None, row
        found = plain[row.parameter].detach()
        assert float(found.min()) >= row.law.low - 1e-6, row
        assert float(found.max()) <= row.law.high + 1e-6, row
        if row.law.std == 0:
            assert row.shares > 1 or float(found.std(correction=0)) == 0, row
        elif found.numel() > 30 and row.shape == tuple(found.shape):
            error = 6 / math.sqrt(found.numel())
            assert float(found.std()) == pytest.approx(row.law.std, rel=error), row


def test_padding_row_stays_zero() -> None:
    model = made(lambda: nn.Embedding(10, 4, padding_idx=3))
    assert torch.count_nonzero(model.weight[3]) == 0
    assert torch.count_nonzero(model.weight) == 36
    whole = made(lambda: nn.Embedding(10, 4))
    others = [row for row in range(10) if row != 3]
    assert torch.equal(model.weight[others], whole.weight[others])


def _forward_hook() -> nn.Module:
    module = nn.Linear(4, 4)
    module.register_forward_hook(lambda *_: None)
    return module


def _pre_hook() -> nn.Module:
    module = nn.Linear(4, 4)
    module.register_forward_pre_hook(lambda *_: None)
    return module


def _zeroed() -> nn.Module:
    module = nn.Linear(4, 4)
    nn.init.zeros_(module.weight)
    return module


def _loaded() -> nn.Module:
    module = nn.Linear(4, 4)
    module.load_state_dict(nn.Linear(4, 4).state_dict())
    return module


def _tied() -> nn.Module:
    model = nn.ModuleDict({"embed": nn.Embedding(100, 64), "head": nn.Linear(64, 100)})
    model["head"].weight = model["embed"].weight
    return model


def _of_its_own() -> nn.Module:
    module = nn.Linear(4, 4)
    module.scale = nn.Parameter(torch.ones(4))
    return module


def _copies() -> nn.Module:
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, copy.deepcopy(layer))


def _bare() -> nn.Module:
    module = nn.Module()
    module.layer = nn.Linear(4, 4)
    return module


class Sub(nn.Linear):
    """Another class, though it does nothing else."""


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "a class of others": (lambda: Sub(4, 4), r"weight, bias \(only the constructor of Sub knows "),
    "inside containers": (lambda: nn.Sequential(nn.ReLU(), Sub(4, 4)), "constructor of Sub knows"),
    "a module that somebody put together": (_bare, "only the constructor of Module knows"),
    "a forward hook": (_forward_hook, "the model has a hook"),
    "a hook below": (lambda: nn.Sequential(_pre_hook()), "0 has a hook"),
    "copies of one layer": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 8), 2),
        "layers of TransformerEncoder are copies of one",
    ),
    "a copy of one layer": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 8), 1),
        "layers of TransformerEncoder are copies of one",
    ),
    "copies below": (lambda: nn.Transformer(8, 2, 1, 1, 8), "are copies of one"),
    "copies": (_copies, "is a copy of|other code has written to"),
    "spectral_norm": (lambda: parametrizations.spectral_norm(nn.Linear(4, 4)), "parametri|Parame"),
    "weight_norm": (lambda: parametrizations.weight_norm(nn.Linear(4, 4)), "parametri|Parame"),
    "weight_norm of old": (lambda: nn.utils.weight_norm(nn.Linear(4, 4)), "does not fill it"),
    "spectral_norm of old": (lambda: nn.utils.spectral_norm(nn.Linear(4, 4)), "does not fill it"),
    "written to since": (_zeroed, r"1 of 2 .*: weight \(other code has written to it\)"),
    "loaded": (_loaded, "2 of 2 .*other code has written to it"),
    "a tie of two layers": (_tied, "is tied"),
    "a parameter of its own": (_of_its_own, r"1 of 3 .*: scale \(reset_parameters\(\) does not"),
    "ParameterList": (lambda: nn.ParameterList([torch.ones(3)]), "does not fill it"),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_what_only_a_constructor_knows_is_refused(name: str) -> None:
    build, why = REFUSED[name]
    for model in (on_meta(build), build()):
        said = refusal(model)
        assert re.search(why, said), said
        kind = type(model).__name__.removeprefix("Parametrized")
        assert f"torchinit.build_model(lambda: {kind}(...), seed=0)" in said


def test_the_line_to_write_names_the_seed() -> None:
    with pytest.raises(ArgumentError, match=r"build_model\(lambda: Sub\(\.\.\.\), seed=-7\)"):
        init_model_(Sub(4, 4), seed=-7)
    with pytest.raises(ArgumentError, match=r"build_model\(lambda: Sub\(\.\.\.\), seed=0\)"):
        plan_model(torch.compile(Sub(4, 4)))


def test_jit_scripted_modules_are_refused() -> None:
    assert "only the constructor of" in refusal(torch.jit.script(nn.Linear(4, 4)))


def test_lazy_modules_are_named() -> None:
    import torch.distributed.fsdp  # noqa: F401  # its flat pieces are looked for then

    with pytest.raises(ArgumentError, match="'weight' is lazy"):
        init_model_(nn.LazyLinear(4), seed=0)


def test_trained_layers_of_torch_are_refused() -> None:
    """Their counts tell of steps, and steps are not told from another initialisation."""
    model = nn.Linear(4, 4)
    model(torch.ones(1, 4)).sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert "other code has written to it" in refusal(model)


def test_after_it_a_model_may_be_initialised_again() -> None:
    model = init_model_(nn.Linear(4, 4), seed=0)
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert_same(init_model_(model, seed=1), made(lambda: nn.Linear(4, 4), seed=1))
    assert_same(init_model_(model, seed=0), made(lambda: nn.Linear(4, 4), seed=0))


def test_buffers_that_training_changed_begin_anew() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    buffers = dict(model.named_buffers())
    model(torch.randn(5, 3))
    assert_same(init_model_(model, seed=0), made(lambda: nn.Sequential(*model)))
    assert all(value is buffers[name] for name, value in model.named_buffers())


def test_buffers_that_nobody_fills() -> None:
    """In memory they stay; on the meta device they are an error, with rules too."""

    def build() -> nn.Module:
        model = nn.Linear(4, 4)
        model.register_buffer("table", torch.arange(4.0))
        return model

    assert init_model_(build(), seed=0).table.tolist() == [0, 1, 2, 3]
    for options in ({}, {"rules": {"**": torchinit.Normal(0.02)}}):
        said = refusal(on_meta(build), **options)
        assert "1 buffer on the meta device has no known values: no init method fills tab" in said
        assert "torchinit.build_model" in said


def test_buffers_that_are_filled_in_part() -> None:
    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.zeros(4))

        def reset_parameters(self) -> None:
            self.table[:1] = 5

    for options in ({}, {"rules": {}}):
        assert "1 buffer on the meta device" in refusal(on_meta(Part), **options)


def test_a_dtype_that_draws_are_not_for() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[0].weight = nn.Parameter(torch.ones(3, 3, dtype=torch.int8), requires_grad=False)
    assert "0.weight" in refusal(model)


# What is remembered.


class Small(nn.Module):
    """A constructor that does something besides."""

    def __init__(self, wide: int = 8) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(12, wide), nn.Linear(wide, 12, bias=False)
        self.gate, self.norm = nn.Linear(wide, wide), nn.BatchNorm1d(wide)
        self.head.weight = self.embed.weight
        nn.init.zeros_(self.gate.weight)
        self.scale = nn.Parameter(torch.randn(wide) * wide**-0.5)


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_what_build_model_remembers(device: str) -> None:
    model = build_model(Small, seed=0, device=device)
    init_model_(model, seed=5, device="cpu")
    assert_same(model, build_model(Small, seed=5))
    assert model.head.weight is model.embed.weight
    assert_same(init_model_(copy.deepcopy(model), seed=6), build_model(Small, seed=6))


def test_new_parts_of_a_remembered_model_are_refused() -> None:
    model = build_model(Small, seed=0)
    model.gate = Sub(8, 8)
    said = refusal(model)
    assert re.search(r"2 of 6 .*: gate.weight, gate.bias \(they were not in the model when", said)
    model = build_model(Small, seed=0)
    model.scale = nn.Parameter(torch.ones(9))
    assert "1 of 6 parameters is not known: scale" in refusal(model)


def test_a_plain_model_is_refused_in_memory_and_on_meta() -> None:
    for model in (Small(), on_meta(Small), on_meta(Small).to_empty(device="cpu")):
        assert "torchinit.build_model(lambda: Small(...), seed=0)" in refusal(model)


# Where the model is, and what it is wrapped in.


def _mixed() -> nn.Module:
    return nn.Sequential(
        nn.Embedding(16, 8, padding_idx=0), nn.LSTM(8, 8), nn.BatchNorm1d(8),
        nn.MultiheadAttention(8, 2),
    )  # fmt: skip


def test_a_real_model_gets_the_values_of_one_on_meta() -> None:
    model = _mixed()
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    model[2].running_mean.fill_(3)
    init_model_(model, seed=7)
    assert all(value is parameters[name] for name, value in model.named_parameters())
    assert all(value is buffers[name] for name, value in model.named_buffers())
    assert_same(model, made(_mixed, seed=7))


def test_attributes_of_recurrent_layers_follow() -> None:
    model = made(lambda: nn.LSTM(8, 8))
    assert all(a is b for a, b in zip(model._flat_weights, model.parameters(), strict=True))
    model(torch.randn(3, 2, 8))


def test_the_meta_device_as_the_default() -> None:
    with torch.device("meta"):
        model = init_model_(_mixed(), seed=7, device="cpu")
    assert_same(model, made(_mixed, seed=7))


def test_generators_are_left_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    made(_mixed)
    assert torch.equal(torch.rand(4), expected)


def test_wrappers_change_nothing() -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 4)))

    expected = values(made(build))
    below = nn.Sequential(torch.compile(nn.Linear(8, 8)), nn.Sequential(nn.Linear(8, 4)))
    compiled = torch.compile(on_meta(build))
    for model in (compiled, on_meta(lambda: nn.DataParallel(build())), below):
        init_model_(model, seed=0, device="cpu")
        for name, value in values(model).items():
            plain = name.replace("_orig_mod.", "").removeprefix("module.")
            assert torch.equal(value, expected[plain]), name


def test_other_layers_change_nothing() -> None:
    one = made(lambda: nn.ModuleDict({"a": nn.Linear(8, 8), "b": nn.GRU(4, 4)}))
    two = made(lambda: nn.ModuleDict({"b": nn.GRU(4, 4), "x": nn.PReLU(), "a": nn.Linear(8, 8)}))
    other = values(two)
    assert all(torch.equal(value, other[name]) for name, value in values(one).items())


def test_deep_copies_are_independent() -> None:
    model = on_meta(_mixed)
    twin = copy.deepcopy(model)
    init_model_(model, seed=0, device="cpu")
    assert all(value.is_meta for value in twin.parameters())
