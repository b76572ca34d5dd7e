"""Checkpoints of models that were initialised as shards load in any layout, and in none."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from launch import needs_gloo, torchrun

from conftest import native_only

pytestmark = [native_only, needs_gloo]

PROGRAMS = Path(__file__).parents[1] / "programs"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Checkpoints saved from 4 ranks."""
    path = tmp_path_factory.mktemp("checkpoints")
    torchrun(4, PROGRAMS / "checkpoints.py", path, "save", seconds=180)
    return path


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_they_load_on_ranks(ranks, folder):
    out = torchrun(ranks, PROGRAMS / "checkpoints.py", folder, "load", seconds=180)
    assert len(out.splitlines()) == 3 * 3 + 2 * 2


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_they_load_without_ranks(folder, monkeypatch):
    monkeypatch.syspath_prepend(PROGRAMS)
    program = importlib.import_module("checkpoints")
    paths = sorted(folder.iterdir())
    assert len(paths) == 5
    for path in paths:
        model = program.initialised(program.build(path.name.split()[0]))
        assert not program.load(path, model, no_dist=True)
