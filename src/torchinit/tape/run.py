"""Runs code that builds a model, on a tape."""

from __future__ import annotations

import contextlib
import random
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from torchinit.errors import ArgumentError
from torchinit.patch.frames import handlers
from torchinit.patch.swap import enter, leave
from torchinit.streams.canonical import Named, Rename, gather, places_of
from torchinit.streams.named_keys import keys_of_names
from torchinit.tape.naming import Naming, name_draws
from torchinit.tape.play import one_thread
from torchinit.tape.recorder import Recorder
from torchinit.tape.tape import is_plain_memory

_ATTEMPTS = 8
# torch's default generator is one for all threads: while one build has seeded it, no other may.
_one_at_a_time = threading.RLock()


class Recorded(NamedTuple):
    """A model whose draws wait, and what is known of it.

    Attributes:
        model: what the code gave.
        recorder: with the tape.
        naming: of the draws.
        parameters, buffers: of the model, with their names.
        seed: of the keys.
    """

    model: nn.Module
    recorder: Recorder
    naming: Naming
    parameters: list[Named]
    buffers: list[Named]
    seed: int


def record(build: Callable[[], nn.Module], seed: int, rename: Rename = None) -> Recorded:
    """Runs code that gives a model, until the names of the draws whose values it reads are known.

    Args:
        build: gives a model.
        seed: of the keys.
        rename: of canonical names.

    Raises:
        TypeError: for what is no function, or gives no model.
        ArgumentError: for code whose draws have no names: it draws others every time, or something
            drew that nobody saw; for memory that was read or written past torch.
    """
    if not callable(build) or isinstance(build, nn.Module):
        raise TypeError(
            f"build must be a function of no arguments that gives a model, not "
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
                    f"the code that builds the model was run {attempt + 1} times, as it reads "
                    f"values that it draws ({_what_is_read(said)}), and then raised "
                    f"{type(error).__name__}: {error}"
                ) from error
            raise
        parameters, buffers = gather(model, rename)
        naming = name_draws(
            recorder.tape, _named_memory(model, parameters, buffers), recorder.early, model
        )
        new = [
            (drawing.law, name.text if name else "")
            for drawing, name in zip(recorder.tape.draws, naming.names, strict=True)
        ]
        # Imports may draw from Python's generator; a second run tells whether the code does.
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
        "the code that builds the model reads values that it draws, and draws other ones for it "
        f"each time ({_what_is_read(said)}): what it draws has no names. Draw after the model is "
        "built"
    )


def _what_is_read(draws: Sequence[tuple[Any, str]]) -> str:
    name = draws[0][1].replace("\0", "#") if draws else ""
    return f"first, of {name!r}"


def _named_memory(
    model: nn.Module, parameters: Sequence[Named], buffers: Sequence[Named]
) -> Iterator[tuple[str, Tensor]]:
    """Names, and tensors in plain memory: registered ones, and plain attributes of modules."""
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
    """Raises ArgumentError for memory that was used past torch while its fill waited."""
    touched = {cell.number for cell in recorder.touched()}
    if not touched:
        return
    names = [
        named.name for named in (*parameters, *buffers)
        if is_plain_memory(named.tensor) and (cell := recorder.tape.find(named.tensor))
        and cell.number in touched
    ]  # fmt: skip
    what = f"parameter {names[0]!r}" if names else "a tensor that has no name"
    raise ArgumentError(
        f"something read or wrote the memory of {what} past torch before it was filled (an "
        "extension, or another thread), and would have got other values: build the model without "
        "torchinit, in patch_nn_init() if it draws by torch.nn.init"
    )


def _run(
    build: Callable[[], nn.Module], seed: int, names: Sequence[tuple[Any, str]] | None
) -> tuple[Recorder, nn.Module]:
    """Runs the code once."""
    with _one_at_a_time:
        recorder = Recorder(keys_of_names(seed), names)
        with recording(recorder):
            begin = torch.get_rng_state()
            model = build()
            is_ours = torch.initial_seed() == recorder.sentinel
            moved = is_ours and not torch.equal(begin, torch.get_rng_state())
    if not isinstance(model, nn.Module):
        raise TypeError(f"build() must give a torch.nn.Module, not a {type(model).__name__}")
    if moved:
        raise ArgumentError(
            "while the model was built, something drew from torch's generator that build_model did "
            "not see (another thread?): those values have no names, and the same seed would not "
            "give them again"
        )
    return recorder, model


@contextlib.contextmanager
def recording(recorder: Recorder) -> Iterator[None]:
    """A block whose draws go to a recorder; generators are seeded inside, and put back."""
    outer = [one for one in handlers() if isinstance(one, Recorder)]
    frame = recorder.frame = enter(recorder)
    numpy: Any = sys.modules.get("numpy")
    states = torch.get_rng_state(), random.getstate(), numpy and numpy.random.get_state()
    try:
        torch.default_generator.manual_seed(recorder.sentinel)
        random.seed(recorder.sentinel)
        if numpy:
            numpy.random.seed(recorder.sentinel % 2**32)
        begin = _states()
        with _on_cpu(), one_thread(), _seeing_threads(recorder), recorder:
            yield
        if _states() != begin:
            recorder.bake_all()
    finally:
        leave(frame)
        recorder.frame = None  # nothing is to keep the recorder alive
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        if numpy:
            numpy.random.set_state(states[2])
        for one in outer:
            one.forget_fresh()


def _states() -> tuple[Any, ...]:
    """Of Python's generator, and of NumPy's if there is one."""
    numpy: Any = sys.modules.get("numpy")
    if numpy is None:
        return (random.getstate(),)
    kind, words, *rest = numpy.random.get_state()
    return random.getstate(), kind, words.tobytes(), *rest


def _on_cpu() -> Any:
    """A surrounding device says where the model is to go, and not what its code is to see."""
    if torch.get_default_device().type == "cpu":
        return contextlib.nullcontext()
    return torch.device("cpu")


@contextlib.contextmanager
def _seeing_threads(recorder: Recorder) -> Iterator[None]:
    """A block in which what waits is done before a thread starts, which no mode is shown."""
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
