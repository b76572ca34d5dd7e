"""is_writable looks at every page of a range."""

from __future__ import annotations

import ctypes
import mmap
import sys

import pytest

native = pytest.importorskip("torchinit.native._native", reason="tests the native module")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")

PAGE = mmap.PAGESIZE
READ, WRITE = mmap.PROT_READ, mmap.PROT_WRITE
SMALL, LARGE = 8 * PAGE, 32 << 20  # of which halves too are below and above what it faults in


def protect(address, size, permissions):
    libc = ctypes.CDLL(None, use_errno=True)
    result = libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(size), permissions)
    assert result == 0, ctypes.get_errno()


@pytest.fixture(params=[SMALL, LARGE], ids=["small", "large"])
def memory(request):
    """The address and size of a private mapping."""
    mapping = mmap.mmap(-1, request.param, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    held = ctypes.c_char.from_buffer(mapping)
    yield ctypes.addressof(held), request.param
    del held


def test_writable_memory(memory):
    address, size = memory
    assert native.is_writable(address, size)
    assert native.is_writable(address + 5, size - 9)
    assert native.is_writable(address, 0)


@pytest.mark.parametrize("place", ["first", "middle", "last"])
@pytest.mark.parametrize("permissions", [READ, 0])
def test_one_page_that_is_not(memory, place, permissions):
    address, size = memory
    page = {"first": 0, "middle": size // 2, "last": size - PAGE}[place]
    protect(address + page, PAGE, permissions)
    assert not native.is_writable(address, size)
    assert not native.is_writable(address + page + PAGE - 1, 1)
    if place == "middle":
        assert native.is_writable(address, page)
        assert native.is_writable(address + page + PAGE, size - page - PAGE)
    protect(address + page, PAGE, READ | WRITE)
    assert native.is_writable(address, size)


def test_mappings_with_long_names(tmp_path):
    """Lines of /proc/self/maps that are longer than a buffer, before and at the range."""
    folder = tmp_path
    for _ in range(4):
        folder = folder / ("a-7f0000000000 rw-p " + "x" * 200)
        folder.mkdir()
    path = folder / "file"
    path.write_bytes(bytes(2 * LARGE))
    with path.open("r+b") as file:
        mapping = mmap.mmap(file.fileno(), 2 * LARGE, flags=mmap.MAP_PRIVATE)
    held = ctypes.c_char.from_buffer(mapping)
    address = ctypes.addressof(held)
    assert native.is_writable(address, 2 * LARGE)
    protect(address + LARGE, PAGE, READ)
    assert not native.is_writable(address, 2 * LARGE)
    assert native.is_writable(address, LARGE)
    protect(address + LARGE, PAGE, READ | WRITE)
