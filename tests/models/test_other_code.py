"""Models whose own code raises when it is asked: rules need none of it; else our error says why."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import torchinit
from torchinit import ArgumentError, Normal, init_model_


def raising(error):
    def get(_):
        raise error

    return property(get)


def calling(error):
    def call(*_, **__):
        raise error

    return call


TIED = SimpleNamespace(tie_word_embeddings=True)
MODELS = {
    "a property that raises": {"config": raising(RuntimeError("no config yet"))},
    "a property with an AttributeError": {"config": raising(AttributeError("nothing"))},
    "a method that is none": {"init_states": raising(KeyError("x")), "init_weights": 3},
    "ties that raise": {
        "config": TIED, "get_expanded_tied_weights_keys": calling(AttributeError("hidden_size")),
    },
    "ties that are none": {"config": TIED, "_tied_weights_keys": 3},
    "embeddings that raise": {"config": TIED, "get_input_embeddings": calling(KeyError("x"))},
    "a reset without a signature": {"reset_parameters": property(lambda _: max)},
    "a reset that raises": {"reset_parameters": calling(AttributeError("hidden_size"))},
    "a config that cannot be copied": {
        "config": property(lambda _: (one for one in ())),
        **dict.fromkeys(
            ("initialize_weights", "_initialize_weights", "_init_weights"), calling(KeyError("x"))
        ),
    },
}  # fmt: skip


def model_of(attributes, device="cpu"):
    kind = type("Mine", (nn.Module,), attributes)
    model = kind()
    model.w = nn.Parameter(torch.empty(3, 3, device=device))
    return model


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("name", MODELS)
def test_rules_do_not_need_it(name, device):
    model = init_model_(model_of(MODELS[name], device), {"**": "ones"}, seed=0, device="cpu")
    assert (model.w == 1).all()


@pytest.mark.parametrize("rules", [None, {"**": "own"}, {"**": "reset_parameters"}])
@pytest.mark.parametrize("name", MODELS)
def test_without_rules_the_error_is_ours(name, rules):
    model = model_of(MODELS[name])
    with pytest.raises(ArgumentError, match=r"not known: w|no reset_parameters that can be called"):
        init_model_(model, rules, seed=0)


def test_it_says_what_the_code_said():
    model = model_of(MODELS["a reset that raises"])
    with pytest.raises(ArgumentError, match=r"raised AttributeError: hidden_size.*build_model"):
        init_model_(model, {"**": "reset_parameters"}, seed=0)


PARAMETRIZED = {
    "spectral_norm": parametrizations.spectral_norm,
    "weight_norm": parametrizations.weight_norm,
    "orthogonal": parametrizations.orthogonal,
    "spectral_norm of a subclass": lambda layer: parametrizations.spectral_norm(
        type("Wide", (nn.Linear,), {})(4, layer.out_features)
    ),
}


@pytest.mark.parametrize("name", PARAMETRIZED)
def test_what_a_parametrization_keeps_from_the_parameter(name):
    model = PARAMETRIZED[name](nn.Linear(4, 4))
    with pytest.raises(ArgumentError, match="is parametrized, and what reset_parameters") as error:
        init_model_(model, {"**": "reset_parameters"}, seed=0)
    assert "or give rules" in str(error.value)
    assert "ParametrizedLinear" not in str(error.value)
    with pytest.raises(ArgumentError, match=r"is parametrized|constructor of Wide"):
        init_model_(model, seed=0)
    init_model_(model, {"**": Normal(0.02)}, seed=0)


def test_buffers_of_a_parametrization_can_have_rules():
    with torch.device("meta"):
        model = parametrizations.spectral_norm(nn.Linear(4, 4))
    with pytest.raises(ArgumentError, match="give buffers rules of their own"):
        init_model_(model, {"**": Normal(0.02)}, seed=0, device="cpu")
    unit = {"**._{u,v}": lambda shape: nn.functional.normalize(torch.randn(shape), dim=0)}
    init_model_(model, {**unit, "**": Normal(0.02)}, seed=0, device="cpu")
    assert torch.linalg.vector_norm(model.parametrizations.weight[0]._u) == pytest.approx(1)
    assert torchinit.plan_model(model, {**unit, "**": "ones"})[-1].rule == "**._{u,v}"
