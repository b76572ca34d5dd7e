"""A reference of docs/streams.md in plain Python, written from that page alone: no torch, no NumPy.

    python tools/contract_reference.py docs/contract/contract.json

checks all vectors of the file. A value is a Python float. Rounding the float64 result of +, -, *, /
or a root to float32 is exact enough (Figueroa 1995); a fused multiply-add is rounded from integers.
"""

import json
import math
import random
import sys
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from hashlib import blake2b
from itertools import product
from math import inf, isinf, sqrt
from pathlib import Path
from typing import Any, NamedTuple

MASK, H = 2**32 - 1, float.fromhex
C: dict[str, list[float]] = {}  # the coefficients, from the file
Case = dict[str, Any]
Draw = Callable[[int, int], float]  # from (key, index) to a value
Quantile = Callable[[int], float]  # from a word


class Format(NamedTuple):
    """A binary format: bits, digits with the leading one, exponent of the least subnormal."""

    size: int
    digits: int
    least: int
    largest: float  # what larger values become in 4 or 8 bits

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
        return sign * (self.largest if (way != sign if way else self.size <= 8) else inf)

    def __call__(self, x: float, way: int = 0) -> float:
        """X, rounded as ``ratio`` does."""
        if isinf(x):
            return math.copysign(self.largest, x) if self.size <= 8 and not x * way > 0 else x
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

    def hexes(self, values: Iterable[float]) -> list[str]:
        """The codes of values in hex."""
        codes = []
        for x in values:
            m, e = (0.5, math.frexp(self.largest)[1] + 1) if isinf(x) else math.frexp(abs(x))
            unit = max(e - self.digits, self.least) if x else self.least
            code = int(math.ldexp(m, e - unit)) + (unit - self.least << self.digits - 1)
            sign = (math.copysign(1, x) < 0) << self.size - 1
            codes.append(f"{sign | code:0{self.size // 4}x}")
        return codes

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
F16, BF16 = Format(16, 11, -24, 65504.0), Format(16, 8, -133, H("0x1.fep+127"))
E4M3, E5M2, E2M1 = Format(8, 4, -9, 448), Format(8, 3, -16, 57344), Format(4, 2, -1, 6)
FORMATS = {"float64": F64, "float32": F32, "float16": F16, "bfloat16": BF16,
           "float8_e4m3fn": E4M3, "float8_e5m2": E5M2}  # fmt: skip


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
    form: Format, R: Format, z: Quantile, scale: float, origin: float, limits: tuple[float, float]
) -> Draw:
    """Of z, a function of the word; a word of 64 bits stands for 32 if only R is float64."""

    def draw(key: int, i: int) -> float:
        w = word(key, i, 64 if form is F64 else 32)
        x = R.fma(z(w << 32 | 2**31 if R is F64 and form is not F64 else w), scale, origin)
        return form.stored(min(limits[1], max(limits[0], x)))  # of equal zeros, the bound

    return draw


def uniform(form: Format, a: float, b: float, half_open: bool = True) -> Draw:
    """Section 9: of [a, b), or of [a, b]."""
    limits = bounds(form, a, b, half_open) if a < b else (form.stored(a),) * 2
    if limits[0] == limits[1]:
        return lambda *_: limits[0]
    R, k = (F64, 53) if form is F64 else (F32, 32)
    width, origin = b - a, a + 0.5 * (b - a)
    scale = width * 2.0**-k
    if R is F32 and not (2.0**-126 <= scale <= R.largest and abs(origin) <= R.largest):
        return affine(form, F64, F64.signed, width * 2.0**-53, origin, limits)
    (least, most), origin, scale = bounds(R, a, b, half_open), R(origin), R(scale)
    bottom, top = -(2.0 ** (k - 1)), 2.0 ** (k - 1) - (k == 53)
    for one in (scale, R.below(scale), R.below(R.below(scale)), scale):
        if R.fma(bottom, one, origin) >= least and R.fma(top, one, origin) <= most:
            break
    return affine(form, R, R.signed, one, origin, limits)


def normal(form: Format, mean: float, std: float, low: float = -inf, high: float = inf) -> Draw:
    """Sections 2 and 9: Box and Muller."""
    R = F64 if form is F64 else F32
    name, digits, reach, top = ("F64", 52, 8.5, 1024) if R is F64 else ("F32", 31, 6.57, 128)
    power = max((math.frexp(x)[1] - 1 + e for x, e in ((mean, 0), (std, 3)) if x), default=0)
    power = power - top + 4 if std > R.largest / reach or abs(mean) > R.largest else 0
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
        inside = form.stored(mean - reach) >= a and form.stored(mean + reach) <= b
        return normal(form, mean, sigma, *(() if inside else limits))
    alpha, beta = (a - mean) / sigma, (b - mean) / sigma
    near, right = max(0.0, alpha, -beta), alpha > 0
    if (beta - alpha) * max(1.0, near) <= 1e-7:
        return uniform(form, a, b, half_open=False)
    if near > 30:
        z = remote(near, beta if right else -alpha, right)
        return affine(form, F64, z, *((sigma, a) if right else (-sigma, b)), limits)
    mass = cdf(beta) - cdf(alpha) if beta < 0 else 1 - cdf(alpha) - cdf(-beta)
    mass = cdf(-alpha) - cdf(-beta) if right else mass
    if mass < 2.0**-6 or abs(mean) > F32.largest or sigma > F32.largest:
        R = F64
    sigmas = next((s for s in (2, 3) if alpha >= -s - 1e-7 and beta <= s + 1e-7), 0)
    step = mass * 2.0 ** (-53 if R is F64 else -32)
    middle, slope = R(0.5 * (cdf(alpha) - cdf(-beta)) + 0.5 * step), R(step)
    lower = (-slope, R(cdf(-alpha)), -1) if right else (slope, R(cdf(alpha)), 1)
    upper = (-slope, R(cdf(beta)), 1) if beta < 0 else (slope, R(cdf(-beta)), -1)

    def quantile(w: int) -> float:
        if sigmas and R is F32:
            return R.within(sigmas, R.fma(R.signed(w), slope, middle))
        change, base, sign = lower if w >> R.size - 1 else upper
        return sign * R.inverse_normal(R.fma(R.distance(w), change, base))

    return affine(form, R, quantile, R(sigma), R(mean), limits)


def remote(near: float, far: float, right: bool) -> Quantile:
    """Section 9: distances from a bound beyond 30 sigmas, in sigmas."""

    def mu(x: float) -> float:
        y = 1 / x / x
        return y * F64.fma(y, F64.fma(y, -37 / 3, 2.5), -1.0)

    rest = gaussian(sqrt(2 * ((far - near) * (0.5 * (far + near))))) * (near / far)
    rest /= gaussian(sqrt(2 * max(0.0, mu(far) - mu(near))))
    step = (1 - rest) * 2.0**-53

    def z(w: int) -> float:
        slope, base = (-step, 1.0) if w >> 63 == right else (step, rest)
        energy, delta = F64.minus_two_log(F64.fma(F64.distance(w), slope, base)), 0.0
        for _ in range(6):
            x = near + delta
            e = energy + F64.minus_two_log(x / near) + 2 * (mu(x) - mu(near))
            delta = e / (near + sqrt(F64.fma(near, near, e)))
        return delta

    return z


def draw_of(case: Case, form: Format) -> Draw:
    """The distribution of a case."""
    numbers = [H(x) for x in case["parameters"]]
    if case["distribution"] == "constant":  # an infinity too, if the format has it
        return lambda *_: numbers[0] if isinf(numbers[0]) else form.stored(numbers[0])
    makers: Case = {"uniform": uniform, "normal": normal, "truncated_normal": truncated_normal}
    return lru_cache(None)(makers[case["distribution"]](form, *numbers))


def box(case: Case) -> list[int]:
    """Section 4: the logical indices of a box's elements, in order."""
    shape = case["global_shape"]
    strides = [math.prod(shape[d + 1 :]) for d in range(len(shape))]
    sides = zip(case["offset"], case["sizes"], strides, strict=True)
    return [sum(at) for at in product(*([(o + i) * s for i in range(n)] for o, n, s in sides))]


def fill(case: Case) -> list[str]:
    """Sections 1 to 4."""
    key, dtype = int(case["key"], 16), case["dtype"]
    if dtype not in FORMATS:
        return [f"{word(key, i, int(dtype[3:])):0{int(dtype[3:]) // 4}x}" for i in box(case)]
    draw = draw_of(case, FORMATS[dtype])
    return FORMATS[dtype].hexes(draw(key, i) for i in box(case))


def total(R: Format, x: list[float], y: list[float], start: float = 0.0) -> float:
    """Section 5: a sum of products, in segments; sums over others than rows are shorter."""
    for i in range(0, len(x), 256):
        chain = 0.0
        for a, b in zip(x[i : i + 256], y[i : i + 256], strict=True):
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
    rows, columns = case["global_shape"][0], math.prod(case["global_shape"][1:])
    R = F64 if form is F64 else F32
    (n, m), limit = sorted((rows, columns)), 2.0 ** (512 if R is F64 else 64)
    late = gain != 0 and not 1 / limit <= abs(gain) <= limit
    draw, Q = normal(R, 0.0, 1.0), [[0.0] * m for _ in range(n)]  # columns
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
    places = [divmod(i, columns) for i in box(case)]
    values = [Q[i][j] if rows <= columns else Q[j][i] for i, j in places]
    return form.hexes(form(R(x * R(gain)) if late else x) for x in values)


def block_scale(rule: str, a: float, A: float) -> tuple[float, float]:
    """Section 8: the scale of a block, as stored, and the factor of its values."""
    M = F32.largest
    if rule == "float32":
        k = min(F32(448 / a), M) if a else 1.0
        return F32(1 / k), k
    if rule == "nvfp4":
        S = (min(F32(2688 / A), M) if A else 1.0) or 1.0
        s = E4M3(F32(a * F32(S * F32(1 / 6))))
        d = F32(s * F32(1 / S))
        return s, min(F32(1 / d), M) if d else M
    m, e = math.frexp(a if rule == "floor" else F32(a * F32(1 / 448)))
    e = e - 9 if rule == "floor" else e - (m == 0.5)
    e = 0 if rule == "ue8m0" and not a else max(-127, min(127, e)) if m else -127
    return 2.0**e, 2.0**-e


def quantised(case: Case) -> list[str]:
    """Section 8: the payload of a box, and the scales of all blocks that it touches."""
    (height, width), (i0, j0), (down, across) = (
        case[x] for x in ("global_shape", "offset", "sizes")
    )
    (rows, columns), scales = case["block"], {}
    draw = partial(draw_of(case, FORMATS[case["source"]]), int(case["key"], 16))
    for y in range(i0 // rows, -(-(i0 + down) // rows)):
        for x in range(j0 // columns, -(-(j0 + across) // columns)):
            inside = product(range(y * rows, min(height, y * rows + rows)),
                             range(x * columns, min(width, x * columns + columns)))  # fmt: skip
            largest = max(abs(draw(i * width + j)) for i, j in inside)
            scales[y, x] = block_scale(case["rule"], largest, H(case["amax"]))
    form = E2M1 if case["rule"] == "nvfp4" else E4M3
    places = product(range(i0, i0 + down), range(j0, j0 + across))
    pairs = ((draw(i * width + j), scales[i // rows, j // columns][1]) for i, j in places)
    codes = form.hexes(form(F32(value * factor)) for value, factor in pairs)
    if form is E2M1:
        codes = [high + low for low, high in zip(codes[::2], codes[1::2], strict=True)]
    if case["scale_dtype"] == "float8_e8m0fnu":
        return codes + [f"{math.frexp(one)[1] + 126:02x}" for one, _ in scales.values()]
    return codes + FORMATS[case["scale_dtype"]].hexes(one for one, _ in scales.values())


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


SECTIONS: dict[str, Callable[[Case], list[str]]] = {
    "philox": lambda case: [f"{w:08x}" for w in philox(*(
        tuple(int(w, 16) for w in case[one]) for one in ("counter", "key")))],
    "generators": keys_of_generator, "names": key_of_name, "fills": fill, "orthogonal": orthogonal,
    "quantised": quantised,
}  # fmt: skip


def check(path: str) -> int:
    """Checks a file, prints counts, returns the exit code."""
    contract = json.loads(Path(path).read_text())
    C.update({name: [H(c) for c in each] for name, each in contract["coefficients"].items()})
    status = 0
    for name, cases in contract["vectors"].items():
        known = [case["result"] + case.get("scales", []) for case in cases]
        wrong = [i for i, case in enumerate(cases) if SECTIONS[name](case) != known[i]]
        print(f"{name}: {len(cases) - len(wrong)} of {len(cases)}, {sum(map(len, known))} values")
        print(*(f"  vectors.{name}[{i}] differs\n" for i in wrong), sep="", end="")
        status |= bool(wrong)
    return status


if __name__ == "__main__":
    sys.exit(check(sys.argv[1]))
