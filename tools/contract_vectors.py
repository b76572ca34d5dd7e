"""Writes docs/contract/contract.json: vectors of docs/streams.md, with the coefficients.

    python tools/contract_vectors.py

Run it after an intended change of numbers, as tools/golden.py. It takes values from torchinit, and
coefficients from csrc/math/coefficients.h.
"""

from __future__ import annotations

import contextlib
import csv
import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

import torchinit
from torchinit.dtypes import ALL_DTYPES
from torchinit.streams.keys import draw_key_number
from torchinit.streams.named_keys import keys_of_names, part_of

ROOT = Path(__file__).resolve().parent.parent
CONTRACT = ROOT / "docs" / "contract" / "contract.json"
KEY = 0x9E3779B97F4A7C15
Case = dict[str, Any]

# Salmon et al. 2011, Random123's kat_vectors: counter, key, output.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000",
     "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
     "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
     "d16cfe09 94fdcceb 5001e420 24126ea1"),
]  # fmt: skip
# (global_shape, offset, sizes); every fill has one of the first, some have all.
BOXES = [
    ([9], [0], [9]),
    ([2**40], [2**34 - 3], [8]),
    ([9, 70, 11], [3, 8, 2], [1, 3, 3]),
    ([600, 9], [3, 4], [7, 1]),
    ([2**52 + 9], [2**52 + 2], [7]),
    ([70], [1], [37]),
]
USUAL = ("uniform", "normal", "truncated-2-scaled", "truncated-3", "truncated-4", "words", "tail")
# Rules that no line of tests/data/fills.csv meets.
RARE: list[tuple[str, list[float]]] = [
    ("uniform", [0.3, 0.3]), ("normal", [0.3, 0]), ("truncated_normal", [0, 0, -1, 0]),
    ("truncated_normal", [5, 0, -1, 0.3]), ("constant", [math.inf]), ("constant", [-1e6]),
    ("constant", [-0.0]), ("truncated_normal", [0, 1, 0.3, 0.30000001]),
    ("truncated_normal", [0, 1e-320, 31e-320, math.inf]), ("truncated_normal", [0, 1, 35, 36]),
    ("truncated_normal", [0, 1, 29, 29.5]), ("truncated_normal", [0, 1, -3.5, -0.1]),
    ("normal", [0, 3e38]), ("truncated_normal", [0, 6e-26, -1.0, 6e-25]),
]  # fmt: skip
# Of whole matrices: (shape, gain); of boxes: (shape, offset, sizes, gain).
WHOLE = [
    ([1, 1], 1.0), ([3, 3], 1.0), ([5, 3], 0.5), ([3, 5], -2.0), ([4, 2, 3], math.sqrt(2)),
    ([2, 3, 2, 2], 1.0), ([1, 6], 1.0), ([6, 1], 0.1), ([4, 3], 0.0), ([3, 4], 2.0**70),
    ([4, 4], 1e-25), ([270, 2], 1.0),
]  # fmt: skip
PARTS = [
    ([45, 40], [7, 30], [30, 8], 1.0),  # two blocks
    ([35, 300], [31, 250], [4, 10], 1.0),  # sums of two segments in both
    ([9, 2, 4], [2, 1, 1], [3, 1, 3], 1.0),
]
NAMES = [
    (0, "a.weight", None), (0, "a.weight", 0), (0, "a", 1), (1, "a.weight", None), (-1, "a", None),
    (2**64 - 1, "a", None), (2**63, "", None), (0, "layers.10.größe", 12), (7, "", 3),
]  # fmt: skip
MX, BLOCKS, FP4 = torchinit.MXFP8, torchinit.FP8Blocks, torchinit.NVFP4
AMAX = 6.5556 * 0.02  # NVFP4's, of a normal with this std
# (distribution, parameters, format, scale dtype, amax, shape, offset, sizes)
QUANTISED: list[tuple[Any, ...]] = [
    ("normal", (0, 0.02), MX(), "float8_e8m0fnu", 0, [3, 70], [0, 0], [3, 70]),
    ("normal", (0, 0.02), MX("floor"), "float8_e8m0fnu", 0, [9, 80], [4, 30], [2, 40]),
    ("normal", (0, 0.02), MX(source=torch.bfloat16), "float8_e8m0fnu", 0, [2, 64], [0, 0], [2, 64]),
    ("normal", (0, 1e-39), MX(), "float8_e8m0fnu", 0, [2, 64], [0, 0], [2, 64]),
    ("normal", (0, 5e-43), MX(), "float8_e8m0fnu", 0, [1, 32], [0, 0], [1, 32]),
    ("normal", (0, 3e37), MX(), "float8_e8m0fnu", 0, [2, 64], [0, 0], [2, 64]),
    ("uniform", (-1, 1.3), BLOCKS(4, 8), "float32", 0, [9, 20], [3, 5], [5, 9]),
    ("normal", (0, 1e-39), BLOCKS(4, 8), "float32", 0, [4, 8], [0, 0], [4, 8]),
    ("normal", (0, 0.02), BLOCKS(4, 8, "ue8m0"), "float8_e8m0fnu", 0, [9, 20], [3, 5], [5, 9]),
    ("normal", (0, 0.02), BLOCKS(4, 8, "ue8m0"), "float32", 0, [4, 16], [0, 0], [4, 16]),
    ("normal", (0, 0.02), FP4(), "float8_e4m3fn", AMAX, [3, 50], [0, 0], [3, 50]),
    ("normal", (0, 0.02), FP4(16), "float8_e4m3fn", AMAX, [20, 40], [15, 14], [3, 10]),
    ("normal", (0, 0.02), FP4(amax=1e6), "float8_e4m3fn", 1e6, [2, 32], [0, 0], [2, 32]),
    ("uniform", (-1, 1.3), FP4(source=torch.bfloat16), "float8_e4m3fn", 1.3,
     [2, 32], [0, 0], [2, 32]),
]  # fmt: skip


def hexes(tensor: torch.Tensor) -> list[str]:
    """The bits of each element, in order."""
    size = tensor.element_size()
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[size]
    values = tensor.contiguous().view(integers).flatten().tolist()
    return [f"{value % 2 ** (8 * size):0{2 * size}x}" for value in values]


def named(dtype: torch.dtype) -> str:
    """A dtype without its module."""
    return str(dtype).removeprefix("torch.")


def key_tensor(key: int) -> torch.Tensor:
    """A key as the operators take it."""
    return torch.tensor(key - 2**64 if key >= 2**63 else key)


def coefficients() -> dict[str, list[str]]:
    """Those of csrc/math/coefficients.h, lowest power first."""
    text = (ROOT / "csrc" / "math" / "coefficients.h").read_text()
    structs = re.findall(r"struct (\w+) \{.*?c\[\] = \{(.*?)\};", text, re.DOTALL)
    number = re.compile(r"-?0x1[.\da-f]*p[-+]\d+")
    return {
        name: [float.fromhex(one).hex() for one in number.findall(body)] for name, body in structs
    }


def fills() -> Iterator[Case]:
    """Every line of tests/data/fills.csv in every dtype, in boxes that take turns."""
    count = {"words": 0, "constant": 1, "uniform": 2, "normal": 2, "truncated_normal": 4}
    with (ROOT / "tests" / "data" / "fills.csv").open(newline="") as file:
        rows = [
            (row["name"], kind := row["distribution"],
             [float(row[f"p{i}"]) for i in range(count[kind])])
            for row in csv.DictReader(file)
        ]  # fmt: skip
    rows += [("rare", *one) for one in RARE]
    rows.append(("tail", "truncated_normal", [0, 1, 2.1, math.inf]))  # beyond 3 sigmas in float32
    turn = 0
    for name, kind, parameters in rows:
        for dtype in ALL_DTYPES if parameters else (torch.int32, torch.int64):
            turn += 1
            for box in BOXES if name in USUAL else [BOXES[turn % 4]]:
                with contextlib.suppress(torchinit.ArgumentError):  # beyond the range of the dtype
                    yield fill(kind, parameters, dtype, *box)


def fill(
    kind: str,
    parameters: Sequence[float],
    dtype: torch.dtype,
    shape: list[int],
    offset: list[int],
    sizes: list[int],
) -> Case:
    """One box of a tensor."""
    tensor = torch.empty(sizes, dtype=dtype)
    names = {"words": "random_words", "truncated_normal": "trunc_normal"}
    operator = getattr(torch.ops.torchinit, f"{names.get(kind, kind)}_")
    if kind == "constant":
        operator(tensor, *parameters)
    else:
        operator(tensor, key_tensor(KEY), *parameters, shape, offset)
    return {
        "distribution": kind, "parameters": [float(one).hex() for one in parameters],
        "dtype": named(dtype), "key": f"{KEY:016x}", "global_shape": shape, "offset": offset,
        "sizes": sizes, "result": hexes(tensor),
    }  # fmt: skip


def orthogonal() -> Iterator[Case]:
    """Small matrices, and boxes of larger ones."""
    cases = [(shape, [0] * len(shape), shape, gain) for shape, gain in WHOLE] + PARTS
    for number, (shape, offset, sizes, gain) in enumerate(cases):
        others = (ALL_DTYPES[1:3], ALL_DTYPES[4:])[number % 2] if math.prod(sizes) < 50 else ()
        for dtype in (torch.float32, torch.float64, *others):
            if dtype == torch.float64 and math.prod(shape) > 5000:
                continue  # seconds in Python
            yield matrix((KEY + number) % 2**64, gain, dtype, shape, offset, sizes)


def matrix(
    key: int,
    gain: float,
    dtype: torch.dtype,
    shape: list[int],
    offset: list[int],
    sizes: list[int],
) -> Case:
    """One box of an orthogonal matrix."""
    tensor = torch.empty(sizes, dtype=dtype)
    torch.ops.torchinit.orthogonal_(tensor, key_tensor(key), gain, shape, offset)
    return {
        "gain": float(gain).hex(), "dtype": named(dtype), "key": f"{key:016x}",
        "global_shape": shape, "offset": offset, "sizes": sizes, "result": hexes(tensor),
    }  # fmt: skip


def quantised() -> Iterator[Case]:
    """Payload and scales."""
    for kind, parameters, form, scale_dtype, amax, shape, offset, sizes in QUANTISED:
        scheme = (
            torchinit.Uniform(*parameters) if kind == "uniform" else torchinit.Normal(parameters[1])
        )
        payload = torch.empty(form.payload_shape(sizes), dtype=form.payload_dtypes[0])
        blocks = form.blocks_of(offset, sizes)[1]
        scales = torch.empty(blocks, dtype=getattr(torch, scale_dtype))
        place = {"global_shape": shape, "offset": offset, "seed": 0, "name": "a.weight"}
        torchinit.init_shard_(payload, scheme, format=form, scales=scales, **place)
        rule = "nvfp4" if form.packed else form.scale
        yield {
            "rule": rule, "block": [form.rows, form.columns], "source": named(form.source),
            "scale_dtype": scale_dtype, "distribution": kind,
            "amax": float(torch.tensor(amax, dtype=torch.float32)).hex(),
            "parameters": [float(one).hex() for one in parameters], "key": key_of(0, "a.weight"),
            "global_shape": shape, "offset": offset, "sizes": sizes,
            "result": hexes(payload.view(torch.uint8)), "scales": hexes(scales),
        }  # fmt: skip


def key_of(seed: int, name: str) -> str:
    """The key of a name, in hex."""
    return f"{keys_of_names(seed)(name) % 2**64:016x}"


def names() -> Iterator[Case]:
    """Keys of names and of their parts."""
    for seed, name, part in NAMES:
        text = name if part is None else part_of(name, part)
        yield {"seed": seed, "name": name, "part": part, "result": [key_of(seed, text)]}


def generators() -> Iterator[Case]:
    """The first keys after torch.manual_seed."""
    for seed in (0, 1, 2**32 - 1, 2**32 + 5):
        torch.manual_seed(seed)
        keys = [draw_key_number() for _ in range(5)]
        yield {"seed": seed, "result": [f"{key % 2**64:016x}" for key in keys]}


def vectors() -> str:
    """The text of the file."""
    known = [
        {"counter": counter.split(), "key": key.split(), "result": output.split()}
        for counter, key, output in KNOWN_ANSWERS
    ]
    with torch.random.fork_rng(devices=[]):
        sections = {
            "philox": known, "generators": list(generators()), "names": list(names()),
            "fills": list(fills()), "orthogonal": list(orthogonal()),
            "quantised": list(quantised()),
        }  # fmt: skip
    lines = ['"$schema": "contract.schema.json"', f'"stream_version": {torchinit.STREAM_VERSION}']
    listed = [f'"{name}": {json.dumps(values)}' for name, values in coefficients().items()]
    lines.append('"coefficients": {\n' + ",\n".join(listed) + "\n}")
    texts = [
        f'"{name}": [\n' + ",\n".join(map(json.dumps, cases)) + "\n]"
        for name, cases in sections.items()
    ]
    lines.append('"vectors": {\n' + ",\n".join(texts) + "\n}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    CONTRACT.parent.mkdir(exist_ok=True)
    CONTRACT.write_text(vectors())
    print(f"{CONTRACT}: {CONTRACT.stat().st_size} bytes")
