"""``torchinit demo``: its report."""

from __future__ import annotations

import io
import json
import sys
from functools import partial

import pytest
from processes import ON, TINY, run_command

import torchinit
from torchinit.commands import cli, table, timing
from torchinit.commands.checks import Failure
from torchinit.commands.report import Report
from torchinit.commands.timing import Timing


@pytest.fixture(autouse=True)
def _one_repeat(monkeypatch):
    monkeypatch.setattr(timing, "_SLICE_REPEATS", 1)


def test_demo_prints_a_table(capsys):
    assert cli.main(TINY) == 0
    out, err = capsys.readouterr()
    rows = {line.split()[0]: line for line in out.splitlines() if line}
    assert {"scheme", "normal", "trunc_normal", "ones", "total"} <= set(rows)
    assert rows["scheme"].split()[1] == "route"
    assert "106,816" in rows["total"]
    assert "measured on a slice" in out
    assert "all 20 parameters pass" in out
    assert "%" not in err


@pytest.mark.parametrize("native_on", ON)
def test_demo_as_json_and_process(native_on):
    code, out, err = run_command(*TINY, "--json", native=native_on)
    assert code == 0, err
    report = json.loads(out)
    assert report["version"] == torchinit.__version__
    assert report["total"]["values"] == 106_816
    assert report["checks"]["passed"]
    assert 0 < report["checks"]["false_alarm_rate"] < 1e-6
    assert {row["route"] for row in report["schemes"]} == {"native" if native_on else "torch"}
    # Without a terminal there is no bar; without a native module there is a note.
    assert "it/s" not in err
    assert "initialising" not in err
    assert ("torch.nn.init fills everything" in err) is not native_on


@pytest.mark.parametrize("dtype", cli.DTYPES)
def test_demo_takes_a_dtype(dtype, capsys):
    assert cli.main([*TINY, "--dtype", dtype, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["dtype"] == dtype


def leave_one_unfilled(original, tensor, **arguments):
    original(tensor.view(-1)[1:], **arguments)
    return tensor


def double_the_std(original, tensor, std, **arguments):
    return original(tensor, std=2 * std, **arguments)


@pytest.mark.parametrize(
    ("broken", "problem"),
    [(leave_one_unfilled, "1 of 32768 values unfilled"), (double_the_std, "std")],
)
def test_demo_fails_if_a_parameter_does(broken, problem, capsys, monkeypatch):
    monkeypatch.setattr(torchinit, "normal_", partial(broken, torchinit.normal_))
    assert cli.main(TINY) == 1
    out = capsys.readouterr().out
    assert "FAILED: 1 of 20 parameters" in out
    assert problem in out

    assert cli.main([*TINY, "--json"]) == 1
    checks = json.loads(capsys.readouterr().out)["checks"]
    assert not checks["passed"]
    assert [failure["name"] for failure in checks["failures"]] == ["model.embed_tokens.weight"]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_bar_on_a_terminal(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert cli.main(TINY) == 0
    assert "initialising" in terminal.getvalue()
    assert "checking" in terminal.getvalue()


REPORT = Report(
    model="m",
    dtype="float32",
    device="cpu",
    seed=0,
    parameters=3,
    timings=[
        Timing("normal", "native", 1000, 4000, 1e-6, 3e-6, 500, 2e-6),
        Timing("ones", "torch", 10, 40, 1e-6, 1e-6, 10, 2e-6),
    ],
    statistical_checks=2,
    failures=[Failure("w", ["mean 1, expected 0"])],
)


def test_total_is_the_sum():
    total = REPORT.total
    assert (total.values, total.nbytes) == (1010, 4040)
    assert (total.seconds, total.torch_seconds, total.zero_seconds) == (2e-6, 4e-6, 4e-6)


def test_table_lines_up():
    lines = table.to_text(REPORT).splitlines()
    rows = [line for line in lines if line.startswith(("scheme", "normal", "ones", "total"))]
    assert len(rows) == 4
    assert len({len(row) for row in rows}) == 1
    assert lines[-2:] == ["FAILED: 1 of 3 parameters", "  w: mean 1, expected 0"]


def test_json_of_a_report():
    report = table.to_json(REPORT)
    assert [row["route"] for row in report["schemes"]] == ["native", "torch"]
    assert report["schemes"][0]["speed_against_torch_nn_init"] == pytest.approx(3)
    assert report["schemes"][0]["torchinit"]["gb_per_second"] == pytest.approx(4)
    assert report["schemes"][0]["torch_nn_init"]["extrapolated"]
    assert report["checks"]["failures"] == [{"name": "w", "problems": ["mean 1, expected 0"]}]
