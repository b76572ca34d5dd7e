"""orthogonal_ and orthogonal_batch_: orthogonal to rounding, and uniform over the group (Haar).

Statistical tests are at level ALPHA with fixed seeds, about 40 p-values a method: had the seeds
been drawn, one run in 5,000 would fail by chance.
"""

from __future__ import annotations

import itertools
import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as hs
from scipy import stats

import torchinit
from conftest import native_only
from torchinit.errors import ArgumentError
from torchinit.fill import operators as ops
from torchinit.native import load as native
from torchinit.orthogonal import fallback, form, panels, products, reflectors

ALPHA = 1e-6
FLOATS = (torch.float32, torch.float64)


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


@pytest.mark.parametrize("shape", [(40, 30), (30, 40), (300, 200), (200, 300), (1100, 1000)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_dtypes_are_the_rounded_float32(shape, dtype):
    torch.manual_seed(3)
    wide = torchinit.orthogonal_(torch.empty(shape), 0.5)
    torch.manual_seed(3)
    narrow = torchinit.orthogonal_(torch.empty(shape, dtype=dtype), 0.5)
    assert torch.equal(narrow, wide.to(dtype))


@native_only  # torch.nn.init needs contiguous tensors
@pytest.mark.parametrize("shape", [(30, 20), (500, 300), (300, 500)])
def test_layouts(shape):
    """Transposed, strided and channels-last memory: values of contiguous memory, to rounding."""
    rows, columns = shape

    def made(tensor):
        torch.manual_seed(5)
        return torchinit.orthogonal_(tensor, 2.0)

    expected = made(torch.empty(shape))
    assert error(expected, 2.0) < 1e-5
    padded = torch.full((rows + 3, columns + 5), 7.0)
    made(padded[1:-2, 2:-3])
    for other in (made(torch.empty(columns, rows).t()), padded[1:-2, 2:-3]):
        assert (other - expected).abs().max() <= 1e-5
    padded[1:-2, 2:-3] = 7.0
    assert torch.equal(padded, torch.full_like(padded, 7.0))
    strided = made(torch.zeros(rows, 2 * columns)[:, ::2])
    assert (strided - expected).abs().max() <= 1e-5
    conv = made(torch.empty(rows, columns // 4, 2, 2))
    assert (conv.flatten(1) - expected).abs().max() <= 1e-5
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


@pytest.mark.parametrize("n", [100, 400])
def test_products_keep_their_precision(n):
    torch.manual_seed(0)
    assert torch.get_float32_matmul_precision() == "highest"
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            tensor = torchinit.orthogonal_(torch.empty(n, n))
            assert torch.is_autocast_enabled("cpu")
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert error(tensor) < 4e-6


# Batches.

SHAPES = [(8, 8), (100, 30), (8, 8), (150, 140), (8, 8, 1), (150, 140), (30, 100), (700, 3), (8, 8)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_batch_is_its_tensors_one_by_one(dtype):
    """Keys too are those of single calls, whatever the order of shapes."""
    torch.manual_seed(4)
    batch = [torch.empty(shape, dtype=dtype) for shape in SHAPES]
    assert torchinit.orthogonal_batch_(batch, 0.5) is batch
    torch.manual_seed(4)
    tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-5
    for tensor in batch:
        single = torchinit.orthogonal_(torch.empty_like(tensor), 0.5)
        assert (tensor - single).abs().max() <= tolerance


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
        assert (matrix - single).abs().max() <= (1e-5 if dtype == torch.float32 else 1e-3)
        assert (matrix - other).abs().max() <= (1e-5 if dtype == torch.float32 else 1e-3)


def test_empty_batches():
    assert torchinit.orthogonal_batch_([]) == []
    assert torchinit.orthogonal_batch_(torch.empty(0, 3, 3)).shape == (0, 3, 3)
    assert torchinit.orthogonal_batch_(torch.empty(3, 0, 3)).shape == (3, 0, 3)


def test_large_batches_are_made_in_parts(monkeypatch):
    monkeypatch.setitem(form._BATCH_ELEMENTS, "cpu", 3 * 150 * 150)
    torch.manual_seed(4)
    batch = torchinit.orthogonal_batch_([torch.empty(150, 150) for _ in range(7)])
    torch.manual_seed(4)
    for tensor in batch:
        single = torchinit.orthogonal_(torch.empty(150, 150))
        assert (tensor - single).abs().max() <= 1e-5


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
        assert torch.allclose(results[0][0], in_turn[0], atol=1e-5)


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


# The vectors follow the contract of the streams.


@native_only
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("m", "first", "count"), [(1, 0, 1), (9, 8, 1), (70, 0, 20), (333, 100, 64)]
)
def test_vectors_follow_their_definition(m, first, count, dtype):
    keys = torch.tensor([7, -3])
    vectors = torch.full((2, count, m - first), math.nan, dtype=dtype)
    half_norms, signs = torch.empty((2, 2, count), dtype=dtype)
    reflectors.fill_reflectors(vectors, half_norms, signs, keys, first)
    for key, block, half, sign in zip(keys, vectors, half_norms, signs, strict=True):
        gaussian = torch.empty((m, m), dtype=dtype)
        ops.normal_(gaussian, key, 0.0, 1.0)
        for j, vector in enumerate(block):
            x = gaussian[first + j, first + j :]
            assert vector[:j].abs().sum() == 0
            v = vector[j:].double()
            assert v[0] == 1
            assert half[j].item() == pytest.approx(
                v.dot(v).item() / 2, rel=8 * torch.finfo(dtype).eps
            )
            assert sign[j] == (1 if x[0] < 0 else -1)
            # H maps x onto the first unit vector, times the sign.
            y = x.double()
            image = y - v * (2 * v.dot(y) / v.dot(v))
            expected = torch.zeros_like(image)
            expected[0] = sign[j] * y.norm()
            assert (image - expected).abs().max() <= 8 * torch.finfo(dtype).eps * y.norm()


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
@pytest.mark.parametrize("dtype", FLOATS)
@given(data=hs.data())
def test_vectors_have_the_same_bits_everywhere(dtype, data):
    """On any instruction set and number of threads, and in any cut into blocks."""
    m = data.draw(hs.integers(1, 300))
    first = data.draw(hs.integers(0, m - 1))
    count = data.draw(hs.integers(1, min(40, m - first)))
    cut = data.draw(hs.integers(0, count - 1))
    key = torch.tensor([data.draw(hs.integers(-(2**63), 2**63 - 1))])

    def made(start, number):
        vectors = torch.empty((1, number, m - start), dtype=dtype)
        half_norms, signs = torch.empty((2, 1, number), dtype=dtype)
        reflectors.fill_reflectors(vectors, half_norms, signs, key, start)
        return vectors, half_norms, signs

    active, threads = native.module.instruction_set(), torch.get_num_threads()
    whole = made(first, count)
    try:
        for name in native.module.instruction_sets():
            native.module.choose_instruction_set(name)
            torch.set_num_threads(data.draw(hs.integers(1, 4)))
            again = made(first, count)
            assert all(map(torch.equal, again, whole))
            part = made(first + cut, count - cut)
            assert torch.equal(part[0], whole[0][:, cut:, cut:])
            assert torch.equal(part[1], whole[1][:, cut:])
            assert torch.equal(part[2], whole[2][:, cut:])
    finally:
        native.module.choose_instruction_set(active)
        torch.set_num_threads(threads)


@native_only
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (64, 64), (100, 33), (33, 100)])
def test_small_matrices_have_the_same_bits_everywhere(shape, dtype, each_set):
    def made():
        torch.manual_seed(1)
        return torchinit.orthogonal_batch_([torch.empty(shape, dtype=dtype) for _ in range(9)])

    first, *others = each_set(made)
    for other in others:
        assert all(map(torch.equal, first, other))


@native_only
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(1, 1), (6, 6), (90, 40), (40, 90)])
@pytest.mark.parametrize("count", [1, 3])
def test_one_by_one_or_by_blocks(shape, dtype, count, monkeypatch):
    """Small matrices are the same, to rounding, as by the blocks that large ones take."""

    def made():
        torch.manual_seed(1)
        return torchinit.orthogonal_batch_(torch.empty(count, *shape, dtype=dtype))

    small = made()
    monkeypatch.setattr(form, "_SMALL", 0)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-14
    for width, block in ((4, 1), (14, 7), (64, 64), (128, 32)):
        monkeypatch.setattr(panels, "sizes", lambda *_, both=(width, block): both)
        assert (made() - small).abs().max() <= tolerance * math.sqrt(max(shape))


# Uniform over the orthogonal group.

N = 8


def traces(matrices):
    return matrices.diagonal(dim1=1, dim2=2).sum(1)


def p_values(q, reference):
    """p-values of (draws, N, N) matrices, against exact laws and other uniform matrices."""
    q, reference = q.double(), reference.double()
    draws = len(q)
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


@pytest.fixture(scope="module")
def reference():
    torch.manual_seed(77)
    return torch.stack([torch.nn.init.orthogonal_(torch.empty(N, N)) for _ in range(10_000)])


DRAWS = 20_000


def drawn_by_blocks(draw, block):
    matrices = torch.empty(DRAWS, N, N)
    ranges = [panels.Range(start, min(N, start + block)) for start in range(0, N, block)]
    grid = panels.Grid(N, N, ranges, ranges)
    parts = [products.Panel(each, matrices[..., each.start : each.stop]) for each in ranges]
    products.form_panels(grid, parts, draw, 1.0, wide=False)
    return matrices


def torch_draw(vectors, half_norms, signs, _):
    fallback.draw_by_torch(vectors, half_norms, signs, None)


@native_only
def test_small_matrices_are_uniform(reference):
    torch.manual_seed(1)
    found = p_values(torchinit.orthogonal_batch_(torch.empty(DRAWS, N, N)), reference)
    assert all(p >= ALPHA for p in found.values()), found


@native_only
@pytest.mark.parametrize("block", [3, N])
def test_blocks_are_uniform(reference, block):
    keys = torch.arange(DRAWS)  # successive keys: what models have whose keys are alike

    def draw(vectors, half_norms, signs, first):
        reflectors.fill_reflectors(vectors, half_norms, signs, keys, first)

    found = p_values(drawn_by_blocks(draw, block), reference)
    assert all(p >= ALPHA for p in found.values()), found


@pytest.mark.parametrize("block", [3, N])
def test_blocks_in_plain_torch_are_uniform(reference, block):
    torch.manual_seed(2)
    found = p_values(drawn_by_blocks(torch_draw, block), reference)
    assert all(p >= ALPHA for p in found.values()), found


def test_without_the_signs_they_are_not(reference):
    """Orthogonal all the same: it takes these statistics to see that something is wrong."""
    torch.manual_seed(3)

    def draw(vectors, half_norms, signs, first):
        torch_draw(vectors, half_norms, signs, first)
        signs.fill_(1)

    q = drawn_by_blocks(draw, 3)
    assert error(q[0]) < 1e-5
    found = p_values(q, reference)
    wrong = {name for name, p in found.items() if p < ALPHA}
    assert {"trace 1", "trace 2", "trace 3", "trace 4", "determinant"} <= wrong
    assert {"sign (0, 0)", "first column, sign", "angles", "trace 1, two samples"} <= wrong


@pytest.mark.parametrize("scaled", [1.05, 0.95])
def test_without_equal_lengths_they_are_not(reference, scaled):
    """Vectors that are no Gaussians: the head of each counts for too much or too little."""
    torch.manual_seed(3)

    def draw(vectors, half_norms, signs, first):
        torch_draw(vectors, half_norms, signs, first)
        vectors.diagonal(dim1=-2, dim2=-1).mul_(scaled)
        half_norms.copy_(vectors.square().sum(-1) / 2)

    found = p_values(drawn_by_blocks(draw, 3), reference)
    assert min(found.values()) < ALPHA


# Without the native module, and bad calls.


def test_fallback_by_blocks():
    torch.manual_seed(6)
    for shape in ((300, 200), (200, 300)):
        tensor = fallback.orthogonal_by_torch(torch.empty(shape), 2.0, None)
        assert error(tensor, 2.0) < 1e-5
    generator = torch.Generator().manual_seed(1)
    first = fallback.orthogonal_by_torch(torch.empty(200, 200), 1.0, generator)
    second = fallback.orthogonal_by_torch(torch.empty(200, 200), 1.0, generator.manual_seed(1))
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


def block(vectors, signs, keys, first):
    reflectors.fill_reflectors(vectors, torch.ones_like(signs), signs, keys, first)


@native_only
@pytest.mark.parametrize(
    ("call", "kind"),
    [
        (
            lambda k: block(torch.ones(1, 2, 3).half(), torch.ones(1, 2), k, 0),
            TypeError,
        ),
        (lambda k: block(torch.ones(1, 4, 3), torch.ones(1, 4), k, 0), ValueError),
        (lambda k: block(torch.ones(1, 2, 3), torch.ones(1, 3), k, 0), ValueError),
        (
            lambda k: block(torch.ones(1, 2, 3), torch.ones(1, 2), k, -1),
            ValueError,
        ),
        (lambda k: block(torch.ones(2, 2, 3), torch.ones(2, 2), k, 0), TypeError),
        (lambda k: reflectors.fill_small([torch.ones(2, 3)], k, 1.0), ValueError),
        (lambda _: reflectors.invert_triangles(torch.ones(1, 2, 3)), ValueError),
        (lambda _: reflectors.invert_triangles(torch.ones(2, 2)), TypeError),
    ],
)
def test_operators_refuse(call, kind):
    with pytest.raises(kind):
        call(torch.tensor([1]))


@native_only
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n", [1, 5, 64, 100])
def test_inverse_of_triangles(n, dtype, each_set):
    torch.manual_seed(0)
    grams = torch.randn(3, n, n, dtype=dtype) / n
    grams += torch.eye(n)
    upper = grams.triu()

    def inverted():
        reflectors.invert_triangles(result := grams.clone())
        return result

    first, *others = each_set(inverted)
    assert (first @ upper - torch.eye(n)).abs().max() <= 40 * torch.finfo(dtype).eps
    assert first.tril(-1).abs().sum() == 0
    assert all(torch.equal(first, other) for other in others)


MEMORY = """
import resource, torch, torchinit
rows, columns = {shape}
torch.set_num_threads({threads})
torchinit.orthogonal_(torch.empty(rows, columns))  # what libraries keep for themselves
tensor = torch.ones(rows, columns)
def peak():
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) * 1024
def resident():
    return int(open("/proc/self/status").read().split("VmRSS:")[1].split()[0]) * 1024
open("/proc/self/clear_refs", "w").write("5")  # forgets the peak so far
before = resident()
torchinit.orthogonal_(tensor)
print((peak() - before) / (tensor.numel() * tensor.element_size()))
"""


@native_only
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
@pytest.mark.parametrize(
    ("shape", "threads"),
    [((2048, 2048), 1), ((1500, 4000), 1), ((3072, 3072), 2), ((200_000, 32), 2)],
)
def test_memory_beside_the_matrix(shape, threads):
    """At most 15% of the matrix, by the pages of a process of its own: what libraries take is in.

    The system's count of pages is too coarse for smaller matrices, and the megabyte that MKL takes
    for a second thread's products too large a part of them.
    """
    run = subprocess.run(
        [sys.executable, "-c", MEMORY.format(shape=shape, threads=threads)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert 0.02 <= float(run.stdout) <= 0.15  # less would mean that nothing was measured


@native_only
@pytest.mark.parametrize("shape", [(1024, 1024), (1024, 1100), (2048, 2048), (70_000, 16)])
def test_memory_that_torch_allocates(shape):
    """The same, by the allocations that torch's profiler sees."""
    tensor = torch.empty(shape)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        torchinit.orthogonal_(tensor)
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    peak = max(itertools.accumulate(event.nbytes() for event in events))
    assert 0.02 <= peak / tensor.nbytes <= 0.15


def test_subclasses_of_16_bits_are_torchs():
    """Copying a plain matrix into a DTensor would mix the two: torch's own error is clearer."""

    class Other(torch.Tensor):
        pass

    tensor = torch.empty(4, 4, dtype=torch.bfloat16).as_subclass(Other)
    with pytest.raises(RuntimeError, match="not implemented for 'BFloat16'"):
        torchinit.orthogonal_(tensor)
