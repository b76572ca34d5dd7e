"""The native module's own interface: what it reads, and what it refuses before it writes."""

from __future__ import annotations

import enum
from collections import namedtuple

import pytest
import torch

native = pytest.importorskip("torchinit.native._native", reason="tests the native module")

Draw = namedtuple("Draw", ["distribution", "p0", "p1", "p2", "p3"])
NORMAL = (2, 0.0, 1.0, 0.0, 0.0)
FLOAT32 = 1


class Kind(enum.IntEnum):
    NORMAL = 2


def filled(count=8, key=-5):
    memory = torch.zeros(count)
    native.fill(*NORMAL[:1], FLOAT32, *NORMAL[1:], key, memory.data_ptr(), count, 1)
    assert memory.count_nonzero() == count
    return memory


@pytest.mark.parametrize("draw", [NORMAL, Draw(Kind.NORMAL, 0, 1, 0, 0), list(NORMAL)])
@pytest.mark.parametrize("box", [8, ((2, 4), (4, 1), torch.Size([2, 4]), [0, 0])])
def test_a_list_of_one_is_a_fill(draw, box):
    memory = torch.zeros(8)
    native.fill_list([draw], [FLOAT32], [-5], [memory.data_ptr()], [box], 1)
    assert torch.equal(memory, filled())


def test_a_box_is_part_of_the_whole():
    memory = torch.zeros(2, 2)
    box = [2, 2], [1, 2], [2, 4], [0, 1]  # columns 1 and 2, transposed in memory
    native.fill_box(2, FLOAT32, 0.0, 1.0, 0.0, 0.0, -5, memory.data_ptr(), *box, 1)
    assert torch.equal(memory.t(), filled().view(2, 4)[:, 1:3])


def test_neighbours_share_a_plan_only_if_draw_and_dtype_agree():
    draws = [NORMAL, NORMAL, NORMAL, (2, 0.0, 2.0, 0.0, 0.0), (2, 0.0, 2.0, 0.0, 0.0)]
    dtypes = [1, 0, 1, 1, 1]
    memory = [torch.zeros(8, dtype=[torch.float64, torch.float32][d]) for d in dtypes]
    addresses = [each.data_ptr() for each in memory]
    native.fill_list(draws, dtypes, [-5] * 5, addresses, [8] * 5, 1)
    alone = torch.zeros(8, dtype=torch.float64)
    native.fill(2, 0, 0.0, 1.0, 0.0, 0.0, -5, alone.data_ptr(), 8, 1)
    assert torch.equal(memory[1], alone)
    for i, factor in ((0, 1), (2, 1), (3, 2), (4, 2)):
        assert torch.equal(memory[i], factor * filled())


def test_neighbours_of_two_zeros_do_not_share_a_plan():
    memory = torch.ones(2, 8)
    draws = [(4, 0.0, 0.0, 0.0, 0.0), (4, -0.0, 0.0, 0.0, 0.0)]
    native.fill_list(draws, [1] * 2, [0] * 2, [row.data_ptr() for row in memory], [8] * 2, 1)
    assert memory.count_nonzero() == 0
    assert memory.signbit().tolist() == [[False] * 8, [True] * 8]


def test_overlapping_fills_are_done_in_order():
    memory = torch.zeros(1 << 15)
    constants = [(4, float(i), 0.0, 0.0, 0.0) for i in range(8)]
    count = memory.numel()
    native.fill_list(constants, [1] * 8, [0] * 8, [memory.data_ptr()] * 8, [count] * 8, 2)
    assert (memory == 7).all()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"dtypes": [1]}, ValueError, "equally long"),
        ({"boxes": []}, ValueError, "equally long"),
        ({"draws": 5}, TypeError, "draws must be a list"),
        ({"draws": [NORMAL, NORMAL[:4]]}, ValueError, "5 fields, got 4"),
        ({"draws": [NORMAL, (9, *NORMAL[1:])]}, ValueError, "no distribution 9"),
        ({"draws": [NORMAL, (2, "x", 1, 0, 0)]}, TypeError, "real number"),
        ({"dtypes": [1, 8]}, ValueError, "no dtype 8"),
        ({"dtypes": [1, 4]}, ValueError, "does not fill dtype 4"),
        ({"dtypes": [1, 1.5]}, TypeError, "integer"),
        ({"keys": [1, 2**64]}, OverflowError, "int"),
        ({"boxes": [4, -4]}, ValueError, "-4 elements"),
        ({"boxes": [4, (1, 2, 3)]}, ValueError, "4 fields, got 3"),
        ({"boxes": [4, ([4], [1], [4], [1])]}, ValueError, "exceeds the logical shape"),
    ],
)
def test_a_wrong_list_raises_before_anything_is_written(changes, error, message):
    memory = torch.zeros(2, 4)
    columns = {
        "draws": [NORMAL] * 2,
        "dtypes": [1] * 2,
        "keys": [1, 2],
        "addresses": [memory[0].data_ptr(), memory[1].data_ptr()],
        "boxes": [4, 4],
    }
    with pytest.raises(error, match=message):
        native.fill_list(*{**columns, **changes}.values(), 1)
    assert memory.count_nonzero() == 0
    native.fill_list(*columns.values(), 1)
    assert memory.count_nonzero() == 8


@pytest.mark.parametrize("wrong", [{0: 2.5}, {2: "a"}, {8: None}, {9: ...}])
def test_a_fill_of_wrong_arguments_is_a_type_error(wrong):
    memory = torch.zeros(4)
    arguments = [2, 1, 0.0, 1.0, 0.0, 0.0, 1, memory.data_ptr(), 4, 1]
    for place, value in wrong.items():
        arguments[place] = value
    with pytest.raises(TypeError):
        native.fill(*arguments)
    with pytest.raises(TypeError):
        native.fill(*arguments[:9])
    assert memory.count_nonzero() == 0
