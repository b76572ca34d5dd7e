"""Layouts of low-precision weights in a checkpoint: names, dtypes and the entry in the config.

A file holds a weight's payload, the scales of its blocks, and for NVFP4 a factor of the tensor.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, NamedTuple

import torch
from torch import nn

from torchinit.checkpoint.block_ranges import StoredDtypes
from torchinit.errors import ArgumentError, counted
from torchinit.models.assign import Assignment
from torchinit.models.quantised import Formats
from torchinit.quantised.formats import MXFP8, NVFP4, BlockFormat, FP8Blocks
from torchinit.streams.canonical import Named


class Names(NamedTuple):
    """What is added to the name of a weight."""

    payload: str
    scales: str
    whole: str = ""


class WeightLayout(NamedTuple):
    """How the weights of a checkpoint that have one format are stored.

    Attributes:
        names: of the tensors.
        dtypes: of the tensors.
        has_experts: whether Transformers loads experts that are stored so.
        config: the entry in the config, but for the modules that are left alone.
        alone: the key of these.
    """

    names: Names
    dtypes: StoredDtypes
    has_experts: bool
    config: Mapping[str, Any]
    alone: str


def _layout_of(layout: str, form: BlockFormat) -> WeightLayout | None:
    """How a layout stores a format; None if it does not."""
    e4m3, powers = torch.float8_e4m3fn, torch.uint8
    if layout == "fp8" and isinstance(form, FP8Blocks):
        if form.scale == "float32":
            return _fine_grained(layout, form, torch.float32)
        return _fine_grained(layout, form, torch.float8_e8m0fnu, scale_fmt="ue8m0")
    if layout == "mxfp8" and isinstance(form, MXFP8):
        return _fine_grained(layout, form, powers, scale_fmt="ue8m0")
    if layout == "compressed-tensors" and isinstance(form, MXFP8):
        dtypes = StoredDtypes(e4m3, powers, inverse=False)
        said = {"num_bits": 8, "strategy": "group", "scale_dtype": str(powers)}
        return _compressed("mxfp8-quantized", form, Names("", "_scale"), dtypes, said)
    if layout == "compressed-tensors" and isinstance(form, NVFP4) and form.rows == 1:
        names = Names("_packed", "_scale", "_global_scale")
        dtypes = StoredDtypes(torch.uint8, e4m3, inverse=True)
        said = {"num_bits": 4, "strategy": "tensor_group", "scale_dtype": str(e4m3)}
        return _compressed("nvfp4-pack-quantized", form, names, dtypes, said)
    return None


def _fine_grained(
    method: str, form: BlockFormat, scales: torch.dtype, **said: object
) -> WeightLayout:
    """As Transformers' ``FineGrainedFP8Config`` reads it."""
    config = {
        "quant_method": method, "activation_scheme": "dynamic",
        "weight_block_size": [form.rows, form.columns], **said,
    }  # fmt: skip
    dtypes = StoredDtypes(torch.float8_e4m3fn, scales, inverse=False)
    return WeightLayout(Names("", "_scale_inv"), dtypes, True, config, "modules_to_not_convert")


def _compressed(
    name: str, form: BlockFormat, names: Names, dtypes: StoredDtypes, said: Mapping[str, object]
) -> WeightLayout:
    """As compressed-tensors' ``QuantizationConfig`` reads it."""
    weights = {
        "type": "float", "symmetric": True, "dynamic": False, "group_size": form.columns, **said
    }  # fmt: skip
    group = {
        "targets": ["Linear"], "weights": weights, "input_activations": None,
        "output_activations": None, "format": name,
    }  # fmt: skip
    config = {
        "quant_method": "compressed-tensors", "format": name, "quantization_status": "compressed",
        "config_groups": {"group_0": group}, "kv_cache_scheme": None,
    }  # fmt: skip
    return WeightLayout(names, dtypes, False, config, "ignore")


_TAKEN = {
    "fp8": "FP8Blocks", "mxfp8": "MXFP8", "compressed-tensors": "MXFP8 and NVFP4(rows=1)"
}  # fmt: skip


class StoredWeights(NamedTuple):
    """The weights of a checkpoint that are stored in low precision.

    Attributes:
        formats: of each, by the ``id`` of its tensor.
        layout: of all of them.
        config: the entry in the config.
        record: the formats as text.
    """

    formats: Mapping[int, BlockFormat]
    layout: WeightLayout
    config: Mapping[str, Any]
    record: Sequence[Sequence[str]]


def stored_weights(
    assignments: Sequence[Assignment], formats: Mapping[Any, Any] | None, layout: str | None
) -> StoredWeights | None:
    """Finds out which weights are stored in low precision; None if none are.

    Args:
        assignments: of all parameters.
        formats, layout: as ``write_checkpoint`` takes them.

    Raises:
        ArgumentError: for one without the other, a layout that does not take a format, a format
            that matches nothing or a parameter that no layout holds.
        TypeError: for an invalid key or format.
    """
    if formats is None and layout is None:
        return None
    taken = ", ".join(f"{name!r} for {what}" for name, what in _TAKEN.items())
    if not formats:
        raise ArgumentError(f"{layout=} is for weights with formats, and {formats=}")
    if layout not in _TAKEN:
        raise ArgumentError(f"{layout=}: formats need a layout of the files, {taken}")
    chosen = Formats(formats)
    found = [(one.named, form) for one in assignments if (form := chosen.of(one.named))]
    chosen.check_used()
    layouts = []
    for named, form in found:
        of = _layout_of(layout, form)
        if of is None:
            raise ArgumentError(f"{layout=} does not hold {form}. There is {taken}")
        _check_weight(named, form, layout, of)
        layouts.append(of)
    if any(of != layouts[0] for of in layouts):
        said = " and ".join(sorted({str(form) for _, form in found}))
        raise ArgumentError(
            f"{layout=} says once how all weights are stored, and formats has {said}"
        )
    _warn_of_edges(found)
    by_tensor = {id(named.tensor): form for named, form in found}
    alone = sorted(_left_alone(assignments, by_tensor.keys()))
    config = {**layouts[0].config, layouts[0].alone: alone}
    return StoredWeights(by_tensor, layouts[0], config, chosen.in_words)


def _check_weight(named: Named, form: BlockFormat, layout: str, of: WeightLayout) -> None:
    form.payload_shape(tuple(named.tensor.shape))
    for slot in named.slots:
        if _is_experts(slot.name):
            if of.has_experts:
                continue
            raise ArgumentError(
                f"formats: {slot.name!r} has the weights of experts, which Transformers does not "
                f"load rightly from {layout=}"
            )
        if not (isinstance(slot.module, nn.Linear) and slot.attribute == "weight"):
            raise ArgumentError(
                f"formats: {slot.name!r} is a parameter of {type(slot.module).__name__}, and "
                f"{layout=} holds the weights of torch.nn.Linear"
            )


def _warn_of_edges(found: Sequence[tuple[Named, BlockFormat]]) -> None:
    """Warns of weights that do not consist of whole blocks, which not all readers expect."""
    cut = [
        (named, form) for named, form in found
        if named.tensor.shape[-2] % form.rows or named.tensor.shape[-1] % form.columns
    ]  # fmt: skip
    if cut:
        (named, form), shape = cut[0], tuple(cut[0][0].tensor.shape)
        warnings.warn(
            f"{counted(len(cut), 'weight does', 'weights do')} not consist of whole blocks, such "
            f"as {named.name!r} of shape {shape}, in blocks of {form.rows} x {form.columns}: "
            "engines may refuse that, and Transformers takes the wrong scales where it dequantises",
            stacklevel=5,
        )


def _is_experts(name: str) -> bool:
    """Whether a parameter has the weights of all experts of a layer."""
    return name.split(".")[-2:-1] == ["experts"]


def _left_alone(assignments: Iterable[Assignment], quantised: Set[int]) -> set[str]:
    """The modules whose weights readers would take to be quantised, and which are not."""
    return {
        slot.name.rpartition(".")[0]
        for one in assignments if id(one.named.tensor) not in quantised
        for slot in one.named.slots
        if _is_experts(slot.name)
        or (isinstance(slot.module, nn.Linear) and slot.attribute == "weight")
    }  # fmt: skip
