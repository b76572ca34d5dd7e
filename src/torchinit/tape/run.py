"""Runs the code that builds a model and records it on a tape."""

from __future__ import annotations

import contextlib
import os
import random
import sys
import threading
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from torchinit.check.marked_memory import unmarked
from torchinit.errors import ArgumentError
from torchinit.patch.frames import handlers
from torchinit.patch.swap import enter, leave
from torchinit.schemes.calls import Call
from torchinit.schemes.distributions import constant_draw
from torchinit.streams.canonical import Named, Rename, gather, places_of
from torchinit.streams.named_keys import keys_of_names
from torchinit.tape.memory import count_unwritten
from torchinit.tape.naming import Naming, name_draws
from torchinit.tape.parts import entries_of_parts
from torchinit.tape.play import one_thread
from torchinit.tape.program import Label, Program
from torchinit.tape.recorder import Recorder
from torchinit.tape.tape import Cell, Entry, Fill, Input, Ref, inputs_of, is_plain_memory

_ATTEMPTS = 8
# All threads share torch's default generator, which each build seeds.
_one_at_a_time = threading.RLock()
# By thread: what restores the generators that its build has seeded.
_restores: dict[int, Callable[[], None]] = {}


def _after_fork() -> None:
    """In a forked child, undoes the builds of threads that do not exist there."""
    global _one_at_a_time
    _one_at_a_time = threading.RLock()
    for thread in set(_restores) - {threading.get_ident()}:
        _restores.pop(thread)()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Recorded(NamedTuple):
    """A model whose draws are pending, with its recording.

    Attributes:
        model: the model that the code returned.
        recorder: has the tape.
        naming: the names of the draws.
        parameters, buffers: of the model, with their names.
        seed: for the keys.
    """

    model: nn.Module
    recorder: Recorder
    naming: Naming
    parameters: list[Named]
    buffers: list[Named]
    seed: int

    def programs(self) -> dict[str, Program]:
        """The program of each parameter and buffer in plain memory, by name."""
        plain = [one for one in (*self.parameters, *self.buffers) if is_plain_memory(one.tensor)]
        entries = self._entries(plain)
        programs = {named.name: self._program(named, entries) for named in plain}

        def labels(draws: Iterable[int]) -> dict[int, Label]:
            found: dict[int, Label] = {}
            for number in draws:
                name = self.naming.names[number]
                assert name is not None
                found[number] = programs.get(name.base), name
            return found

        early = labels(self.recorder.early)
        for program in programs.values():
            own = labels(one.draw for one in program.entries if one.draw is not None)
            # Draws that were read may have affected a frozen one.
            program.labels = ChainMap(own, early) if program.is_frozen else own
        return programs

    def _entries(self, plain: Sequence[Named]) -> dict[Ref, Sequence[Entry]]:
        """The entries that determine each tensor that is on the tape."""
        parts: dict[Cell, dict[Ref, None]] = {}
        for named in plain:
            cell = self.recorder.tape.find(named.tensor)
            if cell is not None and cell.writes:
                parts.setdefault(cell, {})[self.recorder.tape.ref(named.tensor, cell)] = None
        found: dict[Ref, Sequence[Entry]] = {}
        for cell, refs in parts.items():
            entries = self.naming.entries[cell]
            if len(refs) == 1 or len(entries) == 1:
                found.update(dict.fromkeys(refs, entries))
            else:
                found.update(entries_of_parts(entries, list(refs)))
        return found

    def _program(self, named: Named, known: Mapping[Ref, Sequence[Entry]]) -> Program:
        tensor: Tensor = named.tensor
        tape, baked = self.recorder.tape, self.recorder.baked
        cell = tape.find(tensor)
        entries: Sequence[Entry] = []
        ref: Ref | None = None
        constant: Input | None = None
        is_torchs = is_unfilled = False
        if cell is not None and cell.writes:
            ref = tape.ref(tensor, cell)
            entries = known[ref]
            if not entries:  # only other parts of its storage were written to
                ref, constant, is_unfilled = None, Input(tensor.detach()), tensor.numel() > 0
        elif cell is not None and cell.constant is not None:
            ref = tape.ref(tensor, cell)
            call = Call("constant_", {"val": cell.constant})
            entries = [Fill.of(ref, call, constant_draw(cell.constant), None)]
            entries[0].index = baked or 0
        else:
            constant = Input(tensor.detach())
            if cell is not None and tensor.numel():  # in whole or in part
                is_unfilled = cell.is_fresh or (cell.has_gaps and count_unwritten(tensor) > 0)
        if self.recorder.used_own_seed:
            is_torchs = (cell is not None and cell.is_torchs) or any(
                one.is_torchs for entry in entries for one in inputs_of(entry)
            )
        is_frozen = baked is not None and (
            constant is not None or any(entry.index >= baked for entry in entries)
        )
        names = tuple(slot.name for slot in named.slots)
        return Program(
            named.name, names, tensor, entries, ref, constant, self.seed,
            is_frozen=is_frozen, is_torchs=is_torchs, is_unfilled=is_unfilled,
        )  # fmt: skip


def record(build: Callable[[], nn.Module], seed: int, rename: Rename = None) -> Recorded:
    """Runs code that builds a model, again until the names of all draws that it reads are known.

    Raises:
        TypeError: if build is not a function, or does not return a model.
        ArgumentError: for draws that cannot be named, because they differ in every run or were not
            recorded; for pending memory that was accessed without torch's dispatcher.
    """
    if not callable(build) or isinstance(build, nn.Module):
        raise TypeError(
            f"build must be a function without arguments that returns a model, not "
            f"{type(build).__name__}: write build_model(lambda: Net(...), ...)"
        )
    names: list[tuple[Any, str]] | None = None
    said: list[tuple[Any, str]] = []
    for attempt in range(_ATTEMPTS):
        modules = len(sys.modules)
        try:
            recorder, model = _run(build, seed, names)
        except Exception as error:
            if attempt:
                raise ArgumentError(
                    f"build was run {attempt + 1} times, because it reads values that it draws "
                    f"({_what_is_read(said)}), and then raised {type(error).__name__}: {error}"
                ) from error
            raise
        parameters, buffers, _ = gather(model, rename)
        naming = name_draws(
            recorder.tape, _named_memory(model, parameters, buffers), recorder.early, model
        )
        new = [
            (drawing.law, name.text if name else "")
            for drawing, name in zip(recorder.tape.draws, naming.names, strict=True)
        ]
        # Imports may draw from Python's generator; a second run shows whether the code does.
        imports = recorder.drew_elsewhere and len(sys.modules) > modules and not attempt
        if not imports and (
            not recorder.early
            or (
                names is not None
                and all(names[i : i + 1] == new[i : i + 1] for i in recorder.early)
            )
        ):
            _check_memory(recorder, parameters, buffers)
            return Recorded(model, recorder, naming, parameters, buffers, seed)
        said = [new[i] for i in sorted(recorder.early)] or said
        names = new
        recorder = model = naming = parameters = buffers = None  # type: ignore[assignment]
    raise ArgumentError(
        "build reads values that it draws, and its draws differ in every run "
        f"({_what_is_read(said)}), so they cannot be named. Draw after the model is built"
    )


def _what_is_read(draws: Sequence[tuple[Any, str]]) -> str:
    name = draws[0][1].replace("\0", "#") if draws else ""
    return f"first those of {name!r}"


def _named_memory(
    model: nn.Module, parameters: Sequence[Named], buffers: Sequence[Named]
) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors in plain memory: registered ones and plain attributes of modules."""
    seen = set()
    for named in (*parameters, *buffers):
        tensor: Tensor = named.tensor
        if is_plain_memory(tensor):
            seen.add(id(tensor))
            yield named.name, tensor
    for prefix, module in places_of(model):
        for attribute, value in module.__dict__.items():
            if is_plain_memory(value) and id(value) not in seen:
                yield prefix + attribute, value


def _check_memory(
    recorder: Recorder, parameters: Sequence[Named], buffers: Sequence[Named]
) -> None:
    """Raises ArgumentError for pending memory that was accessed without torch's dispatcher."""
    touched = {cell.number for cell in recorder.touched()}
    if not touched:
        return
    names = [
        named.name for named in (*parameters, *buffers)
        if is_plain_memory(named.tensor) and (cell := recorder.tape.find(named.tensor))
        and cell.number in touched
    ]  # fmt: skip
    what = f"parameter {names[0]!r}" if names else "a tensor without a name"
    raise ArgumentError(
        f"the memory of {what} was accessed outside torch before it was filled (by an extension or "
        "another thread), which would give wrong values: build the model without build_model, in "
        "patch_nn_init() if it draws with torch.nn.init"
    )


def _run(
    build: Callable[[], nn.Module], seed: int, names: Sequence[tuple[Any, str]] | None
) -> tuple[Recorder, nn.Module]:
    """Runs the code once, with a new recorder."""
    with _one_at_a_time:
        recorder = Recorder(keys_of_names(seed), names)
        with recording(recorder):
            begin = torch.get_rng_state()
            model = build()
            is_ours = torch.initial_seed() == recorder.sentinel
            moved = is_ours and not torch.equal(begin, torch.get_rng_state())
    if not isinstance(model, nn.Module):
        raise TypeError(f"build() must return a torch.nn.Module, not {type(model).__name__}")
    if moved:
        raise ArgumentError(
            "while the model was built, something drew from torch's generator without being "
            "recorded (another thread?): these values have no names, and seed would not reproduce "
            "them"
        )
    return recorder, model


@contextlib.contextmanager
def recording(recorder: Recorder) -> Iterator[None]:
    """Records the draws of the block; generators are seeded inside and restored afterwards."""
    outer = [one for one in handlers() if isinstance(one, Recorder)]
    frame = recorder.frame = enter(recorder)
    numpy: Any = sys.modules.get("numpy")
    states = torch.get_rng_state(), random.getstate(), numpy and numpy.random.get_state()

    def restore() -> None:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        if numpy:
            numpy.random.set_state(states[2])

    is_outermost = _restores.setdefault(threading.get_ident(), restore) is restore
    try:
        torch.default_generator.manual_seed(recorder.sentinel)
        random.seed(recorder.sentinel)
        if numpy:
            numpy.random.seed(recorder.sentinel % 2**32)
        begin = _states()
        with _on_cpu(), one_thread(), _seeing_threads(recorder), unmarked(), recorder:
            yield
        if _states() != begin:
            recorder.bake_all()
    finally:
        leave(frame)
        recorder.frame = None  # a frame would keep the recorder alive
        restore()
        if is_outermost:
            _restores.pop(threading.get_ident(), None)
        for one in outer:
            one.forget_fresh()


def _states() -> tuple[Any, ...]:
    """The states of Python's generator, and of NumPy's if it is imported."""
    numpy: Any = sys.modules.get("numpy")
    if numpy is None:
        return (random.getstate(),)
    kind, words, *rest = numpy.random.get_state()
    return random.getstate(), kind, words.tobytes(), *rest


def _on_cpu() -> Any:
    """A block on the CPU: a surrounding device is the model's final one, not the code's."""
    if torch.get_default_device().type == "cpu":
        return contextlib.nullcontext()
    return torch.device("cpu")


@contextlib.contextmanager
def _seeing_threads(recorder: Recorder) -> Iterator[None]:
    """Executes pending entries before a thread starts, since modes do not apply to it."""
    start = threading.Thread.start
    me = threading.get_ident()

    def starting(self: threading.Thread) -> None:
        if threading.get_ident() == me:
            recorder.do_all()
        start(self)

    threading.Thread.start = starting  # type: ignore[method-assign]
    try:
        yield
    finally:
        if threading.Thread.start is starting:
            threading.Thread.start = start  # type: ignore[method-assign]
