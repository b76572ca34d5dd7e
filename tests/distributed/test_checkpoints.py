"""Checkpoints of models that were initialised as shards load in any layout, and in none."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
import torch.distributed as dist
from launch import needs_gloo, torchrun
from worlds import in_worlds

import checkpoints
from conftest import long, native_only

pytestmark = [native_only, needs_gloo]

PROGRAM = Path(__file__).parents[1] / "programs" / "checkpoints.py"


def assert_loads_without_ranks(path):
    model = checkpoints.initialised(checkpoints.build(path.name.split()[0]))
    assert not checkpoints.load(path, model, no_dist=True)


@in_worlds(2, 4)
def test_they_load_in_every_layout():
    folder = [tempfile.mkdtemp() if dist.get_rank() == 0 else ""]
    dist.broadcast_object_list(folder)
    for name, (_, _, layouts) in checkpoints.MODELS.items():
        for saved in layouts:
            path = Path(*folder, f"{name} {saved}")
            checkpoints.save(path, name, saved)
            for layout in layouts:
                checkpoints.load_as(layout, path, name)
            assert_loads_without_ranks(path)
    dist.barrier()
    if dist.get_rank() == 0:
        shutil.rmtree(*folder)


@long
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_they_load_on_another_number_of_ranks(tmp_path):
    torchrun(4, PROGRAM, tmp_path, "save", seconds=180)
    for ranks in (1, 2, 4):
        out = torchrun(ranks, PROGRAM, tmp_path, "load", seconds=180)
        assert len(out.splitlines()) == 3 * 3 + 2 * 2
    paths = sorted(tmp_path.iterdir())
    assert len(paths) == 5
    for path in paths:
        assert_loads_without_ranks(path)
