"""The demo judges values as ``report_model`` does."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import nn
from torch.nn import init as torch_init

import torchinit
from torchinit.dtypes import FLOATING_DTYPES
from torchinit.native import load
from torchinit.reporting.goodness_of_fit import ALPHA
from torchinit.reporting.report import judge_values

FILLS = {
    "normal": {"std": 0.02},
    "trunc_normal": {"std": 0.02, "a": -0.04, "b": 0.04},
    "uniform": {"a": -0.1, "b": 0.1},
    "ones": {},
}


def filled(name, tensor, library=torchinit):
    return getattr(library, f"{name}_")(tensor, **FILLS[name])


class Filled(nn.Module):
    """One parameter, filled by its constructor."""

    def __init__(self, name, shape, dtype):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape, dtype=dtype))
        filled(name, self.weight, torch_init)


def problems_of(name, tensor):
    """What is wrong with a tensor, if its values should be those of a fill."""
    model = Filled(name, tensor.shape, tensor.dtype)
    model.weight.data = tensor
    found = judge_values(model, lambda: Filled(name, tensor.shape, tensor.dtype)).outliers
    return [problem for outlier in found for problem in outlier.problems]


@pytest.mark.parametrize("dtype", FLOATING_DTYPES)
@pytest.mark.parametrize("library", [torchinit, torch_init])
@pytest.mark.parametrize("name", FILLS)
def test_correct_fills_pass(name, library, dtype, monkeypatch):
    if library is torch_init:
        monkeypatch.setattr(load, "module", None)
    torch.manual_seed(1)
    tensor = filled(name, torch.empty(512, 384, dtype=dtype), library)
    assert problems_of(name, tensor) == []


def test_the_false_alarm_rate_is_of_both_sides():
    assert pytest.approx(2 * stats.norm.sf(5), rel=1e-6) == ALPHA


def test_constants_are_rounded_to_the_dtype():
    rules = {"**": torchinit.Constant(0.1)}
    model = nn.Linear(2, 2, bias=False, dtype=torch.bfloat16)
    for value, is_right in ((0.1, True), (0.11, False)):
        nn.init.constant_(model.weight, value)
        assert bool(torchinit.report_model(model, rules).outliers) is not is_right


def test_every_parameter_is_checked():
    def build():
        return nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))

    model = build()
    with torch.no_grad():
        model[1].bias[3] = math.nan
        model[0].weight.mul_(2)
    failures = {one.name: one.problems for one in judge_values(model, build).outliers}
    assert list(failures) == ["0.weight", "1.bias"]
    assert "1 of 64 values NaN" in failures["1.bias"]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_nothing_is_known_of_is_finite(value):
    rules = {"**": lambda tensor: tensor.fill_(1)}
    model = nn.Linear(5, 1, bias=False)
    assert not torchinit.report_model(model, rules).outliers
    with torch.no_grad():
        model.weight[0, 1] = value
    assert torchinit.report_model(model, rules).outliers


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "spoil", "problem"),
    [
        ("normal", lambda t: t[-1, -1:].fill_(math.nan), "1 of 262,144 values NaN"),
        ("normal", lambda t: t[0, :2].fill_(-math.inf), "2 of 262,144 values infinite"),
        ("normal", lambda t: t.add_(0.001), "mean"),
        ("normal", lambda t: t.mul_(1.03), "std"),
        ("normal", lambda t: t[:16].zero_(), "std"),
        ("uniform", lambda t: t[0, 0].fill_(0.125), "to 0.125, within -0.1"),
        ("ones", lambda t: t[2].fill_(0), "values from 0 to 1, all 1 intended"),
    ],
)
def test_wrong_fills_fail(name, spoil, problem, dtype):
    torch.manual_seed(2)
    tensor = filled(name, torch.empty(512, 512, dtype=dtype))
    spoil(tensor)
    assert problem in "; ".join(problems_of(name, tensor))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_uniform_of_the_right_mean_and_std_is_no_normal(dtype):
    """Neither for the demo nor for a report, which used to disagree."""
    torch.manual_seed(3)
    bound = 0.02 * 3**0.5
    tensor = torch.empty(512, 512, dtype=dtype).uniform_(-bound, bound)
    expected = ["uniform, normal(mean=0, std=0.02) intended"]
    assert problems_of("normal", tensor) == expected
    model = nn.Linear(512, 512, bias=False)
    model.weight.data = tensor
    report = torchinit.report_model(model, {"**": torchinit.Normal(0.02)})
    assert [one.problems for one in report.outliers] == [expected]


def test_matrices_are_measured_where_they_are_to_be_orthogonal():
    class Orthogonal(nn.Linear):
        def reset_parameters(self):
            nn.init.orthogonal_(self.weight)

    def build():
        return Orthogonal(64, 64, bias=False)

    model = build()
    assert not judge_values(model, build).outliers
    nn.init.normal_(model.weight, std=1 / 8)
    assert any("orthogonality error" in one for one in judge_values(model, build).outliers[0][1])
