"""Marks: bits that no initialisation stores, by which memory that nobody wrote is known again.

Of floats a mark is a NaN with digits of its own, which also survives copies, moves and arithmetic;
of bools a byte that is neither; of integers 64 bits, the same in all memory at addresses that are a
multiple of 8. An integer of 8 to 32 bits is only a part of them and may hold that by chance, so
there are two kinds of marks: after two runs only memory that nobody wrote has held both.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from torchinit.fill.checks import extent

WORD = 8  # bytes
# The integers of each size: what bits are read as.
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

# One element of each dtype that has values which nobody stores.
_ELEMENTS = {
    torch.float64: 0x7FFA5C3B19D4E6F2,
    torch.float32: 0x7FD1B3A5,
    torch.float16: 0x7F55,
    torch.bfloat16: 0x7FD5,
    torch.float8_e5m2: 0x7D,
    torch.float8_e4m3fn: 0xFF,
    torch.float8_e8m0fnu: 0xFF,
    torch.float8_e4m3fnuz: 0x80,
    torch.float8_e5m2fnuz: 0x80,
    torch.bool: 0x5A,
}
# The bytes in memory of the two marks of integers: positive, and larger than most numbers, in
# every size of integers; no two are equal.
_BYTES = (b"\x7b\x6d\x75\x67\x7e\x61\x79\x6e", b"\x64\x77\x6b\x7c\x62\x73\x69\x7a")

# Of 8-bit floats, from their bits as bytes: whether any is NaN, by one or two reductions; and
# which ones are.
_Test = Callable[[Tensor], Tensor]
_ANY_NAN: dict[torch.dtype, _Test] = {
    torch.float8_e4m3fn: lambda bits: (bits.amax() == 255) | (bits.view(torch.int8).amax() == 127),
    torch.float8_e5m2: lambda bits: (bits.amax() > 252) | (bits.view(torch.int8).amax() > 124),
    torch.float8_e8m0fnu: lambda bits: bits.amax() == 255,
    torch.float8_e4m3fnuz: lambda bits: bits.view(torch.int8).amin() == -128,
    torch.float8_e5m2fnuz: lambda bits: bits.view(torch.int8).amin() == -128,
}
_NANS: dict[torch.dtype, _Test] = {
    torch.float8_e4m3fn: lambda bits: (bits & 127) == 127,
    torch.float8_e5m2: lambda bits: (bits & 127) > 124,
    torch.float8_e8m0fnu: lambda bits: bits == 255,
    torch.float8_e4m3fnuz: lambda bits: bits == 128,
    torch.float8_e5m2fnuz: lambda bits: bits == 128,
}


def is_certain(dtype: torch.dtype) -> bool:
    """Whether one element of a dtype that holds its mark was not written."""
    return dtype in _ELEMENTS or dtype.itemsize == WORD


@functools.cache
def word_of(dtype: torch.dtype, again: bool) -> int:
    """Eight bytes of marks of a dtype, as an integer.

    Args:
        dtype: of real numbers.
        again: whether they are those of a second run.
    """
    element = _ELEMENTS.get(dtype)
    data = _BYTES[again] if element is None else element.to_bytes(dtype.itemsize, sys.byteorder)
    return int.from_bytes(data * (WORD // len(data)), sys.byteorder, signed=True)


def elements_of(dtype: torch.dtype, first: int, count: int, again: bool) -> Tensor:
    """Marks as integers of the dtype's size, on the CPU.

    Args:
        dtype: of real numbers.
        first: the index of the first one in its storage.
        count: how many.
        again: as for ``word_of``.
    """
    word = torch.tensor([word_of(dtype, again)], dtype=torch.int64, device="cpu")
    elements = word.view(BITS[dtype.itemsize])
    begin = first % elements.numel()
    return elements.repeat((begin + count) // elements.numel() + 1)[begin : begin + count]


def is_dense(tensor: Tensor) -> bool:
    """Whether a tensor's elements are all that lies between its first and last one in memory."""
    if tensor.is_contiguous():
        return True
    if extent(tensor) != tensor.nbytes:
        return False
    step = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride != step:
            return False
        step *= size
    return True


def once(tensor: Tensor) -> Tensor:
    """A tensor without repetitions: of each expanded dimension, one index."""
    if 0 in tensor.stride():
        for dim, (size, step) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
            if size > 1 and step == 0:
                tensor = tensor.narrow(dim, 0, 1)
    return tensor


def memory_of(tensor: Tensor, dtype: torch.dtype, begin: int, count: int) -> Tensor:
    """Memory of a tensor's storage as one of another dtype, which no gradient or version sees.

    Args:
        tensor: whose storage it is.
        dtype: to read and write it as.
        begin: its first byte, a multiple of the dtype's size.
        count: of elements.
    """
    memory = torch.empty(0, dtype=dtype, device=tensor.device)
    memory.set_(tensor.untyped_storage(), begin // dtype.itemsize, (count,), (1,))
    return memory


def write_marks(tensor: Tensor, again: bool = False) -> None:
    """Fills a tensor of real numbers with marks: its elements, and no byte between them."""
    tensor = once(tensor)
    if not is_dense(tensor):
        _write_scattered(tensor, again)
        return
    write_bytes(tensor, int(tensor.storage_offset()) * tensor.itemsize, tensor.nbytes, again)


def write_bytes(tensor: Tensor, begin: int, nbytes: int, again: bool = False) -> None:
    """Fills bytes of a tensor's storage with marks of its dtype."""
    before = min(-begin % WORD, nbytes)  # the first multiple of 8
    count, after = divmod(nbytes - before, WORD)
    if count:
        memory = memory_of(tensor, torch.int64, begin + before, count)
        memory.fill_(word_of(tensor.dtype, again))
    if before or after:
        _write_elements(tensor, begin, before, again)
        _write_elements(tensor, begin + nbytes - after, after, again)


def _write_elements(tensor: Tensor, begin: int, nbytes: int, again: bool) -> None:
    """Fills less than eight bytes."""
    size = tensor.itemsize
    marks = elements_of(tensor.dtype, begin // size, nbytes // size, again)
    memory_of(tensor, marks.dtype, begin, nbytes // size).copy_(marks)


def _write_scattered(tensor: Tensor, again: bool) -> None:
    first, count = int(tensor.storage_offset()), extent(tensor) // tensor.itemsize
    memory = memory_of(tensor, BITS[tensor.itemsize], first * tensor.itemsize, count)
    memory.as_strided(tensor.shape, tensor.stride()).copy_(expected_of(tensor, again))


def expected_of(tensor: Tensor, again: bool) -> Tensor:
    """What a tensor of any strides holds as integers if all of it is marks."""
    first = int(tensor.storage_offset())
    if is_certain(tensor.dtype):  # the mark is the same everywhere
        one = elements_of(tensor.dtype, first, 1, again).to(tensor.device)
        return one.expand(tensor.shape)
    marks = elements_of(tensor.dtype, first, extent(tensor) // tensor.itemsize, again)
    return marks.to(tensor.device).as_strided(tensor.shape, tensor.stride())


def is_clear(tensor: Tensor) -> bool:
    """Whether one or two reductions show that a tensor of real numbers has no mark and no NaN."""
    dtype = tensor.dtype
    if dtype.is_floating_point and dtype.itemsize > 1:
        total = tensor.sum().item()
        return bool(total == total)
    bits = tensor.view(torch.int8 if dtype.itemsize == 1 else BITS[dtype.itemsize])
    if dtype in _ANY_NAN:
        return not _ANY_NAN[dtype](bits.view(torch.uint8))
    return bool(bits.amax() < _least(dtype))


@functools.cache
def _least(dtype: torch.dtype) -> int:
    """The smallest mark of a dtype that has no NaN."""
    size = dtype.itemsize
    return _ELEMENTS.get(dtype) or min(
        int.from_bytes(data[i : i + size], sys.byteorder)
        for data in _BYTES
        for i in range(0, WORD, size)
    )


def nans_of(bits: Tensor, dtype: torch.dtype) -> Tensor | None:
    """Which elements are NaN, from their bits; None for dtypes without NaN."""
    if not dtype.is_floating_point or (dtype.itemsize == 1 and dtype not in _NANS):
        return None
    return _NANS[dtype](bits) if dtype in _NANS else bits.view(dtype).isnan()
