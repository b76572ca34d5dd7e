"""Memory for what is to be filled later: mapped, not there yet, and watched.

A tensor of 128 KiB or more has a mapping of its own, which has no pages before somebody reads or
writes it: the page table tells, also of reads and writes that torch does not show. (No huge pages:
one that reaches into a neighbour would make its pages present too.) A smaller tensor is filled with
marks. Other systems than Linux have the marks alone.
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

# Of so many bytes tensors get mappings of their own.
LARGE = 1 << 17

_PAGE = mmap.PAGESIZE
_NORESERVE, _NO_HUGE_PAGES = 0x4000, 15
_ENTRY = 8  # bytes in the page table for each page
_PIECE = 1 << 20  # bytes of it that are read together
_MARK = 0xFF  # in every byte: no number in any floating-point format
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
    """Makes tensors whose memory is watched, as far as the system can.

    Attributes:
        has_pages: whether the page table can be read, and new memory is not in it.
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
        page = _map(_PAGE)  # present at once under mlockall
        self.has_pages = page is not None and not self.is_present(ctypes.addressof(page), _PAGE)

    def __del__(self) -> None:
        if self._table >= 0:
            os.close(self._table)

    def empty(
        self, size: Sequence[int], stride: Sequence[int] | None, dtype: torch.dtype
    ) -> Tensor:
        """A tensor on the CPU, of dense memory that has not been touched if it is large.

        Args:
            size, stride: of the tensor; without strides its elements lie side by side, in order.
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
        """Whether any page of a mapping of its own has been touched."""
        at = address // _PAGE * _ENTRY
        end = -(-(address + nbytes) // _PAGE) * _ENTRY
        while at < end:
            data = os.pread(self._table, min(_PIECE, end - at), at)
            if not data or data[_ENTRY - 1 :: _ENTRY].strip(b"\0"):
                return bool(data)
            at += len(data)
        return False


def mark(address: int, nbytes: int) -> None:
    """Fills memory with marks."""
    ctypes.memset(address, _MARK, nbytes)


def is_marked(address: int, nbytes: int) -> bool:
    """Whether memory holds nothing but marks."""
    return all(
        _libc.memcmp(address + begin, _MARKS, min(LARGE, nbytes - begin)) == 0
        for begin in range(0, nbytes, LARGE)
    )


def _map(nbytes: int) -> ctypes.Array[ctypes.c_char] | None:
    """New pages, given back with what is returned; None if there are none to be had."""
    size = -(-nbytes // _PAGE) * _PAGE
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE
    address = _libc.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
    if address is None or address == ctypes.c_void_p(-1).value:
        return None
    _libc.madvise(address, size, _NO_HUGE_PAGES)
    pages = (ctypes.c_char * size).from_address(address)
    weakref.finalize(pages, _libc.munmap, address, size).atexit = False
    return pages
