"""Memory for pending tensors, which is watched for accesses that torch's dispatcher does not show.

A tensor of 128 KiB or more gets its own mapping, which has no pages until it is read or written, as
the page table shows. (Huge pages are off: one that covers part of a neighbour would make the
neighbour's pages present.) A smaller tensor is filled with a mark, a fixed byte pattern. Systems
other than Linux use only marks.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import sys
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

# Tensors of at least this many bytes get their own mappings.
LARGE = 1 << 17

_PAGE = mmap.PAGESIZE
_NORESERVE, _NO_HUGE_PAGES = 0x4000, 15
_ENTRY = 8  # bytes of the page table for each page
_PIECE = 1 << 20  # bytes of the page table read at once
_MARK = 0xFF  # in every byte: NaN in every floating-point format
_MARKS = ctypes.create_string_buffer(b"\xff" * LARGE, LARGE)
_libc = ctypes.CDLL(None, use_errno=True)
_libc.memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_is_linux = sys.platform == "linux"
if _is_linux:
    _libc.mmap.restype = ctypes.c_void_p
    _libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
    _libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    _libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class Memory:
    """Makes tensors whose memory can be watched.

    Attributes:
        has_pages: whether the page table is readable and new memory is absent from it.
    """

    def __init__(self) -> None:
        self._table = -1
        self.has_pages = False
        if not _is_linux:
            return
        try:
            self._table = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return
        page = _map(_PAGE)  # under mlockall it is present at once
        self.has_pages = page is not None and not self.is_present(ctypes.addressof(page), _PAGE)

    def __del__(self) -> None:
        if self._table >= 0:
            os.close(self._table)

    def empty(
        self, size: Sequence[int], stride: Sequence[int] | None, dtype: torch.dtype
    ) -> Tensor:
        """A new tensor on the CPU, in an untouched mapping if it is large.

        Args:
            size, stride: of the tensor; without strides it is contiguous.
            dtype: of the tensor.
        """
        if stride is None:
            nbytes = math.prod(size) * dtype.itemsize
        else:
            last = sum((length - 1) * step for length, step in zip(size, stride, strict=True)) + 1
            nbytes = 0 if 0 in size else last * dtype.itemsize
        pages = _map(nbytes) if self.has_pages and nbytes >= LARGE else None
        if pages is None:
            if stride is None:
                return torch.empty(size, dtype=dtype, device="cpu")
            return torch.empty_strided(size, stride, dtype=dtype, device="cpu")
        storage = torch.frombuffer(pages, dtype=torch.uint8, count=nbytes).untyped_storage()
        made = torch.empty(0, dtype=dtype, device="cpu")
        return made.set_(storage, 0, size, () if stride is None else stride)

    def is_present(self, address: int, nbytes: int) -> bool:
        """Whether any page of a mapping has been read or written."""
        at = address // _PAGE * _ENTRY
        end = -(-(address + nbytes) // _PAGE) * _ENTRY
        while at < end:
            data = os.pread(self._table, min(_PIECE, end - at), at)
            if not data or data[_ENTRY - 1 :: _ENTRY].strip(b"\0"):
                return bool(data)
            at += len(data)
        return False


def mark(address: int, nbytes: int) -> None:
    """Fills memory with the mark."""
    ctypes.memset(address, _MARK, nbytes)


def is_marked(address: int, nbytes: int) -> bool:
    """Whether memory still contains only the mark."""
    return all(
        _libc.memcmp(address + begin, _MARKS, min(LARGE, nbytes - begin)) == 0
        for begin in range(0, nbytes, LARGE)
    )


def _map(nbytes: int) -> ctypes.Array[ctypes.c_char] | None:
    """A new mapping, freed with the returned array; None if the system refuses."""
    size = -(-nbytes // _PAGE) * _PAGE
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE
    address = _libc.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
    if address is None or address == ctypes.c_void_p(-1).value:
        return None
    _libc.madvise(address, size, _NO_HUGE_PAGES)
    pages = (ctypes.c_char * size).from_address(address)
    weakref.finalize(pages, _libc.munmap, address, size).atexit = False
    return pages
