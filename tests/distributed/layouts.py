"""DTensors for tests: layouts by names, as few words as may be, and what each must hold.

A layout is a mesh and placements: ``"2x4 S0 R"`` shards dimension 0 over the first dimension of a
mesh of shape (2, 4). ``Z0:4`` is a strided shard of dimension 0 with split factor 4.
"""

from __future__ import annotations

import functools
import math

import torch

import torchinit
from fills import bits

GUARD = 77.0  # what no fill makes; every dtype has a value near it


def placement(name):
    from torch.distributed.tensor import Partial, Replicate, Shard
    from torch.distributed.tensor.placement_types import _StridedShard

    kind, numbers = name[0], [int(number) for number in name[1:].split(":") if number]
    if kind == "Z":
        return _StridedShard(numbers[0], split_factor=numbers[1])
    return {"R": Replicate, "S": Shard, "P": Partial}[kind](*numbers)


@functools.cache
def mesh_of(*shape, first=0):
    """A mesh of the ranks from the first on; those outside it have to call this too."""
    from torch.distributed.device_mesh import DeviceMesh

    ranks = torch.arange(first, first + math.prod(shape)).reshape(shape)
    return DeviceMesh("cpu", ranks, mesh_dim_names=tuple("abc"[: len(shape)]))


def read_layout(layout):
    """The mesh and the placements of a layout."""
    mesh, *placements = layout.split()
    return mesh_of(*map(int, mesh.split("x"))), [placement(name) for name in placements]


def cut(whole, layout):
    """A DTensor of a tensor that every rank has, cut by torch; float8 too, which it cannot."""
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = read_layout(layout)
    made = distribute_tensor(bits(whole.detach()), mesh, placements, src_data_rank=None)
    return _of_local(made.to_local().clone().view(whole.dtype), whole.shape, layout)


def _of_local(local, shape, layout):
    from torch.distributed.tensor import DTensor

    mesh, placements = read_layout(layout)
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(
        local, mesh, placements, run_check=False, shape=torch.Size(shape), stride=stride
    )


def guarded(shape, dtype, layout):
    """A DTensor that nothing has filled."""
    return cut(torch.full(shape, GUARD, dtype=torch.float64).to(dtype), layout)


def assert_holds(tensor, whole, layout):
    """Checks the bits of the local tensor against what torch cuts of the whole."""
    _assert_local(tensor, cut(whole, layout).to_local(), layout)


def _assert_local(tensor, expected, layout):
    local = tensor.detach().to_local()
    assert local.shape == expected.shape, (local.shape, expected.shape, layout)
    assert local.dtype == expected.dtype
    if not torch.equal(bits(local), bits(expected)):
        raise AssertionError(f"{layout} {tuple(tensor.shape)}\n{local}\nand not\n{expected}")


def fill_both(fill, shape, dtype, layouts, seed=5):
    """Fills a plain tensor and DTensors of one seed, and checks that they part in nothing.

    Returns:
        The DTensors, and the plain tensor.
    """
    torch.manual_seed(seed)
    plain = fill(torch.full(shape, GUARD, dtype=torch.float64).to(dtype))
    state = torch.get_rng_state()
    tensors = []
    for layout in layouts:
        expected = cut(plain, layout).to_local()
        tensor = _of_local(torch.full_like(expected.float(), GUARD).to(dtype), shape, layout)
        torch.manual_seed(seed)
        before = tensor._version
        assert fill(tensor) is tensor
        assert torch.equal(torch.get_rng_state(), state), "the generators part"
        assert tensor._version > before
        _assert_local(tensor, expected, layout)
        tensors.append(tensor)
    return tensors, plain


def assert_gathers(tensor, plain):
    """Checks the tensor that all ranks together hold."""
    whole = tensor.detach().full_tensor()
    assert torch.equal(whole, plain), (tensor.placements, whole, plain)


def generator_of(seed):
    return torch.Generator().manual_seed(seed)


# Every function but orthogonal_, by name, for tensors of at least two dimensions; those that take
# any shape; and those of one number of dimensions.
FUNCTIONS = {
    "uniform_": lambda t: torchinit.uniform_(t, -0.5, 2.0),
    "normal_": lambda t: torchinit.normal_(t, 0.5, 2.0),
    "trunc_normal_": lambda t: torchinit.trunc_normal_(t, 0.1, 1.0, -1.5, 2.0),
    "constant_": lambda t: torchinit.constant_(t, 0.3),
    "ones_": torchinit.ones_,
    "zeros_": torchinit.zeros_,
    "xavier_uniform_": lambda t: torchinit.xavier_uniform_(t, 1.5),
    "xavier_normal_": torchinit.xavier_normal_,
    "kaiming_uniform_": lambda t: torchinit.kaiming_uniform_(t, 0.2, "fan_out"),
    "kaiming_normal_": lambda t: torchinit.kaiming_normal_(t, nonlinearity="relu"),
    "eye_": torchinit.eye_,
    "dirac_": torchinit.dirac_,
    "dirac_groups": lambda t: torchinit.dirac_(t, 2),
    "sparse_": lambda t: torchinit.sparse_(t, 0.3),
}
ANY_SHAPE = list(FUNCTIONS)[:6]
WITH_FANS = list(FUNCTIONS)[6:10]
RANDOM = [name for name in (*ANY_SHAPE, *WITH_FANS) if name not in ("constant_", "ones_", "zeros_")]


def fits(name, shape):
    """Whether a function fills tensors of a shape."""
    if name in ANY_SHAPE:
        return True
    if name in WITH_FANS:
        return len(shape) >= 2
    if name.startswith("dirac_"):
        return len(shape) in (3, 4, 5) and not (name == "dirac_groups" and shape[0] % 2)
    return len(shape) == 2 and (name != "sparse_" or 0 not in shape)
