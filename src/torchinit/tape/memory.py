"""Memory for pending tensors, which is watched for accesses that torch's dispatcher does not show.

A tensor of 128 KiB or more gets its own mapping, and the page table shows whether it has been read
or written: only then has it pages. (Huge pages are off: one that covers part of a neighbour would
make the neighbour's pages present.) A smaller tensor is filled with a mark, a fixed byte pattern.
Systems other than Linux use only marks. Scratch memory for arbitrary code has marks for each
element.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import struct
import sys
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torchinit.errors import ArgumentError
from torchinit.tape.tape import Cell, address_of, is_plain_memory, storage_of, unseen_by_modes

# Tensors of at least this many bytes get their own mappings.
LARGE = 1 << 17

_PAGE = mmap.PAGESIZE
_NORESERVE, _NO_HUGE_PAGES = 0x4000, 15
_ENTRY = 8  # bytes of the page table for each page
_PIECE = 1 << 20  # bytes of the page table read at once
# From linux/fs.h: asks for the pages of a range without reading its table, which is gigabytes for a
# model of terabytes.
_PAGEMAP_SCAN, _SCAN_REQUEST = 0xC0606610, struct.Struct("12Q")
_PRESENT_OR_SWAPPED = 1 << 3 | 1 << 4
_MARK = 0xFF  # in every byte: NaN in every floating-point format
_MARKED = ctypes.create_string_buffer(b"\xff" * LARGE, LARGE)
_CHUNK = 1 << 22  # elements checked together

# Values that no initialisation writes. Smaller integers have no spare value and start as zero.
_UNWRITTEN = {torch.int64: -0x5EED_5EED_5EED_5EED, torch.int32: -0x5EED_5EED}
_libc = ctypes.CDLL(None, use_errno=True)
_libc.memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_is_linux = sys.platform == "linux"
if _is_linux:
    import fcntl

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
        self._can_scan = True
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

    def untouched(self, size: Sequence[int], stride: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A new tensor on the CPU, in an untouched mapping if it is large."""
        last = sum((length - 1) * step for length, step in zip(size, stride, strict=True))
        nbytes = 0 if 0 in size else (last + 1) * dtype.itemsize
        pages = _map(nbytes) if self.has_pages and nbytes >= LARGE else None
        if pages is None:
            return torch.empty_strided(size, stride, dtype=dtype, device="cpu")
        storage = torch.frombuffer(pages, dtype=torch.uint8, count=nbytes).untyped_storage()
        return torch.empty(0, dtype=dtype, device="cpu").set_(storage, 0, size, stride)

    def untouched_for(
        self, function: Any, args: Any, kwargs: Any, least: int = LARGE
    ) -> Tensor | None:
        """What a factory returns, unfilled in a new mapping; None if that is not worth it."""
        like, size = (args[0], args[0].shape) if isinstance(args[0], Tensor) else (None, args[0])
        if like is not None and len(args) > 1 and isinstance(args[1], list | tuple):
            size = args[1]  # torch's new_empty
        if math.prod(size) * 8 < least:
            return None  # the quick check first
        if not self.has_pages or kwargs.get("pin_memory"):
            return None
        device = kwargs.get("device") or ("cpu" if like is None else like.device)
        if torch.device(device).type != "cpu" or not (like is None or is_plain_memory(like)):
            return None
        with unseen_by_modes():
            meta: Tensor = function(*args, **{**kwargs, "device": torch.device("meta")})
            if meta.layout is not torch.strided or meta.numel() * meta.itemsize < least:
                return None
            return self.untouched(meta.shape, meta.stride(), meta.dtype)

    def watch(self, cell: Cell, made: Tensor) -> None:
        """Starts watching new memory, by its pages or by marks."""
        cell.is_fresh = True
        if not storage_of(made).resizable():  # its own mapping
            cell.watched = "mapped"
        else:
            self.mark(cell, address_of(made), LARGE)

    def mark(self, cell: Cell, address: int, most: float) -> None:
        """Marks unwritten memory on the CPU, if it has fewer bytes than given."""
        can = cell.is_on_cpu and not cell.is_exposed and cell.nbytes < most
        cell.watched = "marked" if can else ""
        if can:
            ctypes.memset(address, _MARK, cell.nbytes)

    def is_touched(self, cell: Cell) -> bool:
        """Whether watched memory was read, or written to, past the dispatcher."""
        storage = cell.storage()
        if storage is None or not cell.nbytes:
            return False
        if cell.watched == "mapped":
            return self.is_present(storage.data_ptr(), cell.nbytes)
        return not is_marked(storage.data_ptr(), cell.nbytes)

    def is_present(self, address: int, nbytes: int) -> bool:
        """Whether any page of a mapping has been read or written."""
        first, last = address // _PAGE, -(-(address + nbytes) // _PAGE)
        if self._can_scan:
            found = ctypes.create_string_buffer(24)  # one range of pages
            request = _SCAN_REQUEST.pack(
                _SCAN_REQUEST.size, 0, first * _PAGE, last * _PAGE, 0, ctypes.addressof(found),
                1, 1, 0, 0, _PRESENT_OR_SWAPPED, _PRESENT_OR_SWAPPED,
            )  # fmt: skip
            try:
                return bool(fcntl.ioctl(self._table, _PAGEMAP_SCAN, bytearray(request)))
            except OSError:  # Linux before 6.7
                self._can_scan = False
        at, end = first * _ENTRY, last * _ENTRY
        while at < end:
            data = os.pread(self._table, min(_PIECE, end - at), at)
            if not data or data[_ENTRY - 1 :: _ENTRY].strip(b"\0"):
                return bool(data)
            at += len(data)
        return False


def is_marked(address: int, nbytes: int) -> bool:
    """Whether memory still contains only the mark."""
    return all(
        _libc.memcmp(address + begin, _MARKED, min(LARGE, nbytes - begin)) == 0
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


def mark_unwritten(tensor: Tensor) -> None:
    """Marks a tensor as unwritten: fills it with NaN or a number that no initialisation writes."""
    floats = tensor.dtype.is_floating_point or tensor.dtype.is_complex
    with torch.no_grad():
        tensor.fill_(math.nan if floats else _UNWRITTEN.get(tensor.dtype, 0))


def count_unwritten(tensor: Tensor) -> int:
    """The number of elements that are still marked as unwritten."""
    if tensor.dtype in _UNWRITTEN:
        return int((tensor == _UNWRITTEN[tensor.dtype]).sum())
    if not tensor.dtype.is_floating_point and not tensor.dtype.is_complex:
        return 0
    flat = tensor.detach().reshape(-1)
    if flat.dtype.itemsize == 1:
        return sum(int(piece.float().isnan().sum()) for piece in flat.split(_CHUNK))
    return sum(int(piece.isnan().sum()) for piece in flat.split(_CHUNK))


def check_written(name: str, tensor: Tensor, by: str) -> None:
    """Raises ArgumentError if elements of a marked tensor are still unwritten."""
    left = count_unwritten(tensor)
    if left:
        what = "nothing" if left == tensor.numel() else f"all but {left} of {tensor.numel()} values"
        raise ArgumentError(
            f"{by} wrote {what} to parameter {name!r}: it must fill its argument in place"
        )
