"""examples/fsdp2_tp.py gives one fingerprint in every layout, on any number of processes."""

from __future__ import annotations

import importlib.util
import os
import re
from functools import cache
from pathlib import Path

import pytest
import torch.distributed as dist
from launch import needs_gloo, torchrun
from worlds import in_worlds, of_eight

import torchinit
import warm
from conftest import long, native_only

pytestmark = [native_only, needs_gloo]
pytest.importorskip("transformers")

EXAMPLE = Path(__file__).parents[2] / "examples" / "fsdp2_tp.py"
LAYOUTS = {
    1: ["plain", "fsdp2"],
    2: ["fsdp2", "hsdp", "tp", "fsdp2+tp", "pipeline"],
    4: ["plain", "fsdp2", "hsdp", "tp", "fsdp2+tp", "pipeline"],
    8: ["hsdp+tp"],
}


@cache
def example():
    spec = importlib.util.spec_from_file_location("fsdp2_tp", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@in_worlds(*LAYOUTS, long=of_eight)
def test_every_layout_has_the_fingerprint_of_the_plain_model():
    def found(layout, seed=0):
        return torchinit.fingerprint(example().build(layout, seed, "cpu"), group=dist.group.WORLD)

    plain = found("plain")
    assert {found(layout) for layout in LAYOUTS[dist.get_world_size()]} == {plain}
    assert found("plain", seed=1) != plain


def printed(processes, out):
    """What the example says, by layout."""
    return dict(re.findall(rf"^(\S+) +on {processes} x cpu: (\w+)$", out, re.MULTILINE))


def test_the_program():
    ranks = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    store = {"MASTER_ADDR": "localhost", "MASTER_PORT": "0", "CUDA_VISIBLE_DEVICES": ""}
    run = warm.run(EXAMPLE, "--layouts", *LAYOUTS[1], env=os.environ | ranks | store)
    assert run.returncode == 0, run.stderr
    assert list(printed(1, run.stdout)) == LAYOUTS[1]


@long
def test_the_program_by_torchrun():
    found = {}
    for processes, layouts in LAYOUTS.items():
        said = printed(processes, torchrun(processes, EXAMPLE, "--layouts", *layouts))
        assert list(said) == layouts
        found |= {(processes, layout): value for layout, value in said.items()}
    assert len(set(found.values())) == 1, found
