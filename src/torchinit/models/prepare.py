"""What a model is to get, found out before anything is filled: by rules, or by its own code."""

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

# Names or globs of the tensors that are to be filled; None is all.
Only: TypeAlias = "str | Sequence[str] | None"


class Prepared(NamedTuple):
    """What a model is to get.

    Attributes:
        assignments: of all parameters, in the model's order.
        buffers: all of the model's.
        filled: buffers that are to have other values, and these.
        own: what knows its own initialisation, if that was asked for.
        device: where what is on the meta device goes.
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
    """Finds out what ``init_model_`` is to do, and that nothing is wrong with it.

    Args:
        model, rules, seed, device, dtype, strict, rename, only: as ``init_model_``.

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
    """The tensors whose names globs match, canonical or as ``load_state_dict`` says them.

    Raises:
        TypeError: for what are no strings.
        ArgumentError: for one that matches nothing.
    """
    globs = [only] if isinstance(only, str) else only
    if not isinstance(globs, Iterable) or not all(isinstance(glob, str) for glob in globs):
        raise TypeError(f"only={only!r} must be names or globs: a string, or several")
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
    """Raises TypeError or ArgumentError for what is no dtype of floating-point parameters."""
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype={dtype!r} must be a torch.dtype, not {type(dtype).__name__}")
    if dtype is not None and not dtype.is_floating_point:
        raise ArgumentError(f"dtype={dtype} must be a floating-point one")


def check_model(model: object) -> None:
    """Raises TypeError for what is no model."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
