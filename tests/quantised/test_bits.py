"""Payload and scales are a reference's, for every law, shape, box and instruction set."""

from __future__ import annotations

import math
import random
from functools import partial

import pytest
import torch
from torch import nn

import torchinit
from block_reference import largest_of_blocks, quantise
from torchinit import MXFP8, NVFP4, FP8Blocks, Normal, init_shard_
from torchinit.native import load
from torchinit.quantised import fill
from torchinit.quantised.formats import whole_factor

pytestmark = pytest.mark.skipif(load.module is None, reason="needs the native module")

FORMATS = {
    "mxfp8": (MXFP8(), ("rceil", 1, 32)),
    "mxfp8-floor": (MXFP8("floor"), ("floor", 1, 32)),
    "fp8": (FP8Blocks(), ("float32", 128, 128)),
    "fp8-ue8m0": (FP8Blocks(scale="ue8m0"), ("ue8m0", 128, 128)),
    "fp8-other": (FP8Blocks(3, 50), ("float32", 3, 50)),
    "nvfp4": (NVFP4(), ("nvfp4", 1, 16)),
    "nvfp4-square": (NVFP4(rows=16), ("nvfp4", 16, 16)),
}
SHAPES = [(256, 512), (300, 430), (129, 1000), (1, 16), (7, 2), (513, 96), (33, 31 * 2)]
STDS = [1e-38, 1e-30, 1e-6, 0.02, 1.0, 300.0]


@pytest.fixture(params=load.module.instruction_sets() if load.module else [])
def _each_set(request):
    before = load.module.instruction_set()
    load.module.choose_instruction_set(request.param)
    yield
    load.module.choose_instruction_set(before)


def empty(form, shape, size=None, offset=None):
    """Memory for a box of a format's payload, scales and factor; of the whole without a box."""
    size, offset = size or shape, offset or (0,) * len(shape)
    payload = torch.empty(form.payload_shape(size), dtype=form.payload_dtypes[0])
    count = form.blocks_of(offset, size)[1]
    dtype = next((one for one in form.scale_dtypes if one.itemsize == 1), torch.float32)
    blocks = torch.empty(count, dtype=dtype)
    return payload, (blocks, torch.empty(())) if form.has_whole else blocks


def filled(form, scheme, shape, *, size=None, offset=None, name="w", seed=3):
    payload, scales = empty(form, shape, size, offset)
    init_shard_(
        payload, scheme, global_shape=shape, offset=offset or (0,) * len(shape), seed=seed,
        name=name, format=form, scales=scales,
    )  # fmt: skip
    blocks = scales[0] if form.has_whole else scales
    raw = blocks.view(torch.uint8) if blocks.dtype.itemsize == 1 else blocks
    return payload.view(torch.uint8), raw, scales[1] if form.has_whole else None


def masters(scheme, shape, dtype=torch.float32, name="w", seed=3):
    made = torch.empty(shape, dtype=dtype)
    offset = (0,) * len(shape)
    return init_shard_(made, scheme, global_shape=shape, offset=offset, seed=seed, name=name)


def bound(scheme_std):
    return 6.5556 * scheme_std


@pytest.mark.usefixtures("_each_set")
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_normals(name, shape):
    form, reference = FORMATS[name]
    for std in STDS:
        scheme = Normal(std)
        payload, scales, _ = filled(form, scheme, shape)
        expected = quantise(masters(scheme, shape), reference, bound(std))
        assert torch.equal(payload, expected[0]), std
        assert torch.equal(scales, expected[1]), std


SCHEMES = {
    "uniform": torchinit.Uniform(-0.3, 0.7),
    "truncated": torchinit.TruncNormal(0.02, cut=2.0),
    "constant": torchinit.Constant(-1.7),
    "zeros": "zeros",
    "xavier": "xavier_uniform",
    "orthogonal": "orthogonal",
    "callable": lambda tensor: tensor.copy_(torch.linspace(-3, 5, tensor.numel()).view_as(tensor)),
    "eye": "dirac",
}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_schemes(form, scheme):
    form, reference = FORMATS[form]
    scheme, shape = SCHEMES[scheme], (120, 96)
    if scheme == "dirac":
        scheme = lambda tensor: torch.nn.init.eye_(tensor)  # noqa: E731
    payload, scales, whole = filled(form, scheme, shape)
    values = masters(scheme, shape)
    largest = 0.0 if whole is None else whole.item() * 2688
    if whole is not None and scheme not in ("zeros",):
        assert largest >= values.abs().max().item() * (1 - 1e-6)
    expected = quantise(values, reference, _largest(form, scheme, values))
    assert torch.equal(payload, expected[0])
    assert torch.equal(scales, expected[1])


def _largest(form, scheme, values):
    """The A of NVFP4 that the law of a scheme has."""
    if not form.has_whole:
        return 0.0
    if isinstance(scheme, torchinit.Uniform):
        return math.nextafter(0.7, 0)
    if isinstance(scheme, torchinit.TruncNormal):
        return 0.04
    if scheme == "xavier_uniform":
        return math.sqrt(6 / sum(values.shape))
    return 1.0 if scheme == "orthogonal" else values.abs().max().item()


@pytest.mark.parametrize("name", FORMATS)
def test_special_values(name):
    """Zeros of both signs, subnormals, ties, the largest numbers, and blocks of one kind each."""
    form, reference = FORMATS[name]
    generator = torch.Generator().manual_seed(5)
    rows = []
    for scale in (0.0, -0.0, 1e-45, 3e-39, 1.2e-38, 1e-20, 1.0, 448.0, 464.0, 2.0**120, 3.3e38):
        row = torch.randint(-8, 9, (128,), generator=generator) / 8 * scale
        rows += [row, torch.full((128,), scale), -row.abs()]
    rows.append(torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0] * 16))
    rows.append(torch.arange(128) / 16 - 4)
    values = torch.stack(rows)
    form = NVFP4(form.rows, amax="measured") if form.has_whole else form
    payload, scales, _ = filled(form, lambda tensor: tensor.copy_(values), tuple(values.shape))
    expected = quantise(values, reference, values.abs().max().item())
    assert torch.equal(payload, expected[0])
    assert torch.equal(scales, expected[1])


@pytest.mark.usefixtures("_each_set")
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("scheme", [Normal(0.02), "orthogonal"], ids=["normal", "matrix"])
def test_boxes(name, scheme):
    """Any box has the payload of the whole, and the scales of the blocks that it touches."""
    form, _ = FORMATS[name]
    rng = random.Random(1)
    for shape in ((300, 430), (129, 200)) if scheme == "orthogonal" else ((300, 430), (3, 65, 98)):
        whole = filled(form, scheme, shape)
        for _ in range(12):
            offset, size = [], []
            for dim, length in enumerate(shape):
                step = 2 if form.packed and dim == len(shape) - 1 else 1
                first, end = sorted(rng.sample(range(length // step + 1), 2))
                offset.append(first * step)
                size.append((end - first) * step)
            payload, scales, _ = filled(form, scheme, shape, size=tuple(size), offset=tuple(offset))
            first, count = form.blocks_of(offset, size)
            assert torch.equal(payload, _slice(whole[0], form.payload_shape(offset), payload.shape))
            assert torch.equal(scales, _slice(whole[1], first, count))


def _slice(tensor, offset, size):
    return tensor[tuple(slice(a, a + n) for a, n in zip(offset, size, strict=True))]


def test_leading_dimensions():
    """Matrices of a stack are quantised apart; a box may cut any dimension."""
    form, shape = FP8Blocks(), (2, 3, 150, 140)
    payload, scales, _ = filled(form, Normal(0.02), shape)
    values = masters(Normal(0.02), shape)
    for i in range(2):
        for j in range(3):
            expected = quantise(values[i, j], ("float32", 128, 128))
            assert torch.equal(payload[i, j], expected[0])
            assert torch.equal(scales[i, j], expected[1])
    part, of_part, _ = filled(
        form, Normal(0.02), shape, size=(2, 2, 20, 140), offset=(0, 1, 120, 0)
    )
    assert torch.equal(part, payload[:, 1:, 120:140])
    assert torch.equal(of_part, scales[:, 1:])


def test_vectors_and_single_rows():
    form = MXFP8()
    payload, scales, _ = filled(form, Normal(1.0), (100,))
    expected = quantise(masters(Normal(1.0), (100,))[None], ("rceil", 1, 32))
    assert torch.equal(payload, expected[0][0])
    assert torch.equal(scales, expected[1][0])


@pytest.mark.parametrize("name", FORMATS)
def test_bfloat16_sources(name):
    """What quantising a bfloat16 weight gives."""
    form, reference = FORMATS[name]
    form = type(form)(**{**vars(form), "source": torch.bfloat16})
    scheme, shape = Normal(0.02), (200, 224)
    payload, scales, _ = filled(form, scheme, shape)
    expected = quantise(masters(scheme, shape, torch.bfloat16).float(), reference, bound(0.02))
    assert torch.equal(payload, expected[0])
    assert torch.equal(scales, expected[1])


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("name", FORMATS)
def test_threads(name, threads):
    form, _ = FORMATS[name]
    one = filled(form, Normal(0.02), (1000, 600))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        other = filled(form, Normal(0.02), (1000, 600))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(one[0], other[0])
    assert torch.equal(one[1], other[1])


def test_the_largest_magnitude():
    """Measured, it is that of the values; by law, it is a bound; given, it is that."""
    shape, scheme = (64, 96), Normal(0.02)
    values = masters(scheme, shape)
    for amax, expected in (("measured", values.abs().max().item()), ("law", 0.02 * 6.5556), (3, 3)):
        form = NVFP4(amax=amax)
        payload, scales, whole = filled(form, scheme, shape)
        assert whole == torch.tensor(expected) / 2688
        reference = quantise(values, ("nvfp4", 1, 16), expected)
        assert torch.equal(payload, reference[0])
        assert torch.equal(scales, reference[1])
    parts = torchinit.Blocks({"a": 32, "b": 32}, {"a": Normal(0.02), "b": "zeros"})
    assert filled(NVFP4(), parts, shape)[2] == torch.tensor(0.02 * 6.5556) / 2688


def test_parts_of_fused_weights():
    """Blocks of a format may have rows of two parts."""
    parts = torchinit.Blocks({"q": 50, "k": 46}, {"q": Normal(0.02), "k": "orthogonal"})
    for form, reference in FORMATS.values():
        payload, scales, whole = filled(form, parts, (96, 64), name="qk.weight")
        values = masters(parts, (96, 64), name="qk.weight")
        expected = quantise(values, reference, 0.0 if whole is None else 1.0)
        assert torch.equal(payload, expected[0])
        assert torch.equal(scales, expected[1])


def test_the_factor_of_the_whole():
    def factor(largest, *, inverse):
        bits = whole_factor(largest, inverse=inverse)
        return torch.tensor(bits, dtype=torch.int32).view(torch.float32)

    assert factor(0.0, inverse=True) == factor(0.0, inverse=False) == 1
    generator = torch.Generator().manual_seed(0)
    exponents = torch.randint(-140, 128, (500,), generator=generator)
    magnitudes = torch.ldexp(torch.rand(500, generator=generator) + 0.5, exponents)
    whole = torch.tensor(2688.0)
    for magnitude in magnitudes[magnitudes.isfinite() & (magnitudes > 0)]:
        assert factor(magnitude.item(), inverse=False) == torch.div(magnitude, whole)
        wanted = torch.div(whole, magnitude).clamp(max=torch.finfo(torch.float32).max)
        assert factor(magnitude.item(), inverse=True) == wanted
    assert largest_of_blocks(torch.tensor([[1.0, -3.0]]), 1, 16).item() == 3


@pytest.mark.parametrize("form", [MXFP8(), FP8Blocks(16, 24), NVFP4(16)], ids=str)
def test_stripes(form, monkeypatch):
    """Values that kernels do not draw are made some rows at a time, of one matrix after another."""
    parts = torchinit.Blocks({"a": 30, "b": 40}, {"a": Normal(0.5), "b": "zeros"}, dim=1)
    given = torch.randn(3, 70, 96, generator=torch.Generator().manual_seed(0))
    for scheme in (torchinit.Blocks({"a": 30, "b": 40}, Normal(0.5), dim=1), parts, given):
        expected = filled(form, scheme, (3, 70, 96))
        part = filled(form, scheme, (3, 70, 96), size=(2, 41, 50), offset=(1, 20, 10))
        with monkeypatch.context() as patch:
            patch.setattr(fill, "_STRIPE", 3000)
            found = filled(form, scheme, (3, 70, 96))
            same = filled(form, scheme, (3, 70, 96), size=(2, 41, 50), offset=(1, 20, 10))
        for one, other in ((expected, found), (part, same)):
            assert torch.equal(one[0], other[0])
            assert torch.equal(one[1], other[1])


@pytest.mark.parametrize(
    ("scheme", "largest"),
    [
        (Normal(0.02), 0.02 * 6.5556),
        (Normal(0.02, mean=-1.0), 1 + 0.02 * 6.5556),
        (torchinit.TruncNormal(0.02, cut=2.0), 0.04),
        (partial(nn.init.trunc_normal_, std=0.02), 0.02 * 6.5556),  # within [-2, 2]
        (partial(nn.init.trunc_normal_, std=0.02, a=0.5, b=0.6), 0.6),
        (partial(nn.init.trunc_normal_, std=1.0, a=0.0, b=math.inf), 6.5556),
        (torchinit.Constant(-3.0), 3.0),
        (torchinit.Orthogonal(gain=0.5), 0.5),
    ],
)
def test_bounds_of_laws(scheme, largest):
    """No value is beyond A, which costs no second pass."""
    whole = filled(NVFP4(), scheme, (64, 64))[2]
    assert whole == torch.div(torch.tensor(largest), torch.tensor(2688.0))
    assert masters(scheme, (64, 64)).abs().max() <= largest


def test_a_tail_without_a_bound_is_measured():
    scheme = partial(nn.init.trunc_normal_, std=1.0, a=9.0, b=math.inf)
    values = masters(scheme, (64, 64))
    whole = filled(NVFP4(), scheme, (64, 64))[2]
    assert whole == torch.div(values.max(), torch.tensor(2688.0))


@pytest.mark.parametrize("name", FORMATS)
def test_subnormals_are_no_zeros(name):
    """Whatever a program has told the processor."""
    form, scheme = FORMATS[name][0], Normal(1e-38)
    expected = filled(form, scheme, (64, 96))
    try:
        torch.set_flush_denormal(True)
        found = filled(form, scheme, (64, 96))
    finally:
        torch.set_flush_denormal(False)
    for one, other in zip(expected, found, strict=True):
        if one is not None:
            bits = torch.uint8 if one.dtype.itemsize == 1 else torch.int32
            assert torch.equal(one.view(bits), other.view(bits))
