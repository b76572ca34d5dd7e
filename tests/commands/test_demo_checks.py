"""The demo's checks of parameters."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch.nn import init as torch_init

import torchinit
from conftest import native_only
from torchinit.commands import checks
from torchinit.dtypes import FLOATING_DTYPES
from torchinit.native import load
from torchinit.schemes.distributions import (
    constant_draw,
    law_of,
    normal_draw,
    truncated_draw,
    uniform_draw,
)

LAWS = {
    "normal": law_of(normal_draw(0.0, 0.02)),
    "trunc_normal": law_of(truncated_draw(0.0, 0.02, -0.04, 0.04)),
    "uniform": law_of(uniform_draw(-0.1, 0.1)),
    "ones": law_of(constant_draw(1.0)),
}
FILLS = {
    "normal": {"std": 0.02},
    "trunc_normal": {"std": 0.02, "a": -0.04, "b": 0.04},
    "uniform": {"a": -0.1, "b": 0.1},
    "ones": {},
}


@pytest.mark.parametrize("dtype", FLOATING_DTYPES)
@pytest.mark.parametrize("library", [torchinit, torch_init])
@pytest.mark.parametrize("name", LAWS)
def test_correct_fills_pass(name, library, dtype, monkeypatch):
    if library is torch_init:
        monkeypatch.setattr(load, "module", None)
    torch.manual_seed(1)
    tensor = getattr(library, f"{name}_")(torch.empty(512, 384, dtype=dtype), **FILLS[name])
    assert checks.check(tensor, LAWS[name]) == []


def test_the_false_alarm_rate_is_of_both_sides():
    assert pytest.approx(2 * stats.norm.sf(6), rel=1e-6) == checks.FALSE_ALARM


def test_constants_are_rounded_to_the_dtype():
    law = law_of(constant_draw(0.1))
    assert checks.check(torch.full((4,), 0.1, dtype=torch.bfloat16), law) == []
    assert checks.check(torch.full((4,), 0.11, dtype=torch.bfloat16), law)


def test_laws_come_from_the_plan():
    model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Embedding(5, 4, padding_idx=0))
    parts = {
        "0.weight": torchinit.Blocks({"q": 2, "k": 2}, {"q": "zeros", "k": "ones"}),
        "0.bias": lambda tensor: tensor.zero_(),
        "**": torchinit.Normal(0.5),
    }
    laws = checks.laws_of(torchinit.plan_model(model, parts))
    assert list(laws) == ["0.weight", "0.bias", "1.weight"]
    assert laws["0.weight"] is None
    assert laws["0.bias"] is None
    assert laws["1.weight"].std == 0.5


def test_every_parameter_is_checked():
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64))
    laws = checks.laws_of(torchinit.plan_model(model))
    with torch.no_grad():
        model[1].bias[3] = math.nan
        model[0].weight.mul_(2)
    failures = {failure.name: failure.problems for failure in checks.check_all(model, laws)}
    assert list(failures) == ["0.weight", "1.bias"]
    assert "1 of 64 values NaN, 0 infinite" in failures["1.bias"]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_has_no_law_is_finite(value):
    assert checks.check(torch.ones(5), None) == []
    assert checks.check(torch.tensor([1.0, value]), None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "spoil", "problem"),
    [
        ("normal", lambda t: t[-1, -1:].fill_(math.nan), "1 of 262144 values NaN"),
        ("normal", lambda t: t[0, :2].fill_(-math.inf), "2 infinite"),
        ("normal", lambda t: t.add_(0.001), "mean"),
        ("normal", lambda t: t.mul_(1.03), "std"),
        ("normal", lambda t: t[:16].zero_(), "std"),
        ("uniform", lambda t: t[0, 0].fill_(0.125), "to 0.125, expected within -0.1"),
        ("ones", lambda t: t[2].fill_(0), "expected within 1 and 1"),
    ],
)
def test_wrong_fills_fail(name, spoil, problem, dtype):
    torch.manual_seed(2)
    tensor = torch.empty(512, 512, dtype=dtype)
    getattr(torchinit, f"{name}_")(tensor, **FILLS[name])
    spoil(tensor)
    assert problem in "; ".join(checks.check(tensor, LAWS[name]))


@native_only
def test_bounds_of_native_fills_are_exact():
    law = law_of(uniform_draw(-1.0, 1.0))
    tensor = torch.zeros(512, 512, dtype=torch.bfloat16).uniform_(-1, 1)
    tensor[0, 0] = 1.0
    assert any("expected within" in problem for problem in checks.check(tensor, law))


@pytest.mark.parametrize("dtype", FLOATING_DTYPES)
def test_measured_moments(dtype, monkeypatch):
    monkeypatch.setitem(checks._CHUNK, "cpu", 1000)  # several chunks, the last one shorter
    tensor = torch.empty(50, 51, dtype=dtype).normal_(0.5, 1)
    moments = checks.measure(tensor, centre=0.5)
    offsets = tensor.double() - 0.5
    assert moments.first == pytest.approx(offsets.mean().item(), rel=1e-4)
    assert moments.second == pytest.approx(offsets.square().mean().item(), rel=1e-5)
    assert (moments.low, moments.high) == (tensor.min().item(), tensor.max().item())
