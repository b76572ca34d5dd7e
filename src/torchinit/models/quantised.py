"""The weights of a model that a format quantises: found with their scales, and filled."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn.parameter import Parameter

from torchinit.errors import ArgumentError, counted
from torchinit.fill.route import PLAIN_TYPES
from torchinit.models.assign import Assignment
from torchinit.models.carry_out import allocate_here, attach, run_callables
from torchinit.models.inspect_model import Inspected
from torchinit.native import kernels
from torchinit.placement.distributed import Sharded, is_dtensor, read_sharded
from torchinit.placement.mesh import ShardPiece
from torchinit.placement.overlap import overlapping_anywhere
from torchinit.quantised.destination import check_memory, check_served, is_in_memory
from torchinit.quantised.fill import Destination, Weight, check_values, fill_weight
from torchinit.quantised.formats import PACKED, SCALES, WHOLE, BlockFormat
from torchinit.rules.rules import Rules
from torchinit.rules.scheme import Target
from torchinit.rules.structured import Keep
from torchinit.streams.canonical import Named
from torchinit.streams.named_keys import KeyOfName
from torchinit.values.region import Region

# The parts of tensor subclasses, by their attributes.
_INSIDE = {"qdata": "payload", "scale": "scales", "per_tensor_scale": "whole"}


class Found(NamedTuple):
    """A weight that a format quantises.

    Attributes:
        stand_in: the weight as a parameter of its values on the meta device, for rules and names.
        format: of it.
        of: the payload, or the subclass that has all.
        scales, whole: beside it; None if they are inside it, or there is none.
        inverse: whether whole is the reciprocal of the factor.
    """

    stand_in: Named
    format: BlockFormat
    of: Named
    scales: Named | None = None
    whole: Named | None = None
    inverse: bool = False


class Quantised(NamedTuple):
    """A model without what formats quantise, and that.

    Attributes:
        rest: the model, with stand-ins for the weights, and without their scales.
        weights: by the ``id`` of their stand-in's tensor.
    """

    rest: Inspected
    weights: Mapping[int, Found]


def find_quantised(
    found: Inspected, formats: Mapping[Any, Any] | None, rules: Rules | None, *, strict: bool
) -> Quantised:
    """Finds the weights that formats are for, and their scales.

    Args:
        found: the model.
        formats: a mapping from patterns, as of rules, to formats; the first match wins.
        rules: of the model; what they keep is left as it is.
        strict: whether a format that matches no parameter of the model is an error.

    Raises:
        ArgumentError: for a format that matches no weight, a weight that cannot have its format,
            one without scales, or two that share memory.
        TypeError: for an invalid key or format.
    """
    if formats is None:
        return Quantised(found, {})
    chosen = Formats(formats)
    beside = _by_slot((*found.all_parameters, *found.all_buffers))
    weights: dict[int, Found] = {}
    parameters: list[Named] = []
    scales: set[int] = set()
    places: dict[str, Destination] = {}
    for named in found.parameters:
        form = None if _weight_beside(named, beside) else chosen.of(named)
        number = -1 if form is None or rules is None else rules.find(named.name, named.owner)
        if form is None or (number >= 0 and isinstance(rules.rules[number].scheme, Keep)):  # type: ignore[union-attr]
            parameters.append(named)
            continue
        one = _found(named, form, beside)
        weights[id(one.stand_in.tensor)] = one
        places[named.name] = _destination(one)
        check_memory(form, named.name, places[named.name])
        scales |= {id(other.tensor) for other in (one.scales, one.whole) if other is not None}
        parameters.append(one.stand_in)
    if strict:
        for named in found.all_parameters if chosen.is_unused else ():
            if _weight_beside(named, beside) is None:
                chosen.of(named)  # it may be for one that is not to be filled
        chosen.check_used()
    _check_apart(places)
    kept = [named for named in parameters if id(named.tensor) not in scales]
    buffers = [named for named in found.buffers if id(named.tensor) not in scales]
    stand_ins = {id(one.of.tensor): one.stand_in for one in weights.values()}
    everything = [stand_ins.get(id(named.tensor), named) for named in found.all_parameters]
    rest = found._replace(parameters=kept, buffers=buffers, all_parameters=everything)
    return Quantised(rest, weights)


class Formats:
    """Formats by patterns; the first match wins.

    Args:
        formats: a mapping from patterns, as of rules, to formats.

    Raises:
        TypeError, ArgumentError: for an invalid key or format.
    """

    def __init__(self, formats: Mapping[Any, Any]) -> None:
        if not isinstance(formats, Mapping):
            raise TypeError(
                f"formats must be a mapping from patterns to formats, not {type(formats).__name__}"
            )
        for key, form in formats.items():
            if not isinstance(form, BlockFormat):
                raise TypeError(
                    f"the format for {key!r} must be MXFP8(), FP8Blocks() or NVFP4() of torchinit, "
                    f"not {form!r}"
                )
        self._rules = Rules(dict.fromkeys(formats, "keep"))
        self._formats: list[BlockFormat] = list(formats.values())
        self._unused = set(range(len(self._formats)))

    @property
    def in_words(self) -> list[list[str]]:
        """Patterns and formats as text."""
        titles = [rule.title for rule in self._rules.rules]
        return [[title, str(form)] for title, form in zip(titles, self._formats, strict=True)]

    def of(self, named: Named) -> BlockFormat | None:
        """The format of a tensor; None if no pattern matches it."""
        for slot in named.slots:
            number = self._rules.find(_values_name(slot.name), slot.owner)
            if number >= 0:
                self._unused.discard(number)
                return self._formats[number]
        return None

    @property
    def is_unused(self) -> bool:
        """Whether a pattern has matched nothing."""
        return bool(self._unused)

    def check_used(self) -> None:
        """Raises ArgumentError if a pattern has matched nothing."""
        if self._unused:
            titles = [repr(self._rules.rules[number].title) for number in sorted(self._unused)]
            raise ArgumentError(f"formats: {', '.join(titles)} matches no parameter of the model")


# Tensors by where they are registered: the ``id`` of the module, and the attribute.
_BySlot: TypeAlias = Mapping[tuple[int, str], Named]


def _by_slot(tensors: Iterable[Named]) -> _BySlot:
    return {(id(slot.module), slot.attribute): one for one in tensors for slot in one.slots}


def _values_name(name: str) -> str:
    return name.removesuffix(PACKED)


def _is_payload(tensor: Tensor) -> bool:
    """Whether a weight may be low-precision: it has 8 bits, float4 or packed ones among them."""
    return tensor.dtype.itemsize == 1 and tensor.dtype is not torch.bool


def _weight_beside(named: Named, beside: _BySlot) -> Named | None:
    """The 8-bit, float4 or packed weight that a parameter, by its name, has the scales of."""
    for slot in named.slots:
        for end in (*SCALES, *WHOLE):
            base = slot.attribute.removesuffix(end)
            if base == slot.attribute:
                continue
            for attribute in (base, base + PACKED):
                weight = beside.get((id(slot.module), attribute))
                if weight is not None and _is_payload(weight.tensor):
                    return weight
    return None


def check_scales(found: Inspected, rules: Rules) -> None:
    """Raises ArgumentError if a rule would draw the scales of a low-precision weight.

    Args:
        found: the model, without what formats quantise.
        rules: that are used.
    """
    ends = (*SCALES, *WHOLE)
    likely = [
        named for named in found.parameters
        if any(slot.attribute.endswith(ends) for slot in named.slots)
    ]  # fmt: skip
    if not likely:
        return
    beside = _by_slot(found.all_parameters)
    for named in likely:
        weight = _weight_beside(named, beside)
        number = -1 if weight is None else rules.find(named.name, named.owner)
        if weight is None or number < 0:
            continue
        rule, shape = rules.rules[number], tuple(named.tensor.shape)
        target = Target(named.name, shape, torch.float32, named.owner)
        parts = rule.scheme.parts(Region(named.name, shape), target)
        if any(part.values.takes_key for part in parts):
            name = _values_name(weight.name)
            raise ArgumentError(
                f"{named.name!r} has the scales of {name!r}, and the rule {rule.title} would draw "
                f"them: write formats={{{name!r}: torchinit.MXFP8()}}, or another format, which "
                "fills both; or a rule for it, such as torchinit.Constant(1.0)"
            )


def _found(named: Named, form: BlockFormat, beside: _BySlot) -> Found:
    tensor, name = named.tensor, _values_name(named.name)
    what = f"parameter {named.name!r}, whose format is {form},"
    if type(tensor) not in PLAIN_TYPES and not is_dtensor(tensor):
        shape = tuple(tensor.shape)
        _inner(tensor, what, form)
        return Found(_stand_in(named, name, shape, form), form, named)
    if tensor.dtype not in form.payload_dtypes:
        said = " or ".join(map(str, form.payload_dtypes))
        raise ArgumentError(
            f"{what} has {tensor.dtype}, and its payload is {said}: make the quantised model first"
        )
    shape = form.values_shape(tuple(tensor.shape))
    base = _values_name(named.attribute)
    scales = _first(beside, named, SCALES)
    if scales is None:
        raise ArgumentError(
            f"{what} has no scales: there is no "
            + " or ".join(repr(base + end) for end in SCALES)
            + " beside it"
        )
    whole, inverse = None, False
    if form.has_whole:
        for end, inverse in WHOLE.items():  # noqa: B007
            whole = _first(beside, named, [end])
            if whole is not None:
                break
        else:
            raise ArgumentError(
                f"{what} has no factor of the whole tensor: there is no "
                + " or ".join(repr(base + end) for end in WHOLE)
                + " beside it"
            )
        if whole.tensor.numel() != 1:
            raise ArgumentError(
                f"{whole.name!r} has shape {tuple(whole.tensor.shape)}, and is the one factor of "
                f"{named.name!r}"
            )
    wanted, there = form.scales_shape(shape), tuple(scales.tensor.shape)
    if there != wanted:
        raise ArgumentError(f"{what} has scales of shape {there}, and they must be {wanted}")
    one = Found(_stand_in(named, name, shape, form), form, named, scales, whole, inverse)
    on_meta = [other.tensor.is_meta for other in (named, scales, whole) if other is not None]
    if len(set(on_meta)) > 1:
        raise ArgumentError(f"{what} and its scales must both be in memory, or on the meta device")
    for other, dtypes in ((scales, tuple(form.scale_dtypes)), (whole, (torch.float32,))):
        if other is not None and other.tensor.dtype not in dtypes:
            said = " or ".join(map(str, dtypes))
            raise ArgumentError(f"{other.name!r} has {other.tensor.dtype}, and must be {said}")
    return one


def _first(beside: _BySlot, named: Named, ends: Iterable[str]) -> Named | None:
    """The tensor beside a weight whose name is the weight's and one of the ends.

    Raises:
        ArgumentError: if the weight is tied, and they are not.
    """
    found: dict[int, Named] = {}
    for slot in named.slots:
        base = _values_name(slot.attribute)
        names = [base + end for end in ends if (id(slot.module), base + end) in beside]
        if names:
            one = beside[id(slot.module), names[0]]
            found[id(one.tensor)] = one
    if len(found) > 1:
        names = [one.name for one in found.values()]
        raise ArgumentError(
            f"{named.name!r} is one parameter under several names, whose scales are apart: tie "
            f"{' and '.join(map(repr, names))} too"
        )
    return next(iter(found.values()), None)


def _check_apart(places: Mapping[str, Destination]) -> None:
    """Raises ArgumentError if two weights share scales or memory."""
    there = [(name, one) for name, to in places.items() for one in to.tensors]
    pair = overlapping_anywhere([one for _, one in there])
    if pair is not None:
        first, second = (there[number][0] for number in pair)
        raise ArgumentError(
            f"{first!r} and {second!r} share memory of payload or scales, so that filling one "
            "overwrites the other: give each its own"
        )


def _stand_in(named: Named, name: str, shape: tuple[int, ...], form: BlockFormat) -> Named:
    form.payload_shape(shape)
    meta = torch.empty(shape, dtype=form.source, device="meta")
    ties = [slot._replace(name=_values_name(slot.name)) for slot in named.ties]
    return named._replace(name=name, tensor=Parameter(meta, requires_grad=False), ties=ties)


def _inner(tensor: Any, what: str, form: BlockFormat) -> dict[str, Tensor]:
    """Payload, scales and factor inside a tensor subclass such as torchao's."""
    data = tensor.data if isinstance(tensor, Parameter) else tensor
    names = data.__tensor_flatten__()[0] if hasattr(data, "__tensor_flatten__") else ()
    found = {_INSIDE[name]: getattr(data, name) for name in names if name in _INSIDE}
    needed = ["payload", "scales", *(["whole"] if form.has_whole else [])]
    lacks = [name for name in needed if not isinstance(found.get(name), Tensor)]
    if lacks:
        raise ArgumentError(
            f"{what} is a {type(data).__name__}, in which no {lacks[0]} is found: torchao's "
            "MXTensor and NVFP4Tensor (with a per-tensor scale) have them"
        )
    if getattr(data, "is_swizzled_scales", False) or getattr(data, "_is_swizzled_scales", False):
        raise ArgumentError(f"{what} has swizzled scales: initialise it before they are swizzled")
    block = getattr(data, "block_size", getattr(data, "_block_size", form.columns))
    if block != form.columns:
        raise ArgumentError(
            f"{what} has blocks of {counted(block, 'column')}, and not {form.columns}"
        )
    shape = tuple(data.shape)
    for part, wanted in (
        ("payload", form.payload_shape(shape)), ("scales", form.scales_shape(shape))
    ):  # fmt: skip
        if (there := tuple(found[part].shape)) != wanted:
            raise ArgumentError(f"{what} has {part} of shape {there}, and must have {wanted}")
    return found


def _sharded(tensor: Tensor) -> Sharded:
    if is_dtensor(tensor):
        return read_sharded(tensor)
    shape = tuple(tensor.shape)
    zeros = (0,) * len(shape)
    return Sharded(tensor.detach(), shape, [ShardPiece(zeros, zeros, shape)])


def _destination(one: Found) -> Destination:
    if one.scales is None:
        inner = _inner(one.of.tensor, repr(one.of.name), one.format)
        return Destination(
            _sharded(inner["payload"]), _sharded(inner["scales"]), inner.get("whole")
        )
    whole = None if one.whole is None else _sharded(one.whole.tensor).local
    if whole is not None and not whole.numel():  # another rank has it
        whole = None
    scales = _sharded(one.scales.tensor)
    return Destination(_sharded(one.of.tensor), scales, whole, one.inverse)


def split(
    assignments: Sequence[Assignment], weights: Mapping[int, Found]
) -> tuple[Sequence[Assignment], list[Assignment]]:
    """The assignments of other tensors, and those of quantised weights."""
    if not weights:
        return assignments, []
    quantised = [one for one in assignments if id(one.named.tensor) in weights]
    return [one for one in assignments if id(one.named.tensor) not in weights], quantised


def weight_of(
    one: Assignment, form: BlockFormat, device: torch.device, key_of_name: KeyOfName
) -> Weight:
    """What a weight is filled with; its callables are run, and its values checked.

    Args:
        one: the assignment of a parameter of its values.
        form: the format.
        device: to run callables on.
        key_of_name: maps names to keys under the seed.

    Raises:
        ArgumentError: for values that cannot be quantised.
    """
    one = run_callables(one._replace(dtype=form.source), device, key_of_name)
    parts, shape = [*one.all_parts, *one.pad_parts], tuple(one.named.tensor.shape)
    weight = Weight(form, shape, parts, [part.key(key_of_name) for part in parts])
    try:
        check_values(weight)
    except ArgumentError as error:
        raise ArgumentError(f"parameter {one.named.name!r}: {error}") from None
    return weight


class Ready(NamedTuple):
    """A quantised weight whose callables have been run, and all of whose values are known."""

    found: Found
    weight: Weight


def make_ready(
    assignments: Sequence[Assignment], weights: Mapping[int, Found], device: torch.device,
    key_of_name: KeyOfName,
) -> list[Ready]:  # fmt: skip
    """Runs the callables of quantised weights, and checks their values; nothing is written.

    Args:
        assignments: of the stand-ins.
        weights: by the ``id`` of their stand-in's tensor.
        device: the final device of tensors on the meta device.
        key_of_name: maps names to keys under the seed.
    """
    if assignments:
        check_served()
    found = [weights[id(one.named.tensor)] for one in assignments]
    pairs = zip(assignments, found, strict=True)
    made = [weight_of(one, its.format, device, key_of_name) for one, its in pairs]
    return list(map(Ready, found, made))


def fill_quantised(ready: Sequence[Ready], device: torch.device) -> list[Tensor]:
    """Fills quantised weights and their scales, allocating memory for those on the meta device.

    Returns:
        The tensors that the model should have now.
    """
    done: list[Tensor] = []
    for found, weight in ready:
        there = [named for named in (found.of, found.scales, found.whole) if named is not None]
        placed = {
            id(named): _with_memory(named.tensor, device) if named.tensor.is_meta else named.tensor
            for named in there
        }  # fmt: skip
        to = _destination(
            found._replace(
                of=found.of._replace(tensor=placed[id(found.of)]),
                scales=found.scales and found.scales._replace(tensor=placed[id(found.scales)]),
                whole=found.whole and found.whole._replace(tensor=placed[id(found.whole)]),
            )
        )
        if is_in_memory(to.payload.local):
            fill_weight(weight, to)
        for named in there:
            if named.tensor.is_meta:
                done.append(attach(named, placed[id(named)]))
                continue
            done += [named.tensor, *(slot.tensor for slot in named.ties)]
            if is_dtensor(named.tensor):
                kernels.count_write(named.tensor)
    return done


def _with_memory(meta: Any, device: torch.device) -> Any:
    """Uninitialised memory for a tensor on the meta device; of a subclass, all its parts."""
    if type(meta) in PLAIN_TYPES or is_dtensor(meta):
        return allocate_here(meta, meta.dtype, device)
    data = meta.data
    names, context = data.__tensor_flatten__()
    inner = {name: _with_memory(getattr(data, name), device) for name in names}
    return type(data).__tensor_unflatten__(inner, context, data.shape, data.stride())
