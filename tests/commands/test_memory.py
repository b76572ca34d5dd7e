"""How much memory there is, and which model fits into it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from processes import TINY, lines_but_of_torch

from torchinit.commands import cli, memory, models
from torchinit.commands.models import MODELS, Model, Parameter

CPU = torch.device("cpu")
HUGE = Model("huge", (Parameter("p", (2**40, 2**20), "ones"),))
LESS_HUGE = Model("less huge", (Parameter("p", (2**38, 2**20), "ones"),))


def test_small_memory_takes_a_smaller_model(capsys, monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda _device: 2**20)
    assert cli.main(["demo", "--device", "cpu", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["model"] == "tiny Llama"
    assert lines_but_of_torch(err) == [
        "torchinit: Llama 3.2 1B needs 2.9 GiB and 0.0 GiB are available: taking tiny Llama"
    ]


@pytest.mark.parametrize(
    ("gigabytes", "titles"),
    [
        (None, ["Llama 3.2 1B", "GPT-2 medium", "ViT-L/16", "tiny Llama"]),
        (4, ["Llama 3.2 1B", "GPT-2 medium", "ViT-L/16", "tiny Llama"]),
        (2, ["GPT-2 medium", "ViT-L/16", "tiny Llama"]),
        (0.9, ["ViT-L/16", "tiny Llama"]),
        (0, ["tiny Llama"]),
    ],
)
def test_models_that_fit(gigabytes, titles):
    available = None if gigabytes is None else int(gigabytes * 1e9)
    fitting = memory.fitting_models("llama-3.2-1b", torch.bfloat16, available)
    assert [model.title for model in fitting] == titles


def test_only_smaller_models_are_tried():
    fitting = memory.fitting_models("vit-large", torch.bfloat16, None)
    assert [model.title for model in fitting] == ["ViT-L/16", "tiny Llama"]


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
    monkeypatch.setattr(memory, "MODELS", {"tiny": lambda: HUGE})
    assert cli.main(TINY) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("torchinit: huge does not fit into memory: can't allocate memory")
    assert len(err.splitlines()) == 1


def test_failed_allocation_takes_a_smaller_model(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda _device: None)
    monkeypatch.setattr(
        memory, "MODELS", {"a": lambda: HUGE, "b": lambda: LESS_HUGE, "tiny": models.tiny}
    )
    notes = []
    model, filled = memory.allocate_largest("a", torch.bfloat16, CPU, notes.append)
    assert model.title == "tiny Llama"
    assert memory.count_values(filled) == model.numel
    (note,) = notes
    assert note.startswith("huge does not fit into memory: can't allocate memory")
    assert note.endswith(": taking tiny Llama")


def test_no_note_if_the_model_fits():
    notes = []
    model, filled = memory.allocate_largest("tiny", torch.float32, CPU, notes.append)
    assert model.title == MODELS["tiny"]().title
    assert [tensor.shape for _, tensor in filled] == [p.shape for p in model.parameters]
    assert notes == []


def test_other_errors_of_allocation_are_bugs():
    with pytest.raises(RuntimeError, match="negative"):
        memory.allocate(Model("bad", (Parameter("p", (-1,), "ones"),)), torch.float32, CPU)
