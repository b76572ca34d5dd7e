"""``init_model_`` and ``plan_model``: a whole model by rules or by its default initialisation."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from torchinit.check.uninitialized import UNWRITTEN, Uninitialized
from torchinit.errors import ArgumentError, check_flag
from torchinit.models.assign import Assignment, assign, join_names
from torchinit.models.build_model import Model, build_model
from torchinit.models.carry_out import carry_out
from torchinit.models.inspect_model import Inspected, Only, check_buffers_apart, inspect_model
from torchinit.models.left_out import left_out, tell
from torchinit.models.own import Own
from torchinit.models.plan import Plan
from torchinit.models.quantised import (
    Found,
    check_scales,
    fill_quantised,
    find_quantised,
    make_ready,
    split,
)
from torchinit.placement.distributed import local_memory
from torchinit.quantised.formats import BlockFormat
from torchinit.rules.rules import Rules
from torchinit.streams.canonical import Named, Rename
from torchinit.streams.named_keys import keys_of_names
from torchinit.untrusted import first_names

_COUNTS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


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
    formats: Mapping[Any, BlockFormat] | None = None,
) -> Model:
    """Initialises a whole model in place, on the meta device or not.

    Each parameter's key is derived from its name and the seed, so its values do not depend on the
    rest of the model, the order of construction, wrappers or, but for rounding, the dtype
    (docs/streams.md). All arguments are checked before anything is written.

    Args:
        model: any module. Parameters on the meta device get memory; ties, ``requires_grad`` and
            attributes are kept. Buffers on the meta device are filled by rules of their own, or by
            the model's own code.
        rules: a mapping from name patterns or module types to schemes; the first match wins. A
            pattern that matches only buffers sets them to a tensor, or to what a function of the
            shape returns. None reproduces the model's default initialisation, if it is known
            exactly: see docs/models.md.
        seed: as for ``torch.manual_seed``.
        device: the final device of tensors on the meta device; None is torch's default device.
            Parameters in memory must be there.
        dtype: for floating-point parameters on the meta device; None keeps theirs. Those in memory
            must have it.
        strict: whether a rule or format that matches no parameter is an error.
        rename: a mapping or function from canonical names to the names used for keys and rules,
            for models whose parts have other names elsewhere.
        only: names or globs of the tensors to fill, such as a new head; no other tensor is read or
            written.
        formats: a mapping from patterns to formats (``MXFP8``, ``FP8Blocks``, ``NVFP4``) of the
            low-precision weights. Their payload gets the quantised values of their rules, in one
            pass, and their scales, which are found beside or inside them, need no rule.

    Returns:
        model.

    Raises:
        ArgumentError: if parameters in memory have another device or dtype than given. Without
            rules, if the model's default initialisation is not known. For an
            unmatched or unfilled parameter, an unused rule, a scheme that cannot fill a parameter,
            a callable that raises or writes nothing, or a buffer without known values. The model
            is then unchanged. Also, after the fill, if a module does not use what was filled.
        TypeError: for an invalid model, rule, scheme or seed; for a parameter of an unsupported
            subclass or dtype.

    >>> import torch, torchinit
    >>> with torch.device("meta"):
    ...     model = torch.nn.Linear(8, 4)
    >>> rules = {"**.bias": "zeros", "**": torchinit.Normal(0.02)}
    >>> model = torchinit.init_model_(model, rules, seed=0, device="cpu")
    >>> model.weight.shape
    torch.Size([4, 8])
    """
    found = prepare(
        model, rules, seed, device=device, dtype=dtype, strict=strict, rename=rename, only=only,
        formats=formats,
    )  # fmt: skip
    _check_in_memory(found.assignments, device, dtype)
    keys = keys_of_names(seed)
    plain, quantised = split(found.assignments, found.weights)
    ready = make_ready(quantised, found.weights, found.device, keys)
    done = carry_out([*plain, *found.filled], found.device, keys)
    done += fill_quantised(ready, found.device)
    found.own.end()
    tell([*found.unwritten, *left_out(model, [*done, *found.rest])], stacklevel=2)
    return model


def _check_in_memory(
    assignments: Sequence[Assignment],
    device: torch.device | str | int | None,
    dtype: torch.dtype | None,
) -> None:
    """Raises ArgumentError for a parameter in memory of another device or dtype than asked for."""
    if device is None and dtype is None:
        return
    wanted = None if device is None else torch.device(device)
    fine: set[tuple[torch.device, torch.dtype]] = set()
    for one in assignments:
        tensor = one.named.tensor
        if tensor.is_meta or (tensor.device, tensor.dtype) in fine:
            continue
        if dtype is not None and tensor.is_floating_point() and tensor.dtype != dtype:
            asked, has, way = f"{dtype=}", tensor.dtype, f"model.to({dtype})"
        elif wanted is not None and (
            wanted.type != tensor.device.type
            or (wanted.index or tensor.device.index or 0) != (tensor.device.index or 0)
        ):
            asked, has, way = f"device={device!r}", tensor.device, f"model.to({str(wanted)!r})"
        else:
            fine.add((tensor.device, tensor.dtype))
            continue
        raise ArgumentError(
            f"{asked} is for parameters on the meta device, and {one.named.name!r} is in memory, "
            f"with {has}: leave it out, or call {way} first"
        )


def plan_model(
    model: nn.Module | Callable[[], nn.Module],
    rules: Mapping[Any, Any] | None = None,
    *,
    strict: bool = True,
    rename: Rename = None,
    formats: Mapping[Any, BlockFormat] | None = None,
) -> Plan:
    """Shows what ``init_model_`` would do: each parameter's rule, values, fans and std.

    Nothing is written. The plan prints as a table.

    Args:
        model: the model; or, without rules, a function as for ``build_model``.
        rules, strict, rename, formats: as for ``init_model_``.

    Raises:
        ArgumentError, TypeError: as ``init_model_``, except for errors that only calling a callable
            would reveal.

    >>> import torch, torchinit
    >>> plan = torchinit.plan_model(torch.nn.Linear(8, 4), {"**": torchinit.Constant(1)})
    >>> [(row.name, row.rule, row.fans) for row in plan]
    [('weight', '**', (8, 4)), ('bias', '**', None)]
    """
    if not isinstance(model, nn.Module) and callable(model):
        if rules is not None:
            raise ArgumentError(
                f"model={model!r} is a function, and rules need a model: pass the model itself, "
                "or leave out rules"
            )
        model = build_model(model, seed=0, device="meta", rename=rename)
    found = prepare(model, rules, 0, device="cpu", strict=strict, rename=rename, formats=formats)
    named = {one.stand_in.name: str(one.format) for one in found.weights.values()}
    return Plan([*found.assignments, *found.ruled], named)


class Prepared(NamedTuple):
    """What a model will be filled with.

    Attributes:
        assignments: one for each parameter, in the model's order; of scales, none.
        weights: what is quantised, by the ``id`` of its assignment's tensor.
        ruled: one for each buffer that a rule matches.
        buffers: all of the model's buffers.
        filled: one for each buffer to write.
        unwritten: buffers whose memory holds nothing that is known.
        rest: tensors that stay as they are.
        own: finds the default initialisation.
        device: the final device of tensors on the meta device.
    """

    assignments: Sequence[Assignment]
    weights: Mapping[int, Found]
    ruled: Sequence[Assignment]
    buffers: Sequence[Named]
    filled: Sequence[Assignment]
    unwritten: Sequence[Uninitialized]
    rest: Sequence[Tensor]
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
    formats: Mapping[Any, BlockFormat] | None = None,
) -> Prepared:
    """Works out what ``init_model_`` will do, and checks that it can; nothing is written.

    Args:
        model, rules, seed, device, dtype, strict, rename, only, formats: as for ``init_model_``.

    Raises:
        ArgumentError, TypeError: as ``init_model_``.
    """
    check_flag("strict", strict)
    chosen = None if rules is None else Rules(rules)
    everything = inspect_model(model, device, dtype, rename, only)
    found, weights = find_quantised(everything, formats, chosen, strict=strict)
    own = Own(model, found, seed, rename)
    ruled: list[Assignment] = []
    if chosen is None:
        assignments = join_names(own.assign(found.parameters, dtype))
    else:
        strict = strict and only is None
        check_scales(found, chosen)
        assignments, ruled = assign(
            found.parameters, chosen, dtype, strict=strict, own=own.assign, buffers=found.buffers,
            others=() if only is None else found.all_parameters,
        )  # fmt: skip
        written = [one.named for one in ruled if not one.parts[0].values.keeps]
        check_buffers_apart(found.parameters, written)
    settled = {id(one.named.tensor) for one in ruled}
    new = set(map(id, _in_new_memory(found, assignments)))
    filled = own.assign_buffers([
        named for named in found.buffers
        if id(named.tensor) not in settled
        and (rules is None or named.tensor.is_meta or id(named.tensor) in new)
    ])  # fmt: skip
    settled |= {id(one.named.tensor) for one in filled}
    if only is not None and not assignments and not settled:
        names = first_names([named.name for named in found.buffers])
        raise ArgumentError(
            f"only: no rule gives values to {names}. A buffer needs a rule of its own with a "
            "tensor, a function of the shape, or 'keep'"
        )
    unwritten = [
        Uninitialized.all_of(named.name, "buffer", UNWRITTEN, named.tensor)
        for named in found.buffers
        if id(named.tensor) in new - settled and not _is_zero_count(named.tensor)
    ]  # fmt: skip
    filled += [one for one in ruled if not one.parts[0].values.keeps]
    rest = [named.tensor for named in found.all_buffers]
    if only is not None:
        rest += [slot.tensor for named in found.all_parameters for slot in named.slots]
    broken = {
        tie.names[1]: tie.names[0] for tie in found.broken_ties
        if rules is not None or not own.are_alike(*tie.tensors)
    }  # fmt: skip
    if broken:
        said = "; ".join(f"{one!r} and {other!r}" for other, one in broken.items())
        warnings.warn(
            "parameters that the model declares as tied are not tied, and get different values: "
            f"{said}. Tie them again, or give both the same values with rename={broken!r}",
            stacklevel=3,
        )
    return Prepared(
        assignments, weights, ruled, found.buffers, filled, unwritten, rest, own,
        found.device,
    )  # fmt: skip


def _in_new_memory(found: Inspected, assignments: Sequence[Assignment]) -> list[Tensor]:
    """The buffers in memory that nothing has written to, if no parameter to fill has been either.

    That is how ``to_empty`` leaves a model. Copied and loaded models cannot be told from it.
    """
    if not assignments or not found.buffers:
        return []
    if not all(map(_is_unwritten, found.parameters)):
        return []
    if any(part.values.keeps for one in assignments for part in one.parts):
        return []
    return [named.tensor for named in found.buffers if _is_unwritten(named)]


def _is_zero_count(tensor: Tensor) -> bool:
    """Whether this is a counter at its start, which constructors such as AveragedModel's make."""
    memory = local_memory(tensor)
    return memory.dim() == 0 and memory.dtype in _COUNTS and not memory.item()


def _is_unwritten(named: Named) -> bool:
    tensor = named.tensor
    return not tensor.is_meta and not tensor.is_inference() and tensor._version == 0
