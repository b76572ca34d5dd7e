"""Native fills. Arguments are not checked against the memory: call torchinit instead."""

from collections.abc import Sequence
from typing import ClassVar, TypeAlias

# (distribution, p0, p1, p2, p3)
Draw: TypeAlias = tuple[int, float, float, float, float]
# Contiguous elements from logical index 0 on, or (sizes, strides, global_shape, offset).
Box: TypeAlias = int | tuple[Sequence[int], Sequence[int], Sequence[int], Sequence[int]]

stream_version: int
"""The version of the streams that the module makes."""

class Distribution:
    """Kinds of fill; ``__members__`` has them."""

    __members__: ClassVar[dict[str, Distribution]]
    def __init__(self, value: int) -> None: ...
    def __int__(self) -> int: ...
    def __index__(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def value(self) -> int: ...

class Dtype:
    """Element types; ``__members__`` has them."""

    __members__: ClassVar[dict[str, Dtype]]
    def __init__(self, value: int) -> None: ...
    def __int__(self) -> int: ...
    def __index__(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def value(self) -> int: ...

def fill(
    distribution: int,
    dtype: int,
    p0: float,
    p1: float,
    p2: float,
    p3: float,
    key: int,
    address: int,
    count: int,
    threads: int,
    /,
) -> None:
    """Fills ``count`` contiguous elements, logical indices from 0."""

def quick_fill(draw: Draw, tensor: object, stream: object, /) -> bool:
    """Fills, or gives to the open batch, a whole tensor in plain host memory.

    False, and nothing done, where more has to be asked (csrc/python/quick_fill.h).
    """

def set_up_quick_fill(asks: dict[str, object], /) -> None:
    """Hands over what ``quick_fill`` asks of torch."""

def fill_box(
    distribution: int,
    dtype: int,
    p0: float,
    p1: float,
    p2: float,
    p3: float,
    key: int,
    address: int,
    sizes: Sequence[int],
    strides: Sequence[int],
    global_shape: Sequence[int],
    offset: Sequence[int],
    threads: int,
    /,
) -> None:
    """Fills the box at ``offset`` of a logical tensor of ``global_shape``."""

def fill_list(
    draws: Sequence[Draw],
    dtypes: Sequence[int],
    keys: Sequence[int],
    addresses: Sequence[int],
    boxes: Sequence[Box],
    threads: int,
    /,
) -> None:
    """Fills many boxes, given by columns; those that overlap in memory in order."""

def transform(distribution: int, dtype: int, p0: float, p1: float, p2: float, p3: float, /) -> str:
    """The name of the transform that a fill takes (csrc/job/plan.h)."""

def fill_orthogonal(
    dtype: int,
    keys: Sequence[int],
    addresses: Sequence[int],
    sizes: Sequence[int],
    strides: Sequence[int],
    global_shape: Sequence[int],
    offset: Sequence[int],
    gain: float,
    threads: int,
    /,
) -> None:
    """Fills the box at ``offset`` of orthogonal matrices of ``global_shape``, one for each key."""

def is_writable(address: int, size: int, /) -> bool:
    """False if a page of so many bytes is mapped read-only."""

def is_forked() -> bool:
    """Whether this process was forked from one that had loaded this module: one thread then."""

def philox(counter: Sequence[int], key: int, /) -> list[int]:
    """The four words of any counter, for the published known answers."""

def allow_huge_pages(allowed: bool, /) -> None:
    """Whether large fills ask for huge pages (they do, until told otherwise)."""

def normal_cdf(x: float, /) -> float:
    """The normal CDF that the bounds of fills are prepared with."""

def instruction_set() -> str:
    """The instruction set in use."""

def choose_instruction_set(name: str, /) -> bool:
    """Takes another instruction set; False if there is none of this name."""

def instruction_sets() -> list[str]:
    """The instruction sets that this processor runs, fastest first."""

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
    threads: int,
    /,
) -> None:
    """Fills a box of low-precision weights, and the scales of the blocks that it touches."""

def largest_magnitude(draw: Draw, dtype: int, key: int, count: int, threads: int, /) -> float:
    """The largest magnitude of float32 or bfloat16 values, logical indices from 0."""
