"""init_shard_: a part filled alone holds what the whole has there."""

from __future__ import annotations

import functools
import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import torchinit
from conftest import native_only
from torchinit import (
    ArgumentError,
    Blocks,
    Constant,
    Normal,
    Orthogonal,
    Stack,
    TruncNormal,
    Uniform,
    VarianceScaling,
    by,
    init_shard_,
)
from torchinit.dtypes import ALL_DTYPES
from torchinit.placement.box import boxes_of_range, cut_out
from torchinit.rules.rules import as_scheme

ELEMENTWISE = {
    "normal": Normal(0.02),
    "trunc_normal": TruncNormal(0.02),
    "uniform": Uniform(-1.0, 2.0),
    "constant": Constant(0.7),
    "ones": "ones",
    "xavier": "xavier_uniform",
    "kaiming": functools.partial(nn.init.kaiming_normal_, nonlinearity="relu"),
    "scaling": VarianceScaling(2.0, "fan_avg", "truncated_normal"),
    "by": by(lambda target: Normal(1 / target.shape[0])),
}
SHAPE = (12, 10)
OTHERS = {
    "blocks": Blocks({"q": 6, "k": 4, "v": 2}, Normal(0.02)),
    "blocks by schemes": Blocks(
        {"q": 6, "k": 4, "v": 2}, {"q": "xavier_normal", "k": "ones", "v": "kaiming_uniform"}
    ),
    "groups": Blocks({"q": 6, "k": 4, "v": 2}, "xavier_uniform", groups=2),
    "columns": Blocks({"a": 3, "b": 7}, Normal(0.1), dim=1),
    "eye": "eye",
    "custom": lambda tensor: tensor.copy_(torch.arange(120.0).view(12, 10)),
}
STACKED = {
    "stack": Stack("xavier_normal"),
    "stack of dirac": Stack("dirac"),
    "stack of blocks": Stack(Blocks({"a": 1, "b": 3}, "kaiming_normal")),
    "dirac": "dirac",
}
MATRICES = {"orthogonal": Orthogonal(0.5), "fused": Blocks({"q": 6, "k": 6}, "orthogonal")}


def scheme_of(name):
    if name == "eye":
        return nn.init.eye_
    return {**ELEMENTWISE, **OTHERS, **STACKED, **MATRICES}[name]


def whole_of(name, shape, dtype=torch.float32):
    whole = torch.full(shape, 9.0).to(dtype)
    return init_shard_(
        whole,
        scheme_of(name),
        global_shape=shape,
        offset=(0,) * len(shape),
        seed=3,
        name="a.w.weight",
    )


def assert_parts(name, shape, parts, dtype=torch.float32):
    whole = whole_of(name, shape, dtype)
    for offset, size in parts:
        part = torch.full(size, 9.0).to(dtype)
        filled = init_shard_(
            part, scheme_of(name), global_shape=shape, offset=offset, seed=3, name="a.w.weight"
        )
        assert filled is part
        expected = cut_out(whole, offset, size)
        assert torch.equal(part.float(), expected.float()), (name, offset, size)


CUTS = [
    ((0, 0), (5, 10)),
    ((5, 0), (7, 10)),
    ((0, 3), (12, 4)),
    ((3, 2), (6, 5)),
    ((11, 9), (1, 1)),
]


@pytest.mark.parametrize("name", [*ELEMENTWISE, *OTHERS, *MATRICES])
def test_boxes_of_a_matrix(name):
    assert_parts(name, SHAPE, CUTS)


@native_only
@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_every_dtype(name, dtype):
    assert_parts(name, SHAPE, CUTS, dtype)


@pytest.mark.parametrize("name", STACKED)
def test_boxes_of_stacks(name):
    shape = (6, 4, 5, 3)
    sizes = [(2, 4, 5, 3), (6, 2, 5, 3), (6, 4, 2, 3), (6, 4, 5, 1), (3, 1, 2, 2)]
    parts = [
        (tuple(o for o in offset), size)
        for size in sizes
        for offset in ((0, 0, 0, 0), tuple(s - n for s, n in zip(shape, size, strict=True)))
    ]
    assert_parts(name, shape, parts)


@pytest.mark.parametrize(
    "name", ["normal", "kaiming", "blocks", "groups", "columns", "eye", "custom"]
)
def test_flat_ranges(name):
    """As ZeRO and FSDP1 cut: ranges of the flattened whole, that begin and end within rows."""
    whole = whole_of(name, SHAPE).reshape(-1)
    for begin, end in itertools.pairwise((0, 1, 9, 10, 37, 37, 80, 81, 119, 120)):
        part = torch.full((end - begin,), 9.0)
        init_shard_(
            part, scheme_of(name), global_shape=SHAPE, offset=begin, seed=3, name="a.w.weight"
        )
        assert torch.equal(part, whole[begin:end]), (name, begin, end)


@native_only
def test_flat_ranges_of_orthogonal_matrices_and_stacks():
    for name, shape in (("orthogonal", SHAPE), ("stack of dirac", (6, 4, 5, 3))):
        whole = whole_of(name, shape).reshape(-1)
        for begin, end in itertools.pairwise((0, 13, 40, 99, whole.numel())):
            part = torch.empty(end - begin)
            init_shard_(
                part, scheme_of(name), global_shape=shape, offset=begin, seed=3, name="a.w.weight"
            )
            assert torch.equal(part, whole[begin:end])


@given(st.lists(st.integers(0, 4), max_size=4), st.data())
def test_boxes_of_ranges_are_the_range(shape, data):
    total = math.prod(shape)
    first = data.draw(st.integers(0, total))
    count = data.draw(st.integers(0, total - first))
    whole = torch.arange(total).reshape(shape)
    pieces = [
        cut_out(whole, offset, size).reshape(-1)
        for offset, size in boxes_of_range(shape, first, count)
    ]
    found = torch.cat(pieces) if pieces else torch.empty(0, dtype=torch.int64)
    assert torch.equal(found, torch.arange(first, first + count))
    assert len(pieces) <= max(1, 2 * len(shape) - 1)


def test_equals_init_model_of_the_name():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(10, 12))
    torchinit.init_model_(model, {"**": TruncNormal(0.02)}, seed=3, device="cpu")
    part = init_shard_(
        torch.empty(4, 10), TruncNormal(0.02), global_shape=(12, 10), offset=(8, 0), seed=3,
        name="0.weight",
    )  # fmt: skip
    assert torch.equal(part, model[0].weight[8:])


def test_generators_draw_one_key_a_call_wherever_the_part_lies():
    whole = torch.empty(SHAPE)
    torch.manual_seed(8)
    torchinit.xavier_normal_(whole)
    state = torch.get_rng_state()
    for rows in (slice(0, 5), slice(5, 12), slice(12, 12)):
        part = torch.empty(SHAPE)[rows].clone()
        torch.manual_seed(8)
        offset = (rows.start if part.numel() else 0, 0)
        init_shard_(part, "xavier_normal", global_shape=SHAPE, offset=offset)
        assert torch.equal(part, whole[rows])
        assert torch.equal(torch.get_rng_state(), state)
    generator = torch.Generator().manual_seed(8)
    part = init_shard_(
        torch.empty(2, 10), "xavier_normal", global_shape=SHAPE, offset=(10, 0), generator=generator
    )
    assert torch.equal(part, whole[10:])


def fill_normal(tensor):
    nn.init.normal_(tensor)


DRAWING = {
    "callable": fill_normal,
    "callable of torchinit": lambda tensor: (torchinit.normal_(tensor), None)[1],
    "callable past the patch": lambda tensor: tensor.copy_(torch.randperm(120).view(12, 10)),
    "part by a callable": Blocks({"q": 6, "k": 6}, {"q": fill_normal, "k": "xavier_normal"}),
    "shares by a callable": Blocks({"q": 6, "k": 6}, fill_normal, groups=3),
    "matrix before draws": Blocks({"q": 6, "k": 6}, {"q": "orthogonal", "k": "xavier_normal"}),
    "matrix before a callable": Blocks({"q": 6, "k": 6}, {"q": "orthogonal", "k": fill_normal}),
    "constant before a matrix": Blocks({"q": 6, "k": 6}, {"q": "ones", "k": "orthogonal"}),
}


@pytest.mark.parametrize("name", DRAWING)
def test_callables_and_mixed_parts_equal_init_model_of_the_name(name):
    model = nn.Module()
    model.weight = nn.Parameter(torch.empty(SHAPE))
    torchinit.init_model_(model, {"**": DRAWING[name]}, seed=3)
    whole = model.weight.detach()
    state = torch.get_rng_state()
    call = {"global_shape": SHAPE, "seed": 3, "name": "weight"}
    part = init_shard_(torch.empty(7, 10), DRAWING[name], offset=(4, 0), **call)
    assert torch.allclose(part, whole[4:11], atol=1e-6)
    part = init_shard_(torch.empty(44), DRAWING[name], offset=33, **call)
    assert torch.allclose(part, whole.view(-1)[33:77], atol=1e-6)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", DRAWING)
def test_callables_and_mixed_parts_draw_as_the_scheme_on_the_whole(name):
    scheme = as_scheme(DRAWING[name])
    torch.manual_seed(4)
    whole = scheme(torch.empty(SHAPE))
    state = torch.get_rng_state()
    torch.manual_seed(4)
    part = init_shard_(torch.empty(7, 10), scheme, global_shape=SHAPE, offset=(4, 0))
    assert torch.allclose(part, whole[4:11], atol=1e-6)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("named", [{}, {"seed": 0, "name": "w"}], ids=["drawn", "named"])
def test_callables_that_write_nothing(named):
    tensor = torch.full((5, 10), 9.0)
    with pytest.raises(ArgumentError, match="wrote nothing"):
        init_shard_(tensor, lambda whole: None, global_shape=SHAPE, offset=(0, 0), **named)  # noqa: ARG005
    assert (tensor == 9).all()


@pytest.mark.parametrize("named", [{}, {"seed": 0, "name": "w"}], ids=["drawn", "named"])
def test_what_a_scheme_keeps_stays(named):
    scheme = Blocks({"a": 4, "b": 8}, {"a": Normal(1.0), "b": "keep"})
    part = torch.full((5, 10), 9.0)
    init_shard_(part, scheme, global_shape=SHAPE, offset=(2, 0), **named)
    assert (part[2:] == 9).all()
    assert (part[:2] != 9).all()


def test_shares_of_one_logical_tensor_have_one_key_of_a_generator():
    """Blocks in groups: each name draws once, as calling the scheme on the whole does."""
    torch.manual_seed(4)
    whole = scheme_of("groups")(torch.empty(SHAPE))
    state = torch.get_rng_state()
    torch.manual_seed(4)
    part = init_shard_(torch.empty(5, 10), scheme_of("groups"), global_shape=SHAPE, offset=(4, 0))
    assert torch.equal(part, whole[4:9])
    assert torch.equal(torch.get_rng_state(), state)


def test_strided_parts_and_parameters():
    whole = whole_of("normal", SHAPE)
    part = nn.Parameter(torch.empty(5, 12).t())
    version = part._version
    init_shard_(part, Normal(0.02), global_shape=SHAPE, offset=(0, 5), seed=3, name="a.w.weight")
    assert torch.equal(part, whole[:, 5:])
    assert part._version > version
    assert part.requires_grad


def test_meta_parts_stay_and_draw_nothing():
    state = torch.get_rng_state()
    part = torch.empty(5, 10, device="meta")
    assert init_shard_(part, "xavier_normal", global_shape=SHAPE, offset=(0, 0)) is part
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"offset": (8, 0)}, ArgumentError, "does not lie within"),
        ({"offset": (-1, 0)}, ArgumentError, "must not be negative"),
        (
            {"offset": (0,)},
            ArgumentError,
            r"offset=\[0\] must have one number for each of the 2 dim",
        ),
        ({"offset": 3}, ArgumentError, "is not one-dimensional and contiguous"),
        ({"offset": "ab"}, TypeError, "offset="),
        ({"offset": 1.5}, TypeError, "offset="),
        ({"global_shape": (12, 4)}, ArgumentError, "does not lie within"),
        ({"global_shape": (12, -10)}, ArgumentError, "negative"),
        ({"global_shape": 12}, TypeError, "global_shape"),
        ({"seed": 1}, ArgumentError, "name=None must be given together"),
        ({"name": "a"}, ArgumentError, "seed=None"),
        ({"seed": 1, "name": "a", "generator": torch.Generator()}, ArgumentError, "leave one out"),
        ({"seed": "x", "name": "a"}, TypeError, "seed"),
        ({"scheme": "normal"}, NotImplementedError, "needs numbers"),
        ({"scheme": 3}, TypeError, "not a scheme"),
        ({"scheme": Blocks({"a": 5}, "ones")}, ArgumentError, "total size 5"),
        ({"scheme": Stack("xavier_normal")}, ValueError, "2 dimensions"),
        ({"scheme": Normal(1e39)}, ArgumentError, "std"),
        ({"tensor": torch.empty(1, 10).expand(5, 10)}, ArgumentError, "share memory"),
        ({"tensor": 3}, TypeError, "torch.Tensor"),
        ({"tensor": torch.zeros(5, 10, dtype=torch.complex64)}, TypeError, "complex64"),
        ({"tensor": torch.zeros(5, 10, dtype=torch.int32), "scheme": "ones"}, TypeError, "int32"),
        ({"seed": 0, "name": 3}, TypeError, "name=3"),
        ({"global_shape": (2**40, 2**30)}, ArgumentError, "2\\^63"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_calls_write_and_draw_nothing(arguments, error, said):
    tensor = torch.full((5, 10), 9.0)
    call = {"tensor": tensor, "scheme": Normal(0.02), "global_shape": SHAPE, "offset": (0, 0)}
    call.update(arguments)
    state = torch.get_rng_state()
    with pytest.raises(error, match=said):
        init_shard_(call.pop("tensor"), call.pop("scheme"), **call)
    assert (tensor == 9).all()
    assert torch.equal(torch.get_rng_state(), state)


def test_a_range_beyond_the_end_is_padding():
    with pytest.raises(ArgumentError, match="leave out the padding"):
        init_shard_(torch.empty(30), Normal(1), global_shape=SHAPE, offset=100, seed=0, name="a")
