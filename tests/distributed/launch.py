"""Programs on several processes, by torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

import torchinit

needs_gloo = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="torch was built without gloo"
)


# A thread of gloo may still hold a tensor when Python ends, on a busy machine
# (https://github.com/pytorch/pytorch/issues/190489).
FAULT_AT_EXIT = "terminate called without an active exception"


def torchrun(processes, program, *arguments, seconds=300):
    """Runs a program on CPUs, one thread each; returns what it printed."""
    code, out, err = _run(processes, program, *arguments, seconds=seconds)
    if code and FAULT_AT_EXIT in err:
        code, out, err = _run(processes, program, *arguments, seconds=seconds)
    assert code == 0, err
    return out


def _run(processes, program, *arguments, seconds):
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *(f"--nproc-per-node={processes}", program, *arguments),
    ]
    environment = {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(Path(torchinit.__file__).parents[1]), *sys.path]),
    }
    run = subprocess.Popen(
        command,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        out, err = run.communicate(timeout=seconds)
    except BaseException:
        run.terminate()  # it ends the ranks, which have sessions of their own
        try:
            out, err = run.communicate(timeout=60)
        finally:
            run.kill()
        pytest.fail(f"it had not ended after {seconds} s\n{out}\n{err}")
    return run.returncode, out, err
