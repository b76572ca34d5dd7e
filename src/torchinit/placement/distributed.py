"""DTensors, and all else of ``torch.distributed`` that is used: the only file that knows it.

Its modules are never imported, only looked up in ``sys.modules``: a program that has not imported
them has no DTensors, and the import would take 0.4 s.
"""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchinit.errors import ArgumentError
from torchinit.placement.box import boxes_of_range
from torchinit.placement.mesh import (
    Cut,
    Interval,
    ShardPiece,
    intervals_of,
    local_shape_of,
    pieces_in,
)

# Where FullyShardedDataParallel and ``fully_shard`` are.
FSDP = "torch.distributed.fsdp"


class Sharded(NamedTuple):
    """This rank's part of a DTensor.

    Attributes:
        local: its local tensor, which is empty on ranks outside the mesh.
        global_shape: of the DTensor.
        pieces: which boxes of the DTensor the local tensor holds, and where.
    """

    local: Tensor
    global_shape: tuple[int, ...]
    pieces: Sequence[ShardPiece]


def _constant(function: Callable[..., Any]) -> Callable[..., Any]:
    """Has torch.compile call a function when tracing, and take its result as a constant.

    As ``torch.compiler.assume_constant_result`` does, which would import all of the compiler.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@_constant
def _dtensor_type() -> Any:
    return getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", ())


def is_dtensor(tensor: Any) -> bool:
    """Whether a tensor is a DTensor."""
    return isinstance(tensor, _dtensor_type())


def local_of(tensor: Any) -> Tensor:
    """The local tensor of a DTensor, in the same memory."""
    if not torch.compiler.is_compiling() and hasattr(tensor, "_local_tensor"):
        return tensor._local_tensor  # type: ignore[no-any-return]  # to_local takes ten times longer
    with torch.no_grad():
        return tensor.to_local()  # type: ignore[no-any-return]


def local_memory(tensor: Tensor) -> Tensor:
    """The local tensor of a DTensor; any other tensor itself."""
    return local_of(tensor) if is_dtensor(tensor) else tensor


def read_sharded(tensor: Any) -> Sharded:
    """This rank's part of a DTensor.

    Raises:
        ArgumentError: for a placement whose values are sums over ranks, or that is unknown; for a
            local tensor whose shape does not fit the placements.
    """
    local = local_of(tensor)
    # torch.compile specialises on the shape.
    shape = tuple(operator.index(size) for size in tensor.shape)
    pieces = _checked_pieces(
        shape,
        tuple(operator.index(size) for size in local.shape),
        tensor.device_mesh,
        tuple(tensor.placements),
        _order_of(tensor),
    )
    return Sharded(local, shape, pieces)


def shards_of_range(memory: Tensor, shape: tuple[int, ...], first: int) -> Iterator[Sharded]:
    """A range of a flattened tensor as shards, one for each box that it consists of.

    Args:
        memory: flat, the values of the range.
        shape: of the whole tensor.
        first: the flat index of the range's first value.
    """
    done = 0
    for offset, size in boxes_of_range(shape, first, memory.numel()):
        count = math.prod(size)
        local = memory[done : done + count].view(size)
        yield Sharded(local, shape, [ShardPiece((0,) * len(size), offset, size)])
        done += count


def _order_of(tensor: Any) -> Any:
    """The order in which mesh dimensions cut, if it is not that of the placements; else None."""
    if torch.compiler.is_compiling():
        return None
    for entry in getattr(tensor._spec, "shard_order", None) or ():
        if list(entry.mesh_dims) != sorted(entry.mesh_dims):
            return tuple(entry.mesh_dims)
    return None


@_constant
def _checked_pieces(
    shape: tuple[int, ...], local_shape: tuple[int, ...], mesh: Any, placements: Any, order: Any
) -> list[ShardPiece]:
    mesh_shape = tuple(mesh.shape)
    try:
        if order is not None:
            raise ArgumentError(
                f"is cut by the mesh's dimensions in the order {order}, which its placements do "
                "not tell: redistribute it to placements in the order of the mesh, and fill that"
            )
        cuts = [
            _cut_of(placement, size, number, len(shape))
            for number, (placement, size) in enumerate(zip(placements, mesh_shape, strict=True))
        ]
        coordinate = mesh.get_coordinate()
        if coordinate is None:  # this process is not in the mesh
            expected: tuple[int, ...] = (0,)
            held: list[list[Interval]] = [[]]
        else:
            held = intervals_of(shape, mesh_shape, coordinate, cuts)
            expected = local_shape_of(held)
        if local_shape != expected and not (0 in local_shape and 0 in expected):
            raise ArgumentError(
                f"has a local tensor of shape {local_shape} at coordinate {coordinate} of a mesh "
                f"of shape {mesh_shape}, which should be {expected}: make it by "
                "distribute_tensor, or by from_local with the global shape"
            )
    except ArgumentError as error:
        said = f"a DTensor of shape {shape} and placements {placements}"
        raise ArgumentError(f"{said} {error}") from None
    return pieces_in(held)


def _cut_of(placement: Any, size: int, number: int, rank: int) -> Cut | None:
    """How a placement cuts a tensor of `rank` dimensions."""
    name = type(placement).__name__
    if name == "Replicate":
        return None
    if name in ("Shard", "_StridedShard"):
        dim = placement.dim + rank if placement.dim < 0 else placement.dim
        return Cut(dim, int(getattr(placement, "split_factor", 1)))
    where = f"on dimension {number} of the mesh, of size {size}"
    if isinstance(placement, sys.modules["torch.distributed.tensor.placement_types"].Partial):
        if size == 1:
            return None
        raise ArgumentError(
            f"is partial {where}: its values are sums over ranks. Redistribute it to Replicate() "
            "or Shard(dim), and fill that"
        )
    raise ArgumentError(
        f"has a placement {where} that is not known: redistribute it to Replicate() or Shard(dim), "
        "and fill that; or fill its local tensor by torchinit.init_shard_"
    )


def empty_sharded(like: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """An uninitialised DTensor with the shape and placements of another."""
    local = torch.empty(local_of(like).shape, dtype=dtype, device=device)
    with torch.no_grad():
        return _dtensor_type().from_local(
            local,
            like.device_mesh,
            like.placements,
            run_check=False,
            shape=like.shape,
            stride=like.stride(),
        )


def _device_of_mesh(tensor: Any) -> torch.device:
    """This rank's device in the mesh of a DTensor."""
    kind = tensor.device_mesh.device_type
    if kind == "cuda":
        return torch.device(kind, torch.cuda.current_device())
    return torch.device(kind)


def reshard_all(model: torch.nn.Module) -> None:
    """Has every ``fully_shard`` module of a model hold its shards, not the gathered parameters.

    After a forward the root still holds gathered copies, and what is written to them is lost.
    """
    kind = getattr(sys.modules.get(FSDP), "FSDPModule", None)
    if kind is not None:
        for module in model.modules():
            if isinstance(module, kind):
                module.reshard()


class Survey(NamedTuple):
    """Where the elements of some tensors are on this rank.

    Attributes:
        memories: the local tensor of each DTensor; any other tensor itself.
        devices: by id of each DTensor: this rank's device in its mesh.
        may_be_flat: whether some may be flat pieces of FullyShardedDataParallel.
    """

    memories: Sequence[Tensor]
    devices: Mapping[int, torch.device]
    may_be_flat: bool


def survey(tensors: Sequence[Tensor]) -> Survey:
    """Finds out where the elements of tensors are on this rank."""
    kind = _dtensor_type()
    sharded = [one for one in tensors if isinstance(one, kind)] if kind != () else ()
    if not sharded:
        return Survey(tensors, {}, FSDP in sys.modules)
    devices = {id(tensor): _device_of_mesh(tensor) for tensor in sharded}
    return Survey([local_memory(tensor) for tensor in tensors], devices, FSDP in sys.modules)


def check_placement(tensor: Tensor) -> None:
    """Raises ArgumentError for a tensor whose place in a logical tensor is not supported."""
    check_no_flat_piece(tensor)
    if is_dtensor(tensor):
        read_sharded(tensor)


def rank_of_world() -> int | None:
    """This process's rank; None without a process group."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return None
    return int(distributed.get_rank())


def default_group() -> Any:
    """The group of all ranks; None without one."""
    return None if rank_of_world() is None else sys.modules["torch.distributed"].group.WORLD


def rank_and_size(group: Any) -> tuple[int, int]:
    """This process's rank in a process group, and how many ranks it has.

    Raises:
        ArgumentError: if this process is not in it.
    """
    distributed = sys.modules["torch.distributed"]
    rank = distributed.get_rank(group)
    if rank < 0:
        raise ArgumentError("group does not have this process: call it on the ranks of the group")
    return rank, distributed.get_world_size(group)


def sum_over_ranks(numbers: Sequence[int], group: Any) -> list[int]:
    """The sums of what the ranks of a process group pass in; all of them must call this.

    Args:
        numbers: equally many on every rank; their sums must fit into an int64.
        group: the process group.
    """
    distributed = sys.modules["torch.distributed"]
    kinds = [pair.partition(":")[0] for pair in distributed.get_backend_config(group).split(",")]
    device = "cpu" if "cpu" in kinds else kinds[0]  # nccl sums on GPUs alone
    summed = torch.tensor(numbers, dtype=torch.int64, device=device)
    distributed.all_reduce(summed, group=group)
    return summed.tolist()


def check_no_flat_piece(tensor: Tensor) -> None:
    """Raises ArgumentError for a flat piece of FullyShardedDataParallel (FSDP1)."""
    if tensor.dim() == 1 and getattr(tensor, "_fsdp_flattened", False):
        raise ArgumentError(
            f"a tensor of shape {tuple(tensor.shape)} is a flat piece of "
            "FullyShardedDataParallel, which does not tell its position: fill the model before "
            "it is wrapped, or by param_init_fn; or use fully_shard; or give its place to "
            "torchinit.init_shard_(…, offset=first_index)"
        )


def gather_over(mesh: Any, value: Any) -> dict[int, Any]:
    """The values that the processes of a mesh pass in, by global rank; all of them must call this.

    A process outside the mesh gets an empty dictionary and does not communicate.
    """
    if mesh.get_coordinate() is None:
        return {}
    distributed = sys.modules["torch.distributed"]
    found = {distributed.get_rank(): value}
    for group in mesh.get_all_groups():
        each: list[Any] = [None] * distributed.get_world_size(group)
        distributed.all_gather_object(each, found, group=group)
        for some in each:
            found.update(some)
    return dict(sorted(found.items()))
