"""Fills in a forked process, where other threads are gone and waiting for them has no end."""

from __future__ import annotations

import threading

import pytest
import torch

import torchinit
from conftest import native_only
from forked import in_child

native = pytest.importorskip("torchinit.native._native", reason="tests the native module")

COUNT = 1 << 18  # worth several threads


def fill(memory, key=1):
    native.fill(2, 1, 0.0, 1.0, 0.0, 0.0, key, memory.data_ptr(), memory.numel(), 2)


def fill_list(memory):
    rows = memory.view(4, -1)
    addresses = [row.data_ptr() for row in rows]
    draws = [(1, 0.0, 1.0, 0.0, 0.0)] * 4
    native.fill_list(draws, [1] * 4, range(4), addresses, [rows.shape[1]] * 4, 2)


def orthogonal(memory):
    """Many small matrices, which threads share out, and a large one, which they share."""
    some = memory.view(2, -1)
    addresses = [matrix.data_ptr() for matrix in some[0].view(32, 64, 64)]
    shape, corner = [64, 64], [0, 0]
    native.fill_orthogonal(1, range(32), addresses, shape, [64, 1], shape, corner, 1.0, 2)
    shape = [256, 512]
    native.fill_orthogonal(1, [7], [some[1].data_ptr()], shape, [512, 1], shape, corner, 1.0, 2)


@pytest.mark.parametrize("work", [fill, fill_list, orthogonal])
def test_a_forked_child_fills_what_its_parent_does(work):
    expected = torch.zeros(COUNT)
    work(expected)  # the parent has used threads from here on
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


@pytest.mark.parametrize("n", [40, 1100])
def test_fork_while_another_thread_forms_a_matrix(n):
    """Nothing that the thread holds is waited for in the child."""
    shape = [n, n]
    expected, busy = torch.empty(n, n), torch.empty(n, n)
    shared = torch.zeros(n, n).share_memory_()

    def form(memory):
        address = [memory.data_ptr()]
        native.fill_orthogonal(1, [3], address, shape, [n, 1], shape, [0, 0], 1.0, 2)

    form(expected)
    done = threading.Event()

    def work():
        while not done.is_set():
            form(busy)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        for _ in range(3):
            shared.zero_()
            assert in_child(lambda: form(shared)) == 0
            assert torch.equal(shared, expected)
    finally:
        done.set()
        worker.join()


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
