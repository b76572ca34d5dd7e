"""Operators that read what they overwrite."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from torchinit import build_model, init_model_

WRITES = {
    "copy": lambda w: w.copy_(w),
    "copy of a view": lambda w: w.copy_(w.view_as(w)),
    "cast that is none": lambda w: w.copy_(w.to(torch.float32)),
    "data": lambda w: w.data.copy_(w.data),
    "item": lambda w: w.__setitem__(slice(None), w),
    "its own element": lambda w: w.fill_(w[0, 0]),
    "many": lambda w: torch._foreach_copy_([w], [w]),
    "half": lambda w: w[:2].copy_(w[2:4]),
    "flipped": lambda w: w.copy_(w.flip(0)),
    "out": lambda w: torch.mul(w, w, out=w),
    "twice": lambda w: w.copy_(w).mul_(2).copy_(w),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("more", [1, 100])
def test_they_read_the_values_before(write, more):
    def build():
        layer = nn.Linear(4, 4 * more)
        with torch.no_grad():
            write(layer.weight)
        return layer

    plain = build_model(lambda: nn.Linear(4, 4 * more), seed=0)
    with torch.no_grad():
        write(plain.weight)
    built = build_model(build, seed=0)
    assert torch.equal(built.weight, plain.weight)
    from_meta = init_model_(build_model(build, seed=0, device="meta"), seed=0, device="cpu")
    assert torch.equal(from_meta.weight, plain.weight)
    constant = nn.Module()
    constant.w = nn.Parameter(torch.full((4, 4 * more), 3.0))
    with torch.no_grad():
        write(constant.w)

    def build_constant():
        model = nn.Module()
        model.w = nn.Parameter(torch.empty(4, 4 * more).fill_(3.0))
        with torch.no_grad():
            write(model.w)
        return model

    assert torch.equal(build_model(build_constant, seed=0).w, constant.w)
