"""What a report measures: the parameters of a module or a checkpoint, and what is intended."""

from __future__ import annotations

import itertools
import math
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from torchinit.dtypes import ALL_DTYPES
from torchinit.errors import ArgumentError, counted
from torchinit.frameworks.transformers import conv1d_weights, is_conv1d
from torchinit.models.assign import Assignment, assign, padding_rows
from torchinit.models.build_model import build_model
from torchinit.models.init_model import init_model_, prepare
from torchinit.models.quantised import Formats, weight_of
from torchinit.placement.distributed import check_no_flat_piece, is_dtensor
from torchinit.quantised.formats import BlockFormat
from torchinit.reporting.dequantised import (
    FoundWeights,
    QuantisedTensor,
    compare_bytes,
    find_blocks,
)
from torchinit.reporting.stored import Unmeasured, read_checkpoint
from torchinit.rules.rules import Rules
from torchinit.schemes.law import Law
from torchinit.streams.canonical import Named, gather
from torchinit.streams.named_keys import keys_of_names
from torchinit.untrusted import first_names
from torchinit.values.kinds import DrawnValues, Values
from torchinit.values.region import Part, Region

# Buffers that a checkpoint has among the parameters, and no rule is for.
_BUFFERS = (
    "running_mean", "running_var", "num_batches_tracked", "inv_freq", "position_ids",
    "e_score_correction_bias", "final_logits_bias",
)  # fmt: skip


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
        regions: of the parameter, with all the values.
        dtype: of the values.
        fan_in: the number of inputs of each output; 1 for a vector.
        intended: by the rules; None without rules.
        load: reads the parameter.
        has_norms: whether norms of its matrices are to be measured.
        blocks: what it is dequantised from; None if it is not quantised.
    """

    name: str
    parameter: str
    regions: Sequence[Region]
    dtype: torch.dtype
    fan_in: int
    intended: Intended | None
    load: Callable[[], Tensor]
    has_norms: bool = True
    blocks: QuantisedTensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the logical tensor."""
        return self.regions[0].shape

    def views(self, tensor: Tensor) -> list[Tensor]:
        """The values that are not empty, as views of the parameter."""
        found = [region.of(tensor) for region in self.regions]
        return [view for view in found if view.numel()]

    def matrices(self, tensor: Tensor) -> list[list[Tensor]]:
        """The same as matrices, each in blocks of rows; none for a vector."""
        region, found = self.regions[0], self.views(tensor)
        if len(region.matrix_shape) < 2 or not self.has_norms:
            return []
        if region.offset is not None:  # blocks of one matrix, side by side
            if region.cuts and region.cuts[-1][0] == 1:
                found = [view.transpose(0, 1) for view in found]
            return [[view.flatten(1) for view in found]]
        for _ in range(region.stacked if region.number is None else 0):
            found = [matrix for view in found for matrix in view.unbind()]
        return [[view.flatten(1)] for view in found]


class _Parameter(NamedTuple):
    """A parameter of a model, or a tensor of a checkpoint.

    Attributes:
        named: what rules match.
        load: reads it.
        transposed: whether it is (inputs, outputs), as a Conv1D's.
        is_buffer: whether no rule is for it.
        blocks: what it is dequantised from; None if it is not quantised.
    """

    named: Named
    load: Callable[[], Tensor]
    transposed: bool
    is_buffer: bool = False
    blocks: QuantisedTensor | None = None


def inputs_of(
    model: nn.Module | str | Path | Callable[[], nn.Module],
    rules: Mapping[Any, Any] | None,
    called: str = "model",
    seed: int | None = None,
    formats: Mapping[Any, BlockFormat] | None = None,
) -> tuple[str, list[ReportInput], list[Unmeasured]]:
    """A title, what to measure, in order, and what of a checkpoint cannot be measured.

    Args:
        model, rules, seed, formats: as ``report_model`` takes them.
        called: the name of the argument, for errors.

    Raises:
        ArgumentError, TypeError, ImportError: as ``report_model``.
    """
    if (seed is None) != (formats is None):
        raise ArgumentError(f"{seed=} and {formats=} go together: give both, or neither")
    if seed is not None and (rules is None or not isinstance(model, str | Path)):
        raise ArgumentError("seed and formats are for a checkpoint, with rules: give its path")
    if not isinstance(model, nn.Module | str | Path) and callable(model):
        if rules is None:
            built = build_model(model, seed=0, device="meta")
            assignments = prepare(built, None, 0, device="cpu").assignments
            init_model_(built, seed=0, device="cpu")
            return type(built).__name__, _by_assignments(_of_module(built), assignments), []
        model = build_model(model, seed=0)
    unmeasured: list[Unmeasured] = []
    if isinstance(model, nn.Module):
        title, parameters = type(model).__name__, _of_module(model)
    elif isinstance(model, str | Path):
        title = Path(model).name or str(model)
        stored, unmeasured = read_checkpoint(Path(model))
        found = find_blocks(Path(model), stored)
        unmeasured += found.unmeasured
        parameters = _of_checkpoint(Path(model), found)
    else:
        raise TypeError(
            f"{called} must be a torch.nn.Module or the path of a checkpoint, not "
            f"{type(model).__name__}"
        )
    if rules is None:
        return title, [_whole(one, None) for one in parameters], unmeasured
    chosen, strict = Rules(rules), isinstance(model, nn.Module)
    named = [one.named for one in parameters if not one.is_buffer]
    buffers = gather(model).buffers if isinstance(model, nn.Module) else []  # rules may be for them
    assignments, _ = assign(named, chosen, None, strict=strict, buffers=buffers)
    if not strict:
        _warn_of_unused(chosen, {one.rule for one in assignments})
    if seed is not None and formats is not None:
        parameters, apart = _to_compare(parameters, assignments, seed, formats)
        unmeasured += apart
    return title, _by_assignments(parameters, assignments), unmeasured


def _to_compare(
    parameters: Sequence[_Parameter], assignments: Iterable[Assignment], seed: int,
    formats: Mapping[Any, BlockFormat],
) -> tuple[list[_Parameter], list[Unmeasured]]:  # fmt: skip
    """The same, quantised ones with what compares their bytes; those without, and why."""
    chosen, key_of_name = Formats(formats), keys_of_names(seed)
    by_name = {one.named.name: one for one in assignments}
    found, apart = [], []
    for one in parameters:
        form = None if one.blocks is None else chosen.of(one.named)
        if one.blocks is None:
            found.append(one)
            continue
        name = one.named.name
        if form is None:
            apart.append(Unmeasured(name, "its bytes are not compared: no format matches it"))
        elif re.search(r"\bexperts\.\d+\.", name):
            reason = "its bytes are not compared: it may be a part of a parameter of all experts"
            apart.append(Unmeasured(name, reason))
        else:
            weigh = partial(weight_of, by_name[name], form, torch.device("cpu"), key_of_name)
            remade = partial(compare_bytes, form, weigh)
            one = one._replace(blocks=one.blocks._replace(remade=remade))
        found.append(one)
    chosen.check_used()
    return found, apart


def inputs_by_constructor(model: nn.Module, build: Callable[[], nn.Module]) -> list[ReportInput]:
    """The parameters of a model with values, each to be held against what its constructor says.

    Args:
        model: built by the same constructor in any way; on any device.
        build: the constructor, as ``build_model`` takes it.
    """
    twin = build_model(build, seed=0, device="meta")
    assignments = prepare(twin, None, 0, device="cpu").assignments
    return _by_assignments(_of_module(model), assignments)


def _by_assignments(
    parameters: Iterable[_Parameter], assignments: Iterable[Assignment]
) -> list[ReportInput]:
    by_name = {one.named.name: one for one in assignments}
    found: list[ReportInput] = []
    for one in parameters:
        judged = not one.is_buffer
        found += _by_rule(one, by_name[one.named.name]) if judged else [_whole(one, None)]
    return found


def _of_module(model: nn.Module) -> list[_Parameter]:
    parameters = gather(model).parameters
    _check_here(parameters)
    return [_Parameter(one, one.tensor.detach, is_conv1d(one.owner)) for one in parameters]


def _of_checkpoint(path: Path, stored: FoundWeights) -> list[_Parameter]:
    """The tensors of a checkpoint as if of a model, without memory, for rules to match."""
    owner = nn.Module()
    transposed = conv1d_weights(path, {one.name: one.shape for one in stored.rest})
    found = []
    for name, shape, dtype, load in stored.rest:
        values = torch.zeros((), dtype=dtype).expand(shape)
        parameter = nn.Parameter(values, requires_grad=False)
        named = Named(name, parameter, owner, name.rpartition(".")[2], owner)
        is_buffer = dtype not in ALL_DTYPES or named.attribute in _BUFFERS
        blocks = stored.blocks.get(name)
        found.append(_Parameter(named, load, name in transposed, is_buffer, blocks))
    return found


def _warn_of_unused(rules: Rules, used: set[str]) -> None:
    """Warns that a checkpoint may have other names than the model that the rules are for."""
    unused = [rule.title for rule in rules.rules if rule.title not in used]
    if unused:
        warnings.warn(
            f"{len(unused)} of {counted(len(rules.rules), 'rule')} "
            f"match{'es' * (len(unused) == 1)} nothing in the checkpoint: {first_names(unused)}. "
            "For a checkpoint, rules match the names in its files, and "
            "types of modules match nothing: another rule may have been used in their place. If "
            "so, report the model that from_pretrained loads",
            stacklevel=4,
        )


def _check_here(parameters: Sequence[Named]) -> None:
    """Raises unless all values are dense and in this process."""
    lazy = [one.name for one in parameters if is_lazy(one.tensor)]
    if lazy:
        raise ArgumentError(
            f"lazy parameters ({len(lazy)}) have no shape yet: {first_names(lazy)}. Call the model "
            "once before"
        )
    meta = [one.name for one in parameters if one.tensor.is_meta]
    if meta:
        raise ArgumentError(
            f"parameters on the meta device ({len(meta)} of {len(parameters)}) have no values to "
            f"report: {first_names(meta)}. Initialise the model first, as by "
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


def _by_rule(parameter: _Parameter, assignment: Assignment) -> list[ReportInput]:
    """An input for each part of a parameter that has a name of its own."""
    shape, parts = tuple(parameter.named.tensor.shape), assignment.parts
    if assignment.draw is not None:
        return [_whole(parameter, _intended(DrawnValues(assignment.draw), shape))]
    first = parts[0].region
    if first.shape == shape and not first.stacked:
        # What a constructor wrote over the first fill: padding rows are left out, and other parts
        # leave a mixture of distributions.
        is_one = len(parts) in (1, 1 + len(padding_rows(parameter.named)))
        intended = _intended(parts[0].values, first.matrix_shape) if is_one else None
        return [_whole(parameter, intended)]
    pieces: dict[str, list[Part]] = {}
    for part in parts:
        # Each matrix of a stack has a name of its own, with its number.
        pieces.setdefault(part.region.name.partition("\0")[0], []).append(part)
    return [
        _input(
            parameter, name, [piece.region for piece in found],
            _intended(found[0].values, found[0].region.matrix_shape),
        )
        for name, found in pieces.items()
    ]  # fmt: skip


def _intended(values: Values, shape: Sequence[int]) -> Intended:
    return Intended(str(values), values.statistics(shape), values.is_orthogonal)


def _whole(parameter: _Parameter, intended: Intended | None) -> ReportInput:
    named = parameter.named
    name, shape, pads = named.name, tuple(named.tensor.shape), padding_rows(named)
    if not pads or not shape:
        stacked = int(len(shape) == 3 and "expert" in name)
        return _input(parameter, name, [Region(name, shape, stacked)], intended)
    edges = [-1, *sorted(row % shape[0] for row in pads), shape[0]]
    regions = [
        Region(
            name, shape, cuts=((0, before + 1, stop - before - 1),),
            offset=(before + 1, *[0] * (len(shape) - 1)),
        )
        for before, stop in itertools.pairwise(edges)
    ]  # fmt: skip
    return _input(parameter, name, regions, intended)


def _input(
    parameter: _Parameter, name: str, regions: Sequence[Region], intended: Intended | None
) -> ReportInput:
    named, load, transposed, _, blocks = parameter
    fan_in = _fan_in(regions[0].matrix_shape, transposed)
    return ReportInput(
        name, named.name, regions, named.tensor.dtype, fan_in, intended, load, blocks=blocks
    )


def _fan_in(shape: Sequence[int], transposed: bool) -> int:
    """The fan in, as torch counts it but for transposed weights; 1 for a vector."""
    if len(shape) < 2:
        return 1
    return max(shape[0] if transposed and len(shape) == 2 else math.prod(shape[1:]), 1)
