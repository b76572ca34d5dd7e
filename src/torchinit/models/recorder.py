"""Records what a model's own initialisation does to tensors on the meta device.

Fills are kept as calls, to be done later by the key of the name; constants and copies of values
that are there likewise. Whatever else writes to a parameter (arithmetic, a copy of another
parameter) is *computed*: the calls that did it have to be made again on real memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from torch import Generator, Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from torchinit.fill.fill import fill
from torchinit.fill.route import obstacle
from torchinit.native.torch_private import storage_number
from torchinit.rules.part import Geometry
from torchinit.schemes.calls import Call, draw_of
from torchinit.schemes.distributions import CONSTANT, DISTRIBUTIONS, Draw, constant_draw
from torchinit.streams.canonical import Named
from torchinit.streams.names import part_of


class Operation(NamedTuple):
    """One write to a tensor that can be done later.

    Attributes:
        values: a draw; a call of a function of ``torch.nn.init`` that is none; or a tensor of the
            values themselves.
        call: that made it, if one did.
        name: whose key it takes.
        geometry: what of the tensor it fills.
        is_whole: whether that is all of it.
        step: number of the step that did it.
    """

    values: Draw | Call | Tensor
    call: Call | None
    name: str
    geometry: Geometry
    is_whole: bool
    step: int


class Record:
    """What was done to one parameter or buffer.

    Attributes:
        named: the tensor and its name.
        operations: to be done in order; a write to the whole forgets those before.
        steps: numbers of the steps that touched it.
        computed: numbers of the steps that wrote what is not among the operations.
        zeroed: the parts that were set to 0, those written over later included.
    """

    def __init__(self, named: Named) -> None:
        self.named = named
        # Storages are told apart by address, so none may be freed that another could be taken for.
        self.memory = [named.tensor.untyped_storage()]
        self.operations: list[Operation] = []
        self.steps: set[int] = set()
        self.computed: set[int] = set()
        self.zeroed: list[Geometry] = []
        self.parts = 0

    def add(self, operation: Operation) -> None:
        """Adds a write."""
        if operation.is_whole:
            self.operations.clear()
        elif isinstance(operation.values, tuple) and operation.values[:2] == (CONSTANT, 0.0):
            self.zeroed.append(operation.geometry)
        self.operations.append(operation)


class Recorder(TorchDispatchMode):
    """The handler of intercepted calls, and the mode that sees all other writes.

    Args:
        parameters: on the meta device; what is done to them is recorded.
        buffers: in memory; what is done to them is done, and noted.
    """

    def __init__(
        self, parameters: Iterable[Named], buffers: Iterable[Named], key_of_name: Any
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.records: dict[int, Record] = {}
        self._slots: dict[tuple[int, str], Record] = {}
        for named in parameters:
            record = self.records[storage_number(named.tensor)] = Record(named)
            for slot in named.slots:
                self._slots[id(slot.module), slot.attribute] = record
        self.buffers = {storage_number(named.tensor): named for named in buffers}
        self._memory = [named.tensor.untyped_storage() for named in self.buffers.values()]
        self.written: set[int] = set()  # storages of buffers
        self.step, self.step_name = -1, ""
        self._key_of_name = key_of_name
        self._ordinals: dict[str, int] = {}

    def begin(self, number: int, name: str) -> None:
        """Before a step's call: its number, and the name of the module that it fills."""
        self.step, self.step_name = number, name
        self._ordinals = {}

    def end(self, module: nn.Module) -> None:
        """After a step's call: finds parameters that it has replaced, or given other memory."""
        for below in module.modules():
            for attribute, now in below._parameters.items():
                if now is None or storage_number(now) in self.records:
                    continue
                record = self._slots.get((id(below), attribute))
                if record is not None:
                    self.records[storage_number(now)] = record
                    record.memory.append(now.untyped_storage())
                    self.must_compute(record, self.step)

    def must_compute(self, record: Record, step: int) -> None:
        """Notes that a step has to be made again on memory of a parameter."""
        record.steps.add(step)
        record.computed.add(step)

    # The handler of intercepted calls.

    def fill(self, call: Call, tensor: Tensor, generator: Generator | None) -> bool:  # noqa: ARG002
        """Records a call on a parameter; does any other by a key of the step's name."""
        storage = storage_number(tensor)
        record = self.records.get(storage)
        draw = draw_of(call, tensor.shape)
        if record is not None:
            self._record(record, tensor, draw if draw is not None else call, call)
            return True
        buffer = self.buffers.get(storage)
        if buffer is not None:
            self.written.add(storage)
        if tensor.is_meta or draw is None or obstacle(tensor):
            return False
        if not DISTRIBUTIONS[draw[0]].is_random:
            key = 0
        elif buffer is not None and tensor.numel() == buffer.tensor.numel():
            key = self._key_of_name(buffer.name)
        else:
            key = self._key_of_name(self._part(buffer.name if buffer else self.step_name))
        fill(draw, tensor, key)
        return True

    def _part(self, name: str) -> str:
        ordinal = self._ordinals.get(name, 0)
        self._ordinals[name] = ordinal + 1
        return part_of(name, ordinal)

    def _record(
        self, record: Record, tensor: Tensor, values: Draw | Call | Tensor, call: Call | None
    ) -> None:
        parameter = record.named.tensor
        record.steps.add(self.step)
        is_whole = tensor.numel() == parameter.numel()
        name = record.named.name
        if not is_whole and isinstance(values, tuple) and _is_random(values):
            name = part_of(name, record.parts)
            record.parts += 1
        record.add(Operation(values, call, name, _geometry(tensor, parameter), is_whole, self.step))

    # The mode.

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        """Does an operation, and notes what it touched."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not func._schema.is_mutable:
            if not _is_view(func):
                for argument in (*args, *kwargs.values()):
                    if isinstance(argument, Tensor):
                        self._note_read(argument)
            return result
        written = [a for a in func._schema.arguments if a.alias_info and a.alias_info.is_write]
        names = {argument.name for argument in written}
        for number, argument in enumerate(func._schema.arguments):
            value = args[number] if number < len(args) else kwargs.get(argument.name)
            for tensor in value if isinstance(value, list | tuple) else (value,):
                if not isinstance(tensor, Tensor):
                    continue
                if argument.name in names:
                    self._note_write(func, tensor, args)
                else:
                    self._note_read(tensor)
        return result

    def _note_read(self, tensor: Tensor) -> None:
        record = self.records.get(storage_number(tensor))
        if record is not None:
            record.steps.add(self.step)

    def _note_write(self, func: Any, tensor: Tensor, args: Any) -> None:
        storage = storage_number(tensor)
        if storage in self.buffers:
            self.written.add(storage)
        record = self.records.get(storage)
        if record is None:
            return
        name = func._schema.name
        if name in ("aten::zero_", "aten::fill_") and not (
            args[1:] and isinstance(args[1], Tensor)
        ):
            self._record(record, tensor, constant_draw(float(args[1]) if args[1:] else 0.0), None)
        elif name == "aten::copy_" and not args[1].is_meta:
            self._record(record, tensor, args[1].detach().clone().expand(tensor.shape), None)
        else:
            self.must_compute(record, self.step)


def _is_random(values: tuple[Any, ...]) -> bool:
    if isinstance(values, Call):
        return values.name in ("orthogonal_", "sparse_")
    return DISTRIBUTIONS[values[0]].is_random


def _is_view(func: Any) -> bool:
    """Whether an operator only looks at a tensor in another way."""
    return bool(func.is_view) or func._schema.name in ("aten::detach", "aten::alias")


def _geometry(tensor: Tensor, parameter: Tensor) -> Geometry:
    same = (
        tensor.shape == parameter.shape
        and tensor.stride() == parameter.stride()
        and tensor.storage_offset() == parameter.storage_offset()
    )
    if same:
        return None
    return tuple(tensor.shape), tuple(tensor.stride()), int(tensor.storage_offset())
