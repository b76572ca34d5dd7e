"""What a model is to get, found out before anything is filled: by rules, or by its own code."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from torchinit.errors import ArgumentError
from torchinit.models.assign import Assignment, assign, check_kinds
from torchinit.models.collection import no_collection
from torchinit.models.keyed import KeyOfName
from torchinit.models.materialise import check_apart, target_device
from torchinit.models.own_init import OwnInit, assign_own, check_buffers, run_own_init
from torchinit.models.ties import check_joined, share_pads, warn_of_broken_ties
from torchinit.placement.distributed import reshard_all
from torchinit.rules.rules import Rules
from torchinit.streams.canonical import Named, Rename, gather


class Prepared(NamedTuple):
    """What a model is to get.

    Attributes:
        assignments: of all parameters, in the model's order.
        buffers: all of the model's.
        own: what its own initialisation came to, if that was run.
        device: where what is on the meta device goes.
    """

    assignments: Sequence[Assignment]
    buffers: Sequence[Named]
    own: OwnInit | None
    device: torch.device


def prepare(
    model: nn.Module,
    rules: Mapping[Any, Any] | None,
    key_of_name: KeyOfName,
    *,
    device: torch.device | str | int | None = None,
    dtype: torch.dtype | None = None,
    strict: bool = True,
    rename: Rename = None,
) -> Prepared:
    """Finds out what ``init_model_`` is to do, and that nothing is wrong with it.

    Args:
        model, rules, device, dtype, strict, rename: as ``init_model_``.
        key_of_name: under the seed.

    Raises:
        ArgumentError, TypeError: as ``init_model_``.
    """
    check_model(model)
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype={dtype!r} must be a torch.dtype, not {type(dtype).__name__}")
    if dtype is not None and not dtype.is_floating_point:
        raise ArgumentError(f"dtype={dtype} must be a floating-point one")
    warn_of_broken_ties(model, rename)
    reshard_all(model)
    assignments: list[Assignment] = []
    with no_collection():
        parameters, buffers = gather(model, rename)
        check_kinds(parameters)
        check_apart(parameters)
        if rules is not None:
            assignments = assign(parameters, Rules(rules), dtype, strict=strict)
    there = torch.device("cpu")
    if _any_meta(parameters, buffers):
        there = target_device(device, parameters)
    own: OwnInit | None = None
    if rules is None:
        own = run_own_init(model, parameters, buffers, there, key_of_name, dtype=dtype)
        assignments = assign_own(parameters, own, dtype)
    elif any(named.tensor.is_meta for named in buffers):
        own = run_own_init(model, parameters, buffers, there, key_of_name, only_buffers=True)
    if own is not None:
        check_buffers(buffers, own)
    check_joined(assignments)
    return Prepared(share_pads(assignments), buffers, own, there)


def check_model(model: object) -> None:
    """Raises TypeError for what is no model."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")


def _any_meta(*groups: Iterable[Named]) -> bool:
    return any(named.tensor.is_meta for group in groups for named in group)
