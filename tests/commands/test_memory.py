"""How much memory there is, and which model fits into it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from processes import TINY, lines_but_of_torch

from torchinit.commands import cli, memory, models
from torchinit.commands.models import MODELS, Model

CPU = torch.device("cpu")
HUGE = Model("huge", 2**58, {})
LESS_HUGE = Model("less huge", 2**56, {})
LLAMA, DECODER, GPT2, VIT, T5, SMALL, SMALLEST = (model.title for model in MODELS.values())


def test_small_memory_takes_a_smaller_model(capsys, monkeypatch):
    monkeypatch.setattr(models, "has_transformers", lambda: True)
    monkeypatch.setattr(memory, "available_memory", lambda _device: 2**20)
    assert cli.main(["demo", "--device", "cpu", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["model"] == SMALLEST
    assert lines_but_of_torch(err) == [
        f"torchinit: {LLAMA} needs 3.5 GiB and 0.0 GiB are available: taking {SMALLEST}"
    ]


@pytest.mark.parametrize(
    ("gigabytes", "titles"),
    [
        (None, [LLAMA, DECODER, GPT2, VIT, T5, SMALL, SMALLEST]),
        (4, [LLAMA, DECODER, GPT2, VIT, T5, SMALL, SMALLEST]),
        (3, [DECODER, GPT2, VIT, T5, SMALL, SMALLEST]),
        (1, [VIT, T5, SMALL, SMALLEST]),
        (0, [SMALLEST]),
    ],
)
def test_models_that_fit(gigabytes, titles, monkeypatch):
    monkeypatch.setattr(models, "has_transformers", lambda: True)
    available = None if gigabytes is None else int(gigabytes * 1e9)
    fitting = memory.fitting_models("llama-3.2-1b", torch.bfloat16, available)
    assert [model.title for model in fitting] == titles


def test_models_that_need_what_is_not_there_do_not_fit(monkeypatch):
    monkeypatch.setattr(models, "has_transformers", lambda: False)
    fitting = memory.fitting_models("decoder", torch.bfloat16, None)
    assert [model.title for model in fitting] == [DECODER, SMALL, SMALLEST]


def test_only_smaller_models_are_tried():
    fitting = memory.fitting_models("decoder-small", torch.bfloat16, None)
    assert [model.title for model in fitting] == [SMALL, SMALLEST]


def available_beside(monkeypatch, limit):
    """What is available if the process may have `limit` bytes of address space."""
    import resource

    monkeypatch.setattr(
        resource, "getrlimit", lambda what: (limit if what == resource.RLIMIT_AS else -1, -1)
    )
    return memory.available_memory(CPU)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits as Linux has them")
def test_limits_of_the_process(monkeypatch):
    import resource

    unlimited = memory.available_memory(CPU)
    assert unlimited is not None
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    assert available_beside(monkeypatch, -1) == pytest.approx(unlimited, rel=0.5)
    assert available_beside(monkeypatch, used + 2**27) <= 2**27
    assert available_beside(monkeypatch, 0) == 0


def test_memory_limits(tmp_path):
    assert memory.available_memory(CPU) > 2**20
    assert memory._cgroup_memory(tmp_path) is None
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 150\n")
    assert memory._cgroup_memory(tmp_path) == 450
    (tmp_path / "memory.max").write_text("max\n")
    assert memory._cgroup_memory(tmp_path) is None


def test_failed_allocation(capsys, monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda _device: None)
    monkeypatch.setattr(memory, "MODELS", {"tiny": HUGE})
    assert cli.main(TINY) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("torchinit: huge does not fit into memory: ")
    assert len(err.splitlines()) == 1


def test_failed_allocation_takes_a_smaller_model(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda _device: None)
    small = {"a": HUGE, "b": LESS_HUGE, "tiny": MODELS["tiny"]}
    monkeypatch.setattr(memory, "MODELS", small)
    notes = []
    model = memory.reserve_largest("a", torch.bfloat16, CPU, notes.append)
    assert model is MODELS["tiny"]
    (note,) = notes
    assert note.startswith("huge does not fit into memory: ")
    assert note.endswith(f": taking {SMALLEST}")


def test_no_note_if_the_model_fits():
    notes = []
    assert memory.reserve_largest("tiny", torch.float32, CPU, notes.append) is MODELS["tiny"]
    assert notes == []


@pytest.mark.parametrize("nbytes", [2**60, 2**70])
def test_memory_that_cannot_be_had(nbytes):
    with pytest.raises(MemoryError):
        memory.reserve(nbytes, CPU)


def test_other_errors_of_reserving_are_bugs(monkeypatch):
    def bug(_nbytes):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(memory, "touch", bug)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        memory.reserve(1, CPU)
