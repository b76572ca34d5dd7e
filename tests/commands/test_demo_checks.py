"""The demo's checks of parameters, and the laws that they hold them to."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from scipy import stats
from torch.nn import init as torch_init

import torchinit
from conftest import native_only
from torchinit.commands import checks, models
from torchinit.commands.models import Parameter
from torchinit.dtypes import FLOATING_DTYPES
from torchinit.native import load


@pytest.mark.parametrize(
    ("scheme", "arguments", "frozen"),
    [
        ("normal", {}, stats.norm(0, 1)),
        ("normal", {"mean": 1.0, "std": 2.0}, stats.norm(1, 2)),
        ("uniform", {}, stats.uniform(0, 1)),
        ("uniform", {"a": -1.0, "b": 3.0}, stats.uniform(-1, 4)),
        ("trunc_normal", {}, stats.truncnorm(-2, 2)),
        ("trunc_normal", {"std": 0.02, "a": -0.06, "b": 0.06}, stats.truncnorm(-3, 3, 0, 0.02)),
        (
            "trunc_normal",
            {"mean": 1.0, "std": 2.0, "a": 0.0, "b": 3.0},
            stats.truncnorm(-0.5, 1, 1, 2),
        ),
        ("trunc_normal", {"std": 0.02}, stats.norm(0, 0.02)),
        ("kaiming_uniform", {}, stats.uniform(-(0.5**0.5), 2 * 0.5**0.5)),
        # gain 1 / sqrt(3) for fan_in 12: U(-r, r) with r = 1 / sqrt(12)
        ("kaiming_uniform", {"a": math.sqrt(5)}, stats.uniform(-(12**-0.5), 2 * 12**-0.5)),
    ],
)
def test_laws_agree_with_scipy(scheme, arguments, frozen):
    found = checks.law(Parameter("p", (8, 3, 2, 2), scheme, arguments))
    mean, variance, excess = (float(moment) for moment in frozen.stats("mvk"))
    assert found.mean == pytest.approx(mean, abs=1e-12)
    assert found.std == pytest.approx(math.sqrt(variance))
    assert found.kurtosis == pytest.approx(3 + excess)


@pytest.mark.parametrize(("scheme", "value"), [("zeros", 0.0), ("ones", 1.0)])
def test_laws_of_constants(scheme, value):
    found = checks.law(Parameter("p", (3,), scheme))
    assert (found.mean, found.std, found.low, found.high) == (value, 0.0, value, value)


def test_every_parameter_has_a_law():
    parameters = [p for make in models.MODELS.values() for p in make().parameters]
    assert {p.scheme for p in parameters} == set(checks._DRAWS)
    for parameter in parameters:
        found = checks.law(parameter)
        assert found.low <= found.mean <= found.high


@pytest.mark.parametrize("scheme", checks._DRAWS)
def test_defaults_are_those_of_torch(scheme):
    theirs = inspect.signature(getattr(torch_init, f"{scheme}_")).parameters
    ours = inspect.signature(checks._DRAWS[scheme]).parameters
    assert [(p.name, p.default) for p in list(ours.values())[1:]] == [
        (p.name, p.default) for p in list(theirs.values())[1:] if p.name != "generator"
    ]


@pytest.mark.parametrize("dtype", FLOATING_DTYPES)
@pytest.mark.parametrize("library", [torchinit, torch_init])
def test_correct_fills_pass(library, dtype, monkeypatch):
    if library is torch_init:
        monkeypatch.setattr(load, "module", None)
    torch.manual_seed(1)
    seen = set()
    for parameter in models.vit_large().parameters[:16]:
        tensor = torch.empty(parameter.shape, dtype=dtype)
        parameter.fill(library, tensor)
        assert checks.check(parameter, tensor) == []
        seen.add(parameter.scheme)
    assert seen == {"normal", "trunc_normal", "kaiming_uniform", "uniform", "ones", "zeros"}


NORMAL = Parameter("p", (512, 512), "normal", {"std": 0.02})
BOUNDED = Parameter("p", (512, 512), "uniform", {"a": -1.0, "b": 1.0})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("parameter", "spoil", "problem"),
    [
        (NORMAL, lambda t: t[-1, -1:].fill_(math.nan), "1 of 262144 values unfilled"),
        (NORMAL, lambda t: t[0, :2].fill_(-math.inf), "2 infinite"),
        (NORMAL, lambda t: t.add_(0.001), "mean"),
        (NORMAL, lambda t: t.mul_(1.03), "std"),
        (NORMAL, lambda t: t[:16].zero_(), "std"),
        (BOUNDED, lambda t: t[0, 0].fill_(1.25), "expected within -1 and"),
        (Parameter("p", (4,), "ones"), lambda t: t[2].fill_(0), "expected within 1 and 1"),
    ],
)
def test_wrong_fills_fail(parameter, spoil, problem, dtype):
    torch.manual_seed(2)
    tensor = torch.empty(parameter.shape, dtype=dtype)
    parameter.fill(torchinit, tensor)
    spoil(tensor)
    assert problem in "; ".join(checks.check(parameter, tensor))


@native_only
def test_bounds_of_native_fills_are_exact():
    tensor = torch.zeros(512, 512, dtype=torch.bfloat16).uniform_(-1, 1)
    tensor[0, 0] = 1.0
    assert any("expected within" in problem for problem in checks.check(BOUNDED, tensor))


@pytest.mark.parametrize("dtype", FLOATING_DTYPES)
def test_measured_moments(dtype, monkeypatch):
    monkeypatch.setitem(checks._CHUNK, "cpu", 1000)  # several chunks, the last one shorter
    tensor = torch.empty(50, 51, dtype=dtype).normal_(0.5, 1)
    moments = checks.measure(tensor, centre=0.5)
    offsets = tensor.double() - 0.5
    assert moments.first == pytest.approx(offsets.mean().item(), rel=1e-4)
    assert moments.second == pytest.approx(offsets.square().mean().item(), rel=1e-5)
    assert (moments.low, moments.high) == (tensor.min().item(), tensor.max().item())
