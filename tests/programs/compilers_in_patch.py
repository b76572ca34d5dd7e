"""Compiles first inside ``patch_nn_init``, then outside."""

from __future__ import annotations

import torch

import torchinit


def traced(x):
    return x + torch.randn(3) + torch.rand_like(x) + torch.nn.init.normal_(x.clone()).uniform_()


def scripted(x):
    return x + torch.randn(3) + torch.rand_like(x)


def check() -> None:
    torch._dynamo.reset()
    torch.compile(traced, backend="eager", fullgraph=True)(torch.zeros(3))
    torch.jit.script(scripted)(torch.zeros(3))


with torchinit.patch_nn_init():
    check()
check()
known = len(torch.jit._builtins._get_builtin_table())
with torchinit.patch_nn_init():
    check()
assert len(torch.jit._builtins._get_builtin_table()) == known
