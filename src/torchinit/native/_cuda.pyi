"""CUDA fills. Arguments are not checked against the memory: call torchinit instead."""

from collections.abc import Sequence

from torchinit.native._native import Box, Draw

def architectures() -> str:
    """The architectures compiled for."""

def why_no_kernels() -> str:
    """Why no kernel can run on the current device; empty if they can."""

def fill_list(
    draws: Sequence[Draw],
    dtypes: Sequence[int],
    keys: Sequence[int],
    addresses: Sequence[int],
    boxes: Sequence[Box],
    stream: int,
    /,
) -> None:
    """Queues fills, given by columns, on a stream of the current device; overlaps in order."""

def is_host_backed(address: int, /) -> bool:
    """Whether memory of the device is the host's: managed, or pinned and mapped."""

def orthogonal_memory(
    dtype: int,
    keys: Sequence[int],
    addresses: Sequence[int],
    sizes: Sequence[int],
    strides: Sequence[int],
    global_shape: Sequence[int],
    offset: Sequence[int],
    gain: float,
    /,
) -> int:
    """Bytes of device memory that ``fill_orthogonal`` takes besides."""

def fill_orthogonal(
    dtype: int,
    keys: Sequence[int],
    addresses: Sequence[int],
    sizes: Sequence[int],
    strides: Sequence[int],
    global_shape: Sequence[int],
    offset: Sequence[int],
    gain: float,
    memory: int,
    stream: int,
    /,
) -> None:
    """Queues orthogonal matrices, as the CPU module fills them, on a stream."""

def fill_quantised(
    draw: Draw | None,
    dtype: int,
    key: int,
    values: int,
    block_format: Sequence[int],
    largest: float,
    matrix: Sequence[int],
    box: Sequence[int],
    payload: int,
    scales: int,
    stream: int,
    /,
) -> None:
    """Queues low-precision weights, as the CPU module fills them, on a stream."""

def largest_magnitude(
    draw: Draw, dtype: int, key: int, count: int, address: int, stream: int, /
) -> None:
    """Queues the search for the largest magnitude of values, logical indices from 0.

    Raises the float32 at the address, which is not negative, to it.
    """
