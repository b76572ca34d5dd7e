"""The command line: usage, and what needs no torch."""

from __future__ import annotations

import pytest
from processes import BARE, TINY, finish, run_command, start

import torchinit
from torchinit.commands import cli
from torchinit.commands.models import MODELS
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
    ],
)
def test_bad_usage(arguments, capsys):
    assert cli.main(arguments) == 2
    assert "usage: torchinit" in capsys.readouterr().err


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"torchinit {torchinit.__version__}\n"


def test_dtypes_are_those_that_are_filled():
    assert [f"torch.{name}" for name in cli.DTYPES] == list(map(str, FLOATING_DTYPES))


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["--version"], 0, [torchinit.__version__]),
        (["--help"], 0, ["demo", "info"]),
        (["demo", "--help"], 0, [*MODELS, *cli.DTYPES]),
        (["demo", "--model", "gpt5"], 2, ["invalid choice: 'gpt5'"]),
    ],
)
def test_help_and_usage_need_no_torch(arguments, code, expected):
    program = f"""{BARE}
try:
    sys.exit(cli.main({arguments}))
finally:
    assert not {{"torch", "numpy", "tqdm"}} & set(sys.modules)
"""
    found, out, err = finish(start("-c", program))
    assert found == code, err
    assert "Traceback" not in err
    for text in expected:
        assert text in out + err


def test_module_and_script_are_the_same_command():
    code, out, err = run_command("--version")
    assert (code, out, err) == (0, f"torchinit {torchinit.__version__}\n", "")
    program = "import sys; from torchinit.commands.cli import main; sys.exit(main(['--version']))"
    assert finish(start("-c", program)) == (code, out, err)


def test_demo_writes_notes_to_standard_error_alone(tmp_path):
    out = tmp_path / "out"
    with out.open("w") as stdout:
        code, _, err = run_command(*TINY, native=False, stdout=stdout)
    assert code == 0
    assert err.startswith("torchinit: torch.nn.init fills everything")
    assert "torchinit:" not in out.read_text()
