"""Fills in a forked process, where OpenMP's threads are gone and waiting for them has no end."""

from __future__ import annotations

import os
import signal

import pytest
import torch

import torchinit
from conftest import native_only

native = pytest.importorskip("torchinit.native._native", reason="tests the native module")

COUNT = 1 << 18  # worth several threads
SECONDS = 30


def in_child(work):
    """The exit status of a forked child that does some work; -SIGALRM if it hangs."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(SECONDS)
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def fill(memory, key=1):
    native.fill(2, 1, 0.0, 1.0, 0.0, 0.0, key, memory.data_ptr(), memory.numel(), 2)


def fill_list(memory):
    rows = memory.view(4, -1)
    addresses = [row.data_ptr() for row in rows]
    draws = [(1, 0.0, 1.0, 0.0, 0.0)] * 4
    native.fill_list(draws, [1] * 4, range(4), addresses, [rows.shape[1]] * 4, 2)


def reflectors(memory):
    keys, scalars = torch.arange(64), torch.empty(2, 64 * 16)
    vectors, half_norms, signs = memory.data_ptr(), scalars[0].data_ptr(), scalars[1].data_ptr()
    native.fill_reflectors(1, keys.data_ptr(), 64, 0, 16, 128, vectors, half_norms, signs, 2)


def small_orthogonal(memory):
    keys, size = torch.arange(64), 64
    addresses = [matrix.data_ptr() for matrix in memory.view(64, size, size)]
    native.fill_small_orthogonal(1, keys.data_ptr(), addresses, size, size, 1.0, size, 1, 2)


def invert_triangles(memory):
    grams = memory.view(64, 64, 64)
    grams.copy_(torch.eye(64))
    native.invert_triangles(1, 64, 64, grams.data_ptr(), 2)


@pytest.mark.parametrize("work", [fill, fill_list, reflectors, small_orthogonal, invert_triangles])
def test_a_forked_child_fills_what_its_parent_does(work):
    expected = torch.zeros(COUNT)
    work(expected)  # the parent has used OpenMP from here on
    torch.zeros(1 << 20).add_(1)
    shared = torch.zeros(COUNT).share_memory_()

    def in_there():
        assert native.is_forked()
        torch.set_num_threads(1)
        work(shared)

    assert not native.is_forked()
    assert in_child(in_there) == 0
    assert torch.equal(shared, expected)
    work(expected)  # and still may


@native_only
def test_a_forked_child_reports():
    model = torch.nn.Linear(300, 300)
    torch.zeros(1 << 20).add_(1)
    assert in_child(lambda: torchinit.report_model(model)) == 0


def test_grandchildren_are_forked():
    def again():
        assert in_child(lambda: fill(torch.empty(COUNT))) == 0

    fill(torch.empty(COUNT))
    assert in_child(again) == 0


def test_a_failing_child_is_seen():
    def fail():
        raise AssertionError

    assert in_child(fail) == 1
