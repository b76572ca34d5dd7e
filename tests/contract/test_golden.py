"""The numbers themselves, against tests/data/golden.csv."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
import torch

import torchinit

native = pytest.importorskip("torchinit.native._native", reason="tests the native module")

DATA = Path(__file__).parents[1] / "data"
KEY = 0x9E3779B97F4A7C15 - 2**64
CHANGED = (
    "NUMBERS CHANGED. If that is intended, say which and why in CHANGELOG.md under the stream "
    "version, and make the table anew: python tools/golden.py"
)
DTYPES = {getattr(torch, name.lower()): number for name, number in native.Dtype.__members__.items()}


def rows(name):
    with (DATA / name).open(newline="") as file:
        return list(csv.DictReader(file))


def numbers(text):
    return [int(word) for word in text.split()]


FILLS = {row["name"]: row for row in rows("fills.csv")}
BOXES = {row["name"]: row for row in rows("boxes.csv")}
FLOAT32 = 1  # as the number of a dtype of scales (csrc/math/block_format.h)
QUANTISED = {row["name"]: row for row in rows("quantised.csv")}
GOLDEN = rows("golden.csv")


def draw_of(case):
    """(distribution, p0, p1, p2, p3)."""
    fill = FILLS[case]
    kind = getattr(native.Distribution, fill["distribution"].upper())
    return (int(kind), *(float(fill[f"p{i}"]) for i in range(4)))


def fnv(memory):
    """FNV-1a of a tensor's bytes."""
    value = 0xCBF29CE484222325
    for byte in memory.view(torch.uint8).numpy().tobytes():
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return f"{value:016x}"


def first_values(memory, count):
    if memory.dtype.is_floating_point:
        return [value.hex() for value in memory[:count].double().tolist()]
    unsigned = 2 ** (8 * memory.element_size())
    return [value % unsigned for value in memory[:count].tolist()]


def parse(values, dtype):
    if dtype.is_floating_point:
        return [float.fromhex(value).hex() for value in values.split()]
    return [int(value) for value in values.split()]


def mismatch(row, memory):
    """What is wrong with filled memory, or an empty list."""
    place = f"{row['case']}, {row['dtype']}, {row['box']}"
    if row["case"] in FILLS:
        kind, *parameters = draw_of(row["case"])
        transform = native.transform(kind, int(DTYPES[memory.dtype]), *parameters)
        if transform != row["transform"]:
            return [f"{place}: the transform {transform} where {row['transform']} was"]
    expected = parse(row["values"], memory.dtype)
    got = first_values(memory, len(expected))
    if got == expected and fnv(memory) == row["hash"]:
        return []
    return [f"{place}: {got} where {expected} was"]


def fill(row):
    """New memory, filled as a row of the table says."""
    box = BOXES[row["box"]]
    sizes, strides = numbers(box["sizes"]), numbers(box["strides"])
    reach = 1 + sum((n - 1) * step for n, step in zip(sizes, strides, strict=True))
    dtype = getattr(torch, row["dtype"])
    memory = torch.zeros(reach * dtype.itemsize, dtype=torch.uint8).view(dtype)
    kind, *parameters = draw_of(row["case"])
    where = (sizes, strides, numbers(box["global_shape"]), numbers(box["offset"]))
    number = int(DTYPES[dtype])
    if row["box"] in ("flat", "long"):
        native.fill(kind, number, *parameters, KEY, memory.data_ptr(), reach, 2)
    else:
        native.fill_box(kind, number, *parameters, KEY, memory.data_ptr(), *where, 2)
    return memory, (draw_of(row["case"]), number, KEY, where)


@pytest.fixture(params=native.instruction_sets())
def instruction_set(request):
    active = native.instruction_set()
    assert native.choose_instruction_set(request.param)
    yield request.param
    native.choose_instruction_set(active)


def test_fills(instruction_set):
    table = [row for row in GOLDEN if row["case"] in FILLS]
    assert {row["case"] for row in table} == set(FILLS)
    memory, jobs = zip(*map(fill, table), strict=True)
    wrong = [line for row, each in zip(table, memory, strict=True) for line in mismatch(row, each)]
    assert not wrong, "\n".join([f"{CHANGED} ({instruction_set})", *wrong[:20]])
    # The same as one list.
    again = [torch.zeros_like(each.view(torch.uint8)) for each in memory]
    draws, dtypes, keys, boxes = map(list, zip(*jobs, strict=True))
    native.fill_list(draws, dtypes, keys, [each.data_ptr() for each in again], boxes, 2)
    for row, one, other in zip(table, memory, again, strict=True):
        assert torch.equal(one.view(torch.uint8), other), row


def test_the_stream_version():
    """One number in Python, in C++ and in the table, which is of these streams."""
    (row,) = (row for row in GOLDEN if row["case"] == "stream-version")
    assert int(row["values"]) == torchinit.STREAM_VERSION == native.stream_version


def orthogonal(row):
    """New memory, filled as a row of the table says."""
    *words, shape = row["box"].rpartition(" of ")
    kind, shape, gain, keys = words[0], numbers(shape), 0.5, [KEY]
    sizes, offset = shape, [0] * len(shape)
    if kind == "box":
        sizes, offset, gain = [90, 5, 9], [200, 1, 2], 1.0
    elif kind == "batch":
        shape = sizes = shape[1:]
        keys, offset, gain = [KEY, 42, 0], [0, 0], -2.0
    elif kind:
        gain = float(kind.removeprefix("gain "))
    dtype = getattr(torch, row["dtype"])
    size = math.prod(sizes)
    memory = torch.zeros(len(keys) * size * dtype.itemsize, dtype=torch.uint8).view(dtype)
    addresses = [memory.data_ptr() + i * size * dtype.itemsize for i in range(len(keys))]
    strides = torch.empty(sizes, device="meta").stride()
    native.fill_orthogonal(
        int(DTYPES[dtype]), keys, addresses, sizes, strides, shape, offset, gain, 2
    )
    return memory


def test_orthogonal_matrices(instruction_set):
    table = [row for row in GOLDEN if row["case"] == "orthogonal"]
    assert len(table) >= 80
    wrong = []
    for row in table:
        wrong += mismatch(row, orthogonal(row))
    assert not wrong, "\n".join([f"{CHANGED} ({instruction_set})", *wrong])


def quantised(row):
    """The bytes of the payload, and after them those of the scales, as a row of the table says."""
    line = QUANTISED[row["box"]]
    form, matrix, box = (numbers(line[name]) for name in ("format", "matrix", "box"))
    payload = box[1] * box[3] * box[5] // (1 + form[2])
    sides = zip(box[2::2], box[3::2], form, strict=False)
    blocks = box[1] * math.prod(-(-(o + n) // size) - o // size for o, n, size in sides)
    memory = torch.zeros(payload + blocks * (4 if form[4] == FLOAT32 else 1), dtype=torch.uint8)
    native.fill_quantised(
        draw_of(line["draw"]), int(DTYPES[getattr(torch, row["dtype"])]), KEY, 0, form,
        float(line["largest"]), matrix, box, memory.data_ptr(), memory.data_ptr() + payload, 2,
    )  # fmt: skip
    return memory


def test_low_precision_weights(instruction_set):
    table = [row for row in GOLDEN if row["case"] == "quantised"]
    assert [(row["box"], row["dtype"]) for row in table] == [
        (line["name"], line["source"]) for line in QUANTISED.values()
    ]
    rules = {numbers(line["format"])[3] for line in QUANTISED.values()}
    assert rules == set(range(5))
    wrong = []
    for row in table:
        wrong += mismatch(row, quantised(row))
    assert not wrong, "\n".join([f"{CHANGED} ({instruction_set})", *wrong])


def test_the_table_is_complete():
    """Every case of every dtype and box; and every row is of one of the tests above."""
    kinds = {"stream-version", "quantised", "orthogonal"}
    assert {row["case"] for row in GOLDEN} == kinds | set(FILLS)
    for case, fill in FILLS.items():
        words = fill["distribution"] == "words"
        dtypes = {str(d).removeprefix("torch.") for d in DTYPES if d.is_floating_point != words}
        expected = {
            (dtype, box["name"])
            for dtype in dtypes
            for box in BOXES.values()
            if box["dtypes"] in ("all", dtype)
        }
        assert {(row["dtype"], row["box"]) for row in GOLDEN if row["case"] == case} == expected


def test_a_changed_bit_is_seen():
    row = next(row for row in GOLDEN if row["case"] == "normal" and row["box"] == "far")
    memory, _ = fill(row)
    assert mismatch(row, memory) == []
    memory.view(torch.uint8)[-1] ^= 1
    assert len(mismatch(row, memory)) == 1
