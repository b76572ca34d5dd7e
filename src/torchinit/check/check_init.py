"""``check_init`` and ``find_uninitialized``: which tensors of a model did nobody write?"""

from __future__ import annotations

import copy
import inspect
import random
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar, overload

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.types import Device

from torchinit.check.look import Left, index_of, look_at
from torchinit.check.marked_memory import mark, marking, runs_later
from torchinit.check.marks import is_certain
from torchinit.check.tensors_of import Held, PlainPart, count_of, plainly, tensors_of
from torchinit.check.uninitialized import (
    CANNOT_TELL,
    NO_MEMORY,
    ON_META,
    UNWRITTEN,
    Uninitialized,
    UninitializedError,
)
from torchinit.errors import ArgumentError, counted, shown
from torchinit.fill.checks import check_memory, file_behind
from torchinit.frameworks.offload import offloaded
from torchinit.frameworks.transformers import INITIALIZED_FLAG
from torchinit.native.torch_private import is_transforming, storage_number
from torchinit.placement.distributed import rank_of_world, reshard_all
from torchinit.untrusted import first_names

Checked = TypeVar("Checked", bound=nn.Module)
Made = TypeVar("Made", bound=nn.Module, covariant=True)


class _Maker(Protocol[Made]):
    """A function without arguments. By its name it is told from modules, which are called too."""

    __name__: str

    def __call__(self) -> Made: ...


_LATER = (
    "init must do its work when it is called, and returns a {} instead, which runs later: write "
    "check_init(model, lambda model: ...) with code that runs it"
)


@overload
def check_init(
    model: Checked, init: Callable[[Checked], Any], *, device: Device = None
) -> Checked: ...
@overload
def check_init(
    model: _Maker[Checked] | partial[Checked],
    init: Callable[[Checked], Any],
    *,
    device: Device = None,
) -> Checked: ...
def check_init(
    model: Checked | Callable[[], Checked],
    init: Callable[[Checked], Any],
    *,
    device: Device = None,
) -> Checked:
    """Overwrites all values of a model in memory, runs an initialisation, and names what it leaves.

    Every parameter and buffer is filled with marks, bits that no initialisation stores. Then
    ``init(model)`` runs, which is any code: the model's own initialisation, a loader of
    checkpoints, or torchinit's. Memory that torch hands out meanwhile is marked too
    (``marked_memory``). What still holds marks afterwards was not written. Attributes of modules
    are looked at as well, but not marked, unless model is a function.

    An integer of 8 to 32 bits may hold its mark by chance. If any does, init runs a second time, on
    another model (a copy that was made before, or what the function makes) with other marks, from
    the same states of the generators of torch, NumPy and Python. In a process group, where other
    ranks would not follow, it runs once, and of such integers only eight bytes in a row count.

    Args:
        model: in memory or on the meta device, from which ``to_empty`` moves it; sharded or not.
            Or a function without arguments that makes one; it runs inside ``marked_memory``.
        init: a function of the model; what it returns is ignored, but for a warning if that is
            another module and the model's own tensors are not written.
        device: where to, from the meta device; None is the CPU.

    Returns:
        The model, as init leaves it.

    Raises:
        UninitializedError: if anything is unwritten, NaN, on the meta device or without memory; it
            has the ``rows``. Each rank names what is left of its own shards, and nothing is
            communicated.
        ArgumentError: if a tensor's memory is mapped read-only, or is a file's; if device is given
            for a model in memory, or is none that tensors can be moved to; if a model on the meta
            device has lazy modules, or is offloaded by Accelerate; inside a transform of
            ``torch.func``.
        TypeError: if model is no module, nor a function that makes one, or init is no function, is
            a coroutine or a generator, or cannot be called with the model.

    >>> import torch, torchinit
    >>> with torch.device("meta"):
    ...     model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    >>> def init(model):
    ...     model[0].reset_parameters()
    ...     torch.nn.init.ones_(model[1].weight[:2])
    >>> torchinit.check_init(model, init)
    Traceback (most recent call last):
    torchinit.check.uninitialized.UninitializedError: 5 of 7 tensors are not initialised
      name                   kind       what       elements  where
      1.weight               parameter  unwritten  2 of 4    [2:4]
      1.bias                 parameter  unwritten  4 of 4
      1.running_mean         buffer     unwritten  4 of 4
      1.running_var          buffer     unwritten  4 of 4
      1.num_batches_tracked  buffer     unwritten  1 of 1
    """
    made, look = checked(model, init, device)
    hidden = [row.name for row in look.rows if row.what == CANNOT_TELL]
    rows = [row for row in look.rows if row.what != CANNOT_TELL]
    if rows:
        raise UninitializedError(rows, look.total)
    if hidden:
        warnings.warn(
            "it cannot be told whether "
            f"{counted(len(hidden), 'tensor is', 'tensors are')} initialised (a type hides its "
            f"memory, or a few integers may be right by chance): {first_names(hidden)}",
            stacklevel=2,
        )
    return made  # type: ignore[no-any-return]


def checked(model: Any, init: Callable[[Any], Any], device: Any = None) -> tuple[Any, Look]:
    """What ``check_init`` does, up to its errors: the model, and what a look at it has found."""
    _check_function(init)
    _check_device(device)
    _refuse_transforms()
    run = _Run(init, device)
    other = _another(model)
    begin = _generators()
    made, look = run.once(model, is_first=other is not None)
    if other is not None and any(held is not None for held in look.held.values()):
        end = _generators()
        _set_generators(begin)
        try:
            look = _second(run, other, made, look)
        except Exception as error:
            look = _look(made)
            warnings.warn(
                "init was to run a second time, to tell integers that were not written from "
                f"others, but {error}. So of integers only eight bytes in a row are counted",
                stacklevel=3,
            )
        finally:
            _set_generators(end)
    return made, look


def _another(model: Any) -> Callable[[], nn.Module] | None:
    """A function that makes another model for a second run; None if there is to be none.

    On the same model, init might do less the second time (some code keeps a note that it ran), and
    would write to tensors that it has put there. In a process group other ranks would not follow.
    """
    if rank_of_world() is not None:
        return None
    if not isinstance(model, nn.Module):
        return model  # type: ignore[no-any-return]
    dtypes = {part.dtype for held in tensors_of(model) for part in held.parts}
    if all(map(is_certain, dtypes)):
        return None
    try:
        copied: nn.Module = copy.deepcopy(model)
    except Exception:
        return None
    return lambda: copied


def _second(run: _Run, other: Callable[[], nn.Module], made: nn.Module, first: Look) -> Look:
    """Runs an initialisation again, on another model and with other marks.

    Raises:
        ArgumentError: if it raises, or does not do what it did at first; before anything is
            written, if the other model has something of the first one, whose values would be lost.
    """
    try:
        model = run.make(other, again=True)
        shares = _have_in_common(model, made) or _share_memory(model, made)
        look = first if shares else run.once(model, after=first)[1]
    except Exception as error:
        raise ArgumentError(f"raised {type(error).__name__}: {error}") from error
    if shares:
        raise ArgumentError("the other model for it shares modules or memory with the first one")
    known = {row.names for row in first.rows}
    new = [
        row.name for row in look.rows
        if row.what == UNWRITTEN and is_certain(row.dtype) and row.names not in known
    ]  # fmt: skip
    if new:
        raise ArgumentError(f"left {new[0]!r} unwritten, which it had written at first")
    return look


def find_uninitialized(model: nn.Module) -> list[Uninitialized]:
    """Looks for tensors of a model that nobody initialised, and writes nothing.

    Use it after a block of ``marked_memory`` in which the model was made. Otherwise only what is
    NaN or on the meta device is found. It looks at parameters, buffers, and attributes of modules
    (tensors, and lists, tuples and dicts of them).

    Args:
        model: any module, sharded or not.

    Returns:
        A row for each tensor that has elements without values; an empty list if there are none. One
        integer of 8 bits that holds its mark may be a value: its row says ``cannot tell``.

    Raises:
        ArgumentError: inside a transform of ``torch.func``.
        TypeError: if model is not a module.

    >>> import torch, torchinit
    >>> model = torch.nn.Linear(3, 4, device="meta")
    >>> [(row.name, row.what) for row in torchinit.find_uninitialized(model)]
    [('weight', 'on meta'), ('bias', 'on meta')]
    >>> torchinit.find_uninitialized(torch.nn.Linear(3, 4))
    []
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    _refuse_transforms()
    return _look(model).rows


@dataclass(frozen=True)
class Look:
    """What a look at a model has found.

    Attributes:
        rows: what has no values.
        total: how many tensors the model has, of subclasses their parts.
        held: by the name of each integer tensor, what was left of it, if this look is to be
            followed by that of a second run; None if nothing was.
    """

    rows: list[Uninitialized]
    total: int
    held: dict[str, Left | None]


def _look(model: nn.Module, *, is_first: bool = False, after: Look | None = None) -> Look:
    """Looks at all tensors of a model.

    Args:
        model: after an initialisation.
        is_first: whether a second run can follow.
        after: what was found in the first run, if this is after the second one.
    """
    tensors = tensors_of(model)
    found = Look([], count_of(tensors), {})
    elsewhere = {id(one) for module in offloaded(model) for one in module.parameters(recurse=False)}
    with plainly():
        for one in tensors:
            for part in one.parts:
                name, first = one.names[0] + part.suffix, None
                if part.memory is None:
                    if part.lacks == NO_MEMORY and one.kind == "attribute":
                        continue  # a view of what FullyShardedDataParallel has gathered and freed
                    if id(one.tensor) in elsewhere:
                        part = part._replace(lacks=CANNOT_TELL)
                    found.rows.append(_row(one, part))
                    continue
                if after is not None and name in after.held:
                    first = after.held[name]
                    if first is None:  # it was written: what holds a mark now does so by chance
                        continue
                left = look_at(
                    part.memory,
                    pairs=part.dtype.is_complex,
                    again=after is not None,
                    alone=not is_first and first is None,
                    first=first,
                )
                found.rows.extend(_row(one, part, some) for some in left)
                if is_first and not is_certain(part.memory.dtype):
                    found.held[name] = left[0] if left else None
    return found


def _row(one: Held, part: PlainPart, left: Left | None = None) -> Uninitialized:
    what, count, total, where = part.lacks, 0, 0, ""
    if part.memory is None:
        count = total = one.tensor.numel() if part.lacks == ON_META else 0
    elif left is not None:
        local = part.memory.shape[:-1] if part.dtype.is_complex else part.memory.shape
        where = index_of(left, part.shape, part.pieces, local)
        what, count, total = left.what, left.count, local.numel()
    names = tuple(name + part.suffix for name in one.names)
    return Uninitialized(names, one.kind, what, count, total, where, part.shape, part.dtype)


class _Run(NamedTuple):
    """Runs an initialisation over marks."""

    init: Callable[[Any], Any]
    device: Any

    def once(
        self, model: Any, *, is_first: bool = False, after: Look | None = None
    ) -> tuple[Any, Look]:
        """Runs it on a model, or on the one that a function makes.

        Args:
            model: the model or the function.
            is_first: whether a second run can follow.
            after: what was found in the first run, if this is the second one.
        """
        again = after is not None
        model = self.make(model, again)
        self._empty(model, again)
        _mark_all(model, again)
        with marking(again=again):
            returned = self.init(model)
        if inspect.isawaitable(returned):
            getattr(returned, "close", bool)()  # or Python warns that nobody awaits it
            raise TypeError(_LATER.format(type(returned).__name__))
        reshard_all(model)
        look = _look(model, is_first=is_first, after=after)
        if look.rows and isinstance(returned, nn.Module) and not _have_in_common(returned, model):
            warnings.warn(
                f"init returned another {type(returned).__name__} than the model it was given, "
                "which is what check_init looks at: write the values into that, or put what makes "
                "the new one into the function: check_init(lambda: ..., ...)",
                stacklevel=4,
            )
        return model, look

    def make(self, model: Any, again: bool) -> nn.Module:
        """The model, or the one that a function makes in a first or a second run."""
        if not isinstance(model, nn.Module) and callable(model):
            with marking(again=again):
                model = model()
        if not isinstance(model, nn.Module):
            raise TypeError(
                "model must be a torch.nn.Module or a function that makes one, not "
                f"{type(model).__name__}"
            )
        return model

    def _empty(self, model: nn.Module, again: bool) -> None:
        """Moves a model from the meta device."""
        reshard_all(model)
        both = [*model.named_parameters(), *model.named_buffers()]
        with plainly():
            is_on_meta = any(one.is_meta for _, one in both)
        if is_on_meta:
            if any(True for _ in offloaded(model)):
                raise ArgumentError(
                    "Accelerate offloads values of the model, and would overwrite what init "
                    "writes: check it before cpu_offload, disk_offload or dispatch_model, or "
                    "first call accelerate.hooks.remove_hook_from_submodules"
                )
            for name, one in both:
                if is_lazy(one):
                    raise ArgumentError(
                        f"{name!r} is of a lazy module, which has no shape before its first call, "
                        "and the model is on the meta device: make it in memory, or call it first"
                    )
            with marking(again=again):
                model.to_empty(device="cpu" if self.device is None else self.device)
        elif self.device is not None:
            raise ArgumentError(
                f"device={self.device!r} is for a model on the meta device, and this one is in "
                "memory: leave it out"
            )


def _check_function(init: Any) -> None:
    """Raises TypeError if a function cannot initialise a model; before anything is written."""
    if not callable(init) or isinstance(init, nn.Module):
        raise TypeError(
            f"init must be a function of the model, not {type(init).__name__}: write "
            "check_init(model, lambda model: ...)"
        )
    if what := runs_later(init):
        raise TypeError(_LATER.format(what))
    try:
        signature = inspect.signature(init, follow_wrapped=False)
    except (TypeError, ValueError):  # of C
        return
    try:
        signature.bind(None)
    except TypeError:
        name = getattr(init, "__name__", type(init).__name__).replace("<lambda>", "init")
        owner = "model." if isinstance(getattr(init, "__self__", None), nn.Module) else ""
        raise TypeError(
            f"init is called with the model, and {name}() does not take it, or takes more: write "
            f"check_init(model, lambda model: {owner}{name}({'...' * bool(signature.parameters)}))"
        ) from None


def _check_device(device: Any) -> None:
    if device is None:
        return
    try:
        is_meta = torch.empty(0, device=device).is_meta
    except Exception as error:
        why = str(error).partition("\n")[0]
        raise ArgumentError(
            f"device={shown(device)} is not one to move a model to: {why}"
        ) from error
    if is_meta:
        raise ArgumentError(
            f"device={device!r} has no memory for values: give the model's final device"
        )


def _have_in_common(one: nn.Module, other: nn.Module) -> bool:
    return not set(map(id, one.modules())).isdisjoint(map(id, other.modules()))


def _share_memory(model: nn.Module, other: nn.Module) -> bool:
    """Whether marks in a model would overwrite what another one has."""
    marked, kept = (
        {
            storage_number(part.memory)
            for held in tensors_of(one) if held.kind != "attribute" or one is other
            for part in held.parts if part.memory is not None
        }
        for one in (model, other)
    )  # fmt: skip
    return not marked.isdisjoint(kept)


def _mark_all(model: nn.Module, again: bool) -> None:
    """Marks the parameters and buffers of a model, or raises before it writes anything.

    Transformers' own notes of what it has initialised are no longer true then.
    """
    memory = []
    for held in tensors_of(model):
        for part in held.parts if held.kind != "attribute" else ():
            if part.memory is not None:
                _check_writable(held.names[0] + part.suffix, part.memory)
                memory.append(part.memory)
    mark(memory, again=again)
    for one in (*model.modules(), *model.parameters(), *model.buffers()):
        one.__dict__.pop(INITIALIZED_FLAG, None)


def _check_writable(name: str, memory: Tensor) -> None:
    if memory.untyped_storage().resizable():
        return  # torch's own memory
    try:
        check_memory(memory)
    except ArgumentError as error:
        raise ArgumentError(f"{name!r}: {error}") from None
    file = file_behind(memory.data_ptr()) if memory.is_cpu else ""
    if file:
        raise ArgumentError(
            f"{name!r} is memory of the file {file}, which would be overwritten: clone() it first"
        )


def _refuse_transforms() -> None:
    if is_transforming():
        raise ArgumentError("a model cannot be looked at inside a transform of torch.func")


def _generators() -> tuple[Any, ...]:
    """The states of the generators of torch, Python and NumPy."""
    numpy: Any = sys.modules.get("numpy")
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return torch.get_rng_state(), cuda, random.getstate(), numpy and numpy.random.get_state()


def _set_generators(states: tuple[Any, ...]) -> None:
    torch.set_rng_state(states[0])
    if states[1]:
        torch.cuda.set_rng_state_all(states[1])
    random.setstate(states[2])
    if states[3]:
        sys.modules["numpy"].random.set_state(states[3])
