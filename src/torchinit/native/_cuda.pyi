"""CUDA fills. Arguments are not checked against the memory: call torchinit instead."""

from collections.abc import Sequence

from torchinit.native._native import Box, Draw

def architectures() -> str:
    """The architectures compiled for."""

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

def fill_reflectors(
    dtype: int,
    keys: int,
    matrices: int,
    first: int,
    count: int,
    length: int,
    vectors: int,
    half_norms: int,
    signs: int,
    stream: int,
    /,
) -> None:
    """Queues a block of Householder vectors on a stream; the keys are read at once."""
