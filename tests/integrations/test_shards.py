"""What all integrations refuse or join, as ``init_model_`` does."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import torchinit
from conftest import native_only
from torchinit import ArgumentError
from torchinit.integrations import deepspeed
from torchinit.integrations.serving import init_dummy_weights_

pytestmark = native_only

RULES = {"**": torchinit.Uniform(-1e-3, 1e-3)}


def fill_by_rules(model):
    return deepspeed.init_model_(model, RULES, seed=1234)


def fill_with_dummies(model):
    init_dummy_weights_(model)
    return model


every_fill = pytest.mark.parametrize("fill", [fill_by_rules, fill_with_dummies])


def split():
    """A tie that ``load_state_dict(assign=True)`` has split: two parameters, one memory."""
    model = nn.ModuleDict({name: nn.Linear(4, 4, bias=False) for name in "ab"})
    model["b"].weight = nn.Parameter(model["a"].weight.data)
    return model


@every_fill
def test_parameters_in_the_same_memory_are_one(fill):
    whole = torchinit.init_model_(split(), RULES, seed=1234)
    assert torch.equal(fill(split())["b"].weight, whole["b"].weight)


@every_fill
def test_parameters_that_overlap_are_refused(fill):
    model = nn.Linear(4, 12, bias=False)
    model.query = nn.Parameter(model.weight.data[:4])
    before = model.weight.clone()
    with pytest.raises(ArgumentError, match="'weight' and 'query' share memory"):
        fill(model)
    assert torch.equal(model.weight, before)


@every_fill
def test_what_is_no_model_or_has_no_shape(fill):
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, not dict"):
        fill({})
    with pytest.raises(ArgumentError, match="parameter 'weight' is lazy"):
        fill(nn.LazyLinear(3))


def test_a_function_of_a_parameter_is_asked_once_for_each():
    asked = []

    def scheme(p):
        asked.append(p.name)
        return torchinit.Normal(0.02)

    deepspeed.init_model_(nn.Linear(4, 4), {"**": torchinit.by(scheme)}, seed=0)
    assert asked == ["weight", "bias"]
