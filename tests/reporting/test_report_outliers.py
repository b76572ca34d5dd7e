"""Who is named, by rules and by siblings; and that nobody is where all is right."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
import torch
from report_models import RULES, break_four, llama
from torch import nn

import torchinit
from conftest import long
from made import fill, model_of
from torchinit import Blocks, Normal, Orthogonal, Stack, TruncNormal, Uniform, VarianceScaling, by
from torchinit.reporting.outliers import find_outliers

BY = pytest.mark.parametrize("rules", [RULES, None], ids=["rules", "siblings"])


def names(report) -> list[str]:
    return [outlier.name for outlier in report.outliers]


def number_in(words: str) -> float:
    """The first."""
    return float(re.findall(r"\d[\d.]*", words)[0])


@BY
def test_the_broken_model(rules):
    model = llama(8)
    broken = break_four(model)
    report = torchinit.report_model(model, rules)
    assert names(report) == broken
    double, clipped, constant, nan = report.outliers
    assert number_in(double.problems[0]) == pytest.approx(0.04, rel=0.02)
    assert number_in(double.short) == pytest.approx(2, rel=0.02)
    assert "clipped ±1.0" in clipped.short
    assert constant.short == "constant"
    assert nan.problems == ["1 of 8,192 values NaN"]
    assert all(name in str(report) for name in broken)


@pytest.mark.parametrize("seeds", [range(3), pytest.param(range(3, 20), marks=long)])
def test_a_right_model_of_146_parameters(seeds):
    """A false alarm in any of 20 has the probability 20 * 146 * 1.7e-6, 0.5% at most."""
    for seed in seeds:
        report = torchinit.report_model(llama(16, seed, width=32), RULES)
        assert len(report) == 146
        assert not report.outliers
        assert not find_outliers([replace(row, intended=None) for row in report])  # by siblings
    assert report.false_alarm_rate == pytest.approx(146 * 3 * math.erfc(5 / math.sqrt(2)))


@BY
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_a_right_model_of_coarse_values(rules, dtype):
    assert not torchinit.report_model(llama(6, dtype=dtype, width=128), rules).outliers


def test_fused_queries_keys_and_values_with_the_fan_of_the_whole():
    """Glorot's std of (3 d, d) is sqrt(2 / 4 d); of each of the three it is sqrt(2 / 2 d)."""
    shapes = {f"layers.{i}.attn.qkv.weight": (192, 64) for i in range(3)}
    scheme = VarianceScaling(mode="fan_avg", distribution="uniform")
    rules = {"**": Blocks({"q": 64, "k": 64, "v": 64}, scheme)}
    model = torchinit.init_model_(model_of(shapes), rules, seed=0, device="cpu")
    report = torchinit.report_model(model, rules)
    assert [row.name for row in report][:3] == [f"layers.0.attn.{x}.weight" for x in "qkv"]
    assert [row.role for row in report][:3] == ["q", "k", "v"]
    assert not report.outliers
    nn.init.xavier_uniform_(model.get_parameter("layers.1.attn.qkv.weight"))
    report = torchinit.report_model(model, rules)
    assert names(report) == [f"layers.1.attn.{x}.weight" for x in "qkv"]
    assert number_in(report.outliers[0].short) == pytest.approx(0.5**0.5, rel=0.05)


@pytest.mark.parametrize("dim", [0, 1])
def test_groups_are_measured_as_the_matrix_they_are(dim):
    shape = (96, 64) if dim == 0 else (64, 96)
    rules = {"**": Blocks({"q": 48, "k": 48}, Orthogonal(), dim=dim, groups=3)}
    model = torchinit.init_model_(model_of({"a.qk.weight": shape}), rules, seed=0, device="cpu")
    report = torchinit.report_model(model, rules)
    assert not report.outliers
    assert [row.orthogonality < 1e-5 for row in report] == [True, True]
    with torch.no_grad():
        model.get_parameter("a.qk.weight")[0, 0] += 1.0
    assert "not orthogonal" in torchinit.report_model(model, rules).outliers[0].short


@pytest.mark.parametrize("scheme", [
    Normal(0.02), Normal(0.02, mean=0.1), TruncNormal(0.02, cut=2), TruncNormal(0.02, cut=1),
    Uniform(-0.1, 0.3), Orthogonal(2.0), VarianceScaling(distribution="truncated_normal"),
    "xavier_uniform", by(lambda p: Normal(0.02 / (1 + p.depth))),
])  # fmt: skip
def test_every_scheme_passes_as_itself_and_fails_as_another(scheme):
    shapes = {f"layers.{i}.w.weight": (128, 64) for i in range(3)}
    model = torchinit.init_model_(model_of(shapes), {"**": scheme}, seed=0, device="cpu")
    assert not torchinit.report_model(model, {"**": scheme}).outliers
    other = {"**": Normal(0.5)}
    assert names(torchinit.report_model(model, other)) == list(shapes)


def test_another_law_of_the_same_std():
    values = fill({"layers.0.w": (256, 128)}, Uniform(-(3**0.5), 3**0.5))
    model = nn.ParameterDict({"w": nn.Parameter(values["layers.0.w"])})
    (found,) = torchinit.report_model(model, {"**": Normal(1.0)}).outliers
    assert found.short == "uniform"


def test_stacks_are_matrices():
    shapes = {"layers.0.experts.gate_up_proj": (4, 64, 32)}
    rules = {"**": Stack(Orthogonal())}
    model = torchinit.init_model_(model_of(shapes), rules, seed=0, device="cpu")
    for chosen in (rules, None):
        (row,) = torchinit.report_model(model, chosen)
        assert row.orthogonality < 1e-5
        assert row.fan_in == 32


def test_depth_scaled_siblings_are_alike():
    """GPT-2's o at 1 / sqrt(2 L) is the same in every layer; what falls with depth has a spread."""
    rules = {"**norm.weight": "ones", "**.o_proj.weight": Normal(0.02 / 32**0.5), **RULES}
    assert not torchinit.report_model(llama(16, rules=rules)).outliers
    falling = {"**.o_proj.weight": by(lambda p: Normal(0.02 / (2 * (p.depth + 1)) ** 0.5)), **RULES}
    assert not torchinit.report_model(llama(16, rules=falling)).outliers


def test_two_are_too_few_to_be_siblings():
    model = llama(2)
    with torch.no_grad():
        model.get_parameter("model.layers.1.self_attn.q_proj.weight").mul_(3)
    assert not torchinit.report_model(model).outliers


def test_a_norm_of_another_value():
    model = llama(5)
    with torch.no_grad():
        model.get_parameter("model.layers.2.input_layernorm.weight").fill_(2)
        model.get_parameter("model.layers.3.input_layernorm.weight")[4] = 0.5
    by_siblings, by_rules = torchinit.report_model(model), torchinit.report_model(model, RULES)
    expected = [f"model.layers.{n}.input_layernorm.weight" for n in (2, 3)]
    assert names(by_siblings) == names(by_rules) == expected


def test_a_mean_that_has_moved():
    model = llama(5)
    with torch.no_grad():
        model.get_parameter("model.layers.2.mlp.up_proj.weight").add_(0.002)
    for rules in (RULES, None):
        (found,) = torchinit.report_model(model, rules).outliers
        assert found.short.startswith("mean ")
        assert number_in(found.short) == pytest.approx(0.002, abs=0.001)


def test_rows_of_padding_are_no_values():
    model = nn.ModuleDict({"embed": nn.Embedding(40, 64, padding_idx=3)})
    rules = {"**": Normal(1.0)}
    torchinit.init_model_(model, rules, seed=0)
    (row,) = torchinit.report_model(model, rules)
    assert row.moments.numel == 39 * 64
    assert row.moments.zeros == 0


def test_what_a_callable_gives_is_held_against_siblings():
    rules = {"**.w.weight": lambda tensor: tensor.normal_(), "**": "zeros"}
    shapes = {f"layers.{i}.w.weight": (64, 64) for i in range(4)} | {"b.bias": (3,)}
    model = torchinit.init_model_(model_of(shapes), rules, seed=0, device="cpu")
    assert not torchinit.report_model(model, rules).outliers
    with torch.no_grad():
        model.get_parameter("layers.2.w.weight").mul_(2)
    assert names(torchinit.report_model(model, rules)) == ["layers.2.w.weight"]


@pytest.mark.parametrize("rules", [
    None, {"**": Normal(0.02)}, {"**": Normal(1e-300)}, {"**": Uniform(-1e300, 1e300)},
    {"**": Orthogonal()},
])  # fmt: skip
def test_values_at_the_ends_of_the_range(tmp_path, rules):
    """Squares and ratios of such values are infinite: an outlier is named, and none is an error."""
    sizes = [1e300, 1e-300, 1e300, 1e-320, 1e150, 1e-45, 1e307, 1.0]
    shapes = {f"layers.{n}.q.weight": (8, 8) for n in range(len(sizes))}
    model = model_of(shapes, torch.float64).to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter, size in zip(model.parameters(), sizes, strict=True):
            parameter.copy_(torch.randn(8, 8, generator=generator, dtype=torch.float64) * size)
    report = torchinit.report_model(model, rules)
    if rules is not None:
        assert len(report.outliers) >= 7
    assert str(report)
    pytest.importorskip("matplotlib", reason="comes with the extra report")
    report.save(tmp_path / "report.png")


def test_matrices_of_other_shapes_are_no_siblings():
    """A residual network's first convolutions, by their fan out: all are right."""
    model = nn.Module()
    for stage in range(3):
        blocks = [nn.ModuleDict({"conv1": nn.Conv2d(64, 16 if block else 64, 1, bias=False)})
                  for block in range(4)]  # fmt: skip
        model.add_module(f"layer{stage}", nn.Sequential(*blocks))
    rules = {"**": VarianceScaling(2, mode="fan_out")}
    model = torchinit.init_model_(model, rules, seed=0)
    assert names(torchinit.report_model(model)) == []
    with torch.no_grad():
        model.layer1[2].conv1.weight.mul_(2)
    assert names(torchinit.report_model(model)) == ["layer1.2.conv1.weight"]
