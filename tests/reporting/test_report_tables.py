"""What a report prints: by role, in full, and as JSON."""

from __future__ import annotations

import json
import pickle
from contextlib import nullcontext

import pytest
import torch
from report_models import RULES, llama, llama_shapes
from torch import nn

import torchinit
from torchinit.cli.main import main


def test_tables_fit():
    model = llama(3)
    report = torchinit.report_model(model)
    lines = report.table(full=True).splitlines()
    assert max(map(len, lines)) <= 100
    assert max(map(len, report.table().splitlines())) <= 100
    assert len(lines) == len(llama_shapes(3)) + 4
    assert lines[2] == "model.layers:"
    assert any(line.startswith("  0.self_attn.q_proj ") for line in lines)
    assert repr(report) == str(report) == report.table()
    assert report[0].name == "model.embed_tokens.weight"


def test_the_table_by_role():
    model = llama(3)
    with torch.no_grad():
        model.get_parameter("model.layers.1.self_attn.q_proj.weight").mul_(2)
        model.get_parameter("model.layers.2.self_attn.o_proj.weight").fill_(0.5)
    report = torchinit.report_model(model, RULES)
    head, *lines = report.table().splitlines()
    assert head.split() == ["role", "count", "shape", "fit", "mean", "std", "gain", "norm"]
    found = {line.split()[0]: line.split() for line in lines[:9]}
    roles = ["embedding", "!q", "k", "v", "!o", "up", "gate", "down", "norm"]
    assert list(found) == roles
    ranges = [cell.split("…") for line in lines[:9] for cell in line.split() if "…" in cell]
    assert len(ranges) > 20
    assert all(float(low) < float(high) for low, high in ranges)
    assert found["norm"][1:] == ["7", "64", "ones", "1", "0"]
    assert found["!q"][1:4] == ["3", "64x64", "normal"]
    low, high = map(float, found["!q"][5].split("…"))
    stds = [row.moments.std for row in report if row.role == "q"]
    assert (low, high) == pytest.approx((min(stds), max(stds)), rel=0.01)
    assert " normal, constant " in lines[4]
    assert lines[9:11] == ["", "2 outliers among 29 parameters "
                           "(false alarm: 1 in 20,049 correct models):"]  # fmt: skip
    assert lines[11] == "  model.layers.1.self_attn.q_proj.weight"
    assert len(report.table(full=True).splitlines()) == len(lines) + 1 - 9 + 30


def test_few_parameters_have_a_line_each():
    report = torchinit.report_model(nn.Linear(64, 32, bias=False))
    assert report.table() == report.table(full=True)
    assert "1 parameter, no outliers (false alarm: 1 in " in report.table()
    assert report.table().splitlines()[1].startswith("weight ")
    wrong = torchinit.report_model(nn.Linear(64, 32, bias=False), {"**": "zeros"})
    assert "\n1 outlier among 1 parameter (" in wrong.table()


def test_full_names_where_a_number_is_part_of_one():
    model = nn.Module()
    for layer in (1, 2):
        model.add_module(
            f"layer{layer}", nn.Sequential(nn.ModuleDict({"conv1": nn.Conv2d(2, 2, 3)}))
        )
    lines = torchinit.report_model(model).table(full=True).splitlines()
    assert [line.split()[0] for line in lines[1:5]] == [
        "layer1.0.conv1", "layer1.0.conv1.bias", "layer2.0.conv1", "layer2.0.conv1.bias",
    ]  # fmt: skip


def test_a_report_as_json():
    model = llama(3)
    break_it = model.get_parameter("model.layers.1.self_attn.q_proj.weight")
    with torch.no_grad():
        break_it.fill_(torch.nan)
    report = torchinit.report_model(model, RULES, against=llama(3, seed=1))
    found = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert set(found) == {
        "title", "values", "false_alarm_rate", "rows", "outliers", "unmeasured", "against",
    }  # fmt: skip
    assert len(found["rows"]) == len(found["against"]["rows"]) == 29
    assert found["values"] == sum(parameter.numel() for parameter in model.parameters())
    assert found["against"]["outliers"] == found["unmeasured"] == []
    assert found["outliers"] == [{
        "name": "model.layers.1.self_attn.q_proj.weight", "problems": ["4,096 of 4,096 values NaN"],
    }]  # fmt: skip
    rows = {row["name"]: row for row in found["rows"]}
    broken, right = (rows[f"model.layers.{n}.self_attn.q_proj.weight"] for n in (1, 2))
    assert (broken["mean"], broken["nans"], broken["norm"]) == (None, 4096, None)
    assert right | {"std": 0, "mean": 0, "gain": 0, "kurtosis": 0, "min": 0, "max": 0, "norm": 0,
                    "orthogonality": 0} == {
        "name": "model.layers.2.self_attn.q_proj.weight",
        "parameter": "model.layers.2.self_attn.q_proj.weight", "shape": [64, 64],
        "dtype": "float32", "role": "q", "stack": "model.layers", "depth": [2], "fan_in": 64,
        "distribution": "normal", "intended": "normal(mean=0, std=0.02)", "values": 4096,
        "zeros": 0, "nans": 0, "infinities": 0, "mean": 0, "std": 0, "kurtosis": 0, "min": 0,
        "max": 0, "gain": 0, "norm": 0, "orthogonality": 0, "intended_mean": 0.0,
        "intended_std": 0.02, "intended_gain": pytest.approx(0.16),
    }  # fmt: skip


@pytest.mark.parametrize(
    "rule",
    [
        torchinit.Normal(0.1),
        torchinit.Uniform(-1.0, 1.0),
        torchinit.TruncNormal(0.1),
        torchinit.Orthogonal(),
        "zeros",
        "keep",
    ],  # fmt: skip,
)
def test_other_processes_can_be_sent_a_report(rule):
    report = torchinit.report_model(nn.Linear(40, 30), {"weight": rule, "bias": "zeros"})
    sent = pickle.loads(pickle.dumps(report))
    assert str(sent) == str(report)
    assert sent.to_dict() == report.to_dict()
    assert list(sent) == list(report)
    assert len({*sent, *report}) == 2
    assert list(sent) != list(torchinit.report_model(nn.Linear(40, 30)))
    laws = [None if one[0].intended is None else one[0].intended.law for one in (report, sent)]
    if laws[0] is not None and laws[0].density is not None:
        assert laws[0].density(0.01) == laws[1].density(0.01) > 0


def test_the_commands_options(tmp_path, capsys):
    safetensors = pytest.importorskip("safetensors.torch", reason="comes with the extra test")
    path = str(tmp_path / "model.safetensors")
    safetensors.save_file(llama(3).state_dict(), path)
    printed = []
    for options in ([], ["--all"], ["--json"]):
        assert main(["report", path, *options]) == 0
        printed.append(capsys.readouterr().out.removesuffix("\n"))
    report = torchinit.report_model(path)
    assert printed[:2] == [report.table(), report.table(full=True)]
    assert json.loads(printed[2]) == report.to_dict()


def test_help_says_what_the_exit_codes_mean(capsys):
    assert main(["report", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "The exit code is 1 if a parameter has wrong values, 2 if anything could not" in said


def test_a_bar_while_it_measures(monkeypatch):
    """A terminal is told after a second's work, far less than a gibibyte."""
    model = nn.Linear(64, 64)
    calls = []

    def progress(title, total, *, least):
        calls.append((title, total, least))
        return nullcontext(lambda done: calls.append(done))

    monkeypatch.setattr("torchinit.reporting.report.progress", progress)
    torchinit.report_model(model)
    assert calls == [("measuring", 4 * (64 * 64 + 64), 2**27), 4 * 64 * 64, 4 * 64]
