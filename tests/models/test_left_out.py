"""After a fill nothing of a model is left out, and all that was filled is what the model uses."""

from __future__ import annotations

import copy
import sys
import warnings
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

import torchinit
from torchinit import ArgumentError, Normal, init_model_

RULES = {"**": Normal(0.02)}


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4)))


# Values that are kept elsewhere.


@pytest.fixture
def _accelerate(monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", ModuleType("accelerate"))


def hook(**attributes):
    return SimpleNamespace(**{"offload": True, "place_submodules": False, **attributes})


HOOKS = {
    "on a layer": ("1.0", hook(), ["1.0.weight", "1.0.bias"]),
    "for what is below": ("1", hook(place_submodules=True), ["1.0.weight", "1.0.bias"]),
    "one of several": (
        "0",
        SimpleNamespace(hooks=[hook(offload=False), hook()]),
        ["0.weight", "0.bias"],
    ),
    "of the root": ("", hook(place_submodules=True), ["0.weight", "0.bias", "1.0.weight"]),
}


@pytest.mark.usefixtures("_accelerate")
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("name", HOOKS)
def test_what_accelerate_offloads_is_refused(name, device):
    where, one, names = HOOKS[name]
    model = net().to(device)
    model.get_submodule(where)._hf_hook = one
    before = dict(model.named_parameters())
    with pytest.raises(ArgumentError, match="Accelerate offloads") as error:
        init_model_(model, RULES, seed=0, device="cpu")
    assert ", ".join(names) in str(error.value)
    assert all(value is before[key] for key, value in model.named_parameters())


@pytest.mark.usefixtures("_accelerate")
def test_what_accelerate_does_not_offload_is_filled():
    model = net()
    model[0]._hf_hook = hook(offload=False)
    model[1]._hf_hook = hook()  # which has no parameters of its own
    init_model_(model, {"**": "ones"}, seed=0)
    model[0]._hf_hook = hook()
    init_model_(model, {"**": "zeros"}, seed=0, only="1.**")
    assert [float(value.mean()) for value in model.parameters()] == [1, 1, 0, 0]


def test_accelerate_itself():
    accelerate = pytest.importorskip("accelerate")
    model = accelerate.cpu_offload(net(), torch.device("cpu"))
    with pytest.raises(ArgumentError, match="Accelerate offloads 4 tensors"):
        init_model_(model, RULES, seed=0, device="cpu")


def test_what_deepspeed_has_partitioned_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "deepspeed", ModuleType("deepspeed"))
    model = net()
    model[0].weight.ds_numel = 16  # gathered
    init_model_(model, RULES, seed=0)
    model[0].weight.data = torch.empty(0)
    with pytest.raises(ArgumentError, match=r"GatheredParameters") as error:
        init_model_(model, RULES, seed=0)
    assert "0.weight" in str(error.value)


# Modules that do something else with what they are given.


class Wraps(nn.Linear):
    """Registers a copy of what is assigned."""

    def __setattr__(self, name, value):
        if isinstance(value, nn.Parameter) and name in self.__dict__.get("_parameters", ()):
            value = nn.Parameter(value.detach().clone())
        super().__setattr__(name, value)


class Drops(nn.Linear):
    """Ignores a second assignment."""

    def __setattr__(self, name, value):
        if name not in self.__dict__.get("_parameters", ()):
            super().__setattr__(name, value)


class Adds(nn.Linear):
    """Registers one more, which nobody knows of."""

    def __setattr__(self, name, value):
        super().__setattr__(name, value)
        if name == "weight" and not value.is_meta:
            self.register_parameter("more", nn.Parameter(torch.empty(3)))


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (Wraps, "parameter 'weight' is not filled"),
        (Drops, "parameter 'weight' is on the meta device"),
        (Adds, "parameter 'more' is not filled"),
    ],
)
def test_a_parameter_that_is_not_what_was_filled_is_an_error(kind, said):
    with torch.device("meta"):
        model = kind(4, 4)
    with pytest.raises(ArgumentError, match=said):
        init_model_(model, RULES, seed=0, device="cpu")


def test_a_parameter_that_a_constructor_leaves_on_the_meta_device_is_an_error():
    def build():
        model = net()
        model[0].bias = nn.Parameter(torch.empty(4, device="meta"))
        return model

    with pytest.raises(ArgumentError, match=r"parameter '0\.bias' is on the meta device"):
        torchinit.build_model(build, seed=0)


def test_memory_that_a_callable_brings_is_not_shared():
    cache = torch.ones(4, 4)
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    init_model_(model, {"**": lambda tensor: tensor.set_(cache)}, seed=0, device="cpu")
    one, other = model.parameters()
    assert torch.equal(one, cache)
    assert len({one.data_ptr(), other.data_ptr(), cache.data_ptr()}) == 3


# Buffers in memory.


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.BatchNorm1d(4), nn.Linear(4, 4)
        self.register_buffer("mask", torch.tril(torch.ones(3, 3)))
        self.register_buffer("table", torch.arange(3), persistent=False)


def emptied() -> nn.Module:
    with torch.device("meta"):
        model = Masked()
    model.to_empty(device="cpu")
    with torch.no_grad():
        for one in model.buffers():
            one.fill_(7)
    return model.to("meta").to_empty(device="cpu")


def test_after_to_empty_buffers_are_filled_or_named():
    model = emptied()
    with pytest.warns(
        UserWarning, match="2 buffers are in memory that nothing has written"
    ) as told:
        init_model_(model, RULES, seed=0)
    assert "mask, table" in str(told[0].message)
    assert told[0].filename == __file__
    assert (model.norm.running_mean == 0).all()
    assert (model.norm.running_var == 1).all()
    assert model.norm.num_batches_tracked == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        init_model_(model, RULES, seed=0)


def trained(model):
    model.norm(torch.randn(5, 4))
    return model


@pytest.mark.parametrize(
    "make",
    [
        lambda: trained(Masked()),
        lambda: copy.deepcopy(trained(Masked())),
        lambda: trained(Masked()).to(torch.float64),
        lambda: trained(Masked()).requires_grad_(False),
    ],
    ids=["built", "copied", "converted", "frozen"],
)
def test_buffers_with_values_stay(make):
    model = make()
    before = {name: one.clone() for name, one in model.named_buffers()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        init_model_(model, RULES, seed=0)
    assert all(torch.equal(one, before[name]) for name, one in model.named_buffers())


def test_to_empty_without_rules():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    model[0].register_buffer("mask", torch.ones(3))
    model.to("meta").to_empty(device="cpu")
    with pytest.warns(UserWarning, match=r"1 buffer is in memory .*: 0\.mask\."):
        init_model_(model, seed=0)
    assert (model[1].running_var == 1).all()


def test_names_that_only_a_tie_breaks_are_no_broken_ties():
    """As ``init_empty_weights`` leaves them: two parameters of one storage of the meta device."""
    model = nn.Module()
    model.config = SimpleNamespace(tie_word_embeddings=True)
    model._tied_weights_keys = {"head.weight": "embed.weight"}
    with torch.device("meta"):
        model.embed, model.head = nn.Embedding(8, 4), nn.Linear(4, 8, bias=False)
    model.head.weight = nn.Parameter(model.embed.weight.detach())
    assert model.head.weight is not model.embed.weight
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        init_model_(model, RULES, seed=0, device="cpu")
    assert model.head.weight is model.embed.weight


class Ema(nn.Module):
    """Keeps a copy of a model, as packages of averaged weights do."""

    def __init__(self, model, start):
        super().__init__()
        self.model = copy.deepcopy(model)
        self.register_buffer("steps", start)


@pytest.mark.parametrize(
    "wrap",
    [
        torch.optim.swa_utils.AveragedModel,
        lambda model: nn.DataParallel(torch.optim.swa_utils.AveragedModel(model)),
        lambda model: torch.optim.swa_utils.AveragedModel(copy.deepcopy(model)),
        lambda model: Ema(model, torch.tensor(0)),
        lambda model: Ema(model, torch.tensor(False)),
        lambda model: Ema(model, torch.zeros((), dtype=torch.int32)),
    ],
)
def test_counters_of_copies_are_at_their_start(wrap):
    model = wrap(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torchinit.init_model_(model, {"**": torchinit.Normal(0.1)}, seed=0)


@pytest.mark.parametrize("start", [torch.tensor(7), torch.zeros(1), torch.tensor(0.5)])
def test_other_buffers_of_memory_without_values_are_named(start):
    with pytest.warns(UserWarning, match="1 buffer is in memory .*: steps"):
        torchinit.init_model_(Ema(nn.Linear(4, 4), start), {"**": torchinit.Normal(0.1)}, seed=0)
