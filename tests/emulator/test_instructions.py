"""Every instruction that the emulated device knows, on known operands, against NumPy or exact
arithmetic; what it must refuse; and what it must notice. Needs no nvcc.
"""

from __future__ import annotations

import ctypes
import fcntl
import math
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import emulate
import numpy as np
import pytest

HERE = Path(__file__).parent
FOLDER = emulate.OUTPUT / "tests"
FILES = ("instructions", "ptx", "machine", "library")
WARP = 32
COUNT = 4 * WARP

CXX = os.environ.get("CXX", "c++")
pytestmark = pytest.mark.skipif(shutil.which(CXX) is None, reason="there is no C++ compiler")


class Device(NamedTuple):
    """The library."""

    library: Any

    def run(self, text: str, arrays: Sequence[Any], blocks: int = 1, threads: int = WARP) -> str:
        """Runs a kernel whose parameters are addresses of arrays."""
        data = [array.ctypes.data for array in arrays]
        addresses = (ctypes.c_void_p * len(data))(*data)
        places = [ctypes.addressof(addresses) + 8 * i for i in range(len(data))]
        parameters = (ctypes.c_void_p * len(data))(*places)
        sizes = (ctypes.c_size_t * len(data))(*(array.nbytes for array in arrays))
        said = self.library.run_ptx(
            text.encode(), blocks, threads, parameters, addresses, sizes, len(data)
        )
        return str(said.decode())

    def known(self) -> set[str]:
        """The names of all instructions."""
        return set(self.library.known_instructions().decode().split())


@pytest.fixture(scope="module")
def device() -> Device:
    """The library, compiled if it is not there."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    made = FOLDER / "library.so"
    needs = [*HERE.glob("*.h"), *(HERE / f"{name}.cpp" for name in FILES)]
    with (FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one of the processes that run tests
        if not emulate.is_current(made, needs):
            with ThreadPoolExecutor() as pool:
                list(pool.map(compile_one, FILES))
            objects = [str(FOLDER / f"{name}.o") for name in FILES]
            part = str(FOLDER / "library.part")
            subprocess.run([CXX, "-shared", *objects, "-o", part], check=True)
            Path(part).replace(made)
    library = ctypes.CDLL(str(made))
    library.run_ptx.restype = library.known_instructions.restype = ctypes.c_char_p
    return Device(library)


def compile_one(name: str) -> None:
    """Compiles as quickly as can be, if it must."""
    flags = [flag for flag in emulate.CXX_FLAGS if not flag.startswith("-W")]
    source, made = HERE / f"{name}.cpp", FOLDER / f"{name}.o"
    if not emulate.is_current(made, [*HERE.glob("*.h"), source]):
        command = [CXX, *flags, "-O0", "-fPIC", "-c", str(source), "-o", str(made)]
        subprocess.run(command, check=True)


# What one instruction does to operands of these types: "pred" or a NumPy type.


class Case(NamedTuple):
    """An instruction: its operands, and one lane's results from one lane's operands."""

    out: Sequence[str]
    operands: Sequence[str]
    expected: Callable[..., Any]
    text: str = "{name} {out}, {operands}"


def bits(value: Any, type_: str) -> int:
    """A result in its type, as an integer that wraps."""
    if type_ == "pred":
        return int(bool(value))
    if type_[0] == "f":
        with np.errstate(over="ignore"):
            value = np.array(value, dtype=type_)
        view = "u4" if type_ == "f4" else "u8"
        return int(value.view(view))
    return int(value) & ((1 << (8 * int(type_[1:]))) - 1)


def quotient(a: int, b: int) -> int:
    """As C divides."""
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def nearest(exact: Fraction, type_: str) -> float:
    """The nearest number of a type, ties to even."""
    digits, least, most = (24, -149, 128) if type_ == "f4" else (53, -1074, 1024)
    if exact == 0:
        return 0.0
    exponent = abs(exact).numerator.bit_length() - abs(exact).denominator.bit_length()
    if abs(exact) < Fraction(2) ** exponent:
        exponent -= 1
    unit = Fraction(2) ** max(exponent - digits + 1, least)
    rounded = round(exact / unit) * unit  # of a Fraction: to even
    if abs(rounded) >= Fraction(2) ** most:
        return math.inf if exact > 0 else -math.inf
    return float(rounded)


def fused(a: Any, b: Any, c: Any, type_: str) -> float:
    """A product and a sum, rounded once."""
    if not all(map(math.isfinite, (a, b, c))):
        return float(np.float64(a) * np.float64(b) + np.float64(c))
    exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
    if exact == 0:
        return float(a * b + c)  # the sign of a zero
    return nearest(exact, type_)


def small_floats(digits: int, least: int, top: int, is_infinite: bool) -> list[tuple[float, int]]:
    """The numbers of a small format that are not negative, with their bits."""
    found = []
    for pattern in range(top + 1):
        exponent, fraction = pattern >> digits, pattern & ((1 << digits) - 1)
        scale = max(exponent, 1) - 1 + least - digits
        found.append((math.ldexp(fraction + ((exponent > 0) << digits), scale), pattern))
    if is_infinite:
        found.append((2 * found[-1][0] - found[-2][0], top + 1))
    return found


FORMATS = {
    "f16": small_floats(10, -14, 0x7BFF, True),
    "bf16": small_floats(7, -126, 0x7F7F, True),
    "e4m3": small_floats(3, -6, 0x7E, False),
    "e5m2": small_floats(2, -14, 0x7B, False),
}


def encoded(value: Any, name: str) -> int:
    """The bits of the nearest number of a small format, by looking at the nearest two."""
    table = FORMATS[name]
    width = 16 if name.endswith("f16") else 8
    if math.isnan(value):
        return 0x7FFF if width == 16 else 0x7F
    sign = int(math.copysign(1, value) < 0) << (width - 1)
    size = min(Fraction(abs(float(value))) if math.isfinite(value) else table[-1][0], table[-1][0])
    low, high = 0, len(table) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if table[middle][0] <= size else (low, middle)
    below, above = size - Fraction(table[low][0]), Fraction(table[high][0]) - size
    chosen = table[low if below < above or (below == above and low % 2 == 0) else high]
    return sign | chosen[1]


def pair(name: str) -> Callable[..., int]:
    """Two numbers side by side, the first in the upper half."""
    width = 16 if name.endswith("f16") else 8
    return lambda a, b: encoded(a, name) << width | encoded(b, name)


def nearly_reciprocal(a: Any) -> np.float32:
    """Off by one unit in the last place, by a hash of the right one, or by none."""
    right = np.float32(1) / np.float32(a)
    least = np.finfo(np.float32).tiny
    if not (least <= abs(a) < np.inf and least <= abs(right) < np.inf):
        return right
    bits = int(right.view(np.uint32))
    bits += (bits * 2654435761 % 2**32 >> 16) % 3 - 1
    return np.uint32(bits).view(np.float32)


def smaller(a: Any, b: Any) -> Any:
    """Of numbers: a NaN is left out, and -0 is less than 0."""
    if math.isnan(a) or math.isnan(b):
        return b if math.isnan(a) else a
    return min(a, b, key=lambda x: (x, math.copysign(1, x)))


def truncated(a: Any, type_: str) -> int:
    """To an integer, within its range."""
    size = 8 * int(type_[1:])
    least, most = (0, 2**size - 1) if type_[0] == "u" else (-(2 ** (size - 1)), 2 ** (size - 1) - 1)
    if math.isnan(a):
        return 0
    return least if a == -math.inf else most if a == math.inf else min(max(int(a), least), most)


def permuted(a: int, b: int, selector: int) -> int:
    """The bytes that a selector names."""
    both = (b << 32 | a).to_bytes(8, "little")
    chosen = [selector >> (4 * i) & 15 for i in range(4)]
    found = [both[c & 7] if c < 8 else 255 * (both[c & 7] >> 7) for c in chosen]
    return int.from_bytes(bytes(found), "little")


def field(a: int, position: int, length: int) -> int:
    """Bits from a position on."""
    return a >> (position & 255) & ((1 << (length & 255)) - 1)


def inserted(a: int, b: int, position: int, length: int, width: int) -> int:
    """The lowest bits of a word in another, from a position on."""
    mask = ((1 << (length & 255)) - 1) << (position & 255) & ((1 << width) - 1)
    return b & ~mask | a << (position & 255) & mask


def make_cases() -> dict[str, Case]:
    """All instructions that work on registers alone."""
    cases: dict[str, Case] = {}
    orders: dict[str, Callable[[Any, Any], bool]] = {
        "eq": lambda a, b: a == b,
        "ne": lambda a, b: a < b or a > b,
        "lt": lambda a, b: a < b,
        "le": lambda a, b: a <= b,
        "gt": lambda a, b: a > b,
        "ge": lambda a, b: a >= b,
    }
    for size in (2, 4, 8):
        most = 8 * size - 1
        for kind in "ubs" if size == 2 else "ubsf":
            u, name = f"u{size}", f"{kind}{8 * size}"
            cases[f"mov.{name}"] = Case([u], [u], lambda a: a)
            cases[f"selp.{name}"] = Case([u], [u, u, "pred"], lambda a, b, p: a if p else b)
        u, name = f"u{size}", f"b{8 * size}"
        cases[f"setp.eq.{name}"] = Case(["pred"], [u, u], orders["eq"])
        cases[f"setp.ne.{name}"] = Case(["pred"], [u, u], orders["ne"])
        cases[f"and.{name}"] = Case([u], [u, u], lambda a, b: a & b)
        cases[f"or.{name}"] = Case([u], [u, u], lambda a, b: a | b)
        cases[f"xor.{name}"] = Case([u], [u, u], lambda a, b: a ^ b)
        cases[f"not.{name}"] = Case([u], [u], lambda a: ~a)
        cases[f"shl.{name}"] = Case(
            [u], [u, "small"], lambda a, n, most=most: a << min(n, most + 1)
        )
        for kind in "us":
            t, name, wide = f"{kind if kind == 'u' else 'i'}{size}", f"{kind}{8 * size}", 2 * size
            cases[f"add.{name}"] = Case([t], [t, t], lambda a, b: a + b)
            cases[f"sub.{name}"] = Case([t], [t, t], lambda a, b: a - b)
            cases[f"mul.lo.{name}"] = Case([t], [t, t], lambda a, b: a * b)
            cases[f"mad.lo.{name}"] = Case([t], [t, t, t], lambda a, b, c: a * b + c)
            cases[f"mul.hi.{name}"] = Case([t], [t, t], lambda a, b, n=most + 1: a * b >> n)
            cases[f"div.{name}"] = Case([t], [t, t + "/"], quotient)
            cases[f"rem.{name}"] = Case([t], [t, t + "/"], lambda a, b: a - quotient(a, b) * b)
            cases[f"min.{name}"] = Case([t], [t, t], min)
            cases[f"max.{name}"] = Case([t], [t, t], max)
            cases[f"shr.{name}"] = Case([t], [t, "small"], lambda a, n: a >> n)
            for order, compare in orders.items():
                cases[f"setp.{order}.{name}"] = Case(["pred"], [t, t], compare)
            if size < 8:
                w = f"{t[0]}{wide}"
                cases[f"mul.wide.{name}"] = Case([w], [t, t], lambda a, b: a * b)
                cases[f"mad.wide.{name}"] = Case([w], [t, t, w], lambda a, b, c: a * b + c)
        s, name = f"i{size}", f"s{8 * size}"
        cases[f"neg.{name}"] = Case([s], [s], lambda a: -a)
        cases[f"abs.{name}"] = Case([s], [s], abs)
    cases["rcp.approx.ftz.f32"] = Case(["f4"], ["f4"], nearly_reciprocal)
    for size in (4, 8):
        f, name = f"f{size}", f"f{8 * size}"
        cases[f"add.rn.{name}"] = Case([f], [f, f], lambda a, b: a + b)
        cases[f"sub.rn.{name}"] = Case([f], [f, f], lambda a, b: a - b)
        cases[f"mul.rn.{name}"] = Case([f], [f, f], lambda a, b: a * b)
        cases[f"div.rn.{name}"] = Case([f], [f, f], lambda a, b: a / b)
        cases[f"fma.rn.{name}"] = Case([f], [f, f, f], lambda a, b, c, f=f: fused(a, b, c, f))
        cases[f"rcp.rn.{name}"] = Case([f], [f], lambda a: type(a)(1) / a)
        cases[f"sqrt.rn.{name}"] = Case([f], [f], np.sqrt)
        cases[f"neg.{name}"] = Case([f], [f], lambda a: -a)
        cases[f"abs.{name}"] = Case([f], [f], abs)
        cases[f"min.{name}"] = Case([f], [f, f], smaller)
        cases[f"max.{name}"] = Case([f], [f, f], lambda a, b: -smaller(-a, -b))
        for order, compare in orders.items():
            cases[f"setp.{order}.{name}"] = Case(["pred"], [f, f], compare)
        for kind, t in (("u", "u"), ("s", "i")):
            for width in (4, 8):
                i, integer = f"{t}{width}", f"{kind}{8 * width}"
                cases[f"cvt.rn.{name}.{integer}"] = Case(
                    [f], [i], lambda a, f=f: nearest(Fraction(a), f)
                )
                cases[f"cvt.rzi.{integer}.{name}"] = Case([i], [f], lambda a, i=i: truncated(a, i))
    for to in (1, 2, 4, 8):
        for to_kind in "us":
            for size in (1, 2, 4, 8):
                for kind in "us":
                    # Registers have two bytes or more.
                    case = Case(
                        [f"{'i' if to_kind == 's' else 'u'}{max(to, 2)}"],
                        [f"u{max(size, 2)}"],
                        lambda a, s=size, k=kind, t=to, tk=to_kind: in_range(
                            in_range(a, s, k), t, tk
                        ),
                    )
                    cases[f"cvt.{to_kind}{8 * to}.{kind}{8 * size}"] = case
    cases["cvt.f64.f32"] = Case(["f8"], ["f4"], lambda a: a)
    cases["cvt.rn.f32.f64"] = Case(["f4"], ["f8"], lambda a: a)
    cases["cvt.rn.f16x2.f32"] = Case(["u4"], ["f4", "f4"], pair("f16"))
    cases["cvt.rn.bf16x2.f32"] = Case(["u4"], ["f4", "f4"], pair("bf16"))
    cases["cvt.rn.satfinite.e4m3x2.f32"] = Case(["u2"], ["f4", "f4"], pair("e4m3"))
    cases["cvt.rn.satfinite.e5m2x2.f32"] = Case(["u2"], ["f4", "f4"], pair("e5m2"))
    cases["cvta.to.global.u64"] = Case(["u8"], ["u8"], lambda a: a)
    cases["bfe.u32"] = Case(["u4"], ["u4", "small", "small"], field)
    for size in (4, 8):
        u = f"u{size}"
        cases[f"bfi.b{8 * size}"] = Case(
            [u],
            [u, u, "small", "small"],
            lambda a, b, position, length, size=size: inserted(a, b, position, length, 8 * size),
        )
    cases["prmt.b32"] = Case(["u4"], ["u4", "u4", "u4"], permuted)
    cases["shf.l.wrap.b32"] = Case(
        ["u4"], ["u4", "u4", "u4"], lambda a, b, n: (b << 32 | a) << (n & 31) >> 32
    )
    cases["shf.r.wrap.b32"] = Case(
        ["u4"], ["u4", "u4", "u4"], lambda a, b, n: (b << 32 | a) >> (n & 31)
    )
    for name, size in (("b32", 2), ("b64", 4)):
        half, whole = f"u{size}", f"u{2 * size}"
        cases[f"mov.{name}/pack"] = Case(
            [whole],
            [half, half],
            lambda a, b, n=8 * size: b << n | a,
            "{name} {out}, {{{operands}}}",
        )
        cases[f"mov.{name}/unpack"] = Case(
            [half, half], [whole], lambda a, n=8 * size: (a, a >> n), "{name} {{{out}}}, {operands}"
        )
    cases["mov.pred"] = Case(["pred"], ["pred"], lambda a: a)
    cases["not.pred"] = Case(["pred"], ["pred"], lambda a: not a)
    cases["and.pred"] = Case(["pred"], ["pred", "pred"], lambda a, b: a and b)
    cases["or.pred"] = Case(["pred"], ["pred", "pred"], lambda a, b: a or b)
    cases["xor.pred"] = Case(["pred"], ["pred", "pred"], lambda a, b: a != b)
    return cases


def in_range(value: int, size: int, kind: str) -> int:
    """The lowest bytes of a number, as a signed or an unsigned one."""
    low = value & ((1 << (8 * size)) - 1)
    return low - (1 << (8 * size)) if kind == "s" and low >> (8 * size - 1) else low


CASES = make_cases()


def operand_values(type_: str, random: np.random.Generator) -> Any:
    """Operands of a type: special ones, each with many others', and any."""
    if type_ == "small":
        return random.integers(0, 70, COUNT).astype("u4")
    if type_ == "pred":
        return random.integers(0, 2, COUNT).astype("u4")
    base = type_.rstrip("/")
    size = int(base[1:])
    found = random.integers(0, 256, (COUNT, size), dtype="u1").view(base).reshape(COUNT).copy()
    if base[0] == "f":
        special = [0.0, -0.0, 1.0, -1.5, math.inf, -math.inf, math.nan, 2.0**-149, 448.0, 464.0]
        special += [465.0, 57344.0, 65519.0, 65520.0, 2.0**31, -(2.0**63), 0.5 + 2.0**-9]
        with np.errstate(over="ignore"):
            moderate = random.normal(size=COUNT) * np.exp2(random.integers(-20, 20, COUNT))
            found[::2] = moderate.astype(base)[::2]
    else:
        info = np.iinfo(base)
        special = [0, 1, info.max, info.min, 7, 255, 128]
    chosen = random.permutation(COUNT)[: 3 * len(special)]
    found[chosen] = np.array(special * 3, dtype=base)
    if type_.endswith("/"):
        found[found == 0] = 3
    return found


WIDTH_NAMES = {"u2": "b16", "i2": "b16", "u4": "b32", "i4": "b32", "small": "b32", "f4": "b32",
               "u8": "b64", "i8": "b64", "f8": "b64"}  # fmt: skip


def kernel(body: str, arrays: int, registers: str = "", threads: int = WARP) -> str:
    """A kernel with the addresses of arrays in %in0 on, and the thread's number in %at."""
    parameters = ",\n".join(f".param .u64 array{i}" for i in range(arrays))
    loads = "\n".join(f"ld.param.u64 %in{i}, [array{i}];" for i in range(arrays))
    return f"""
.version 9.0
.target sm_90
.address_size 64
.visible .entry kernel({parameters})
.maxntid {threads}, 1, 1
{{
.reg .b64 %in<{arrays + 1}>;
.reg .b64 %to<9>;
.reg .b32 %index<4>;
.reg .b64 %at;
{registers}
mov.u32 %index0, %ctaid.x;
mov.u32 %index1, %ntid.x;
mov.u32 %index2, %tid.x;
mad.lo.s32 %index3, %index0, %index1, %index2;
cvt.u64.u32 %at, %index3;
{loads}
{body}
ret;
}}
"""


def case_kernel(name: str, case: Case) -> str:
    """A kernel that runs an instruction on arrays of operands."""
    body, registers = [], []
    operands = [type_.rstrip("/") for type_ in case.operands]
    for i, type_ in enumerate((*operands, *case.out)):
        width = "b32" if type_ == "pred" else WIDTH_NAMES[type_]
        registers.append(f".reg .{width} %x{i};\n.reg .pred %q{i};")
        size = int(width[1:]) // 8
        body.append(f"mad.lo.s64 %to{i}, %at, {size}, %in{i};")
        if i < len(operands):
            body.append(f"ld.global.{width} %x{i}, [%to{i}];")
            if type_ == "pred":
                body.append(f"setp.ne.s32 %q{i}, %x{i}, 0;")
    names = [f"%{'q' if t == 'pred' else 'x'}{i}" for i, t in enumerate((*operands, *case.out))]
    split = len(operands)
    text = case.text.format(
        name=name.partition("/")[0], out=", ".join(names[split:]), operands=", ".join(names[:split])
    )
    body.append(text + ";")
    for i, type_ in enumerate(case.out, split):
        if type_ == "pred":
            body.append(f"selp.b32 %x{i}, 1, 0, %q{i};")
        width = "b32" if type_ == "pred" else WIDTH_NAMES[type_]
        body.append(f"st.global.{width} [%to{i}], %x{i};")
    return kernel("\n".join(body), split + len(case.out), "\n".join(registers))


@pytest.mark.parametrize("family", sorted({name.partition(".")[0] for name in CASES}))
def test_instructions_compute_what_they_must(device: Device, family: str) -> None:
    for name, case in CASES.items():
        if name.partition(".")[0] != family:
            continue
        random = np.random.default_rng(len(name))
        inputs = [operand_values(t, random) for t in case.operands]
        outputs = [np.zeros(COUNT, "u4" if t == "pred" else t) for t in case.out]
        arrays = [*inputs, *outputs]
        assert device.run(case_kernel(name, case), arrays, COUNT // WARP) == "", name
        exact = [list(map(bool, x)) if t == "pred" else x if x.dtype.kind == "f" else x.tolist()
                 for t, x in zip(case.operands, inputs, strict=True)]  # fmt: skip
        for lane in range(COUNT):
            operands = [values[lane] for values in exact]
            with np.errstate(all="ignore"):
                result = case.expected(*operands)
            results = result if isinstance(result, tuple) else (result,)
            for type_, expected, got in zip(case.out, results, outputs, strict=True):
                if type_[0] == "f" and math.isnan(expected):
                    assert math.isnan(got[lane]), (name, operands)
                else:
                    there = bits(got[lane], type_)
                    assert there == bits(expected, type_), (name, operands, got[lane])


SPACES = {"global", "shared", "param", ""}
CONTROL = {"bra", "bra.uni", "ret", "exit", "bar.sync", "shfl.sync.idx.b32"}
ATOMIC = {"atom.shared.max.u32", "atom.global.max.u32"}


def test_every_instruction_has_a_test(device: Device) -> None:
    accesses = {name for name in device.known() if name[:2] in ("ld", "st")}
    assert device.known() - accesses - CONTROL - ATOMIC == set(CASES)
    assert len(CASES) > 250


@pytest.mark.parametrize("space", sorted(SPACES))
def test_loads_and_stores_of_every_size(device: Device, space: str) -> None:
    """Bytes come back as they were: through shared memory, or as an array and back."""
    dotted = f".{space}" if space else ""
    names = [n for n in device.known() if n.startswith("ld" + dotted + ".")]
    names = [n for n in names if space or n.split(".")[1] not in SPACES]
    assert len(names) >= 30
    for name in names:
        vector = ".v2" if ".v2" in name else ".v4" if ".v4" in name else ""
        count = int(vector[2:] or 1)
        type_ = name.split(".")[-1]
        size = int(type_[1:]) // 8 * count
        width = max(int(type_[1:]), 16)
        list_ = ", ".join(f"%v{i}" for i in range(count))
        values = f"{{{list_}}}" if vector else list_
        rest = f"{vector}.{type_}"
        body = f"mad.lo.s64 %to0, %at, {size}, %in0;\nmad.lo.s64 %to1, %at, {size}, %in1;\n"
        if space == "shared":
            body += f"mad.lo.s32 %index3, %index2, {size}, 0;\n"
            body += f"ld.global{rest} {values}, [%to0];\nst.shared{rest} [%index3], {values};\n"
            body += f"ld.shared{rest} {values}, [%index3];\nst.global{rest} [%to1], {values};"
        elif space == "param":  # the first array's address itself
            body = f"setp.eq.u32 %first, %index2, 0;\nld.param{rest} {values}, [array0];\n"
            body += f"@%first st.global{rest} [%in1], {values};"
        else:
            body += f"ld{dotted}{rest} {values}, [%to0];\nst{dotted}{rest} [%to1], {values};"
        registers = f".reg .pred %first;\n.reg .b{width} %v<{count}>;\n"
        registers += ".shared .align 16 .b8 there[512];"
        random = np.random.default_rng(1)
        from_ = random.integers(0, 256, WARP * size, dtype="u1")
        to = np.zeros_like(from_)
        if space == "param":
            if size > 8:
                continue  # the parameter has eight bytes
            assert device.run(kernel(body, 2, registers), [from_, to]) == "", name
            address = np.array([from_.ctypes.data], "u8").view("u1")
            assert to[:size].tolist() == address[:size].tolist(), name
        else:
            assert device.run(kernel(body, 2, registers), [from_, to]) == "", name
            assert to.tolist() == from_.tolist(), name


def test_a_signed_load_fills_a_wider_register(device: Device) -> None:
    body = """mad.lo.s64 %to0, %at, 2, %in0;
mad.lo.s64 %to1, %at, 8, %in1;
ld.global.s16 %v0, [%to0];
st.global.u64 [%to1], %v0;"""
    from_ = np.arange(-16, 16).astype("i2")
    to = np.zeros(WARP, "i8")
    assert device.run(kernel(body, 2, ".reg .b64 %v<1>;"), [from_, to]) == ""
    assert to.tolist() == from_.tolist()


def test_lanes_part_and_meet_again(device: Device) -> None:
    """Each lane goes round a loop so often as its number says; then all shuffle."""
    body = """mad.lo.s64 %to0, %at, 4, %in0;
mov.u32 %v0, 0;
mov.u32 %v1, 0;
LOOP:
setp.ge.u32 %p0, %v0, %index2;
@%p0 bra DONE;
add.s32 %v0, %v0, 1;
add.s32 %v1, %v1, %v0;
bra.uni LOOP;
DONE:
xor.b32 %v2, %index2, 1;
shfl.sync.idx.b32 %v3|%p1, %v1, %v2, 31, -1;
st.global.u32 [%to0], %v3;"""
    to = np.zeros(WARP, "u4")
    registers = ".reg .b32 %v<4>;\n.reg .pred %p<2>;"
    assert device.run(kernel(body, 1, registers), [to]) == ""
    assert to.tolist() == [sum(range((i ^ 1) + 1)) for i in range(WARP)]


def exchange(between: str) -> str:
    """Threads of two warps read what their neighbours wrote to shared memory."""
    body = f"""mul.lo.s32 %v0, %index2, 4;
st.shared.u32 [%v0], %index2;
{between}
xor.b32 %v1, %v0, 128;
ld.shared.u32 %v2, [%v1];
mad.lo.s64 %to0, %at, 4, %in0;
st.global.u32 [%to0], %v2;"""
    registers = ".reg .b32 %v<3>;\n.reg .pred %p<1>;\n.shared .align 4 .b8 there[256];"
    return kernel(body, 1, registers, 64)


def test_a_barrier_lets_threads_exchange(device: Device) -> None:
    to = np.zeros(64, "u4")
    assert device.run(exchange("bar.sync 0;"), [to], threads=64) == ""
    assert to.tolist() == [i ^ 32 for i in range(64)]


@pytest.mark.parametrize(
    ("between", "says"),
    [
        ("", "a race: thread"),
        ("setp.lt.u32 %p0, %index2, 16;\n@%p0 bar.sync 0;", "a barrier is for some lanes only"),
        ("setp.lt.u32 %p0, %index2, 16;\n@%p0 bra ON;\nbar.sync 0;\nON:", "others do not"),
        ("bar.sync 1;", "a barrier other than 0"),
    ],
)
def test_threads_that_do_not_wait_are_noticed(device: Device, between: str, says: str) -> None:
    assert says in device.run(exchange(between), [np.zeros(64, "u4")], threads=64)


def raising(first: str, between: str, last: str) -> str:
    """Threads of two warps raise one of two numbers in shared memory; one reads both of them."""
    body = f"""and.b32 %v0, %index2, 1;
mul.lo.s32 %v0, %v0, 4;
setp.lt.u32 %p0, %index2, 2;
@%p0 st.shared.u32 [%v0], %index2;
{first}
atom.shared.max.u32 %v1, [%v0], %index2;
{between}
ld.shared.u32 %v1, [%v0];
mad.lo.s64 %to0, %at, 4, %in0;
{last}"""
    registers = ".reg .b32 %v<3>;\n.reg .pred %p<1>;\n.shared .align 4 .b8 there[8];"
    return kernel(body, 1, registers, 64)


def test_many_threads_raise_a_number(device: Device) -> None:
    """In shared memory; and in global memory from several blocks, each of which sees an old one."""
    to = np.zeros(64, "u4")
    text = raising("bar.sync 0;", "bar.sync 0;", "st.global.u32 [%to0], %v1;")
    assert device.run(text, [to], threads=64) == ""
    assert to.tolist() == [62, 63] * 32
    body = "add.s32 %v0, %index2, 7;\natom.global.max.u32 %v1, [%in0+4], %v0;"
    to = np.array([3, 9, 100], "u4")
    assert device.run(kernel(body, 1, ".reg .b32 %v<2>;"), [to], blocks=3) == ""
    assert to.tolist() == [3, 38, 100]


@pytest.mark.parametrize(("first", "between"), [("", "bar.sync 0;"), ("bar.sync 0;", "")])
def test_a_number_that_is_raised_meanwhile_is_a_race(
    device: Device, first: str, between: str
) -> None:
    text = raising(first, between, "st.global.u32 [%to0], %v1;")
    assert "a race: thread" in device.run(text, [np.zeros(64, "u4")], threads=64)


def test_warps_at_different_barriers_are_noticed(device: Device) -> None:
    body = "setp.lt.u32 %p0, %index2, 32;\n@%p0 bar.sync 0;"
    text = kernel(body, 1, ".reg .pred %p<1>;", 64)
    said = device.run(text, [np.zeros(4, "u4")], threads=64)
    assert "wait at different barriers" in said


def test_blocks_that_meet_in_memory_are_noticed(device: Device) -> None:
    body = "cvt.u64.u32 %to0, %index2;\nmad.lo.s64 %to1, %to0, 4, %in0;\n"
    to = np.zeros(WARP, "u4")
    for last in ("st.global.u32 [%to1], %index0;", "ld.global.u32 %index1, [%to1];"):
        said = device.run(kernel(body + last, 1), [to], blocks=2)
        assert ("a race" in said) == last.startswith("st"), said


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("add.rn.ftz.f32 %f0, %f1, %f1;", "not known: add.rn.ftz.f32"),
        ("add.f32 %f0, %f1, %f1;", "not known: add.f32"),
        ("rsqrt.approx.f32 %f0, %f1;", "not known: rsqrt.approx.f32"),
        ("fma.rz.f32 %f0, %f1, %f1, %f1;", "not known: fma.rz.f32"),
        ("tex.1d.v4.f32.s32 {%f0, %f0, %f0, %f0}, [t, {%r0}];", "not known: tex"),
        ("add.s32 %r0, %r1, %at;", "a register of a wrong width: %at"),
        ("add.s32 %r0, %r1, 0f3F800000;", ""),
        ("add.rn.f64 %at, %at, 0f3F800000;", "a constant of a wrong width"),
        ("add.s32 %r0, %r1;", "a wrong number of operands"),
        ("add.s32 %r0, %r1, %nowhere;", "an operand that is not known: %nowhere"),
        ("add.s32 5, %r1, %r1;", "it writes to what is no register"),
        ("bra NOWHERE;", "no label: NOWHERE"),
        (".local .b32 there;", "not known: .local"),
        ("mov.u32 %r0, %laneid;", "an operand that is not known: %laneid"),
        ("ld.global.u32 %r0, [%in0+400];", "a load is out of bounds"),
        ("st.global.u32 [%in0+-4], %r0;", "a store is out of bounds"),
        ("ld.global.u32 %r0, [%in0+2];", "a load is misaligned"),
        ("st.global.v4.u32 [%in0+8], {%r0, %r0, %r0, %r0};", "a store is misaligned"),
        ("st.shared.u32 [%r2], %r0;", "a store of shared memory is out of bounds"),
        ("ld.param.u64 %at, [array0+8];", "a load of a parameter is out of bounds"),
        ("mov.u32 %r0, 0;\ndiv.s32 %r1, %r1, %r0;", "an integer is divided by zero"),
        ("@%p0 bra.uni ON;\nON:", "a uniform branch is taken by some lanes only"),
        ("shfl.sync.idx.b32 %r0, %r1, 0, 31, 255;", "a shuffle that does not name it"),
        ("@%p0 ret;\nshfl.sync.idx.b32 %r0, %r1, 0, 31, -1;", "wait at a shuffle"),
    ],
)
def test_what_must_not_be_is_refused(device: Device, body: str, says: str) -> None:
    begin = "setp.lt.u32 %p0, %index2, 16;\nmov.u32 %r2, 1024;\n"
    registers = ".reg .b32 %r<3>;\n.reg .b32 %f<2>;\n.reg .pred %p<1>;"
    said = device.run(kernel(begin + body, 1, registers), [np.zeros(100, "u4")])
    assert says in said
    assert (says == "") == (said == "")


def test_launches_that_no_device_takes_are_refused(device: Device) -> None:
    array = [np.zeros(4, "u4")]
    text = kernel("", 1)
    assert "a launch of no blocks" in device.run(text, array, blocks=0)
    assert "more threads than the launch bounds" in device.run(text, array, threads=64)
    assert "not of whole warps" in device.run(text, array, threads=20)
    large = text.replace(".param .u64 array0", ".param .u64 array0, .param .align 8 .b8 x[4096]")
    assert "too many bytes of parameters" in device.run(large, array)
    shared = text.replace(".reg .b64 %at;", ".reg .b64 %at;\n.shared .align 4 .b8 there[50000];")
    assert "too much shared memory" in device.run(shared, array)


def test_what_no_instruction_wrote_is_poison(device: Device) -> None:
    body = "mad.lo.s64 %to0, %at, 4, %in0;\nst.global.u32 [%to0], %v0;"
    to = np.zeros(WARP, "u4")
    assert device.run(kernel(body, 1, ".reg .b32 %v<1>;"), [to]) == ""
    assert set(to.tolist()) == {0xCDCDCDCD}
    loads = "mul.lo.s32 %v1, %index2, 4;\nld.shared.u32 %v0, [%v1];\n"
    body = body.replace("st.global", loads + "st.global")
    registers = ".reg .b32 %v<2>;\n.shared .align 4 .b8 there[128];"
    assert device.run(kernel(body, 1, registers), [to]) == ""
    assert set(to.tolist()) == {0xFFFFFFFF}
