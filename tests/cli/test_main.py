"""The command line: usage, and what works without importing torch."""

from __future__ import annotations

import json

import pytest
from processes import TINY, finish, lines_but_of_torch, run_command, start

import torchinit
from torchinit.cli import demo, demo_models
from torchinit.cli.demo_models import MODELS
from torchinit.cli.main import DTYPES, main
from torchinit.dtypes import FLOATING_DTYPES


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
        ["report", "x", "--dark"],
        ["report", "x", "--all", "--json"],
        ["demo", "x"],
        ["checkpoint"],
        ["checkpoint", "config.json", "--seed", "1", "out", "more"],
        ["checkpoint", "config.json", "--seed", "1"],
        ["report", "checkpoint", "--seed", "1"],
        ["report", "checkpoint", "--format", "**=fp8"],
        ["info", "--all"],
    ],
)
def test_bad_usage(arguments, capsys):
    assert main(arguments) == 2
    command = f" {arguments[0]}" if len(arguments) > 1 or arguments == ["checkpoint"] else ""
    assert f"usage: torchinit{command} [" in capsys.readouterr().err


def test_options_between_config_and_out(capsys):
    assert main(["checkpoint", "nowhere.json", "--dtype", "bf16", "out", "--seed", "1"]) == 1
    assert capsys.readouterr().err == "torchinit: nowhere.json: No such file or directory\n"


@pytest.mark.parametrize("short", ["fp32", "bf16", "fp16"])
def test_short_dtypes(short, capsys):
    assert main([*TINY, "--dtype", short, "--json"]) == 0
    name = {"fp": "float", "bf": "bfloat"}[short[:2]]
    assert json.loads(capsys.readouterr().out)["dtype"] == name + short[2:]


def test_a_model_that_needs_transformers(capsys, monkeypatch):
    monkeypatch.setattr(demo_models, "has_transformers", lambda: False)
    assert main(["demo", "--model", "gpt2-medium"]) == 2
    err = capsys.readouterr().err
    assert "'gpt2-medium' needs Transformers 5: pip install 'torchinit[demo]'" in err


def test_without_transformers_a_model_of_torch_is_taken(capsys, monkeypatch):
    monkeypatch.setattr(demo_models, "has_transformers", lambda: False)
    monkeypatch.setattr(demo, "available_memory", lambda _device: 0)
    assert main(["demo", "--device", "cpu", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["model"] == MODELS["tiny"].title
    first, second = lines_but_of_torch(err)
    assert first.startswith("torchinit: Transformers 5 is not installed (pip install ")
    assert first.endswith(f": taking {MODELS['decoder'].title}")
    assert second.endswith(f"taking {MODELS['tiny'].title}")


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"torchinit {torchinit.__version__}\n"


def test_dtypes_are_those_that_are_filled():
    assert [f"torch.{name}" for name in DTYPES] == list(map(str, FLOATING_DTYPES))


@pytest.fixture
def script(tmp_path):
    """The script that pip writes for the command."""
    path = tmp_path / "torchinit"
    path.write_text("import sys\nfrom torchinit.cli.main import main\nsys.exit(main())\n")
    return path


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["--version"], 0, [torchinit.__version__]),
        (["--help"], 0, ["demo", "info"]),
        (["demo", "--help"], 0, [*MODELS, *DTYPES]),
        (["demo", "--model", "gpt5"], 2, ["invalid choice: 'gpt5'"]),
        (["checkpoint", "config.json"], 2, ["required: OUT"]),
    ],
)
@pytest.mark.parametrize("is_module", [True, False])
def test_help_and_usage_need_no_torch(is_module, arguments, code, expected, script):
    run = ["-m", "torchinit"] if is_module else [script]
    found, out, err = finish(start("-X", "importtime", *run, *arguments))
    assert found == code, err
    assert "Traceback" not in err
    imported = {line.rpartition("|")[2].strip() for line in err.splitlines()}
    assert {"torchinit", "torchinit.cli.main"} <= imported
    assert not {"torch", "numpy", "tqdm", "transformers"} & imported
    for text in expected:
        assert text in out + err


LIBRARY = """
import sys
before = "torch" in sys.modules
import torchinit
print(before, "torch" in sys.modules, torchinit.__version__, "torch" in sys.modules)
from torchinit import *
import torch
normal_(torch.empty(3))
torch.ops.torchinit.normal_(torch.empty(3), torch.tensor(1), 0.0, 1.0)
print(sorted(torchinit.__all__) == sorted({*torchinit.__all__} & {*dir(torchinit)}))
try:
    torchinit.no_such_name
except AttributeError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("script", "imports_torch"), [("torchinit", False), ("train.py", True), ("-m", True)]
)
def test_all_but_the_command_have_everything_after_the_import(tmp_path, script, imports_torch):
    """A program that has the command's name has it when it first asks for a name."""
    arguments = [tmp_path / script, "-m", "torchinit"]
    if script == "-m":  # of another package, that imports torchinit
        package = tmp_path / "training" / "__init__.py"
        package.parent.mkdir()
        package.with_name("__main__.py").touch()
        arguments = ["-m", "training", "torchinit"]
    (package if script == "-m" else tmp_path / script).write_text(LIBRARY)
    code, out, err = finish(start(*arguments, path=[tmp_path]))
    assert code == 0, err
    assert out.splitlines() == [
        f"False {imports_torch} {torchinit.__version__} {imports_torch}",
        "True",
        "module 'torchinit' has no attribute 'no_such_name'",
    ]


def test_module_and_script_are_the_same_command(script):
    code, out, err = finish(start("-m", "torchinit", "--version"))
    assert (code, out, err) == (0, f"torchinit {torchinit.__version__}\n", "")
    assert finish(start(script, "--version")) == (code, out, err)


def test_demo_writes_notes_to_standard_error_alone():
    code, out, err = run_command(*TINY, native=False)
    assert code == 0
    assert err.startswith("torchinit: torch.nn.init fills everything")
    assert "torchinit:" not in out
