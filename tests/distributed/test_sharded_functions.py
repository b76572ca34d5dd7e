"""Every function on DTensors: what each rank holds is the plain tensor's, bit for bit."""

# ruff: noqa: PT012, SIM117
from __future__ import annotations

import warnings
from functools import partial

import pytest
import torch
import torch.distributed as dist
from layouts import (
    ANY_SHAPE,
    FUNCTIONS,
    GUARD,
    RANDOM,
    assert_gathers,
    assert_holds,
    fill_both,
    fits,
    generator_of,
    guarded,
    read_layout,
)
from worlds import in_worlds, of_eight

import torchinit
from fills import DTYPES
from torchinit import Blocks, by
from torchinit.dtypes import FLOAT8_DTYPES
from torchinit.native import load

DTYPE_NAMES = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES}
NATIVE = load.module is not None

# By size of the world.
MESHES = {1: ["1", "1x1"], 2: ["2"], 3: ["3"], 4: ["4", "2x2"], 8: ["8", "4x2", "2x4", "2x2x2"]}
# Of two dimensions of a mesh, and of three: what is even on all meshes is used strided too.
PAIRS = ["S0 S1", "S1 S0", "R S0", "S1 R", "S0 S0", "R R"]
TRIPLES = ["S0 S1 R", "R S0 S0", "S1 S1 S0", "S0 R S0"]
# One function of each distribution, and one by place.
LIKE_OTHERS = ("uniform_", "normal_", "trunc_normal_", "constant_", "xavier_normal_", "eye_")
# Uneven, with fewer rows than ranks, one row, one column.
MATRICES = [(16, 8), (9, 7), (3, 5), (1, 12), (10, 1)]


def layouts_of(dims):
    """Layouts of this world's meshes for tensors of so many dimensions."""
    for mesh in MESHES[dist.get_world_size()]:
        if dims == 0:
            yield f"{mesh}{' R' * (mesh.count('x') + 1)}"
        elif "x" not in mesh:
            yield from (f"{mesh} {each}" for each in ("R", *(f"S{dim}" for dim in range(dims))))
        else:
            for each in PAIRS if mesh.count("x") == 1 else TRIPLES:
                if all(int(name[1:] or 0) < dims for name in each.split()):
                    yield f"{mesh} {each}"


def some(layouts, number):
    """One of three layouts, which one by number; all if there are few."""
    layouts = list(layouts)
    return layouts if len(layouts) <= 3 else layouts[number % 3 :: 3]


@in_worlds(1, 2, 3, 4, 8, each=DTYPE_NAMES, long=of_eight)
def test_matrices(dtype):
    """In small worlds every function in every layout, in float32."""
    is_large = dist.get_world_size() == 8
    for number, (name, fill) in enumerate(FUNCTIONS.items()):
        is_like_another = is_large and name not in LIKE_OTHERS
        if is_like_another and dtype is not torch.float32:
            continue
        if name == "sparse_" and dtype in FLOAT8_DTYPES:
            continue
        for place, shape in enumerate(MATRICES):
            if fits(name, shape):
                layouts = list(layouts_of(2))
                if dtype is not torch.float32 or is_like_another:
                    layouts = some(layouts, number + place)
                tensors, plain = fill_both(fill, shape, dtype, layouts)
                if place == 1 and dtype in (torch.float32, torch.bfloat16):
                    for tensor in some(tensors, number):
                        assert_gathers(tensor, plain)


@in_worlds(1, 2, 3, 4, 8, long=of_eight)
def test_other_numbers_of_dimensions():
    shapes = ((), (1,), (2,), (13,), (5, 3, 4), (2, 6, 3), (6, 4, 3, 3), (4, 4, 2, 1, 3))
    is_large = dist.get_world_size() == 8
    for place, shape in enumerate(shapes):
        for number, (name, fill) in enumerate(FUNCTIONS.items()):
            if fits(name, shape):
                layouts = some(layouts_of(len(shape)), number + place)
                dtypes = (torch.float32, torch.bfloat16)
                for dtype in dtypes[: 1 if is_large else 2]:
                    tensors, plain = fill_both(fill, shape, dtype, layouts)
                if name in ("normal_", "dirac_groups"):
                    for tensor in tensors:
                        assert_gathers(tensor, plain)


@in_worlds(1, 2, 3, 8, long=of_eight)
def test_tensors_without_elements_draw_their_key():
    for place, shape in enumerate(((0,), (0, 5), (5, 0), (3, 0, 2))):
        for number, (name, fill) in enumerate(FUNCTIONS.items()):
            if fits(name, shape):
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "Initializing zero-element")
                    layouts = some(layouts_of(len(shape)), number + place)
                    fill_both(fill, shape, torch.float32, layouts)


@in_worlds(4, 8)
def test_strided_shards_of_equal_size():
    """``_StridedShard`` where torch's two ways to read it agree."""
    for mesh in MESHES[dist.get_world_size()][1:]:
        sizes = [int(size) for size in mesh.split("x")]
        last = sizes[-1]
        layouts = [
            f"{mesh} {placements}"
            for placements in (f"Z0:{last} S0", f"Z1:{last} S1", f"Z0:{last} S1", f"R Z1:{last} S1")
            if len(placements.split()) == len(sizes)
        ]
        for dtype in (torch.float32, torch.float8_e4m3fn):
            for name in ("normal_", "trunc_normal_", "constant_", "eye_"):
                fill_both(FUNCTIONS[name], (16, 8), dtype, layouts)


@in_worlds(2, 4, 8)
def test_strided_shards_that_hold_several_boxes():
    """Placements of a view: one rank's rows are not consecutive."""
    for mesh in MESHES[dist.get_world_size()]:
        rest = " R" * mesh.count("x")
        layouts = [f"{mesh} Z{dim}:{factor}{rest}" for dim, factor in ((0, 2), (0, 3), (1, 2))]
        for shape in ((24, 12), (25, 13)):
            for dtype in (torch.float32, torch.bfloat16):
                for name in ("normal_", "uniform_", "zeros_", "eye_", "sparse_"):
                    fill_both(FUNCTIONS[name], shape, dtype, layouts)
        for name in ("dirac_", "dirac_groups", "kaiming_normal_"):
            fill_both(FUNCTIONS[name], (12, 8, 3), torch.float32, layouts)


@in_worlds(2, 8)
def test_given_generators_advance_alike():
    """Those of empty shards too; torch's default one is let be."""
    layout = "2 S0" if dist.get_world_size() == 2 else "8 S0"
    for name in RANDOM:
        function = getattr(torchinit, name)
        ours, theirs = generator_of(3), generator_of(3)
        before = torch.get_rng_state()
        for shape in ((3, 4), (1, 5), (16, 2)):
            plain = function(torch.empty(shape), generator=theirs)
            tensor = function(guarded(shape, torch.float32, layout), generator=ours)
            assert_holds(tensor, plain, layout)
            assert torch.equal(ours.get_state(), theirs.get_state())
        assert torch.equal(torch.get_rng_state(), before)
    ours, theirs = generator_of(3), generator_of(3)
    torch.manual_seed(1)  # torch draws the places of zeros from the default generator
    plain = torchinit.sparse_(torch.empty(6, 4), 0.3, generator=theirs)
    tensor = guarded((6, 4), torch.float32, layout)
    torch.manual_seed(1)
    torchinit.sparse_(tensor, 0.3, generator=ours)
    assert_holds(tensor, plain, layout)
    assert torch.equal(ours.get_state(), theirs.get_state())


def _fill_normal(tensor):
    torch.nn.init.normal_(tensor)


MIXED = {
    "matrix first": Blocks({"q": 4, "k": 2}, {"q": "orthogonal", "k": "xavier_normal"}),
    "matrix last": Blocks({"q": 4, "k": 2}, {"q": "xavier_normal", "k": "orthogonal"}),
    "constant first": Blocks({"q": 4, "k": 2}, {"q": "ones", "k": "orthogonal"}),
    "callable first": Blocks({"q": 4, "k": 2}, {"q": _fill_normal, "k": "kaiming_uniform"}),
    "callable last": Blocks({"q": 4, "k": 2}, {"q": "orthogonal", "k": _fill_normal}),
    "callable": by(lambda target: _fill_normal),  # noqa: ARG005
    "sparse": by(lambda target: partial(torch.nn.init.sparse_, sparsity=0.5)),  # noqa: ARG005
}


@in_worlds(2, each=MIXED)
def test_schemes_of_several_kinds_draw_in_one_order(scheme):
    """Whatever is drawn first of a plain tensor is drawn first of a DTensor."""
    for layout in ("2 S0", "2 S1", "2 R"):
        torch.manual_seed(1)
        plain = scheme(torch.empty(6, 5))
        state = torch.get_rng_state()
        made = guarded((6, 5), torch.float32, layout)
        torch.manual_seed(1)
        scheme(made)
        assert torch.equal(torch.get_rng_state(), state), layout
        assert_holds(made, plain, layout)


@in_worlds(2, 3)
def test_parameters():
    """Leaves that require grad: autograd sees nothing, and counts the write."""
    layout = f"{dist.get_world_size()} S0"
    for name in (*ANY_SHAPE, "xavier_normal_", "eye_", "sparse_"):
        torch.manual_seed(1)
        plain = FUNCTIONS[name](torch.empty(7, 3))
        for made in (
            torch.nn.Parameter(guarded((7, 3), torch.float32, layout)),
            guarded((7, 3), torch.float32, layout).requires_grad_(),
        ):
            torch.manual_seed(1)
            version = made._version
            assert FUNCTIONS[name](made) is made
            assert made.grad_fn is None
            assert made.requires_grad
            assert made.is_leaf
            assert made._version > version
            assert_holds(made, plain, layout)


@in_worlds(2)
def test_autograd_notices_the_write():
    weight = guarded((6, 4), torch.float32, "2 S0").requires_grad_()
    square = (weight * weight).sum()
    torchinit.normal_(weight)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        square.backward()


INIT_SCHEMES = [
    "normal", "biased_normal", "uniform", "kaiming_uniform", "kaiming_normal", "xavier_uniform",
    "xavier_normal", "trunc_normal", "dirac", "constant", "zeros", "ones",
]  # fmt: skip


@in_worlds(2, 3, 8, long=of_eight)
def test_init_():
    size = dist.get_world_size()
    for scheme in INIT_SCHEMES:
        for layout in (f"{size} S0", f"{size} S1", f"{size} R"):
            for dtype in (torch.float32, torch.bfloat16):
                shape = (6, 4, 3)
                torch.manual_seed(2)
                bias_layout = layout if "S1" not in layout else f"{size} R"
                plain, plain_bias = torchinit.init_(
                    torch.empty(shape, dtype=dtype), torch.empty(6, dtype=dtype), scheme, groups=2
                )
                weight = torch.nn.Parameter(guarded(shape, dtype, layout))
                bias = torch.nn.Parameter(guarded((6,), dtype, bias_layout))
                torch.manual_seed(2)
                torchinit.init_(weight, bias, scheme, groups=2)
                assert_holds(weight, plain, layout)
                assert_holds(bias, plain_bias, bias_layout)


@in_worlds(2, 3, 8, long=of_eight)
def test_batches():
    """Values are those of single calls; DTensors of several meshes and plain tensors together."""
    size = dist.get_world_size()
    layouts = [f"{size} S0", f"{size} S1", f"{size} R", f"{size} Z0:2"]
    if size == 8:
        layouts += ["2x4 S0 S1", "4x2 Z0:2 S0"]
    names = [name for name in FUNCTIONS if fits(name, (16, 8))]
    torch.manual_seed(8)
    plain = [FUNCTIONS[name](torch.empty(16, 8)) for name in names for _ in layouts]
    more = torchinit.normal_(torch.empty(5))
    state = torch.get_rng_state()

    made = [(guarded((16, 8), torch.float32, each), each) for _ in names for each in layouts]
    versions = [tensor._version for tensor, _ in made]
    torch.manual_seed(8)
    tensors = iter(made)
    with torchinit.batch():
        for name in names:
            for _ in layouts:
                tensor, _ = next(tensors)
                FUNCTIONS[name](tensor)
                if NATIVE and name == "normal_":
                    assert (tensor.to_local() == GUARD).all()  # until the end
        plain_here = torchinit.normal_(torch.empty(5))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(plain_here, more)
    for (tensor, layout), whole, version in zip(made, plain, versions, strict=True):
        assert_holds(tensor, whole, layout)
        assert tensor._version > version


@in_worlds(2)
def test_batches_refuse_what_was_written_since():
    if not NATIVE:
        return
    tensor = guarded((6, 4), torch.float32, "2 S0")
    other = guarded((6, 4), torch.float32, "2 S0")
    for spoil in (
        lambda: tensor.to_local().add_(1),
        lambda: tensor.add_(1),
        lambda: setattr(tensor, "_local_tensor", tensor._local_tensor.clone()),
    ):
        with pytest.raises(RuntimeError, match=r"torchinit\.batch"):
            with torchinit.batch():
                torchinit.normal_(other)
                torchinit.normal_(tensor)
                spoil()
        assert (other.to_local() == GUARD).all()
        assert tensor.to_local().unique().numel() == 1


@in_worlds(2)
def test_memory_around_the_local_tensor_is_let_be():
    """Local tensors that are views: of a flat storage with padding, transposed, every other one."""
    from torch.distributed.tensor import DTensor

    mesh_layout = "2 S0"
    for dtype in (torch.float32, torch.float8_e5m2, torch.bfloat16):
        for view in (
            lambda flat: flat[8 : 8 + 15].view(3, 5),
            lambda flat: flat[8 : 8 + 15].view(5, 3).t(),
            lambda flat: flat[4 : 4 + 30].view(3, 10)[:, ::2],
        ):
            mesh, placements = read_layout(mesh_layout)
            flat = torch.full((64,), GUARD).to(dtype)
            local = view(flat)
            tensor = DTensor.from_local(
                local, mesh, placements, run_check=False, shape=(6, 5), stride=(5, 1)
            )
            torch.manual_seed(4)
            plain = torchinit.normal_(torch.empty(6, 5, dtype=dtype))
            torch.manual_seed(4)
            torchinit.normal_(tensor)
            assert_holds(tensor, plain, mesh_layout)
            outside = torch.ones(64, dtype=torch.bool)
            outside.as_strided(local.size(), local.stride(), local.storage_offset()).zero_()
            assert (flat.float()[outside] == torch.tensor(GUARD).to(dtype).float()).all()
