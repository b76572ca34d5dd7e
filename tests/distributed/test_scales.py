"""What ranks of a mesh of 1024 own of a Llama 70B: filled alone, it is what larger boxes hold."""

from __future__ import annotations

import importlib
import math
from pathlib import Path

import pytest
import torch

import torchinit
from conftest import native_only

pytestmark = native_only

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
LAYOUTS = {"FSDP": (1, 1024, 1), "FSDP and TP": (1, 128, 8), "HSDP and TP": (4, 32, 8)}
RANKS = (0, 511, 1023)
OUTSIDE = ("embed_tokens", "lm_head", "model.norm")


@pytest.fixture
def model(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("llama_70b")


def is_tried(name):
    """A few parameters have every shape that there is."""
    return "layers.79." in name or any(part in name for part in OUTSIDE)


def filled(model, name, shape, offset, size, dtype=torch.float32):
    return torchinit.init_shard_(
        torch.empty(size, dtype=dtype),
        model.SCHEME,
        global_shape=shape,
        offset=offset,
        seed=0,
        name=name,
    )


def around(piece, shape):
    """(offset, size) of a box some elements larger to all sides."""
    low = [max(start - 3, 0) for start in piece.offset]
    high = [
        min(start + size + 5, whole)
        for start, size, whole in zip(piece.offset, piece.size, shape, strict=True)
    ]
    return low, [end - start for start, end in zip(low, high, strict=True)]


def part_of(larger, low, piece):
    for dim, (start, size) in enumerate(zip(piece.offset, piece.size, strict=True)):
        larger = larger.narrow(dim, start - low[dim], size)
    return larger


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_boxes_are_parts_of_larger_boxes(layout, model):
    tried = 0
    for rank in RANKS:
        for box in model.owned_by(model.Layout(*layout), rank):
            if not is_tried(box.name):
                continue
            low, size = around(box.piece, box.shape)
            for dtype in (torch.float32, torch.bfloat16):
                own = model.fill(torch.empty(box.piece.size, dtype=dtype), box)
                larger = filled(model, box.name, box.shape, low, size, dtype)
                assert torch.equal(own, part_of(larger, low, box.piece)), box
            tried += 1
    assert tried >= 3 * 11  # FSDP over 1024 leaves the last rank without rows of the vocabulary


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_boxes_are_parts_of_what_init_model_fills(layout, model):
    name, shape = "model.layers.79.self_attn.k_proj.weight", (1024, 8192)
    with torch.device("meta"):
        linear = torch.nn.Linear(*reversed(shape), bias=False)
    torchinit.init_model_(linear, {"**": model.SCHEME}, seed=0, rename={"weight": name})
    for rank in RANKS:
        for piece in model.Layout(*layout).pieces(rank, shape, 0):
            own = filled(model, name, shape, piece.offset, piece.size)
            assert torch.equal(own, part_of(linear.weight.detach(), (0, 0), piece))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_every_element_has_an_owner_among_each_set_of_replicas(layout, model):
    layout = model.Layout(*layout)
    for name, (shape, dim) in model.LLAMA_70B.items():
        if not is_tried(name):
            continue
        pieces = [piece for rank in range(1024) for piece in layout.pieces(rank, shape, dim)]
        distinct = set(pieces)
        assert sum(math.prod(piece.size) for piece in distinct) == math.prod(shape)
        copies = layout.replicas * (layout.tp if dim is None else 1)
        assert len(pieces) == copies * len(distinct)
