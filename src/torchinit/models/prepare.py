"""Works out and checks what a model will be filled with, before anything is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from torchinit.errors import ArgumentError
from torchinit.models.assign import Assignment, assign
from torchinit.models.inspect_model import Only, inspect_model
from torchinit.models.own import Own
from torchinit.models.ties import check_joined, share_pads, warn_of_broken_ties
from torchinit.rules.rules import Rules
from torchinit.streams.canonical import Named, Rename


class Prepared(NamedTuple):
    """What a model will be filled with.

    Attributes:
        assignments: one for each parameter, in the model's order.
        buffers: all of the model's buffers.
        filled: buffers to write, and their values.
        own: finds the default initialisation.
        device: the final device of tensors on the meta device.
    """

    assignments: Sequence[Assignment]
    buffers: Sequence[Named]
    filled: Sequence[tuple[Named, Tensor]]
    own: Own
    device: torch.device


def prepare(
    model: nn.Module,
    rules: Mapping[Any, Any] | None,
    seed: int,
    *,
    device: torch.device | str | int | None = None,
    dtype: torch.dtype | None = None,
    strict: bool = True,
    rename: Rename = None,
    only: Only = None,
) -> Prepared:
    """Works out what ``init_model_`` will do, and checks that it can.

    Args:
        model, rules, seed, device, dtype, strict, rename, only: as for ``init_model_``.

    Raises:
        ArgumentError, TypeError: as ``init_model_``.
    """
    check_dtype(dtype)
    found = inspect_model(model, device, rename, only)
    parameters, buffers = found.parameters, found.buffers
    own = Own(model, found.all_parameters, found.all_buffers, (*parameters, *buffers), seed, rename)
    if rules is None:
        assignments = own.assign(parameters, dtype)
        filled = own.fill_buffers(buffers)
    else:
        strict = strict and only is None
        assignments = assign(parameters, Rules(rules), dtype, strict=strict, own=own.assign)
        filled = own.fill_buffers([named for named in buffers if named.tensor.is_meta])
    check_joined(assignments)
    are_alike = own.are_alike if rules is None else lambda one, other: False  # noqa: ARG005
    warn_of_broken_ties(model, rename, are_alike)
    return Prepared(share_pads(assignments), buffers, filled, own, found.device)


def check_dtype(dtype: torch.dtype | None) -> None:
    """Raises TypeError or ArgumentError unless dtype is None or a floating-point dtype."""
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype={dtype!r} must be a torch.dtype, not {type(dtype).__name__}")
    if dtype is not None and not dtype.is_floating_point:
        raise ArgumentError(f"dtype={dtype} must be a floating-point dtype")
