"""What of a region lies in a shard: views that calls were recorded of, as boxes of the whole."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchinit.placement.distributed import Sharded
from torchinit.placement.mesh import ShardPiece
from torchinit.values.apply import fill_local
from torchinit.values.kinds import GivenValues
from torchinit.values.region import Part, Region, as_cuts, copy_fragments, copy_view, fragments_of

SHAPE = (6, 4, 5)
VIEWS = {
    "rows": lambda t: t[2:5],
    "one row": lambda t: t[3],
    "one of one": lambda t: t[1, 2],
    "an element": lambda t: t[1, 2, 3],
    "columns": lambda t: t[:, 1:3],
    "one column": lambda t: t[:, 2],
    "inner": lambda t: t[..., 2:4],
    "one inner": lambda t: t[:, :, 4],
    "box": lambda t: t[1:3, 2:4, 1:4],
    "flat": lambda t: t.view(-1),
    "flat rows": lambda t: t.view(-1)[20:60],
    "part of a row": lambda t: t.view(-1)[25:35],
    "heads": lambda t: t.view(2, 3, 4, 5)[1],
    "unsqueezed": lambda t: t[2:5, None],
    "all": lambda t: t,
}
NO_BOX = {
    "transposed": lambda t: t.mT,
    "every other": lambda t: t[::2],
    "across rows": lambda t: t.view(-1)[15:33],
    "diagonal": lambda t: t[:4].diagonal(),
}


def region_of(view):
    return Region(
        "x", tuple(view.shape), geometry=(tuple(view.shape), view.stride(), view.storage_offset())
    )


def shards():
    """All of it, rows, columns, a box, and two pieces."""
    for places in (
        [((0, 0, 0), (0, 0, 0), SHAPE)],
        [((0, 0, 0), (2, 0, 0), (2, 4, 5))],
        [((0, 0, 0), (0, 1, 0), (6, 2, 5))],
        [((0, 0, 0), (1, 1, 1), (4, 2, 3))],
        [((0, 0, 0), (0, 0, 0), (1, 4, 5)), ((1, 0, 0), (3, 0, 0), (2, 4, 5))],
    ):
        pieces = [ShardPiece(*place) for place in places]
        size = [sum(p.size[0] for p in pieces), *pieces[0].size[1:]]
        yield Sharded(torch.zeros(size), SHAPE, pieces)


def expected(whole, sharded):
    local = torch.zeros_like(sharded.local)
    for start, offset, size in sharded.pieces:
        source, target = whole, local
        for dim in range(len(size)):
            source = source.narrow(dim, offset[dim], size[dim])
            target = target.narrow(dim, start[dim], size[dim])
        target.copy_(source)
    return local


@pytest.mark.parametrize("name", [*VIEWS, *NO_BOX])
def test_values_of_a_view_reach_every_shard(name):
    make = {**VIEWS, **NO_BOX}[name]
    for sharded in shards():
        whole = torch.zeros(SHAPE)
        view = make(whole)
        values = torch.arange(1.0, view.numel() + 1).view(view.shape)
        view.copy_(values)
        region = region_of(view)
        cut = as_cuts(region, SHAPE, whole.stride())
        assert (cut is not None) == (name in VIEWS)
        assert fill_local(sharded, Part(region, GivenValues(values)), cut, 0, {}) == []
        assert torch.equal(sharded.local, expected(whole, sharded)), sharded.pieces


@given(st.data())
def test_cuts_of_views_are_the_views(data):
    """Whatever is narrowed, selected and flattened: a box found is that of the same elements."""
    shape = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    numbers = torch.arange(math.prod(shape)).view(shape)
    view = numbers
    for _ in range(data.draw(st.integers(0, 4))):
        if view.dim() == 0:
            break
        dim = data.draw(st.integers(0, view.dim() - 1))
        kind = data.draw(st.sampled_from(["narrow", "select", "flatten", "unsqueeze"]))
        start = data.draw(st.integers(0, view.shape[dim] - 1))
        if kind == "narrow":
            view = view.narrow(dim, start, data.draw(st.integers(1, view.shape[dim] - start)))
        elif kind == "select":
            view = view.select(dim, start)
        elif kind == "unsqueeze":
            view = view.unsqueeze(dim)
        elif view.is_contiguous():
            view = view.view(-1)
    region = region_of(view)
    cut = as_cuts(region, tuple(shape), numbers.stride())
    if cut is None:
        return
    found = cut.of(numbers)
    assert tuple(found.shape) == cut.shape
    assert torch.equal(found.reshape(-1), view.reshape(-1))


def test_a_box_is_found_wherever_dimensions_are_narrowed_and_selected():
    numbers = torch.arange(math.prod(SHAPE)).view(SHAPE)
    for make in VIEWS.values():
        assert as_cuts(region_of(make(numbers)), SHAPE, numbers.stride()) is not None


def test_fragments_of_one_matrix_of_a_stack():
    whole = torch.arange(120.0).view(SHAPE)
    region = Region("x\0003", (4, 5), number=3)
    for sharded in shards():
        fragments = fragments_of(sharded, region)
        copy_fragments(whole[3], fragments)
        only = torch.zeros(SHAPE)
        only[3] = whole[3]
        assert torch.equal(sharded.local, expected(only, sharded))


def test_copying_a_view_leaves_the_rest():
    whole = torch.zeros(SHAPE)
    for sharded in shards():
        sharded.local.fill_(7)
        view = whole.mT
        copy_view(torch.ones(view[1:2].shape), sharded, region_of(view[1:2]))
        rest = torch.full(SHAPE, 7.0)
        rest[1] = 1
        assert torch.equal(sharded.local, expected(rest, sharded))


def test_views_of_a_parameter_that_begins_within_its_storage():
    """As after ``vector_to_parameters``."""
    memory = torch.zeros(40)
    parameter = memory[5:37].view(8, 4)
    Region("x", (2, 4), geometry=((2, 4), (4, 1), 8)).of(parameter).fill_(1)
    assert parameter[2:4].eq(1).all()
    assert memory.sum() == 8
