"""What a model remembers of its constructor: on the meta device, moved, copied, pickled, used."""

from __future__ import annotations

import copy
import io
import os
import pickle

import pytest
import torch
from build_cases import CASES, DiT, ForgetGate, Made, NanoGPT, built, item, scaled
from compared import assert_same, refusal
from torch import nn
from torch.nn.parameter import Parameter

import torchinit
import warm
from torchinit import ArgumentError, build_model, init_model_, plan_model


class Outer(nn.Module):
    """A model with a part that may come from elsewhere."""

    def __init__(self, part) -> None:
        super().__init__()
        self.encoder, self.decoder = part(), nn.Linear(8, 8)


# Names that a model has when it is filled.


@pytest.mark.parametrize("part", [NanoGPT, scaled, ForgetGate, DiT, CASES["twin"], CASES["svd"]])
def test_parts_that_are_moved_into_another_model(part) -> None:
    """Its names there count."""
    model = build_model(lambda: Outer(nn.Identity), seed=0, device="meta")
    model.encoder = build_model(part, seed=0, device="meta")
    whole = build_model(lambda: Outer(part), seed=0)
    assert_same(init_model_(model, seed=0, device="cpu"), whole)
    in_memory = build_model(lambda: Outer(nn.Identity), seed=3)
    in_memory.encoder = build_model(part, seed=4)
    assert_same(init_model_(in_memory, seed=0), whole)


def test_parts_that_are_taken_out() -> None:
    model = build_model(lambda: Outer(NanoGPT), seed=0, device="meta").encoder
    assert_same(init_model_(model, seed=0, device="cpu"), built("nanoGPT"))


def test_parts_that_change_places() -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))

    model = build_model(build, seed=0, device="meta")
    model[0], model[1] = model[1], model[0]
    assert_same(init_model_(model, seed=0, device="cpu"), build_model(build, seed=0))


def test_copies_of_one_part_have_their_own_names() -> None:
    one = build_model(CASES["twin"], seed=0, device="meta")
    model = init_model_(nn.ModuleList([one, copy.deepcopy(one)]), seed=0, device="cpu")
    for part in model:
        assert_same(part.a_twin, part.b)
    assert not torch.equal(model[0].b[0].weight, model[1].b[0].weight)


def test_what_follows_from_a_part_that_is_gone() -> None:
    model = build_model(CASES["twin"], seed=0, device="meta")
    both = init_model_(nn.ModuleDict({"x": model.a_twin, "y": model.b}), seed=0, device="cpu")
    assert_same(both["x"], both["y"])
    model = build_model(CASES["twin"], seed=0, device="meta")
    alone = nn.ModuleDict({"only": model.a_twin})
    said = refusal(alone)
    assert "'only.0.weight' depends on a draw into 'b.0.weight', which is not in this" in said


def test_ties_that_are_broken_stay_equal() -> None:
    model = build_model(NanoGPT, seed=0, device="meta").to_empty(device="cpu")
    model.wte.weight = Parameter(torch.empty(96, 32))
    init_model_(model, seed=0)
    expected = built("nanoGPT").wte.weight
    assert torch.equal(model.wte.weight, expected)
    assert torch.equal(model.lm_head.weight, expected)


@pytest.mark.parametrize("name", ["assertion", "rejection", "text", "item", "thread"])
def test_frozen_values_belong_to_their_names(name: str) -> None:
    model = built(name, device="meta")
    assert_same(init_model_(model, seed=0, device="cpu"), built(name))
    moved = nn.ModuleDict({"inside": built(name, device="meta")})
    with pytest.raises(ArgumentError, match=r"may depend on values that the constructor read"):
        init_model_(moved, seed=0, device="cpu")


def test_parameters_that_are_equal_views() -> None:
    """Of one memory: they are one, as a tie is."""
    model = built("saved")
    assert model.copied is not model.first.weight
    init_model_(model, seed=0)
    assert_same(model, built("saved"))
    state = NanoGPT().state_dict()
    model = build_model(NanoGPT, seed=0, device="meta")
    model.load_state_dict(state, assign=True)
    assert model.wte.weight is not model.lm_head.weight
    init_model_(model, seed=0)
    assert_same(model, built("nanoGPT"))
    assert model.wte.weight.data_ptr() == model.lm_head.weight.data_ptr()


# What is kept, and what is given up.


class Constants(nn.Module):
    """Values that no draw decides: few, many, and one number."""

    def __init__(self) -> None:
        super().__init__()
        self.few = Parameter(torch.linspace(0, 1, 100))
        self.many = Parameter(torch.linspace(0, 1, 5000))
        self.one = Parameter(torch.full((5000,), 0.5))
        self.drawn = Parameter(torch.randn(50))
        self.register_buffer("table", torch.arange(5000))


def test_large_constants_are_given_up_when_they_have_been_used() -> None:
    model = build_model(Constants, seed=0, device="meta")
    twin = copy.deepcopy(model)
    init_model_(model, seed=0, device="cpu")
    assert_same(model, build_model(Constants, seed=0))
    assert_same(init_model_(model, seed=1), build_model(Constants, seed=1))  # they are there still
    said = refusal(twin)
    assert "'many' has constant values computed by its constructor, which were released" in said
    with torch.no_grad():
        model.few.zero_()
        model.one.zero_()
        model.drawn.zero_()
    assert_same(init_model_(model, seed=1), build_model(Constants, seed=1))
    with torch.no_grad():
        model.many.add_(1)
    assert "'many' has constant values" in refusal(model)
    init_model_(model, {"many": "keep", "**": "own"}, seed=2)
    assert torch.equal(model.drawn, build_model(Constants, seed=2).drawn)


def test_large_constants_of_a_model_in_memory() -> None:
    model = build_model(Constants, seed=0)
    assert_same(init_model_(model, seed=1), build_model(Constants, seed=1))
    model.table += 1
    assert "'table' has constant values" in refusal(model)
    model = build_model(Constants, seed=0).to("meta")
    said = refusal(model)
    assert "'many' has constant values computed by its constructor" in said


def test_dtypes_and_devices_of_memory_are_the_models() -> None:
    model = build_model(scaled, seed=0).double()
    init_model_(model, seed=3)
    assert torch.equal(model.w, build_model(scaled, seed=3).w.double())
    model = build_model(NanoGPT, seed=0, device="meta").bfloat16()
    init_model_(model, seed=3, device="cpu")
    for name, parameter in build_model(NanoGPT, seed=3, dtype=torch.bfloat16).named_parameters():
        assert torch.equal(model.get_parameter(name), parameter), name


def test_parameters_that_nobody_fills() -> None:
    class Unfilled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.layer = Parameter(torch.empty(400, 400)), nn.Linear(2, 2)

    assert build_model(Unfilled, seed=0).w.shape == (400, 400)
    model = build_model(Unfilled, seed=0, device="meta")
    assert "the constructor leaves 'w' unfilled: add a rule for it" in refusal(model)
    init_model_(model, {"w": "ones", "**": "own"}, seed=0, device="cpu")
    assert bool((model.w == 1).all())
    assert torch.equal(model.layer.weight, build_model(Unfilled, seed=0).layer.weight)


def test_the_plan_of_a_constructor() -> None:
    plan = plan_model(NanoGPT)
    rows = {row.name: row for row in plan}
    assert rows["h.1.c_proj.weight"].law.std == pytest.approx(0.02 / 6**0.5)
    assert rows["h.1.c_proj.weight"].rule == "as built"
    assert str(plan) == str(plan_model(built("nanoGPT", device="meta")))
    computed = {row.parameter: row.values for row in plan_model(scaled)}
    assert computed["w"] == computed["joined"] == "computed"
    with pytest.raises(ArgumentError, match="is a function, and rules need a model"):
        plan_model(NanoGPT, {"**": "ones"})


def test_the_report_of_a_built_model() -> None:
    for model in (built("nanoGPT"), NanoGPT):
        rows = {row.parameter: row for row in torchinit.report_model(model)}
        std = rows["h.1.c_proj.weight"].moments.std
        assert std == pytest.approx(0.02 / 6**0.5, rel=0.1)


# Copies and files.


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_copies_remember(device: str) -> None:
    for copied in (copy.deepcopy, copy.copy):
        model = copied(build_model(NanoGPT, seed=0, device=device))
        assert_same(init_model_(model, seed=5, device="cpu"), build_model(NanoGPT, seed=5))


def test_what_is_remembered_shows_nowhere() -> None:
    model, plain = build_model(NanoGPT, seed=0), NanoGPT()
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert repr(model) == repr(plain)
    assert dict(model.named_modules()).keys() == dict(plain.named_modules()).keys()
    public = {name for name in vars(model) if not name.startswith("_torchinit")}
    assert public == set(vars(plain))


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_a_pickled_model_remembers_nothing(device: str) -> None:
    model = build_model(NanoGPT, seed=0, device=device)
    stream = io.BytesIO()
    torch.save(model, stream)
    plain = io.BytesIO()
    torch.save(NanoGPT().to(device), plain)
    assert len(stream.getvalue()) < len(plain.getvalue()) + 1000
    stream.seek(0)
    for again in (pickle.loads(pickle.dumps(model)), torch.load(stream, weights_only=False)):
        assert again.wte.weight is again.lm_head.weight
        if device == "cpu":
            assert_same(again, model)
        assert "only the constructor of NanoGPT knows" in refusal(again)
    assert_same(init_model_(model, seed=5, device="cpu"), build_model(NanoGPT, seed=5))


def test_a_pickled_model_loads_where_torchinit_is_not_there(tmp_path) -> None:
    def build() -> nn.Module:
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        nn.init.zeros_(model[0].bias)
        return model

    model = build_model(build, seed=0)
    torch.save(model, tmp_path / "model.pt")
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(model))
    program = """
import pickle, sys, torch
sys.modules["torchinit"] = None
for path in sys.argv[1:]:
    with open(path, "rb") as file:
        load = pickle.load if path.endswith("pkl") else torch.load
        model = load(file) if path.endswith("pkl") else load(file, weights_only=False)
    print(model(torch.ones(2, 3)).shape, model[0].weight.sum().item())
    torch.save(model, path + ".again")
"""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    paths = [tmp_path / "model.pt", tmp_path / "model.pkl"]
    done = warm.run("-c", program, *paths, env=environment)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert all(str(float(model[0].weight.sum())) in line for line in lines)


def test_state_dicts_and_meta_models_go_together() -> None:
    """A load takes the place of values; another call begins anew."""
    model = build_model(NanoGPT, seed=0, device="meta")
    state = NanoGPT().state_dict()
    model.load_state_dict(state, assign=True)
    model.lm_head.weight = model.wte.weight
    assert torch.equal(model.wpe.weight, state["wpe.weight"])
    model.requires_grad_(False)
    init_model_(model, seed=0)
    assert torch.equal(model.wpe.weight, built("nanoGPT").wpe.weight)
    assert not model.wpe.weight.requires_grad


def test_attributes_hooks_and_flags_survive_the_meta_device() -> None:
    def build() -> nn.Module:
        model = Made(w=Parameter(torch.randn(4), requires_grad=False), n=3, kept=torch.randn(3))
        model.w.partition = 2
        model.register_buffer("gone", torch.ones(2), persistent=False)
        model.register_forward_hook(lambda *_: None)
        model.layer = nn.Linear(2, 2).eval()
        model.frozen = nn.Parameter(torch.ones(2, dtype=torch.int64), requires_grad=False)
        return model

    model = init_model_(build_model(build, seed=0, device="meta"), seed=0, device="cpu")
    assert (model.w.partition, model.n, len(model._forward_hooks)) == (2, 3, 1)
    assert not model.w.requires_grad
    assert not model.layer.training
    assert model.frozen.dtype == torch.int64
    assert "gone" not in model.state_dict()
    assert not model.kept.is_meta
    assert torch.equal(model.kept, build_model(build, seed=0).kept)


def test_fused_and_recurrent_layers_use_what_is_filled() -> None:
    model = build_model(CASES["recurrent"], seed=0, device="meta")
    init_model_(model, seed=0, device="cpu")
    assert all(a is b for a, b in zip(model._flat_weights, model.parameters(), strict=True))
    model(torch.randn(3, 2, 8))


def test_item_under_its_own_seed() -> None:
    model = init_model_(build_model(item, seed=4, device="meta"), seed=4, device="cpu")
    assert float(model.norms[0]) == float(model.layer.weight.detach().norm())


@pytest.mark.parametrize(
    "view",
    [
        lambda w: w.detach(),
        lambda w: w.data,
        lambda w: w.detach()[:],
        lambda w: w.detach().t().t(),
        lambda w: w.detach().view_as(w),
    ],
    ids=["detach", "data", "slice", "transposed twice", "view_as"],
)
@pytest.mark.parametrize("name", ["a", "z"])
def test_two_parameters_of_the_same_elements(view, name: str) -> None:
    """Which come first in the order of names, or last."""

    def build() -> nn.Module:
        model = nn.Linear(4, 4)
        setattr(model, name, nn.Parameter(view(model.weight)))
        return model

    here = build_model(build, seed=0)
    there = init_model_(build_model(build, seed=0, device="meta"), seed=0, device="cpu")
    for one, other in zip(here.parameters(), build_model(build, seed=0).parameters(), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(there.weight, here.weight)
    assert torch.equal(getattr(there, name), here.weight)
    assert there.weight.data_ptr() == getattr(there, name).data_ptr()
