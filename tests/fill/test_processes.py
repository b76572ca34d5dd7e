"""Forked children of every kind finish, and fill as their parent would."""

from __future__ import annotations

import multiprocessing
import os
import textwrap

import pytest
import torch

import torchinit
import warm
from conftest import native_only

pytestmark = [
    native_only,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork"),
]

# The parent has used threads, as an ordinary training script has.
PARENT = """
import multiprocessing, os, torch, torchinit
torch.set_num_threads(2)
torch.zeros(1 << 22).add_(1)
torchinit.normal_(torch.empty(1 << 20))

def fills():
    torch.manual_seed(3)
    found = [torchinit.normal_(torch.empty(1 << 18)), torchinit.uniform_(torch.empty(600, 700).t())]
    with torchinit.batch():
        found += [torchinit.trunc_normal_(torch.empty(1 << 17)) for _ in range(3)]
    found.append(torchinit.orthogonal_(torch.empty(64, 64)))
    found.append(torchinit.init_(torch.empty(512, 512), None, "kaiming_uniform")[0])
    # A few of each: torch's own operations on all of them would hang in a forked child.
    return [x for tensor in found for x in tensor.flatten()[-5:].tolist()]

def products():
    # Not contiguous, and proven to be without overlaps; a gain that is multiplied afterwards.
    torchinit.normal_(torch.empty(500_000).as_strided((200_000, 2), (2, 1001)))
    torchinit.orthogonal_batch_(torch.empty(60, 60, 60), gain=1e30)
    torch.manual_seed(4)
    q = torchinit.orthogonal_(torch.empty(300, 300))
    stack = torchinit.orthogonal_batch_(torch.empty(4, 150, 150))
    rows = [q[:20].tolist(), stack[3, :20].tolist()]
    return [
        abs(sum(a * b for a, b in zip(x, y)) - (x is y)) < 1e-4
        for some in rows for x in some for y in some
    ]
"""

CHILDREN = {
    "multiprocessing": """
        context = multiprocessing.get_context("fork")
        with context.Pool(2) as pool:
            results = [pool.apply_async(fills).get(60), pool.apply_async(products).get(60)]
        """,
    "os.fork": """
        readable, writable = os.pipe()
        if os.fork() == 0:
            os.write(writable, repr([fills(), products()]).encode())
            os._exit(0)
        results = eval(os.read(readable, 1 << 16))
        """,
    "a grandchild": """
        readable, writable = os.pipe()
        if os.fork() == 0:
            fills()
            if os.fork() == 0:
                os.write(writable, repr([fills(), products()]).encode())
            os._exit(0)
        results = eval(os.read(readable, 1 << 16))
        """,
    "a DataLoader's worker": """
        class Data(torch.utils.data.Dataset):
            def __len__(self):
                return 2
            def __getitem__(self, i):
                return fills() if i == 0 else products()
        loader = torch.utils.data.DataLoader(Data(), num_workers=1, batch_size=None)
        results = list(loader)
        """,
}


@pytest.mark.parametrize("child", CHILDREN.values(), ids=CHILDREN)
def test_forked_children_finish(child):
    check = """
assert results[0] == fills()
assert len(results[1]) == 800
assert all(results[1])
assert torch.get_num_threads() == 2
"""
    run = warm.run("-c", PARENT + textwrap.dedent(child) + check)  # hung once, without the mend
    assert run.returncode == 0, run.stderr


def in_another_process(_):
    torch.manual_seed(5)
    return torchinit.normal_(torch.empty(40_000)).double().sum().item()


def test_spawned_children_have_the_same_bits():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(in_another_process, [None]) == [in_another_process(None)]
