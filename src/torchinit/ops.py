"""The operators ``torchinit::...``: schema, checks, and the CPU, CUDA and Fake implementations.

Every operator fills its first argument in place and returns nothing. It is a pure function of its
arguments: the key is a tensor of one int64 on the CPU (see keys.py), everything else a number.

``shape`` and ``start``, given together, make the tensor a box of a larger logical tensor: it
receives the values that a fill of the whole of that shape has at ``start`` and on. Without them the
tensor is the whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from operator import attrgetter

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor

from torchinit import keys, native
from torchinit.errors import ArgumentError

LIBRARY = torch.library.Library("torchinit", "DEF")

# The numbers of csrc/plan.h; tests/test_native.py holds them against the module's.
_WORDS, _UNIFORM, _NORMAL, _TRUNCATED_NORMAL, _CONSTANT = range(5)
_DTYPES = {
    torch.float64: 0,
    torch.float32: 1,
    torch.float16: 2,
    torch.bfloat16: 3,
    torch.int32: 4,
    torch.int64: 5,
    torch.float8_e4m3fn: 6,
    torch.float8_e5m2: 7,
}
_FLOATS = frozenset(dtype for dtype in _DTYPES if dtype.is_floating_point)
_INTEGERS = frozenset(_DTYPES) - _FLOATS
_LIMITS = {dtype: torch.finfo(dtype).max for dtype in _FLOATS}


_Parameters = tuple[float, float, float, float]
# Distribution, dtype and parameters, in numbers; with key, address and box as csrc/python_jobs.h
# reads them.
Fill = tuple[int, int, float, float, float, float]
_Item = tuple[Fill, int, int, object]


def check_writable(tensor: Tensor) -> None:
    """Raises ArgumentError if a dense tensor cannot take a value at every place, each its own.

    That is: an element of memory shared by two logical positions (an expanded tensor), an inference
    tensor outside ``torch.inference_mode``, or memory mapped read-only.
    """
    if _overlaps(tensor):
        raise ArgumentError(
            f"tensor of shape {tuple(tensor.shape)} and strides {tensor.stride()} has elements "
            "that share memory (expanded?), fill a tensor without overlaps: clone() it first"
        )
    if tensor.is_inference() and not torch.is_inference_mode_enabled():
        raise ArgumentError(
            f"tensor of shape {tuple(tensor.shape)} is an inference tensor and read-only outside "
            "torch.inference_mode(): fill it inside, or clone() it"
        )


def check_memory(tensor: Tensor) -> None:
    """Raises ArgumentError if a tensor lies in memory mapped read-only, where it can be told.

    Only memory that torch did not allocate can be, and such storages cannot be resized.
    """
    if (
        native.module is None
        or not tensor.is_cpu
        or isinstance(tensor, FakeTensor)
        or tensor.untyped_storage().resizable()
        or native.module.is_writable(tensor.data_ptr(), _extent(tensor))
    ):
        return
    raise ArgumentError(
        f"tensor of shape {tuple(tensor.shape)} lies in memory mapped read-only: clone() it"
    )


def _overlaps(tensor: Tensor) -> bool:
    if tensor.is_contiguous() or tensor.numel() < 2:
        return False
    dims = sorted(
        (step, size) for step, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1
    )
    reach = 0  # the largest offset that the dimensions so far attain
    for stride, size in dims:
        if stride <= reach:
            break
        reach += stride * (size - 1)
    else:
        return False
    if dims[0][0] == 0 or tensor.numel() > 1 << 20:
        return True  # of large interleaved views we do not prove that they are safe
    offsets = torch.zeros((), dtype=torch.int64)
    for stride, size in dims:
        offsets = offsets.unsqueeze(-1) + torch.arange(size) * stride
    return int(offsets.unique().numel()) != tensor.numel()


def _check(
    tensor: Tensor,
    key: Tensor | None,
    dtypes: frozenset[torch.dtype],
    shape: Sequence[int] | None,
    start: Sequence[int] | None,
) -> None:
    if tensor.dtype not in dtypes:
        raise TypeError(
            f"self has dtype {tensor.dtype}, expected one of {sorted(map(str, dtypes))}"
        )
    if key is not None and (key.dtype != torch.int64 or key.dim() or not key.is_cpu):
        raise TypeError(
            "key must be a 0-dimensional int64 tensor on the CPU, "
            f"got {key.dtype} of shape {tuple(key.shape)} on {key.device}"
        )
    check_writable(tensor)
    if (shape is None) != (start is None):
        raise ArgumentError(f"shape={shape} and start={start} must be given together")
    if shape is None or start is None:
        return
    if not len(shape) == len(start) == tensor.dim() or any(
        first < 0 or first + size > whole
        for first, size, whole in zip(start, tensor.shape, shape, strict=True)
    ):
        raise ArgumentError(
            f"a box of shape {tuple(tensor.shape)} at start={list(start)} does not lie within "
            f"shape={list(shape)}"
        )


def _fill_cpu(
    tensor: Tensor,
    key: int,
    distribution: int,
    parameters: _Parameters,
    shape: Sequence[int] | None = None,
    start: Sequence[int] | None = None,
) -> None:
    module = native.module
    if module is None:
        raise RuntimeError(f"torchinit has no native module: {native.reason}")
    check_memory(tensor)
    what = (distribution, _DTYPES[tensor.dtype], *parameters, key, tensor.data_ptr())
    threads = torch.get_num_threads()
    if shape is None and tensor.is_contiguous():
        module.fill(*what, tensor.numel(), threads)
    else:
        sizes = list(tensor.shape)
        box = (sizes, [0] * len(sizes)) if shape is None else (list(shape), list(start or ()))
        module.fill_box(*what, sizes, tensor.stride(), *box, threads)


def _extent(tensor: Tensor) -> int:
    """Bytes from the first to past the last element in memory."""
    if tensor.is_contiguous():
        return tensor.numel() * tensor.element_size()
    last = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()


def _fill_cuda(
    tensor: Tensor,
    key: int,
    distribution: int,
    parameters: _Parameters,
    shape: Sequence[int] | None = None,
    start: Sequence[int] | None = None,
) -> None:
    fill = (distribution, _DTYPES[tensor.dtype], *parameters)
    _queue(tensor.device, [(fill, key, tensor.data_ptr(), _where(tensor, shape, start))], [tensor])


def _where(
    tensor: Tensor, shape: Sequence[int] | None = None, start: Sequence[int] | None = None
) -> object:
    """The box of a fill as csrc/python_jobs.h reads it."""
    if shape is None and tensor.is_contiguous():
        return tensor.numel()
    sizes = list(tensor.shape)
    box = (sizes, [0] * len(sizes)) if shape is None else (list(shape), list(start or ()))
    return (sizes, list(tensor.stride()), *box)


# Managed memory of at least so many bytes is filled by the processor: the device would move all of
# it over, and may not have room.
_LARGE = 1 << 26


def _queue(device: torch.device, items: list[_Item], tensors: Sequence[Tensor]) -> None:
    """Queues fills on the device's current stream; those of large host memory are done at once."""
    module = native.cuda
    if module is None:
        raise RuntimeError(f"torchinit has no CUDA module: {native.cuda_reason}")
    with torch.cuda.device(device):
        stream = torch.cuda.current_stream()
        large = [
            tensor.nbytes >= _LARGE
            and not torch.cuda.is_current_stream_capturing()
            and module.is_host_backed(tensor.data_ptr())
            for tensor in tensors
        ]
        if any(large) and native.module is not None:
            # After what the stream is doing, and in the order of the list.
            for item, on_host in zip(items, large, strict=True):
                if on_host:
                    stream.synchronize()
                    native.module.fill_list([item], torch.get_num_threads())
                else:
                    module.fill_list([item], stream.cuda_stream)
        else:
            module.fill_list(items, stream.cuda_stream)


_Fill = Callable[
    [Tensor, Tensor | None, int, _Parameters, Sequence[int] | None, Sequence[int] | None], None
]


def count_write(tensor: Tensor) -> None:
    """What autograd wants of an in-place operator that is defined in Python."""
    if not tensor.is_inference():
        torch.autograd.graph.increment_version(tensor)


def _fill_fake(*_arguments: object) -> None:
    """Nothing: a tensor without memory takes no values."""


def _register(name: str, schema: str, implement: Callable[[_Fill], Callable[..., None]]) -> None:
    """Defines an operator and its implementations, which differ in the fill they end in."""
    LIBRARY.define(f"{name}({schema}) -> ()")

    def on_memory(fill: Callable[..., None]) -> _Fill:
        def run(tensor: Tensor, key: Tensor | None, *rest: object) -> None:
            if tensor.numel() > 0:
                fill(tensor, 0 if key is None else int(key.item()), *rest)
            count_write(tensor)

        return run

    # Not differentiable: nothing is recorded, and a leaf that requires grad may be filled.
    LIBRARY.impl(name, torch.library.fallthrough_kernel, "Autograd")
    LIBRARY.impl(name, implement(on_memory(_fill_cpu)), "CPU")
    LIBRARY.impl(name, implement(on_memory(_fill_cuda)), "CUDA")
    torch.library.register_fake(f"torchinit::{name}", implement(_fill_fake), lib=LIBRARY)


def check_finite(**arguments: float) -> None:
    """Raises ArgumentError for the first argument that is NaN or infinite."""
    for name, value in arguments.items():
        if not -math.inf < value < math.inf:
            raise ArgumentError(f"{name}={value} must be a finite number")


def check_uniform(dtype: torch.dtype, a: float, b: float) -> None:
    """Raises ArgumentError unless [a, b) is an interval within the range of the dtype."""
    limit = _LIMITS[dtype]
    if -limit <= a <= b <= limit and b - a <= limit:
        return
    check_finite(a=a, b=b)
    if a > b:
        raise ArgumentError(f"a={a} must not be greater than b={b}")
    for name, value in (("a", a), ("b", b)):
        if not -limit <= value <= limit:
            raise ArgumentError(
                f"{name}={value} is out of the range of {dtype}, {-limit} to {limit}"
            )
    raise ArgumentError(f"the width of [a={a}, b={b}) exceeds the range of {dtype}, {limit}")


def check_normal(mean: float, std: float) -> None:
    """Raises ArgumentError unless mean is finite and std finite and not negative."""
    if -math.inf < mean < math.inf and 0 <= std < math.inf:
        return
    check_finite(mean=mean, std=std)
    raise ArgumentError(f"std={std} must not be negative")


def check_interval(a: float, b: float) -> None:
    """Raises ArgumentError unless a <= b, where a may be minus and b plus infinity."""
    if not a <= b or a == math.inf or b == -math.inf:
        raise ArgumentError(f"a={a} must not be greater than b={b}, and neither may be NaN")


def check_constant(dtype: torch.dtype, val: float) -> None:
    """Raises ArgumentError for a value out of the dtype's range; infinity is in most ranges."""
    limit = _LIMITS[dtype]
    if abs(val) > limit and (math.isfinite(val) or dtype == torch.float8_e4m3fn):
        raise ArgumentError(f"val={val} is out of the range of {dtype}, {-limit} to {limit}")


def _uniform(fill: _Fill) -> Callable[..., None]:
    def uniform_(
        self: Tensor,
        key: Tensor,
        a: float,
        b: float,
        shape: Sequence[int] | None = None,
        start: Sequence[int] | None = None,
    ) -> None:
        _check(self, key, _FLOATS, shape, start)
        check_uniform(self.dtype, a, b)
        fill(self, key, _UNIFORM, (a, b, 0.0, 0.0), shape, start)

    return uniform_


def _normal(fill: _Fill) -> Callable[..., None]:
    def normal_(
        self: Tensor,
        key: Tensor,
        mean: float,
        std: float,
        shape: Sequence[int] | None = None,
        start: Sequence[int] | None = None,
    ) -> None:
        _check(self, key, _FLOATS, shape, start)
        check_normal(mean, std)
        fill(self, key, _NORMAL, (mean, std, 0.0, 0.0), shape, start)

    return normal_


def _trunc_normal(fill: _Fill) -> Callable[..., None]:
    def trunc_normal_(
        self: Tensor,
        key: Tensor,
        mean: float,
        std: float,
        a: float,
        b: float,
        shape: Sequence[int] | None = None,
        start: Sequence[int] | None = None,
    ) -> None:
        _check(self, key, _FLOATS, shape, start)
        check_normal(mean, std)
        check_interval(a, b)
        fill(self, key, _TRUNCATED_NORMAL, (mean, std, a, b), shape, start)

    return trunc_normal_


def _constant(fill: _Fill) -> Callable[..., None]:
    def constant_(self: Tensor, val: float) -> None:
        _check(self, None, _FLOATS, None, None)
        check_constant(self.dtype, val)
        fill(self, None, _CONSTANT, (val, 0.0, 0.0, 0.0), None, None)

    return constant_


def _random_words(fill: _Fill) -> Callable[..., None]:
    def random_words_(
        self: Tensor,
        key: Tensor,
        shape: Sequence[int] | None = None,
        start: Sequence[int] | None = None,
    ) -> None:
        _check(self, key, _INTEGERS, shape, start)
        fill(self, key, _WORDS, (0.0, 0.0, 0.0, 0.0), shape, start)

    return random_words_


# The tag keeps compilers from merging two draws into one.
LIBRARY.define("draw_key() -> Tensor", tags=(torch.Tag.nondeterministic_seeded,))
LIBRARY.impl("draw_key", keys.draw_key, "CompositeExplicitAutograd")
torch.library.register_fake(
    "torchinit::draw_key", lambda: torch.empty((), dtype=torch.int64, device="cpu"), lib=LIBRARY
)

_BOX = "SymInt[]? shape=None, SymInt[]? start=None"
_register("uniform_", f"Tensor(a!) self, Tensor key, float a, float b, {_BOX}", _uniform)
_register("normal_", f"Tensor(a!) self, Tensor key, float mean, float std, {_BOX}", _normal)
_register(
    "trunc_normal_",
    f"Tensor(a!) self, Tensor key, float mean, float std, float a, float b, {_BOX}",
    _trunc_normal,
)
_register("constant_", "Tensor(a!) self, float val", _constant)
_register("random_words_", f"Tensor(a!) self, Tensor key, {_BOX}", _random_words)

# The overloads themselves: calling them skips a look-up by name.
uniform_ = torch.ops.torchinit.uniform_.default
normal_ = torch.ops.torchinit.normal_.default
trunc_normal_ = torch.ops.torchinit.trunc_normal_.default
constant_ = torch.ops.torchinit.constant_.default
random_words_ = torch.ops.torchinit.random_words_.default

_DISTRIBUTIONS = {
    uniform_: _UNIFORM,
    normal_: _NORMAL,
    trunc_normal_: _TRUNCATED_NORMAL,
    constant_: _CONSTANT,
}


def make_fill(operator: OpOverload, dtype: torch.dtype, parameters: Sequence[float]) -> Fill:
    """What an operator fills a tensor of a dtype with, in numbers."""
    p0, p1, p2, p3 = (*parameters, 0.0, 0.0, 0.0)[:4]
    return _DISTRIBUTIONS[operator], _DTYPES[dtype], p0, p1, p2, p3


def is_random(fill: Fill) -> bool:
    """Whether a fill takes a key."""
    return fill[0] != _CONSTANT


def call_directly(
    operator: OpOverload, tensor: Tensor, key: int, parameters: Sequence[float]
) -> None:
    """Does what an operator does on a tensor in plain memory, without torch's dispatcher.

    For parameters that have been checked. A call of the operator costs as much as filling thousands
    of elements, and small tensors are common.
    """
    check_writable(tensor)
    if tensor.numel() > 0:
        p0, p1, p2, p3 = (*parameters, 0.0, 0.0, 0.0)[:4]
        fill = _fill_cpu if tensor.is_cpu else _fill_cuda
        fill(tensor, key, _DISTRIBUTIONS[operator], (p0, p1, p2, p3))
    count_write(tensor)


_device = attrgetter("device")


def fill_together(fills: Sequence[Fill], tensors: Sequence[Tensor], keys: Sequence[int]) -> None:
    """Does what ``call_directly`` does for each fill, tensor and key, at once.

    Tensors that overlap are filled in order. Nothing is written if one of them cannot be.
    """
    # Column by column: thousands of small tensors are what this is for.
    contiguous = all(map(Tensor.is_contiguous, tensors))
    inference = any(map(Tensor.is_inference, tensors))
    for tensor in tensors if inference or not contiguous else ():
        check_writable(tensor)
    devices = dict.fromkeys(map(_device, tensors))
    if any(device.type == "cpu" for device in devices):
        for tensor in tensors:
            if not tensor.untyped_storage().resizable():
                check_memory(tensor)
    boxes = map(Tensor.numel if contiguous else _where, tensors)
    items = list(zip(fills, keys, map(Tensor.data_ptr, tensors), boxes, strict=True))
    for device in devices:
        some, there = items, tensors
        if len(devices) > 1:
            places = [i for i, tensor in enumerate(tensors) if tensor.device == device]
            some, there = [items[i] for i in places], [tensors[i] for i in places]
        if device.type == "cuda":
            _queue(device, some, there)
        elif native.module is not None:
            native.module.fill_list(some, torch.get_num_threads())
    torch.autograd.graph.increment_version(
        [tensor for tensor in tensors if not tensor.is_inference()] if inference else tensors
    )
