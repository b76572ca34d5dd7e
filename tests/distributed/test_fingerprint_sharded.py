"""``fingerprint`` is that of the whole model, on every rank, under every parallelism."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from built import KINDS, identity, layouts, stage_of
from torch import nn
from torch.distributed.tensor import (
    DeviceMesh,
    DTensor,
    Partial,
    Replicate,
    Shard,
    distribute_tensor,
)
from worlds import in_worlds

from torchinit import ArgumentError, build_model, fingerprint, init_model_

pytest.importorskip("transformers")
SEED = 3


@in_worlds(2, 4, each=KINDS)
def test_every_layout_has_that_of_the_plain_model(kind):
    plain = fingerprint(build_model(kind.build, seed=SEED))
    for layout, spread in layouts():
        model = spread(build_model(kind.build, seed=SEED, device="meta"), kind)
        assert fingerprint(init_model_(model, seed=SEED, device="cpu")) == plain, layout


@in_worlds(2, 4)
def test_stages_of_a_pipeline():
    half = dist.get_rank() * 2 // dist.get_world_size()
    for name in ("Llama", "GPT-2"):  # that ties the first stage's embedding to the last's head
        kind = KINDS[name]
        stage = stage_of(build_model(kind.build, seed=SEED), kind, half, identity)
        assert fingerprint(stage, group=dist.group.WORLD) == fingerprint(
            build_model(kind.build, seed=SEED)
        ), name


def holding(tensor):
    model = nn.Module()
    model.weight = nn.Parameter(tensor, requires_grad=False)
    return model


@in_worlds(1, 2, 4)
def test_placements():
    mesh = DeviceMesh("cpu", list(range(dist.get_world_size())))
    for shape in ((7, 5), (1, 3), (40, 2000), (9,)):
        whole = torch.arange(torch.Size(shape).numel(), dtype=torch.float32).view(shape)
        expected = fingerprint(holding(whole))
        for placement in (Replicate(), *(Shard(dim) for dim in range(len(shape)))):
            for dtype in (torch.float32, torch.complex64):
                sharded = distribute_tensor(whole.to(dtype), mesh, [placement])
                found = fingerprint(holding(sharded))
                assert (found == expected) is (dtype == torch.float32)
                assert found == fingerprint(holding(whole.to(dtype)))


@in_worlds(2, 4)
def test_ranks_that_differ_in_one_value_have_another():
    whole = torch.arange(12.0).view(3, 4)
    expected = fingerprint(holding(whole.clone()))
    assert fingerprint(holding(whole), group=dist.group.WORLD) == expected
    if dist.get_rank() == 1:
        whole[2, 3] += 1
    assert (fingerprint(holding(whole)) != expected) is (dist.get_rank() == 1)
    assert fingerprint(holding(whole), group=dist.group.WORLD) != expected
    mesh = DeviceMesh("cpu", list(range(dist.get_world_size())))
    drifted = DTensor.from_local(whole, mesh, [Replicate()], run_check=False)
    assert fingerprint(holding(drifted)) != expected


@in_worlds(2, 4)
def test_an_error_of_one_rank_is_one_of_all():
    mesh = DeviceMesh("cpu", list(range(dist.get_world_size())))
    model = nn.Linear(3, 3, device="meta" if dist.get_rank() == 1 else "cpu")
    expected = "on the meta device" if dist.get_rank() == 1 else "rank 1 has an error"
    with pytest.raises(ArgumentError, match=expected):
        fingerprint(model, group=dist.group.WORLD)
    with pytest.raises((TypeError, ArgumentError), match=r"not NoneType|rank 1 has an error"):
        fingerprint(None if dist.get_rank() == 1 else nn.Linear(3, 3), group=dist.group.WORLD)
    partial = DTensor.from_local(torch.ones(3), mesh, [Partial()], run_check=False)
    with pytest.raises(ArgumentError, match="is partial"):
        fingerprint(holding(partial))
    # A shard that one rank lacks, as after parameters were offloaded.
    shard = distribute_tensor(torch.arange(8.0), mesh, [Shard(0)])
    with pytest.raises(ArgumentError, match=r"the ranks have [46] of the 8 values of"):
        fingerprint(holding(shard) if dist.get_rank() else nn.Module(), group=dist.group.WORLD)


@in_worlds(2, 4)
def test_one_rank_alone():
    """A plain model needs no other rank; a group is asked for by its ranks."""
    expected = fingerprint(holding(torch.arange(12.0)))
    some = dist.new_group([1])
    if dist.get_rank() == 1:
        assert fingerprint(holding(torch.arange(12.0)), group=some) == expected
    else:
        with pytest.raises(ArgumentError, match="group does not have this process"):
            fingerprint(holding(torch.arange(12.0)), group=some)
