"""examples/fsdp2_tp.py gives one fingerprint in every layout, on any number of processes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from launch import needs_gloo, torchrun

from conftest import native_only

pytestmark = [native_only, needs_gloo]

EXAMPLE = Path(__file__).parents[2] / "examples" / "fsdp2_tp.py"
LAYOUTS = {
    1: ["plain", "fsdp2"],
    2: ["fsdp2", "hsdp", "tp", "fsdp2+tp", "pipeline"],
    4: ["plain", "fsdp2", "hsdp", "tp", "fsdp2+tp", "pipeline"],
    8: ["hsdp+tp"],
}


def fingerprints(processes, layouts, *options):
    """What the example prints, by layout."""
    out = torchrun(processes, EXAMPLE, "--layouts", *layouts, *options)
    found = dict(re.findall(rf"^(\S+) +on {processes} x cpu: (\w+)$", out, re.MULTILINE))
    assert list(found) == layouts
    return found


def test_one_fingerprint_in_every_layout_and_another_of_another_seed():
    pytest.importorskip("transformers")
    found = [
        value
        for processes, layouts in LAYOUTS.items()
        for value in fingerprints(processes, layouts).values()
    ]
    assert len(set(found)) == 1, found
    assert found[0] not in fingerprints(1, ["plain"], "--seed", "1").values()
