"""Quantised DTensors: every rank has its part of the whole's payload and scales."""

from __future__ import annotations

import pytest
import torch
from layouts import cut, mesh_of
from torch import nn
from worlds import in_worlds

import torchinit
from torchinit import MXFP8, NVFP4, FP8Blocks
from torchinit.native import load

pytestmark = pytest.mark.skipif(load.module is None, reason="needs the native module")

FORMATS = {"mxfp8": MXFP8(), "fp8": FP8Blocks(16, 24), "nvfp4": NVFP4(), "nvfp4-16": NVFP4(16)}
SHAPES = [(70, 96), (33, 64)]
LAYOUTS = {
    1: [("1 R", "1 S0")],
    2: [("2 S0", "2 S0"), ("2 S1", "2 R"), ("2 R", "2 S1"), ("2 S0", "2 R")],
    4: [("4 S0", "4 S0"), ("2x2 S0 S1", "2x2 R R"), ("2x2 S0 S0", "2x2 S1 S0"), ("4 S1", "4 S1")],
    8: [("2x4 R S0", "2x4 S0 R"), ("8 S0", "8 S0"), ("2x2x2 S0 S1 R", "2x2x2 R R R")],
}


class Weight(nn.Module):
    def __init__(self, form, shape, layout=None, of_scales=None, device="cpu"):
        super().__init__()
        payload = torch.zeros(
            form.payload_shape(shape), dtype=form.payload_dtypes[0], device=device
        )
        dtype = next(iter(form.scale_dtypes))
        scales = torch.zeros(form.scales_shape(shape), dtype=dtype, device=device)
        if layout is not None:
            payload, scales = cut(payload, layout), cut(scales, of_scales)
        self.weight = nn.Parameter(payload, requires_grad=False)
        self.weight_scale = nn.Parameter(scales, requires_grad=False)
        if form.has_whole:
            factor = torch.zeros(1, device=device)
            self.weight_scale_2 = nn.Parameter(factor, requires_grad=False)


def bytes_of(tensor):
    return tensor.detach().contiguous().view(torch.uint8)


@in_worlds(1, 2, 4, 8, each=FORMATS)
def test_shards(form):
    import torch.distributed as dist

    for rule in (torchinit.Normal(0.02), "orthogonal"):
        for shape in SHAPES:
            whole = Weight(form, shape)
            options = {"seed": 5, "formats": {"weight": form}}
            torchinit.init_model_(whole, {"**": rule}, **options)
            for layout, of_scales in LAYOUTS[dist.get_world_size()]:
                part = Weight(form, shape, layout, of_scales)
                torchinit.init_model_(part, {"**": rule}, **options)
                for name, how in (("weight", layout), ("weight_scale", of_scales)):
                    wanted = cut(getattr(whole, name).data, how).to_local()
                    found = getattr(part, name).to_local()
                    assert torch.equal(bytes_of(found), bytes_of(wanted)), (name, layout, shape)
                if form.has_whole:
                    assert part.weight_scale_2 == whole.weight_scale_2


@in_worlds(2, each=FORMATS)
def test_fully_shard(form):
    """From the meta device and in memory; scales that are parameters are sharded by themselves.

    One rank alone has the factor of the whole tensor then.
    """
    from torch.distributed.fsdp import fully_shard

    options = {"seed": 5, "formats": {"weight": form}}
    for shape in SHAPES:
        whole = Weight(form, shape)
        torchinit.init_model_(whole, {"**": torchinit.Normal(0.02)}, **options)
        for device in ("meta", "cpu"):
            part = Weight(form, shape, device=device)
            fully_shard(part, mesh=mesh_of(2))
            torchinit.init_model_(part, {"**": torchinit.Normal(0.02)}, **options)
            for name, _ in part.named_parameters():
                wanted = cut(getattr(whole, name).data, "2 S0").to_local()
                found = getattr(part, name).to_local()
                assert torch.equal(bytes_of(found), bytes_of(wanted)), (name, device, shape)
