"""``init_model_`` and ``plan_model``: a whole model by rules, or by its own initialisation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from torchinit.errors import ArgumentError
from torchinit.models.build_model import Model, build_model
from torchinit.models.carry_out import carry_out
from torchinit.models.materialise import attach_buffer, shard_like
from torchinit.models.plan import Plan
from torchinit.models.prepare import Only, prepare
from torchinit.placement.distributed import local_memory
from torchinit.streams.canonical import Named, Rename
from torchinit.streams.named_keys import keys_of_names


def init_model_(
    model: Model,
    rules: Mapping[Any, Any] | None = None,
    *,
    seed: int,
    device: torch.device | str | int | None = None,
    dtype: torch.dtype | None = None,
    strict: bool = True,
    rename: Rename = None,
    only: Only = None,
) -> Model:
    """Initialises a whole model in place, on the meta device or not.

    Every parameter's key is made of its name and the seed, so that it gets the same values whatever
    else is in the model, in which order it was built, how it is wrapped, and in which dtype but
    for rounding (docs/streams.md). Nothing is written before everything is known to be right.

    Args:
        model: of any kind. Parameters on the meta device get memory; ties, ``requires_grad`` and
            attributes are kept. Buffers on the meta device get what the model's own code gives
            them.
        rules: a mapping from patterns of names, or types of modules, to schemes; the first that
            matches a parameter wins. None is what the model's constructor gives, where that is
            known exactly: see docs/models.md.
        seed: as ``torch.manual_seed`` takes it.
        device: where what is on the meta device goes; None is torch's default device.
        dtype: of floating-point parameters on the meta device; None is their own.
        strict: whether a rule that matches no parameter is an error.
        rename: a mapping or function from canonical names to those that keys and rules are by, for
            models whose parts are called otherwise elsewhere.
        only: names or globs of what is to be filled, such as a new head: nothing else is read or
            written.

    Returns:
        model.

    Raises:
        ArgumentError: without rules, for a model whose constructor is not known; for a parameter
            that no rule matches, or that would stay unfilled; a rule that matches none; a scheme
            that cannot fill a parameter; a callable that raises or writes nothing; a buffer that
            nobody fills. The model is then as it was.
        TypeError: for what is no model, rule, scheme or seed; for a parameter of a subclass or
            dtype that only its own class can fill.

    >>> import torch, torchinit
    >>> with torch.device("meta"):
    ...     model = torch.nn.Linear(8, 4)
    >>> rules = {"**.bias": "zeros", "**": torchinit.Normal(0.02)}
    >>> model = torchinit.init_model_(model, rules, seed=0, device="cpu")
    >>> model.weight.shape
    torch.Size([4, 8])
    """
    found = prepare(
        model, rules, seed, device=device, dtype=dtype, strict=strict, rename=rename, only=only
    )
    carry_out(found.assignments, found.device, keys_of_names(seed))
    for named, value in found.filled:
        _put_buffer(named, value, found.device)
    found.own.end()
    return model


def plan_model(
    model: nn.Module | Callable[[], nn.Module],
    rules: Mapping[Any, Any] | None = None,
    *,
    strict: bool = True,
    rename: Rename = None,
) -> Plan:
    """Says what ``init_model_`` would do: every parameter, its rule, its scheme, fans and std.

    Nothing is written. Printed, it is a table.

    Args:
        model: or, without rules, a function that builds one: what ``build_model`` would do.
        rules, strict, rename: as ``init_model_``.

    Raises:
        ArgumentError, TypeError: as ``init_model_`` does for the same, but for what only a callable
            that has been called can tell.

    >>> import torch, torchinit
    >>> plan = torchinit.plan_model(torch.nn.Linear(8, 4), {"**": torchinit.Constant(1)})
    >>> [(row.name, row.rule, row.fans) for row in plan]
    [('weight', '**', (8, 4)), ('bias', '**', None)]
    """
    if not isinstance(model, nn.Module) and callable(model):
        if rules is not None:
            raise ArgumentError(
                "a function that builds a model has no rules: they are for a model that is there"
            )
        model = build_model(model, seed=0, device="meta", rename=rename)
    return Plan(prepare(model, rules, 0, device="cpu", strict=strict, rename=rename).assignments)


def _put_buffer(named: Named, value: Tensor, device: torch.device) -> None:
    """Gives a buffer other values, in its own memory where it has that."""
    before: Tensor = named.tensor
    if before.is_meta:
        attach_buffer(named, value.to(device, before.dtype, copy=True))
        return
    with torch.no_grad():
        local_memory(before).copy_(local_memory(shard_like(value, before, before.device)))
