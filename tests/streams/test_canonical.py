"""Canonical names: every parameter has one, and it is the same whatever a model is wrapped in."""

from __future__ import annotations

import io
import itertools
import sys
import types
import warnings

import pytest
import torch
from torch import nn

import torchinit
from torchinit import init_model_
from torchinit.streams.canonical import gather, places_of


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.wte = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.norm = nn.BatchNorm1d(7)

    def forward(self, x):
        return self.norm(self.head(self.wte(x)).mean(1))


NAMES = ["wte.weight", "head.weight", "norm.weight", "norm.bias"]
INPUT = torch.zeros(2, 3, dtype=torch.int64)


def names_of(model):
    return [named.name for named in gather(model).parameters]


def values_of(model):
    return {named.name: named.tensor.detach().clone() for named in gather(model).parameters}


def assert_same_values(model, tensors, seed=3):
    """What a model of the names of Model gets is what Model gets."""
    plain = values_of(init_model_(Model(), {"**": torchinit.Normal(1.0)}, seed=seed))
    init_model_(model, {"**": torchinit.Normal(1.0)}, seed=seed)
    for name, tensor in tensors.items():
        assert torch.equal(tensor, plain[name]), name


def stand_in(monkeypatch, where, **classes):
    """Has a module of a library that may not be installed be there, with these classes."""
    module = types.ModuleType(where)
    vars(module).update(classes)
    monkeypatch.setitem(sys.modules, where, module)


class PeftModel(nn.Module):
    pass


class BaseTuner(nn.Module):
    pass


class XLoraModel(BaseTuner):
    pass


class _FabricModule(nn.Module):
    def __init__(self, forward_module, original_module):
        super().__init__()
        self._forward_module = forward_module
        self._original_module = original_module


@pytest.fixture
def _peft(monkeypatch):
    class Mixed(nn.Module):
        pass

    stand_in(monkeypatch, "peft", PeftModel=PeftModel, PeftMixedModel=Mixed)
    stand_in(monkeypatch, "peft.tuners.tuners_utils", BaseTuner=BaseTuner)
    stand_in(monkeypatch, "peft.tuners.xlora", XLoraModel=XLoraModel)


def with_prompts(model):
    """As PEFT's prompt tuning: a prompt encoder, and the model's embedding again."""
    outer = PeftModel()
    outer.base_model = model
    outer.prompt_encoder = nn.ModuleDict({"default": nn.Embedding(2, 4)})
    outer.scale = nn.Parameter(torch.zeros(3))
    outer.a_copy = outer.word_embeddings = model.wte
    return outer


@pytest.mark.usefixtures("_peft")
def test_what_a_wrapper_holds_beside_the_model_has_a_name():
    model = with_prompts(Model())
    assert names_of(model) == [*NAMES, "scale", "prompt_encoder.default.weight"]
    assert_same_values(model, dict(zip(NAMES, model.base_model.parameters(), strict=True)))
    assert torch.count_nonzero(model.scale) == 3
    with torch.device("meta"):
        model = with_prompts(Model())
    init_model_(model, {"**": "ones", "**.prompt_encoder.**": "zeros"}, seed=0, strict=False)
    assert not any(parameter.is_meta for parameter in model.parameters())
    assert model.word_embeddings.weight is model.base_model.wte.weight


@pytest.mark.usefixtures("_peft")
def test_what_the_model_holds_too_keeps_the_models_name():
    """Also where the wrapper's name is the smaller one, and where all names are changed."""
    model = with_prompts(Model())
    (embedding,) = [
        named for named in gather(model).parameters if named.tensor is model.a_copy.weight
    ]
    assert embedding.name == "wte.weight"
    assert [slot.name for slot in embedding.slots] == ["wte.weight"] * 3
    renamed = [named.name for named in gather(model, lambda name: f"all.{name}").parameters]
    assert renamed == [f"all.{name}" for name in names_of(model)]


@pytest.mark.usefixtures("_peft")
def test_every_wrapper_of_adapters_at_the_root_is_taken_off():
    inner = Model()
    lora = BaseTuner()
    lora.model = inner
    assert names_of(lora) == NAMES
    tuner = XLoraModel()
    tuner.lora_model = lora
    tuner.classifier = nn.Linear(2, 3, bias=False)
    outer = PeftModel()
    outer.base_model = tuner
    outer = nn.DataParallel(outer)
    assert names_of(outer) == [*NAMES, "classifier.weight"]
    assert {prefix for prefix, _ in places_of(outer)} == {
        *("", "wte.", "head.", "norm.", "classifier.")
    }
    mixed = sys.modules["peft"].PeftMixedModel()
    mixed.base_model = lora
    assert names_of(mixed) == NAMES


@pytest.mark.parametrize("where", ["lightning.fabric.wrappers", "lightning_fabric.wrappers"])
@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda model: model, torch.compile])
def test_fabric_does_not_change_names(where, wrap, monkeypatch):
    stand_in(monkeypatch, where, _FabricModule=_FabricModule)
    inner = Model()
    model = _FabricModule(wrap(inner), inner)
    assert names_of(model) == NAMES
    assert_same_values(model, dict(inner.named_parameters()))


def test_a_class_of_another_library_of_that_name_changes_names_as_any():
    inner = Model()
    model = _FabricModule(inner, inner)
    assert names_of(model) == [f"_forward_module.{name}" for name in NAMES]


def cyclic(kind):
    model = Model()
    if kind == "a child that knows its parent":
        model.norm.up = model
    elif kind == "itself":
        model.me = model
    elif kind == "a list that holds itself":
        model.list = nn.ModuleList([nn.Identity()])
        model.list.append(model.list)
    elif kind == "through a wrapper":
        model.norm.up = torch.compile(model)
    elif kind == "a wrapper of itself":
        model._orig_mod = model
    return model


@pytest.mark.parametrize(
    "kind",
    ["a child that knows its parent", "itself", "a list that holds itself",
     "through a wrapper", "a wrapper of itself"],
)  # fmt: skip
def test_cycles_of_modules_do_not_change_names(kind):
    model = cyclic(kind)
    assert names_of(model) == NAMES
    assert_same_values(model, dict(model.named_parameters()))
    assert {prefix for prefix, _ in places_of(model)} >= {"", "wte.", "norm."}
    built = torchinit.build_model(lambda: cyclic(kind), seed=0, device="meta")
    init_model_(built, seed=1)
    assert not any(one.is_meta for one in (*built.parameters(), *built.buffers()))


def test_modules_that_know_each_other_are_tied():
    """Each is reached through the others too, but never through itself."""
    layers = nn.ModuleList(nn.Linear(2, 2, bias=False) for _ in range(3))
    for one, other in itertools.pairwise(layers):
        one.next, other.before = other, one
    first = next(named for named in gather(layers).parameters if named.tensor is layers[0].weight)
    assert sorted(slot.name for slot in first.slots) == [
        "0.weight", "1.before.weight", "2.before.before.weight"
    ]  # fmt: skip
    init_model_(layers, {"**": "ones"}, seed=0)
    assert all((one == 1).all() for one in layers.parameters())


def test_buffers_of_a_wrapper_have_names():
    model = torch.optim.swa_utils.AveragedModel(Model())
    assert {named.name for named in gather(model).buffers} == {
        "n_averaged",
        *(f"norm.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")),
    }


def reloaded(model):
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(model), file)
    file.seek(0)
    return torch.jit.load(file)


SCRIPTED = {
    "traced": lambda model: torch.jit.trace(model.eval(), INPUT),
    "scripted": torch.jit.script,
    "loaded": reloaded,
}


@pytest.fixture
def _old_compiler():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*torch.jit", DeprecationWarning)
        yield


@pytest.mark.usefixtures("_old_compiler")
@pytest.mark.parametrize("make", SCRIPTED.values(), ids=SCRIPTED)
def test_scripted_modules_have_their_names_anywhere(make):
    scripted = make(Model())
    assert names_of(scripted) == NAMES
    assert {named.name for named in gather(scripted).buffers} == {
        named.name for named in gather(Model()).buffers
    }
    assert_same_values(scripted, dict(scripted.named_parameters()))
    assert [prefix for prefix, _ in places_of(scripted)] == ["", "wte.", "head.", "norm."]
    outer = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Sequential(scripted)})
    assert names_of(outer) == ["a.weight", "a.bias", *(f"b.0.{name}" for name in NAMES)]
    init_model_(outer, {"**": "zeros"}, seed=0)
    assert not any(torch.count_nonzero(parameter) for parameter in outer.parameters())


@pytest.mark.usefixtures("_old_compiler")
@pytest.mark.parametrize(
    "make", [torch.jit.script, lambda layer: torch.jit.trace(layer, torch.zeros(1, 4))]
)
def test_scripted_modules_are_tied_and_go_to_memory_from_the_meta_device(make):
    with torch.device("meta"):
        scripted = make(nn.Linear(4, 4))
        outer = nn.ModuleDict({"b": scripted, "a": nn.Linear(4, 4, bias=False)})
    outer["a"].weight = scripted.weight
    assert names_of(outer) == ["a.weight", "b.bias"]
    init_model_(outer, {"**": "ones"}, seed=0, device="cpu")
    assert scripted.weight is outer["a"].weight
    assert torch.equal(scripted(torch.ones(1, 4)), torch.full((1, 4), 5.0))
    assert names_of(outer) == ["a.weight", "b.bias"]


def test_peft_itself():
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2)
    plain = names_of(transformers.GPT2Model(config))
    arguments = {"num_virtual_tokens": 3, "task_type": "FEATURE_EXTRACTION"}
    for kind in ("PromptTuningConfig", "PrefixTuningConfig", "PromptEncoderConfig"):
        made = getattr(peft, kind)(**arguments)
        model = peft.get_peft_model(transformers.GPT2Model(config), made)
        names = names_of(model)
        assert names[: len(plain)] == plain
        more = names[len(plain) :]
        assert more
        assert all(name.startswith("prompt_encoder.default.") for name in more)
        init_model_(model, {"**": "zeros"}, seed=0)
        assert not any(torch.count_nonzero(parameter) for parameter in model.parameters())
