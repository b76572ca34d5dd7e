"""The handler that writes down fills and does them all at the end, and the mode that sees to it.

The same bits as at once: keys are drawn at the call, and whatever else touches a tensor has its
fills done before.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Generator, Tensor, UntypedStorage
from torch.compiler import is_dynamo_compiling
from torch.nn import Module
from torch.overrides import has_torch_function_unary

from torchinit.fill import checks
from torchinit.fill.batch import open_batch
from torchinit.fill.route import PLAIN_TYPES, find_road
from torchinit.native import calls
from torchinit.native.numbers import DTYPE_NUMBERS
from torchinit.native.torch_private import (
    function_mode_stack,
    is_transforming,
    pop_function_mode,
    push_function_mode,
    remove_function_mode,
    storage_of_reference,
    unseen,
)
from torchinit.patch import swap
from torchinit.patch.eager import TORCHS, Eager, serves, warn_as_functional
from torchinit.patch.factories import QuietMode
from torchinit.patch.frames import Frame, Made, current
from torchinit.patch.harmless import is_harmless
from torchinit.patch.pending import Fill, Pending
from torchinit.patch.regions import storage_of
from torchinit.schemes.calls import Call, draw_of
from torchinit.schemes.distributions import CONSTANT, Draw, check_draw, constant_draw
from torchinit.streams.keys import draw_key_number

# Smaller fills are done at once: to write one down takes longer.
LEAST = 1 << 15

_ZERO: Any = Tensor.zero_
_FILL: Any = Tensor.fill_
_COPY: Any = Tensor.copy_


def can_defer() -> bool:
    """Whether torch has what deferring needs."""
    return None not in (pop_function_mode, push_function_mode, storage_of_reference)


class Deferred:
    """Fills as another handler would, but later."""

    def __init__(self, inner: Eager) -> None:
        self.inner = inner
        self.frame: Frame | None = None
        self.pending = Pending()
        self._is_open = False
        self._siblings: list[Deferred] = []  # those of the thread, this one too
        # A type of its own: torch.compile knows modes by their types, and is to trace anew in each
        # block.
        self.mode = type("FlushingMode", (_FlushingMode,), {})(self)

    def begin(self, frame: Frame) -> None:
        """Begins to write down, in the block of a frame."""
        self.frame, self._is_open = frame, True
        frame.mode = self.mode
        assert push_function_mode is not None
        push_function_mode(self.mode)
        self._siblings = _of_thread()
        self._siblings.append(self)

    def end(self) -> None:
        """Does what was written down."""
        self._is_open = False
        self._siblings.remove(self)
        remove_function_mode(self.mode)
        self.pending.do_all()

    def stop(self) -> None:
        """Does what was written down, and from now on everything at once."""
        self._is_open = False
        self.pending.do_all()

    def do_all(self) -> None:
        """Does what was written down, and goes on writing down."""
        self.pending.do_all()

    def fill(self, call: Call, tensor: Tensor, generator: Generator | None) -> bool:
        """Takes what the inner handler takes."""
        frame = self.frame
        assert frame is not None  # begun
        # What comes after a call that the mode was shown, it will be shown too.
        is_seen, frame.is_seen = frame.is_seen, False
        if not has_torch_function_unary(tensor):
            return self._fill(call, tensor, generator, is_seen)
        # A factory's new tensor, where not only the block's own mode is on.
        is_seen = isinstance(call, Made) and any(
            mode is self.mode for mode in function_mode_stack()
        )
        with unseen():
            return self._fill(call, tensor, generator, is_seen)

    def passed(self, tensor: Tensor) -> None:
        """Before the original runs."""
        if self.frame is not None:
            self.frame.is_seen = False
        self.flush(tensor)

    def _fill(self, call: Call, tensor: Tensor, generator: Generator | None, is_seen: bool) -> bool:
        if not self.pending and (not is_seen or _size(tensor) < LEAST):
            return self.inner.fill(call, tensor, generator)
        storage = storage_of(tensor) if type(tensor) in PLAIN_TYPES else None
        if storage is None or not tensor.is_cpu:
            self.flush(tensor)
            return self.inner.fill(call, tensor, generator)
        is_pending = storage._cdata in self.pending
        if (
            is_seen
            and (is_pending or _size(tensor) >= LEAST)
            and self._is_open
            and (serves(call, tensor) or (is_pending and _is_plain_constant(call)))
            and call.name != "orthogonal_"
            and _is_deferrable(tensor)
        ):
            draw = draw_of(call, tensor.shape)
            assert draw is not None  # of every other function
            warn_as_functional(call, tensor)
            self._write_down(call, draw, tensor, storage, generator)
            return True
        if not is_pending:
            return self.inner.fill(call, tensor, generator)
        if call.name in TORCHS or not self._overwrites(tensor, storage):
            self.pending.do(storage._cdata)
            return self.inner.fill(call, tensor, generator)
        taken = self.pending.take(storage._cdata)
        try:
            is_done = self.inner.fill(call, tensor, generator)
        except BaseException:
            self.pending.put_back(storage._cdata, taken)
            raise
        if not is_done:  # the original, which may yet fail
            self.pending.put_back(storage._cdata, taken)
            self.pending.do(storage._cdata)
        return is_done

    def _write_down(
        self,
        call: Call,
        draw: Draw,
        tensor: Tensor,
        storage: UntypedStorage,
        generator: Generator | None,
    ) -> None:
        stream = self.inner.stream_of(call, tensor, generator) if draw[0] != CONSTANT else None
        check_draw(draw, tensor.dtype)
        checks.check_target(tensor)
        if draw[0] == CONSTANT:
            draw, key = constant_draw(float(draw[1])), 0
        else:
            key = draw_key_number(stream)
        tensor.data_ptr()  # memory that is copied when it is written to is written to now
        begin = int(tensor.storage_offset()) * tensor.element_size()
        self.pending.add(
            storage,
            Fill(
                begin,
                begin + checks.extent(tensor),
                tensor.is_contiguous(),
                draw,
                DTYPE_NUMBERS[tensor.dtype],
                key,
                calls.place_of(tensor),
            ),
        )
        calls.count_write(tensor)

    def _overwrites(self, tensor: Tensor, storage: UntypedStorage) -> bool:
        """Whether a dense tensor is all of its storage."""
        return tensor.is_contiguous() and tensor.nbytes == storage.nbytes()

    def flush(self, tensor: Tensor) -> None:
        """Does what is pending in a tensor's memory; all of it, if that is not known."""
        if not self.pending:
            return
        storage = storage_of(tensor) if type(tensor) in PLAIN_TYPES else None
        if storage is None:
            self.pending.do_all()
        else:
            self.pending.do(storage._cdata)

    def flush_arguments(self, arguments: Any) -> None:
        """Does what is pending in the tensors among arguments, however deep."""
        for one in arguments:
            if isinstance(one, Tensor):
                self.flush(one)
            elif isinstance(one, list | tuple | set | frozenset):
                self.flush_arguments(one)
            elif isinstance(one, dict):
                self.flush_arguments(one.values())
            elif isinstance(one, Module) or (callable(one) and not isinstance(one, type)):
                self.pending.do_all()  # it may hold any

    def writes(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Lets ``zero_``, ``fill_`` or ``copy_`` write to what may be pending."""
        tensor = args[0]
        storage = storage_of(tensor) if type(tensor) in PLAIN_TYPES else None
        if storage is None or storage._cdata not in self.pending:
            self.flush_arguments((*args, *kwargs.values()))
            return function(*args, **kwargs)
        value = 0.0 if function == _ZERO else args[1] if len(args) > 1 else None
        if (
            type(value) in (int, float)
            and not (tensor.requires_grad and torch.is_grad_enabled())
            and _is_deferrable(tensor)
            and not is_transforming()
        ):
            self._write_down(
                Call("constant_", {"val": value}), constant_draw(value), tensor, storage, None
            )
            return tensor
        identity = storage._cdata
        if not self._overwrites(tensor, storage):
            self.pending.do(identity)
        self.flush_arguments((*args[1:], *kwargs.values()))
        taken = self.pending.take(identity)
        try:
            return function(*args, **kwargs)
        except BaseException:
            if taken is not None:
                self.pending.put_back(identity, taken)
            raise


def _size(tensor: Tensor) -> int:
    """Bytes of the elements, of any layout."""
    return tensor.numel() * tensor.element_size()


def _is_plain_constant(call: Call) -> bool:
    """Whether a call writes one number: small ones too, where they are to come after others."""
    return call.name in ("ones_", "zeros_") or (
        call.name == "constant_" and type(call.arguments["val"]) in (int, float)
    )


def _is_deferrable(tensor: Tensor) -> bool:
    """Whether a tensor of plain host memory is filled by a kernel, outside batches."""
    batch = open_batch.get()
    return (
        find_road(tensor) == "now"
        and tensor.numel() > 0
        and not (batch is not None and batch.collects())
    )


class _FlushingMode(QuietMode):
    """Has the fills of a tensor done before anything else touches it."""

    def __init__(self, deferred: Deferred) -> None:
        self._deferred = deferred

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if is_dynamo_compiling():
            _stop_of_thread()
            return func(*args, **(kwargs or {}))
        deferred = self._deferred
        if func in swap.intercepted():
            frame = current()
            if frame is not None and frame is deferred.frame:
                frame.is_seen = True
                try:
                    return func(*args, **(kwargs or {}))
                finally:
                    frame.is_seen = False
        if deferred.pending and not is_harmless(func, args, kwargs):
            if args and func in _WRITERS:
                return deferred.writes(func, args, kwargs or {})
            if is_transforming():
                deferred.pending.do_all()
            else:
                deferred.flush_arguments(args)
                if kwargs:
                    deferred.flush_arguments(kwargs.values())
        return func(*args, **(kwargs or {}))


_WRITERS = frozenset({_ZERO, _FILL, _COPY})


class _Local(threading.local):
    def __init__(self) -> None:
        self.open: list[Deferred] = []


_local = _Local()


def _of_thread() -> list[Deferred]:
    return _local.open


def _stop_of_thread() -> int:
    """Called when torch.compile traces: what it makes would touch pending tensors unseen."""
    for deferred in _of_thread():
        deferred.stop()
    return 0


# Dynamo calls it while it traces, and takes what it returns for a constant.
_stop_of_thread._dynamo_marked_constant = True  # type: ignore[attr-defined]
