"""What several test modules need."""

from __future__ import annotations

import pytest

from torchinit.native import load as native

native_only = pytest.mark.skipif(
    native.module is None, reason=f"promised by the native module only: {native.reason}"
)
