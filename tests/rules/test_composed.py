"""Schemes made of others: every matrix of a stack, fused parts, what a function says."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import torchinit
from conftest import native_only
from made import fill, law, model_of, rows_of
from torchinit import ArgumentError, Blocks, Normal, Orthogonal, Stack, VarianceScaling, by

HEADS, KV_HEADS, WIDTH, HEAD = 8, 4, 24, 6
QKV = {"wq": HEADS * HEAD, "wk": KV_HEADS * HEAD, "wv": KV_HEADS * HEAD}
SCHEMES = [Normal(0.02), VarianceScaling(2.0, "fan_avg", "uniform"), Orthogonal(), "xavier_normal"]
each_scheme = pytest.mark.parametrize("scheme", SCHEMES, ids=repr)


def fused_by_hand(parts, dim, groups):
    """Parts cut into shares, the first share of each, then the second, and so on."""
    shares = [part.chunk(groups, dim) for part in parts]
    return torch.cat([share[group] for group in range(groups) for share in shares], dim)


def custom(tensor):
    tensor.copy_(torch.arange(tensor.numel()).reshape(tensor.shape) + torch.rand(()))


@native_only
@pytest.mark.parametrize("groups", [1, KV_HEADS])
@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("scheme", [*SCHEMES, custom], ids=lambda x: getattr(x, "__name__", str(x)))
def test_fused_parts_have_the_bits_of_unfused_ones(scheme, dim, groups):
    def shape(size):
        return (size, WIDTH) if dim == 0 else (WIDTH, size)

    unfused = fill({f"layers.3.{name}.weight": shape(size) for name, size in QKV.items()}, scheme)
    fused = fill(
        {"layers.3.wqkv.weight": shape(sum(QKV.values()))},
        Blocks(QKV, scheme, dim=dim, groups=groups),
    )
    assert torch.equal(
        fused["layers.3.wqkv.weight"], fused_by_hand(list(unfused.values()), dim, groups)
    )


@native_only
@pytest.mark.parametrize("groups", [1, KV_HEADS])
def test_fused_biases_too(groups):
    unfused = fill({f"{name}.bias": (size,) for name, size in QKV.items()}, Normal(1.0))
    fused = fill({"wqkv.bias": (sum(QKV.values()),)}, Blocks(QKV, Normal(1.0), groups=groups))
    assert torch.equal(fused["wqkv.bias"], fused_by_hand(list(unfused.values()), 0, groups))


@native_only
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_fused_parts_in_low_precision_are_float32_rounded(dtype):
    scheme = Blocks(QKV, Normal(0.02), groups=KV_HEADS)
    shapes = {"wqkv.weight": (sum(QKV.values()), WIDTH)}
    low, full = fill(shapes, scheme, dtype=dtype), fill(shapes, scheme)
    assert torch.equal(low["wqkv.weight"], full["wqkv.weight"].to(dtype))


@native_only
def test_each_part_by_its_own_scheme():
    schemes = {"wq": Normal(0.02), "wk": "zeros", "wv": Orthogonal()}
    shapes = {f"{name}.weight": (size, WIDTH) for name, size in QKV.items()}
    unfused = fill(shapes, {f"{name}.weight": scheme for name, scheme in schemes.items()})
    fused = fill({"wqkv.weight": (sum(QKV.values()), WIDTH)}, Blocks(QKV, schemes, groups=2))
    assert torch.equal(fused["wqkv.weight"], fused_by_hand(list(unfused.values()), 0, 2))


@native_only
def test_multihead_attentions_packed_weight():
    """A parameter without ``weight`` at the end: the part's name is its last atom."""
    parts = {"q_proj_weight": 16, "k_proj_weight": 16, "v_proj_weight": 16}
    with torch.device("meta"):
        fused, bare = nn.MultiheadAttention(16, 4), nn.MultiheadAttention(16, 4, kdim=16, vdim=15)
    rest = {"**bias": "zeros", "**": VarianceScaling(1.0, "fan_avg", "uniform")}
    torchinit.init_model_(
        fused, {"in_proj_weight": Blocks(parts, rest["**"]), **rest}, seed=0, device="cpu"
    )
    torchinit.init_model_(bare, rest, seed=0, device="cpu")
    q, k, v = fused.in_proj_weight.chunk(3)
    assert torch.equal(q, bare.q_proj_weight)
    assert torch.equal(k, bare.k_proj_weight)
    # Packed Xavier has the fans of one projection: not half the variance (pytorch #171361).
    assert v.abs().max() <= math.sqrt(6 / 32)
    assert v.abs().max() > math.sqrt(6 / 64)


def test_the_plan_names_parts_and_their_fans():
    scheme = Blocks(QKV, VarianceScaling(), groups=KV_HEADS)
    rows = rows_of(scheme, (sum(QKV.values()), WIDTH), "layers.0.wqkv.weight")
    assert [(row.name, row.parameter, row.shape, row.fans, row.shares) for row in rows] == [
        (f"layers.0.{name}.weight", "layers.0.wqkv.weight", (size, WIDTH), (WIDTH, size), KV_HEADS)
        for name, size in QKV.items()
    ]


@pytest.mark.parametrize(
    "shapes",
    [
        {"a.wqkv_l0": (12, 4), "a.wqkv_l1": (12, 4)},
        {"a.wqkv_l0": (12, 4), "a.q": (4, 4)},
        {"a.q": (4, 4), "a.wqkv_l0": (12, 4)},
    ],
    ids=str,
)
def test_parts_of_one_name_are_an_error_as_their_values_would_be_equal(shapes):
    blocks = Blocks({"q": 4, "k": 4, "v": 4}, {"q": Normal(1), "k": "zeros", "v": "ones"})
    model = model_of(shapes)
    with pytest.raises(
        ArgumentError, match=r"'a\.q' names values of both parameter 'a\..*' and 'a\..*'"
    ):
        torchinit.plan_model(model, {"**.wqkv*": blocks, "**": Normal(1)}, strict=False)
    for ours, others in (("ones", Normal(1)), (Normal(1), "ones")):
        if ours == "ones" or "a.q" in shapes:  # constants may be equal
            rules = {"**.wqkv*": Blocks({"q": 4, "k": 8}, ours), "**": others}
            assert torchinit.plan_model(model, rules, strict=False)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Blocks({}, Normal(1)), "must map"),
        (lambda: Blocks([3, 4], Normal(1)), "must map"),
        (lambda: Blocks({"a": 0}, Normal(1)), "of part 'a' must be a positive integer"),
        (lambda: Blocks({"a": 2.0}, Normal(1)), "of part 'a' must be a positive integer"),
        (lambda: Blocks({"a": True}, Normal(1)), "of part 'a' must be a positive integer"),
        (lambda: Blocks({"a.b": 2}, Normal(1)), "must be one name component"),
        (lambda: Blocks({"": 2}, Normal(1)), "must be one name component"),
        (
            lambda: Blocks({"a": 4, "b": 3}, Normal(1), groups=2),
            "groups=2 must divide the size 3 of part 'b'",
        ),
        (lambda: Blocks({"a": 4}, Normal(1), groups=0), "groups=0 must be positive"),
        (lambda: Blocks({"a": 4}, Normal(1), dim=1.0), "dim=1.0 must be an integer"),
        (lambda: Blocks({"a": 4, "b": 4}, {"a": Normal(1)}), r"scheme has the parts \['a'\]"),
    ],
)
def test_blocks_that_cannot_be(make, said):
    with pytest.raises(ArgumentError, match=said):
        make()


@pytest.mark.parametrize(
    ("scheme", "shape", "said"),
    [
        (Blocks({"a": 4}, Normal(1)), (5, 2), "have total size 4, but dimension 0"),
        (Blocks({"a": 4}, Normal(1), dim=2), (4, 4), "dim=2 is out of range for shape"),
        (Blocks({"a": 4}, VarianceScaling()), (4,), "has no fans"),
        (Blocks({"a": 4}, Blocks({"b": 4}, Normal(1)), groups=2), (4, 4), "be used in Blocks with"),
        (Stack(Normal(1)), (4,), "is not a stack"),
        (Stack(VarianceScaling()), (4, 4), "has no fans"),
        (Stack(Stack(Orthogonal())), (2, 2, 4, 4), "Stack of a Stack"),
        (Stack(Orthogonal()), (4, 4), "is not a matrix"),
        (Orthogonal(), (4,), "is not a matrix"),
        ("dirac", (4, 4), "dirac_"),
    ],
    ids=str,
)
def test_shapes_that_a_scheme_cannot_fill_fail_in_the_plan(scheme, shape, said):
    with pytest.raises(ArgumentError, match=rf"parameter 'layers\.0\.w\.weight' .*{said}"):
        rows_of(scheme, shape)


# Stacks


EXPERTS = (5, 12, 8)


def test_fans_of_a_stack_are_of_one_matrix():
    assert law(Stack(VarianceScaling(2.0)), EXPERTS).std == pytest.approx(math.sqrt(2 / 8))
    assert law(VarianceScaling(2.0), EXPERTS).std == pytest.approx(math.sqrt(2 / (12 * 8)))
    assert law(Stack("xavier_uniform"), EXPERTS).std == pytest.approx(math.sqrt(2 / 20))
    axes = VarianceScaling(in_axes=0, out_axes=1)  # counted within one matrix
    assert law(Stack(axes), EXPERTS).std == pytest.approx(math.sqrt(1 / 12))


def test_a_stack_of_values_is_one_fill():
    shapes = {"experts.w": EXPERTS}
    assert torch.equal(
        fill(shapes, Stack(Normal(0.02)))["experts.w"], fill(shapes, Normal(0.02))["experts.w"]
    )


@native_only
def test_a_stack_of_orthogonal_matrices_is_one_by_one_by_number():
    stack = fill({"experts.w": EXPERTS}, Stack(Orthogonal(2.0)))["experts.w"]
    for number, matrix in enumerate(stack.double()):
        assert (matrix.T @ matrix - 4 * torch.eye(8)).abs().max() < 1e-5
        rest = fill({"experts.w": (7, *EXPERTS[1:])}, Stack(Orthogonal(2.0)))["experts.w"]
        assert torch.equal(stack[number], rest[number])  # more experts change none
    assert not torch.equal(stack[0], stack[1])


@native_only
def test_matrices_of_a_stack_by_a_callable():
    stack = fill({"experts.w": EXPERTS}, Stack(custom))["experts.w"]
    assert len({matrix[0, 0].item() for matrix in stack}) == EXPERTS[0]
    rest = fill({"experts.w": (2, *EXPERTS[1:])}, Stack(custom))["experts.w"]
    assert torch.equal(rest, stack[:2])


@native_only
@each_scheme
@pytest.mark.parametrize("dim", [0, 1])
def test_a_stack_of_fused_parts_has_the_bits_of_unfused_stacks(scheme, dim):
    sizes = {"gate": 12, "up": 12}
    shape = (5, 12, 8) if dim == 0 else (5, 8, 12)
    whole = (5, 24, 8) if dim == 0 else (5, 8, 24)
    unfused = fill({f"experts.{name}.weight": shape for name in sizes}, Stack(scheme))
    fused = fill({"experts.gate_up.weight": whole}, Stack(Blocks(sizes, scheme, dim=dim)))
    assert torch.equal(
        fused["experts.gate_up.weight"], torch.cat(list(unfused.values()), dim=1 + dim)
    )


@native_only
@each_scheme
def test_a_stack_of_interleaved_parts_too(scheme):
    sizes = {"gate": 12, "up": 12}
    unfused = fill({f"experts.{name}": EXPERTS for name in sizes}, Stack(scheme))
    fused = fill({"experts.gate_up": (5, 24, 8)}, Stack(Blocks(sizes, scheme, groups=3)))
    assert torch.equal(fused["experts.gate_up"], fused_by_hand(list(unfused.values()), 1, 3))


@native_only
@each_scheme
def test_blocks_of_stacks(scheme):
    """Blocks outside: its dim counts from the front, that of the experts included."""
    sizes = {"gate": 12, "up": 12}
    unfused = fill({f"experts.{name}": EXPERTS for name in sizes}, Stack(scheme))
    fused = fill({"experts.gate_up": (5, 24, 8)}, Blocks(sizes, Stack(scheme), dim=1))
    assert torch.equal(fused["experts.gate_up"], torch.cat(list(unfused.values()), 1))


# On a tensor


@native_only
def test_called_on_a_tensor_a_stack_is_orthogonal_batch():
    wanted = torch.empty(EXPERTS)
    torchinit.orthogonal_batch_(wanted, generator=torch.Generator().manual_seed(1))
    got = Stack(Orthogonal())(torch.empty(EXPERTS), generator=torch.Generator().manual_seed(1))
    assert torch.equal(got, wanted)


@native_only
@pytest.mark.parametrize("scheme", [Normal(0.02), Orthogonal()], ids=repr)
@pytest.mark.parametrize("groups", [1, KV_HEADS])
def test_called_on_a_tensor_every_part_has_one_key(scheme, groups):
    generator = torch.Generator().manual_seed(1)
    parts = [scheme(torch.empty(size, WIDTH), generator=generator) for size in QKV.values()]
    again = torch.Generator().manual_seed(1)
    fused = Blocks(QKV, scheme, groups=groups)(torch.empty(96, WIDTH), generator=again)
    assert torch.equal(fused, fused_by_hand(parts, 0, groups))
    assert torch.equal(again.get_state(), generator.get_state())


def test_called_on_a_tensor_by_knows_no_module():
    seen = []
    scheme = by(lambda p: seen.append(p) or "ones")
    assert scheme(torch.empty(2, 3)).eq(1).all()
    assert (seen[0].name, seen[0].shape, seen[0].module) == ("", (2, 3), None)


# by


def test_by_sees_name_shape_depth_dtype_and_module():
    seen = {}

    def scheme(p):
        seen[p.name] = p
        return Normal(0.02 / math.sqrt(2 * (p.depth + 1)))

    model = nn.ModuleDict(
        {"layers": nn.ModuleList([nn.Linear(4, 2, bias=False) for _ in range(3)])}
    )
    plan = torchinit.plan_model(model, {"**": by(scheme)})
    assert [row.law.std for row in plan] == [0.02 / math.sqrt(2 * (n + 1)) for n in range(3)]
    p = seen["layers.2.weight"]
    assert (p.shape, p.dtype, p.depth) == ((2, 4), torch.float32, 2)
    assert p.module is model["layers"][2]


@pytest.mark.parametrize(
    ("name", "depth"), [("h.3.w", 3), ("a.12.b.5.w", 12), ("w1.h2.07.x", 7), ("0", 0)]
)
def test_depth_is_the_first_number_in_the_name(name, depth):
    seen = []
    rows = rows_of(by(lambda p: seen.append(p.depth) or "zeros"), (2,), name)
    assert len(rows) == 1
    assert set(seen) == {depth}


def test_depth_without_a_number_names_the_parameter():
    with pytest.raises(ArgumentError, match=r"'embed\.w1' .*has no number") as error:
        rows_of(by(lambda p: Normal(p.depth)), (2,), "embed.w1")
    assert str(error.value).count("has no number") == 1


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda _: None, "None is not a scheme"),
        (lambda _: 0.02, "0.02 is not a scheme"),
        (lambda _: "normal", "write Normal"),
        (lambda _: 1 / 0, "ZeroDivisionError"),
        (lambda p: Normal(-p.shape[0]), "std=-2.0"),
        (lambda p: p.module.heads, "AttributeError"),
    ],
)
def test_functions_that_give_no_scheme_name_the_parameter(function, said):
    with pytest.raises(ArgumentError, match=rf"parameter 'layers\.0\.w\.weight' .*{said}"):
        rows_of(by(function), (2, 2))


@pytest.mark.parametrize("value", ["zeros", 3, None])
def test_by_takes_a_function(value):
    with pytest.raises(TypeError, match="by takes a function"):
        by(value)


def test_by_within_by_and_what_stands_for_schemes():
    scheme = by(lambda _: by(lambda q: "ones" if q.shape == (2, 2) else torchinit.zeros_))
    got = fill({"a": (2, 2), "b": (2,)}, scheme)
    assert (got["a"].unique().tolist(), got["b"].unique().tolist()) == ([1], [0])


@native_only
def test_by_within_blocks_and_stack_sees_one_part_and_one_matrix():
    seen = []
    scheme = by(lambda p: seen.append((p.name, p.shape)) or Normal(1 / p.shape[-1]))
    rows_of(Blocks(QKV, scheme), (96, WIDTH), "layers.0.wqkv.weight")
    assert set(seen) == {(f"layers.0.{name}.weight", (size, WIDTH)) for name, size in QKV.items()}
    seen.clear()
    rows_of(Stack(scheme), EXPERTS, "experts.w")
    assert set(seen) == {("experts.w", EXPERTS[1:])}


def test_by_is_equal_if_its_function_is():
    def same(_):
        return "zeros"

    assert by(same) == by(same) != by(lambda _: "zeros")
    assert repr(by(same)).startswith("by(")
    assert "same" in repr(by(same))


def test_tied_names_that_disagree_are_an_error():
    model = model_of({"a": (2,)})
    model.register_parameter("b", model.a)
    with pytest.raises(ArgumentError, match="'a' by a; 'b' by b"):
        torchinit.plan_model(model, {"a": Normal(1), "b": Normal(2)})
    assert len(torchinit.plan_model(model, {"a": Normal(1), "b": Normal(1)})) == 1


@pytest.mark.parametrize("groups", [1, 2])
def test_parts_of_parts_of_one_name_are_an_error(groups):
    inner = Blocks({"x": 2, "y": 2}, Normal(1), groups=groups)
    model = model_of({"a.w": (8, 4)})
    with pytest.raises(ArgumentError, match=r"two parts of parameter 'a\.w' are named 'a\.x'"):
        torchinit.plan_model(model, {"**": Blocks({"a": 4, "b": 4}, inner)})
    inner = Blocks({"x": 2, "y": 2}, "ones")
    assert torchinit.plan_model(model, {"**": Blocks({"a": 4, "b": 4}, inner)})
