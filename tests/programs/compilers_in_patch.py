"""Compiles first inside ``patch_nn_init``, then outside: python compilers_in_patch.py DEFER."""

from __future__ import annotations

import sys

import torch

import torchinit

defer = bool(int(sys.argv[1]))


def traced(x):
    return x + torch.randn(3) + torch.rand_like(x) + torch.nn.init.normal_(x.clone()).uniform_()


def scripted(x):
    return x + torch.randn(3) + torch.rand_like(x)


def check() -> None:
    torch._dynamo.reset()
    torch.compile(traced, backend="eager", fullgraph=True)(torch.zeros(3))
    torch.jit.script(scripted)(torch.zeros(3))


with torchinit.patch_nn_init(defer=defer):
    check()
check()
known = len(torch.jit._builtins._get_builtin_table())
with torchinit.patch_nn_init(defer=defer):
    check()
assert len(torch.jit._builtins._get_builtin_table()) == known
