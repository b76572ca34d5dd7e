"""Small models under FSDP2, HSDP and tensor parallelism: the plain model's values, gathered."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist
from layouts import mesh_of
from torch import nn
from worlds import in_worlds, of_eight

import torchinit
from fills import bits
from torchinit.fill.door import fill
from torchinit.schemes.distributions import normal_draw, truncated_draw, uniform_draw
from torchinit.streams.named_keys import keys_of_names

FILLS = [normal_draw(0.0, 0.02), truncated_draw(0.0, 1.0, -2.0, 2.0), uniform_draw(-0.3, 0.3)]


class Block(nn.Module):
    """Sizes that no number of ranks divides, or nearly none."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x):
        return x + self.down(self.up(self.norm(x)).relu())


class Model(nn.Module):
    def __init__(self, vocabulary: int = 37, width: int = 24, hidden: int = 50) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(Block(width, hidden) for _ in range(2))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens):
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def fill_by_names(model, dtype=None):
    """Fills each parameter by the key of its name."""
    key_of = keys_of_names(9)
    for number, (name, parameter) in enumerate(model.named_parameters()):
        assert not parameter.is_meta
        assert dtype is None or parameter.dtype == dtype
        fill(FILLS[number % len(FILLS)], parameter, key_of(name))


def fill_by_generator(model):
    """Fills by functions, the keys drawn in order."""
    generator = torch.Generator().manual_seed(3)
    for number, parameter in enumerate(model.parameters()):
        if parameter.dim() == 2 and number % 2:
            torchinit.kaiming_uniform_(parameter, generator=generator)
        else:
            torchinit.trunc_normal_(parameter, std=0.02, generator=generator)


def fill_in_a_batch(model):
    with torchinit.batch():
        fill_by_generator(model)


def assert_equals_plain(model, plain):
    """Every parameter gathered; every rank gathers all of them in the same order."""
    wanted = dict(plain.named_parameters())
    found = dict(model.named_parameters())
    assert list(found) == list(wanted)
    for name, parameter in found.items():
        whole = parameter.detach()
        if isinstance(whole, _dtensor()):
            if whole.device_mesh.device_type != whole.to_local().device.type:
                raise AssertionError(name)
            whole = whole.full_tensor()
        assert whole.dtype == wanted[name].dtype, name
        assert torch.equal(bits(whole), bits(wanted[name].detach())), name


def _dtensor():
    from torch.distributed.tensor import DTensor

    return DTensor


class Way(NamedTuple):
    """How a model is spread.

    Attributes:
        mesh: its shape, by size of the world.
        spread: does it, to a model on meta.
        sizes: of the model.
    """

    mesh: dict[int, tuple[int, ...]]
    spread: Callable
    sizes: tuple[int, int, int] = (37, 24, 50)


def shard(model, mesh, **options):
    from torch.distributed.fsdp import fully_shard

    for block in model.blocks:
        fully_shard(block, mesh=mesh, **options)
    fully_shard(model, mesh=mesh, **options)


def shard_columns(model, mesh):
    """``shard_placement_fn``: matrices whose columns can be cut evenly, by columns."""
    from torch.distributed.tensor import Shard

    def placement(parameter):
        even = parameter.dim() == 2 and parameter.shape[1] % mesh.size() == 0
        return Shard(1) if even else Shard(0)

    shard(model, mesh, shard_placement_fn=placement)


def offload(model, mesh):
    from torch.distributed.fsdp import CPUOffloadPolicy

    shard(model, mesh, offload_policy=CPUOffloadPolicy(pin_memory=False))


def mix_precision(model, mesh):
    from torch.distributed.fsdp import MixedPrecisionPolicy

    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    shard(model, mesh, mp_policy=policy)


def keep_unsharded(model, mesh):
    shard(model, mesh, reshard_after_forward=False)


def tensor_parallel(model, mesh, *, sequence=False, columns_of_embedding=False):
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        SequenceParallel,
        parallelize_module,
    )

    embedding = ColwiseParallel if columns_of_embedding else RowwiseParallel
    plan = {
        "embedding": embedding(
            input_layouts=Replicate(), output_layouts=Shard(1) if sequence else Replicate()
        ),
        "head": ColwiseParallel(
            input_layouts=Shard(1) if sequence else Replicate(), output_layouts=Replicate()
        ),
    }
    if sequence:
        plan["norm"] = SequenceParallel()
    parallelize_module(model, mesh, plan)
    for block in model.blocks:
        plan = {
            "up": ColwiseParallel(input_layouts=Shard(1) if sequence else Replicate()),
            "down": RowwiseParallel(output_layouts=Shard(1) if sequence else Replicate()),
        }
        if sequence:
            plan["norm"] = SequenceParallel()
        parallelize_module(block, mesh, plan)


def both(model, mesh):
    """Tensor parallelism over the last dimension of a mesh, FSDP or HSDP over the others."""
    tensor_parallel(model, mesh["abc"[mesh.ndim - 1]], sequence=True)
    shard(model, mesh["a"] if mesh.ndim == 2 else mesh["a", "b"])


LINE = {1: (1,), 2: (2,), 3: (3,), 4: (4,), 8: (8,)}
WAYS = {
    "fsdp": Way(LINE, shard),
    "fsdp-even": Way(LINE, shard, (48, 24, 96)),
    "fsdp-fewer-rows-than-ranks": Way(LINE, shard, (3, 5, 2)),
    "fsdp-columns": Way(LINE, shard_columns),
    "fsdp-offload": Way(LINE, offload),
    "fsdp-mixed-precision": Way(LINE, mix_precision),
    "fsdp-not-resharded": Way({2: (2,)}, keep_unsharded),
    "hsdp": Way({2: (2, 1), 4: (2, 2), 8: (2, 4)}, shard),
    "tp": Way(LINE, tensor_parallel),
    "tp-columns-of-embedding": Way(
        LINE, functools.partial(tensor_parallel, columns_of_embedding=True)
    ),
    "tp-sequence": Way(LINE, functools.partial(tensor_parallel, sequence=True)),
    "fsdp-tp": Way({2: (1, 2), 4: (2, 2), 8: (4, 2)}, both),
    "fsdp-tp-wide": Way({8: (2, 4)}, both),
    "fsdp-tp-even": Way({4: (2, 2), 8: (4, 2)}, both, (48, 24, 96)),
    "fsdp-tp-fewer-rows-than-ranks": Way({4: (2, 2), 8: (4, 2)}, both, (9, 3, 5)),
    "hsdp-tp": Way({8: (2, 2, 2)}, both),
}


def model_for(way, mesh, dtype=torch.float32):
    """A model on meta, spread, with memory that nothing has filled."""
    with torch.device("meta"):
        model = Model(*way.sizes).to(dtype)
    way.spread(model, mesh)
    model.to_empty(device="cpu")
    return model


def plain_for(way, filler, dtype=torch.float32):
    plain = Model(*way.sizes).to(dtype)
    filler(plain)
    return plain


# What takes eight ranks, or has more of them than rows.
EIGHT = ("hsdp-tp", "fsdp-columns", "fsdp-tp-fewer-rows-than-ranks")


@in_worlds(
    *(1, 2, 3, 4, 8),
    each=WAYS,
    where=lambda size, way: size in way.mesh,
    long=lambda size, name: size == 8 and name not in EIGHT,
)
def test_ways(way):
    mesh = mesh_of(*way.mesh[dist.get_world_size()])
    for filler in (fill_by_names, fill_by_generator, fill_in_a_batch):
        model = model_for(way, mesh)
        version = model.head.weight._version
        state = torch.get_rng_state()
        filler(model)
        assert model.head.weight._version > version
        assert torch.equal(torch.get_rng_state(), state)
        assert_equals_plain(model, plain_for(way, filler))


@in_worlds(2, 4, 8, long=of_eight)
def test_bfloat16_models():
    size = dist.get_world_size()
    for name in ("fsdp", "tp", "fsdp-tp"):
        way = WAYS[name]
        model = model_for(way, mesh_of(*way.mesh[size]), torch.bfloat16)
        fill_by_names(model, torch.bfloat16)
        assert_equals_plain(model, plain_for(way, fill_by_names, torch.bfloat16))


@in_worlds(3, 8)
def test_padding_is_let_be():
    """FSDP pads shards to one size: what follows them in the storage is nobody's."""
    way = WAYS["fsdp"]
    model = model_for(way, mesh_of(dist.get_world_size()))
    padded = 0
    for parameter in model.parameters():
        local = parameter.to_local()
        storage = torch.empty(0).set_(local.untyped_storage())
        storage.fill_(float("nan"))
    fill_by_names(model)
    for parameter in model.parameters():
        local = parameter.to_local()
        storage = torch.empty(0).set_(local.untyped_storage())
        begin = local.storage_offset()
        assert not local.isnan().any()
        assert storage[:begin].isnan().sum() == begin
        rest = storage[begin + local.numel() :]
        assert rest.isnan().all()
        padded += rest.numel()
    total = torch.tensor(float(padded))
    dist.all_reduce(total)
    assert total > 0


@in_worlds(2, 4, 8, long=of_eight)
def test_models_run_and_train_after_their_fill():
    size = dist.get_world_size()
    tokens = torch.arange(32).view(2, 16) % 36
    for name in ("fsdp", "tp", "fsdp-tp", "hsdp"):
        way = WAYS[name]._replace(sizes=(48, 24, 96))  # torch runs tensor parallelism if even
        model = model_for(way, mesh_of(*way.mesh[size]))
        fill_by_names(model)
        plain = plain_for(way, fill_by_names)
        for each in (model, plain):
            each(tokens).square().mean().backward()
        gathered = [
            parameter.grad.full_tensor()
            if isinstance(parameter.grad, _dtensor())
            else parameter.grad
            for parameter in model.parameters()
        ]
        for got, parameter in zip(gathered, plain.parameters(), strict=True):
            torch.testing.assert_close(got, parameter.grad, rtol=1e-3, atol=1e-5)


@in_worlds(2)
def test_fills_on_meta_change_nothing_and_draw_no_key():
    with torch.device("meta"):
        model = Model()
    shard(model, mesh_of(2))
    state = torch.get_rng_state()
    for parameter in model.parameters():
        assert parameter.is_meta
        for name in ("uniform_", "normal_", "trunc_normal_", "ones_", "zeros_"):
            assert getattr(torchinit, name)(parameter) is parameter
        if parameter.dim() == 2:
            torchinit.eye_(parameter)
            torchinit.sparse_(parameter, 0.1)
            torchinit.init_(parameter, None, "kaiming_normal")
        assert parameter.is_meta
    with torchinit.batch():
        for parameter in model.parameters():
            torchinit.normal_(parameter)
    assert torch.equal(torch.get_rng_state(), state)
