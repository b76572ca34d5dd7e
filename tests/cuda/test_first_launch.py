"""The first launch of a kernel may be inside a graph capture: each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from torchinit.native import load as native

PROGRAM = Path(__file__).parents[1] / "programs" / "first_launch.py"
no_gpu = "" if torch.cuda.is_available() else "torch sees no CUDA device"


def outcome(kind, device):
    run = subprocess.run(
        [sys.executable, PROGRAM, kind, device], capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


@pytest.mark.skipif(bool(no_gpu) or native.cuda is None, reason=no_gpu or native.cuda_reason)
@pytest.mark.parametrize("kind", ["contiguous", "constant", "transposed", "orthogonal"])
def test_first_launch_inside_a_capture(kind):
    assert outcome(kind, "cuda") == "equal"


def test_the_program_compares():
    assert outcome("transposed", "cpu") == "equal"
