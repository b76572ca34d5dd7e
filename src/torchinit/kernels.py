"""Calls of the native modules: numbers and addresses of tensors in plain memory."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

import torch
from torch import Tensor

from torchinit import native
from torchinit.checks import check_memory, check_target, check_writable

# The numbers of csrc/plan.h; tests/test_native.py holds them against the module's.
WORDS, UNIFORM, NORMAL, TRUNCATED_NORMAL, CONSTANT = range(5)
DTYPES = {
    torch.float64: 0,
    torch.float32: 1,
    torch.float16: 2,
    torch.bfloat16: 3,
    torch.int32: 4,
    torch.int64: 5,
    torch.float8_e4m3fn: 6,
    torch.float8_e5m2: 7,
}

Parameters = tuple[float, float, float, float]
# Distribution, dtype and parameters, in numbers; with key, address and box as csrc/python_jobs.h
# reads them.
Fill = tuple[int, int, float, float, float, float]
_Item = tuple[Fill, int, int, object]

_device, _dtype, _nbytes = attrgetter("device"), attrgetter("dtype"), attrgetter("nbytes")

_increment_version = torch.autograd.graph.increment_version


def make_fill(distribution: int, dtype: torch.dtype, parameters: Parameters) -> Fill:
    """A fill of tensors of a dtype, in numbers."""
    return (distribution, DTYPES[dtype], *parameters)


def fill_directly(tensor: Tensor, key: int, distribution: int, parameters: Parameters) -> None:
    """Does what an operator does on a tensor in plain memory, without torch's dispatcher.

    For parameters that have been checked. A call of the operator costs as much as filling thousands
    of elements, and small tensors are common.
    """
    check_target(tensor)
    if tensor.numel() > 0:
        (fill_cpu if tensor.is_cpu else fill_cuda)(tensor, key, distribution, parameters)
    count_write(tensor)


def count_write(tensor: Tensor) -> None:
    """What autograd wants of an in-place operator that is defined in Python."""
    if not tensor.is_inference():
        _increment_version(tensor)


def fill_cpu(
    tensor: Tensor,
    key: int,
    distribution: int,
    parameters: Parameters,
    shape: Sequence[int] | None = None,
    start: Sequence[int] | None = None,
) -> None:
    """Fills a tensor in host memory; with shape and start, as a box of a larger one (ops.py).

    For tensors and parameters that have been checked.
    """
    module = native.module
    if module is None:
        raise RuntimeError(f"torchinit has no native module: {native.reason}")
    dtype, address, threads = DTYPES[tensor.dtype], tensor.data_ptr(), torch.get_num_threads()
    if shape is None and tensor.is_contiguous():
        module.fill(distribution, dtype, *parameters, key, address, tensor.numel(), threads)
    else:
        sizes = list(tensor.shape)
        box = (sizes, [0] * len(sizes)) if shape is None else (list(shape), list(start or ()))
        where = (address, sizes, tensor.stride(), *box)
        module.fill_box(distribution, dtype, *parameters, key, *where, threads)


def fill_cuda(
    tensor: Tensor,
    key: int,
    distribution: int,
    parameters: Parameters,
    shape: Sequence[int] | None = None,
    start: Sequence[int] | None = None,
) -> None:
    """Queues the fill of a tensor on a device, likewise."""
    fill = make_fill(distribution, tensor.dtype, parameters)
    _queue(tensor.device, [(fill, key, tensor.data_ptr(), _where(tensor, shape, start))], [tensor])


def _where(
    tensor: Tensor, shape: Sequence[int] | None = None, start: Sequence[int] | None = None
) -> object:
    """The box of a fill as csrc/python_jobs.h reads it."""
    if shape is None and tensor.is_contiguous():
        return tensor.numel()
    sizes = list(tensor.shape)
    box = (sizes, [0] * len(sizes)) if shape is None else (list(shape), list(start or ()))
    return (sizes, list(tensor.stride()), *box)


# Managed memory of at least so many bytes is filled by the processor: the device would move all of
# it over, and may not have room.
LARGE = 1 << 26


def _queue(device: torch.device, items: list[_Item], tensors: Sequence[Tensor]) -> None:
    """Queues fills on the device's current stream; those of large host memory are done at once."""
    module = native.cuda
    if module is None:
        raise RuntimeError(f"torchinit has no CUDA module: {native.cuda_reason}")
    with torch.cuda.device(device):
        stream = torch.cuda.current_stream()
        large: list[bool] = []
        # The quick question first: batches are of thousands of small tensors.
        if max(map(_nbytes, tensors)) >= LARGE and not torch.cuda.is_current_stream_capturing():
            large = [
                tensor.nbytes >= LARGE and module.is_host_backed(tensor.data_ptr())
                for tensor in tensors
            ]
        if any(large) and native.module is not None:
            # After what the stream is doing, and in the order of the list.
            for item, on_host in zip(items, large, strict=True):
                if on_host:
                    stream.synchronize()
                    native.module.fill_list([item], torch.get_num_threads())
                else:
                    module.fill_list([item], stream.cuda_stream)
        else:
            module.fill_list(items, stream.cuda_stream)


def check_together(fills: Sequence[Fill], tensors: Sequence[Tensor]) -> bool:
    """Raises before anything is written if ``fill_together`` cannot fill one of the tensors.

    Returns whether all of them are contiguous and none is an inference tensor.
    """
    # Column by column: thousands of small tensors are what this is for.
    plain = all(map(Tensor.is_contiguous, tensors)) and not any(map(Tensor.is_inference, tensors))
    if not plain:
        for tensor in tensors:
            check_writable(tensor)
    dtypes = list(map(DTYPES.get, map(_dtype, tensors)))
    if dtypes != [fill[1] for fill in fills]:
        tensor = next(t for t, d, fill in zip(tensors, dtypes, fills, strict=True) if d != fill[1])
        raise RuntimeError(
            f"a tensor of shape {tuple(tensor.shape)} has become {tensor.dtype} since its fill "
            "was collected: convert it before or after"
        )
    for device in set(map(_device, tensors)):
        if device.type != "cpu" and (device.type != "cuda" or native.cuda is None):
            raise RuntimeError(
                f"a tensor has moved to {device} since its fill was collected: move it before or "
                "after"
            )
    storages = list(map(Tensor.untyped_storage, tensors))
    if not (
        all(map(torch.UntypedStorage.nbytes, storages))
        and all(map(torch.UntypedStorage.resizable, storages))
    ):
        for tensor in tensors:
            check_memory(tensor)
    return plain


def fill_together(
    fills: Sequence[Fill], tensors: Sequence[Tensor], keys: Sequence[int], plain: bool
) -> None:
    """Does what ``fill_directly`` does for each fill, tensor and key, at once.

    For tensors that ``check_together`` has passed, with what it returned. Those that overlap are
    filled in order.
    """
    devices = dict.fromkeys(map(_device, tensors))
    boxes = map(Tensor.numel if plain else _where, tensors)
    items = list(zip(fills, keys, map(Tensor.data_ptr, tensors), boxes, strict=True))
    for device in devices:
        some, there = items, tensors
        if len(devices) > 1:
            places = [i for i, tensor in enumerate(tensors) if tensor.device == device]
            some, there = [items[i] for i in places], [tensors[i] for i in places]
        if device.type == "cuda":
            _queue(device, some, there)
        elif native.module is not None:
            native.module.fill_list(some, torch.get_num_threads())
    _increment_version(
        tensors if plain else [tensor for tensor in tensors if not tensor.is_inference()]
    )
