"""What a model's constructor gives, under every parallelism: the values of one process's model.

By what ``build_model`` has remembered on the meta device; and by ``init_model_`` without rules of
models of Transformers and torchtitan that ranks hold already, on the meta device and in memory.
"""

from __future__ import annotations

import copy
import functools

import pytest
import torch
import torch.distributed as dist
from built import (
    KINDS,
    EveryMake,
    NanoGPT,
    assert_equal,
    cut_by,
    deleted,
    fully_sharded,
    identity,
    in_bfloat16,
    layouts,
    nothing,
    on_meta,
    stage_of,
    tensors,
)
from layouts import mesh_of
from torch import nn
from worlds import in_worlds

from torchinit import ArgumentError, build_model, init_model_, plan_model
from torchinit.placement.distributed import local_memory

pytest.importorskip("transformers")

SEED, ANOTHER = 3, 11


def makers(kind):
    """Functions that make a model on the meta device which knows its initialisation, by how."""
    built = build_model(kind.build, seed=SEED, device="meta")
    found = {"built": lambda: copy.deepcopy(built)}
    if kind.plain is not None:  # not a copy: modules of torch would be refused
        found["on meta"] = lambda: on_meta(kind.plain)
    return found


def prepared(kind):
    """Functions that make a model and have it spread: on meta, without values, in memory."""
    found = {"built in memory": lambda spread: spread(build_model(kind.build, seed=SEED), kind)}
    if kind.plain is not None:
        found["in memory"] = lambda spread: spread(kind.plain(), kind)
    for by, make in makers(kind).items():
        found[by] = lambda spread, make=make: spread(make(), kind)
        found[f"{by}, to_empty"] = lambda spread, make=make: emptied(spread(make(), kind))
    return found


def emptied(model):
    """In memory that holds no values, and no zeros; torch does not see that it is written to."""
    model.to_empty(device="cpu")
    for tensor in tensors(model).values():
        local_memory(tensor).detach().view(-1).view(torch.uint8).numpy()[:] = 77
    return model


@in_worlds(2, 4, each=KINDS)
def test_every_layout_has_the_plain_models_values(kind):
    plain = {seed: build_model(kind.build, seed=seed) for seed in (SEED, ANOTHER)}
    if kind.plain is not None:
        assert_equal(init_model_(kind.plain(), seed=SEED), plain[SEED], "one process")
    for layout, spread in layouts():
        for by, prepare in prepared(kind).items():
            model = prepare(spread)
            for seed in (SEED, ANOTHER):
                assert init_model_(model, seed=seed) is model
                said = f"{layout}, {by}, seed {seed}"
                assert_equal(model, plain[seed], said, gather=seed == SEED)


@in_worlds(2, 4, each=KINDS, long=lambda size, name: size == 4)  # noqa: ARG005
def test_bfloat16(kind):
    plain = build_model(kind.build, seed=SEED, dtype=torch.bfloat16)
    for layout, spread in layouts():
        for by, make in makers(kind).items():
            made = spread(make(), kind)
            init_model_(made, seed=SEED, dtype=torch.bfloat16)
            assert_equal(made, plain, f"{layout}, {by}")
            made = emptied(spread(in_bfloat16(make()), kind))
            init_model_(made, seed=SEED)
            assert_equal(made, plain, f"{layout}, {by}, to_empty")


@in_worlds(2, 4, each={name: kind for name, kind in KINDS.items() if kind.stages})
def test_stages_of_a_pipeline(kind):
    plain = {seed: build_model(kind.build, seed=seed) for seed in (SEED, ANOTHER)}
    rank, size = dist.get_rank(), dist.get_world_size()
    half = rank * 2 // size
    meshes = [mesh_of(size // 2, first=first) for first in (0, size // 2)]
    for by, make in makers(kind).items():
        for remove in (nothing, deleted, *[identity] * (by == "built")):
            stage = stage_of(make(), kind, half, remove)
            if size == 4:
                fully_sharded(stage, kind, meshes[half])
            said = f"{by}, {remove.__name__}"
            if remove is deleted:
                emptied(stage)
            for seed in (SEED, ANOTHER):
                init_model_(stage, seed=seed)
                assert_equal(stage, plain[seed], f"{said}, seed {seed}")
            held = [set()] * size
            dist.all_gather_object(held, set(dict(stage.named_parameters(remove_duplicate=False))))
            names = dict(plain[SEED].named_parameters(remove_duplicate=False))
            assert set().union(*held) == set(names), said


@in_worlds(2)
def test_stages_that_count_their_layers_anew():
    """As torchtitan's of lists: what is renamed back has the whole model's values."""
    plain = build_model(NanoGPT, seed=ANOTHER)
    stage = build_model(NanoGPT, seed=SEED, device="meta")
    rank = dist.get_rank()
    stage.h = nn.ModuleList([stage.h[rank]])
    init_model_(stage, seed=ANOTHER, rename=lambda name: name.replace("h.0.", f"h.{rank}."))
    for name, tensor in tensors(stage.h[0]).items():
        assert torch.equal(tensor.detach(), tensors(plain.h[rank])[name].detach()), name


@in_worlds(2)
def test_large_constants_are_given_up_when_used():
    build = functools.partial(WithTable, 2000)
    plain = build_model(build, seed=SEED)
    from torch.distributed.fsdp import fully_shard

    model = fully_shard(build_model(build, seed=SEED, device="meta"), mesh=mesh_of(2))
    init_model_(model, seed=SEED)
    assert_equal(model, plain, "the first time")
    init_model_(model, seed=ANOTHER)  # it is there still
    assert_equal(model, build_model(build, seed=ANOTHER), "another seed")
    emptied(model)
    with pytest.raises(ArgumentError, match=r"'table' has constant values .* released"):
        init_model_(model, seed=SEED)


@in_worlds(2, 4, each={"rows": 0, "columns": 1})
def test_parameters_of_every_make(dim):
    plain = {seed: build_model(EveryMake, seed=seed) for seed in (SEED, ANOTHER)}
    on_meta = functools.partial(build_model, EveryMake, seed=SEED, device="meta")
    for prepare in (lambda model: model, emptied):
        model = on_meta()
        for module in list(model.modules()):
            if module._parameters:
                cut_by(dim)._apply(module, mesh_of(dist.get_world_size()))
        prepare(model)
        for seed in (SEED, ANOTHER):
            init_model_(model, seed=seed)
            assert_equal(model, plain[seed], f"{dim}, {seed}")


@in_worlds(2, 4)
def test_parameters_of_every_make_fully_sharded():
    from torch.distributed.fsdp import fully_shard

    build = functools.partial(EveryMake, contiguous=True)
    for dtype in (None, torch.bfloat16):
        model = fully_shard(build_model(build, seed=0, device="meta"))
        init_model_(model, seed=SEED, dtype=dtype)
        assert_equal(model, build_model(build, seed=SEED, dtype=dtype), str(dtype))


@in_worlds(2)
def test_a_part_of_a_model_or_some_rules_beside():
    """What ``only`` does not name is neither read nor written: it has no values, and keeps that."""
    for name in ("Llama", "torchtitan", "Mamba"):
        kind = KINDS[name]
        plain = build_model(kind.build, seed=SEED)
        for by, make in makers(kind).items():
            for layout, spread in layouts():
                said = f"{name}, {by}, {layout}"
                model = spread(make(), kind)
                init_model_(model, seed=SEED, only=f"{kind.layers}.1.**")
                filled = {name for name, one in model.named_parameters() if not one.is_meta}
                names = {name for name, _ in model.named_parameters()}
                assert filled == {one for one in names if one.startswith(f"{kind.layers}.1.")}, said
                assert_equal(layer(model, kind, 1), layer(plain, kind, 1), said)
                model = spread(make(), kind)
                rules = {f"{kind.layers}.0.**": "zeros", "**": "own"}
                init_model_(model, rules, seed=SEED)
                assert_equal(layer(model, kind, 1), layer(plain, kind, 1), said)
                zeros = layer(model, kind, 0).parameters()
                assert not any(local_memory(one).any() for one in zeros), said


def layer(model, kind, number):
    return model.get_submodule(f"{kind.layers}.{number}")


@in_worlds(2)
def test_plans_are_those_of_the_plain_model():
    for name, kind in KINDS.items():
        wanted = str(plan_model(build_model(kind.build, seed=SEED, device="meta")))
        for layout, spread in layouts():
            model = spread(build_model(kind.build, seed=SEED, device="meta"), kind)
            if "TP" not in layout:  # which breaks ties
                assert str(plan_model(model)) == wanted, f"{name}, {layout}"


class Scaled(nn.Module):
    """By a norm that is read."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(12, 8)
        self.linear.weight.data /= self.linear.weight.norm().item()


@in_worlds(2)
def test_values_that_were_read_hold_for_one_seed():
    from torch.distributed.fsdp import fully_shard

    model = fully_shard(build_model(Scaled, seed=SEED, device="meta"))
    with pytest.raises(
        ArgumentError, match="read under seed=3: build the model again with seed=11"
    ):
        init_model_(model, seed=ANOTHER)
    init_model_(model, seed=SEED)
    assert_equal(model, build_model(Scaled, seed=SEED), "scaled")


class Seeded(nn.Module):
    """With values of a generator of its own."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(12, 8)
        generator = torch.Generator().manual_seed(1)
        self.fixed = nn.Parameter(torch.rand(8, 12, generator=generator))


@in_worlds(2)
def test_torchs_own_draws_are_what_they_were():
    from torch.distributed.fsdp import fully_shard

    with pytest.warns(UserWarning, match="seed=3 has no effect on 'fixed'"):
        model = fully_shard(build_model(Seeded, seed=SEED, device="meta"))
    init_model_(model, seed=ANOTHER)
    with pytest.warns(UserWarning, match="no effect on 'fixed'"):
        assert_equal(model, build_model(Seeded, seed=ANOTHER), "seeded")
    whole = torch.rand(8, 12, generator=torch.Generator().manual_seed(1))
    assert torch.equal(model.fixed.full_tensor(), whole)


class WithTable(nn.Module):
    def __init__(self, rows):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.table = nn.Parameter(torch.arange(rows * 2).view(rows, 2).float().sin())
        self.register_buffer("cache", torch.arange(rows).float().cos())
