"""orthogonal_ and orthogonal_batch_: orthogonal to rounding, and uniform over the group (Haar).

Statistical tests are at level ALPHA with fixed seeds, about 40 p-values a method: had the seeds
been drawn, one run in 5,000 would fail by chance.
"""

from __future__ import annotations

import math
import sys
import threading
import time

import numpy as np
import pytest
import torch
from scipy import stats

import torchinit
import warm
from conftest import native_only
from torchinit.errors import ArgumentError
from torchinit.native import kernels
from torchinit.native import load as native
from torchinit.orthogonal import fill_orthogonal, orthogonal_by_torch

ops = torch.ops.torchinit

ALPHA = 1e-6
FLOATS = (torch.float32, torch.float64)
NARROW = (torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)


def error(tensor, gain=1.0):
    """max |Q^T Q - 1|, in float64."""
    q = tensor.double().flatten(1) / gain
    q = q if q.shape[0] >= q.shape[1] else q.t()
    return (q.t() @ q - torch.eye(q.shape[1])).abs().max().item()


# Orthogonal to rounding.


def shapes():
    """200 shapes: small and large, square, tall and wide, and the edges of the blocks."""
    generator = torch.Generator().manual_seed(1)

    def size(limit):
        return int(2 ** (torch.rand((), generator=generator) * math.log2(limit)).item())

    edges = [1, 2, 15, 16, 17, 127, 128, 129, 255, 256, 257]
    found = [(n, n) for n in edges] + [(n, 1) for n in edges] + [(1, n) for n in edges]
    found += [(1030, 1025), (1040, 1500), (3000, 400), (400, 3000), (20000, 64), (64, 20000)]
    while len(found) < 200:
        found.append((size(500), size(500)))
    return found


@pytest.mark.parametrize("dtype", FLOATS)
def test_as_orthogonal_as_torch(dtype):
    """At most twice torch's error on the same shape, or than the rounding of a unit vector."""

    def worst(function, shape):
        draws = 4 if math.prod(shape) < 2**16 else 1
        return max(error(function(torch.empty(shape, dtype=dtype))) for _ in range(draws))

    torch.manual_seed(0)
    for shape in shapes():
        theirs = worst(torch.nn.init.orthogonal_, shape)
        limit = 2 * max(theirs, 3 * torch.finfo(dtype).eps)
        assert worst(torchinit.orthogonal_, shape) <= limit, shape


@native_only
@pytest.mark.parametrize("shape", [(64, 64), (128, 128), (256, 256), (500, 300), (4096, 64)])
def test_more_exact_than_a_factorisation(shape):
    """Medians of 12 keys: at most 1.2 times torch's."""
    ours, theirs = [], []
    for key in range(12):
        tensor = torch.empty(shape)
        fill_orthogonal(tensor, 1.0, key)
        ours.append(error(tensor))
        generator = torch.Generator().manual_seed(key)
        theirs.append(error(torch.nn.init.orthogonal_(torch.empty(shape), generator=generator)))
    assert np.median(ours) <= 1.2 * np.median(theirs)


@pytest.mark.parametrize("shape", [(40, 30), (30, 40), (300, 200), (200, 300), (1100, 1000)])
@pytest.mark.parametrize("dtype", NARROW)
def test_narrow_dtypes_are_the_rounded_float32(shape, dtype):
    for gain in (0.5, 1e-6, 3e4):  # subnormals, and what exceeds float16 and float8
        torch.manual_seed(3)
        wide = torchinit.orthogonal_(torch.empty(shape), gain)
        torch.manual_seed(3)
        narrow = torchinit.orthogonal_(torch.empty(shape, dtype=dtype), gain)
        if dtype.itemsize == 1:
            limit = torch.finfo(dtype).max
            wide = wide.clamp(-limit, limit)
        assert torch.equal(narrow.float(), wide.to(dtype).float())


@native_only  # torch.nn.init needs contiguous tensors
@pytest.mark.parametrize("shape", [(30, 20), (500, 300), (300, 500)])
def test_layouts(shape):
    """Transposed, strided and channels-last memory: values of contiguous memory, to the bit."""
    rows, columns = shape

    def made(tensor):
        torch.manual_seed(5)
        return torchinit.orthogonal_(tensor, 2.0)

    expected = made(torch.empty(shape))
    assert error(expected, 2.0) < 1e-5
    padded = torch.full((rows + 3, columns + 5), 7.0)
    made(padded[1:-2, 2:-3])
    for other in (made(torch.empty(columns, rows).t()), padded[1:-2, 2:-3]):
        assert torch.equal(other, expected)
    padded[1:-2, 2:-3] = 7.0
    assert torch.equal(padded, torch.full_like(padded, 7.0))
    strided = made(torch.zeros(rows, 2 * columns)[:, ::2])
    assert torch.equal(strided, expected)
    conv = made(torch.empty(rows, columns // 4, 2, 2))
    assert torch.equal(conv.flatten(1), expected)
    last = torch.empty(rows, columns // 4, 2, 2, memory_format=torch.channels_last)
    assert torch.equal(made(last), conv)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (4, 0, 2)])
def test_without_elements(shape):
    assert torchinit.orthogonal_(torch.empty(shape)).shape == shape


@pytest.mark.parametrize("n", [50, 400])
@pytest.mark.parametrize("dtype", FLOATS)
def test_same_bits_again(n, dtype):
    def made():
        torch.manual_seed(9)
        return torchinit.orthogonal_(torch.empty(n, n, dtype=dtype))

    first = made()
    assert all(torch.equal(made(), first) for _ in range(3))


@native_only
@pytest.mark.parametrize("n", [100, 400])
def test_what_torch_multiplies_with_does_not_matter(n):
    torch.manual_seed(0)
    expected = torchinit.orthogonal_(torch.empty(n, n))
    assert torch.get_float32_matmul_precision() == "highest"
    torch.set_float32_matmul_precision("medium")
    torch.use_deterministic_algorithms(True)
    try:
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(torchinit.orthogonal_(torch.empty(n, n)), expected)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_float32_matmul_precision("highest")


# Batches.

SHAPES = [(8, 8), (100, 30), (8, 8), (150, 140), (8, 8, 1), (150, 140), (30, 100), (700, 3), (8, 8)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_batch_is_its_tensors_one_by_one(dtype):
    """Keys too are those of single calls, whatever the order of shapes."""
    torch.manual_seed(4)
    batch = [torch.empty(shape, dtype=dtype) for shape in SHAPES]
    assert torchinit.orthogonal_batch_(batch, 0.5) is batch
    torch.manual_seed(4)
    for tensor in batch:
        single = torchinit.orthogonal_(torch.empty_like(tensor), 0.5)
        assert torch.equal(tensor, single)


@pytest.mark.parametrize(
    "shape", [(5, 20, 20), (5, 20, 30), (3, 200, 150), (4, 150, 200), (3, 9, 4, 5)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_stack_is_its_matrices(shape, dtype):
    torch.manual_seed(4)
    stack = torchinit.orthogonal_batch_(torch.empty(shape, dtype=dtype))
    torch.manual_seed(4)
    scattered = torchinit.orthogonal_batch_(torch.empty(*shape, 2, dtype=dtype)[..., 0])
    torch.manual_seed(4)
    singles = torchinit.orthogonal_batch_([torch.empty(shape[1:], dtype=dtype) for _ in stack])
    for matrix, other, single in zip(stack, scattered, singles, strict=True):
        assert error(matrix) < (1e-5 if dtype == torch.float32 else 1e-2)
        assert torch.equal(matrix, single)
        assert torch.equal(matrix, other)


def test_empty_batches():
    assert torchinit.orthogonal_batch_([]) == []
    assert torchinit.orthogonal_batch_(torch.empty(0, 3, 3)).shape == (0, 3, 3)
    assert torchinit.orthogonal_batch_(torch.empty(3, 0, 3)).shape == (3, 0, 3)


@native_only
@pytest.mark.parametrize("shape", [(64, 64), (200, 200)])
def test_tied_and_overlapping_matrices_are_filled_in_turn(shape):
    """Two threads would race for their memory, or a batch of copies lose all but one."""
    rows, columns = shape

    def filled(make):
        torch.manual_seed(5)
        tensors = make(torch.zeros(rows * 3 // 2, columns))
        torchinit.orthogonal_batch_(tensors)
        return tensors

    def tied(memory):
        return [memory[:rows], memory[:rows]]

    def overlapping(memory):
        return [memory[:rows], memory[rows // 2 :]]

    for make in (tied, overlapping):
        results = [filled(make) for _ in range(20)]
        assert error(results[0][-1]) < 1e-5
        for result in results[1:]:
            assert torch.equal(result[-1], results[0][-1])
        torch.manual_seed(5)
        in_turn = make(torch.zeros(rows * 3 // 2, columns))
        for tensor in in_turn:
            torchinit.orthogonal_(tensor)
        assert all(map(torch.equal, results[0], in_turn))


@native_only
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(20, 20), (3, 30, 20), (300, 200)])
@pytest.mark.parametrize("exponent", [0.99, -0.99])
def test_gains_near_the_ends_of_the_range(dtype, shape, exponent):
    info = torch.finfo(dtype)
    gain = info.max**exponent
    torch.manual_seed(1)
    expected = torchinit.orthogonal_(torch.empty(shape, dtype=dtype)).double() * gain
    torch.manual_seed(1)
    got = torchinit.orthogonal_(torch.empty(shape, dtype=dtype), gain).double()
    assert torch.allclose(got, expected, rtol=4 * info.eps, atol=gain * 1e-5 + info.tiny * info.eps)
    torch.manual_seed(1)
    stack = torchinit.orthogonal_batch_(torch.empty(2, *shape, dtype=dtype), gain).double()
    assert torch.allclose(stack[0], expected, rtol=4 * info.eps, atol=gain * 1e-5)


# docs/streams.md, section 5, written anew: what somebody else would make of it.


def rounded(x):
    return np.asarray(x, np.float32).astype(np.longdouble)


def chain(terms):
    """Fused multiply-adds from zero. The product of two float32 is exact in long double.

    Their sum is rounded to 64 bits before it is to 24, which differs from the one rounding once in
    2^40 times.
    """
    total = np.longdouble(0)
    for a, b in terms:
        total = rounded(total + a * b)
    return total


def sums(a, b, c=0):
    """C + A^T B over rows, by segments of 256."""
    total = np.full((a.shape[1], b.shape[1]), c, np.longdouble)
    for start in range(0, len(a), 256):
        rows = zip(a[start : start + 256], b[start : start + 256], strict=True)
        total = rounded(total + chain((x[:, None], y[None, :]) for x, y in rows))
    return total


def by_the_contract(m, n, key, gain):
    gaussian = torch.empty((n, m))
    ops.normal_(gaussian, torch.tensor(key), 0.0, 1.0)
    gaussian = gaussian.numpy()
    vectors, halves, signs = np.zeros((m, n), np.longdouble), [], []
    for k in range(n):
        x = gaussian[k, k:].astype(np.float64)
        parts = np.zeros(64)
        for i, value in enumerate(x):
            parts[i % 64] += value * value
        while len(parts) > 1:
            parts = parts[: len(parts) // 2] + parts[len(parts) // 2 :]
        norm = np.sqrt(parts[0])
        head = x[0] - norm if x[0] < 0 else x[0] + norm
        scale = np.float32(1 / head)
        vectors[k, k] = 1
        vectors[k + 1 :, k] = gaussian[k, k + 1 :] * scale
        halves.append(rounded(norm / abs(head)))
        signs.append(1 if x[0] < 0 else -1)
    q = np.zeros((m, n), np.longdouble)
    for s in reversed(range(0, n, 32)):
        b = min(32, n - s)
        v = vectors[s:, s : s + b]
        u = sums(v, v)
        nn = np.zeros((b, b), np.longdouble)
        for a in reversed(range(b)):
            nn[a, a] = rounded(-1 / halves[s + a])
            for c in range(a + 1, b):
                nn[a, c] = chain((rounded(u[a, e] * nn[a, a]), nn[e, c]) for e in range(c, a, -1))
        p = sums(v, q[s:])
        for i in range(b):
            d = rounded(signs[s + i] * np.float32(gain))
            q[s + i, s + i] = d
            p[:, s + i] = rounded(v[i] * d)
        product = np.zeros((b, n), np.longdouble)
        for a in range(b):
            product[a] = rounded(0 + chain((nn[a, e], p[e]) for e in range(a, b)))
        update = chain((v[:, e : e + 1], product[e : e + 1]) for e in range(b))
        q[s:, s:] = rounded(q[s:, s:] + update[:, s:])
    return torch.from_numpy(q.astype(np.float32))


@native_only
@pytest.mark.parametrize(("m", "n"), [(1, 1), (5, 3), (32, 32), (70, 40), (300, 33), (600, 70)])
def test_the_contract_written_anew(m, n):
    tensor = torch.empty(m, n) if m > n else torch.empty(n, m).t()
    fill_orthogonal(tensor if m > n else tensor.t(), 0.3, 17)
    assert torch.equal(tensor, by_the_contract(m, n, 17, 0.3))


@pytest.fixture
def each_set():
    """Runs a function on every instruction set of the machine."""
    active = native.module.instruction_set()

    def run(function):
        for name in native.module.instruction_sets():
            native.module.choose_instruction_set(name)
            yield function()

    yield run
    native.module.choose_instruction_set(active)


@native_only
@pytest.mark.parametrize("dtype", [*FLOATS, *NARROW])
@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (64, 64), (100, 33), (33, 100), (300, 290)])
def test_the_same_bits_on_every_instruction_set(shape, dtype, each_set):
    def made():
        torch.manual_seed(1)
        return torchinit.orthogonal_batch_([torch.empty(shape, dtype=dtype) for _ in range(3)])

    first, *others = each_set(made)
    for other in others:
        for a, b in zip(first, other, strict=True):
            assert torch.equal(a.view(torch.uint8), b.view(torch.uint8))


@native_only
def test_the_first_columns_do_not_depend_on_how_many_there_are():
    """Of many columns, of few that are drawn in segments, and of a single one."""
    wide = torch.empty(5300, 300)
    fill_orthogonal(wide, 1.0, 5)
    for n in (1, 33, 150, 210, 255):
        some = torch.empty(5300, n)
        fill_orthogonal(some, 1.0, 5)
        assert torch.equal(some, wide[:, :n])


@native_only
@pytest.mark.parametrize("gain", [0.0, -0.0])
def test_a_gain_of_zero_gives_zeros_of_one_sign(gain):
    for shape in ((40, 33), (300, 300)):
        tensor = torch.empty(shape)
        fill_orthogonal(tensor, gain, 3)
        assert torch.equal(tensor.view(torch.int32), torch.zeros(shape, dtype=torch.int32))


# Uniform over the orthogonal group.

N = 8
LARGE = 40  # of two blocks


def traces(matrices):
    return matrices.diagonal(dim1=1, dim2=2).sum(1)


def p_values(q, reference):
    """p-values of square matrices, against exact laws and other uniform matrices."""
    q, reference = q.double(), reference.double()
    draws, N = len(q), q.shape[-1]
    found = {}

    def mean(name, values, expected, variance):
        z = (values.mean().item() - expected) / math.sqrt(variance / len(values))
        found[name] = 2 * stats.norm.sf(abs(z))

    def same(name, function):
        found[name] = stats.ks_2samp(function(q).numpy(), function(reference).numpy()).pvalue

    # An entry of a unit vector: its square is Beta(1/2, (N - 1)/2).
    law = stats.beta(0.5, (N - 1) / 2)
    for place in ((0, 0), (0, N - 1), (N - 1, 0), (N - 1, N - 1), (3, 4)):
        entry = q[:, place[0], place[1]]
        found[f"entry {place}"] = stats.kstest((entry**2).numpy(), law.cdf).pvalue
        mean(f"sign {place}", entry.sign(), 0, 1)
        moment = 3 / (N * (N + 2))
        eighth = 105 / (N * (N + 2) * (N + 4) * (N + 6))
        mean(f"fourth moment {place}", entry**4, moment, eighth - moment**2)
    # Diaconis and Shahshahani 1994: tr Q^k has mean 1 for even k, else 0, and variance k.
    power = torch.eye(N, dtype=torch.float64).expand_as(q)
    for k in range(1, 5):
        power = power @ q
        trace = traces(power)
        even = 1 - k % 2
        mean(f"trace {k}", trace, even, k)
        squares = (trace - even) ** 2
        mean(f"trace {k} squared", squares, k, squares.var().item())
    found["determinant"] = stats.binomtest(int((torch.linalg.det(q) > 0).sum()), draws).pvalue
    # Rows and columns as vectors: inner products with a fixed one.
    fixed = torch.arange(1.0, N + 1, dtype=torch.float64)
    for name, vector in (("first row", q[:, 0]), ("last row", q[:, -1]),
                         ("first column", q[:, :, 0]), ("last column", q[:, :, -1])):  # fmt: skip
        found[name] = stats.kstest(
            ((vector @ fixed) ** 2 / fixed.square().sum()).numpy(), law.cdf
        ).pvalue
        mean(f"{name}, sign", (vector @ fixed).sign(), 0, 1)

    def spacings(matrices):
        angles = torch.linalg.eigvals(matrices).angle().sort(dim=1).values
        return angles.diff(dim=1).flatten()

    same("angles", lambda m: torch.linalg.eigvals(m).angle().abs().max(dim=1).values)
    same("spacings", lambda m: spacings(m)[:: N - 1])
    for k in range(1, 5):
        same(f"trace {k}, two samples", lambda m, k=k: traces(torch.linalg.matrix_power(m, k)))
    same("fourth moments, two samples", lambda m: (m**4).sum((1, 2)))
    return found


def by_torch(n, draws):
    torch.manual_seed(77)
    return torch.stack([torch.nn.init.orthogonal_(torch.empty(n, n)) for _ in range(draws)])


@pytest.fixture(scope="module")
def reference():
    return by_torch(N, 10_000)


DRAWS = 20_000


def reflected(*, signs=True, scaled=1.0):
    """Products of reflectors, one by one in plain torch; right as they are."""
    torch.manual_seed(3)
    q = torch.zeros(DRAWS, N, N)
    for k in reversed(range(N)):
        x = torch.randn(DRAWS, N - k)
        norm = torch.linalg.vector_norm(x, dim=1)
        sign = torch.where(x[:, 0] < 0, 1.0, -1.0)
        q[:, k, k] = sign if signs else 1.0
        x[:, 0] = (x[:, 0] - sign * norm) * scaled
        v = x / torch.linalg.vector_norm(x, dim=1, keepdim=True)
        q[:, k:] -= 2 * v.unsqueeze(2) * (v.unsqueeze(1) @ q[:, k:])
    return q


@native_only
def test_small_matrices_are_uniform(reference):
    """Of successive keys, which models have whose keys are alike."""
    stack = torch.empty(DRAWS, N, N)
    kernels.run_orthogonal(stack, range(DRAWS), 1.0)
    found = p_values(stack, reference)
    assert all(p >= ALPHA for p in found.values()), found


@native_only
def test_matrices_of_two_blocks_are_uniform():
    torch.manual_seed(1)
    stack = torchinit.orthogonal_batch_(torch.empty(4_000, LARGE, LARGE))
    found = p_values(stack, by_torch(LARGE, 2_000))
    assert all(p >= ALPHA for p in found.values()), found


def test_the_statistics_accept_what_is_right(reference):
    found = p_values(reflected(), reference)
    assert all(p >= ALPHA for p in found.values()), found


def test_without_the_signs_they_are_not(reference):
    """Orthogonal all the same: it takes these statistics to see that something is wrong."""
    q = reflected(signs=False)
    assert error(q[0]) < 1e-5
    found = p_values(q, reference)
    wrong = {name for name, p in found.items() if p < ALPHA}
    assert {"trace 1", "trace 2", "trace 3", "trace 4", "determinant"} <= wrong
    assert {"sign (0, 0)", "first column, sign", "angles", "trace 1, two samples"} <= wrong


@pytest.mark.parametrize("scaled", [1.05, 0.95])
def test_without_equal_lengths_they_are_not(reference, scaled):
    """Vectors that are no Gaussians: the head of each counts for too much or too little."""
    assert min(p_values(reflected(scaled=scaled), reference).values()) < ALPHA


# Without the native module, and bad calls.


def test_fallback():
    torch.manual_seed(6)
    for shape in ((300, 200), (200, 300)):
        tensor = orthogonal_by_torch(torch.empty(shape), 2.0, None)
        assert error(tensor, 2.0) < 1e-5
    generator = torch.Generator().manual_seed(1)
    first = orthogonal_by_torch(torch.empty(200, 200), 1.0, generator)
    second = orthogonal_by_torch(torch.empty(200, 200), 1.0, generator.manual_seed(1))
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("tensors", "gain", "kind", "match"),
    [
        ([torch.ones(3)], 1.0, ValueError, "2 or more dimensions"),
        (torch.ones(3, 3), 1.0, ValueError, r"3 or more dimensions.*\(3, 3\)"),
        ([torch.ones(3, 3)], math.nan, ArgumentError, "gain=nan"),
        ([torch.ones(3, 3)], -math.inf, ArgumentError, "gain=-inf"),
        ([torch.ones(3, 3), torch.ones(3, 1).expand(3, 3)], 1.0, ArgumentError, "share memory"),
        ([torch.ones(3, 3), torch.ones(2)], 1.0, ValueError, r"\(2,\)"),
    ],
)
def test_bad_batches_write_nothing(tensors, gain, kind, match):
    state = torch.get_rng_state()
    with pytest.raises(kind, match=match):
        torchinit.orthogonal_batch_(tensors, gain)
    assert all((tensor == 1).all() for tensor in tensors)
    assert torch.equal(torch.get_rng_state(), state)


@native_only
@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"dtype": 4}, "integers"),
        ({"dtype": 99}, "no dtype 99"),
        ({"keys": [1, 2]}, "equally long"),
        ({"sizes": [9], "strides": [1], "global_shape": [9], "offset": [0]}, "two or more"),
        ({"offset": [1, 0]}, "exceeds"),
        ({"strides": [1]}, "same length"),
        ({"global_shape": [2**40, 2**40]}, "more than 2"),
    ],
)
def test_the_module_refuses(changed, match):
    memory = torch.ones(3, 3)
    job = {
        "dtype": 1, "keys": [1], "addresses": [memory.data_ptr()], "sizes": [3, 3],
        "strides": [3, 1], "global_shape": [3, 3], "offset": [0, 0], "gain": 1.0, "threads": 1,
    }  # fmt: skip
    with pytest.raises(ValueError, match=match):
        native.module.fill_orthogonal(*(job | changed).values())
    assert (memory == 1).all()


@native_only
def test_memory_that_cannot_be_had_writes_nothing():
    """Of a matrix so large that its first block alone exceeds the address space."""
    memory = torch.ones(1, 1)
    job = (1, [1], [memory.data_ptr()], [1, 1], [1, 1], [2**50, 300], [0, 0], 1.0, 1)
    with pytest.raises(MemoryError):
        native.module.fill_orthogonal(*job)
    assert memory == 1


MEMORY = """
import torch, torchinit
from torchinit.orthogonal import fill_orthogonal
from torchinit.placement.box import Box
rows, columns = {shape}
torch.set_num_threads({threads})
torchinit.orthogonal_(torch.empty(64, 64))  # what the first call keeps
tensor = torch.ones(rows if {part} is None else {part}, columns, dtype={dtype})
def read(name):
    return int(open("/proc/self/status").read().split(name)[1].split()[0]) * 1024
open("/proc/self/clear_refs", "w").write("5")  # forgets the peak so far
before = read("VmRSS:")
fill_orthogonal(tensor, 1.0, 1, None if {part} is None else Box((rows, columns), (3, 0)))
print(read("VmHWM:") - before)
"""


@native_only
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
@pytest.mark.parametrize(
    ("shape", "threads", "dtype", "part"),
    [
        ((1024, 1024), 2, torch.float32, None),
        ((2048, 2048), 1, torch.float32, None),
        ((1500, 4000), 1, torch.float32, None),
        ((3072, 3072), 2, torch.float32, None),
        ((16_000, 1500), 2, torch.float32, None),
        ((1024, 2048), 2, torch.float64, None),
        ((200_000, 32), 2, torch.float32, None),
        ((2_000_000, 1), 2, torch.float32, None),
        ((2048, 2048), 2, torch.bfloat16, None),
        ((4000, 1536), 2, torch.float32, 1000),
    ],
)
def test_memory_beside_the_matrix(shape, threads, dtype, part):
    """An eighth of the matrix in the dtype that it is formed in, and a megabyte a thread.

    By the pages of a process of its own, whose count is a few out.
    """
    script = MEMORY.format(shape=shape, threads=threads, dtype=dtype, part=part)
    run = warm.run("-c", script)
    assert run.returncode == 0, run.stderr
    size = math.prod(shape) * max(4, dtype.itemsize)
    assert 2**16 <= int(run.stdout) <= size / 8 + threads * 2**20 + 2**19


@native_only
def test_other_threads_multiply_meanwhile():
    """Nothing of torch is switched or held while a matrix is made, in this thread or for all."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    counts, times, begun, done = [], [], threading.Event(), threading.Event()
    matrix, small = torch.empty(2048, 2048), torch.ones(64, 64)

    def multiply():
        while not done.is_set():
            torch.mm(small, small)
            counts.append(torch.get_num_threads())
            times.append(time.monotonic())
            begun.set()

    multiplier = threading.Thread(target=multiply)
    multiplier.start()
    try:
        begun.wait()
        # Thousands of products while one matrix is made on idle cores; on busy ones each waits for
        # its turn. The ends of the fill do not count: the threads may change places just there.
        for _ in range(100):
            begin = time.monotonic()
            fill_orthogonal(matrix, 1.0, 1)
            quarter = (time.monotonic() - begin) / 4
            products = sum(begin + quarter < at < begin + 3 * quarter for at in list(times))
            if products:
                break
    finally:
        done.set()
        multiplier.join()
        torch.set_num_threads(before)
    assert products
    assert set(counts) == {2}


@native_only
def test_many_threads_at_once():
    """16 callers, each with matrices of its own, large and small."""
    shapes = [(40, 40), (300, 200), (200, 300)]

    def made(key):
        tensors = [torch.empty(shape) for shape in shapes]
        for tensor in tensors:
            fill_orthogonal(tensor, 1.0, key)
        return tensors

    expected = [made(key) for key in range(16)]
    found = [None] * 16

    def work(key):
        for _ in range(3):
            found[key] = made(key)

    workers = [threading.Thread(target=work, args=(key,)) for key in range(16)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for one, other in zip(expected, found, strict=True):
        assert all(map(torch.equal, one, other))


def test_subclasses_of_16_bits_are_torchs():
    """Copying a plain matrix into a DTensor would mix the two: torch's own error is clearer."""

    class Other(torch.Tensor):
        pass

    tensor = torch.empty(4, 4, dtype=torch.bfloat16).as_subclass(Other)
    with pytest.raises(RuntimeError, match="not implemented for 'BFloat16'"):
        torchinit.orthogonal_(tensor)
