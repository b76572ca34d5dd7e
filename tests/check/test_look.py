"""Every dtype and layout: what nobody wrote is found, element by element, and values are not."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from torchinit import UninitializedError, check_init, find_uninitialized, marked_memory
from torchinit.check import look, marks

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
EIGHT_BITS = (
    torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu, torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
)  # fmt: skip
CERTAIN = (*FLOATS, *EIGHT_BITS, torch.bool, torch.int64, torch.uint64, torch.complex64,
           torch.complex128)  # fmt: skip
CHANCE = (torch.int8, torch.uint8, torch.int16, torch.uint16, torch.int32, torch.uint32,
          torch.float4_e2m1fn_x2)  # fmt: skip
DTYPES = (*CERTAIN, *CHANCE)


def holder(tensor: Tensor) -> nn.Module:
    module = nn.Module()
    module.register_buffer("x", tensor)
    return module


def bits(tensor: Tensor) -> Tensor:
    """A tensor's memory as integers, which can be written for every dtype."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    return tensor.view(marks.BITS[tensor.itemsize])


def left(make, init=bool):
    try:
        check_init(make, init)
    except UninitializedError as error:
        return [(row.what, row.count, row.total, row.where) for row in error.rows]
    return []


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (3,), (5, 7), (2, 64)], ids=str)
def test_what_nobody_wrote(dtype, shape):
    model = holder(torch.zeros(shape, dtype=torch.uint8).to(dtype) if dtype in FLOATS else
                   torch.empty(shape, dtype=dtype))  # fmt: skip
    count = model.x.numel()
    assert left(model) == [("unwritten", count, count, "")]
    assert left(model, lambda model: bits(model.x).zero_()) == []


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_part_that_nobody_wrote(dtype):
    """Also every second element, of which integers need the second run."""
    model = holder(torch.empty(4, 64, dtype=dtype))
    assert left(model, lambda model: bits(model.x)[:2].zero_()) == [
        ("unwritten", 128, 256, "[2:4, :]")
    ]
    assert left(model, lambda model: bits(model.x)[1:3, 3:50].zero_()) == [
        ("unwritten", 256 - 94, 256, "")
    ]
    assert left(model, lambda model: bits(model.x)[:, ::2].zero_()) == [
        ("unwritten", 128, 256, "[:, 1:64]")
    ]


@pytest.mark.parametrize("dtype", [*FLOATS, torch.uint8, torch.int64, torch.complex64], ids=str)
def test_layouts(dtype):
    """Views share memory with what is not theirs, and marks leave that alone."""
    around = torch.zeros(12, 12, dtype=dtype)
    for view in (around[2:5, 3:7], around[1:10:3, ::2], around.t()[4:6], around[3, 4:9]):
        before = bits(around).clone()
        assert left(holder(view)) == [("unwritten", view.numel(), view.numel(), "")]
        changed = bits(around) != before
        assert int((changed.any(-1) if dtype.is_complex else changed).sum()) == view.numel()
        around.zero_()
    row = torch.zeros(1, 6, dtype=dtype).expand(5, 6)
    assert left(holder(row)) == [("unwritten", 30, 30, "")]
    model = holder(torch.zeros(3, 1, 6, dtype=dtype).expand(3, 5, 6))
    assert left(model, lambda model: bits(model.x)[1:, 2, :4].zero_()) == [
        ("unwritten", 5 * (18 - 8), 90, "")
    ]
    last = torch.zeros(2, 3, 4, 5, dtype=dtype).contiguous(memory_format=torch.channels_last)
    model = holder(last)
    assert left(model, lambda model: bits(model.x)[:, 1:].zero_()) == [
        ("unwritten", 40, 120, "[:, 0:1, :, :]")
    ]


@given(data=st.data())
def test_the_smallest_box(data):
    """Of any elements of any shape, looked at in parts that begin and end anywhere."""
    shape = tuple(data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)))
    box = [sorted(data.draw(st.tuples(*[st.integers(0, size - 1)] * 2))) for size in shape]
    chosen = torch.zeros(shape, dtype=torch.bool)
    inside = chosen[tuple(slice(low, high + 1) for low, high in box)]
    inside |= torch.rand(
        inside.shape, generator=torch.manual_seed(data.draw(st.integers(0, 9)))
    ) > (data.draw(st.sampled_from([-1, 0.3, 0.9])))
    tensor = torch.zeros(shape)
    order = data.draw(st.permutations(range(len(shape))))
    tensor, chosen = tensor.permute(order), chosen.permute(order)
    bits(tensor)[chosen] = marks.word_of(torch.float32, again=False) & 0xFFFFFFFF
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(look, "_CHUNK", data.draw(st.integers(1, 50)))
        found = look.look_at(tensor)
    places = chosen.nonzero()
    if not len(places):
        assert found == []
    else:
        assert (found[0].what, found[0].count) == ("unwritten", len(places))
        assert list(found[0].low) == places.amin(0).tolist()
        assert list(found[0].high) == places.amax(0).tolist()


@pytest.mark.parametrize("dtype", CHANCE, ids=str)
def test_random_integers_are_no_marks(dtype):
    """Bits of 60,000 random elements: at 8 bits hundreds hold the mark of their place."""

    def init(model: nn.Module) -> None:
        bits(model.x).random_(*((0, 256) if dtype.itemsize == 1 else ()))

    torch.manual_seed(3)
    assert left(lambda: holder(torch.empty(300, 200, dtype=dtype)), init) == []
    with marked_memory():
        model = holder(torch.empty(300, 200, dtype=dtype))
        init(model)
    assert find_uninitialized(model) == []


@pytest.mark.parametrize("dtype", CHANCE, ids=str)
def test_values_that_are_marks(dtype):
    """A constant that is the first run's mark, in every element."""
    word = torch.tensor([marks.word_of(dtype, again=False)]).view(marks.BITS[dtype.itemsize])
    many = word.repeat(8)
    model = holder(torch.empty(many.numel(), dtype=dtype))
    assert left(model, lambda model: bits(model.x).copy_(many)) == []
    assert left(model, lambda model: bits(model.x)[3:].copy_(many[3:])) == [
        ("unwritten", 3, many.numel(), "[0:3]")
    ]


def test_values_that_are_the_marks_of_the_second_run():
    """Which another tensor causes."""
    first, second = (
        torch.tensor([marks.word_of(torch.uint8, again)]).view(torch.uint8)
        for again in (False, True)
    )
    model = holder(torch.zeros(8, dtype=torch.uint8))
    model.register_buffer("y", torch.zeros(8, dtype=torch.uint8))

    def init(model):
        model.x.copy_(second)
        model.y.copy_(first)

    assert left(model, init) == []


@pytest.mark.parametrize("size", [9, 15, 8, 7])
def test_bytes_at_the_end_in_one_look(size):
    """Those that are no eight belong to what is before them."""
    with marked_memory():
        model = holder(torch.empty(size, dtype=torch.uint8))
    assert [row.count for row in find_uninitialized(model)] == [size]
    model.x[:-1] = 0
    assert find_uninitialized(model) == []


def test_one_byte_alone():
    """One look cannot tell, two can."""
    with marked_memory():
        model = holder(torch.empty((), dtype=torch.int8))
    assert [row.what for row in find_uninitialized(model)] == ["cannot tell"]
    assert left(model) == [("unwritten", 1, 1, "")]
    value = marks.word_of(torch.int8, again=False) & 0xFF
    assert left(model, lambda model: model.x.fill_(value)) == []


@pytest.mark.parametrize("dtype", [*FLOATS, torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_other_nans(dtype):
    """Of either sign; infinities are values."""
    negative = -float("nan")
    values = torch.tensor([1, float("nan"), negative, 3, float("inf"), -float("inf")])
    if dtype == torch.float8_e4m3fn:  # it has no infinity, and its negative NaN is the mark
        values = values[[0, 1, 1, 3]]
    model = holder(values.to(dtype))
    assert [(row.what, row.count, row.where) for row in find_uninitialized(model)] == [
        ("NaN", 2, "[1:3]")
    ]
    assert find_uninitialized(holder(values[[0, 3]].to(dtype))) == []
    if dtype in FLOATS:
        assert find_uninitialized(holder(values[4:].to(dtype).repeat(9))) == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.uint8, torch.int64, torch.complex64])
def test_tensors_of_several_chunks(dtype):
    """The box of three elements far apart, and the count of all but a few."""
    size = (3 << 18) + 5
    model = holder(torch.zeros(size, dtype=dtype))

    def init(model: nn.Module, but: tuple[int, ...]) -> None:
        kept = bits(model.x).clone()
        bits(model.x).zero_()
        for place in but:
            bits(model.x)[place] = kept[place]

    at = (5, 1 << 18, size - 2)
    assert left(model, lambda model: init(model, at)) == [("unwritten", 3, size, f"[5:{size - 1}]")]
    assert left(model, lambda model: bits(model.x)[7].zero_()) == [
        ("unwritten", size - 1, size, "")
    ]


@given(
    shape=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    order=st.randoms(use_true_random=False),
    dtype=st.sampled_from((torch.float32, torch.int16, torch.uint8, torch.int64)),
)
def test_boxes(shape, order, dtype):
    """The smallest box of any set of elements, whatever their order in memory."""
    dims = list(range(len(shape)))
    order.shuffle(dims)
    back = sorted(dims, key=dims.__getitem__)
    tensor = torch.zeros([shape[dim] for dim in dims], dtype=dtype).permute(back)
    assert list(tensor.shape) == shape
    kept = torch.tensor([order.random() < 0.3 for _ in range(tensor.numel())]).view(shape)
    rows = left(holder(tensor), lambda model: model.x.masked_fill_(~kept, 0))
    places = kept.nonzero()
    if not len(places):
        assert rows == []
        return
    low, high = places.amin(0).tolist(), (places.amax(0) + 1).tolist()
    said = [
        ":" if (first, end) == (0, size) else f"{first}:{end}"
        for first, end, size in zip(low, high, shape, strict=True)
    ]
    where = "" if set(said) == {":"} else f"[{', '.join(said)}]"
    assert rows == [("unwritten", len(places), tensor.numel(), where)]


def test_marks_are_neither_numbers_nor_each_others():
    for dtype in (*FLOATS, *EIGHT_BITS):
        word = torch.tensor([marks.word_of(dtype, again=False)])
        assert bool(word.view(dtype).float().isnan().all())
    first, second = (
        torch.tensor([marks.word_of(torch.uint8, again)]).view(torch.uint8)
        for again in (False, True)
    )
    assert len({*first.tolist(), *second.tolist()}) == 16
