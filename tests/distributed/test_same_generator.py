"""``assert_same_generator``: an error on every rank of a mesh whose generators differ."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from layouts import assert_holds, generator_of, guarded, mesh_of
from worlds import in_worlds

import torchinit
from torchinit.errors import RankError

MESHES = {1: [(1,)], 2: [(2,), (2, 1)], 4: [(4,), (2, 2)], 8: [(8,), (4, 2), (2, 2, 2)]}


@in_worlds(1, 2, 4, 8)
def test_equal_states_pass():
    for shape in MESHES[dist.get_world_size()]:
        torch.manual_seed(3)
        state = torch.get_rng_state()
        torchinit.assert_same_generator(mesh_of(*shape))
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(dist.get_rank())  # not what is compared next
        torchinit.assert_same_generator(mesh_of(*shape), generator_of(5))


@in_worlds(2, 4, 8)
def test_every_rank_names_those_that_differ():
    size, rank = dist.get_world_size(), dist.get_rank()
    for shape in MESHES[size]:
        torch.manual_seed(int(rank == 1))
        with pytest.raises(
            RankError,
            match=r"^torch's default generator is in another state on rank 1 than on rank 0: .*"
            "torch.manual_seed",
        ):
            torchinit.assert_same_generator(mesh_of(*shape))
        torch.manual_seed(0)
        torchinit.assert_same_generator(mesh_of(*shape))
        with pytest.raises(RankError, match="the generator given is in another state on rank"):
            torchinit.assert_same_generator(mesh_of(*shape), generator_of(rank))


@in_worlds(4)
def test_several_ranks_that_differ():
    torch.manual_seed(dist.get_rank() // 2)
    with pytest.raises(RankError, match="on ranks 2, 3 than on rank 0"):
        torchinit.assert_same_generator(mesh_of(4))
    # Along one dimension of a mesh each pair agrees, along the other none does.
    mesh = mesh_of(2, 2)
    torchinit.assert_same_generator(mesh["b"])
    with pytest.raises(RankError, match="another state on rank"):
        torchinit.assert_same_generator(mesh["a"])


@in_worlds(2)
def test_draws_on_one_rank_alone():
    torch.manual_seed(0)
    if dist.get_rank():
        torch.randn(1)
    with pytest.raises(RankError, match="on rank 1 than on rank 0"):
        torchinit.assert_same_generator(mesh_of(2))


@in_worlds(3, 4)
def test_ranks_outside_the_mesh_do_not_communicate():
    for first in (0, 1):
        mesh = mesh_of(2, first=first)
        torch.manual_seed(dist.get_rank())
        if mesh.get_coordinate() is None:
            torchinit.assert_same_generator(mesh)
            continue
        match = f"on rank {first + 1} than on rank {first}:"
        with pytest.raises(RankError, match=match):
            torchinit.assert_same_generator(mesh)


@in_worlds(2)
def test_fills_ask_no_other_rank():
    """One rank alone fills; the other makes no such call."""
    tensor = guarded((6, 4), torch.float32, "2 S0")
    torch.manual_seed(1)
    plain = torchinit.normal_(torch.empty(6, 4))
    if dist.get_rank() == 0:
        torch.manual_seed(1)
        torchinit.normal_(tensor)
        assert_holds(tensor, plain, "2 S0")


@in_worlds(1)
def test_what_is_no_mesh_or_generator():
    with pytest.raises(TypeError, match="mesh must be a DeviceMesh, not int"):
        torchinit.assert_same_generator(3)
    with pytest.raises(TypeError, match="must be a torch"):
        torchinit.assert_same_generator(mesh_of(1), 3)
