"""``param_init`` as rules: of modules like torchtitan's."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

import torchinit
from conftest import native_only
from torchinit import ArgumentError
from torchinit.integrations import torchtitan

pytestmark = native_only

NORMAL = partial(nn.init.normal_, std=0.5)


def skip_param_init(param):
    """Torchtitan's has this name."""


def model(**functions):
    made = nn.ModuleDict({
        "embed": nn.Embedding(6, 4), "norm": nn.RMSNorm(4), "head": nn.Linear(4, 6, bias=False)
    })  # fmt: skip
    for name, function in functions.items():
        made[name]._param_init = {"weight": function}
    return made


def test_rules_are_those_of_param_init():
    titan = model(embed=NORMAL, head=nn.init.zeros_)
    rules = torchtitan.rules_of(titan)
    wanted = {"embed.weight": NORMAL, "norm.weight": "reset_parameters"}
    assert rules == wanted | {"head.weight": nn.init.zeros_}
    torchinit.init_model_(titan, rules, seed=0)
    by_hand = {"embed.*": torchinit.Normal(0.5), "norm.*": "ones", "**": "zeros"}
    plain = torchinit.init_model_(model(), by_hand, seed=0)
    for (name, found), expected in zip(titan.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(found, expected), name


def test_a_tied_head_has_the_rule_that_is_not_skipped():
    titan = model(embed=skip_param_init, head=NORMAL)
    assert torchtitan.rules_of(titan)["embed.weight"] == "keep"
    titan.head.weight = titan.embed.weight
    rules = torchtitan.rules_of(titan)
    assert rules["embed.weight"] is NORMAL
    torchinit.init_model_(titan, rules, seed=0)
    titan.head._param_init = {"weight": nn.init.ones_}
    titan.embed._param_init = {"weight": NORMAL}
    assert torchtitan.rules_of(titan)["embed.weight"] is nn.init.ones_  # the last one


def test_a_parameter_that_nothing_initialises_is_named():
    titan = model(embed=NORMAL)
    titan.head._param_init = {"bias": NORMAL}
    with pytest.raises(
        ArgumentError, match=r"Linear has no param_init for parameter 'head.weight'"
    ):
        torchtitan.rules_of(titan)
    titan.norm.reset_parameters = None
    with pytest.raises(ArgumentError, match="RMSNorm has no param_init"):
        torchtitan.rules_of(titan)
