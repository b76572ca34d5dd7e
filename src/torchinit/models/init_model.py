"""``init_model_`` and ``plan_model``: a whole model by rules, or by its own initialisation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import nn

from torchinit.models.assign import assign, check_kinds
from torchinit.models.carry_out import carry_out
from torchinit.models.materialise import attach_buffer, check_apart, shard_like
from torchinit.models.own_init import OwnInit, assign_own, run_own_init
from torchinit.models.plan import Plan
from torchinit.models.prepare import check_model, prepare
from torchinit.placement.distributed import local_memory
from torchinit.rules.rules import Rules
from torchinit.streams.canonical import Rename, gather
from torchinit.streams.names import keys_of_names

Model = TypeVar("Model", bound=nn.Module)


def init_model_(
    model: Model,
    rules: Mapping[Any, Any] | None = None,
    *,
    seed: int,
    device: torch.device | str | int | None = None,
    dtype: torch.dtype | None = None,
    strict: bool = True,
    rename: Rename = None,
) -> Model:
    """Initialises a whole model in place, on the meta device or not.

    Every parameter's key is made of its name and the seed, so that it gets the same values whatever
    else is in the model, in which order it was built, how it is wrapped, and in which dtype but
    for rounding (docs/streams.md). Nothing is written before everything is known to be right.

    Args:
        model: of any kind. Parameters on the meta device get memory; ties, ``requires_grad`` and
            attributes are kept. Buffers on the meta device are filled by the model's own code
            (``reset_parameters``, ``_init_weights``, ``init_weights``, ...).
        rules: a mapping from patterns of names, or types of modules, to schemes; the first that
            matches a parameter wins. None is the model's own initialisation, as far as methods of
            its modules do it. See docs/models.md.
        seed: as ``torch.manual_seed`` takes it.
        device: where what is on the meta device goes; None is torch's default device.
        dtype: of floating-point parameters on the meta device; None is their own.
        strict: whether a rule that matches no parameter is an error.
        rename: a mapping or function from canonical names to those that keys and rules are by, for
            models whose parts are called otherwise elsewhere.

    Returns:
        model.

    Raises:
        ArgumentError: for a parameter that no rule matches, or that would stay unfilled; a rule
            that matches none; a scheme that cannot fill a parameter; a callable that raises or
            writes nothing; a buffer that nobody fills. The model is then as it was.
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
    key_of_name = keys_of_names(seed)
    found = prepare(
        model, rules, key_of_name, device=device, dtype=dtype, strict=strict, rename=rename
    )
    own = found.own
    carry_out(found.assignments, found.device, key_of_name, own.values if own else {})
    if own is not None:
        _put_buffers(own, also_real=rules is None)
    return model


def plan_model(
    model: nn.Module,
    rules: Mapping[Any, Any] | None = None,
    *,
    strict: bool = True,
    rename: Rename = None,
) -> Plan:
    """Says what ``init_model_`` would do: every parameter, its rule, its scheme, fans and std.

    Nothing is written. Printed, it is a table.

    Args:
        model, rules, strict, rename: as ``init_model_``.

    Raises:
        ArgumentError, TypeError: as ``init_model_`` does for the same, but for what only a callable
            that has been called can tell.

    >>> import torch, torchinit
    >>> plan = torchinit.plan_model(torch.nn.Linear(8, 4), {"**": torchinit.Constant(1)})
    >>> [(row.name, row.rule, row.fans) for row in plan]
    [('weight', '**', (8, 4)), ('bias', '**', None)]
    """
    check_model(model)
    parameters, buffers = gather(model, rename)
    check_kinds(parameters)
    check_apart(parameters)
    if rules is not None:
        return Plan(assign(parameters, Rules(rules), None, strict=strict))
    own = run_own_init(
        model, parameters, buffers, torch.device("cpu"), keys_of_names(0), only_buffers=True
    )
    return Plan(assign_own(parameters, own, None))


def _put_buffers(own: OwnInit, *, also_real: bool) -> None:
    """Buffers that were on the meta device, and those that the model's own code has set again."""
    for old, new in own.buffers:
        before = old.tensor
        if before.is_meta:
            attach_buffer(old, new)
        elif also_real and (new.shape, new.dtype) == (before.shape, before.dtype):
            with torch.no_grad():
                local_memory(before).copy_(local_memory(shard_like(new, before, before.device)))
        elif also_real:
            attach_buffer(old, new)
