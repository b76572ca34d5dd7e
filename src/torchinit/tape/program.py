"""What is remembered of a tensor: how its values come about, for any seed and any part of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torchinit.errors import ArgumentError
from torchinit.native.torch_private import StorageWeakRef
from torchinit.placement.distributed import local_memory
from torchinit.schemes.distributions import Draw
from torchinit.streams.named_keys import KeyOfName
from torchinit.tape.naming import Name
from torchinit.tape.play import box_is_exact, play, play_box, values_of
from torchinit.tape.tape import Bytes, Cell, Entry, Fill, Input, Operation, Ref, inputs_of
from torchinit.values.kinds import DrawnValues, MatrixValues, Values
from torchinit.values.region import Part, Region

_MEMORY = "_torchinit_built"
_FEW = 4096  # bytes of a constant that are kept for good


class Program:
    """How the values of one tensor come about. Nothing of it changes, but that constants go.

    Attributes:
        name, names: that the tensor had when it was built, tied ones all of them.
        shape, stride, dtype: that it had then.
        entries: what its values follow from; none of a constant.
        ref: the tensor among them.
        constant: its values, if it has no entries.
        labels: of the draws among the entries, by number: the program of the tensor that each is
            named after, if that is one; and the name.
        seed: that it was built with.
        is_frozen: whether code has read values that were drawn, and what it did may depend on them.
        is_torchs: whether torch's own draws are in it, which no seed of torchinit's governs.
        is_unfilled: whether nobody has written to the tensor.
    """

    def __init__(
        self, name: str, tensor: Tensor, entries: Sequence[Entry], ref: Ref | None,
        constant: Input | None, seed: int, *,
        is_frozen: bool, is_torchs: bool, is_unfilled: bool,
    ) -> None:  # fmt: skip
        self.name, self.entries, self.ref, self.constant = name, tuple(entries), ref, constant
        self.names: tuple[str, ...] = (name,)
        self.shape, self.stride = tuple(tensor.shape), tensor.stride()
        self.dtype = tensor.dtype
        self.labels: dict[int, tuple[Program | None, Name]] = {}
        self.seed, self.is_frozen, self.is_torchs = seed, is_frozen, is_torchs
        self.is_unfilled = is_unfilled
        self._holder: tuple[StorageWeakRef, int] | None = None

    def __deepcopy__(self, memo: Any) -> Program:
        """Copies of a module share what is remembered."""
        return self

    def draw(self) -> tuple[Draw, int | None] | None:
        """The law and number of the one draw that it comes to; None if it is none."""
        if len(self.entries) != 1 or self.ref is None:
            return None
        entry = self.entries[0]
        if not isinstance(entry, Fill) or entry.law is None:
            return None
        written = entry.writes[0]
        if written.dtype != self.dtype or not written.is_same_run(self.ref):
            return None
        return entry.law, entry.draw

    def fills(self) -> list[Fill] | None:
        """Its entries, if they only fill parts of the tensor; None if they do not."""
        if self.ref is None or not self.entries:
            return None
        fills = [one for one in self.entries if isinstance(one, Fill)]
        if len(fills) < len(self.entries) or any(
            one.writes[0].cell is not self.ref.cell or one.writes[0].dtype != self.dtype
            for one in fills
        ):
            return None
        begin, end = self.ref.offset, self.ref.offset + self.ref.extent
        if any(
            one.writes[0].offset < begin
            or one.writes[0].offset + one.writes[0].extent > end
            or (one.law is None and one.call.name != "orthogonal_")
            for one in fills
        ):
            return None
        return fills

    def parts(self, name_of: Callable[[int], str], name: str) -> list[Part] | None:
        """The fills as parts of a parameter, to be done in order; None if it is more than fills.

        Args:
            name_of: the name of a draw.
            name: of the parameter.
        """
        fills = self.fills()
        if fills is None:
            return None
        assert self.ref is not None
        parts = []
        for one in fills:
            ref = one.writes[0]
            geometry: Any = (ref.size, ref.stride, ref.offset - self.ref.offset)
            if ref.geometry == self.ref.geometry:
                geometry = None
            values: Values = MatrixValues(float(one.call.arguments.get("gain", 1.0)))
            if one.law is not None:
                values = DrawnValues(one.law)
            region = Region(
                name if one.draw is None else name_of(one.draw), ref.size, geometry=geometry
            )
            parts.append(Part(region, values))
        return parts

    def can_box(self) -> bool:
        """Whether ``make_box`` can make a part of it alone."""
        return self.ref is not None and bool(self.entries) and box_is_exact(self.entries, self.ref)

    def make(self, key_of_draw: Callable[[int], int]) -> Tensor:
        """All of its values, on the CPU, in the dtype that it was built in."""
        if not self.entries:
            assert self.constant is not None
            return values_of(self.constant)
        assert self.ref is not None
        return self.ref.of(play(self.entries, key_of_draw, [self.ref.cell])[self.ref.cell])

    def make_box(
        self, key_of_draw: Callable[[int], int], offset: Sequence[int], into: Tensor
    ) -> None:
        """Writes a part of its values, from an index on."""
        assert self.ref is not None
        play_box(self.entries, self.ref, key_of_draw, offset, into)

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor has its constant still, as nobody has written to it since."""
        if self._holder is None:
            return False
        holder, version = self._holder
        storage = local_memory(tensor).untyped_storage()
        return holder.cdata == storage._cdata and tensor._version == version

    def describe(self, name_of: Callable[[int], str]) -> Iterator[bytes]:
        """What decides its values: entries, the names of their draws, and constants."""
        cells: dict[Cell, int] = {}

        def said(one: Any) -> object:
            if isinstance(one, Ref):
                return cells.setdefault(one.cell, len(cells)), str(one.dtype), one.geometry
            if isinstance(one, Input):
                values = values_of(one).contiguous()
                bytes_ = values.reshape(-1).view(torch.uint8).numpy().tobytes()
                return str(values.dtype), tuple(values.shape), bytes_
            return repr(one)

        yield repr(said(self.ref or self.constant)).encode()
        for entry in self.entries:
            what: list[object] = [None if entry.draw is None else name_of(entry.draw)]
            if isinstance(entry, Fill):
                what += [entry.law, *entry.call.arguments.items()]
            elif isinstance(entry, Bytes):
                what.append(said(entry.constant))
            elif isinstance(entry, Operation):
                what += [str(entry.function), *map(said, entry.arguments)]
            yield repr((what, list(map(said, entry.writes)))).encode()

    def constants(self) -> list[Input]:
        """The tensors that no entry makes."""
        found = [] if self.constant is None else [self.constant]
        return found + [one for entry in self.entries for one in inputs_of(entry)]

    def give_up(self, tensor: Tensor) -> None:
        """Gives large constants up, after they have been used for a tensor."""
        for constant in self.constants():
            if constant.tensor is not None and constant.tensor.nbytes > _FEW:
                constant.tensor = None
        if self.constant is not None and not tensor.is_inference():
            # Not of the tensor itself: to_empty could then not swap it for another.
            storage = local_memory(tensor).untyped_storage()
            self._holder = StorageWeakRef(storage), tensor._version


class Remembered(dict[str, Program]):
    """What a module remembers of its tensors, by attribute. A pickled module remembers nothing."""

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return dict, ()

    def __deepcopy__(self, memo: Any) -> Remembered:
        return Remembered(self)


def remember(module: nn.Module, attribute: str, program: Program) -> None:
    """Has a module remember how a tensor of its own came about."""
    memory = module.__dict__.get(_MEMORY)
    if not isinstance(memory, Remembered):
        memory = module.__dict__[_MEMORY] = Remembered()
    memory[attribute] = program


def recall(module: nn.Module, attribute: str) -> Program | None:
    """What a module remembers of a tensor."""
    memory = module.__dict__.get(_MEMORY)
    return memory.get(attribute) if isinstance(memory, Remembered) else None


class Keys:
    """The keys of draws, by the names that tensors have now.

    Args:
        names: the names that the tensor of each program has in a model.
        key_of_name: under a seed.
        seed: that seed.
    """

    def __init__(
        self, names: Mapping[Program, Sequence[str]], key_of_name: KeyOfName, seed: int
    ) -> None:
        self._names, self._key_of_name, self._seed = names, key_of_name, seed
        self._holders = {name: program for program, some in names.items() for name in some}

    def _prefix(self, program: Program, name: str) -> str | None:
        """What has come to stand before a tensor's name; None if it goes by another one."""
        known = [one for one in program.names if name == one or name.endswith(f".{one}")]
        return name[: len(name) - max(map(len, known))] if known else None

    def _now(self, program: Program, name: str) -> str:
        """The name that keys of a tensor are made of: a tie's smallest.

        Also where the tie is broken, or the other tensor has been removed: a stage of a pipeline
        has but one of them.
        """
        prefix = self._prefix(program, name) if len(program.names) > 1 else None
        if prefix is None:
            return name
        names = [prefix + one for one in program.names]
        return min((x for x in names if self._holders.get(x, program) is program), default=name)

    def name_of(self, program: Program, number: int, name: str) -> str:
        """The name of a draw that a tensor follows from.

        Args:
            program: of the tensor.
            number: of the draw.
            name: of the tensor.
        """
        other, label = program.labels[number]
        if other is None:  # a module, or what is not registered
            above = self._prefix(program, name) or ""
            return label._replace(base=(above + label.base).rstrip(".")).text
        if other is program:
            return label._replace(base=self._now(program, name)).text
        found = self._names.get(other)
        prefix = None if found else self._prefix(program, name)
        if prefix is not None:  # removed from the model, such as by a pipeline
            found = [one for one in (prefix + min(other.names),) if one not in self._holders]
        if not found:
            raise ArgumentError(
                f"parameter {name!r} follows from a draw into {other.name!r}, which is not in this "
                "model: build it again"
            )
        nearest = max(found, key=lambda one: (_common(one, name), [-ord(x) for x in one]))
        return label._replace(base=self._now(other, nearest)).text

    def check(self, program: Program, name: str) -> None:
        """Raises ArgumentError for values that stand for one seed and one set of names alone."""
        if not program.is_frozen:
            return
        if program.seed != self._seed:
            raise ArgumentError(
                f"parameter {name!r} may follow from values that the constructor read under "
                f"seed={program.seed}: build again with seed={self._seed}"
            )
        for number, (_, label) in program.labels.items():
            if self.name_of(program, number, name) != label.text:
                raise ArgumentError(
                    f"parameter {name!r} may follow from values that the constructor read when it "
                    f"was named {program.name!r}: build the model as it is now"
                )

    def of(self, program: Program, name: str) -> Callable[[int], int]:
        """The key of each draw that a tensor follows from, by number."""
        return lambda number: self._key_of_name(self.name_of(program, number, name))


def _common(one: str, other: str) -> int:
    """How many leading atoms two names share."""
    pairs = zip(one.split("."), other.split("."), strict=False)
    return next(
        (i for i, (a, b) in enumerate(pairs) if a != b), min(one.count("."), other.count(".")) + 1
    )
