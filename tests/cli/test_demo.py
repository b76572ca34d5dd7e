"""``torchinit demo``: what it prints."""

from __future__ import annotations

import io
import json
import sys
from types import SimpleNamespace

import pytest
import torch
from processes import ON, TINY, run_command

import torchinit
from torchinit.cli import demo
from torchinit.cli.demo import WAYS, Timing
from torchinit.cli.main import DTYPES, main
from torchinit.reporting.outliers import Outlier


def test_demo_prints_a_table(capsys):
    assert main(TINY) == 0
    out, err = capsys.readouterr()
    assert "136,960 values in 28 parameters" in out
    for way in WAYS:
        assert f"\n{way.title} " in out
    assert "\nallocating and zeroing " in out
    assert "all 28 parameters pass, each of 2 times" in out
    assert "%" not in err


@pytest.mark.parametrize("native_on", ON)
def test_demo_as_json_and_process(native_on):
    code, out, err = run_command(*TINY, "--json", native=native_on)
    assert code == 0, err
    report = json.loads(out)
    assert report["version"] == torchinit.__version__
    assert (report["values"], report["bytes"]) == (136_960, 2 * 136_960)
    assert list(report["ways"]) == [*(way.name for way in WAYS), "zero"]
    assert report["ways"]["plain"]["times_faster_than_plain"] == 1
    assert report["ways"]["zero"]["times_as_long_as_zeroing"] == 1
    assert report["checks"]["passed"]
    assert 0 < report["checks"]["false_alarm_rate"] < 1e-4
    # No bar without a terminal; a note without a native module.
    assert "it/s" not in err
    assert "steps" not in err
    assert ("torch.nn.init fills everything" in err) is not native_on


@pytest.mark.parametrize("dtype", DTYPES)
def test_demo_takes_a_dtype(dtype, capsys):
    assert main([*TINY, "--dtype", dtype, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["dtype"] == dtype
    assert report["bytes"] == report["values"] * getattr(torch, dtype).itemsize


def leave_one_unfilled(weight):
    weight[0, 0] = float("nan")


def double_the_std(weight):
    weight.mul_(2)


def make_uniform(weight):
    """Of the right mean and std."""
    weight.uniform_(-0.02 * 3**0.5, 0.02 * 3**0.5)


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (leave_one_unfilled, "1 of 32,768 values NaN"),
        (double_the_std, "std"),
        (make_uniform, "uniform, normal(mean=0, std=0.02) intended"),
    ],
)
def test_demo_fails_if_a_parameter_does(spoil, problem, capsys, monkeypatch):
    def take(way, *arguments):
        model, timing = original(way, *arguments)
        if way.name == "build_model":
            spoil(model.token.weight.data)
        return model, timing

    original = demo.take
    monkeypatch.setattr(demo, "take", take)
    assert main(TINY) == 1
    out = capsys.readouterr().out
    assert "FAILED, by build_model(): 1 of 28 parameters" in out
    assert problem in out

    assert main([*TINY, "--json"]) == 1
    checks = json.loads(capsys.readouterr().out)["checks"]
    assert not checks["passed"]
    assert list(checks["failures"]) == ["build_model"]
    # a tied parameter has the smaller of its names
    assert [failure["name"] for failure in checks["failures"]["build_model"]] == ["head.weight"]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_bar_on_a_terminal(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert main(TINY) == 0
    assert WAYS[0].title in terminal.getvalue()
    assert "checking" in terminal.getvalue()


FAILED = SimpleNamespace(
    outliers=[Outlier("w", ["mean 1, 0 intended"], "mean 1")], false_alarm_rate=1e-6
)
RESULT = demo.result_of(
    {"model": "m", "dtype": "float32", "device": "cpu", "seed": 0},
    [torch.empty(10), torch.empty(40, 25), torch.empty(0)],
    [Timing("plain", 3e-6), Timing("build_model", 1e-6), Timing("zero", 2e-6)],
    {"build_model": FAILED},
)


def test_table_lines_up():
    lines = demo.to_text(RESULT).splitlines()
    table = lines[lines.index("") + 1 : lines.index("", 4)]
    assert len(table) == 4
    assert len({len(line) for line in table}) == 1
    assert lines[-2:] == [
        "FAILED, by build_model(): 1 of 3 parameters",
        "  w: mean 1, 0 intended",
    ]


def test_json_of_a_result():
    assert RESULT["bytes"] == 4040
    ours = RESULT["ways"]["build_model"]
    assert ours["seconds"] == 1e-6
    assert ours["gb_per_second"] == pytest.approx(4.04)
    assert ours["times_faster_than_plain"] == pytest.approx(3)
    assert ours["times_as_long_as_zeroing"] == pytest.approx(0.5)
    failures = {"build_model": [{"name": "w", "problems": ["mean 1, 0 intended"]}]}
    assert RESULT["checks"]["failures"] == failures
