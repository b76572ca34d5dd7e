"""The contract of docs/streams.md: exact equality of bits, however a tensor is filled."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import torchinit
from conftest import native_only
from contract_reference import MASK, philox, word
from contract_vectors import KNOWN_ANSWERS
from fills import (
    DTYPES,
    FILLS,
    GUARD,
    INF,
    KEY,
    NARROW,
    UNSIGNED_KEY,
    WORDS,
    assert_same_bits,
    bits,
    each_fill,
    fits,
    make,
)
from torchinit.native import load as native

ops = torch.ops.torchinit

pytestmark = native_only


def test_same_bits_rejects_other_bits():
    with pytest.raises(AssertionError):
        assert_same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))
    assert_same_bits(torch.tensor([math.nan]), torch.tensor([math.nan]))


@pytest.mark.parametrize("known", KNOWN_ANSWERS)
def test_known_answers(known):
    counter, key, output = (tuple(int(one, 16) for one in words.split()) for words in known)
    assert philox(counter, key) == output
    assert tuple(native.module.philox(counter, key[0] | key[1] << 32)) == output


@pytest.fixture(params=native.module.instruction_sets() if native.module else [])
def instruction_set(request):
    """Forces each instruction set of the machine in turn."""
    active = native.module.instruction_set()
    native.module.choose_instruction_set(request.param)
    yield request.param
    native.module.choose_instruction_set(active)


@pytest.mark.parametrize("start", [0, 1, 6, 2**32 - 5, 2**34 - 3, 2**62 + 1])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_words_follow_the_reference(start, dtype, instruction_set):
    """Through the real kernels, at logical offsets beyond 2^32 words, blocks and elements."""
    assert native.module.instruction_set() == instruction_set
    tensor = make(WORDS["words"], dtype, 77, [start], [2**63 - 1])
    expected = [word(UNSIGNED_KEY, start + i, 8 * dtype.itemsize) for i in range(77)]
    assert [value % 2 ** (8 * dtype.itemsize) for value in tensor.tolist()] == expected


def signed(word, size):
    return word - 2**size if word >> (size - 1) else word


def test_uniform_follows_its_definition():
    """origin + s * scale, in single precision with s rounded first; nothing clamps here."""
    tensor = make((ops.uniform_, (-1.0, 1.0)), torch.float32, 1000)
    words = [signed(word(UNSIGNED_KEY, i, 32), 32) for i in range(1000)]
    # Scale 2^-31 could give 1.0, so it is the next float below.
    scale = torch.tensor(2.0**-31).nextafter(torch.tensor(0.0)).item()
    assert torch.equal(tensor, (torch.tensor(words).float().double() * scale).float())
    tensor = make((ops.uniform_, (-1.0, 1.0)), torch.float64, 1000)
    words = [signed(word(UNSIGNED_KEY, i, 64), 64) >> 11 for i in range(1000)]
    assert tensor.tolist() == [word * 2.0**-52 for word in words]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-15)])
def test_normal_follows_its_definition(dtype, tolerance):
    tensor = make((ops.normal_, (0.0, 1.0)), dtype, 1000).double()
    size = 8 * dtype.itemsize
    digits = 31 if size == 32 else 52
    for pair in range(0, 1000, 2):
        v, w = (word(UNSIGNED_KEY, pair + i, size) for i in (0, 1))
        odd = (v >> (0 if size == 32 else 11)) % 2**digits | 1
        radius = math.sqrt(-2 * math.log(odd * 2.0**-digits))
        angle = math.pi / 4 * signed(w * 2 % 2**size, size) / 2 ** (size - 1)
        c, s = math.cos(angle), math.sin(angle)
        c = -c if v >> (size - 1) else c
        x, y = (s, c) if w >> (size - 1) else (c, s)
        assert tensor[pair].item() == pytest.approx(radius * x, abs=tolerance * 7)
        assert tensor[pair + 1].item() == pytest.approx(radius * y, abs=tolerance * 7)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-14)])
@pytest.mark.parametrize(
    ("a", "b"),
    [(-2.0, 2.0), (-0.5, 2.5), (-3.0, 3.0), (-4.0, 5.0), (-INF, -1.0), (0.3, INF), (8.0, 10.0),
     (1.0, 1.001), (31.0, 33.0), (-INF, -50.0), (40.0, 40.001)],
)  # fmt: skip
def test_truncated_normal_follows_its_definition(a, b, dtype, tolerance):
    """Against the quantile of the truncated distribution in 60 digits."""
    mpmath = pytest.importorskip("mpmath")
    tensor = make((ops.trunc_normal_, (0.0, 1.0, a, b)), dtype, 24).tolist()
    size = 8 * dtype.itemsize
    with mpmath.workdps(60):
        flip = -1 if a > 0 else 1  # the tail that keeps the digits
        low, high = sorted((mpmath.ncdf(flip * mpmath.mpf(a)), mpmath.ncdf(flip * mpmath.mpf(b))))
        for i, value in enumerate(tensor):
            steps = signed(word(UNSIGNED_KEY, i, size), size) + mpmath.mpf(1) / 2
            u = steps / mpmath.mpf(2) ** size + mpmath.mpf(1) / 2
            p = low + (u if flip > 0 else 1 - u) * (high - low)
            guess = flip * mpmath.mpf(value)
            # One Newton step from the value: the distance to the quantile, far above its error.
            step = (mpmath.ncdf(guess) - p) / mpmath.npdf(guess)
            assert abs(step) <= tolerance * max(1, abs(value))


@each_fill
@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_threads_do_not_matter(fill, dtype, threads):
    count = 3 * 2**16 + 5
    expected = make(fill, dtype, count)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert_same_bits(make(fill, dtype, count), expected)
    finally:
        torch.set_num_threads(before)


def assert_instruction_sets_agree(fill, dtype, *where):
    """Makes a fill on every set the machine has, and compares the bits with the portable one's."""
    names = native.module.instruction_sets()
    assert names[-1] == "portable"
    active = native.module.instruction_set()
    made = {}
    try:
        for name in names:
            assert native.module.choose_instruction_set(name)
            assert native.module.instruction_set() == name
            made[name] = make(fill, dtype, *where)
    finally:
        native.module.choose_instruction_set(active)
    for tensor in made.values():
        assert_same_bits(tensor, made["portable"])


@each_fill
def test_instruction_sets_agree(fill, dtype):
    assert_instruction_sets_agree(fill, dtype, 4999, [3], [2**40])


# In units of the scale.
SCALED_FILLS = {
    "uniform": (ops.uniform_, (-1.0, 1.3)),
    "normal": (ops.normal_, (0.0, 1.0)),
    "truncated within 2 std": (ops.trunc_normal_, (0.0, 1.0, -2.0, 2.0)),
    "truncated within 3 std": (ops.trunc_normal_, (0.0, 1.0, -2.9, 2.5)),
    "truncated, two tails": (ops.trunc_normal_, (0.0, 1.0, -4.0, 5.0)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fill", SCALED_FILLS.values(), ids=SCALED_FILLS)
def test_instruction_sets_agree_at_every_magnitude(fill, dtype):
    """From subnormals, which some processors convert otherwise, to the largest values."""
    operator, parameters = fill
    for exponent in range(-149, 125):
        scaled = tuple(math.ldexp(parameter, exponent) for parameter in parameters)
        assert_instruction_sets_agree((operator, scaled), dtype, 4096)


@st.composite
def fills_of_any_magnitude(draw):
    """Parameters of all of float32's magnitudes, alone and beside others far larger or smaller."""

    exponents = st.integers(-149, -80) | st.integers(-149, 124)

    def value():
        return math.ldexp(draw(st.sampled_from([1.0, 1.3, 1.9])), draw(exponents))

    std = value()
    mean = draw(st.sampled_from([0.0, -1.0, 1.0])) * value()
    kind = draw(st.sampled_from(["uniform", "normal", "truncated"]))
    if kind == "uniform":
        low = draw(st.sampled_from([0.0, mean, mean - 0.5 * std]))
        return ops.uniform_, (low, low + std)
    if kind == "normal":
        return ops.normal_, (mean, std)
    near, far = sorted(draw(st.tuples(*[st.floats(-5, 5)] * 2)))
    bounds = draw(
        st.sampled_from([(near, far), (-far, far), (-INF, far), (near, INF), (-1e-9, far)])
    )
    return ops.trunc_normal_, (mean, std, *sorted(mean + std * bound for bound in bounds))


@given(fills_of_any_magnitude(), st.sampled_from([torch.float32, torch.bfloat16]))
def test_instruction_sets_agree_at_mixed_magnitudes(fill, dtype):
    assert_instruction_sets_agree(fill, dtype, 4096)


@each_fill
@pytest.mark.parametrize("start", [1, 2, 3, 7, 64, 2**33 + 1])
def test_pieces_equal_the_whole(fill, dtype, start):
    """Every small size at every phase of a block and of a vector, with guard elements around."""
    operator, parameters = fill
    whole = make(fill, dtype, 200, [start - 1], [2**50])
    for size in [0, 1, 2, 3, 4, 5, 15, 16, 17, 31, 32, 33, 63, 64, 65, 130]:
        memory = torch.full((size + 2,), GUARD, dtype=dtype)
        operator(memory[1:-1], KEY, *parameters, [2**50], [start])
        assert_same_bits(memory[1:-1], whole[1 : size + 1])
        assert memory[0] == memory[-1] == GUARD


@each_fill
def test_boxes_equal_the_slices(fill, dtype):
    whole = make(fill, dtype, (6, 7, 5))
    part = make(fill, dtype, (3, 2, 4), [2, 4, 1], [6, 7, 5])
    assert_same_bits(part, whole[2:5, 4:6, 1:5])


@each_fill
def test_layouts_do_not_matter(fill, dtype):
    operator, parameters = fill
    shape = (3, 8, 5, 6)
    expected = make(fill, dtype, shape)
    layouts = {
        "channels last": torch.empty(shape, dtype=dtype).to(memory_format=torch.channels_last),
        "transposed": torch.empty((6, 5, 8, 3), dtype=dtype).permute(3, 2, 1, 0),
        "padded rows": torch.full((3, 8, 5, 9), GUARD, dtype=dtype)[..., :6],
        "every other": torch.full((3, 8, 5, 12), GUARD, dtype=dtype)[..., ::2],
    }
    for name, tensor in layouts.items():
        operator(tensor, KEY, *parameters)
        assert_same_bits(tensor, expected), name
    assert (layouts["padded rows"]._base[..., 6:] == GUARD).all()
    assert (layouts["every other"]._base[..., 1::2] == GUARD).all()


@each_fill
def test_long_rows_and_columns(fill, dtype):
    """Rows long enough to be filled in place, columns that exceed the scatter buffer."""
    operator, parameters = fill
    expected = make(fill, dtype, (5, 3000))
    padded = torch.empty((5, 3100), dtype=dtype)[:, 50:3050]
    transposed = torch.empty((3000, 5), dtype=dtype).t()
    for tensor in (padded, transposed):
        operator(tensor, KEY, *parameters)
        assert_same_bits(tensor, expected)


@st.composite
def boxes(draw):
    """A logical shape, a box in it, and a permuted and strided memory layout for the box."""
    rank = draw(st.integers(0, 5))
    shape = [draw(st.integers(1, 9)) for _ in range(rank)]
    start = [draw(st.integers(0, size - 1)) for size in shape]
    sizes = [draw(st.integers(0, w - s)) for w, s in zip(shape, start, strict=True)]
    order = draw(st.permutations(range(rank)))
    steps = [draw(st.integers(1, 3)) for _ in range(rank)]
    return shape, start, sizes, order, steps


@given(
    boxes(),
    st.sampled_from([*FILLS, *WORDS]),
    st.sampled_from(DTYPES),
)
def test_any_box_in_any_layout(box, name, dtype):
    shape, start, sizes, order, steps = box
    operator, parameters = {**FILLS, **WORDS}[name]
    if name == "words":
        dtype = torch.int32
    elif not fits(FILLS[name], dtype):
        dtype = torch.float8_e5m2
    whole = torch.empty(shape, dtype=dtype)
    operator(whole, KEY, *parameters)
    memory = torch.empty([sizes[d] * steps[d] for d in order], dtype=dtype)
    view = memory[tuple(slice(None, None, steps[d]) for d in order)]
    tensor = view.permute([order.index(d) for d in range(len(shape))])
    operator(tensor, KEY, *parameters, shape, start)
    slices = tuple(slice(s, s + n) for s, n in zip(start, sizes, strict=True))
    assert_same_bits(tensor, whole[slices])


@given(boxes(), st.sampled_from([*FILLS]), st.integers(2**32, 2**44))
def test_any_box_at_a_great_offset(box, name, offset):
    """A box behind a long leading dimension equals the same indices of a flat tensor."""
    shape, start, sizes, _, _ = box
    operator, parameters = FILLS[name]
    tensor = torch.empty([1, *sizes])
    operator(tensor, KEY, *parameters, [2**45, *shape], [offset, *start])
    elements = math.prod(shape)
    flat = torch.empty(elements)
    operator(flat, KEY, *parameters, [2**45 * elements], [offset * elements])
    slices = tuple(slice(s, s + n) for s, n in zip(start, sizes, strict=True))
    assert_same_bits(tensor[0], flat.view(shape)[slices])


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("fill", FILLS.values(), ids=FILLS)
def test_low_precision_is_rounded_float32(fill, dtype):
    if not fits(fill, dtype):
        pytest.skip(f"{fill[1]} is out of the range of {dtype}")
    count = 2**16
    single = make(fill, torch.float32, count)
    narrow = make(fill, dtype, count)
    rounded = single.to(dtype)  # torch rounds to nearest, ties to even
    operator, parameters = fill
    if operator is ops.uniform_:
        low, high = parameters
        inside = (rounded.double() >= low) & (rounded.double() < high)
        kept = (narrow.double() >= low) & (narrow.double() < high)
    elif operator is ops.trunc_normal_:
        low, high = parameters[2:]
        inside = (rounded.double() >= low) & (rounded.double() <= high)
        kept = (narrow.double() >= low) & (narrow.double() <= high)
    else:
        inside = kept = torch.ones(count, dtype=torch.bool)
    values_exist = bool(inside.any())
    if values_exist:
        assert kept.all()
    assert_same_bits(narrow[inside], rounded[inside])
    # Outside values move to the nearest value inside, one step of the format away.
    distance = (narrow.double() - single.double()).abs()
    info = torch.finfo(dtype)
    smallest = max(info.tiny * info.eps, 2.0**-24)
    assert (distance <= info.eps * single.double().abs() + smallest).all()


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_every_float8_is_the_nearest(dtype):
    """Against a search among the values themselves: 2^20 floats over all exponents and beyond."""
    codes = torch.arange(128, dtype=torch.uint8)
    values = codes.view(dtype).double()
    values = values[values.isfinite()]
    magnitude = values.max().item()
    for limit in (8.0 * magnitude, magnitude, 1.0, 2.0**-8, 2.0**-17):
        std = limit / 4
        single = make((ops.normal_, (0.0, std)), torch.float32, 2**18)
        narrow = make((ops.normal_, (0.0, std)), dtype, 2**18)
        exact = single.double().abs()
        above = torch.searchsorted(values, exact).clamp(1, len(values) - 1)
        below = above - 1
        to_above, to_below = values[above] - exact, exact - values[below]
        up = (to_above < to_below) | ((to_above == to_below) & (above % 2 == 0))
        expected = torch.where(up, above, below) + 128 * single.signbit()
        assert torch.equal(narrow.view(torch.uint8).long(), expected)
    assert (narrow.double().abs() < magnitude).all()
    saturated = make((ops.normal_, (0.0, 8.0 * magnitude)), dtype, 1000)
    assert saturated.double().abs().max() == magnitude


@pytest.mark.parametrize("flush", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_flushing_of_subnormals_does_not_matter(flush, dtype):
    """Values below the normal range, whatever modes the program has set for its threads."""
    fill = (ops.uniform_, (0.0, 2.0 * torch.finfo(dtype).tiny))
    expected = make(fill, dtype, 1000)
    assert (bits(expected) != 0).sum() > 900
    torch.set_flush_denormal(flush)
    try:
        got = make(fill, dtype, 1000)
    finally:
        torch.set_flush_denormal(False)
    assert_same_bits(got, expected)


def test_flushing_on_one_of_several_threads_does_not_matter():
    """The caller's thread flushes, and takes a share of the pieces; the others do not."""
    fill = (ops.uniform_, (0.0, 2.0 * torch.finfo(torch.float32).tiny))
    count = 3 * 2**16
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        expected = make(fill, torch.float32, count)
        torch.set_flush_denormal(True)
        found = [make(fill, torch.float32, count) for _ in range(8)]
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(before)
    for tensor in found:
        assert_same_bits(tensor, expected)


def test_the_modes_of_a_program_outlive_a_fill():
    def is_flushing():
        return bool((torch.tensor([2.0**-120]) * 2.0**-20) == 0)

    fill = (ops.normal_, (0.0, 1.0))
    for flush in (True, False):
        torch.set_flush_denormal(flush)
        try:
            make(fill, torch.float32, 10)
            found = is_flushing()
        finally:
            torch.set_flush_denormal(False)
        assert found == flush


def test_keys_split_into_halves():
    """A key's halves are the two words of the Philox key, low half first."""
    tensor = torch.empty(4, dtype=torch.int32)
    ops.random_words_(tensor, torch.tensor(0x299F31D0A4093822))
    expected = philox((0, 0, 0, 0), (0xA4093822, 0x299F31D0))
    assert [value & MASK for value in tensor.tolist()] == list(expected)


def test_public_functions_use_the_streams():
    torch.manual_seed(3)
    tensor = torchinit.normal_(torch.empty(10))
    torch.manual_seed(3)
    key = torch.empty((), dtype=torch.int64).random_(-(2**63), None)
    expected = torch.empty(10)
    ops.normal_(expected, key, 0.0, 1.0)
    assert_same_bits(tensor, expected)
