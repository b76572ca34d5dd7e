"""What a report measures: the parameters of a module or a checkpoint, and what is intended."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from torchinit.checkpoint.safetensors import StoredTensor, read_checkpoint
from torchinit.errors import ArgumentError
from torchinit.frameworks.transformers import conv1d_weights, is_conv1d
from torchinit.models.assign import Assignment, assign, padding_rows, some
from torchinit.models.build_model import build_model
from torchinit.models.init_model import init_model_, prepare
from torchinit.placement.distributed import check_no_flat_piece, is_dtensor
from torchinit.rules.rules import Rules
from torchinit.schemes.law import Law
from torchinit.streams.canonical import Named, gather
from torchinit.values.kinds import DrawnValues, MatrixValues, Values
from torchinit.values.region import Part

# Buffers that a checkpoint has among the parameters, and no rule is for.
_BUFFERS = (
    "running_mean", "running_var", "num_batches_tracked", "inv_freq", "position_ids",
    "e_score_correction_bias", "final_logits_bias",
)  # fmt: skip
Load: TypeAlias = "Callable[[], Tensor]"


class Intended(NamedTuple):
    """What a rule fills a parameter with.

    Attributes:
        words: a description.
        law: statistics of the values; None if they are unknown.
        orthogonal: whether it is an orthogonal matrix.
    """

    words: str
    law: Law | None
    orthogonal: bool


class ReportInput(NamedTuple):
    """A parameter to measure, or a part of one that its rule fills on its own.

    Attributes:
        name: of the part, or of the whole parameter.
        parameter: the name of the parameter.
        shape: of the logical tensor.
        dtype: of the values.
        fan_in: the number of inputs of each output; 1 for a vector.
        views: of the parameter, with all the values.
        matrices: the same as matrices, each in blocks of rows; none for a vector.
        intended: by the rules; None without rules.
        load: reads the parameter.
    """

    name: str
    parameter: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    fan_in: int
    views: Callable[[Tensor], list[Tensor]]
    matrices: Callable[[Tensor], list[list[Tensor]]]
    intended: Intended | None
    load: Load


def inputs_of(
    model: nn.Module | str | Path | Callable[[], nn.Module],
    rules: Mapping[Any, Any] | None,
    called: str = "model",
) -> list[ReportInput]:
    """What to measure, in the order of the model.

    Args:
        model, rules: as ``report_model`` takes them.
        called: the name of the argument, for errors.

    Raises:
        ArgumentError, TypeError, ImportError: as ``report_model``.
    """
    if not isinstance(model, nn.Module | str | Path) and callable(model):
        if rules is None:
            built = build_model(model, seed=0, device="meta")
            assignments = prepare(built, None, 0, device="cpu").assignments
            return _by_assignments(init_model_(built, seed=0, device="cpu"), assignments)
        model = build_model(model, seed=0)
    if isinstance(model, nn.Module):
        parameters, _ = gather(model)
        _check_here(parameters)
        named = parameters
        loads: dict[str, Load] = {one.name: one.tensor.detach for one in parameters}
        conv1d = {one.name for one in parameters if is_conv1d(one.owner)}
    elif isinstance(model, str | Path):
        held = read_checkpoint(Path(model))
        named = _skeleton(held)
        loads = {one.name: one.load for one in held}
        conv1d = conv1d_weights(Path(model), {one.name: one.shape for one in held})
    else:
        raise TypeError(
            f"{called} must be a torch.nn.Module or the path of a checkpoint, not "
            f"{type(model).__name__}"
        )
    if rules is None:
        return [_whole(one, loads[one.name], one.name in conv1d, None) for one in named]
    judged = [one for one in named if isinstance(model, nn.Module) or _is_parameter(one)]
    strict, chosen = isinstance(model, nn.Module), Rules(rules)
    assigned = {one.named.name: one for one in assign(judged, chosen, None, strict=strict)[0]}
    if not strict:
        _warn_of_unused(chosen, {one.rule for one in assigned.values()})
    found: list[ReportInput] = []
    for one in named:
        load, is_conv = loads[one.name], one.name in conv1d
        if one.name in assigned:
            found += _by_rule(assigned[one.name], load, is_conv)
        else:
            found.append(_whole(one, load, is_conv, None))
    return found


def inputs_by_constructor(model: nn.Module, build: Callable[[], nn.Module]) -> list[ReportInput]:
    """The parameters of a model with values, each to be held against what its constructor says.

    Args:
        model: built by the same constructor in any way; on any device.
        build: the constructor, as ``build_model`` takes it.
    """
    twin = build_model(build, seed=0, device="meta")
    return _by_assignments(model, prepare(twin, None, 0, device="cpu").assignments)


def _by_assignments(model: nn.Module, assignments: Iterable[Assignment]) -> list[ReportInput]:
    by_name = {one.named.name: one for one in assignments}
    parameters, _ = gather(model)
    _check_here(parameters)
    return [
        source for one in parameters
        for source in _by_rule(by_name[one.name], one.tensor.detach, is_conv1d(one.owner))
    ]  # fmt: skip


def _warn_of_unused(rules: Rules, used: Set[str]) -> None:
    """Warns that a checkpoint may have other names than the model that the rules are for."""
    unused = [rule.title for rule in rules.rules if rule.title not in used]
    if unused:
        warnings.warn(
            f"{len(unused)} of {len(rules.rules)} rules match nothing in the checkpoint: "
            f"{some(unused)}. For a checkpoint, rules match the names in its files, and types of "
            "modules match nothing: another rule may have been used in their place. If so, report "
            "the model that from_pretrained loads",
            stacklevel=4,
        )


def _is_parameter(named: Named) -> bool:
    return named.tensor.is_floating_point() and named.name.rpartition(".")[2] not in _BUFFERS


def _check_here(parameters: Sequence[Named]) -> None:
    """Raises unless all values are dense and in this process."""
    lazy = [one.name for one in parameters if is_lazy(one.tensor)]
    if lazy:
        raise ArgumentError(
            f"{len(lazy)} parameters are lazy and have no shape yet: {some(lazy)}. Call the model "
            "once before"
        )
    meta = [one.name for one in parameters if one.tensor.is_meta]
    if meta:
        raise ArgumentError(
            f"{len(meta)} of {len(parameters)} parameters are on the meta device, and have no "
            f"values to report: {some(meta)}. Initialise the model first, as by "
            "torchinit.init_model_(model, seed=0)"
        )
    for one in parameters:
        if is_dtensor(one.tensor):
            raise ArgumentError(
                f"parameter {one.name!r} is a DTensor, of which this process may hold a shard: "
                "report the checkpoint, or the model after full_tensor() of every parameter"
            )
        check_no_flat_piece(one.tensor)
        if one.tensor.layout != torch.strided or one.tensor.is_quantized:
            raise TypeError(
                f"parameter {one.name!r} is {one.tensor.layout} of {one.tensor.dtype}: only dense "
                "values can be reported"
            )


def _skeleton(held: Sequence[StoredTensor]) -> list[Named]:
    """The parameters of a checkpoint as if of a model, without memory, for rules to match."""
    owner = nn.Module()
    return [
        Named(one.name, _shaped(one), owner, one.name.rpartition(".")[2], owner) for one in held
    ]


def _shaped(held: StoredTensor) -> nn.Parameter:
    values = torch.zeros((), dtype=held.dtype).expand(held.shape)
    return nn.Parameter(values, requires_grad=False)


def _whole(named: Named, load: Load, conv1d: bool, intended: Intended | None) -> ReportInput:
    shape = tuple(named.tensor.shape)
    pads = padding_rows(named)
    stacked = int(len(shape) == 3 and "expert" in named.name)

    def matrices(tensor: Tensor) -> list[list[Tensor]]:
        if tensor.dim() < 2 or 0 in tensor.shape:
            return []
        if stacked:
            return [[matrix] for matrix in tensor.unbind()]
        return [_without(tensor.flatten(1), pads)]

    return ReportInput(
        named.name, named.name, shape, named.tensor.dtype, _fan_in(shape[stacked:], conv1d),
        lambda tensor: _without(tensor, pads), matrices, intended, load,
    )  # fmt: skip


def _without(tensor: Tensor, rows: Sequence[int]) -> list[Tensor]:
    """A tensor without its padding rows."""
    if not rows or not tensor.dim():
        return [tensor]
    edges = [-1, *sorted(row % len(tensor) for row in rows), len(tensor)]
    views = [tensor[start + 1 : stop] for start, stop in itertools.pairwise(edges)]
    return [view for view in views if view.numel()]


def _fan_in(shape: Sequence[int], conv1d: bool) -> int:
    """The fan in, as torch counts it but for the (inputs, outputs) of Conv1D; 1 for a vector."""
    if len(shape) < 2:
        return 1
    return max(shape[0] if conv1d and len(shape) == 2 else math.prod(shape[1:]), 1)


def _by_rule(assignment: Assignment, load: Load, conv1d: bool) -> list[ReportInput]:
    """An input for each part of a parameter that has a name of its own."""
    named, draw, parts = assignment.named, assignment.draw, assignment.parts
    if draw is not None:
        intended = _intended(DrawnValues(draw), tuple(named.tensor.shape))
        return [_whole(named, load, conv1d, intended)]
    shares: dict[str, list[Part]] = {}
    for part in parts:
        # Each matrix of a stack has a name of its own, with its number.
        shares.setdefault(part.region.name.partition("\0")[0], []).append(part)
    first = parts[0].region
    if len(parts) == 1 and first.shape == tuple(named.tensor.shape) and not first.stacked:
        return [_whole(named, load, conv1d, _intended(parts[0].values, first.matrix_shape))]
    return [_part(named, name, pieces, load, conv1d) for name, pieces in shares.items()]


def _intended(values: Values, shape: Sequence[int]) -> Intended:
    return Intended(str(values), values.statistics(shape), isinstance(values, MatrixValues))


def _part(named: Named, name: str, pieces: list[Part], load: Load, conv1d: bool) -> ReportInput:
    region = pieces[0].region
    shape = tuple(region.matrix_shape)

    def views(tensor: Tensor) -> list[Tensor]:
        return [piece.region.of(tensor) for piece in pieces]

    def matrices(tensor: Tensor) -> list[list[Tensor]]:
        found = views(tensor)
        if len(shape) < 2:
            return []
        if region.offset is not None:  # blocks of one matrix, side by side
            if region.cuts and region.cuts[-1][0] == 1:
                found = [view.transpose(0, 1) for view in found]
            return [[view.flatten(1) for view in found]]
        for _ in range(region.stacked if region.number is None else 0):
            found = [matrix for view in found for matrix in view.unbind()]
        return [[view.flatten(1)] for view in found if view.numel()]

    return ReportInput(
        name, named.name, tuple(region.shape), named.tensor.dtype, _fan_in(shape, conv1d), views,
        matrices, _intended(pieces[0].values, region.matrix_shape), load,
    )  # fmt: skip
