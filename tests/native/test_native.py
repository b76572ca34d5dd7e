"""The built module: what it links to, what it may not, and the choice of instruction set."""

from __future__ import annotations

import hashlib
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import warm
from conftest import native_only
from torchinit.native import load as native
from torchinit.native.numbers import DTYPE_NUMBERS
from torchinit.schemes.distributions import Distribution

pytestmark = native_only

FORBIDDEN = re.compile(r"\b(c10|at|torch)::|N(K)?(3c10|2at|5torch)\d")


def undefined_symbols(path: str) -> list[str]:
    """Undefined symbols of a shared object, mangled and demangled."""
    run = subprocess.run(["nm", "-D", "--undefined-only", path], capture_output=True, check=True)
    mangled = run.stdout.decode()
    demangled = subprocess.run(["c++filt"], input=run.stdout, capture_output=True, check=True)
    return (mangled + demangled.stdout.decode()).splitlines()


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess:
    return warm.run("-c", code, env={**os.environ, **environment})


def test_no_libtorch_symbol():
    symbols = undefined_symbols(native.module.__file__)
    assert len(symbols) > 20
    assert not [symbol for symbol in symbols if FORBIDDEN.search(symbol)]


def test_the_symbol_check_can_fail():
    """torch's own library is full of them."""
    library = str(Path(torch.__file__).parent / "lib" / "libtorch_python.so")
    assert [symbol for symbol in undefined_symbols(library) if FORBIDDEN.search(symbol)]


def test_no_library_of_torch_is_linked():
    run = subprocess.run(
        ["readelf", "-d", native.module.__file__], capture_output=True, text=True, check=True
    )
    needed = re.findall(r"NEEDED.*\[(.*)\]", run.stdout)
    assert needed
    assert not [name for name in needed if re.search("torch|c10|gomp|iomp|omp", name)]


def test_no_second_openmp_runtime():
    code = """
import os, re, torch, torchinit
torch.set_num_threads(2)
before = len(os.listdir("/proc/self/task"))
torchinit.normal_(torch.empty(1 << 20))
more = len(os.listdir("/proc/self/task")) - before
torch.rand(1 << 20).sum()
with open("/proc/self/maps") as maps:
    print([sorted(set(re.findall(r"\\S*/lib[gi]?omp\\S*", maps.read()))), more])
"""
    run = run_python(code)
    assert run.returncode == 0, run.stderr
    libraries, more = eval(run.stdout)
    assert len(libraries) == 1, libraries
    assert more == 1  # its second thread


def test_threads_need_no_runtime_of_torchs():
    """In a process without torch."""
    file = Path(native.module.__file__)
    code = """
import ctypes, hashlib, os, sys
sys.path.append(sys.argv[1])
import _native
memory = ctypes.create_string_buffer(1 << 22)
_native.fill(1, 1, 0.0, 1.0, 0.0, 0.0, 7, ctypes.addressof(memory), 1 << 20, 4)
digest = hashlib.sha256(memory.raw).hexdigest()
print(len(os.listdir("/proc/self/task")), digest)
"""
    run = subprocess.run(
        [sys.executable, "-c", code, str(file.parent)], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    tensor = torch.empty(1 << 20)
    native.module.fill(1, 1, 0.0, 1.0, 0.0, 0.0, 7, tensor.data_ptr(), tensor.numel(), 4)
    expected = hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
    assert run.stdout.split() == ["4", expected]


def test_numbers_of_the_enumerations():
    """Python passes the numbers of csrc/job/plan.h."""
    theirs = native.module.Distribution.__members__
    assert {name: int(member) for name, member in theirs.items()} == dict(Distribution.__members__)
    for dtype, number in DTYPE_NUMBERS.items():
        name = str(dtype).removeprefix("torch.").upper()
        assert int(getattr(native.module.Dtype, name)) == number


@pytest.mark.parametrize(
    "x", [-37.0, -20.0, -8.5, -5.0, -2.5, -2.25, -2.2499, -1.0, -1e-9, 0.0, 0.3, 2.0, 4.0, 9.0]
)
def test_normal_cdf(x):
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workdps(40):
        expected = float(mpmath.ncdf(x))
    assert native.module.normal_cdf(x) == pytest.approx(expected, rel=2e-14)


def test_normal_cdf_ends():
    assert native.module.normal_cdf(-math.inf) == 0.0
    assert native.module.normal_cdf(math.inf) == 1.0
    assert math.isnan(native.module.normal_cdf(math.nan))


@pytest.mark.parametrize("name", native.module.instruction_sets() if native.module else [])
def test_environment_forces_the_instruction_set(name):
    run = run_python(
        "from torchinit.native import load; print(load.module.instruction_set())",
        TORCHINIT_ISA=name,
    )
    assert run.stdout.strip() == name, run.stderr


def test_unknown_instruction_set_is_an_error():
    run = run_python("import torchinit", TORCHINIT_ISA="sse9")
    assert run.returncode != 0
    assert "TORCHINIT_ISA='sse9'" in run.stderr


def test_fill_box_rejects_boxes_outside():
    memory = torch.zeros(4)
    with pytest.raises(ValueError, match="exceeds the logical shape"):
        native.module.fill_box(
            1, 1, 0.0, 1.0, 0.0, 0.0, 0, memory.data_ptr(), [4], [1], [5], [2], 1
        )
    with pytest.raises(ValueError, match="same length"):
        native.module.fill_box(
            1, 1, 0.0, 1.0, 0.0, 0.0, 0, memory.data_ptr(), [4], [1], [5], [0, 0], 1
        )
    with pytest.raises(ValueError, match="2\\^63"):
        native.module.fill_box(
            1, 1, 0.0, 1.0, 0.0, 0.0, 0, memory.data_ptr(),
            [1, 1], [1, 1], [2**40, 2**40], [0, 0], 1,
        )  # fmt: skip
    assert (memory == 0).all()
