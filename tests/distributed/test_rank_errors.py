"""Bad input on DTensors: errors on the ranks that see it, nothing written, nobody left waiting."""

# ruff: noqa: PT012, SIM117
from __future__ import annotations

import contextlib
import os
import re

import pytest
import torch
import torch.distributed as dist
from layouts import (
    FUNCTIONS,
    GUARD,
    assert_holds,
    fits,
    generator_of,
    guarded,
    mesh_of,
    placement,
    read_layout,
)
from worlds import in_worlds, of_eight

import torchinit
from torchinit.errors import ArgumentError, RankError
from torchinit.fill.fill import fill
from torchinit.native import load
from torchinit.schemes.distributions import normal_draw

MATRIX_FUNCTIONS = [name for name in FUNCTIONS if fits(name, (6, 4))]
NATIVE = load.module is not None


def of_local(local, layout, shape):
    from torch.distributed.tensor import DTensor

    mesh, placements = read_layout(layout)
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(
        local, mesh, placements, run_check=False, shape=torch.Size(shape), stride=stride
    )


@contextlib.contextmanager
def checking_keys():
    os.environ["TORCHINIT_CHECK_KEYS"] = "1"
    try:
        yield
    finally:
        del os.environ["TORCHINIT_CHECK_KEYS"]


def assert_untouched(*tensors):
    for tensor in tensors:
        # No operation of torch: it caches placements, and takes equal ones for each other.
        local = tensor._local_tensor
        assert (local == GUARD).all(), local


def assert_refused(tensor, match, error=ArgumentError, names=MATRIX_FUNCTIONS):
    """Every function raises, in a batch too, and draws no key."""
    state, version = torch.get_rng_state(), tensor._version
    for name in names:
        with pytest.raises(error, match=match):
            FUNCTIONS[name](tensor)
        with pytest.raises(error, match=match), torchinit.batch():
            FUNCTIONS[name](tensor)
    for scheme in ("normal", "kaiming_uniform", "constant"):
        with pytest.raises(error, match=match):
            torchinit.init_(tensor, None, scheme)
    assert torch.equal(torch.get_rng_state(), state)
    assert tensor._version == version
    assert_untouched(tensor)


@in_worlds(2, 8)
def test_partial_placements():
    layouts = ["2 P"] if dist.get_world_size() == 2 else ["8 P", "4x2 S0 P", "4x2 P R"]
    for layout in layouts:
        rows = 2 if "S0" in layout else 6
        whole = (rows * 4 if "S0" in layout else rows, 4)
        tensor = of_local(torch.full((rows, 4), GUARD), layout, whole)
        assert_refused(tensor, r"partial on dimension \d of the mesh, of size \d: .*Redistribute")
        with checking_keys():
            assert_refused(tensor, "partial on dimension")


@in_worlds(1, 2)
def test_partial_over_one_rank_is_replicated():
    layout = "1 P" if dist.get_world_size() == 1 else "2x1 S0 P"
    like = "1 R" if dist.get_world_size() == 1 else "2x1 S0 R"
    local = guarded((6, 4), torch.float32, like).to_local()
    tensor = of_local(local, layout, (6, 4))
    torch.manual_seed(1)
    plain = torchinit.normal_(torch.empty(6, 4))
    torch.manual_seed(1)
    torchinit.normal_(tensor)
    assert_holds(of_local(tensor.to_local(), like, (6, 4)), plain, like)


@in_worlds(2)
def test_placements_that_are_not_known():
    from torch.distributed.tensor import DTensor, Replicate, Shard

    class Other(Shard):
        pass

    class Another(Replicate):
        pass

    for other in (Other(0), Another()):
        tensor = DTensor.from_local(
            torch.full((3, 4), GUARD),
            mesh_of(2),
            [placement("S0")],
            run_check=False,
            shape=torch.Size((6, 4)),
            stride=(4, 1),
        )
        tensor._spec = type(tensor._spec)(
            tensor._spec.mesh, (other,), tensor_meta=tensor._spec.tensor_meta
        )
        assert_refused(tensor, "is not known: redistribute it")
        with checking_keys():
            assert_refused(tensor, "is not known: redistribute it")


@in_worlds(2)
def test_orders_of_shards_that_placements_do_not_tell():
    from torch.distributed.tensor._dtensor_spec import ShardOrderEntry

    tensor = guarded((4, 4), torch.float32, "2x1 S0 S0")
    entry = ShardOrderEntry(tensor_dim=0, mesh_dims=(1, 0))
    tensor._spec = type(tensor._spec)(
        tensor._spec.mesh,
        tensor._spec.placements,
        tensor_meta=tensor._spec.tensor_meta,
        shard_order=(entry,),
    )
    assert_refused(tensor, r"in the order \(1, 0\), which its placements do not tell")


@in_worlds(2, 4)
def test_local_tensors_of_another_shape():
    """On one rank only: it alone can see that, and the others under the variable."""
    size = dist.get_world_size()
    rank = dist.get_rank()
    for wrong in ((4, 4), (2, 4), (3, 3), (3, 4, 1), ()):
        shape = wrong if rank == 1 else (3, 4)
        layout, whole = f"{size} S0", (3 * size, 4)
        tensor = of_local(torch.full(shape, GUARD), layout, whole)
        match = re.escape(f"has a local tensor of shape {shape} at coordinate")
        if rank == 1:
            assert_refused(tensor, match)
        other = of_local(torch.full((3, 4), GUARD), layout, whole)
        with checking_keys():
            for name in ("normal_", "xavier_uniform_", "sparse_"):
                torch.manual_seed(1)
                error = pytest.raises(ArgumentError, match=match)
                if rank != 1:
                    error = pytest.raises(RankError, match="rank 1 raised, and nothing was written")
                with error:
                    FUNCTIONS[name](tensor)
                assert_untouched(tensor)
                with error, torchinit.batch():
                    torchinit.normal_(other)
                    FUNCTIONS[name](tensor)
                    torchinit.normal_(other)
                assert_untouched(tensor)
                if NATIVE:  # else written at once, when the ranks agreed
                    assert_untouched(other)
                other.to_local().fill_(GUARD)


@in_worlds(2)
def test_local_tensors_that_cannot_be_written():
    with torch.inference_mode():
        inference = of_local(torch.full((3, 4), GUARD), "2 S0", (6, 4))
        kept = torch.full((3, 4), GUARD)
    expanded = of_local(torch.full((1, 1), GUARD).expand(3, 4), "2 S0", (6, 4))
    if not NATIVE:
        return
    random = [name for name in MATRIX_FUNCTIONS if name not in ("sparse_",)]
    assert_refused(expanded, "share memory", names=random)
    # As plain tensors of inference mode are, which are let be inside it.
    with pytest.raises(ArgumentError, match="inference tensor"):
        torchinit.normal_(kept)
    with pytest.raises(ArgumentError, match="inference tensor"):
        torchinit.normal_(inference)
    with torch.inference_mode():
        torchinit.zeros_(inference)
        assert (inference.to_local() == 0).all()


@in_worlds(2)
def test_local_tensors_of_other_classes():
    """A collective that has not ended yet, and a subclass that may hold its values anywhere."""
    from torch.distributed._functional_collectives import AsyncCollectiveTensor

    class Other(torch.Tensor):
        pass

    sharded = guarded((6, 4), torch.float32, "2 S0")
    pending = sharded.redistribute(mesh_of(2), [placement("R")], async_op=True)
    assert isinstance(pending._local_tensor, AsyncCollectiveTensor)
    for name in MATRIX_FUNCTIONS:
        with pytest.raises(TypeError, match="the local tensor of a DTensor is a"):
            FUNCTIONS[name](pending)
    torch.testing.assert_close(pending.full_tensor(), torch.full((6, 4), GUARD))
    other = of_local(torch.full((3, 4), GUARD).as_subclass(Other), "2 S0", (6, 4))
    if type(other._local_tensor) is Other:
        assert_refused(other, "the local tensor of a DTensor is a Other", TypeError)


@in_worlds(2)
def test_bad_arguments_are_those_of_plain_tensors():
    calls = [
        lambda t: torchinit.uniform_(t, 2.0, 1.0),
        lambda t: torchinit.uniform_(t, 0.0, float("nan")),
        lambda t: torchinit.normal_(t, std=-1.0),
        lambda t: torchinit.normal_(t, generator="x"),
        lambda t: torchinit.trunc_normal_(t, a=2.0, b=1.0),
        lambda t: torchinit.constant_(t, None),
        lambda t: torchinit.xavier_normal_(t, gain=float("inf")),
        lambda t: torchinit.kaiming_normal_(t, mode="fan"),
        lambda t: torchinit.kaiming_uniform_(t, nonlinearity="none"),
        lambda t: torchinit.sparse_(t, 0.1, std=-1.0),
        lambda t: torchinit.dirac_(t, 4),
        lambda t: torchinit.eye_(t),
        lambda t: torchinit.init_(t, None, "nothing"),
        lambda t: torchinit.init_(t, None, "dirac", groups=4),
    ]
    for shape in ((6,), (6, 4), (6, 4, 3)):
        for number, call in enumerate(calls):
            plain = torch.full(shape, GUARD)
            try:
                call(plain)
            except Exception as error:
                kind = type(error)
            else:
                continue
            tensor = guarded(shape, torch.float32, "2 S0")
            state = torch.get_rng_state()
            expected = {ArgumentError: (ArgumentError, ValueError)}.get(kind, kind)
            with pytest.raises(expected):
                call(tensor)
            assert_untouched(tensor)
            assert torch.equal(torch.get_rng_state(), state), (number, shape)


@in_worlds(2, 3, 8)
def test_seeds_that_differ():
    """Under the variable every rank says which ranks have parted, and nothing is written."""
    size, rank = dist.get_world_size(), dist.get_rank()
    layouts = [f"{size} S0", f"{size} R"] + (["4x2 S0 S1", "2x2x2 S0 R S1"] if size == 8 else [])
    for layout in layouts:
        tensor, other = (guarded((16, 8), torch.float32, layout) for _ in range(2))
        with checking_keys():
            for name in ("normal_", "kaiming_uniform_", "sparse_"):
                for in_batch in (False, True):
                    torch.manual_seed(int(rank == 1))
                    context = torchinit.batch() if in_batch else contextlib.nullcontext()
                    with (
                        pytest.raises(
                            RankError,
                            match=r"^rank 1 drew another key than rank 0 for a DTensor of",
                        ),
                        context,
                    ):
                        FUNCTIONS[name](tensor)
                        torchinit.zeros_(other)
                    assert_untouched(tensor)
                    if not in_batch:
                        assert_untouched(other)
                    other.to_local().fill_(GUARD)
                # Generators that are given.
                with pytest.raises(RankError, match="drew another key"):
                    torchinit.normal_(tensor, generator=generator_of(int(rank == 1)))
                assert_untouched(tensor)
            # Constants draw none; keys of names are equal anyway.
            torch.manual_seed(rank)
            torchinit.constant_(other, 2.0)
            fill(normal_draw(0.0, 1.0), tensor, 5)
            plain = torch.empty(16, 8)
            fill(normal_draw(0.0, 1.0), plain, 5)
            assert_holds(tensor, plain, layout)


@in_worlds(1, 2, 8, long=of_eight)
def test_equal_seeds_pass_the_check():
    size = dist.get_world_size()
    layouts = [f"{size} S0", f"{size} S1", f"{size} Z0:2"] + (["4x2 S0 S1"] if size == 8 else [])
    for layout in layouts:
        for name in MATRIX_FUNCTIONS:
            torch.manual_seed(6)
            plain = FUNCTIONS[name](torch.empty(16, 8))
            for in_batch in (False, True):
                tensor = guarded((16, 8), torch.float32, layout)
                torch.manual_seed(6)
                with checking_keys():
                    if in_batch:
                        with torchinit.batch():
                            FUNCTIONS[name](tensor)
                    else:
                        FUNCTIONS[name](tensor)
                assert_holds(tensor, plain, layout)


@in_worlds(2)
def test_without_the_variable_nobody_is_asked():
    tensor = guarded((6, 4), torch.float32, "2 S0")
    if dist.get_rank() == 0:  # the other rank makes no such call
        torchinit.normal_(tensor)
    for value in ("", "0"):
        os.environ["TORCHINIT_CHECK_KEYS"] = value
        if dist.get_rank() == 0:
            torchinit.normal_(tensor)
        del os.environ["TORCHINIT_CHECK_KEYS"]


@in_worlds(2, 8)
def test_batches_of_different_lengths():
    size, rank = dist.get_world_size(), dist.get_rank()
    tensors = [guarded((16, 8), torch.float32, f"{size} S0") for _ in range(3)]
    with checking_keys():
        with pytest.raises(RankError, match="every rank has to make the same calls"):
            with torchinit.batch():
                for tensor in tensors[: 3 if rank else 2]:
                    torchinit.normal_(tensor)
        if NATIVE:
            assert_untouched(*tensors)


@in_worlds(2, 8)
def test_errors_of_one_rank_in_a_batch():
    """Before or after other fills, of torchinit or of the caller's; nobody waits."""
    size, rank = dist.get_world_size(), dist.get_rank()

    def fail_in_fill():
        torchinit.uniform_(tensors[1], 1.0, 0.0)

    def fail_otherwise():
        raise KeyError("mine")

    with checking_keys():
        for fail, kind, first in (
            (fail_in_fill, ValueError, True),
            (fail_in_fill, ValueError, False),
            (fail_otherwise, KeyError, False),
        ):
            tensors = [guarded((16, 8), torch.float32, f"{size} S0") for _ in range(3)]
            versions = [tensor._version for tensor in tensors]
            torch.manual_seed(1)
            expected = kind if rank == 1 else RankError
            with pytest.raises(expected) as caught, torchinit.batch():
                if not first:
                    torchinit.normal_(tensors[0])
                if rank == 1:
                    fail()
                torchinit.normal_(tensors[1])
                torchinit.normal_(tensors[2])
            if rank != 1:
                assert "rank 1 raised, and nothing was written; rank 1: " in str(caught.value)
                assert kind.__name__ in str(caught.value) or "ArgumentError" in str(caught.value)
            if NATIVE:
                assert_untouched(*tensors)
                del versions
        # And it works afterwards.
        torch.manual_seed(1)
        torchinit.normal_(tensors[0])
        torch.manual_seed(1)
        assert_holds(tensors[0], torchinit.normal_(torch.empty(16, 8)), f"{size} S0")


@in_worlds(2)
def test_errors_of_one_rank_at_the_end_of_a_batch():
    """A tensor that one rank has written to since its fill was collected."""
    if not NATIVE:
        return
    tensors = [guarded((6, 4), torch.float32, "2 S0") for _ in range(2)]
    with checking_keys():
        expected = RuntimeError if dist.get_rank() == 1 else RankError
        with pytest.raises(expected, match="was written to"), torchinit.batch():
            torchinit.normal_(tensors[0])
            torchinit.normal_(tensors[1])
            if dist.get_rank() == 1:
                tensors[0].to_local().fill_(GUARD)
    assert_untouched(*tensors)


@in_worlds(3, 4)
def test_ranks_outside_the_mesh():
    """They draw their keys, write nothing, and wait for nobody."""
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor

    for first in (0, 1):
        mesh = mesh_of(2, first=first)
        assert isinstance(mesh, DeviceMesh)
        inside = mesh.get_coordinate() is not None
        for check in (False, True):
            for name in MATRIX_FUNCTIONS:
                torch.manual_seed(2)
                plain = FUNCTIONS[name](torch.empty(6, 4))
                state = torch.get_rng_state()
                local = torch.full((3, 4) if inside else (0,), GUARD)
                tensor = DTensor.from_local(
                    local,
                    mesh,
                    [placement("S0")],
                    run_check=False,
                    shape=torch.Size((6, 4)),
                    stride=(4, 1),
                )
                torch.manual_seed(2)
                with checking_keys() if check else contextlib.nullcontext():
                    FUNCTIONS[name](tensor)
                assert torch.equal(torch.get_rng_state(), state)
                if inside:
                    place = mesh.get_coordinate()[0]
                    assert torch.equal(tensor.to_local(), plain[3 * place : 3 * place + 3])
                else:
                    assert tensor.to_local().numel() == 0
        # Those inside learn of each other's keys, those outside of none.
        torch.manual_seed(dist.get_rank())
        tensor = DTensor.from_local(
            torch.full((3, 4) if inside else (0,), GUARD),
            mesh,
            [placement("S0")],
            run_check=False,
            shape=torch.Size((6, 4)),
            stride=(4, 1),
        )
        with checking_keys():
            if inside:
                with pytest.raises(RankError, match=f"rank {first + 1} drew another key"):
                    torchinit.normal_(tensor)
                assert_untouched(tensor)
            else:
                torchinit.normal_(tensor)


@in_worlds(4, where=lambda size, _: NATIVE, seconds=30)  # noqa: ARG005
def test_batches_of_several_meshes():
    """Ranks that learn of a mismatch in one mesh tell those of the next."""
    from torch.distributed.tensor import distribute_tensor

    mesh = mesh_of(2, 2)
    whole = torch.full((4, 4), GUARD)
    rows, columns = (
        distribute_tensor(whole, mesh[name], [placement("S0")], src_data_rank=None)
        for name in ("a", "b")
    )
    both = guarded((4, 4), torch.float32, "2x2 S0 S1")
    for order in ((rows, columns), (columns, rows), (both, rows, columns)):
        torch.manual_seed(int(dist.get_rank() == 1))
        with checking_keys(), pytest.raises(RankError, match="drew another key"), torchinit.batch():
            for tensor in order:
                torchinit.normal_(tensor)
        assert_untouched(both, rows, columns)


@in_worlds(4, seconds=30)
def test_errors_of_a_rank_that_came_to_one_mesh_only():
    """It is not waited for in the meshes that it would have come to next."""
    mesh, failing = mesh_of(2, 2), dist.get_rank() == 1
    both = of_local(torch.full((2, 3 if failing else 2), GUARD), "2x2 S0 S1", (4, 4))
    rows = of_local(torch.full((2, 4), GUARD), "2x2 S0 R", (4, 4))
    rows = rows.from_local(rows.to_local(), mesh["a"], [placement("S0")], run_check=False)
    expected = ArgumentError if failing else RankError
    with checking_keys():
        with pytest.raises(expected, match="has a local tensor of shape"), torchinit.batch():
            for tensor in (both, rows):
                torchinit.normal_(tensor)
    if NATIVE:
        assert_untouched(both, rows)


@in_worlds(2)
def test_sparse_takes_two_generators():
    """The one given, and torch's default one for the places of zeros: both are compared."""
    tensor = guarded((6, 4), torch.float32, "2 S0")
    torch.manual_seed(dist.get_rank())
    with checking_keys(), pytest.raises(RankError, match="rank 1 drew another key"):
        torchinit.sparse_(tensor, 0.5, generator=generator_of(1))
    assert_untouched(tensor)
    # Others draw from the given one alone.
    with checking_keys():
        torchinit.normal_(tensor, generator=generator_of(1))
    assert_holds(tensor, torchinit.normal_(torch.empty(6, 4), generator=generator_of(1)), "2 S0")


@in_worlds(2)
def test_gains_of_one_rank_are_told():
    """Nobody waits for a rank whose gain is wrong."""
    gain = float("nan") if dist.get_rank() else 1.0
    for function, shape in (
        (torchinit.orthogonal_, (6, 4)),
        (torchinit.orthogonal_batch_, (3, 6, 4)),
    ):
        tensor = guarded(shape, torch.float32, "2 S0")
        with checking_keys(), pytest.raises(ArgumentError if dist.get_rank() else RankError):
            function(tensor, gain)
        assert_untouched(tensor)


@in_worlds(2, where=lambda size, _: NATIVE, seconds=30)  # noqa: ARG005
def test_matrices_in_a_batch_are_compared_before_they_are_written():
    """A batch does not collect them."""
    fills = (
        torchinit.orthogonal_,
        torchinit.Orthogonal(0.5),
        lambda tensor: torchinit.orthogonal_batch_([tensor]),
    )
    for form in fills:
        tensor = guarded((6, 4), torch.float32, "2 S0")
        with checking_keys():
            torch.manual_seed(dist.get_rank())
            with pytest.raises(RankError, match="another key"), torchinit.batch():
                form(tensor)
        assert_untouched(tensor)
