"""Works out and checks what a model will be filled with, before anything is written."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from torchinit.errors import ArgumentError
from torchinit.models.assign import Assignment, assign, check_kinds, some
from torchinit.models.materialise import check_apart, joined, target_device
from torchinit.models.own import Own
from torchinit.models.ties import check_joined, share_pads, warn_of_broken_ties
from torchinit.placement.distributed import reshard_all
from torchinit.rules.pattern import translate
from torchinit.rules.rules import Rules
from torchinit.streams.canonical import Named, Rename, gather

# Names or globs of the tensors to fill; None means all.
Only: TypeAlias = "str | Sequence[str] | None"


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
    check_model(model)
    check_dtype(dtype)
    reshard_all(model)
    parameters, buffers = gather(model, rename)
    parameters = joined(parameters)
    everything = parameters, buffers
    if only is not None:
        parameters, buffers = _chosen(model, parameters, buffers, only)
    own = Own(model, *everything, (*parameters, *buffers), seed, rename)
    check_kinds(parameters)
    check_apart(parameters)
    there = torch.device("cpu")
    if any(named.tensor.is_meta for named in (*parameters, *buffers)):
        there = target_device(device, parameters)
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
    return Prepared(share_pads(assignments), buffers, filled, own, there)


def _chosen(
    model: nn.Module, parameters: Sequence[Named], buffers: Sequence[Named], only: Only
) -> tuple[list[Named], list[Named]]:
    """The tensors whose canonical name or ``state_dict`` FQN matches a glob.

    Raises:
        TypeError: if only is neither a string nor strings.
        ArgumentError: for a glob that matches nothing.
    """
    globs = [only] if isinstance(only, str) else only
    if not isinstance(globs, Iterable) or not all(isinstance(glob, str) for glob in globs):
        raise TypeError(f"only={only!r} must be names or globs: a string or a list of strings")
    globs = list(globs)
    names: dict[int, list[str]] = {}
    for register in (model.named_parameters, model.named_buffers):
        for name, tensor in register(remove_duplicate=False):
            names.setdefault(id(tensor), []).append(name)
    found: tuple[list[Named], list[Named]] = [], []
    patterns = {glob: re.compile(translate(glob), re.DOTALL) for glob in globs}
    unused = set(globs)
    for group, kept in zip((parameters, buffers), found, strict=True):
        for named in group:
            said = (*(slot.name for slot in named.slots), *names[id(named.tensor)])
            matching = {
                glob for glob, pattern in patterns.items()
                if any(map(pattern.fullmatch, said))
            }  # fmt: skip
            unused -= matching
            if matching:
                kept.append(named)
    if unused or not globs:
        what = some(sorted(unused)) if unused else repr(only)
        raise ArgumentError(f"only: {what} matches no parameter or buffer of the model")
    return found


def check_dtype(dtype: torch.dtype | None) -> None:
    """Raises TypeError or ArgumentError unless dtype is None or a floating-point dtype."""
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype={dtype!r} must be a torch.dtype, not {type(dtype).__name__}")
    if dtype is not None and not dtype.is_floating_point:
        raise ArgumentError(f"dtype={dtype} must be a floating-point dtype")


def check_model(model: object) -> None:
    """Raises TypeError unless model is a module."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
