"""Memory that waits to be filled: nobody touches it, and who reads or writes it is found out."""

from __future__ import annotations

import ctypes
import hashlib
import math
import os
import random
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from build_cases import Made, NanoGPT, built
from compared import assert_same
from torch import nn
from torch.nn.parameter import Parameter

import torchinit
import warm
from conftest import long, native_only
from forked import in_child
from torchinit import ArgumentError, build_model, init_model_
from torchinit.tape.memory import Memory

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has such a page table")
# As an extension would ask for it: nobody sees that.
_address = torch.Tensor.data_ptr
TOUCHED = "the memory of parameter '1.weight' was accessed outside torch before it was fil"


def _layers(width: int) -> nn.Module:
    return nn.Sequential(*[nn.Linear(width, width, bias=False) for _ in range(3)])


def _touch(width: int, *, write: bool, at: int = 0):
    """A constructor, and something that uses the memory of one weight on the way."""

    def build() -> nn.Module:
        model = _layers(width)
        memory = ctypes.c_float.from_address(_address(model[1].weight) + at)
        if write:
            memory.value = 3.0
        elif memory.value == 3.0:
            raise AssertionError
        return model

    return build


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("width", [3, 64, 181, 182, 600])
def test_raw_writes_are_found(width: int, device: str) -> None:
    for at in (0, 4 * (width * width - 1)):
        with pytest.raises(ArgumentError, match=TOUCHED):
            build_model(_touch(width, write=True, at=at), seed=0, device=device)


@linux
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_raw_reads_of_large_tensors_are_found(device: str) -> None:
    for at in (0, 4 * 299 * 300, 4 * (300 * 300 - 1)):
        with pytest.raises(ArgumentError, match=TOUCHED):
            build_model(_touch(300, write=False, at=at), seed=0, device=device)


def test_raw_reads_of_small_tensors_see_no_number() -> None:
    def build() -> nn.Module:
        model = _layers(8)
        model.read = ctypes.c_float.from_address(_address(model[1].weight)).value
        return model

    assert math.isnan(build_model(build, seed=0).read)


def test_what_has_no_name() -> None:
    def build() -> nn.Module:
        model = nn.Linear(4, 4)
        model.kept = {"a": torch.randn(400, 400)}
        ctypes.c_float.from_address(_address(model.kept["a"])).value = 3.0
        return model

    with pytest.raises(ArgumentError, match="the memory of a tensor without a name was accessed"):
        build_model(build, seed=0)


@pytest.mark.parametrize("width", [8, 300])
def test_what_an_extension_fills_and_a_draw_changes_in_part(width: int) -> None:
    def build() -> nn.Module:
        w = Parameter(torch.empty(width, width))
        ctypes.c_float.from_address(_address(w) + 4 * width).value = 3.0
        nn.init.normal_(w[0])
        return Made(w=w)

    with pytest.raises(
        ArgumentError, match="the memory of parameter 'w' was accessed outside torch"
    ):
        build_model(build, seed=0)


def test_memory_that_is_used_after_it_was_filled() -> None:
    """Whoever asks torch for the address gets values, and may go on using it."""

    def build() -> nn.Module:
        model = _layers(300)
        memory = ctypes.c_float.from_address(model[1].weight.data_ptr())
        model.read = memory.value
        memory.value = 7.0
        return model

    model = build_model(build, seed=0)
    assert model[1].weight[0, 0].item() == 7.0
    assert model.read == build_model(lambda: _layers(300), seed=0)[1].weight[0, 0].item()


@pytest.mark.parametrize("width", [8, 300])
def test_a_pool_of_threads_that_writes(width: int) -> None:
    """Its threads were there before, so that nothing is done for them."""

    def build() -> nn.Module:
        model = _layers(width)
        pool.submit(lambda: model[1].weight.data.fill_(3.0)).result()
        return model

    with ThreadPoolExecutor(1) as pool:
        pool.submit(int).result()
        with pytest.raises(ArgumentError, match=TOUCHED):
            build_model(build, seed=0)


@linux
def test_a_pool_of_threads_that_reads() -> None:
    def build(width: int) -> nn.Module:
        model = _layers(width)
        model.sum = pool.submit(lambda: model[1].weight.detach().sum().item()).result()
        return model

    with ThreadPoolExecutor(1) as pool:
        pool.submit(int).result()
        with pytest.raises(ArgumentError, match=TOUCHED):
            build_model(lambda: build(300), seed=0)
        assert math.isnan(build_model(lambda: build(8), seed=0).sum)


# No false alarms.


def _neighbours(count: int, step: int, size: int = 327_680):
    """Tensors of 1.25 MB side by side, of which some are filled early."""

    def build() -> nn.Module:
        tensors = [torch.empty(size).normal_() for _ in range(count)]
        for number in range(0, count, step):
            tensors[number][:3].max().item()
        return nn.ParameterList(tensors)

    return build


@pytest.mark.parametrize("step", [1, 3, 8])
def test_neighbours_that_are_filled_early(step: int) -> None:
    model = build_model(_neighbours(16 * step, step), seed=0, device="meta")
    assert len(model) == 16 * step


@long
def test_two_thousand_neighbours() -> None:
    build_model(_neighbours(2000, 1), seed=0, device="meta")
    build_model(_neighbours(2000, 5), seed=0)


def test_small_neighbours_that_are_filled_early() -> None:
    model = build_model(_neighbours(300, 2, 5000), seed=0)
    meta = build_model(_neighbours(300, 2, 5000), seed=0, device="meta")
    assert_same(init_model_(meta, seed=0, device="cpu"), model)


def test_without_a_page_table(monkeypatch) -> None:
    """Marks do then: writes are found, values are the same."""
    expected = build_model(lambda: _layers(300), seed=0)
    opened = os.open

    def refuse(path, *arguments, **named):
        if path == "/proc/self/pagemap":
            raise PermissionError(13, "Permission denied")
        return opened(path, *arguments, **named)

    monkeypatch.setattr(os, "open", refuse)
    assert_same(build_model(lambda: _layers(300), seed=0), expected)
    assert_same(build_model(NanoGPT, seed=0), built("nanoGPT"))
    meta = build_model(lambda: _layers(300), seed=0, device="meta")
    assert_same(init_model_(meta, seed=0, device="cpu"), expected)
    build_model(_neighbours(16, 2), seed=0)
    with pytest.raises(ArgumentError, match=TOUCHED):
        build_model(_touch(300, write=True), seed=0)


@linux
def test_the_page_table_is_read_where_it_cannot_be_scanned(monkeypatch) -> None:
    """As of Linux before 6.7. Reading finds what scanning finds."""
    fcntl = pytest.importorskip("fcntl")
    found = []
    for scan in (True, False):
        if not scan:
            monkeypatch.setattr(fcntl, "ioctl", lambda *_: (_ for _ in ()).throw(OSError(25, "no")))
        memory = Memory()
        assert memory.has_pages
        for offset in (0, 1, 4095, 4096, 3 << 20, (4 << 20) - 1):
            tensor = memory.untouched((4 << 20,), (1,), torch.uint8)
            address = tensor.untyped_storage().data_ptr()
            before = memory.is_present(address, 4 << 20)
            ctypes.string_at(address + offset, 1)  # a read is enough
            after = [memory.is_present(address + at, 4096) for at in range(0, 4 << 20, 4096)]
            found.append((scan, offset, before, memory.is_present(address, 4 << 20), after))
        with pytest.raises(ArgumentError, match=TOUCHED):
            build_model(_touch(300, write=False), seed=0)
    half = len(found) // 2
    assert [each[1:] for each in found[:half]] == [each[1:] for each in found[half:]]
    for _, offset, before, after, pages in found:
        assert (before, after) == (False, True)
        assert [at for at, present in enumerate(pages) if present] == [offset // 4096]


# In processes of their own.

PROGRAM = """
import ctypes, hashlib, sys
import torch
from torch import nn
from torch.nn.parameter import Parameter
import torchinit

def digest(model):
    state = hashlib.blake2b(digest_size=8)
    for value in model.state_dict().values():
        state.update(value.contiguous().view(torch.uint8).numpy().tobytes())
    return state.hexdigest()

def size(line):
    with open("/proc/self/status") as file:
        return next(int(row.split()[1]) for row in file if row.startswith(line)) / 1024

def meta(build):
    return torchinit.build_model(build, seed=0, device="meta")

def layers():
    return nn.Sequential(*[nn.Linear(300, 300, bias=False) for _ in range(3)])

meta(lambda: nn.Linear(300, 300))
if "warm" in sys.argv:  # what torch imports at the first operators
    warm = lambda: nn.ParameterList([torch.randn(3) * 2 + 1, torch.randn(3).exp()])
    torchinit.build_model(warm, seed=0, dtype=torch.bfloat16)
before = size("VmHWM"), size("VmSize")
"""


def _child(program: str, *arguments: str) -> list[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(torchinit.__file__).parents[1])}
    done = warm.run("-c", PROGRAM + program, *arguments, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def _digest(model: nn.Module) -> str:
    state = hashlib.blake2b(digest_size=8)
    for value in model.state_dict().values():
        state.update(value.contiguous().view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


@linux
def test_memory_that_is_locked() -> None:
    """Pages are present at once, and tell nothing: marks do."""
    program = """
if ctypes.CDLL(None).mlockall(2):
    print("refused")
else:
    print(digest(torchinit.build_model(layers, seed=0)))
    print(len(list(meta(layers).parameters())))
    def build():
        model = layers()
        ctypes.c_float.from_address(address(model[1].weight)).value = 3.0
        return model
    try:
        torchinit.build_model(build, seed=0)
    except torchinit.ArgumentError as error:
        print("'1.weight'" in str(error))
"""
    said = _child("address = torch.Tensor.data_ptr\n" + program)
    if said == ["refused"]:
        pytest.skip("memory may not be locked here")
    assert said == [_digest(build_model(lambda: _layers(300), seed=0)), "3", "True"]


@linux
def test_a_tensor_of_200_gib_on_the_meta_device() -> None:
    said = _child("""
model = meta(lambda: nn.Embedding(53_687_092, 1000, padding_idx=0))
print(model.weight.nbytes >> 30, size("VmHWM") - before[0] < 50)
def build():
    model = nn.Module()
    model.w = Parameter(torch.randn(53_687_092, 1000) * 0.02)
    model.zeros = Parameter(torch.zeros(53_687_092, 1000))
    model.one = Parameter(torch.empty(53_687_092, 1000))
    nn.init.ones_(model.one)
    nn.init.normal_(model.one.data[1000:2000])
    model.short = Parameter(torch.randn(53_687_092, 1000).to(torch.bfloat16))
    return model
model = meta(build)
print(model.one.nbytes >> 30, size("VmHWM") - before[0] < 200)  # torch imports its kernels
""")
    assert said == ["200", "True", "200", "True"]


@linux
def test_a_constructor_of_70_billion_parameters() -> None:
    """As Llama's: 140 GB in bfloat16, which nobody touches."""
    said = _child("""
class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        shapes = {"q": (8192, 8192), "k": (8192, 1024), "v": (8192, 1024), "o": (8192, 8192),
                  "gate": (8192, 28672), "up": (8192, 28672), "down": (28672, 8192)}
        for name, (fan_in, fan_out) in shapes.items():
            setattr(self, name, nn.Linear(fan_in, fan_out, bias=False, dtype=torch.bfloat16))
        self.norm1, self.norm2 = nn.RMSNorm(8192), nn.RMSNorm(8192)
        for name in ("o", "down"):
            nn.init.trunc_normal_(getattr(self, name).weight, std=0.02)
            getattr(self, name).weight.data.mul_(0.1)

def build():
    model = nn.Module()
    model.embed = nn.Embedding(128256, 8192, dtype=torch.bfloat16)
    model.layers = nn.ModuleList(Layer() for _ in range(80))
    model.head = nn.Linear(8192, 128256, bias=False, dtype=torch.bfloat16)
    return model

model = meta(build)
print(sum(one.numel() for one in model.parameters()) // 10**9, size("VmHWM") - before[0] < 50)
""")
    assert said == ["70", "True"]


@linux
def test_memory_of_what_is_gone_is_given_back() -> None:
    said = _child(
        """
def build():
    for _ in range(200):
        gone = torch.randn(5000, 5000)
        gone = gone * 2 + 1
    return nn.Linear(2, 2)

torchinit.build_model(build, seed=0)
print(size("VmHWM") - before[0] < 50, size("VmSize") - before[1] < 1000)
""",
        "warm",
    )
    assert said == ["True", "True"]


@linux
def test_a_model_in_memory_takes_no_more_than_itself() -> None:
    """And what is computed, one parameter more."""
    said = _child(
        """
def build():
    model = nn.Sequential(*[nn.Linear(2000, 2000) for _ in range(16)])
    for layer in model:
        nn.init.trunc_normal_(layer.weight, std=0.02)
    model[3].weight = Parameter(torch.randn(2000, 2000).exp())
    return model

model = torchinit.build_model(build, seed=0, dtype=torch.bfloat16)
print(size("VmHWM") - before[0] < 128 + 32 + 50)
""",
        "warm",
    )
    assert said == ["True"]


@long
@linux
def test_more_tensors_than_there_may_be_mappings() -> None:
    said = _child("""
model = meta(lambda: nn.ParameterList(torch.empty(32768).normal_() for _ in range(100_000)))
print(len(model))
""")
    assert said == ["100000"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("way", ["build", "init", "patch"])
def test_a_child_is_not_kept_waiting_by_a_build_of_a_thread_that_it_lacks(way):
    """Which holds a lock, has seeded the generators, and replaced Thread.start."""
    inside, go_on = threading.Event(), threading.Event()

    class Waits(nn.Linear):
        def __init__(self):
            super().__init__(2, 2)
            inside.set()
            go_on.wait(60)

    ways = {
        "build": lambda: torchinit.build_model(lambda: nn.Linear(3, 3), seed=1),
        "init": lambda: torchinit.init_model_(nn.Linear(3, 3), seed=1),
        "patch": lambda: torchinit.patch_nn_init()(lambda: nn.Linear(3, 3))(),
    }
    torch.manual_seed(3)
    expected = ways[way]().weight
    torch.manual_seed(3)
    state, numbers = torch.get_rng_state(), random.getstate()

    def work():
        assert torch.equal(torch.get_rng_state(), state)
        assert random.getstate() == numbers
        assert torch.equal(ways[way]().weight, expected)

    thread = threading.Thread(target=lambda: torchinit.build_model(Waits, seed=0))
    thread.start()
    assert inside.wait(60)
    status = in_child(work)
    go_on.set()
    thread.join()
    assert status == 0


@native_only
@pytest.mark.parametrize("device", [None, "meta"])
@pytest.mark.parametrize(
    "fill",
    [
        lambda weight: torchinit.normal_(weight, std=math.nan),
        lambda weight: torchinit.normal_(weight, mean=math.inf),
        lambda weight: torchinit.normal_(weight, std=-1),
        lambda weight: torchinit.trunc_normal_(weight, std=-1),
        lambda weight: torchinit.trunc_normal_(weight, a=2, b=-2),
        lambda weight: torchinit.uniform_(weight, 3, 1),
        lambda weight: torchinit.constant_(weight.data.half(), 1e6),
    ],
)
def test_arguments_of_torchinits_functions_are_checked_inside(fill, device):
    def build():
        layer = nn.Linear(4, 4)
        fill(layer.weight)
        return layer

    with pytest.raises(ArgumentError):
        build()
    with pytest.raises(ArgumentError):
        torchinit.build_model(build, seed=0, device=device)
