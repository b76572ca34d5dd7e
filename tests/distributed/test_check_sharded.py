"""check_init of sharded models: each rank names what is left of its own shards, and where."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
from layouts import mesh_of
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from worlds import in_worlds

import torchinit
from doc_blocks import blocks_of
from torchinit import UninitializedError, check_init, find_uninitialized, init_model_


def rows_of(model, init):
    try:
        check_init(model, init)
    except UninitializedError as error:
        caught = error
    else:
        return []
    assert f"(rank {dist.get_rank()})" in str(caught)
    return caught.rows


def fill(model, but=()):
    for name, parameter in model.named_parameters():
        if name not in but:
            local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
            local.detach().fill_(0.5)


@in_worlds(2, 4)
def test_one_rank_differs():
    """FSDP2 from the meta device: rank 1 skips a parameter, and all skip a buffer."""
    rank, size = dist.get_rank(), dist.get_world_size()
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(6, 9), nn.Linear(9, 4))
        model.register_buffer("table", torch.empty(3), persistent=False)
    fully_shard(model[0], mesh=mesh_of(size))
    fully_shard(model, mesh=mesh_of(size))
    rows = rows_of(model, lambda model: fill(model, ("0.weight",) if rank == 1 else ()))
    step = -(-9 // size)
    expected = [("table", "buffer, not saved", 3, 3, "")]
    if rank == 1:
        count = (min(2 * step, 9) - step) * 6
        where = f"[{step}:{min(2 * step, 9)}, :]"
        expected.insert(0, ("0.weight", "parameter", count, count, where))
    assert [(row.name, row.kind, row.count, row.total, row.where) for row in rows] == expected
    assert rank != 1 or rows[0].shape == (9, 6)


@in_worlds(4)
def test_boxes_of_two_dimensions():
    """In the coordinates of the whole, also of a strided shard of several pieces."""
    mesh = mesh_of(2, 2)
    model = nn.Module()
    for name, placements in {
        "both": (Shard(0), Shard(1)),
        "twice": (Shard(0), Shard(0)),
        "copies": (Replicate(), Shard(1)),
    }.items():
        whole = distribute_tensor(torch.zeros(8, 6), mesh, placements)
        model.register_parameter(name, nn.Parameter(whole))

    def init(model):
        fill(model)
        for parameter in model.parameters():
            local = parameter.to_local().detach()
            local[-1:].copy_(torch.empty_like(local[-1:]))

    rows = {row.name: row.where for row in rows_of(model, init)}
    first, second = mesh.get_coordinate()
    columns = f"{3 * second}:{3 * second + 3}"
    last = 4 * first + 2 * second + 1
    assert rows == {
        "both": f"[{4 * first + 3}:{4 * first + 4}, {columns}]",
        "twice": f"[{last}:{last + 1}, :]",
        "copies": f"[7:8, {columns}]",
    }


@in_worlds(2)
def test_placements_that_tell_no_place():
    """A partial tensor: indices are those of what is here."""
    local = torch.zeros(4, 4)
    model = nn.Module()
    partial = DTensor.from_local(local, mesh_of(2), [Partial()], run_check=False)
    model.register_buffer("sum", partial)
    rows = rows_of(model, lambda _: local[:2].fill_(1))
    assert [(row.name, row.count, row.where) for row in rows] == [("sum", 8, "local [2:4, :]")]


@in_worlds(2)
def test_what_is_written_to_gathered_parameters_is_lost():
    """After a forward the root of fully_shard holds copies, which it throws away."""
    model = nn.Sequential(nn.Linear(6, 9), nn.Linear(9, 4))
    fully_shard(model, mesh=mesh_of(2))
    model(torch.ones(2, 6))

    def init(model):
        model.unshard()
        for parameter in model.parameters():
            parameter.detach().fill_(1)

    rows = rows_of(model, init)
    assert [row.name for row in rows] == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert rows_of(model, lambda model: fill(model)) == []


@in_worlds(2)
def test_the_code_of_the_docs():
    """That for one rank, with a model whose layers are where it looks for them."""
    page = Path(__file__).parents[2] / "docs" / "check_init.md"
    (code,) = (code for heading, _, code in blocks_of(page) if heading == "One rank differs")
    mesh = mesh_of(2)

    def make():
        with torch.device("meta"):
            layers = [nn.Linear(4, 4) for _ in range(2)]
            model = nn.Sequential(*layers, nn.Linear(4, 4))
        model.model = SimpleNamespace(layers=layers)
        return model

    names = {
        "make": make,
        "torchinit": torchinit,
        "fully_shard": lambda module: fully_shard(module, mesh=mesh),
    }
    exec(code, names)
    parameters = dict(names["model"].named_parameters())
    assert len(parameters) == 6
    assert all(isinstance(one, DTensor) for one in parameters.values())
    if dist.get_rank() == 1:
        rows = rows_of(names["model"], lambda model: fill(model, ("0.weight",)))
        assert [(row.name, row.where) for row in rows] == [("0.weight", "[2:4, :]")]


@in_worlds(2)
def test_torchinit_leaves_nothing():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9))
    fully_shard(model, mesh=mesh_of(2))
    assert rows_of(model, lambda model: init_model_(model, seed=0)) == []
    assert find_uninitialized(model) == []
