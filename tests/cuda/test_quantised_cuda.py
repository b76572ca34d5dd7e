"""Quantised fills on a GPU have the payload and scales of the CPU."""

from __future__ import annotations

import pytest
import torch

from torchinit import MXFP8, NVFP4, FP8Blocks, Normal, init_shard_
from torchinit.native import load as native

no_gpu = "" if torch.cuda.is_available() else "torch sees no CUDA device"
pytestmark = pytest.mark.skipif(
    bool(no_gpu) or native.cuda is None, reason=no_gpu or native.cuda_reason
)

FORMATS = [
    MXFP8(), MXFP8("floor"), MXFP8(source=torch.bfloat16), FP8Blocks(),
    FP8Blocks(scale="ue8m0"), FP8Blocks(3, 50), NVFP4(), NVFP4(16), NVFP4(amax="measured"),
]  # fmt: skip
BOXES = [((0, 0), (300, 430)), ((77, 18), (150, 264)), ((129, 0), (1, 430))]


def filled(form, scheme, offset, size, device):
    payload = torch.zeros(form.payload_shape(size), dtype=form.payload_dtypes[0], device=device)
    count, dtype = form.blocks_of(offset, size)[1], next(iter(form.scale_dtypes))
    scales = torch.zeros(count, dtype=dtype, device=device)
    whole = torch.zeros(1, device=device)
    init_shard_(
        payload, scheme, global_shape=(300, 430), offset=offset, seed=1, name="w", format=form,
        scales=(scales, whole) if form.has_whole else scales,
    )  # fmt: skip
    return [one.cpu().view(torch.uint8) for one in (payload, scales, whole)]


@pytest.mark.parametrize("form", FORMATS, ids=str)
@pytest.mark.parametrize(("offset", "size"), BOXES)
def test_bits_are_those_of_the_cpu(form, offset, size):
    given = torch.randn(300, 430, generator=torch.Generator().manual_seed(0))
    for scheme in (Normal(0.02), "xavier_uniform", "orthogonal", given):
        found, expected = (filled(form, scheme, offset, size, on) for on in ("cuda", "cpu"))
        assert all(map(torch.equal, found, expected)), scheme


def test_fills_are_queued_on_the_current_stream():
    form, stream = MXFP8(), torch.cuda.Stream()
    payload = torch.zeros(64, 64, dtype=torch.float8_e4m3fn, device="cuda")
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(2_000_000_000)
        init_shard_(
            payload, Normal(1.0), global_shape=(64, 64), offset=(0, 0), seed=0, name="w",
            format=form,
        )  # fmt: skip
    early = payload[:1].view(torch.uint8).any().item()
    stream.synchronize()
    assert not early
    assert payload.view(torch.uint8).any()
