"""The default initialisation of a model: what its constructor gave it, known exactly or refused.

There are four sources, each with its own conditions: programs that ``build_model`` stored; the
class and config of a Transformers model; torchtitan's ``init_states`` and ``init_weights``; and,
if all modules are torch's own, their ``reset_parameters``, which their constructors call last.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from torchinit.errors import ArgumentError, counted
from torchinit.frameworks.conventions import FILL_BUFFERS, torchtitan_method
from torchinit.frameworks.transformers import is_transformers_model
from torchinit.models.assign import Assignment, assignment_of
from torchinit.models.inspect_model import Inspected
from torchinit.models.replay import (
    bound,
    copy_among,
    own_class,
    put_twins,
    resets_of,
    restored,
    was_written_to,
    why_not_by_resets,
)
from torchinit.streams.canonical import Named, Rename, places_of, unwrapped
from torchinit.streams.named_keys import keys_of_names
from torchinit.tape.play import alone
from torchinit.tape.program import Keys, Program, recall, remember
from torchinit.tape.run import Recorded, record
from torchinit.untrusted import first_names
from torchinit.values.kinds import ComputedValues, GivenValues, KeptValues
from torchinit.values.region import Part, Region


class _Known(NamedTuple):
    """The known default initialisation of one tensor.

    Attributes:
        program: computes its values.
        keys: the keys of its draws.
        by: a description of the source.
    """

    program: Program
    keys: Keys
    by: str


class ProgramValues(ComputedValues):
    """The values of a program, with keys from a model's names."""

    def __init__(self, known: _Known, name: str) -> None:
        self._program, self._keys, self._name = known.program, known.keys, name
        self.has_boxes = self._program.can_box()

    def make(self) -> Tensor:
        with alone():
            return self._program.make(self._keys.of(self._program, self._name), self._keys.played)

    def make_box(self, offset: Sequence[int], into: Tensor) -> None:
        with alone():
            key_of_draw = self._keys.of(self._program, self._name)
            self._program.make_box(key_of_draw, offset, into)

    def describe(self) -> Iterator[bytes]:
        names = self._keys
        yield from self._program.describe(
            lambda number: names.name_of(self._program, number, self._name)
        )


class Own:
    """Finds a model's default initialisation; the model is left unchanged.

    Args:
        model: any module.
        found: its tensors; those to fill are the ones that will be asked for.
        seed: for the keys.
        rename: for canonical names.
    """

    def __init__(self, model: nn.Module, found: Inspected, seed: int, rename: Rename) -> None:
        self._model, self._found, self._rename = model, found, rename
        self._wanted = [*found.parameters, *found.buffers]
        self._seed, self._key_of_name = seed, keys_of_names(seed)
        self._used: list[tuple[Named, Program]] = []
        self._why: dict[str, str] = {}

    def assign(
        self, wanted: Sequence[Named], dtype: torch.dtype | None, how: str = "own"
    ) -> list[Assignment]:
        """Assigns parameters their default initialisation.

        Args:
            wanted: the parameters.
            dtype: for floating-point ones on the meta device; None keeps theirs.
            how: ``own``, or ``reset_parameters`` for that method of their modules.

        Raises:
            ArgumentError: for parameters whose initialisation is not known exactly.
        """
        found = self._known if how == "own" else self._by_resets(wanted)
        left = [named for named in wanted if id(named.tensor) not in found]
        if left:
            raise ArgumentError(self._refusal(left, len(wanted), how))
        assignments = [self._assign(named, found[id(named.tensor)], dtype) for named in wanted]
        if how == "own":
            self._used += [(named, found[id(named.tensor)].program) for named in wanted]
        return assignments

    def assign_buffers(self, wanted: Sequence[Named]) -> list[Assignment]:
        """Assigns values, computed now, to the buffers that must be written.

        Buffers that have their values already get no assignment.

        Raises:
            ArgumentError: for buffers on the meta device whose values are not known.
        """
        if not wanted:
            return []
        found = self._known
        others = [one for one in wanted if id(one.tensor) not in found]
        if others:
            found = {**found, **self._by_methods(others)}
        assignments, unknown = [], []
        for named in wanted:
            known = found.get(id(named.tensor))
            if known is None or known.program.is_unfilled:
                if named.tensor.is_meta:
                    unknown.append(named.name)
                continue
            if not known.keys.use(known.program, named.name, named.tensor).is_held:
                values = GivenValues(ProgramValues(known, named.name).make())
                part = Part(Region(named.name, tuple(named.tensor.shape)), values)
                assignments.append(assignment_of(named, None, None, [part], (), known.by))
                self._used.append((named, known.program))
        if unknown:
            count = counted(
                len(unknown), "buffer on the meta device has", "buffers on the meta device have"
            )
            raise ArgumentError(
                f"{count} no known values: no init method fills {first_names(unknown)}"
                f"{self._reason()}. Build the model with torchinit.build_model, give buffers "
                "rules of their own (a tensor, or a function of the shape), or first give them "
                "memory and values"
            )
        return assignments

    def are_alike(self, one: Tensor, other: Tensor) -> bool:
        """Whether two tensors get the same values, as two halves of a broken tie do."""
        first, second = self._known.get(id(one)), self._known.get(id(other))
        return first is not None and second is not None and first.program is second.program

    def end(self) -> None:
        """After all fills: stores the programs in the modules and releases large constants."""
        for named, program in self._used:
            for slot in named.slots:
                remember(slot.module, slot.attribute, program)
            now = named.slots[0].tensor
            if not now.is_meta:
                program.give_up(now)

    # The sources.

    @functools.cached_property
    def _known(self) -> dict[int, _Known]:
        found = self._remembered()
        if all(id(named.tensor) in found for named in self._wanted):
            return found
        root = unwrapped(self._model)
        if is_transformers_model(root):
            return {**self._by_constructor(root), **found}
        method = torchtitan_method(root)
        if method is not None and (call := bound(root, method)) is not None:
            by = f"{type(root).__name__}.{method}()"
            return {**self._replayed([call], by), **found}
        why = why_not_by_resets(root)
        tied = next((named.name for named in self._wanted if named.ties), None)
        if not why and tied is not None:
            why = f"{tied!r} is tied, and its modules may initialise it differently"
        if not why:
            names = [slot.name for named in self._wanted for slot in named.slots]
            calls = [
                call for prefix, module in reversed(places_of(root))
                if any(name.startswith(prefix) for name in names)
                for call in resets_of(module)
            ]  # fmt: skip
            known = self._replayed(calls, "reset_parameters()", exactly=True)
            copy_ = copy_among([one for one in self._wanted if id(one.tensor) in known])
            if copy_ is None:
                return {**known, **found}
            why = f"{copy_!r} is a copy of another parameter"
        self._why[""] = "they were not in the model when it was built" if found else why
        return found

    def _remembered(self) -> dict[int, _Known]:
        programs: list[tuple[Named, Program]] = []
        names: dict[Program, list[str]] = {}
        for named in (*self._found.all_parameters, *self._found.all_buffers):
            shape = None if is_lazy(named.tensor) else tuple(named.tensor.shape)
            # Views that coincide now may have been two tensors when they were built.
            recalled = (recall(slot.module, slot.attribute) for slot in named.slots)
            its = [one for one in recalled if one is not None and one.shape == shape]
            programs += [(named, one) for one in its[:1]]
            for program in dict.fromkeys(its):
                names.setdefault(program, []).extend(slot.name for slot in named.slots)
        keys = self._keys(names)
        return {id(named.tensor): _Known(program, keys, "as built") for named, program in programs}

    def _keys(self, names: Mapping[Program, Sequence[str]]) -> Keys:
        return Keys(names, self._key_of_name, self._seed)

    def _by_constructor(self, root: Any) -> dict[int, _Known]:
        """Records the constructor of a Transformers model, called with its config."""
        kind = own_class(root)
        by = f"{kind.__name__}(config)"
        recorded, programs = self._record(lambda: kind(copy.deepcopy(root.config)), by)
        if recorded is None:
            return {}
        built = {
            slot.name: (named, programs[named.name])
            for named in (*recorded.parameters, *recorded.buffers) if named.name in programs
            for slot in named.slots
        }  # fmt: skip
        keys = self._keys({program: program.names for program in programs.values()})
        found = {}
        for named in self._wanted:
            theirs = {slot.name: built.get(slot.name) for slot in named.slots}
            others = {id(one[1]) for one in theirs.values() if one is not None}
            first = theirs.get(named.name) or next(iter(theirs.values()))
            if None in theirs.values() or first is None:
                self._why[named.name] = f"{by} creates no such tensor"
            elif len(others) > 1:
                self._why[named.name] = f"{by} does not tie its names"
            elif tuple(first[0].tensor.shape) != tuple(named.tensor.shape):
                self._why[named.name] = f"{by} gives it shape {tuple(first[0].tensor.shape)}"
            else:
                found[id(named.tensor)] = _Known(first[1], keys, by)
        return found

    def _by_resets(self, wanted: Sequence[Named]) -> dict[int, _Known]:
        """Records the reset methods of the modules that own the parameters."""
        modules = {id(slot.owner): slot.owner for named in wanted for slot in named.slots}
        calls = []
        for module in modules.values():
            its = resets_of(module)
            if not its:
                name = next(named.name for named in wanted if named.owner is module)
                raise ArgumentError(
                    f"parameter {name!r}: {type(module).__name__} has no reset_parameters that can "
                    "be called without arguments"
                )
            calls += its
        return self._replayed(calls, "reset_parameters()")

    def _by_methods(self, wanted: Sequence[Named]) -> dict[int, _Known]:
        """Records the methods that fill the buffers of their modules."""
        modules = {id(named.module): named.module for named in wanted}
        calls = [
            call for module in modules.values() for method in FILL_BUFFERS
            if (call := bound(module, method)) is not None
        ]  # fmt: skip
        return self._replayed(calls, "its module")

    def _replayed(
        self, calls: Sequence[Callable[[], object]], by: str, *, exactly: bool = False
    ) -> dict[int, _Known]:
        """Records calls on stand-ins for the model's tensors."""
        twins: dict[int, Tensor] = {}

        def build() -> nn.Module:
            twins.update(put_twins(self._found.all_parameters, self._found.all_buffers))
            for call in calls:
                call()
            return self._model

        # Inside inference mode writes are not counted.
        with torch.inference_mode(False), restored(self._model):
            recorded, programs = self._record(build, by)
            if recorded is None:
                return {}
            tensors = (*recorded.parameters, *recorded.buffers)
            now = {slot.name: named for named in tensors for slot in named.slots}
        found: dict[int, _Known] = {}
        keys = self._keys({program: program.names for program in programs.values()})
        for named in self._wanted:
            program = programs.get(now[named.name].name) if named.name in now else None
            if program is None or program.shape != tuple(named.tensor.shape) or program.is_unfilled:
                is_original = named.owner is not named.module
                self._why[named.name] = (
                    f"{own_class(named.owner).__name__} is parametrized, and what {by} writes does "
                    "not reach it" if is_original else f"{by} does not fill it"
                )  # fmt: skip
            elif exactly and was_written_to(named.tensor, now[named.name].tensor):
                self._why[named.name] = "other code has written to it"
            elif (
                program.entries
                or now[named.name].tensor is not twins.get(id(named.tensor))
                or now[named.name].tensor._version
            ):
                found[id(named.tensor)] = _Known(program, keys, by)
        return found

    def _record(
        self, build: Callable[[], nn.Module], by: str
    ) -> tuple[Recorded | None, dict[str, Program]]:
        """Records code and returns its programs; if it raises, notes why and returns None."""
        try:
            recorded = record(build, self._seed, self._rename)
        except Exception as error:
            self._why[""] = f"{by} raised {type(error).__name__}: {error}"
            return None, {}
        with alone():
            return recorded, recorded.programs()

    # Assignments.

    def _assign(self, named: Named, known: _Known, dtype: torch.dtype | None) -> Assignment:
        program, keys, by = known
        name, tensor = named.name, named.tensor
        if program.is_unfilled:
            raise ArgumentError(f"the constructor leaves {name!r} unfilled: add a rule for it")
        draw, parts, is_held = keys.use(program, name, tensor)
        if program.is_torchs and not is_held:
            by = f"{by}; torch's draws: seed has no effect"
        if is_held or parts is None:
            values = KeptValues() if is_held else ProgramValues(known, name)
            parts = [Part(Region(name, tuple(tensor.shape)), values)]
        return assignment_of(named, dtype, draw, parts, (), by)

    # Refusals.

    def _reason(self) -> str:
        return f" ({self._why['']})" if "" in self._why else ""

    def _refusal(self, left: Sequence[Named], count: int, how: str) -> str:
        kind = own_class(unwrapped(self._model)).__name__
        whys = {self._why[named.name]: None for named in left if named.name in self._why}
        reason = f" ({'; '.join(list(whys)[:3])})" if whys else self._reason()
        names = first_names([named.name for named in left])
        what = "default initialisation" if how == "own" else "reset_parameters"
        return (
            f"the model's {what} of {len(left)} of {counted(count, 'parameter')} is not known: "
            f"{names}{reason}. Build it with torchinit.build_model(lambda: {kind}(...), "
            f"seed={self._seed}), "
            'on device="meta" if it is to be sharded first; or give rules'
        )
