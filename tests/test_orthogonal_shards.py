"""Boxes of orthogonal matrices: bit for bit what the whole has there, on any number of threads."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as hs

import torchinit
from conftest import native_only
from torchinit.errors import ArgumentError
from torchinit.fill import route
from torchinit.orthogonal import fill_orthogonal, orthogonal_by_torch
from torchinit.placement.box import Box

DTYPES = (
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.float16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
)
KEY = 11


@pytest.fixture
def on_threads():
    """Calls a function with torch set to so many threads."""
    before = torch.get_num_threads()

    def call(threads, function, *arguments):
        torch.set_num_threads(threads)
        result = function(*arguments)
        assert torch.get_num_threads() == threads
        return result

    yield call
    torch.set_num_threads(before)


def whole(shape, dtype=torch.float32, gain=0.5):
    tensor = torch.empty(shape, dtype=dtype)
    fill_orthogonal(tensor, gain, KEY)
    return tensor


def box_of(shape, place, dtype=torch.float32, gain=0.5):
    """What a shard at slices of the whole gets."""
    bounds = [part.indices(size)[:2] for part, size in zip(place, shape, strict=True)]
    tensor = torch.full([stop - start for start, stop in bounds], 7.0).to(dtype)
    fill_orthogonal(tensor, gain, KEY, Box(shape, [start for start, _ in bounds]))
    return tensor


def same(a, b):
    return a.shape == b.shape and torch.equal(
        a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8)
    )


def cuts(size, count):
    """Slices of torch.chunk, of unequal sizes and empty ones too."""
    step = -(-size // count)
    return [slice(min(size, i * step), min(size, (i + 1) * step)) for i in range(count)]


SHAPES = [(640, 384), (384, 640), (514, 514), (90, 60), (100, 100)]


@native_only
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_shards_are_slices_of_the_whole(shape, dtype, on_threads):
    """By rows, by columns and both ways; the four combinations of one thread and two."""
    rows, columns = shape
    both = [on_threads(threads, whole, shape, dtype) for threads in (1, 2)]
    assert same(*both)
    everything = slice(None)
    places = [(cut, everything) for cut in cuts(rows, 3)]
    places += [(everything, cut) for cut in cuts(columns, 3)]
    places += [
        (slice(0, 0), everything),
        (slice(7, 8), everything),
        (everything, slice(129 % columns, 129 % columns + 1)),
        (slice(rows // 3, rows - 5), slice(columns // 5, columns - 20)),
    ]
    for place, threads in itertools.product(places, (1, 2)):
        assert same(on_threads(threads, box_of, shape, place, dtype), both[0][place]), place


@native_only
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "shape", [(1200, 1100), (1409, 1409), (1300, 2000), (70_000, 17), (17, 70_000), (9000, 130)]
)
def test_shards_of_large_matrices(shape, dtype, on_threads):
    """Where blocks are made in waves, and where columns are so few that vectors are drawn anew."""
    expected = on_threads(1, whole, shape, dtype)
    assert same(on_threads(2, whole, shape, dtype), expected)
    for dim, size in enumerate(shape):
        for cut in cuts(size, 4)[1:3]:
            place = [slice(None), slice(None)]
            place[dim] = cut
            for threads in (1, 2):
                shard = on_threads(threads, box_of, shape, place, dtype)
                assert same(shard, expected[tuple(place)])


@native_only
@given(data=hs.data())
def test_any_box_of_any_matrix(data):
    edges = [1, 2, 127, 128, 129, 255, 256, 257, 258, 300, 511, 513, 546]
    size = hs.one_of(hs.integers(1, 600), hs.sampled_from(edges))
    shape = (data.draw(size), data.draw(size))
    if data.draw(hs.booleans()):  # more dimensions
        shape = (shape[0], *data.draw(hs.sampled_from([(3, 50), (64, 3, 3), (2, 1, 90), (1, 200)])))
    bounds = [sorted((data.draw(hs.integers(0, n)), data.draw(hs.integers(0, n)))) for n in shape]
    if data.draw(hs.booleans()):
        bounds[1:] = [(0, n) for n in shape[1:]]
    place = tuple(slice(*each) for each in bounds)
    dtype = data.draw(hs.sampled_from(DTYPES))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(data.draw(hs.integers(1, 3)))
        expected = whole(shape, dtype)[place]
        torch.set_num_threads(data.draw(hs.integers(1, 3)))
        assert same(box_of(shape, place, dtype), expected)
    finally:
        torch.set_num_threads(before)


def layouts(shape):
    """Memory of a shape in other layouts than the contiguous one."""
    size = math.prod(shape)
    wide = [3 * n for n in shape]
    yield torch.empty(shape[::-1]).permute(*reversed(range(len(shape))))
    yield torch.empty(2 * size)[::2].view(shape)
    yield torch.empty(wide)[tuple(slice(n, 2 * n) for n in shape)]
    yield torch.empty(shape[1:] + shape[:1]).movedim(-1, 0)
    yield torch.empty(size + 1)[1:].view(shape)
    if len(shape) == 4:
        yield torch.empty(shape, memory_format=torch.channels_last)


@native_only
@pytest.mark.parametrize(
    "shape",
    [(300, 200), (200, 300), (260, 260), (40, 30), (200, 16, 3, 3), (400, 30, 3, 3), (100, 7, 40)],
)
@pytest.mark.parametrize("threads", [1, 2])
def test_memory_does_not_matter(shape, threads, on_threads):
    """Nor where it begins."""
    expected = whole(shape)
    place = tuple(slice(n // 4, n // 2 + 1) for n in shape)

    def fill(tensor, box=None):
        fill_orthogonal(tensor, 0.5, KEY, box)
        return tensor

    for tensor in layouts(shape):
        assert same(on_threads(threads, fill, tensor), expected), tensor.stride()
    for tensor in layouts([part.stop - part.start for part in place]):
        box = Box(shape, [part.start for part in place])
        assert same(on_threads(threads, fill, tensor, box), expected[place]), tensor.stride()


@native_only
@pytest.mark.parametrize(
    "shape",
    [(150, 130), (130, 150), (200, 200), (257, 257), (300, 145), (500, 500), (12, 9), (9000, 5)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_batches_are_matrices_one_by_one(shape, dtype, on_threads):
    """Bit for bit, whatever the number of them and of threads: experts may lie on other ranks."""
    for count, threads in itertools.product((1, 2, 3, 7), (1, 2)):
        stack = torch.empty(count, *shape, dtype=dtype)
        torch.manual_seed(3)
        on_threads(threads, torchinit.orthogonal_batch_, stack)
        torch.manual_seed(3)
        for matrix in stack:
            single = torchinit.orthogonal_(torch.empty(shape, dtype=dtype))
            assert same(matrix, single), (count, threads)
        torch.manual_seed(3)
        some = [torch.empty(shape, dtype=dtype) for _ in range(count)]
        on_threads(threads, torchinit.orthogonal_batch_, some)
        assert all(map(same, some, stack))


@native_only
def test_gains_that_products_cannot_take():
    gain = torch.finfo(torch.float32).max * 0.9
    expected = whole((300, 200), gain=gain)
    place = (slice(10, 200), slice(30, 199))
    assert same(box_of((300, 200), place, gain=gain), expected[place])


@native_only
@pytest.mark.parametrize("n", [1, 20, 100])
def test_square_matrices_are_transposed(n):
    """So that the shards of rows that FSDP makes are columns of what is formed."""
    # The first columns of a tall matrix do not depend on how many there are.
    assert same(whole((n, n))[: n - 1], whole((n, n - 1)).t())


# Roads.


@native_only
@pytest.mark.parametrize("shape", [(20, 30), (300, 200)])
def test_the_operator_takes_boxes(shape):
    expected = whole(shape)
    key = torch.tensor(KEY)
    box = torch.empty(10, 15)
    torch.ops.torchinit.orthogonal_(box, key, 0.5, shape, [3, 4])
    assert same(box, expected[3:13, 4:19])
    returned = torch.ops.torchinit.orthogonal(torch.empty(10, 15), key, 0.5, shape, [3, 4])
    assert same(returned, box)
    with pytest.raises(ArgumentError, match="given together"):
        torch.ops.torchinit.orthogonal_(box, key, 0.5, shape)


@native_only
def test_boxes_in_graphs_and_fake():
    place = (slice(3, 13), slice(4, 19))
    expected = whole((20, 30))[place]

    @torch.compile(fullgraph=True, backend="aot_eager")
    def graph(tensor):
        fill_orthogonal(tensor, 0.5, KEY, Box((20, 30), (3, 4)))
        return tensor + 0

    assert same(graph(torch.empty(10, 15)), expected)

    with torch._subclasses.FakeTensorMode():
        fake = torch.empty(10, 15)
        fill_orthogonal(fake, 0.5, KEY, Box((20, 30), (3, 4)))
        with pytest.raises(ArgumentError, match="does not lie"):
            fill_orthogonal(fake, 0.5, KEY, Box((20, 30), (11, 4)))


@native_only
def test_boxes_via_host(monkeypatch):
    expected = whole((200, 150))[10:90, 5:]
    monkeypatch.setattr(route, "via_host_reason", lambda _: "forced")
    assert same(box_of((200, 150), (slice(10, 90), slice(5, None))), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(20, 30), (300, 200)])
def test_boxes_without_the_native_module(shape, dtype):
    def made(size, box=None):
        torch.manual_seed(1)
        return orthogonal_by_torch(torch.empty(size, dtype=dtype), 2.0, None, box)

    expected = made(shape)
    assert same(made((7, 9), Box(shape, (5, 6))), expected[5:12, 6:15])


@native_only
@pytest.mark.parametrize(
    ("box", "said"),
    [
        (Box((10, 10), (8, 0)), "does not lie within"),
        (Box((10, 10), (-1, 0)), "does not lie within"),
        (
            Box((10, 10, 1), (0, 0, 0)),
            r"global_shape=\[10, 10, 1\] must have one number for each of",
        ),
        (Box((10, 10), (0,)), r"offset=\[0\] must have one number for each of the 2 dimensions"),
    ],
)
def test_boxes_that_cannot_be(box, said):
    state = torch.get_rng_state()
    tensor = torch.ones(3, 3)
    with pytest.raises(ArgumentError, match=said):
        fill_orthogonal(tensor, 1.0, None, box)
    assert (tensor == 1).all()
    assert torch.equal(torch.get_rng_state(), state)


@native_only
def test_empty_shards_draw_their_key():
    def after(tensor, box=None):
        torch.manual_seed(1)
        fill_orthogonal(tensor, 1.0, None, box)
        return torch.get_rng_state()

    expected = after(torch.empty(8, 6))
    assert torch.equal(after(torch.empty(0, 6), Box((8, 6), (8, 0))), expected)
    assert torch.equal(after(torch.empty(3, 6), Box((8, 6), (5, 0))), expected)


@native_only
def test_autograd_is_told():
    tensor = torch.empty(5, 5)
    version = tensor._version
    fill_orthogonal(tensor, 1.0, KEY, Box((20, 20), (1, 2)))
    assert tensor._version > version
    weight = torch.nn.Parameter(torch.empty(300, 200))
    fill_orthogonal(weight, 1.0, KEY, Box((400, 400), (1, 2)))
    assert weight.grad_fn is None
    with torch.inference_mode():
        inference = torch.empty(600, 600)
        fill_orthogonal(inference, 0.5, KEY)
    assert same(inference.clone(), whole((600, 600)))


@native_only
def test_keys_and_whole_boxes():
    """A box that covers the matrix is the matrix, and the operator's words are those of a fill."""
    assert same(box_of((300, 200), (slice(None), slice(None))), whole((300, 200)))
    key = torch.tensor(KEY)
    tensor = torch.empty(300, 200)
    torch.ops.torchinit.orthogonal_(tensor, key, 0.5)
    assert same(tensor, whole((300, 200)))
