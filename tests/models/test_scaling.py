"""Work grows in proportion to a model: no step visits all of it for each of its parts."""

from __future__ import annotations

import sys
import warnings

import pytest
import torch
from torch import nn

import torchinit
from torchinit import ArgumentError, Normal, build_model, init_model_, patch_nn_init

_MOST = 0.2  # of the growth from the second third of the parts may come again on top in the third


def steps(work):
    """The lines and calls of torchinit that some work takes."""
    count = 0

    def trace(frame, event, _):
        nonlocal count
        if "/torchinit/" not in frame.f_code.co_filename:
            return None
        count += event in ("call", "line")
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            work()
    finally:
        sys.settrace(before)
    return count


class Drawn(nn.Module):
    """Parameters that are views of a flat buffer, each drawn; of every second one the double."""

    def __init__(self, count):
        super().__init__()
        flat = torch.empty(count * 4)
        for i in range(count):
            view = flat[4 * i : 4 * i + 4]
            nn.init.normal_(view)
            if i % 2:
                view.mul_(2)
            self.register_parameter(f"p{i}", nn.Parameter(view))


class Copied(nn.Module):
    def __init__(self, count):
        super().__init__()
        flat = torch.zeros(count * 4)
        for i in range(count):
            flat[4 * i : 4 * i + 4] = torch.randn(4) + 1
            self.register_parameter(f"p{i}", nn.Parameter(flat[4 * i : 4 * i + 4]))


class Cut(nn.Module):
    def __init__(self, count):
        super().__init__()
        for i, part in enumerate(torch.randn(count * 4).split(4)):
            self.register_parameter(f"p{i}", nn.Parameter(part))


class Rows(nn.Module):
    def __init__(self, count):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, 4))
        with torch.no_grad():
            for row in self.weight:
                nn.init.uniform_(row)


class Separate(nn.Module):
    def __init__(self, count):
        super().__init__()
        for i in range(count):
            self.register_parameter(f"p{i}", nn.Parameter(torch.randn(4)))
            self.register_buffer(f"b{i}", torch.randn(2))


class Shared(nn.Module):
    def __init__(self, count):
        super().__init__()
        weight = nn.Parameter(torch.randn(4))
        self.layers = nn.ModuleList(nn.Module() for _ in range(count))
        for layer in self.layers:
            layer.weight = weight


class Read(nn.Module):
    """Half of the parameters are read by the constructor."""

    def __init__(self, count):
        super().__init__()
        for i in range(count):
            weight = torch.randn(4)
            scale = float(weight.norm()) if i % 2 else 1.0
            self.register_parameter(f"p{i}", nn.Parameter(weight / scale))


def build(kind):
    return lambda count: lambda: build_model(lambda: kind(count), seed=0)


def fill_from_meta(kind):
    def prepare(count):
        model = build_model(lambda: kind(count), seed=0, device="meta")
        return lambda: init_model_(model, seed=0, device="cpu")

    return prepare


def fill_by(rules, kind=Separate):
    def prepare(count):
        model, of_count = kind(count), rules(count)
        return lambda: init_model_(model, of_count, seed=0)

    return prepare


def patched(kind):
    def prepare(count):
        model = kind(count)

        def work():
            with patch_nn_init(0, model):
                for one in model.parameters():
                    for row in one.data:
                        nn.init.normal_(row)

        return work

    return prepare


def refused(count):
    model = Separate(count)
    rules = {f"q{i}": "zeros" for i in range(count)} | {"**": "ones"}

    def work():
        with pytest.raises(ArgumentError, match="match no parameter"):
            init_model_(model, rules, seed=0)

    return work


KINDS = [Drawn, Copied, Cut, Rows, Separate, Shared, Read]
WORK = {
    **{f"build_{kind.__name__}": build(kind) for kind in KINDS},
    **{f"fill_{kind.__name__}": fill_from_meta(kind) for kind in KINDS if kind is not Read},
    **{f"patch_{kind.__name__}": patched(kind) for kind in (Cut, Rows, Separate, Shared)},
    **{f"rules_{kind.__name__}": fill_by(lambda _: {"**": Normal(1)}, kind)
       for kind in (Cut, Separate, Shared)},
    "rule_for_each": fill_by(lambda count: {f"p{i}": Normal(1 + i) for i in range(count)}),
    "rule_for_each_buffer": fill_by(
        lambda count: {f"b{i}": torch.zeros(2) for i in range(count)} | {"**": "ones"}
    ),
    "rules_that_match_nothing": refused,
    "plan": lambda count: lambda: str(torchinit.plan_model(Separate(count), {"**": "ones"})),
    "report": lambda count: lambda: str(
        torchinit.report_model(Separate(count), {"**": Normal(1)})
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WORK)
def test_work_grows_in_proportion(name):
    prepare = WORK[name]
    steps(prepare(3))  # imports and caches
    first, second, third = (steps(prepare(20 * times)) for times in (1, 2, 3))
    assert (third - second) - (second - first) < _MOST * (second - first)
