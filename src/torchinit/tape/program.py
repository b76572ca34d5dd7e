"""Programs: how to compute a tensor's values, for any seed and any part of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor, UntypedStorage, nn

from torchinit.errors import ArgumentError
from torchinit.native.torch_private import StorageWeakRef
from torchinit.placement.distributed import local_memory
from torchinit.schemes.distributions import Draw
from torchinit.streams.named_keys import KeyOfName, Name
from torchinit.tape.play import box_is_exact, play, play_box, values_of
from torchinit.tape.tape import Bytes, Cell, Entry, Fill, Input, Operation, Ref, inputs_of
from torchinit.values.kinds import DrawnValues, MatrixValues, Values, bytes_of
from torchinit.values.region import Part, Region

_MEMORY = "_torchinit_built"
_FEW = 4096  # constants of up to this many bytes are never released


class Program:
    """How to compute the values of one tensor. Immutable, except that constants are released.

    Attributes:
        name, names: the tensor's name when it was built, and all its names if it was tied.
        shape, stride, dtype: of the tensor when it was built.
        entries: the entries that determine its values; empty for a constant.
        ref: the tensor, as the entries refer to it.
        constant: its values, if it has no entries.
        labels: for each draw among the entries, by number.
        seed: the seed with which it was built.
        is_frozen: whether it may depend on drawn values that the code read.
        is_torchs: whether it depends on torch's own draws, which ignore torchinit's seed.
        is_unfilled: whether the tensor was never written to.
    """

    def __init__(
        self, name: str, names: tuple[str, ...], tensor: Tensor, entries: Sequence[Entry],
        ref: Ref | None, constant: Input | None, seed: int, *,
        is_frozen: bool, is_torchs: bool, is_unfilled: bool,
    ) -> None:  # fmt: skip
        self.name, self.names = name, names
        self.entries, self.ref, self.constant = tuple(entries), ref, constant
        self.shape, self.stride = tuple(tensor.shape), tensor.stride()
        self.dtype = tensor.dtype
        self.labels: Mapping[int, Label] = {}
        self.seed, self.is_frozen, self.is_torchs = seed, is_frozen, is_torchs
        self.is_unfilled = is_unfilled
        self._holder: tuple[StorageWeakRef, int] | None = None

    def __deepcopy__(self, memo: Any) -> Program:
        """Returns self: copies of a module share programs."""
        return self

    def draw(self) -> tuple[Draw, int | None] | None:
        """Its draw and that draw's number, if one draw fills it; None otherwise."""
        entry = self.entries[0] if len(self.entries) == 1 else None
        if self.ref is None or not isinstance(entry, Fill) or entry.law is None:
            return None
        written = entry.writes[0]
        if written.dtype != self.dtype or not written.is_same_run(self.ref):
            return None
        return entry.law, entry.draw

    def fills(self) -> list[Fill] | None:
        """Its entries, if all are fills of parts of the tensor; None otherwise."""
        if self.ref is None or not self.entries:
            return None
        fills = []
        begin, end = self.ref.offset, self.ref.offset + self.ref.extent
        for one in self.entries:
            if not isinstance(one, Fill) or not (one.law or one.call.name == "orthogonal_"):
                return None
            ref = one.writes[0]
            if ref.cell is not self.ref.cell or ref.dtype != self.dtype:
                return None
            if ref.offset < begin or ref.offset + ref.extent > end:
                return None
            fills.append(one)
        return fills

    def parts(self, name_of: Callable[[int], str], name: str) -> list[Part] | None:
        """Its fills as parts of a parameter, to fill in order; None if it is not only fills."""
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
        """Whether ``make_box`` can compute a box of it."""
        return self.ref is not None and bool(self.entries) and box_is_exact(self.entries, self.ref)

    def make(self, key_of_draw: Callable[[int], int], played: Played | None = None) -> Tensor:
        """Computes all its values, on the CPU and in the dtype with which it was built.

        Args:
            key_of_draw: returns the key of a draw.
            played: has the values of its storage, if a neighbour was the last to need them.
        """
        if not self.entries:
            assert self.constant is not None
            return values_of(self.constant)
        assert self.ref is not None
        if played is None or self.ref.is_all:
            played = Played()
        return self.ref.of(played.storage(self.ref.cell, self.entries, key_of_draw))

    def make_box(
        self, key_of_draw: Callable[[int], int], offset: Sequence[int], into: Tensor
    ) -> None:
        """Computes a box of its values into memory."""
        assert self.ref is not None
        play_box(self.entries, self.ref, key_of_draw, offset, into)

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor still has its constant, having not been written to since."""
        if self._holder is None or tensor.is_inference():
            return False
        holder, version = self._holder
        storage = local_memory(tensor).untyped_storage()
        return holder.cdata == storage._cdata and tensor._version == version

    def describe(self, name_of: Callable[[int], str]) -> Iterator[bytes]:
        """Everything that determines its values: entries, names of draws, and constants."""
        cells: dict[Cell, int] = {}

        def said(one: Any) -> object:
            if isinstance(one, Ref):
                return cells.setdefault(one.cell, len(cells)), str(one.dtype), one.geometry
            if isinstance(one, Input):
                values = values_of(one)
                return str(values.dtype), tuple(values.shape), bytes_of(values)
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
        """The tensors that it uses and no entry makes."""
        found = [] if self.constant is None else [self.constant]
        return found + [one for entry in self.entries for one in inputs_of(entry)]

    def give_up(self, tensor: Tensor) -> None:
        """Releases large constants, after they have been written to a tensor."""
        for constant in self.constants():
            if constant.tensor is not None and constant.tensor.nbytes > _FEW:
                constant.tensor = None
        if self.constant is not None and not tensor.is_inference():
            # A reference to the tensor itself would keep to_empty from swapping it.
            storage = local_memory(tensor).untyped_storage()
            self._holder = StorageWeakRef(storage), tensor._version


# The program of the tensor after which a draw is named (None if it has none), and the name.
Label: TypeAlias = tuple[Program | None, Name]


class Played:
    """The storage that was replayed last: that of many views, such as a flat buffer, once."""

    def __init__(self) -> None:
        self._last: tuple[object, UntypedStorage] | None = None

    def storage(
        self, cell: Cell, entries: tuple[Entry, ...], key_of_draw: Callable[[int], int]
    ) -> UntypedStorage:
        """The storage after some entries, which is not to be written to."""
        keys = [key_of_draw(entry.draw) for entry in entries if entry.draw is not None]
        last = self._last
        if last is None or last[0] != (cell, entries, keys):
            last = (cell, entries, keys), play(entries, key_of_draw, [cell])[cell]
            self._last = last
        return last[1]


class Remembered(dict[str, Program]):
    """The programs of a module's tensors, by attribute. Pickling drops them."""

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return dict, ()

    def __deepcopy__(self, memo: Any) -> Remembered:
        return Remembered(self)


def remember(module: nn.Module, attribute: str, program: Program) -> None:
    """Stores the program of a tensor in its module."""
    memory = module.__dict__.get(_MEMORY)
    if not isinstance(memory, Remembered):
        memory = module.__dict__[_MEMORY] = Remembered()
    memory[attribute] = program


def recall(module: nn.Module, attribute: str) -> Program | None:
    """The program that a module stores for a tensor; None if there is none."""
    memory = module.__dict__.get(_MEMORY)
    return memory.get(attribute) if isinstance(memory, Remembered) else None


class Use(NamedTuple):
    """How a program fills a tensor of a model.

    Attributes:
        draw: the one draw that fills it, named as the tensor is; None if it needs more.
        parts: without a draw, the fills of its parts, in order; None if it has to be computed.
        is_held: whether the tensor has its values already.
    """

    draw: Draw | None = None
    parts: Sequence[Part] | None = ()
    is_held: bool = False


class Keys:
    """The keys of draws, from the current names of tensors.

    Args:
        names: the names of each program's tensor in the current model.
        key_of_name: maps names to keys under the seed.
        seed: the seed.
    """

    def __init__(
        self, names: Mapping[Program, Sequence[str]], key_of_name: KeyOfName, seed: int
    ) -> None:
        self._names, self._key_of_name, self._seed = names, key_of_name, seed
        self._holders = {name: program for program, some in names.items() for name in some}
        self._kept: dict[Label, bool] = {}
        self.played = Played()

    def _prefix(self, program: Program, name: str) -> str | None:
        """The prefix that a tensor's name has gained; None if the name is a different one."""
        known = [one for one in program.names if name == one or name.endswith(f".{one}")]
        return name[: len(name) - max(map(len, known))] if known else None

    def _now(self, program: Program, name: str) -> str:
        """The name from which a tensor's keys are derived: the smallest of a tie's.

        This also holds if the tie is broken or the other tensor has been removed, as in a pipeline
        stage that has only one of them.
        """
        prefix = self._prefix(program, name) if len(program.names) > 1 else None
        if prefix is None:
            return name
        names = [prefix + one for one in program.names]
        return min((x for x in names if self._holders.get(x, program) is program), default=name)

    def name_of(self, program: Program, number: int, name: str) -> str:
        """The name of a draw on which the tensor of a program depends, by its present name."""
        other, label = program.labels[number]
        if other is None:  # named after a module or an unregistered tensor
            above = self._prefix(program, name) or ""
            return label._replace(base=(above + label.base).rstrip(".")).text
        if other is program:
            return label._replace(base=self._now(program, name)).text
        found = self._names.get(other)
        prefix = None if found else self._prefix(program, name)
        if prefix is not None:  # removed from the model, as by pipeline stages
            found = [one for one in (prefix + min(other.names),) if one not in self._holders]
        if not found:
            raise ArgumentError(
                f"parameter {name!r} depends on a draw into {other.name!r}, which is not in this "
                "model: build the model again"
            )
        nearest = max(found, key=lambda one: (_common(one, name), [-ord(x) for x in one]))
        return label._replace(base=self._now(other, nearest)).text

    def check(self, program: Program, name: str) -> None:
        """Raises ArgumentError if a frozen program is used with another seed or other names."""
        if not program.is_frozen:
            return
        if program.seed != self._seed:
            raise ArgumentError(
                f"parameter {name!r} may depend on values that the constructor read under "
                f"seed={program.seed}: build the model again with seed={self._seed}"
            )
        for number, label in program.labels.items():
            if label not in self._kept:
                self._kept[label] = self._is_kept(*label)
            if not self._kept[label] and self.name_of(program, number, name) != label[1].text:
                raise ArgumentError(
                    f"parameter {name!r} may depend on values that the constructor read when it "
                    f"was named {program.name!r}: build the model again in its present structure"
                )

    def use(self, program: Program, name: str, tensor: Tensor) -> Use:
        """How a program fills the tensor of a name.

        Raises:
            ArgumentError: as ``check``; if the program has released its constants.
        """
        self.check(program, name)
        if program.holds(tensor):
            return Use(is_held=True)
        if any(constant.tensor is None for constant in program.constants()):
            raise ArgumentError(
                f"{name!r} has constant values computed by its constructor, which were released "
                "after their first use to save memory: build the model again"
            )
        drawn = program.draw()
        if drawn is not None:
            draw, number = drawn
            if number is None or self.name_of(program, number, name) == name:
                return Use(draw)
        if program.stride != tensor.stride():
            return Use(parts=None)
        return Use(parts=program.parts(lambda number: self.name_of(program, number, name), name))

    def _is_kept(self, other: Program | None, label: Name) -> bool:
        """Whether a draw has kept its name, for whatever other tensor depends on it."""
        found = self._names.get(other, ()) if other is not None else ()
        if other is None or len(found) != 1:
            return False
        return label._replace(base=self._now(other, found[0])).text == label.text

    def of(self, program: Program, name: str) -> Callable[[int], int]:
        """Returns a function from the numbers of a tensor's draws to their keys."""
        return lambda number: self._key_of_name(self.name_of(program, number, name))


def _common(one: str, other: str) -> int:
    """The number of leading components that two names share."""
    pairs = zip(one.split("."), other.split("."), strict=False)
    return next(
        (i for i, (a, b) in enumerate(pairs) if a != b), min(one.count("."), other.count(".")) + 1
    )
