"""Fills all of what a part is of: a tensor, or a view of one, by a stream of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from torchinit import functional
from torchinit.fill.door import fill
from torchinit.orthogonal import fill_orthogonal
from torchinit.rules.part import Computed, Function, Matrix
from torchinit.schemes.calls import Call
from torchinit.streams.keys import Stream


def fill_whole(view: Tensor, values: Any, stream: Stream) -> None:
    """Fills a tensor with the values of a part that is all of it."""
    if isinstance(values, Matrix):
        fill_orthogonal(view, values.gain, stream)
    elif isinstance(values, Call):
        # sparse_ draws from torch's default generator alone, whatever it is given (torch 2.13).
        with seeded(stream if values.name == "sparse_" else None, view.device):
            getattr(functional, values.name)(view, **values.arguments)
    elif isinstance(values, Tensor):
        with torch.no_grad():
            view.copy_(values)
    elif isinstance(values, Function):
        values.function(view)
    elif isinstance(values, Computed):
        with torch.no_grad():
            view.copy_(values.make())
    else:
        fill(values, view, stream)


@contextmanager
def seeded(key: Stream, device: torch.device) -> Iterator[None]:
    """Seeds torch's default generators with a key within a block; does nothing without a key."""
    if not isinstance(key, int):
        yield
        return
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(key)
        yield
