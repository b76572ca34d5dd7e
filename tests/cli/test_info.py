"""``torchinit info``."""

from __future__ import annotations

import json

import pytest
import torch
from processes import ON, run_command

import torchinit
from torchinit.cli import info
from torchinit.cli.main import main
from torchinit.native import load, torch_private


@pytest.mark.parametrize("native_on", ON)
def test_info_as_process(native_on):
    code, out, err = run_command("info", "--json", native=native_on)
    assert code == 0, err
    state = json.loads(out)
    assert state["version"] == torchinit.__version__
    assert state["streams"] == torchinit.STREAM_VERSION
    assert state["native"]["loaded"] is native_on
    assert state["cuda"]["reason"]
    assert state["which"]["cpu"]["complex64"]["kind"] == "torch"
    assert state["always_torch"] == ["dirac", "eye", "sparse"]
    if native_on:
        assert state["native"]["instruction_set"] in state["native"]["instruction_sets"]
        assert state["which"]["cpu"]["bfloat16"]["kind"] == "native"
    else:
        assert state["native"]["reason"] == "turned off by TORCHINIT_DISABLE_NATIVE"
        assert state["environment"]["TORCHINIT_DISABLE_NATIVE"] == "1"
        assert state["which"]["cpu"]["bfloat16"]["kind"] == "torch"


def test_info_as_text(capsys, monkeypatch):
    monkeypatch.setenv("TORCHINIT_EXAMPLE", "7")
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    for expected in (torchinit.__version__, torch.__version__, load.reason, load.cuda_reason):
        assert expected in out
    assert "TORCHINIT_EXAMPLE=7" in out


def test_info_without_native(monkeypatch):
    monkeypatch.setattr(load, "module", None)
    monkeypatch.setattr(load, "reason", "the native module was not built")
    state = info.collect()
    assert state["native"]["instruction_set"] is None
    assert state["which"]["cpu"]["float32"] == {"kind": "torch", "reason": load.reason}
    assert info._text(state)


@pytest.mark.parametrize(
    ("missing", "expected"),
    [
        ([], "private names    of torch: all found"),
        (
            ["torch._C._a", "torch._C._b"],
            "private names    torch._C._a, torch._C._b: not in this torch, so fills go by the "
            "operators",
        ),
    ],
)
def test_private_names_of_torch(missing, expected, capsys, monkeypatch):
    monkeypatch.setattr(torch_private, "missing", missing)
    assert main(["info"]) == 0
    assert expected in capsys.readouterr().out
    assert main(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["torch_private_missing"] == missing
