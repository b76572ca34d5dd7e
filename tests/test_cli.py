"""The command line, its demo and the data of its models."""

import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from scipy import stats
from torch.nn import init as torch_init

import torchinit
from torchinit import cli, demo, info, models, native
from torchinit.dtypes import FLOATING_DTYPES
from torchinit.models import Parameter

TINY = ["demo", "--model", "tiny", "--device", "cpu"]
ON = [False] if native.module is None else [True, False]


@pytest.fixture(autouse=True)
def _small_slices(monkeypatch):
    monkeypatch.setattr(demo, "_SLICE_REPEATS", 1)


def start(*arguments, disable_native=False, **options):
    """Starts ``python -m torchinit``, all of its streams piped."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(torchinit.__file__).parents[1]),
        "TORCHINIT_DISABLE_NATIVE": "1" if disable_native else "",
    }
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        **options,
    )


def finish(process):
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


# Models


@pytest.mark.parametrize(
    ("name", "parameters", "values"),
    [
        ("llama-3.2-1b", 146, 1_235_814_400),
        ("gpt2-medium", 292, 354_823_168),
        ("vit-large", 296, 304_326_632),
        ("tiny", 20, 106_816),
    ],
)
def test_published_totals(name, parameters, values):
    model = models.MODELS[name]()
    assert len(model.parameters) == parameters
    assert model.numel == values
    assert len({parameter.name for parameter in model.parameters}) == parameters


def test_models_are_ordered_by_falling_size():
    sizes = [make().numel for make in models.MODELS.values()]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize(
    ("scheme", "arguments", "frozen"),
    [
        ("normal", {"mean": 1.0, "std": 2.0}, stats.norm(1, 2)),
        ("uniform", {"a": -1.0, "b": 3.0}, stats.uniform(-1, 4)),
        ("trunc_normal", {"std": 0.02, "a": -0.06, "b": 0.06}, stats.truncnorm(-3, 3, 0, 0.02)),
        (
            "trunc_normal",
            {"mean": 1.0, "std": 2.0, "a": 0.0, "b": 3.0},
            stats.truncnorm(-0.5, 1, 1, 2),
        ),
        ("trunc_normal", {"std": 0.02}, stats.norm(0, 0.02)),
        # gain 1 / sqrt(3) for fan_in 12: U(-r, r) with r = 1 / sqrt(12)
        ("kaiming_uniform", {"a": math.sqrt(5)}, stats.uniform(-(12**-0.5), 2 * 12**-0.5)),
    ],
)
def test_distributions_agree_with_scipy(scheme, arguments, frozen):
    found = Parameter("p", (8, 3, 2, 2), scheme, arguments).distribution()
    mean, variance, excess = (float(moment) for moment in frozen.stats("mvk"))
    assert found.mean == pytest.approx(mean, abs=1e-12)
    assert found.std == pytest.approx(math.sqrt(variance))
    assert found.kurtosis == pytest.approx(3 + excess)


# Checks


@pytest.mark.parametrize("dtype", FLOATING_DTYPES)
@pytest.mark.parametrize("library", [torchinit, torch_init])
def test_correct_fills_pass(library, dtype, monkeypatch):
    if library is torch_init:
        monkeypatch.setattr(native, "module", None)
    torch.manual_seed(1)
    seen = set()
    for parameter in models.vit_large().parameters[:16]:
        tensor = torch.empty(parameter.shape, dtype=dtype)
        parameter.fill(library, tensor)
        assert demo.check(parameter, tensor) == []
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
    assert problem in "; ".join(demo.check(parameter, tensor))


@pytest.mark.native
@pytest.mark.skipif(native.module is None, reason=native.reason)
def test_bounds_of_native_fills_are_exact():
    tensor = torch.zeros(512, 512, dtype=torch.bfloat16).uniform_(-1, 1)
    tensor[0, 0] = 1.0
    assert any("expected within" in problem for problem in demo.check(BOUNDED, tensor))


@pytest.mark.parametrize("dtype", FLOATING_DTYPES)
def test_measured_moments(dtype, monkeypatch):
    monkeypatch.setitem(demo._CHUNK, "cpu", 1000)  # several chunks, the last one shorter
    tensor = torch.empty(50, 51, dtype=dtype).normal_(0.5, 1)
    moments = demo.measure(tensor, centre=0.5)
    offsets = tensor.double() - 0.5
    assert moments.first == pytest.approx(offsets.mean().item(), rel=1e-4)
    assert moments.second == pytest.approx(offsets.square().mean().item(), rel=1e-5)
    assert (moments.low, moments.high) == (tensor.min().item(), tensor.max().item())


# The demo


def test_demo_prints_a_table(capsys):
    assert cli.main(TINY) == 0
    out, err = capsys.readouterr()
    rows = {line.split()[0]: line for line in out.splitlines() if line}
    assert {"normal", "trunc_normal", "ones", "total"} <= set(rows)
    assert "106,816" in rows["total"]
    assert "measured on a slice" in out
    assert "all 20 parameters pass" in out
    assert "%" not in err


@pytest.mark.parametrize("native_on", ON)
def test_demo_as_json_and_process(native_on):
    code, out, err = finish(start("-m", "torchinit", *TINY, "--json", disable_native=not native_on))
    assert code == 0, err
    report = json.loads(out)
    assert report["total"]["values"] == 106_816
    assert report["checks"]["passed"]
    assert 0 < report["checks"]["false_alarm_rate"] < 1e-6
    assert {row["path"] for row in report["schemes"]} == {"native" if native_on else "torch"}
    # Without a terminal there is no bar; without a native module there is a note.
    assert "it/s" not in err
    assert "initialising" not in err
    assert ("torch.nn.init fills everything" in err) is not native_on


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_demo_takes_a_dtype(dtype, capsys):
    assert cli.main([*TINY, "--dtype", dtype, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["dtype"] == dtype


def test_seed_decides_the_values():
    def values(seed):
        filled = demo.allocate(models.tiny(), torch.float32, torch.device("cpu"))
        demo.initialise(filled, seed)
        return torch.cat([tensor.flatten() for _, tensor in filled])

    assert values(3).equal(values(3))
    assert not values(3).equal(values(4))


def test_torch_is_timed_on_a_slice(capsys, monkeypatch):
    monkeypatch.setitem(demo._SLICE, "cpu", 5000)
    assert cli.main([*TINY, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    normal, trunc_normal, ones = report["schemes"]
    assert normal["torch_nn_init"]["measured_on_values"] == 4992  # 78 rows of 64
    assert normal["torch_nn_init"]["extrapolated"]
    assert trunc_normal["torch_nn_init"]["measured_on_values"] == 4096 + 896
    assert not ones["torch_nn_init"]["extrapolated"]


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


# Interrupts


def test_interrupt_in_process(capsys, monkeypatch):
    def interrupted(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "check_all", interrupted)
    assert cli.main(TINY) == 130
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1] == "torchinit: interrupted"


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no SIGINT to one process")
def test_interrupt_from_outside():
    program = (
        "import sys, time, torchinit\n"
        "from torchinit import cli\n"
        "def slow(tensor, **arguments):\n"
        "    print('filling', flush=True)\n"
        "    time.sleep(60)\n"
        "torchinit.normal_ = slow\n"
        f"sys.exit(cli.main({TINY}))\n"
    )
    process = start("-c", program)
    assert process.stdout is not None
    assert process.stdout.readline() == "filling\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    code, out, err = finish(process)
    assert code == 130
    assert out == ""
    assert err.splitlines()[-1] == "torchinit: interrupted"
    assert "Traceback" not in err


# Memory


def test_small_memory_takes_a_smaller_model(capsys, monkeypatch):
    monkeypatch.setattr(demo, "available_memory", lambda _device: 2**20)
    assert cli.main(["demo", "--device", "cpu", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["model"] == "tiny Llama"
    assert "Llama 3.2 1B needs 2.9 GiB and 0.0 GiB are available: taking tiny Llama" in err


@pytest.mark.parametrize(
    ("gigabytes", "title"),
    [
        (None, "Llama 3.2 1B"),
        (4, "Llama 3.2 1B"),
        (2, "GPT-2 medium"),
        (0.8, "ViT-L/16"),
        (0, "tiny Llama"),
    ],
)
def test_choice_of_model(gigabytes, title):
    available = None if gigabytes is None else int(gigabytes * 1e9)
    model, note = demo.choose_model("llama-3.2-1b", torch.bfloat16, available)
    assert model.title == title
    assert bool(note) == (title != "Llama 3.2 1B")


def test_memory_limits(tmp_path):
    assert demo.available_memory(torch.device("cpu")) > 2**20
    assert demo._cgroup_memory(tmp_path) is None
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 150\n")
    assert demo._cgroup_memory(tmp_path) == 450
    (tmp_path / "memory.max").write_text("max\n")
    assert demo._cgroup_memory(tmp_path) is None


def test_failed_allocation(capsys, monkeypatch):
    huge = models.Model("huge", (Parameter("p", (2**40, 2**20), "ones"),))
    monkeypatch.setattr(demo, "choose_model", lambda *_: (huge, ""))
    assert cli.main(TINY) == 1
    assert "torchinit: huge does not fit into memory" in capsys.readouterr().err


# info


@pytest.mark.parametrize("native_on", ON)
def test_info_as_process(native_on):
    code, out, err = finish(
        start("-m", "torchinit", "info", "--json", disable_native=not native_on)
    )
    assert code == 0, err
    state = json.loads(out)
    assert state["version"] == torchinit.__version__
    assert state["native"]["loaded"] is native_on
    assert state["cuda"]["reason"]
    assert state["which"]["cpu"]["complex64"]["path"] == "torch"
    if native_on:
        assert state["native"]["instruction_set"] in state["native"]["instruction_sets"]
        assert state["which"]["cpu"]["bfloat16"]["path"] == "native"
    else:
        assert state["native"]["reason"] == "turned off by TORCHINIT_DISABLE_NATIVE"
        assert state["environment"]["TORCHINIT_DISABLE_NATIVE"] == "1"
        assert state["which"]["cpu"]["bfloat16"]["path"] == "torch"


def test_info_as_text(capsys, monkeypatch):
    monkeypatch.setenv("TORCHINIT_EXAMPLE", "7")
    assert cli.main(["info"]) == 0
    out = capsys.readouterr().out
    for expected in (torchinit.__version__, torch.__version__, native.reason, native.cuda_reason):
        assert expected in out
    assert "TORCHINIT_EXAMPLE=7" in out


def test_info_without_native(monkeypatch):
    monkeypatch.setattr(native, "module", None)
    monkeypatch.setattr(native, "reason", "the native module was not built")
    state = info.collect()
    assert state["native"]["instruction_set"] is None
    assert state["which"]["cpu"]["float32"] == {"path": "torch", "reason": native.reason}
    assert info._text(state)


# Usage


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["dmeo"],
        ["demo", "--model", "gpt5"],
        ["demo", "--dtype", "int8"],
        ["demo", "--device", "nowhere"],
        ["demo", "--device", "meta"],
        ["demo", "--device", "cuda:99"],
        ["demo", "--seed", "-1"],
        ["demo", "--seed", "x"],
    ],
)
def test_bad_usage(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(arguments)
    assert exit_.value.code == 2
    assert "usage: torchinit" in capsys.readouterr().err


def test_version(capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["--version"])
    assert exit_.value.code == 0
    assert torchinit.__version__ in capsys.readouterr().out
