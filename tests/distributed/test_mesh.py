"""What each rank holds, by numbers: against torch's own cuts, and by what must be so."""

from __future__ import annotations

import itertools
import math
import random

import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from worlds import in_worlds

from torchinit.placement.mesh import Cut, intervals_of, local_shape_of, pieces_of

MESHES = [
    (1,),
    (2,),
    (3,),
    (4,),
    (8,),
    (2, 2),
    (2, 3),
    (4, 2),
    (2, 4),
    (1, 4),
    (2, 2, 2),
    (3, 1, 2),
]
LAYOUTS = 900  # of each mesh, each on all of its ranks
SIZES = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 16, 17, 24)


def random_shape(numbers, dims=None):
    dims = numbers.choice((1, 1, 2, 2, 3)) if dims is None else dims
    return tuple(numbers.choice(SIZES if dims < 3 else SIZES[:9]) for _ in range(dims))


def random_cuts(numbers, mesh_shape, dims):
    """Shard and Replicate, and in half of the layouts a strided shard or several."""
    strided = numbers.random() < 0.5
    cuts = []
    for _ in mesh_shape:
        factor = numbers.choice((1, 2, 2, 3, 4)) if strided else 1
        cuts.append(numbers.choice((None, *(Cut(dim, factor) for dim in range(dims)))))
    return cuts


def placements_of(cuts):
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor.placement_types import _StridedShard

    return [
        Replicate()
        if cut is None
        else Shard(cut.dim)
        if cut.split_factor == 1
        else _StridedShard(cut.dim, split_factor=cut.split_factor)
        for cut in cuts
    ]


def values_of(pieces, global_shape, local_shape):
    """The local tensor of an arange of the whole, put together from pieces."""
    whole = torch.arange(math.prod(global_shape)).view(global_shape)
    local = torch.full(local_shape, -1)
    for piece in pieces:
        part, place = whole, local
        for dim, (start, offset, size) in enumerate(zip(*piece, strict=True)):
            part, place = part.narrow(dim, offset, size), place.narrow(dim, start, size)
        assert (place == -1).all(), "pieces overlap"
        place.copy_(part)
    return local


def each_rank(mesh_shape):
    """One rank after another of a world that sends nothing; yields the mesh."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.testing._internal.distributed.fake_pg import FakeStore

    for rank in range(math.prod(mesh_shape)):
        dist.init_process_group(
            "fake", rank=rank, world_size=math.prod(mesh_shape), store=FakeStore()
        )
        names = tuple("abc"[: len(mesh_shape)])
        yield init_device_mesh("cpu", mesh_shape, mesh_dim_names=names)
        dist.destroy_process_group()


def is_read_in_two_ways(global_shape, mesh_shape, cuts):
    """Whether split factors tell an order, and torch's distribute_tensor cuts in another one.

    It cuts from left to right; full_tensor() and we decode the order. Even cuts come to the same.
    """
    for dim in range(len(global_shape)):
        of_dim = [number for number, cut in enumerate(cuts) if cut is not None and cut.dim == dim]
        if len(of_dim) > 1 and any(cuts[number].split_factor > 1 for number in of_dim):
            parts = math.prod(mesh_shape[number] for number in of_dim)
            if global_shape[dim] % parts:
                return True
    return False


def more_than_four(size: int, mesh_name: str) -> bool:  # noqa: ARG001
    """Ranks, in a mesh of one or two dimensions."""
    return mesh_name.count("x") < 2 and math.prod(map(int, mesh_name.split("x"))) > 4


@in_worlds(
    0,
    each=["x".join(map(str, mesh_shape)) for mesh_shape in MESHES],
    seconds=180,
    long=more_than_four,
)
def test_distribute_tensor_holds_the_same(mesh_name):
    from torch.distributed.tensor import distribute_tensor

    mesh_shape = tuple(map(int, mesh_name.split("x")))
    compared = strided = 0
    for mesh in each_rank(mesh_shape):
        numbers = random.Random(mesh_name)
        coordinate = mesh.get_coordinate()
        for _ in range(LAYOUTS):
            shape = random_shape(numbers)
            cuts = random_cuts(numbers, mesh_shape, len(shape))
            if is_read_in_two_ways(shape, mesh_shape, cuts):
                continue
            whole = torch.arange(math.prod(shape)).view(shape)
            placements = placements_of(cuts)
            local = distribute_tensor(whole, mesh, placements, src_data_rank=None).to_local()
            held = intervals_of(shape, mesh_shape, coordinate, cuts)
            pieces = pieces_of(shape, mesh_shape, coordinate, cuts)
            assert local_shape_of(held) == local.shape, (shape, cuts, coordinate)
            got = values_of(pieces, shape, local.shape)
            assert torch.equal(got, local), (shape, cuts, coordinate, got, local)
            compared += 1
            strided += len(pieces) > 1
    ranks = math.prod(mesh_shape)
    assert compared > LAYOUTS * ranks / 2
    assert ranks == 1 or strided > LAYOUTS * ranks / 100


@in_worlds(0, each=["2", "3", "8", "2x2", "2x4", "4x2", "2x2x2"], seconds=180, long=more_than_four)
def test_fully_shard_stores_the_same(mesh_name):
    """Alone, over HSDP's mesh, and over tensor parallelism of either dimension, evenly or not."""
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

    mesh_shape = tuple(map(int, mesh_name.split("x")))
    for mesh in each_rank(mesh_shape):
        numbers = random.Random(mesh_name)
        for _ in range(120):
            shape = random_shape(numbers, dims=2)
            if 0 in shape:
                continue
            whole = torch.arange(math.prod(shape), dtype=torch.float32).view(shape)
            tensor_parallel = Shard(numbers.choice((0, 1)))
            shards_dim = numbers.choice((0, 0, 1))
            module = torch.nn.Module()
            with_tp = len(mesh_shape) > 1 and numbers.random() < 0.8
            if with_tp:
                data = mesh["a", "b"] if len(mesh_shape) == 3 else mesh["a"]
                last = mesh["c"] if len(mesh_shape) == 3 else mesh["b"]
                made = distribute_tensor(whole, last, [tensor_parallel], src_data_rank=None)
                module.weight = torch.nn.Parameter(made)
            elif len(mesh_shape) < 3:
                data = mesh
                module.weight = torch.nn.Parameter(whole.clone())
            else:
                continue
            size = data.size(data.ndim - 1)
            held = module.weight.to_local() if with_tp else whole
            if shards_dim == 1 and held.shape[1] % size:
                shards_dim = 0  # fully_shard wants those even
            fully_shard(module, mesh=data, shard_placement_fn=lambda _, dim=shards_dim: Shard(dim))
            weight = module.weight
            assert isinstance(weight, DTensor)
            cuts = [
                None
                if isinstance(each, Replicate)
                else Cut(each.dim, getattr(each, "split_factor", 1))
                for each in weight.placements
            ]
            # Not the weight's mesh's: torch caches meshes, across the ranks that this process was.
            coordinate = mesh.get_coordinate()
            pieces = pieces_of(shape, tuple(weight.device_mesh.shape), coordinate, cuts)
            local = weight.to_local().detach()
            if local.numel() == 0:
                assert pieces == [], (shape, cuts, coordinate)
                continue
            # Nothing was sent, so torch has the rank's own values: those of its place.
            got = values_of(pieces, shape, local.shape)
            assert torch.equal(got.float(), local), (shape, cuts, coordinate, got, local)


mesh_shapes = st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple)


@st.composite
def layouts(draw, most=1):
    """A shape, a mesh's shape and cuts with split factors of up to so much."""
    shape = tuple(draw(st.lists(st.integers(0, 13), min_size=1, max_size=3)))
    mesh_shape = draw(mesh_shapes)
    dims = st.integers(0, len(shape) - 1)
    cuts = [draw(st.none() | st.builds(Cut, dims, st.integers(1, most))) for _ in mesh_shape]
    return shape, mesh_shape, cuts


def all_pieces(shape, mesh_shape, cuts):
    for coordinate in itertools.product(*map(range, mesh_shape)):
        yield coordinate, pieces_of(shape, mesh_shape, coordinate, cuts)


def is_within(shape, piece):
    return all(
        offset >= 0 and size > 0 and offset + size <= whole
        for offset, size, whole in zip(piece.offset, piece.size, shape, strict=True)
    )


@given(layouts(6))
def test_every_element_lies_as_often_as_it_is_replicated(layout):
    shape, mesh_shape, cuts = layout
    counts = torch.zeros(shape, dtype=torch.int64)
    for _, pieces in all_pieces(shape, mesh_shape, cuts):
        for piece in pieces:
            assert is_within(shape, piece)
            part = counts
            for dim, (offset, size) in enumerate(zip(piece.offset, piece.size, strict=True)):
                part = part.narrow(dim, offset, size)
            part += 1
    copies = math.prod(size for size, cut in zip(mesh_shape, cuts, strict=True) if cut is None)
    assert (counts == copies).all()


@given(layouts(6))
def test_pieces_fill_the_local_tensor(layout):
    """Each place of it once, and in the order of the logical tensor."""
    shape, mesh_shape, cuts = layout
    for coordinate, pieces in all_pieces(shape, mesh_shape, cuts):
        held = intervals_of(shape, mesh_shape, coordinate, cuts)
        local_shape = local_shape_of(held)
        local = values_of(pieces, shape, local_shape)
        assert not (local == -1).any()
        assert (local.flatten().diff() > 0).all()
        assert [piece.offset for piece in pieces] == sorted(piece.offset for piece in pieces)
        # As few as may be: neighbours are one.
        for intervals in held:
            for (first, length), (following, _) in itertools.pairwise(intervals):
                assert first + length < following


@given(layouts())
def test_shards_are_the_chunks_of_torch(layout):
    shape, mesh_shape, cuts = layout
    whole = torch.arange(math.prod(shape)).view(shape)
    for coordinate, pieces in all_pieces(shape, mesh_shape, cuts):
        expected = whole
        for cut, size, place in zip(cuts, mesh_shape, coordinate, strict=True):
            if cut is not None:
                chunks = expected.chunk(size, cut.dim)
                expected = (
                    chunks[place]
                    if place < len(chunks)
                    else expected.narrow(cut.dim, expected.shape[cut.dim], 0)
                )
        assert len(pieces) <= 1
        held = intervals_of(shape, mesh_shape, coordinate, cuts)
        if expected.numel():
            assert local_shape_of(held) == expected.shape
            assert torch.equal(values_of(pieces, shape, expected.shape), expected)
        else:
            assert pieces == []


@given(st.permutations(range(3)), st.tuples(*[st.integers(1, 4)] * 3), st.integers(0, 60))
def test_orders_that_split_factors_tell(order, mesh_shape, rows):
    """Cut by the mesh's dimensions in any order, told as ``fully_shard`` tells it."""
    cuts = [
        Cut(
            0,
            math.prod(
                mesh_shape[other]
                for other in order[: order.index(number)]
                if other > number  # cut before, and stands further right
            ),
        )
        for number in range(3)
    ]
    if sum(size > 1 for size in mesh_shape) < 3:
        return  # a size of 1 cuts nothing, and may stand anywhere
    for coordinate, pieces in all_pieces((rows,), mesh_shape, cuts):
        expected = torch.arange(rows)
        for number in order:
            chunks = expected.chunk(mesh_shape[number])
            place = coordinate[number]
            expected = chunks[place] if place < len(chunks) else expected[:0]
        got = [piece.offset[0] + i for piece in pieces for i in range(piece.size[0])]
        assert got == expected.tolist(), (order, mesh_shape, rows, coordinate)


def test_tensors_without_dimensions():
    assert pieces_of((), (2, 2), (1, 0), [None, None]) == [((), (), ())]
    assert pieces_of((0, 3), (2,), (0,), [Cut(1)]) == []
