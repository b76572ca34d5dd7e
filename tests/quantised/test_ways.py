"""Quantised fills under the ways torch is used, and what is refused before anything is written."""

from __future__ import annotations

import pytest
import torch
from test_bits import empty, filled
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import torchinit
from conftest import native_only
from forked import in_child
from torchinit import MXFP8, NVFP4, ArgumentError, FP8Blocks, Normal, init_shard_
from torchinit.quantised.formats import whole_factor

pytestmark = native_only

SHAPE = (64, 96)
PLACE = {"global_shape": SHAPE, "offset": (0, 0), "seed": 3, "name": "w"}


class Watching(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


WAYS = {
    "mode": Watching,
    "batch": torchinit.batch,
    "inference": torch.inference_mode,
    "marked memory": torchinit.marked_memory,
    "patch": torchinit.patch_nn_init,
}


@pytest.mark.parametrize("way", WAYS)
def test_values_are_the_same(way):
    expected = filled(MXFP8(), "orthogonal", SHAPE)
    with WAYS[way]():
        found = filled(MXFP8(), "orthogonal", SHAPE)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


def test_under_another_default_device():
    expected = filled(MXFP8(), "orthogonal", SHAPE)
    payload, scales = empty(MXFP8(), SHAPE)
    with torch.device("meta"):
        init_shard_(payload, "orthogonal", format=MXFP8(), scales=scales, **PLACE)
    assert torch.equal(payload.view(torch.uint8), expected[0])
    assert torch.equal(scales.view(torch.uint8), expected[1])


def test_in_a_forked_child():
    expected = filled(NVFP4(), "orthogonal", (300, 320))

    def body():
        found = filled(NVFP4(), "orthogonal", (300, 320))
        assert all(map(torch.equal, found, expected))

    in_child(body)


def test_inside_build_model():
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(
                torch.empty(SHAPE, dtype=torch.float8_e4m3fn), requires_grad=False
            )
            self.register_buffer("weight_scale", torch.empty(64, 3, dtype=torch.uint8))
            init_shard_(
                self.weight, Normal(0.02), format=MXFP8(), scales=self.weight_scale, **PLACE
            )

    expected = filled(MXFP8(), Normal(0.02), SHAPE)
    model = torchinit.build_model(Layer, seed=0)
    assert torch.equal(model.weight.view(torch.uint8), expected[0])
    assert torch.equal(model.weight_scale, expected[1])


def test_check_init_sees_the_fill():
    model = nn.Module()
    model.weight = nn.Parameter(torch.empty(SHAPE, dtype=torch.float8_e4m3fn), requires_grad=False)
    model.weight_scale = nn.Parameter(
        torch.empty(64, 3, dtype=torch.float8_e8m0fnu), requires_grad=False
    )
    rules, formats = {"**": Normal(0.02)}, {"weight": MXFP8()}
    torchinit.check_init(
        model, lambda model: torchinit.init_model_(model, rules, seed=0, formats=formats)
    )
    with pytest.raises(torchinit.UninitializedError, match="weight_scale"):
        torchinit.check_init(
            model, lambda model: init_shard_(model.weight, Normal(0.02), format=MXFP8(), **PLACE)
        )


def test_memory_of_any_layout():
    expected = filled(MXFP8(), Normal(0.02), SHAPE)
    payload = torch.empty(96, 128, dtype=torch.float8_e4m3fn).t()[::2]
    scales = torch.empty(3, 64, dtype=torch.uint8).t()
    before = payload._version
    init_shard_(payload, Normal(0.02), format=MXFP8(), scales=scales, **PLACE)
    assert torch.equal(payload.contiguous().view(torch.uint8), expected[0])
    assert torch.equal(scales, expected[1])
    assert payload._version > before
    form = FP8Blocks(16, 16)
    expected = filled(form, Normal(0.02), SHAPE)
    scales = torch.empty(6, 4).t()
    init_shard_(payload, Normal(0.02), format=form, scales=scales, **PLACE)
    assert torch.equal(payload.contiguous().view(torch.uint8), expected[0])
    assert torch.equal(scales, expected[1])


def test_payload_alone_and_empty_shards():
    expected = filled(FP8Blocks(), Normal(0.02), SHAPE)
    payload = torch.empty(SHAPE, dtype=torch.float8_e4m3fn)
    init_shard_(payload, Normal(0.02), format=FP8Blocks(), **PLACE)
    assert torch.equal(payload.view(torch.uint8), expected[0])
    nothing = torch.empty(0, 96, dtype=torch.float8_e4m3fn)
    init_shard_(nothing, Normal(0.02), format=FP8Blocks(), scales=torch.empty(0, 1), **PLACE)
    assert torch.empty(SHAPE, dtype=torch.uint8, device="meta").is_meta


@pytest.mark.parametrize("shape", [(0,), (4, 0), (0, 4), (2, 3, 0)])
def test_weights_without_values(shape):
    for scheme in (Normal(1.0), lambda tensor: tensor.fill_(1), *["orthogonal"][: len(shape) - 1]):
        for form in (MXFP8(), NVFP4(), NVFP4(amax="measured")):
            _, scales = filled(form, scheme, shape)[:2]
            assert not scales.numel()


def test_powers_of_two_as_float32():
    form, payload = FP8Blocks(16, 16, scale="ue8m0"), torch.empty(SHAPE, dtype=torch.uint8)
    scales = torch.empty(4, 6)
    init_shard_(payload, Normal(0.02), format=form, scales=scales, **PLACE)
    codes = filled(form, Normal(0.02), SHAPE)[1]
    assert torch.equal(scales, torch.exp2(codes.double() - 127).float())
    init_shard_(payload, "zeros", format=form, scales=scales, **PLACE)
    assert (scales == 1).all()


def test_generators():
    """Without seed and name, the key is drawn as for the masters."""
    place = {"global_shape": SHAPE, "offset": (0, 0)}
    generator = torch.Generator().manual_seed(4)
    master = init_shard_(torch.empty(SHAPE), Normal(1.0), generator=generator, **place)
    payload, scales = empty(MXFP8(), SHAPE)
    generator.manual_seed(4)
    init_shard_(payload, Normal(1.0), generator=generator, format=MXFP8(), scales=scales, **place)
    values = payload.float() * scales.float().repeat_interleave(32, 1)
    assert (values - master).abs().max() < 0.3


def good():
    return torch.zeros(SHAPE, dtype=torch.float8_e4m3fn), torch.zeros(64, 3, dtype=torch.uint8)


REFUSED = {
    "no format": ({"format": None}, ArgumentError, "scales are given without a format"),
    "another format": ({"format": "mxfp8"}, TypeError, "must be MXFP8"),
    "scales of another shape": ({"scales": torch.zeros(64, 4)}, ArgumentError, "have shape"),
    "scales of another dtype": ({"scales": torch.zeros(64, 3)}, TypeError, "not torch.float32"),
    "a pair": ({"scales": (torch.zeros(1), torch.zeros(1))}, ArgumentError, "must be one tensor"),
    "no tensors": ({"scales": 3}, TypeError, "must be tensors"),
    "scales on meta": (
        {"scales": torch.zeros(64, 3, dtype=torch.uint8, device="meta")}, ArgumentError, "meta"
    ),
    "flat": ({"offset": 0}, ArgumentError, "one index of the flattened"),
    "outside": ({"offset": (1, 0)}, ArgumentError, "does not lie within"),
    "infinite": ({"scheme": Normal(1e38)}, ArgumentError, "in float32, infinite"),
    "infinite constant": ({"scheme": torchinit.Constant(float("inf"))}, ArgumentError, "infinite"),
    "a callable's": ({"scheme": lambda one: one.fill_(float("inf"))}, ArgumentError, "are NaN"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    changed, error, said = REFUSED[case]
    payload, scales = good()
    arguments = PLACE | {"format": MXFP8(), "scales": scales, "scheme": Normal(1.0)} | changed
    with pytest.raises(error, match=said):
        init_shard_(payload, arguments.pop("scheme"), **arguments)
    assert not payload.view(torch.uint8).any()
    assert not scales.any()


def test_shapes_that_a_format_cannot_hold():
    for form, shape, said in (
        (NVFP4(), (4, 7), "odd number of columns"),
        (FP8Blocks(), (7,), "needs a matrix"),
        (MXFP8(), (), "at least one dimension"),
    ):
        with pytest.raises(ArgumentError, match=said):
            form.payload_shape(shape)
    payload = torch.empty(4, 2, dtype=torch.uint8)
    with pytest.raises(ArgumentError, match="odd column"):
        init_shard_(
            payload, Normal(1.0), global_shape=(4, 8), offset=(0, 3), seed=0, name="w",
            format=NVFP4(),
        )  # fmt: skip


def test_overlaps():
    memory = torch.zeros(64 * 96 + 64 * 3, dtype=torch.uint8)
    payload, scales = memory[: 64 * 96].view(SHAPE), memory[100 : 100 + 64 * 3].view(64, 3)
    with pytest.raises(ArgumentError, match="share memory"):
        init_shard_(payload, Normal(1.0), format=MXFP8(), scales=scales, **PLACE)
    beside = memory[64 * 96 :].view(64, 3)
    init_shard_(payload, Normal(1.0), format=MXFP8(), scales=beside, **PLACE)


def test_compiled_code():
    """It is left out of the graph, as printing is, or refused if that must not be."""
    payload, scales = good()

    def fill():
        init_shard_(payload, Normal(1.0), format=MXFP8(), scales=scales, **PLACE)

    with pytest.raises(Exception):  # noqa: B017, PT011
        torch.compile(fill, backend="eager", fullgraph=True)()
    assert not payload.view(torch.uint8).any()
    torch.compile(fill, backend="eager")()
    assert torch.equal(payload.view(torch.uint8), filled(MXFP8(), Normal(1.0), SHAPE)[0])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: MXFP8("ceil"), "scale='ceil' must be 'rceil' or 'floor'"),
        (lambda: MXFP8(source=torch.float16), "source=torch.float16 must be"),
        (lambda: FP8Blocks(0, 128), "rows=0 must be a positive integer"),
        (
            lambda: FP8Blocks(1, 2**62),
            "columns=4611686018427387904 must be a positive integer below",
        ),
        (lambda: FP8Blocks(scale="e8m0"), "scale='e8m0' must be"),
        (lambda: NVFP4(rows=2), "rows=2 must be 1 or 16"),
        (lambda: NVFP4(rows=1.0), "rows=1.0 must be 1 or 16"),
        (lambda: NVFP4(amax="mean"), "amax='mean' must be"),
        (lambda: NVFP4(amax=-1.0), "amax=-1.0 must be"),
        (lambda: NVFP4(amax=float("nan")), "amax=nan must be"),
    ],
)
def test_bad_formats(make, said):
    with pytest.raises(ArgumentError, match=said.replace("(", r"\(")):
        make()


def test_blocks_much_larger_than_the_matrix():
    side = 2**31 - 1
    found, wanted = (
        filled(form, "orthogonal", SHAPE) for form in (FP8Blocks(side, side), FP8Blocks())
    )
    assert all(map(torch.equal, found[:2], wanted[:2]))


def test_the_factor_of_tiny_values_is_finite():
    assert whole_factor(1e-40, inverse=True) == 0x7F7FFFFF  # the largest float32
    assert whole_factor(1e-40, inverse=False) > 0
