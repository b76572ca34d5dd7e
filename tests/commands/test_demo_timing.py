"""The demo's initialisation and its times."""

from __future__ import annotations

import json

import pytest
import torch
from processes import TINY
from torch.nn import init as torch_init

import torchinit
from torchinit.commands import cli, memory, models, timing

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_repeat(monkeypatch):
    monkeypatch.setattr(timing, "_SLICE_REPEATS", 1)


def allocate():
    return memory.allocate(models.tiny(), torch.float32, CPU)


def test_seed_decides_the_values():
    def values(seed):
        filled = allocate()
        timing.initialise(filled, seed)
        return torch.cat([tensor.flatten() for _, tensor in filled])

    assert values(3).equal(values(3))
    assert not values(3).equal(values(4))


def test_values_are_those_of_plain_calls_scheme_by_scheme():
    filled = allocate()
    timing.initialise(filled, seed=5)
    torch.manual_seed(5)
    for group in timing._by_scheme(filled).values():
        for parameter, tensor in group:
            expected = torch.empty_like(tensor)
            parameter.fill(torchinit, expected)
            assert tensor.equal(expected), parameter.name


def test_torch_is_timed_on_a_slice(capsys, monkeypatch):
    monkeypatch.setitem(timing._SLICE, "cpu", 5000)
    assert cli.main([*TINY, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    normal, trunc_normal, ones = report["schemes"]
    assert normal["torch_nn_init"]["measured_on_values"] == 4992  # 78 rows of 64
    assert normal["torch_nn_init"]["extrapolated"]
    assert trunc_normal["torch_nn_init"]["measured_on_values"] == 4096 + 896
    assert not ones["torch_nn_init"]["extrapolated"]


def test_each_time_is_warmed_up_for(monkeypatch):
    """Right before, on a tensor that gives every thread work, or their start is timed."""
    events = []
    clock, fill, zero = timing.time.perf_counter, timing._fill, timing._zero

    def read_clock():
        events.append("clock")
        return clock()

    def record_fill(library, filled, *done):
        events.append((library, filled[0][0].scheme, memory.count_values(filled)))
        fill(library, filled, *done)

    def record_zero(filled):
        events.append(("zero_", filled[0][0].scheme, memory.count_values(filled)))
        zero(filled)

    monkeypatch.setattr(timing, "_ZERO_REPEATS", 1)
    monkeypatch.setattr(timing, "_fill", record_fill)
    monkeypatch.setattr(timing, "_zero", record_zero)
    filled = allocate()
    values = {
        scheme: memory.count_values(group) for scheme, group in timing._by_scheme(filled).items()
    }
    monkeypatch.setattr(timing.time, "perf_counter", read_clock)
    timing.initialise(filled, seed=0)

    def timed(what, scheme):
        return [(what, scheme, 2**20), "clock", (what, scheme, values[scheme]), "clock"]

    others = [timed(what, scheme) for scheme in values for what in ("zero_", torch_init)]
    ours = [timed(torchinit, scheme) for scheme in values]
    assert events == [event for time in others + ours for event in time]


def test_warming_up_draws_nothing():
    filled = allocate()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    for library in (torchinit, torch_init):
        timing._warm_up(lambda group, library=library: timing._fill(library, group), filled)
    assert torch.get_rng_state().equal(before)
