"""Shards of computed values are cut of the whole, whatever torch's threads and the operators.

What IEEE 754 pins is made by box, and never whole. Of all else torch's values for a slice are not
those of the whole, nor are those of another number of threads: it is made whole on one thread, one
parameter at a time.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from built import Kind, assert_equal, layouts
from layouts import mesh_of
from torch import nn
from torch.nn import functional
from worlds import in_worlds

from torchinit import build_model, init_model_
from torchinit.native import load
from torchinit.placement.distributed import local_memory
from torchinit.tape import play
from torchinit.tape.program import recall

NATIVE = load.module is not None  # torch draws no part of a tensor alone
SEED = 5
# More elements than torch gives one thread, and rows that are no multiple of a vector.
SHAPE = (520, 131)
THREADS = (1, 2, 7)


def random():
    return torch.rand(SHAPE)


def normal():
    return torch.randn(SHAPE)


def table():
    """Values without a draw, for each element."""
    rows, columns = torch.arange(SHAPE[0]) - 200.0, torch.arange(SHAPE[1]) + 0.5
    return rows[:, None] / columns


def with_nothing_lost(values):
    """Infinities, NaN and both zeros among them."""
    return (values - 0.5).clamp(min=0) / (values - 0.25).clamp(min=0)


def in_place():
    values = torch.empty(SHAPE).normal_(0, 2)
    values.mul_(0.3).add_(0.7).div_(3).sub_(0.1).neg_().clamp_(-0.4, 0.2)
    return values


def copied():
    values = torch.empty(SHAPE)
    return values.copy_(random()).mul_(normal())


def doubled():
    return (torch.rand(SHAPE, dtype=torch.float64) / 3).float()


def sub_():
    values = normal()
    return values.sub_(random())


# What is pinned: by box.
PINNED = {
    "add": lambda: random() + 0.1,
    "add of two draws": lambda: random() + normal(),
    "sub": lambda: 1 - normal(),
    "sub of two draws": sub_,
    "mul": lambda: normal() * 0.02,
    "mul of two draws": lambda: normal() * random(),
    "div": lambda: (random() - 0.5) / 7,
    "div of two draws": lambda: normal() / random(),
    "sqrt": lambda: random().sqrt(),
    "neg": lambda: -random(),
    "clamp": lambda: normal().clamp(-0.5, 0.5),
    "where": lambda: torch.where(table() > 1, random(), normal()),
    "where of numbers": lambda: torch.where(table() > 1, random(), 0.25),
    "copy": copied,
    "constant": lambda: random() * table(),
    "constant of no dimension": lambda: random() * torch.tensor(0.3, dtype=torch.float64),
    "in place": in_place,
    "infinities": lambda: with_nothing_lost(random()),
    "roots of negative numbers": lambda: normal().sqrt(),
    "float64": doubled,
    "bfloat16": lambda: torch.rand(SHAPE, dtype=torch.bfloat16) / 3 - 0.1,
    "float16": lambda: torch.randn(SHAPE, dtype=torch.float16).mul(0.1).sub(1),
    "one draw twice": lambda: (lambda x: x * x - x)(normal()),
}
# What is not, by the operator or by what it is given: whole.
OTHERS = {
    "softplus": lambda: functional.softplus(normal()),
    "sigmoid": lambda: torch.sigmoid(normal()),
    "pow": lambda: random().pow(1.3),
    "exp": lambda: normal().exp(),
    "log": lambda: random().log(),
    "expm1": lambda: torch.log(-torch.expm1(-random())),
    "silu": lambda: functional.silu(normal()),
    "softmax": lambda: normal().softmax(-1),
    "norm": lambda: (lambda x: x / x.norm())(normal()),
    "cumsum": lambda: random().cumsum(0),
    "product": lambda: torch.rand(SHAPE[0], 5) @ torch.rand(5, SHAPE[1]),
    "rows": lambda: torch.rand(SHAPE[0], 1) * random(),
    "columns": lambda: random() + torch.arange(SHAPE[1]),
    "add of a multiple": lambda: torch.add(random(), normal(), alpha=0.3),
    "rounded division": lambda: torch.div(random(), 0.3, rounding_mode="floor"),
    "transposed": lambda: (torch.rand(SHAPE[::-1]) - 0.5).t().contiguous(),
    "a part": lambda: (torch.rand(SHAPE[0] + 1, SHAPE[1]) - 0.5)[1:].contiguous(),
    "float and integer": lambda: reinterpreted(random()),
    "integers": lambda: (normal() * 9).int() / 7,
    "exponential": lambda: torch.empty(SHAPE).exponential_() * 0.1,
}
KINDS = {"pinned": PINNED, "others": OTHERS}


def reinterpreted(values):
    """Signs by way of the bits."""
    values.view(torch.int32).mul_(-1)
    return values * 1.0


class Computed(nn.Module):
    def __init__(self, values):
        super().__init__()
        self.values = nn.Module()
        for name, make in values.items():
            self.values.register_parameter(f"by {name}", nn.Parameter(make()))


@contextlib.contextmanager
def threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def small_tiles():
    """A few elements are computed together."""
    before, play._TILE = play._TILE, 1000
    try:
        yield
    finally:
        play._TILE = before


def kind_of(values):
    build = functools.partial(Computed, values)
    # Tensor parallelism cuts columns, fully_shard rows.
    return Kind(build, "", {"values": "cut 1"}, ((), ()))


@pytest.mark.parametrize("values", KINDS.values(), ids=KINDS)
def test_any_number_of_threads_gives_the_same(values):
    build = functools.partial(Computed, values)
    models = []
    for count in THREADS:
        with threads(count):
            models.append(build_model(build, seed=SEED))
            assert torch.get_num_threads() == count
            on_meta = build_model(build, seed=0, device="meta")
            models.append(init_model_(on_meta, seed=SEED, device="cpu"))
            assert torch.get_num_threads() == count
    for model in models[1:]:
        assert_equal(model, models[0], "threads")


def test_what_is_made_by_box():
    model = build_model(lambda: Computed(PINNED | OTHERS), seed=SEED, device="meta")
    names = dict(model.values.named_parameters())
    boxed = {name for name in names if recall(model.values, name).can_box()}
    assert boxed == {f"by {name}" for name in PINNED}


@in_worlds(2, 4, each=KINDS)
def test_shards_are_slices_of_the_whole(values):
    """Of ranks that have one, two and seven threads, in small tiles and in large ones."""
    kind = kind_of(values)
    plain = build_model(kind.build, seed=SEED)
    on_meta = functools.partial(build_model, kind.build, seed=0, device="meta")
    count = THREADS[dist.get_rank() % 3]
    for layout, spread in layouts():
        for tiles in (contextlib.nullcontext, small_tiles):
            model = spread(on_meta(), kind)
            with threads(count), tiles():
                init_model_(model, seed=SEED)
            said = f"{layout}, {tiles.__name__}"
            assert_equal(model, plain, said, gather=tiles is small_tiles)


@in_worlds(2, each=KINDS)
def test_shards_in_another_dtype_are_rounded(values):
    kind = kind_of(values)
    plain = build_model(kind.build, seed=SEED, dtype=torch.bfloat16)
    for layout, spread in layouts():
        model = spread(build_model(kind.build, seed=0, device="meta"), kind)
        with small_tiles():
            init_model_(model, seed=SEED, dtype=torch.bfloat16)
        assert_equal(model, plain, layout, gather=False)


class Memory:
    """How much more memory this process had within a block, at most."""

    def __enter__(self):
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
        self._before = self._read("VmRSS:")
        return self

    def __exit__(self, *error):
        self.peak = self._read("VmHWM:") - self._before

    def _read(self, name):
        said = Path("/proc/self/status").read_text()
        return int(said.split(name)[1].split()[0]) * 1024


class Large(nn.Module):
    def __init__(self, values, count, shape):
        super().__init__()
        self.values = nn.ParameterList(nn.Parameter(values(shape)) for _ in range(count))


def pinned_of(shape):
    return ((torch.rand(shape) - 0.5) * torch.randn(shape)).clamp(-1, 1)


def exponential_of(shape):
    return torch.rand(shape).exp()


needs_linux = pytest.mark.skipif(
    sys.platform != "linux", reason="reads the peak of memory from /proc"
)
MEBI = 1 << 20


@needs_linux
@in_worlds(4, where=lambda size, _: NATIVE)  # noqa: ARG005
def test_what_is_made_by_box_is_never_whole():
    model = filled_in_shards(pinned_of, 1, (4096, 8192), most=32 + 48)  # and not 128
    local = local_memory(model.values[0])
    assert local.shape == (1024, 8192)
    assert local.std() > 0.1


@needs_linux
@in_worlds(4)
def test_one_parameter_at_a_time_is_whole():
    filled_in_shards(exponential_of, 5, (4096, 2304), most=45 + 3 * 36 + 16)  # and not 7 * 36


def filled_in_shards(values, count, shape, most):
    """A model of shards, filled; asserts that it takes at most so many MiB."""
    from torch.distributed.fsdp import fully_shard

    init_model_(fully_shard(build_model(Small, seed=SEED, device="meta"), mesh=mesh_of(4)), seed=0)
    with Memory() as built:
        model = build_model(functools.partial(Large, values, count, shape), seed=0, device="meta")
    assert built.peak < 8 * MEBI, built.peak
    fully_shard(model, mesh=mesh_of(4))
    with Memory() as filled:
        init_model_(model, seed=SEED)
    assert filled.peak < most * MEBI, filled.peak / MEBI
    return model


class Small(nn.Module):
    """What the first fill brings in."""

    def __init__(self):
        super().__init__()
        self.values = nn.ParameterList([pinned_of((8, 8)), exponential_of((8, 8))])
