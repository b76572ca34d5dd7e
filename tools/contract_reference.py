"""A reference of docs/streams.md in plain Python, written from that page alone: no torch, no NumPy.

    python tools/contract_reference.py docs/contract/contract.json

Checks all vectors of the file. Values are Python floats, which hold those of every format. An
operation of float32 is one of float64, rounded again, which is correct for +, -, *, / and roots, as
53 digits are more than 2 * 24 + 1 (Figueroa 1995). Fused multiply-adds are exact integers, rounded.
"""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Callable
from functools import lru_cache
from hashlib import blake2b
from itertools import compress, product
from math import inf, isinf, sqrt
from pathlib import Path
from typing import Any, NamedTuple

MASK = 2**32 - 1
H = float.fromhex
C: dict[str, list[float]] = {}  # the coefficients, from the file
Case = dict[str, Any]
Draw = Callable[[int, int], float]  # from (key, index) to a value


class Format(NamedTuple):
    """A binary format: bits, digits with the leading one, exponent of the least subnormal."""

    size: int
    digits: int
    least: int
    largest: float
    saturates: bool = False  # has no infinity

    def ratio(self, n: int, d: int, way: int = 0) -> float:
        """Gives n / d to nearest, ties to even; for way -1 or 1 the next value down, up."""
        a, sign = abs(n), -1 if n < 0 else 1
        exponent = a.bit_length() - d.bit_length()
        exponent -= a << max(-exponent, 0) < d << max(exponent, 0)
        unit = max(exponent - self.digits + 1, self.least)
        whole, rest = divmod(a << max(-unit, 0), d := d << max(unit, 0))
        whole += (rest > 0 and way == sign) if way else 2 * rest + whole % 2 > d
        if whole.bit_length() + unit <= 1024 and math.ldexp(whole, unit) <= self.largest:
            return sign * math.ldexp(whole, unit)
        return sign * (self.largest if (way != sign if way else self.saturates) else inf)

    def __call__(self, x: float, way: int = 0) -> float:
        """X, rounded as ``ratio`` does."""
        if isinf(x):
            return math.copysign(self.largest, x) if self.saturates and x * way <= 0 else x
        return self.ratio(*x.as_integer_ratio(), way) if x else x

    def stored(self, x: float) -> float:
        """X, rounded to float32 first unless it is float64."""
        return self(x if self.size == 64 else F32(x))

    def below(self, x: float) -> float:
        """The largest value that is less than x."""
        n, d = x.as_integer_ratio()
        return self.ratio((n << 2200) - 1, d << 2200, -1)

    def fma(self, x: float, y: float, z: float) -> float:
        """X y + z, rounded once."""
        if isinf(x) or isinf(y) or isinf(z):
            return x * y + z
        (a, b), (c, d), (e, f) = x.as_integer_ratio(), y.as_integer_ratio(), z.as_integer_ratio()
        if n := a * c * f + e * b * d:
            return self.ratio(n, b * d * f)
        return 0.0 if z else x * y + z  # zeros add as they do in float64

    def bits(self, x: float) -> int:
        """The code of a value."""
        sign = (math.copysign(1, x) < 0) << (self.size - 1)
        if isinf(x):
            return sign | self.bits(self.largest) + 1
        unit = max(math.frexp(x)[1] - self.digits, self.least) if x else self.least
        return sign | int(math.ldexp(abs(x), -unit)) + (unit - self.least << self.digits - 1)

    def signed(self, w: int) -> float:
        """Section 2: the number s of a word."""
        number = w - (w >> self.size - 1 << self.size)
        return self(number) if self.size == 32 else float(number >> 11)

    def distance(self, w: int) -> float:
        """Section 9: the number D of a word."""
        k = (w if w >> self.size - 1 else ~w) % 2 ** (self.size - 1)
        return self(self(k) + 0.5) if self.size == 32 else (k >> 11) + 0.5

    def horner(self, name: str, x: float, by: float = 1.0) -> float:
        """Section 9: a polynomial; its coefficients times a power of ``by``."""
        c = [c * by ** (k + 1) for k, c in enumerate(C[name])]
        total = c.pop()
        while c:
            total = self.fma(total, x, c.pop())
        return total

    def rational(self, name: str, x: float, q: float = 1.0) -> float:
        """Section 9: q P(x) / Q(x)."""
        return self(self(q * self.horner(f"{name}P", x)) / self.horner(f"{name}Q", x))

    def minus_two_log(self, x: float, shift: int = 0) -> float:
        """Section 9: -2 log(x 2^-shift)."""
        m, e = math.frexp(x)
        if m < H("0x1.555556p-1" if self.size == 32 else "0x1.5555555555555p-1"):
            m, e = 2 * m, e - 1
        e, a = e - shift, self.fma(m, -2.0, 2.0)
        if self.size == 32:
            y = self.fma(self(a * a), self.horner("LogF32", a, -0.5), a)
            return self.fma(e, H("-0x1.62e43p+0"), y)
        a /= m + 1
        y = a * (a * a) * self.horner("LogF64", a * a, 0.25)
        y = self.fma(a, 2.0, self.fma(e, H("-0x1.ef35793c7673p-44"), y))
        return self.fma(e, H("-0x1.62e42fefa38p+0"), y)

    def within(self, sigmas: int, q: float) -> float:
        """Section 9: the inverse normal of 1/2 + q, from two or three sigmas."""
        ratio = self.rational(f"InverseNormalWithin{sigmas}F32", self.fma(-q, q, 0.25))
        return self.fma(q, 3.0, self(q * ratio))

    def inverse_normal(self, p: float) -> float:
        """Section 9: the quantile of p."""
        q = self(p - 0.5)
        if self.size == 32 and p >= H("0x1.61e2p-10"):
            return self.within(3, q)
        if self.size == 64 and (d := self.fma(-q, q, 0.180625)) >= 0:
            return self.rational("InverseNormalCentreF64", d, q)
        r = self(sqrt(self(self.minus_two_log(p) * 0.5)))
        if self.size == 32:
            return -self.fma(r, 1.5, self.rational("InverseNormalTailF32", r))
        name, t = ("Middle", r - 1.6) if r < 5 else ("Far", r - 5)
        return -self.rational(f"InverseNormal{name}F64", t)


F64, F32 = Format(64, 53, -1074, sys.float_info.max), Format(32, 24, -149, H("0x1.fffffep+127"))
E4M3, E2M1 = Format(8, 4, -9, 448.0, True), Format(4, 2, -1, 6.0, True)
BF16 = Format(16, 8, -133, H("0x1.fep+127"))
FORMATS = {
    "float64": F64, "float32": F32, "float16": Format(16, 11, -24, 65504.0), "bfloat16": BF16,
    "float8_e4m3fn": E4M3, "float8_e5m2": Format(8, 3, -16, 57344.0, True),
}  # fmt: skip


@lru_cache(2**16)
def philox(counter: tuple[int, ...], key: tuple[int, int]) -> tuple[int, ...]:
    """Section 1: a block of Philox4x32-10."""
    (a, b, c, d), (k, j) = counter, key
    for _ in range(10):
        p, q = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = q >> 32 ^ b ^ k, q & MASK, p >> 32 ^ d ^ j, p & MASK
        k, j = k + 0x9E3779B9 & MASK, j + 0xBB67AE85 & MASK
    return a, b, c, d


def word(key: int, index: int, size: int) -> int:
    """Section 1: the word of 32 or 64 bits of an element."""
    if size == 64:
        return word(key, 2 * index, 32) | word(key, 2 * index + 1, 32) << 32
    block, place = divmod(index, 4)
    return philox((block & MASK, block >> 32, 0, 0), (key & MASK, key >> 32))[place]


def gaussian(x: float) -> float:
    """Section 9: exp(-x^2 / 2)."""
    h = 0.5 * x * x
    if not h < 745:
        return 0.0
    k, total = math.floor(h * H("0x1.71547652b82fep+0") + 0.5), 1.0
    rest = F64.fma(-k, H("0x1.ef35793c7673p-45"), F64.fma(-k, H("0x1.62e42fefa38p-1"), h))
    rest = -(rest + F64.fma(0.5 * x, x, -h))
    for n in range(14, 0, -1):
        total = F64.fma(total, rest / n, 1.0)
    return math.ldexp(total, -k)


def cdf(x: float) -> float:
    """Section 9: the normal distribution function."""
    if isinf(x):
        return float(x > 0)
    factor = H("0x1.9884533d43651p-2") * gaussian(x)
    if abs(x) < 2.25:
        term = total = x
        for n in range(3, 100, 2):
            term *= x * x / n
            total += term
        return 0.5 + factor * total
    q = abs(x)
    for n in range(100, 0, -1):
        q = abs(x) + n / q
    return factor / q if x < 0 else 1 - factor / q


def bounds(form: Format, a: float, b: float, half_open: bool = False) -> tuple[float, float]:
    """Section 9: of the values of a format in [a, b], or in [a, b)."""
    low, high = form(a, 1), form(b, -1)
    if half_open and high == b:
        high = form.below(b)
    if not low <= high:
        nearest = form.stored(a)
        low = high = math.copysign(min(abs(nearest), form.largest), nearest)
    return low or 0.0, high or -0.0


def affine(
    form: Format,
    R: Format,
    z: Callable[[int], float],
    scale: float,
    origin: float,
    low: float,
    high: float,
) -> Draw:
    """Of z, a function of the word; one of 64 bits stands for 32 if only the computation has 64."""
    widened = R is F64 and form is not F64

    def draw(key: int, i: int) -> float:
        w = word(key, i, 32) << 32 | 2**31 if widened else word(key, i, R.size)
        # For equal zeros max and min take their first argument, the bound.
        x = min(high, max(low, R.fma(z(w), scale, origin)))
        return form.stored(x)

    return draw


def uniform(form: Format, a: float, b: float, half_open: bool = True) -> Draw:
    """Section 9: of [a, b), or of [a, b]."""
    low, high = bounds(form, a, b, half_open) if a < b else [form.stored(a)] * 2
    if low == high:
        return lambda *_: low
    R = F64 if form is F64 else F32
    width, origin = b - a, a + 0.5 * (b - a)
    scale = width * 2.0 ** (-53 if R is F64 else -32)
    if R is F32 and (scale < 2.0**-126 or scale > R.largest or abs(origin) > R.largest):
        R, scale = F64, width * 2.0**-53
    else:
        ends = (-(2.0**52), 2.0**52 - 1) if R is F64 else (-(2.0**31), 2.0**31)
        (least, most), origin, scale = bounds(R, a, b, half_open), R(origin), R(scale)
        tried = (scale, R.below(scale), R.below(R.below(scale)))
        fits = (least <= R.fma(ends[0], x, origin) and R.fma(ends[1], x, origin) <= most
                for x in tried)  # fmt: skip
        scale = next(compress(tried, fits), scale)
    return affine(form, R, lambda w: R.signed(w), scale, origin, low, high)


def normal(form: Format, mean: float, std: float, low: float = -inf, high: float = inf) -> Draw:
    """Sections 2 and 9: Box and Muller."""
    R = F64 if form is F64 else F32
    name, digits, reach, top = ("F64", 52, 8.5, 1024) if R is F64 else ("F32", 31, 6.57, 128)
    power = 0
    if std > R.largest / reach or abs(mean) > R.largest:
        power = max(math.frexp(x)[1] - 1 for x in (mean, 8 * (std / 16) * 2) if x) - (top - 4)
    middle, spread = R(math.ldexp(mean, -power)), R(math.ldexp(std, -power))

    def draw(key: int, index: int) -> float:
        v, w = (word(key, index // 2 * 2 + i, R.size) for i in (0, 1))
        n = (v >> 11 if R is F64 else v) % 2**digits | 1
        r = R(R(sqrt(R.minus_two_log(R(n), digits))) * spread)
        t = R.signed(2 * w % 2**R.size) / 2**digits
        x = R.fma(R(t * t), R.horner(f"Cos{name}", R(t * t)), 1.0)
        x = -x if v >> R.size - 1 else x
        if w >> R.size - 1 != index % 2:
            x = R(t * R.horner(f"Sin{name}", R(t * t)))
        return form(min(high, max(low, R(R.fma(x, r, middle) * 2.0 ** min(power, top - 1)))))

    return draw


def truncated_normal(form: Format, mean: float, sigma: float, a: float, b: float) -> Draw:
    """Sections 2 and 9: the first of the transforms that applies."""
    R, limits = F64 if form is F64 else F32, bounds(form, a, b)
    if limits[0] == limits[1] or sigma == 0:
        return lambda *_: form.stored(max(limits[0], min(limits[1], mean)))
    reach = (8.5 if R is F64 else 6.57) * sigma
    if R(mean - reach) >= a and R(mean + reach) <= b:
        return normal(form, mean, sigma, *limits)
    alpha, beta = (a - mean) / sigma, (b - mean) / sigma
    near, right = max(0.0, alpha, -beta), alpha > 0
    if (beta - alpha) * max(1.0, near) <= 1e-7:
        return uniform(form, a, b, half_open=False)
    if near > 30:
        z = remote(near, beta if right else -alpha, right)
        return affine(form, F64, z, sigma if right else -sigma, a if right else b, *limits)
    mass = cdf(-alpha) - cdf(-beta) if right else cdf(beta) - cdf(alpha)
    mass = 1 - cdf(alpha) - cdf(-beta) if alpha <= 0 <= beta else mass
    if mass < 2.0**-6 or abs(mean) > F32.largest or sigma > F32.largest:
        R = F64
    sigmas = next((s for s in (2, 3) if alpha >= -s - 1e-7 and beta <= s + 1e-7), 0)
    step = mass * 2.0 ** (-53 if R is F64 else -32)
    middle, slope = R(0.5 * (cdf(alpha) - cdf(-beta)) + 0.5 * step), R(step)
    lower = (-slope, R(cdf(-alpha)), -1) if right else (slope, R(cdf(alpha)), 1)
    upper = (-slope, R(cdf(beta)), 1) if beta < 0 else (slope, R(cdf(-beta)), -1)

    def halves(w: int) -> float:
        slope, base, sign = lower if w >> R.size - 1 else upper
        return sign * R.inverse_normal(R.fma(R.distance(w), slope, base))

    z = halves
    if sigmas and R is F32:
        z = lambda w: R.within(sigmas, R.fma(R.signed(w), slope, middle))  # noqa: E731
    return affine(form, R, z, R(sigma), R(mean), *limits)


def remote(near: float, far: float, right: bool) -> Callable[[int], float]:
    """Section 9: distances from a bound beyond 30 sigmas, in sigmas."""

    def mu(x: float) -> float:
        y = 1 / x / x
        return y * F64.fma(y, F64.fma(y, -37 / 3, 2.5), -1.0)

    rest = 0.0
    if not isinf(far):
        rest = gaussian(sqrt(2 * ((far - near) * (0.5 * (far + near))))) * (near / far)
        rest /= gaussian(sqrt(2 * max(0.0, mu(far) - mu(near))))
    step = (1 - rest) * 2.0**-53

    def z(w: int) -> float:
        slope, base = (-step, 1.0) if w >> 63 == right else (step, rest)
        energy = F64.minus_two_log(F64.fma(F64.distance(w), slope, base))
        delta = 0.0
        for _ in range(6):
            x = near + delta
            e = energy + F64.minus_two_log(x / near) + 2 * (mu(x) - mu(near))
            delta = e / (near + sqrt(F64.fma(near, near, e)))
        return delta

    return z


def draw_of(case: Case, form: Format) -> Draw:
    """The distribution of a case."""
    kind, numbers = case["distribution"], [H(x) for x in case["parameters"]]
    if kind == "constant":  # an infinity too, if the format has it
        return lambda *_: numbers[0] if isinf(numbers[0]) else form.stored(numbers[0])
    makers: Case = {"uniform": uniform, "normal": normal, "truncated_normal": truncated_normal}
    return lru_cache(None)(makers[kind](form, *numbers))


def box(case: Case) -> list[int]:
    """Section 4: the logical indices of a box's elements, in order."""
    shape = case["global_shape"]
    strides = [math.prod(shape[d + 1 :]) for d in range(len(shape))]
    sides = zip(case["offset"], case["sizes"], strides, strict=True)
    return [sum(at) for at in product(*([(o + i) * s for i in range(n)] for o, n, s in sides))]


def fill(case: Case) -> list[str]:
    """Sections 1 to 4."""
    key, size = int(case["key"], 16), {"int32": 32, "int64": 64}.get(case["dtype"])
    if size:
        return [f"{word(key, i, size):0{size // 4}x}" for i in box(case)]
    form = FORMATS[case["dtype"]]
    draw = draw_of(case, form)
    return [f"{form.bits(draw(key, i)):0{form.size // 4}x}" for i in box(case)]


def total(R: Format, x: list[float], y: list[float], start: float = 0, length: int = 256) -> float:
    """Section 5: a sum of products, in segments; other sums than those over rows are shorter."""
    for i in range(0, len(x), length):
        chain = 0.0
        for a, b in zip(x[i : i + length], y[i : i + length], strict=True):
            chain = R.fma(a, b, chain)
        start = R(start + chain)
    return start


def reflector(R: Format, x: list[float]) -> tuple[list[float], float, float]:
    """Section 5: v, half its squared norm, its sign."""
    sums = [0.0] * 64
    for i, value in enumerate(x):
        sums[i % 64] += value * value
    while len(sums) > 1:
        sums = [a + b for a, b in zip(sums, sums[len(sums) // 2 :], strict=False)]
    if not (norm := sqrt(sums[0])):
        return [1.0] + [0.0] * (len(x) - 1), 0.5, -1.0
    h = x[0] - norm if x[0] < 0 else x[0] + norm
    return [1.0, *(R(a * R(1 / h)) for a in x[1:])], R(norm / abs(h)), 1.0 if x[0] < 0 else -1.0


def orthogonal(case: Case) -> list[str]:
    """Section 5."""
    key, form, gain = int(case["key"], 16), FORMATS[case["dtype"]], H(case["gain"])
    R, sides = (
        F64 if form is F64 else F32,
        (case["global_shape"][0], math.prod(case["global_shape"][1:])),
    )
    (n, m), limit = sorted(sides), 2.0 ** (512 if R is F64 else 64)
    late = gain != 0 and not 1 / limit <= abs(gain) <= limit
    made, Q = [], [[0.0] * m for _ in range(n)]  # columns
    draw = normal(R, 0.0, 1.0)
    made = [reflector(R, [draw(key, k * m + i) for i in range(k, m)]) for k in range(n)]
    for s in range((n - 1) // 32 * 32, -1, -32):
        b = range(min(32, n - s))
        V = [[0.0] * k + made[s + k][0] for k in b]  # the rows from s on
        N = [[0.0] * len(b) for _ in b]
        for a in reversed(b):
            N[a][a] = R(-1 / made[s + a][1])
            f = [R(total(R, V[a], V[e]) * N[a][a]) if e > a else 0.0 for e in b]
            for c in b[a + 1 :]:
                N[a][c] = total(R, f[c:a:-1], [N[e][c] for e in range(c, a, -1)])
        for c in range(s, n):
            if c < s + len(b):
                Q[c][c] = R(made[c][2] * (1.0 if late else R(gain)))
                P = [R(v[c - s] * Q[c][c]) for v in V]
            else:
                P = [total(R, v, Q[c][s:]) for v in V]
            S = [total(R, N[a][a:], P[a:]) for a in b]
            Q[c][s:] = [total(R, [v[i] for v in V], S, Q[c][s + i]) for i in range(m - s)]
    values = (
        Q[at[0]][at[1]] if sides[0] <= sides[1] else Q[at[1]][at[0]]
        for at in (divmod(i, sides[1]) for i in box(case))
    )
    values = (form(R(x * R(gain)) if late else x) for x in values)
    return [f"{form.bits(x):0{form.size // 4}x}" for x in values]


def block_scale(rule: str, a: float, A: float) -> tuple[float, float]:
    """Section 8: the scale of a block, as stored, and the factor of its values."""
    M = F32.largest
    if rule == "float32":
        k = min(F32(448 / a), M) if a else 1.0
        return F32(1 / k), k
    if rule == "nvfp4":
        S = min(F32(2688 / A), M) if A else 1.0
        s = E4M3(F32(a * F32((S or 1.0) * F32(1 / 6))))
        d = F32(s * F32(1 / (S or 1.0)))
        return s, min(F32(1 / d), M) if d else M
    m, e = math.frexp(a if rule == "floor" else F32(a * F32(1 / 448)))
    e = e - 9 if rule == "floor" else e - (m == 0.5)
    e = 0 if rule == "ue8m0" and a == 0 else max(-127, min(127, e)) if a else -127
    return 2.0**e, 2.0**-e


def quantised(case: Case) -> list[str]:
    """Section 8: the payload of a box, and the scales of all blocks that it touches."""
    key, rule, shape, scales = int(case["key"], 16), case["rule"], case["global_shape"], {}
    draw = draw_of(case, FORMATS[case["source"]])
    ends = [o + n for o, n in zip(case["offset"], case["sizes"], strict=True)]
    sides = list(zip(case["offset"], ends, case["block"], shape, strict=True))
    for at in product(*(range(o // n, -(-end // n)) for o, end, n, _ in sides)):
        inside = (
            range(k * n, min(k * n + n, s)) for k, (_, _, n, s) in zip(at, sides, strict=True)
        )
        a = max(abs(draw(key, i * shape[1] + j)) for i, j in product(*inside))
        scales[at] = block_scale(rule, a, H(case["amax"]))
    form = E2M1 if rule == "nvfp4" else E4M3
    codes = []
    for i, j in product(*(range(o, end) for o, end, _, _ in sides)):
        factor = scales[i // case["block"][0], j // case["block"][1]][1]
        codes.append(form.bits(form(F32(draw(key, i * shape[1] + j) * factor))))
    if form is E2M1:
        codes = [low | high << 4 for low, high in zip(codes[::2], codes[1::2], strict=True)]
    kept = {"float32": F32, "float8_e4m3fn": E4M3}.get(case["scale_dtype"])
    stored = [
        f"{kept.bits(s):0{kept.size // 4}x}" if kept else f"{math.frexp(s)[1] + 126:02x}"
        for s, _ in scales.values()
    ]
    return [f"{code:02x}" for code in codes] + stored


def key_of_name(case: Case) -> list[str]:
    """Section 7."""
    seed = (case["seed"] % 2**64).to_bytes(8, "little")
    name = case["name"] if case["part"] is None else f"{case['name']}\0{case['part']}"
    return [blake2b(name.encode(), digest_size=8, key=seed).digest()[::-1].hex()]


def keys_of_generator(case: Case) -> list[str]:
    """Section 6: the keys that fills draw after torch.manual_seed."""
    state = [case["seed"] % 2**32]
    for i in range(1, 624):
        state.append(1812433253 * (state[-1] ^ state[-1] >> 30) + i & MASK)
    twister = random.Random()
    twister.setstate((3, (*state, 624), None))
    draws = [twister.getrandbits(32) for _ in range(2 * len(case["result"]))]
    return [f"{high:08x}{low:08x}" for high, low in zip(draws[::2], draws[1::2], strict=True)]


def block_of_words(case: Case) -> list[str]:
    """Section 1."""
    counter, key = (tuple(int(w, 16) for w in case[name]) for name in ("counter", "key"))
    return [f"{w:08x}" for w in philox(counter, key)]


SECTIONS = {
    "philox": block_of_words, "generators": keys_of_generator, "names": key_of_name, "fills": fill,
    "orthogonal": orthogonal, "quantised": quantised,
}  # fmt: skip


def main(path: str) -> int:
    """Checks a file, prints counts, returns the exit code."""
    contract = json.loads(Path(path).read_text())
    C.update({name: [H(c) for c in each] for name, each in contract["coefficients"].items()})
    status = 0
    for section, cases in contract["vectors"].items():
        wrong = [
            i
            for i, case in enumerate(cases)
            if SECTIONS[section](case) != case["result"] + case.get("scales", [])
        ]
        values = sum(len(case["result"] + case.get("scales", [])) for case in cases)
        print(f"{section}: {len(cases) - len(wrong)} of {len(cases)} vectors, {values} values")
        for i in wrong:
            print(f"  vectors.{section}[{i}] differs")
        status |= bool(wrong)
    return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
