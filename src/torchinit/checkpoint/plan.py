"""What a checkpoint will be, before anything is written: its tensors, their values, its files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import nn

from torchinit.checkpoint.fingerprint import fingerprint_of
from torchinit.checkpoint.layout import Entry, Layout, checked_size, lay_out
from torchinit.checkpoint.names import Stored, stored_tensors
from torchinit.checkpoint.source import Config, Rules, read_source, rules_for, small_files
from torchinit.checkpoint.values import Ready, Values, values_of
from torchinit.models.carry_out import whole_of
from torchinit.models.plan import Plan
from torchinit.models.prepare import Prepared, prepare
from torchinit.native.torch_private import storage_number
from torchinit.streams.named_keys import KeyOfName, keys_of_names

_CPU = torch.device("cpu")


class CheckpointPlan(NamedTuple):
    """A checkpoint that is still to be written.

    Attributes:
        parameters: how many values all parameters have, tied ones once.
        layout: of the weights.
        small: names and contents of the files beside them.
        fingerprint: what decides the bytes.
        table: what each parameter gets.
    """

    parameters: int
    layout: Layout
    small: Mapping[str, bytes]
    fingerprint: Mapping[str, object]
    table: Plan


def plan_checkpoint(
    config: Config,
    rules: Rules,
    *,
    seed: int,
    dtype: torch.dtype | None,
    shard_size: int | str,
    rules_source: bytes | None = None,
) -> CheckpointPlan:
    """Finds out all that a checkpoint will be, and that nothing is wrong with it.

    Args:
        config, rules, seed, dtype, shard_size: as ``write_checkpoint``.
        rules_source: the text of the rules, which callables among them are told apart by.

    Raises:
        ArgumentError, TypeError, OSError, ImportError: as ``write_checkpoint``.
    """
    key_of_name = keys_of_names(seed)
    size = checked_size(shard_size)
    source = read_source(config, seed, has_rules=rules is not None)
    found = prepare(source.model, rules_for(rules, source), seed, device=_CPU, dtype=dtype)
    parameters = sum(one.named.tensor.numel() for one in found.assignments)
    values = _values(found, key_of_name)
    entries = list(_entries(source.model, stored_tensors(source.model), values))
    layout = lay_out(entries, size, parameters)
    small = small_files(source, dtype)
    fingerprint = fingerprint_of(
        found,
        layout,
        seed=seed,
        dtype=dtype,
        shard_size=size,
        config=small.get("config.json"),
        rules_source=rules_source,
    )
    return CheckpointPlan(parameters, layout, small, fingerprint, Plan(found.assignments))


def _values(found: Prepared, key_of_name: KeyOfName) -> dict[int, Values]:
    """The values of all parameters and buffers, by their memory."""
    values: dict[int, Values] = {}
    for one in found.assignments:
        make = partial(whole_of, one, _CPU, key_of_name)
        values[storage_number(one.named.tensor)] = values_of(one, key_of_name, make)
    for named in found.buffers:
        if not named.tensor.is_meta:
            values[storage_number(named.tensor)] = Ready(named.tensor)
    for named, after in found.filled:
        values[storage_number(named.tensor)] = Ready(after)
    return values


def _entries(
    model: nn.Module, stored: list[Stored], values: Mapping[int, Values]
) -> Iterator[Entry]:
    sizes = {storage_number(one): one for one in (*model.parameters(), *model.buffers())}
    for name, of, view in stored:
        number = storage_number(view)
        whole, its = sizes[number], values[number]
        if isinstance(its, Ready) and view.shape == whole.shape:
            yield Entry(name, its.shape, its, of, 0)
            continue
        shape, first = tuple(view.shape), int(view.storage_offset())
        if view.shape == whole.shape and view.stride() == whole.stride():
            yield Entry(name, shape, its, of, 0)
        elif view.is_contiguous():
            yield Entry(name, shape, its, of, first)
        else:
            yield Entry(name, shape, its, of, first, tuple(view.stride()))
