"""The demo's initialisation and its times."""

from __future__ import annotations

import json
from functools import partial

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


@pytest.mark.parametrize("library", [torchinit, torch_init])
def test_each_scheme_is_warmed_up_right_before_it_is_timed(library, monkeypatch):
    """On a tensor that gives every thread work, or the first time is that of their start."""
    events = []
    clock = timing.time.perf_counter

    def read_clock():
        events.append("clock")
        return clock()

    monkeypatch.setattr(timing.time, "perf_counter", read_clock)

    def record(scheme, original, tensor, **arguments):
        events.append((scheme, tensor.numel()))
        return original(tensor, **arguments)

    schemes = ["normal", "trunc_normal", "ones"]
    for scheme in schemes:
        original = getattr(library, f"{scheme}_")
        monkeypatch.setattr(library, f"{scheme}_", partial(record, scheme, original))
    timing.initialise(allocate(), seed=0)

    warm_ups = [i for i, event in enumerate(events) if event != "clock" and event[1] >= 2**20]
    assert [events[i][0] for i in warm_ups] == schemes
    for i in warm_ups:
        assert events[i + 1] == "clock"
        assert events[i + 2][0] == events[i][0]


def test_zero_is_warmed_up_right_before_it_is_timed(monkeypatch):
    sizes = []
    zero = timing._zero

    def record(filled):
        filled = list(filled)
        sizes.append(memory.count_values(filled))
        zero(filled)

    monkeypatch.setattr(timing, "_zero", record)
    timing.initialise(allocate(), seed=0)
    values = [sum(t.numel() for _, t in g) for g in timing._by_scheme(allocate()).values()]
    assert sizes == [size for each in values for size in (2**20, each, each, each)]


def test_warming_up_draws_nothing():
    filled = allocate()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    for library in (torchinit, torch_init):
        timing._warm_up(lambda group, library=library: timing._fill(library, group), filled)
    assert torch.get_rng_state().equal(before)
