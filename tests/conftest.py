"""What several test modules need, and how much of the suite is run."""

from __future__ import annotations

import os

# Tests run beside each other: threads that spin while they wait would hold the others' cores. Read
# when torch and NumPy are imported, and by the processes that tests start.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings

from torchinit.native import load as native

native_only = pytest.mark.skipif(
    native.module is None, reason=f"promised by the native module only: {native.reason}"
)
# Slow tests of what a faster one covers too; only `make test-all` runs them.
long = pytest.mark.long


@pytest.fixture
def one_thread():
    """On busy cores torch's threads wait for each other: some tests took forty times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


settings.register_profile("quick", max_examples=100, deadline=None, derandomize=True)
settings.register_profile("deep", max_examples=1000, deadline=None, derandomize=True)
settings.load_profile("quick")  # --hypothesis-profile comes after
