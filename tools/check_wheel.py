"""Compares the CPU module of a wheel, or of a folder, with the golden values, without torch.

    python tools/check_wheel.py dist/torchinit-….whl

Run it with the wheel's own Python, which may be emulated. Every instruction set of the processor
makes every fill of tests/data/golden.csv; a different hash is an error.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import importlib
import math
import platform
import re
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DATA = Path(__file__).resolve().parent.parent / "tests" / "data"
KEY = 0x9E3779B97F4A7C15 - 2**64


def rows(name: str) -> list[dict[str, str]]:
    """The rows of a table."""
    with (DATA / name).open(newline="") as file:
        return list(csv.DictReader(file))


def numbers(text: str) -> list[int]:
    """The numbers in a field."""
    return [int(word) for word in text.split()]


def fnv(memory: Any) -> str:
    """The FNV-1a hash of bytes."""
    value = 0xCBF29CE484222325
    for byte in memory.raw:
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return f"{value:016x}"


def fill(module: Any, row: dict[str, str], fill: dict[str, str], box: dict[str, str]) -> str:
    """The hash of memory filled according to a row."""
    kind = int(getattr(module.Distribution, fill["distribution"].upper()))
    parameters = [float(fill[f"p{i}"]) for i in range(4)]
    dtype = row["dtype"]
    number = int(getattr(module.Dtype, dtype.upper()))
    where = [numbers(box[name]) for name in ("sizes", "strides", "global_shape", "offset")]
    reach = 1 + sum((n - 1) * step for n, step in zip(where[0], where[1], strict=True))
    memory = ctypes.create_string_buffer(reach * itemsize(dtype))
    address = ctypes.addressof(memory)
    if row["box"] in ("flat", "long"):
        module.fill(kind, number, *parameters, KEY, address, reach, 2)
    else:
        module.fill_box(kind, number, *parameters, KEY, address, *where, 2)
    return fnv(memory)


def itemsize(dtype: str) -> int:
    """Bytes of an element, by the bits in the dtype's name."""
    bits = re.search(r"(?:float|int)(\d+)", dtype)
    assert bits is not None, dtype
    return int(bits[1]) // 8


def orthogonal(module: Any, row: dict[str, str]) -> str:
    """The hash of the orthogonal matrices of a row, as tests/contract/test_golden.py makes them."""
    kind, _, text = row["box"].rpartition(" of ")
    shape, gain, keys = numbers(text), 0.5, [KEY]
    sizes, offset = shape, [0] * len(shape)
    if kind == "box":
        sizes, offset, gain = [90, 5, 9], [200, 1, 2], 1.0
    elif kind == "batch":
        shape = sizes = shape[1:]
        keys, offset, gain = [KEY, 42, 0], [0, 0], -2.0
    elif kind:
        gain = float(kind.removeprefix("gain "))
    size, bytes_each = math.prod(sizes), itemsize(row["dtype"])
    memory = ctypes.create_string_buffer(len(keys) * size * bytes_each)
    addresses = [ctypes.addressof(memory) + i * size * bytes_each for i in range(len(keys))]
    strides = [math.prod(sizes[i + 1 :]) for i in range(len(sizes))]
    number = int(getattr(module.Dtype, row["dtype"].upper()))
    module.fill_orthogonal(number, keys, addresses, sizes, strides, shape, offset, gain, 2)
    return fnv(memory)


def quantised(module: Any, row: dict[str, str], fill: dict[str, str], line: dict[str, str]) -> str:
    """The hash of payload and scales, as tests/contract/test_golden.py makes them."""
    form, matrix, box = (numbers(line[name]) for name in ("format", "matrix", "box"))
    payload = box[1] * box[3] * box[5] // (1 + form[2])
    sides = zip(box[2::2], box[3::2], form, strict=False)
    blocks = box[1] * math.prod(-(-(o + n) // size) - o // size for o, n, size in sides)
    memory = ctypes.create_string_buffer(payload + blocks * (4 if form[4] == 1 else 1))  # float32
    address = ctypes.addressof(memory)
    kind = int(getattr(module.Distribution, fill["distribution"].upper()))
    draw = (kind, *(float(fill[f"p{i}"]) for i in range(4)))
    dtype = int(getattr(module.Dtype, row["dtype"].upper()))
    module.fill_quantised(draw, dtype, KEY, 0, form, float(line["largest"]), matrix, box,
                          address, address + payload, 2)  # fmt: skip
    return fnv(memory)


def wrong_rows(module: Any) -> Iterator[str]:
    """The rows of the table that the module's instruction set fills with different values."""
    fills = {row["name"]: row for row in rows("fills.csv")}
    boxes = {row["name"]: row for row in rows("boxes.csv")}
    lines = {row["name"]: row for row in rows("quantised.csv")}
    for row in rows("golden.csv"):
        if row["case"] == "stream-version":
            found, expected = str(module.stream_version), row["values"]
        else:
            expected = row["hash"]
            if row["case"] == "orthogonal":
                found = orthogonal(module, row)
            elif row["case"] == "quantised":
                line = lines[row["box"]]
                found = quantised(module, row, fills[line["draw"]], line)
            else:
                found = fill(module, row, fills[row["case"]], boxes[row["box"]])
        if found != expected:
            yield f"{row['case']}, {row['dtype']}, {row['box']}: {found} where {expected} was"


def main() -> int:
    """Checks, prints what was checked, and returns the status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("wheel", type=Path, help="a wheel, or a folder that torchinit is in")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = options.wheel
        if folder.is_file():
            with zipfile.ZipFile(folder) as archive:
                archive.extractall(name)
            folder = Path(name)
        sys.path.append(str(folder / "torchinit" / "native"))
        module: Any = importlib.import_module("_native")
        wrong = []
        for instruction_set in module.instruction_sets():
            module.choose_instruction_set(instruction_set)
            wrong += [f"{instruction_set}: {line}" for line in wrong_rows(module)]
    sets, count = module.instruction_sets(), len(rows("golden.csv"))
    print("\n".join(wrong[:20]))
    print(
        f"{options.wheel.name}: Python {platform.python_version()} on {platform.machine()}, "
        f"{count} rows on each of {', '.join(sets)}: {len(wrong)} wrong"
    )
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
