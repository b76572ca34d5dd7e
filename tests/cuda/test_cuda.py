"""What only a GPU can show: the bits of the CPU, streams, graphs, and no waiting for the device."""

from __future__ import annotations

import ctypes

import pytest
import torch

import torchinit
from fills import (
    DTYPES,
    FILLS,
    GUARD,
    KEY,
    assert_same_bits,
    each_fill,
    make,
)
from torchinit.native import kernels
from torchinit.native import load as native
from torchinit.orthogonal import fill_orthogonal
from torchinit.placement.box import Box

no_gpu = "" if torch.cuda.is_available() else "torch sees no CUDA device"
pytestmark = pytest.mark.skipif(
    bool(no_gpu) or native.cuda is None, reason=no_gpu or native.cuda_reason
)


@each_fill
@pytest.mark.parametrize("count", [1, 3, 4, 63, 4096, 100_003])
def test_bits_are_those_of_the_cpu(fill, dtype, count):
    assert_same_bits(make(fill, dtype, count, device="cuda").cpu(), make(fill, dtype, count))


@each_fill
@pytest.mark.parametrize("start", [1, 6, 2**32 - 5, 2**34 - 333, 2**40 + 1])
def test_pieces_far_out(fill, dtype, start):
    got = make(fill, dtype, 777, [start], [2**50], device="cuda")
    assert_same_bits(got.cpu(), make(fill, dtype, 777, [start], [2**50]))


@each_fill
def test_boxes_and_layouts(fill, dtype):
    operator, parameters = fill
    whole = make(fill, dtype, (6, 70, 5))
    box = make(fill, dtype, (3, 41, 4), [2, 4, 1], [6, 70, 5], device="cuda")
    assert_same_bits(box.cpu(), whole[2:5, 4:45, 1:5])
    expected = make(fill, dtype, (3, 8, 5, 6))
    guarded = torch.full((3, 8, 5, 9), GUARD, device="cuda").to(dtype)
    permuted = torch.empty((6, 5, 8, 3), dtype=dtype, device="cuda").permute(3, 2, 1, 0)
    for tensor in (guarded[..., 2:8], permuted):
        operator(tensor, KEY, *parameters)
        assert_same_bits(tensor.cpu(), expected)
    if dtype.is_floating_point:
        assert (guarded[..., :2].double() == GUARD).all()
        assert (guarded[..., 8:].double() == GUARD).all()


@each_fill
@pytest.mark.parametrize("offset", [1, 2, 3, 8])
def test_misaligned_memory(fill, dtype, offset):
    operator, parameters = fill
    memory = torch.zeros(20_000, device="cuda").to(dtype)
    tensor = memory[offset:-3]
    operator(tensor, KEY, *parameters)
    assert_same_bits(tensor.cpu(), make(fill, dtype, tensor.shape))
    assert not memory[:offset].double().any()
    assert not memory[-3:].double().any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["normal", "truncated within 2 std", "uniform"])
def test_many_values(name, dtype):
    """2^26 of them: every instruction of the device rounds as the processor does."""
    fill = FILLS[name]
    assert_same_bits(make(fill, dtype, 2**26, device="cuda").cpu(), make(fill, dtype, 2**26))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [0.0, -0.0, 1.5, -3.0, float("nan")])
@pytest.mark.parametrize("size", [1, 5, 1000, 300_001])
def test_constants(value, dtype, size):
    memory = torch.full((size + 3,), float(GUARD), device="cuda").to(dtype)
    torchinit.constant_(memory[1:-2], value)
    expected = torch.full((size + 3,), float(GUARD)).to(dtype)
    torchinit.constant_(expected[1:-2], value)
    assert_same_bits(memory.cpu(), expected)


def mixed_tensors(device):
    generator = torch.Generator().manual_seed(1)
    sizes = torch.randint(0, 70_000, (400,), generator=generator).tolist()
    return [
        torch.zeros(size, device=device).to(DTYPES[i % len(DTYPES)]) for i, size in enumerate(sizes)
    ]


def fill_mixed(tensors):
    torch.manual_seed(4)
    for i, tensor in enumerate(tensors):
        if i % 4 == 0:
            torchinit.normal_(tensor, std=0.5)
        elif i % 4 == 1:
            torchinit.trunc_normal_(tensor)
        elif i % 4 == 2:
            torchinit.uniform_(tensor, -1, 1)
        else:
            torchinit.ones_(tensor)


def test_a_batch_has_the_bits_of_single_calls_on_the_cpu():
    there, here = mixed_tensors("cuda"), mixed_tensors("cpu")
    with torchinit.batch():
        fill_mixed(there)
    fill_mixed(here)
    for got, expected in zip(there, here, strict=True):
        assert_same_bits(got.cpu(), expected)


def test_a_batch_over_both_devices_and_overlapping_memory():
    here, there = torch.zeros(1000), torch.zeros(100_000, device="cuda")
    with torchinit.batch():
        torchinit.ones_(here)
        torchinit.ones_(there)
        torchinit.zeros_(there[10:90_000])
        torchinit.constant_(there[80_000:95_000], 2.0)
    assert here.all()
    assert there.sum().item() == 10 + 15_000 * 2 + 5_000


def test_few_launches_for_many_tensors():
    tensors = [torch.empty(1000, device="cuda") for _ in range(840)]

    def launches(call):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            call()
            torch.cuda.synchronize()
        return sum(event.count for event in profile.key_averages() if "kernel" in event.key)

    def batched():
        with torchinit.batch():
            for i, tensor in enumerate(tensors):
                torchinit.normal_(tensor) if i % 2 else torchinit.zeros_(tensor)

    assert 1 <= launches(batched) <= 12


def test_fills_run_on_the_current_stream():
    """A fill behind a long wait on another stream has not happened; behind its own it has."""
    tensor = torch.zeros(1 << 20, device="cuda")
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(2_000_000_000)
        torchinit.ones_(tensor)
    early = tensor[:1].item()
    stream.synchronize()
    assert early == 0
    assert tensor.all()


def test_nothing_waits_for_the_device():
    weight, bias = torch.empty(512, 512, device="cuda"), torch.empty(512, device="cuda")
    tensors = mixed_tensors("cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        event = torch.cuda.Event()
        torch.cuda._sleep(2_000_000_000)
        torchinit.init_(weight, bias, "kaiming_uniform")
        with torchinit.batch():
            fill_mixed(tensors)
        event.record()
        assert not event.query()
    finally:
        torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()


def test_graph_capture_fixes_the_key():
    tensor, other = torch.empty(5000, device="cuda"), torch.empty(77, device="cuda")
    torchinit.normal_(tensor)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    torch.manual_seed(9)
    with torch.cuda.graph(graph), torchinit.batch():
        torchinit.normal_(tensor)
        torchinit.uniform_(other)
    torch.manual_seed(9)
    expected = torchinit.normal_(torch.empty(5000)), torchinit.uniform_(torch.empty(77))
    for _ in range(2):
        tensor.zero_()
        other.zero_()
        graph.replay()
        assert_same_bits(tensor.cpu(), expected[0])
        assert_same_bits(other.cpu(), expected[1])


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
def test_the_device_of_the_tensor():
    tensor = torch.zeros(5000, device="cuda:1")
    torch.manual_seed(1)
    torchinit.normal_(tensor)
    assert torch.cuda.current_device() == 0
    torch.manual_seed(1)
    assert_same_bits(tensor.cpu(), torchinit.normal_(torch.empty(5000)))


def test_compiled_functions():
    @torch.compile(fullgraph=True)
    def fill(tensor):
        return torchinit.normal_(tensor)

    torch.manual_seed(2)
    got = fill(torch.empty(1000, device="cuda"))
    torch.manual_seed(2)
    assert_same_bits(got.cpu(), torchinit.normal_(torch.empty(1000)))


class Managed:
    """A float32 array in managed memory, as torch takes it."""

    def __init__(self, count):
        names = ("libcudart.so.13", "libcudart.so.12", "libcudart.so")
        self.runtime = next(filter(None, map(self._load, names)), None)
        if self.runtime is None:
            pytest.skip("no shared CUDA runtime")
        self.address = ctypes.c_void_p()
        size = ctypes.c_size_t(4 * count)
        status = self.runtime.cudaMallocManaged(ctypes.byref(self.address), size, 1)
        if status:
            pytest.skip(f"cudaMallocManaged: error {status}")
        self.__cuda_array_interface__ = {
            "shape": (count,),
            "typestr": "<f4",
            "data": (self.address.value, False),
            "version": 3,
        }

    @staticmethod
    def _load(name):
        try:
            return ctypes.CDLL(name)
        except OSError:
            return None


@pytest.mark.parametrize("count", [1000, kernels.LARGE // 4 + 5])
def test_managed_memory(count, monkeypatch):
    memory = Managed(count)
    tensor = torch.as_tensor(memory, device="cuda")
    if tensor.data_ptr() != memory.address.value:
        pytest.skip("torch copied the array")
    lists = []
    fill_list = native.module.fill_list
    monkeypatch.setattr(
        native.module, "fill_list", lambda items, _: (lists.append(1), fill_list(items, 4))
    )
    torch.manual_seed(3)
    torchinit.normal_(tensor)
    assert len(lists) == (count > 1000)
    monkeypatch.undo()
    torch.cuda.synchronize()
    torch.manual_seed(3)
    assert_same_bits(tensor.cpu(), torchinit.normal_(torch.empty(count)))


def test_pinned_memory_is_the_hosts():
    tensor = torch.empty(5000, pin_memory=True)
    torch.manual_seed(3)
    torchinit.normal_(tensor)
    torch.manual_seed(3)
    assert_same_bits(tensor, torchinit.normal_(torch.empty(5000)))


# Orthogonal


def orthogonality_error(tensor):
    matrix = tensor.double().flatten(1)
    if matrix.shape[0] < matrix.shape[1]:
        matrix = matrix.t()
    return (matrix.t() @ matrix - torch.eye(matrix.shape[1], device=matrix.device)).abs().max()


SHAPES = [(1, 1), (1, 9), (9, 1), (64, 64), (300, 200), (200, 300), (64, 32, 3, 3), (1100, 1024)]


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.float8_e4m3fn]
)
@pytest.mark.parametrize("shape", SHAPES)
def test_orthogonal_matrices_are_those_of_the_cpu(shape, dtype):
    torch.manual_seed(6)
    there = torchinit.orthogonal_(torch.empty(shape, dtype=dtype, device="cuda"))
    torch.manual_seed(6)
    here = torchinit.orthogonal_(torch.empty(shape, dtype=dtype))
    assert_same_bits(there.cpu(), here)
    if dtype.itemsize >= 4:
        columns = min(here.flatten(1).shape)
        limit = 2e-6 if dtype == torch.float32 else 1e-14
        assert orthogonality_error(there) <= limit * columns


@pytest.mark.parametrize("gain", [0.5, 1e30])
def test_orthogonal_boxes_and_layouts(gain):
    whole = torch.empty(300, 7, 11)
    fill_orthogonal(whole, gain, 4)
    box = torch.empty(90, 5, 9, device="cuda")
    fill_orthogonal(box, gain, 4, Box((300, 7, 11), (200, 1, 2)))
    assert_same_bits(box.cpu(), whole[200:290, 1:6, 2:])
    permuted = torch.empty(11, 7, 300, device="cuda").permute(2, 1, 0)
    fill_orthogonal(permuted, gain, 4)
    assert_same_bits(permuted.cpu().contiguous(), whole)


@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("n", [16, 128, 512])
def test_orthogonal_batches(n, stacked):
    tensors = torch.empty(9, n, n, device="cuda")
    torch.manual_seed(6)
    torchinit.orthogonal_batch_(tensors if stacked else list(tensors))
    torch.manual_seed(6)
    for tensor in tensors:
        assert_same_bits(tensor.cpu(), torchinit.orthogonal_(torch.empty(n, n)))


def test_memory_beside_an_orthogonal_matrix():
    tensor = torch.empty(2048, 2048, device="cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    torchinit.orthogonal_(tensor)
    beside = torch.cuda.max_memory_allocated() - before
    assert 0 < beside <= tensor.nbytes / 4


def test_orthogonal_whatever_tf32_says():
    torch.manual_seed(6)
    expected = torchinit.orthogonal_(torch.empty(512, 512, device="cuda"))
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        torch.manual_seed(6)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            got = torchinit.orthogonal_(torch.empty(512, 512, device="cuda"))
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    assert_same_bits(got.cpu(), expected.cpu())
