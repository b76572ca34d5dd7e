"""``marked_memory``: memory that torch hands out unfilled holds marks."""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from torchinit.check import marks
from torchinit.check.tensors_of import parts_of, plainly
from torchinit.fill.route import PLAIN_TYPES
from torchinit.native.kernels import hold_while_forking
from torchinit.native.torch_private import never_compile, storage_number

Function = TypeVar("Function", bound=Callable[..., Any])

_EMPTY = {
    getattr(torch.ops.aten, name)
    for name in (
        "empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided",
    )
}  # fmt: skip
_RESIZE = {torch.ops.aten.resize_, torch.ops.aten.resize_as_}
# Copies of booleans would turn marks into True: they are made of bytes.
_COPIES = {torch.ops.aten.copy_, torch.ops.aten.clone, torch.ops.aten._to_copy}


class _Thread(threading.local):
    """What this thread is in.

    Attributes:
        blocks: the open blocks of ``marked_memory``, of this thread or of one that started it.
        unmarked: how many blocks of ``unmarked`` are open.
    """

    def __init__(self) -> None:
        self.blocks: list[_Block] = []
        self.unmarked = 0


_thread = _Thread()


@dataclass(eq=False)
class _Block:
    """A block of ``marked_memory``; threads started in it may outlive it.

    Attributes:
        again: whether its marks are those of a second run.
        is_open: until it ends.
    """

    again: bool
    is_open: bool = True


def marked_memory() -> MarkedMemory:
    """Marks memory that torch hands out unfilled: what nobody writes is found afterwards.

    For code that builds, empties and loads by itself. ``torch.empty`` and the like, ``to_empty``,
    and memory that ``resize_`` adds hold marks, bits that no initialisation stores, until something
    writes to them; ``find_uninitialized`` names what still has them. What the code does is the
    same otherwise, and values are too.

    It applies to this thread and to the ``threading.Thread`` objects started within the block (so
    to new workers of a ``ThreadPoolExecutor``), whatever other contexts there are
    (``torch.device``, ``patch_nn_init``, Accelerate's and Lightning's). It does not see memory that
    threads of another kind take, that C++ takes below torch's dispatcher, or that is a bare storage
    (``torch.UntypedStorage(n)``); and ``build_model``, which reports what is unfilled itself, is
    left alone. Blocks may be nested; it also decorates functions.

    Raises:
        TypeError: if it decorates a coroutine or a generator, whose code runs later: open a block
            inside it.

    >>> import torch, torchinit
    >>> with torchinit.marked_memory():
    ...     with torch.device("meta"):
    ...         model = torch.nn.Linear(3, 4)
    ...     model.to_empty(device="cpu").weight.data.normal_()  # doctest: +ELLIPSIS
    tensor(...)
    >>> [row.name for row in torchinit.find_uninitialized(model)]
    ['bias']
    """
    return MarkedMemory()


class MarkedMemory:
    """A block of ``marked_memory``, or what decorates a function."""

    def __init__(self) -> None:
        self._markings: list[contextlib.AbstractContextManager[None]] = []

    def __enter__(self) -> None:
        blocks = _open(_thread.blocks)
        self._markings.append(marking(again=bool(blocks) and blocks[-1].again))
        self._markings[-1].__enter__()

    def __exit__(self, *error: Any) -> None:
        self._markings.pop().__exit__(*error)

    def __call__(self, function: Function) -> Function:
        """Has a function run in a block of its own."""
        if what := runs_later(function):
            raise TypeError(
                f"marked_memory cannot decorate a {what}, whose code runs later: open a block in it"
            )

        @functools.wraps(function)
        def inner(*args: Any, **kwargs: Any) -> Any:
            with marked_memory():
                return function(*args, **kwargs)

        return cast(Function, inner)


def runs_later(function: Any) -> str:
    """What a function returns in place of running: a coroutine, a generator; empty for others."""
    if inspect.iscoroutinefunction(function):
        return "coroutine"
    is_one = inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)
    return "generator" if is_one else ""


@contextlib.contextmanager
def marking(*, again: bool) -> Iterator[None]:
    """``marked_memory`` with the marks of a first or a second run."""
    block = _Block(again)
    with _threads.inheriting():
        _thread.blocks.append(block)
        try:
            with _Marking([block]):
                yield
        finally:
            block.is_open = False
            _thread.blocks.remove(block)


@contextlib.contextmanager
def unmarked() -> Iterator[None]:
    """Leaves memory as it is handed out in this block, also inside ``marked_memory``."""
    _thread.unmarked += 1
    try:
        yield
    finally:
        _thread.unmarked -= 1


class _Marking(TorchDispatchMode):
    """Marks what factories return, as long as one of some blocks is open."""

    def __init__(self, blocks: Sequence[_Block]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._blocks = blocks

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Whether torch should wrap the method below to keep it from being compiled."""
        return not never_compile(cls.__torch_dispatch__)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operator, and marks the memory that it has taken and not filled."""
        kwargs = kwargs or {}
        packet = func.overloadpacket
        resized = args[0] if packet in _RESIZE else kwargs.get("out") if packet in _EMPTY else None
        # A coroutine or generator may end its block before one that was opened later, and with it
        # the wrong mode. Threads of torch's have a mode, but no blocks.
        blocks = _open(_thread.blocks or self._blocks)
        if _thread.unmarked or not blocks:
            return func(*args, **kwargs)
        again = blocks[-1].again
        if packet in _COPIES and _are_booleans(args, kwargs):
            return _copy_bytes(func, args, kwargs)
        before = 0 if resized is None else _nbytes(resized)
        made = func(*args, **kwargs)
        if resized is not None:
            _mark_from(before, resized, again)
        elif packet in _EMPTY:
            _mark_new(made, args, again)
        return made


def mark(memory: Iterable[Tensor], *, again: bool = False) -> None:
    """Marks memory; whatever it holds is lost.

    Args:
        memory: plain strided tensors of real numbers, as ``parts_of`` finds them.
        again: whether with the marks of a second run.
    """
    with plainly():
        for one in memory:
            marks.write_marks(one, again)


def _open(blocks: Sequence[_Block]) -> list[_Block]:
    return [one for one in blocks if one.is_open]


def _mark_new(made: Tensor, args: Sequence[Any], again: bool) -> None:
    """Marks all memory under a new tensor of any type, but what it shares with its source."""
    with plainly():
        memory = [part.memory for part in parts_of(made) if part.memory is not None]
        if type(made) not in PLAIN_TYPES and args and isinstance(args[0], Tensor):
            parts = parts_of(args[0])
            old = {storage_number(one.memory) for one in parts if one.memory is not None}
            memory = [one for one in memory if storage_number(one) not in old]
    mark(memory, again=again)


def _are_booleans(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    tensors = [one for one in args if isinstance(one, Tensor)]
    return all(one.dtype is torch.bool and type(one) in PLAIN_TYPES for one in tensors) and (
        kwargs.get("dtype") in (None, torch.bool)
    )


def _copy_bytes(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Copies booleans as the bytes that they are."""
    given = [one.view(torch.uint8) if isinstance(one, Tensor) else one for one in args]
    made = func(*given, **{name: one for name, one in kwargs.items() if name != "dtype"})
    return args[0] if func.overloadpacket is torch.ops.aten.copy_ else made.view(torch.bool)


def _nbytes(tensor: Tensor) -> int:
    """The bytes of a tensor's storage; -1 if it has none."""
    try:
        return -1 if tensor.is_meta else tensor.untyped_storage().nbytes()
    except (RuntimeError, NotImplementedError):
        return -1


def _mark_from(begin: int, tensor: Tensor, again: bool) -> None:
    """Marks what a storage has grown by."""
    end = _nbytes(tensor)
    if 0 <= begin < end:
        with plainly():
            for part in parts_of(tensor):
                if part.memory is not None:
                    size = part.memory.itemsize
                    marks.write_bytes(part.memory, begin, (end - begin) // size * size, again)


class _Threads:
    """Replaces ``threading.Thread.start`` while a block is open, so that new threads inherit it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._count = 0
        self._original: Any = None
        self._hook: Any = None

    @contextlib.contextmanager
    def inheriting(self) -> Iterator[None]:
        """Has the threads that begin in this block mark memory, if their starter does."""
        with self.lock:
            if self._count == 0:
                self._put_in_place()
            self._count += 1
        try:
            yield
        finally:
            with self.lock:
                self._count -= 1
                if self._count == 0 and threading.Thread.start is self._hook:
                    threading.Thread.start = self._original  # type: ignore[method-assign]

    def _put_in_place(self) -> None:
        original = self._original = threading.Thread.start

        def start(thread: threading.Thread) -> None:
            if _thread.blocks and not _thread.unmarked:
                _inherit(thread, list(_thread.blocks))
            original(thread)

        self._hook = start
        threading.Thread.start = start  # type: ignore[method-assign,assignment]


def _inherit(thread: threading.Thread, blocks: list[_Block]) -> None:
    """Has a thread that has not started run with marks, as long as the blocks are open."""
    run = thread.run

    def marking() -> None:
        thread.__dict__.pop("run", None)  # it is the thread's own, which must not keep itself alive
        _thread.blocks = blocks
        with _Marking(blocks):
            run()

    thread.run = marking  # type: ignore[method-assign]


_threads = _Threads()
hold_while_forking(_threads.lock)
