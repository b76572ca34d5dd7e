"""Keys drawn from generators: the only code that touches a generator's state.

A key is one draw of 64 bits. The operators take it as a 0-dimensional int64 tensor on the CPU,
which, unlike a Python number, can be drawn inside a traced graph, and which they read without
waiting for a device. If nothing is traced, a number suffices and is faster.
"""

from __future__ import annotations

import ctypes
import itertools
import threading
from collections.abc import Callable
from hashlib import blake2b
from typing import TypeAlias

import torch
from torch import Generator, Tensor

from torchinit.errors import ArgumentError
from torchinit.native.library import operator_library
from torchinit.native.torch_private import innermost_transform, jit_trace

# The source of a key: a generator to draw it from (None: torch's default CPU generator), or the key
# itself, as a number or as ``draw_key`` returns it.
Stream: TypeAlias = "Generator | int | Tensor | None"

_LOWEST = -(2**63)
_CPU = torch.device("cpu")


def draw_key(stream: Stream = None) -> Tensor:
    """The key of one fill as a tensor, so that a tracer records its draw.

    Args:
        stream: where to draw from. None is torch's default CPU generator, whatever the device of
            the tensor to be filled, so ``torch.manual_seed`` governs every fill. A generator on a
            device works too and costs one synchronisation with it. A number is the key itself.

    Returns:
        A 0-dimensional int64 tensor on the CPU: all 64 bits of one ``random_(-2**63, None)``.
    """
    if stream is None:
        if not torch.compiler.is_compiling() and jit_trace() is not None:
            # torch.jit would record the result of a custom operator as a constant.
            return torch.empty((), dtype=torch.int64, device="cpu").random_(_LOWEST, None)
        return _draw_key(_next_ordinal(), device=_CPU)  # type: ignore[no-any-return]
    if isinstance(stream, Tensor):
        return stream
    if isinstance(stream, int):
        return torch.tensor(_signed(stream), dtype=torch.int64, device="cpu")
    if not torch.compiler.is_compiling() and innermost_transform() is not None:
        # Inside an operator, which is opaque to transforms.
        return _draw_key(_next_ordinal(), device=_CPU, generator=stream)  # type: ignore[no-any-return]
    return draw_keys(1, stream)[0]


def draw_key_number(stream: Stream = None) -> int:
    """The key that ``draw_key`` would return, as a signed 64-bit number."""
    if stream is None:
        draw, _, number = _local.scratch or _local.prepare()
        draw(_LOWEST, None)
        return number.value
    if isinstance(stream, int):
        return _signed(stream)
    if isinstance(stream, Tensor):
        return int(stream.item())
    return int(draw_keys(1, stream).item())


def draw_keys(count: int, stream: Stream = None) -> Tensor:
    """The keys that `count` calls of ``draw_key`` would return, as one tensor.

    Raises:
        ValueError: if the stream is a key itself: all fills would share it.
    """
    if isinstance(stream, int | Tensor):
        raise ArgumentError(
            f"the key {stream} is for one fill, but {count} are needed: give a generator"
        )
    device = _CPU if stream is None else stream.device
    keys = torch.empty(count, dtype=torch.int64, device=device)
    return keys.random_(_LOWEST, None, generator=stream).cpu()


def digest_of_state(generator: Generator | None = None) -> str:
    """A hash of a generator's state; None is torch's default CPU generator."""
    state = (torch.default_generator if generator is None else generator).get_state()
    return blake2b(bytes(state.tolist()), digest_size=8).hexdigest()


def _signed(key: int) -> int:
    return (key + 2**63) % 2**64 - 2**63


# What a thread draws with: random_ of a tensor of its own, the tensor's address, and its value.
_Scratch: TypeAlias = tuple[Callable[[int, None], object], int, ctypes.c_int64]


def make_scratch() -> _Scratch:
    """A tensor for one thread to draw into; a new one for each draw would take twice as long."""
    # Not made at import, which may happen inside any mode of torch. A thread's first draw may be in
    # inference mode, whose tensors are read-only outside.
    with torch.inference_mode(False):
        key = torch.empty((), dtype=torch.int64, device="cpu")
    return key.random_, key.data_ptr(), ctypes.c_int64.from_address(key.data_ptr())


class _Local(threading.local):
    scratch: _Scratch | None = None

    def prepare(self) -> _Scratch:
        self.scratch = make_scratch()
        return self.scratch


_local = _Local()


def is_scratch(address: int) -> bool:
    """Whether an address is that of this thread's scratch, which is read without torch."""
    return _local.scratch is not None and _local.scratch[1] == address


_ordinals = itertools.count()


def _next_ordinal() -> int:
    return next(_ordinals)


# Makes torch.compile call it when tracing, and take its result as a constant without a guard, like
# torch.compiler.assume_constant_result, which would import the whole compiler.
_next_ordinal._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _draw_key_eagerly(
    ordinal: int,  # noqa: ARG001
    *,
    device: torch.device,  # noqa: ARG001
    generator: Generator | None = None,
) -> Tensor:
    return draw_keys(1, generator)[0]


def _draw_key_fake(
    ordinal: int,  # noqa: ARG001
    *,
    device: torch.device,  # noqa: ARG001
    generator: Generator | None = None,  # noqa: ARG001
) -> Tensor:
    return torch.empty((), dtype=torch.int64, device="cpu")


# Every call in a graph has its own ordinal, because compilers merge calls with equal arguments,
# some whatever the tag (training graphs in torch 2.13). From the device, the wrapper that replays
# random operators for activation checkpoints knows which generator's state to keep.
_LIBRARY = operator_library("streams.keys")
_LIBRARY.define(
    "draw_key(int ordinal, *, Device device, Generator? generator=None) -> Tensor",
    tags=(torch.Tag.nondeterministic_seeded,),
)
_LIBRARY.impl("draw_key", _draw_key_eagerly, "CompositeExplicitAutograd")
torch.library.register_fake("torchinit::draw_key", _draw_key_fake, lib=_LIBRARY)
_draw_key = torch.ops.torchinit.draw_key.default
