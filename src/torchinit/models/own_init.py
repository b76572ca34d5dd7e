"""The model's own initialisation: recorded while its parameters are on the meta device.

So what it does costs nothing until it is known what is to stay, and draws can be keyed by name.
Buffers are filled as it goes. What a parameter gets that no record can say (arithmetic on values)
is made by the same calls again, on memory of those parameters alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from operator import attrgetter
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parameter import Parameter
from torch.utils._python_dispatch import TorchDispatchMode

from torchinit.errors import ArgumentError
from torchinit.models.assign import Assignment, assignment_of, padding_rows, some
from torchinit.models.conventions import HF_FLAG, Step, find_steps
from torchinit.models.keyed import KeyedFills, KeyOfName, filling_by
from torchinit.models.materialise import allocate, put_parameter
from torchinit.models.recorder import Operation, Record, Recorder
from torchinit.models.scratch import check_written, count_unwritten, mark_unwritten
from torchinit.native.torch_private import storage_number
from torchinit.placement.distributed import is_dtensor
from torchinit.rules.part import Matrix, Part, Region, draw_in
from torchinit.rules.whole import seeded
from torchinit.schemes.distributions import Draw
from torchinit.streams.canonical import Named, Slot


class _KeyedSteps(KeyedFills):
    """Fills by keys of names, step by step."""

    def begin(self, number: int, name: str) -> None:  # noqa: ARG002
        """Before a step's call: draws that are nobody's are parts of its module's name."""
        self.default = name

    def end(self, module: nn.Module) -> None:
        """After a step's call."""


_step = attrgetter("step")
_Handler: TypeAlias = "Recorder | _KeyedSteps"


class OwnInit(NamedTuple):
    """What a model's own initialisation came to.

    Attributes:
        records: of the parameters, in their order.
        values: of parameters that had to be computed, by name.
        buffers: what each buffer that was on the meta device, or was written to, has become.
        raised: labels of the calls that raised, and the errors: of none that has been made again.
        lost: those among them that cannot be made again: they fill no parameter.
        labels: of all calls.
    """

    records: list[Record]
    values: dict[str, Tensor]
    buffers: list[tuple[Named, Tensor]]
    raised: list[tuple[str, Exception]]
    lost: list[tuple[str, Exception]]
    labels: list[str]


def run_own_init(
    model: nn.Module,
    parameters: Sequence[Named],
    buffers: Sequence[Named],
    device: torch.device,
    key_of_name: KeyOfName,
    *,
    dtype: torch.dtype | None = None,
    only_buffers: bool = False,
) -> OwnInit:
    """Runs what a model initialises itself by; the model is afterwards as it was.

    Args:
        model: with parameters anywhere.
        parameters, buffers: all of them.
        device: where what is on the meta device is to lie.
        key_of_name: under the seed.
        dtype: of parameters on the meta device; None is their own.
        only_buffers: what is done to parameters is not wanted.

    Raises:
        ArgumentError: for values that were to be computed, and are not all there.
    """
    with _restored(parameters, model):
        twins = [named._replace(tensor=_twin(named)) for named in parameters]
        for twin in twins:
            for slot in twin.slots:
                put_parameter(slot, twin.tensor)
        memory = [named._replace(tensor=_buffer_memory(named, device)) for named in buffers]
        for named in memory:
            for slot in named.slots:
                slot.module._buffers[slot.attribute] = named.tensor
        steps = find_steps(model, device)
        recorder = Recorder(twins, memory, key_of_name)
        raised = _run(list(enumerate(steps)), recorder, key_of_name, device)
        records = [recorder.records[storage_number(twin.tensor)] for twin in twins]
        values: dict[str, Tensor] = {}
        lost = _note_raised(raised, steps, recorder)
        if not only_buffers:
            raised = lost
            if any(record.computed for record in records):
                values = _compute(steps, records, recorder, device, key_of_name, dtype)
        filled = list(_buffers_after(buffers, memory, recorder.written))
    labels = [step.label for step in steps]
    said, unsaid = ([(labels[n], error) for n, error in those] for those in (raised, lost))
    return OwnInit(records, values, filled, said, unsaid, labels)


def _note_raised(
    raised: Sequence[tuple[int, Exception]], steps: Sequence[Step], recorder: Recorder
) -> list[tuple[int, Exception]]:
    """Has calls that raised made again, with memory for all parameters below; returns the others.

    Code that looks at values raises while there are none.
    """
    others = []
    for number, error in raised:
        below = [storage_number(parameter) for parameter in steps[number].module.parameters()]
        found = [recorder.records[one] for one in below if one in recorder.records]
        for record in found:
            recorder.must_compute(record, number)
        if not found:
            others.append((number, error))
    return others


def parts_of(record: Record) -> list[Part]:
    """The operations of a record as parts, to be filled in order."""
    return [_part(record, operation) for operation in record.operations]


def _part(record: Record, operation: Operation) -> Part:
    values: Any = operation.values
    geometry = operation.geometry
    shape = tuple(record.named.tensor.shape) if geometry is None else geometry[0]
    if operation.call is not None and operation.call.name == "orthogonal_":
        values = Matrix(float(operation.call.arguments["gain"]))
    return Part(Region(operation.name, shape, geometry=geometry), values)


def _twin(named: Named) -> Parameter:
    """A parameter on the meta device that stands for another, without what marks it as filled."""
    old = named.tensor
    if old.is_meta and type(old) is Parameter and HF_FLAG not in old.__dict__:
        return old
    meta = torch.empty_strided(old.shape, old.stride(), dtype=old.dtype, device="meta")
    twin = Parameter(meta, old.requires_grad)
    twin.__dict__.update({name: x for name, x in old.__dict__.items() if name != HF_FLAG})
    return twin


def _buffer_memory(named: Named, device: torch.device) -> Tensor:
    old: Tensor = named.tensor
    if not old.is_meta and not is_dtensor(old):
        return old.clone()
    if not old.is_meta:  # a whole: only what is written to it is of interest
        device = old.device
    new = allocate(old, old.dtype, device)
    mark_unwritten(new)
    return new


def _attributes(module: nn.Module) -> dict[str, Tensor]:
    """Tensors that a module has and has not registered."""
    return {name: one for name, one in module.__dict__.items() if isinstance(one, Tensor)}


@contextlib.contextmanager
def _restored(parameters: Iterable[Named], model: nn.Module) -> Iterator[None]:
    """Puts every parameter and buffer back, whatever becomes of them in the block."""
    registered = [
        (module, dict(module._parameters), dict(module._buffers), _attributes(module))
        for module in model.modules()
    ]
    for module, *_ in registered:
        module.__dict__.pop(HF_FLAG, None)
    try:
        yield
    finally:
        for module, its_parameters, buffers, attributes in registered:
            module.__dict__.pop(HF_FLAG, None)
            for name, now in _attributes(module).items():
                if now.is_meta and name in attributes:
                    module.__dict__[name] = attributes[name]
            module._parameters.clear()
            module._parameters.update(its_parameters)
            module._buffers.clear()
            module._buffers.update(buffers)
        for named in parameters:
            for slot in named.slots:
                put_parameter(slot, named.tensor)


def _run(
    steps: Sequence[tuple[int, Step]],
    handler: _Handler,
    key_of_name: KeyOfName,
    device: torch.device,
) -> list[tuple[int, Exception]]:
    """Makes calls; what they draw past the patch is seeded by the name of the module they fill."""
    raised: list[tuple[int, Exception]] = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(seeded(0, device))
        stack.enter_context(filling_by(handler))
        if torch.get_default_device().type == "meta":
            stack.enter_context(torch.device("cpu"))
        if isinstance(handler, Recorder):
            stack.enter_context(handler)
        for number, step in steps:
            handler.begin(number, step.name)
            torch.default_generator.manual_seed(key_of_name(step.name) % 2**64)
            try:
                step.run()
            except Exception as error:
                raised.append((number, error))
            handler.end(step.module)
    return raised


def _buffers_after(
    before: Sequence[Named], memory: Sequence[Named], written: set[int]
) -> Iterator[tuple[Named, Tensor]]:
    """What buffers have become: written to in place, or replaced by other tensors."""
    for old, new in zip(before, memory, strict=True):
        now = new.module._buffers.get(new.attribute)
        if now is not None and now is not new.tensor and not now.is_meta:
            yield old, now
        elif storage_number(new.tensor) in written:
            yield old, new.tensor


class _BufferWrites(TorchDispatchMode):
    """Notes which buffers are written to."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._recorder = recorder

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Does an operation."""
        if func._schema.is_mutable:
            for value in args[:1]:
                if isinstance(value, Tensor) and storage_number(value) in self._recorder.buffers:
                    self._recorder.written.add(storage_number(value))
        return func(*args, **(kwargs or {}))


def _compute(
    steps: Sequence[Step],
    records: Sequence[Record],
    recorder: Recorder,
    device: torch.device,
    key_of_name: KeyOfName,
    dtype: torch.dtype | None,
) -> dict[str, Tensor]:
    """Makes the calls that touch computed parameters again, with memory for these."""
    chosen = [record for record in records if record.computed]
    while True:
        numbers = set().union(*(record.steps for record in chosen))
        touched = [record for record in records if record.steps & numbers]
        if len(touched) == len(chosen):
            break
        chosen = touched
    memory: dict[str, Tensor] = {}
    for record in chosen:
        meta = record.named.tensor
        scratch = allocate(meta, _final_dtype(meta, dtype), device)
        mark_unwritten(scratch)
        real = Parameter(scratch, meta.requires_grad)
        real.__dict__.update(meta.__dict__)
        memory[record.named.name] = real.detach()
        for slot in record.named.slots:
            put_parameter(slot, real)
    handler = _KeyedSteps(key_of_name, memory.items(), "")
    again = [(number, steps[number]) for number in sorted(numbers)]
    with _BufferWrites(recorder):
        raised = _run(again, handler, key_of_name, device)
    if raised:
        number, error = raised[0]
        name = next(record.named.name for record in chosen if number in record.steps)
        raise ArgumentError(
            f"{steps[number].label} raised {type(error).__name__}: {error}; parameter {name!r} has "
            "no value without it"
        ) from error
    values = {}
    for record in chosen:
        name = record.named.name
        label = ", ".join(dict.fromkeys(steps[number].label for number in sorted(record.steps)))
        values[name] = _value_after(record.named, label, device, dtype)
        check_written(name, values[name], label)
    return values


def _final_dtype(tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    return dtype if dtype is not None and tensor.dtype.is_floating_point else tensor.dtype


def _value_after(
    named: Named, label: str, device: torch.device, dtype: torch.dtype | None
) -> Tensor:
    """What a parameter has become: it may have been replaced by another, or given other memory."""
    found = {id(now): now for slot in named.slots if (now := _now(slot)) is not None}
    now = next(iter(found.values()), None)
    if now is None or len(found) > 1 or now.is_meta or now.shape != named.tensor.shape:
        what = (
            "removed it" if now is None
            else "untied its names" if len(found) > 1
            else f"replaced it by one of shape {tuple(now.shape)} on {now.device}"
        )  # fmt: skip
        raise ArgumentError(f"parameter {named.name!r} has no value: {label} {what}")
    return now.detach().to(device, _final_dtype(named.tensor, dtype))


def _now(slot: Slot) -> Tensor | None:
    found: Tensor | None = slot.module._parameters.get(slot.attribute)
    return found


def assign_own(
    parameters: Sequence[Named], own: OwnInit, dtype: torch.dtype | None
) -> list[Assignment]:
    """What the model's own initialisation gives each parameter.

    Raises:
        ArgumentError: for parameters that it leaves unfilled.
    """
    if own.lost:
        raise ArgumentError(
            "the model's own initialisation cannot be followed" + _what_raised(own.lost) + ": what "
            "these would have done is unknown. Give rules"
        )
    assignments, unfilled = [], []
    joined = _join(own.records)
    for named, record in zip(parameters, own.records, strict=True):
        record = joined.get(named.name, record)
        takes = named.tensor.is_meta and named.tensor.dtype.is_floating_point
        final = dtype if dtype is not None and takes else named.tensor.dtype
        steps = record.computed or [operation.step for operation in record.operations]
        labels = ", ".join(dict.fromkeys(own.labels[step] for step in sorted(steps)))
        draw: Draw | None = None
        parts: list[Part] = []
        if not record.computed and not record.operations:
            unfilled.append(named.name)
            continue
        if not record.computed:
            parts = parts_of(record)
            first = parts[0]
            if len(parts) == 1 and first.region.geometry is None:
                draw = draw_in(first.values)
                parts = parts if draw is None else []
        pads = _pads(record)
        assignments.append(assignment_of(named, final, draw, parts, pads, labels))
    if unfilled:
        raise ArgumentError(
            f"the model's own initialisation leaves {len(unfilled)} of {len(parameters)} "
            f"parameters unfilled: {some(unfilled)}"
            + _what_raised(own.raised)
            + ". Their values are known to a constructor alone: give rules"
        )
    return assignments


def _join(records: Sequence[Record]) -> dict[str, Record]:
    """What was done to all parameters of one name, as rename may join them, in order, as to one."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.named.name, []).append(record)
    joined = {}
    for name, group in groups.items():
        if len(group) == 1:
            continue
        slots = tuple(slot for record in group for slot in record.named.slots)
        whole = joined[name] = Record(group[0].named._replace(ties=slots))
        operations = [operation for record in group for operation in record.operations]
        for operation in sorted(operations, key=_step):
            whole.add(operation)
        whole.zeroed = [geometry for record in group for geometry in record.zeroed]
        whole.computed = set().union(*(record.computed for record in group))
    return joined


def _pads(record: Record) -> list[int]:
    """Rows of padding that an embedding zeroed and a head tied to it wrote over.

    Where a model ties only after it has initialised itself, as Transformers does without the meta
    device, the embedding's values are the ones that stay.
    """
    if len(record.named.slots) == 1 or not record.zeroed:
        return []
    tensor: Tensor = record.named.tensor
    return [
        row
        for row in padding_rows(record.named)
        if (tuple(tensor[row].shape), tensor[row].stride(), tensor[row].storage_offset())
        in record.zeroed
    ]


def check_buffers(buffers: Sequence[Named], own: OwnInit) -> None:
    """Raises ArgumentError for buffers on the meta device that nobody has filled, or not all of."""
    filled = {
        id(old.tensor)
        for old, new in own.buffers
        if not old.tensor.is_meta or not count_unwritten(new)
    }
    left = [n.name for n in buffers if n.tensor.is_meta and id(n.tensor) not in filled]
    if left:
        raise ArgumentError(
            f"{len(left)} buffers on the meta device have no values that anybody knows: "
            f"{some(left)}{_what_raised(own.raised)}. Give them memory and values before, or their "
            "module a reset_parameters"
        )


def _what_raised(raised: Sequence[tuple[str, Exception]]) -> str:
    if not raised:
        return ""
    said = "; ".join(f"{label} ({type(error).__name__}: {error})" for label, error in raised[:5])
    return f" (raised: {said})"
