"""ZeRO-3's ranges: any number of ranks, padding, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import distributed, nn

import torchinit
from conftest import native_only
from torchinit import ArgumentError
from torchinit.integrations import deepspeed

pytestmark = native_only

RULES = {nn.LayerNorm: "keep", "**.bias": "zeros", "**": torchinit.Orthogonal()}


def net():
    return nn.Sequential(nn.Embedding(13, 7, padding_idx=5), nn.LayerNorm(7), nn.Linear(7, 12))


def partitioned(ranks):
    """What zero.Init leaves of a model on each of some ranks."""
    model = net()
    for parameter in model.parameters():
        parameter.ds_shape, parameter.ds_numel = parameter.shape, parameter.numel()
        parameter.ds_process_group = "a group"
        parameter.ds_tensor = torch.full((-(-parameter.numel() // ranks),), torch.nan)
        parameter.data = torch.empty(0)
    return model


@pytest.mark.parametrize("ranks", [1, 2, 3, 11, 100])
def test_ranges_are_those_of_the_full_model(monkeypatch, ranks):
    whole = dict(torchinit.init_model_(net(), RULES, seed=2).named_parameters())
    for rank in range(ranks):
        monkeypatch.setattr(distributed, "get_rank", {"a group": rank}.get)
        model = deepspeed.init_model_(partitioned(ranks), RULES, seed=2)
        for name, parameter in model.named_parameters():
            held = parameter.ds_tensor
            if name.startswith("1."):
                assert held.isnan().all()
                continue
            part = whole[name].detach().flatten()[rank * held.numel() :][: held.numel()]
            assert torch.equal(held[: part.numel()], part), (name, rank)
            assert held[part.numel() :].isnan().all()  # padding


def test_a_parameter_that_is_not_partitioned_is_filled_in_full(monkeypatch):
    monkeypatch.setattr(distributed, "get_rank", {"a group": 0}.get)
    model, whole = partitioned(2), torchinit.init_model_(net(), RULES, seed=2)
    model[2] = nn.Linear(7, 12)
    deepspeed.init_model_(model, RULES, seed=2)
    assert torch.equal(model[2].weight, whole[2].weight)


def test_rules_know_the_module_and_what_is_kept_keeps_its_padding(monkeypatch):
    monkeypatch.setattr(distributed, "get_rank", {"a group": 0}.get)
    rules = {
        "0.*": "keep",
        nn.Linear: torchinit.by(lambda p: torchinit.Normal(p.module.out_features)),
        "**": "ones",
    }
    whole = torchinit.init_model_(net(), rules, seed=2)
    model = deepspeed.init_model_(partitioned(1), rules, seed=2)
    assert torch.equal(model[2].weight.ds_tensor, whole[2].weight.detach().flatten())
    assert model[0].weight.ds_tensor.isnan().all()


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        ("is gathered", lambda p: setattr(p, "data", torch.empty(7, 12))),
        ("is quantised", lambda p: setattr(p.ds_tensor, "ds_quant_scale", 1)),
        ("is on NVMe", lambda p: setattr(p, "ds_tensor", torch.empty(0))),
        ("is held a second time", lambda p: setattr(p, "ds_secondary_tensor", torch.empty(9))),
    ],
)
def test_what_is_refused(monkeypatch, reason, change):
    monkeypatch.setattr(distributed, "get_rank", {"a group": 0}.get)
    model = partitioned(2)
    change(model[2].weight)
    with pytest.raises(ArgumentError, match=f"parameter '2.weight' {reason}"):
        deepspeed.init_model_(model, RULES, seed=2)
    assert model[0].weight.ds_tensor.isnan().all()
