"""Fills tensors of a device that torch offers without hardware, and compares with the CPU's.

Its tensors are torch's own plain ones, whose storage reports no bytes; what they hold lies in CPU
tensors beside them. Run by tests/fill/test_via_host.py in a process of its own: the device stays.
"""

from __future__ import annotations

import torch
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend
from torch.utils.weak import WeakIdKeyDictionary

_setup_privateuseone_for_python_backend("npy")

import torchinit  # noqa: E402
from torchinit.dtypes import ALL_DTYPES  # noqa: E402

held = WeakIdKeyDictionary()
library = torch.library.Library("aten", "IMPL")


def on_device(values):
    tensor = torch._C._acc.create_empty_tensor(tuple(values.shape), values.dtype)
    held[tensor] = values
    return tensor


def copy_from(source, target, _non_blocking=False):
    if target.device.type == "cpu":
        target.copy_(held[source])
    else:
        held[target].copy_(source)
    return target


def as_strided(tensor, size, stride, offset=None):
    return on_device(held[tensor].as_strided(size, stride, offset or 0))


library.impl("_copy_from", copy_from, "PrivateUse1")
library.impl("as_strided", as_strided, "PrivateUse1")

assert on_device(torch.zeros(3)).untyped_storage().nbytes() == 0


def fills(tensor):
    torchinit.normal_(tensor, 0.5, 2.0)
    yield
    torchinit.uniform_(tensor, -1.0, 1.0)
    yield
    torchinit.trunc_normal_(tensor)
    yield
    torchinit.constant_(tensor, 1.5)
    yield
    torchinit.init_(tensor, None, "kaiming_normal")
    yield
    torchinit.orthogonal_(tensor)
    yield
    with torchinit.batch():
        torchinit.normal_(tensor)
    yield
    torch.ops.torchinit.normal_(tensor, torch.tensor(5), 0.0, 1.0)
    yield


compared = 0
for dtype in ALL_DTYPES:
    for shape in ((40, 30), (5, 6, 7), (1, 3_000_000)):
        if shape[1] > 1000 and dtype is not torch.float32:
            continue
        there, here = on_device(torch.zeros(shape).to(dtype)), torch.zeros(shape).to(dtype)
        assert torchinit.which(there, "normal").kind == "staged", torchinit.which(there, "normal")
        torch.manual_seed(1)
        steps = fills(there)
        found = [held[there].clone().view(torch.uint8) for _ in steps]
        state = torch.get_rng_state()
        torch.manual_seed(1)
        expected = [here.clone().view(torch.uint8) for _ in fills(here)]
        assert torch.equal(torch.get_rng_state(), state)
        assert all(map(torch.equal, found, expected)), (dtype, shape)
        compared += len(found)

print(compared)
