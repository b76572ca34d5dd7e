"""Devices without kernels: the bits of the CPU, by way of host memory in pieces."""

from __future__ import annotations

import math
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import torchinit
import warm
from conftest import native_only
from fills import KEY, assert_same_bits, cases
from torchinit.cli import info
from torchinit.fill import route, via_host
from torchinit.fill.door import fill
from torchinit.native import load
from torchinit.placement.box import Box
from torchinit.schemes.distributions import normal_draw

pytestmark = native_only


def test_pieces_cover_every_shape():
    for shape in [(), (0,), (1,), (7,), (5, 3), (2, 3, 4), (1, 1, 9), (3, 0, 2)]:
        for limit in (1, 2, 5, 12, 100):
            seen = torch.zeros(shape, dtype=torch.int64)
            for start, size in via_host.pieces(shape, limit):
                assert math.prod(size) <= limit
                part = seen
                for dim, (first, length) in enumerate(zip(start, size, strict=True)):
                    part = part.narrow(dim, first, length)
                part += 1
            assert (seen == 1).all()


@pytest.fixture
def _forced(monkeypatch):
    """Takes the CPU for a device without kernels; pieces of 100 bytes."""
    monkeypatch.setattr(route, "via_host_reason", lambda _: "forced")
    monkeypatch.setattr(load.module, "quick_fill", lambda *_: False)
    monkeypatch.setattr(via_host, "PIECE", 100)


LAYOUTS = {
    "contiguous": lambda dtype: torch.empty((3, 8, 5), dtype=dtype),
    "transposed": lambda dtype: torch.empty((5, 8, 3), dtype=dtype).permute(2, 1, 0),
    "stepped": lambda dtype: torch.empty((3, 8, 10), dtype=dtype)[..., ::2],
}


@pytest.mark.parametrize(("each", "dtype"), list(cases()))
@pytest.mark.usefixtures("_forced")
def test_bits_of_every_fill_dtype_and_layout(each, dtype):
    operator, parameters = each
    expected = torch.empty((3, 8, 5), dtype=dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(route, "via_host_reason", lambda _: "")
        operator(expected, KEY, *parameters)
    for make in LAYOUTS.values():
        tensor = make(dtype)
        operator(tensor, KEY, *parameters)
        assert_same_bits(tensor, expected)


@pytest.mark.usefixtures("_forced")
def test_boxes():
    whole = fill(normal_draw(0.0, 1.0), torch.empty(9, 40), 7)
    part = fill(normal_draw(0.0, 1.0), torch.empty(4, 30), 7, Box((9, 40), (3, 5)))
    assert torch.equal(part, whole[3:7, 5:35])


@pytest.mark.usefixtures("_forced")
def test_the_route_and_its_reason():
    found = torchinit.which(torch.empty(3), "normal")
    assert found.kind == "staged"
    assert "forced" in found.reason
    assert torchinit.which(torch.empty(3), "eye").kind == "torch"


@pytest.mark.usefixtures("_forced")
def test_keys_and_errors_are_those_of_the_cpu():
    torch.manual_seed(4)
    tensor = torchinit.normal_(torch.empty(50))
    later = torch.get_rng_state()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(route, "via_host_reason", lambda _: "")
        torch.manual_seed(4)
        assert torch.equal(torchinit.normal_(torch.empty(50)), tensor)
    assert torch.equal(torch.get_rng_state(), later)
    with pytest.raises(ValueError, match="std=-1"):
        torchinit.normal_(tensor, std=-1.0)
    with pytest.raises(ValueError, match="share memory"):
        torchinit.normal_(torch.empty(1).expand(4))
    assert torch.equal(torch.get_rng_state(), later)


@pytest.mark.usefixtures("_forced")
def test_orthogonal_matrices():
    torch.manual_seed(4)
    got = torchinit.orthogonal_(torch.empty(20, 20))
    assert torch.allclose(got @ got.t(), torch.eye(20), atol=1e-5)
    stack = torchinit.orthogonal_batch_([torch.empty(8, 8), torch.empty(9, 8)])
    assert torch.allclose(stack[0] @ stack[0].t(), torch.eye(8), atol=1e-5)


@pytest.fixture
def _old_gpu(monkeypatch):
    """A GPU that the CUDA module has no code for."""
    error = "no kernel image is available for execution on the device"
    module = SimpleNamespace(architectures=lambda: "(800,900)", why_no_kernels=lambda: error)
    monkeypatch.setattr(load, "cuda", module)
    monkeypatch.setattr(load, "cuda_reason", "built and loaded")
    monkeypatch.setattr(load, "_unsaid", {})
    for name, value in {
        "is_available": True,
        "device_count": 1,
        "device": nullcontext(),
        "get_device_capability": (6, 1),
        "get_device_name": "an old GPU",
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    monkeypatch.setattr(info, "_device_types", lambda: ["cpu"])
    load._why_no_kernels.cache_clear()
    yield
    load._why_no_kernels.cache_clear()


@pytest.mark.usefixtures("_old_gpu")
def test_a_gpu_that_the_cuda_module_has_no_code_for():
    device = torch.device("cuda", 0)
    why = route.via_host_reason(device)
    assert why == (
        "the CUDA module, compiled for (800,900), has no code for an old GPU (sm_61): no kernel "
        "image is available for execution on the device"
    )
    with pytest.warns(RuntimeWarning, match=r"TORCH_CUDA_ARCH_LIST=6\.1"):
        load.warn_once("cuda")
    assert route.via_host_reason(device) == why
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load.warn_once("cuda")  # not twice
    state = info.collect()
    assert state["cuda"]["devices"][0]["why_staged"] == why
    text = info._text(state)
    assert "an old GPU (sm_61, staged)" in text
    assert why in text


@pytest.mark.usefixtures("_old_gpu")
def test_a_gpu_that_the_cuda_module_has_code_for(monkeypatch):
    monkeypatch.setattr(load.cuda, "why_no_kernels", lambda: "")
    assert route.via_host_reason(torch.device("cuda", 0)) == ""
    assert "an old GPU (sm_61)" in info._text(info.collect())
    assert load._unsaid == {}


def test_a_device_of_torchs_without_hardware():
    """Every dtype, direct, in a batch and by the operator, in a process of its own."""
    program = Path(__file__).parents[1] / "programs" / "device_without_hardware.py"
    process = warm.run(program)
    assert process.returncode == 0, process.stderr
    assert int(process.stdout) == 104


MEMORY = """
import torch, torchinit
from torchinit.fill import route
from torchinit.native import load
route.via_host_reason = lambda _: "forced"
load.module.quick_fill = lambda *_: False
torchinit.normal_(torch.empty(100, 100))
tensor = torch.ones(2**26)
def status(name):
    return int(open("/proc/self/status").read().split(name)[1].split()[0]) * 1024
open("/proc/self/clear_refs", "w").write("5")  # forgets the peak so far
before = status("VmRSS:")
torchinit.normal_(tensor)
print(status("VmHWM:") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
def test_memory_beside_the_destination():
    process = warm.run("-c", MEMORY)
    assert process.returncode == 0, process.stderr
    assert via_host.PIECE // 2 <= int(process.stdout) <= 2**26
