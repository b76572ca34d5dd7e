"""Bad input on DTensors: errors on the ranks that see it, and nothing written."""

from __future__ import annotations

import re

import pytest
import torch
import torch.distributed as dist
from layouts import (
    FUNCTIONS,
    GUARD,
    assert_holds,
    fits,
    guarded,
    mesh_of,
    placement,
    read_layout,
)
from worlds import in_worlds

import torchinit
from torchinit.errors import ArgumentError
from torchinit.native import load

MATRIX_FUNCTIONS = [name for name in FUNCTIONS if fits(name, (6, 4))]
NATIVE = load.module is not None


def of_local(local, layout, shape):
    from torch.distributed.tensor import DTensor

    mesh, placements = read_layout(layout)
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(
        local, mesh, placements, run_check=False, shape=torch.Size(shape), stride=stride
    )


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
    """On one rank only, which alone can see that, and alone raises."""
    size = dist.get_world_size()
    rank = dist.get_rank()
    for wrong in ((4, 4), (2, 4), (3, 3), (3, 4, 1), ()):
        shape = wrong if rank == 1 else (3, 4)
        layout, whole = f"{size} S0", (3 * size, 4)
        tensor = of_local(torch.full(shape, GUARD), layout, whole)
        if rank == 1:
            assert_refused(tensor, re.escape(f"has a local tensor of shape {shape} at coordinate"))


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


@in_worlds(3, 4)
def test_ranks_outside_the_mesh():
    """They draw their keys, write nothing, and wait for nobody."""
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor

    for first in (0, 1):
        mesh = mesh_of(2, first=first)
        assert isinstance(mesh, DeviceMesh)
        inside = mesh.get_coordinate() is not None
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
            FUNCTIONS[name](tensor)
            assert torch.equal(torch.get_rng_state(), state)
            if inside:
                place = mesh.get_coordinate()[0]
                assert torch.equal(tensor.to_local(), plain[3 * place : 3 * place + 3])
            else:
                assert tensor.to_local().numel() == 0


@in_worlds(2)
def test_gains_are_checked_before_anything_is_written():
    for function, shape in (
        (torchinit.orthogonal_, (6, 4)),
        (torchinit.orthogonal_batch_, (3, 6, 4)),
    ):
        tensor = guarded(shape, torch.float32, "2 S0")
        with pytest.raises(ArgumentError, match="gain=nan"):
            function(tensor, float("nan"))
        assert_untouched(tensor)
