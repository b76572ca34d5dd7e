"""The demo's ways to build a model. No test depends on a time."""

from __future__ import annotations

import pytest
import torch

import torchinit
from conftest import native_only
from torchinit.cli import demo
from torchinit.cli.demo_models import MODELS, builder

CPU = torch.device("cpu")
BUILD = builder(MODELS["tiny"], torch.float32)
each_way = pytest.mark.parametrize("way", demo.WAYS, ids=lambda way: way.name)
PLAIN, PATCHED, BUILT = demo.WAYS


def values(way, seed):
    model, timing = demo.take(way, BUILD, CPU, seed)
    assert timing.name == way.name
    assert timing.seconds > 0
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@each_way
def test_seed_decides_the_values(way):
    assert values(way, 3).equal(values(way, 3))
    assert not values(way, 3).equal(values(way, 4))


def test_the_ways_do_what_they_say():
    torch.manual_seed(5)
    plain = torch.cat([parameter.detach().flatten() for parameter in BUILD().parameters()])
    assert values(PLAIN, 5).equal(plain)
    model = torchinit.build_model(BUILD, seed=5, device=CPU)
    built = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    assert values(BUILT, 5).equal(built)


@native_only
def test_torch_fills_on_the_plain_way_alone():
    assert not values(PATCHED, 5).equal(values(PLAIN, 5))
    assert [way.is_ours for way in demo.WAYS] == [False, True, True]


@each_way
def test_each_way_is_taken_once_before_the_clock(way, monkeypatch):
    """On a layer that gives every thread work, so that their start is not timed."""
    events = []
    clock, make = demo.time.perf_counter, way.make

    def read_clock():
        events.append("clock")
        return clock()

    def record(build, device, seed):
        model = make(build, device, seed)
        events.append(sum(parameter.numel() for parameter in model.parameters()))
        return model

    monkeypatch.setattr(demo.time, "perf_counter", read_clock)
    demo.take(demo.Way(way.name, way.title, record), BUILD, CPU, 0)
    assert events == [2**20 + 2**10, "clock", MODELS["tiny"].numel, "clock"]


def test_what_is_zeroed_is_the_memory_of_the_model(monkeypatch):
    with torch.device("meta"):
        meta = builder(MODELS["tiny"], torch.bfloat16)()
    zeroed = []
    original = torch.Tensor.zero_

    def record(tensor):
        zeroed.append((tensor.dtype, tensor.numel()))
        return original(tensor)

    monkeypatch.setattr(torch.Tensor, "zero_", record)
    assert demo.zero(meta, CPU).seconds > 0
    _, *memory = zeroed[-29:]  # the first warms up
    assert {dtype for dtype, _ in memory} == {torch.bfloat16}
    assert sum(numel for _, numel in memory) == MODELS["tiny"].numel
