"""Formats of low-precision weights with scales of blocks, as data for the kernels.

docs/streams.md (section 8) is the contract of each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import ClassVar, Literal, TypeAlias

import torch

from torchinit.errors import ArgumentError

# Numbers of csrc/math/block_format.h.
_POWER_UP, _POWER_DOWN, _RATIO, _RATIO_POWER, _TWO_LEVELS = range(5)
_E8M0, _FLOAT32, _E4M3 = range(3)

_E8M0_DTYPES = {torch.float8_e8m0fnu: _E8M0, torch.uint8: _E8M0}
_FP8 = (torch.float8_e4m3fn, torch.uint8)
_FP4 = (torch.uint8, torch.float4_e2m1fn_x2)
_SOURCES = (torch.float32, torch.bfloat16)
_LARGEST = torch.finfo(torch.float32).max
_LONGEST = 2**31 - 1  # side of a block: sums and products of two are int64 in the kernels

# What is added to the name of a weight: to that of a packed payload (compressed-tensors' is that of
# its values otherwise), of the scales, and of the factor of the whole tensor, with whether that is
# stored as its reciprocal.
PACKED = "_packed"
SCALES = ("_scale_inv", "_scale")
WHOLE = {"_scale_2": False, "_global_scale": True}

# (rows, columns, packed, rule, scale dtype), as csrc/python/read_jobs.h reads it.
FormatNumbers: TypeAlias = tuple[int, int, int, int, int]


class BlockFormat:
    """A format: the blocks of a matrix, their scales, and the payload.

    A matrix is the last two dimensions of a weight; blocks at its edges are smaller.

    Attributes:
        rows, columns: of a block.
        source: the dtype of the values that are quantised: float32, or bfloat16 for the payload
            that those get who quantise bfloat16 weights.
        packed: whether a byte has two values, the one of the even column in its lower half.
        payload_dtypes: that the payload may have, the usual one first.
        scale_dtypes: the same of the scales, with their numbers for the kernels.
        has_whole: whether there is a scale of the whole tensor.
    """

    rows: int
    columns: int
    source: torch.dtype
    packed: ClassVar[bool] = False
    payload_dtypes: ClassVar[Sequence[torch.dtype]] = _FP8
    has_whole: ClassVar[bool] = False

    @property
    def scale_dtypes(self) -> dict[torch.dtype, int]:
        """The dtypes that its scales may have, the usual one first."""
        return _E8M0_DTYPES

    @property
    def _rule(self) -> int:
        raise NotImplementedError

    def numbers(self, scale_dtype: torch.dtype | None = None) -> FormatNumbers:
        """What the kernels take; without a dtype, for a fill that stores no scales."""
        number = next(iter(self.scale_dtypes.values()))
        if scale_dtype is not None:
            number = self.scale_dtypes[scale_dtype]
        return self.rows, self.columns, int(self.packed), self._rule, number

    def payload_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of the payload of values of a shape.

        Raises:
            ArgumentError: if the format cannot hold them.
        """
        if not shape or (self.rows > 1 and len(shape) < 2):
            needed = "a matrix" if self.rows > 1 else "at least one dimension"
            raise ArgumentError(f"{self} needs {needed}, and the shape is {tuple(shape)}")
        if self.packed and shape[-1] % 2:
            raise ArgumentError(
                f"{self} has two values in a byte, and shape {tuple(shape)} has an odd number of "
                "columns"
            )
        return (*shape[:-1], shape[-1] // 2) if self.packed else tuple(shape)

    def values_shape(self, payload: Sequence[int]) -> tuple[int, ...]:
        """The shape of the values in a payload of a shape."""
        return (*payload[:-1], 2 * payload[-1]) if self.packed and payload else tuple(payload)

    def blocks_of(
        self, offset: Sequence[int], size: Sequence[int]
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """(first, count) in each dimension of the blocks that a box of values touches."""
        steps = self._steps(len(size))
        sides = list(zip(offset, size, steps, strict=True))
        first = tuple(begin // step for begin, _, step in sides)
        count = tuple(
            -(-(begin + length) // step) - begin // step if length else 0
            for begin, length, step in sides
        )
        return first, count

    def scales_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of the scales of values of a shape."""
        return self.blocks_of((0,) * len(shape), shape)[1]

    def values_of(
        self, first: Sequence[int], count: Sequence[int], shape: Sequence[int]
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """(offset, size) of the values of some blocks of a tensor of a shape."""
        sides = list(zip(first, count, self._steps(len(shape)), shape, strict=True))
        offset = tuple(begin * step for begin, _, step, _ in sides)
        size = tuple(
            min((begin + length) * step, whole) - begin * step
            for begin, length, step, whole in sides
        )
        return offset, size

    def __str__(self) -> str:
        """As it would be written."""
        said = [
            f"{one.name}={getattr(self, one.name)!r}" for one in fields(self)  # type: ignore[arg-type]
            if getattr(self, one.name) != one.default
        ]  # fmt: skip
        return f"{type(self).__name__}({', '.join(said)})"

    def _steps(self, dims: int) -> tuple[int, ...]:
        return (*[1] * (dims - 2), self.rows, self.columns)[-dims:] if dims else ()


def _check_source(source: torch.dtype) -> None:
    if source not in _SOURCES:
        raise ArgumentError(f"source={source} must be torch.float32 or torch.bfloat16")


def _check_choice(name: str, value: object, *choices: object) -> None:
    if not any(type(value) is type(one) and value == one for one in choices):
        said = " or ".join(map(repr, choices))
        raise ArgumentError(f"{name}={value!r} must be {said}")


@dataclass(frozen=True)
class MXFP8(BlockFormat):
    """OCP's MXFP8: float8_e4m3fn with a power of two for each 32 values of a row.

    Args:
        scale: ``"rceil"``: the exponent is rounded up, so that no value saturates (cuBLAS,
            Transformer Engine); ``"floor"``: that of the OCP specification, whose largest values
            saturate.
        source: dtype of the values that are quantised.

    >>> import torch, torchinit
    >>> weight = torch.empty(64, 64, dtype=torch.float8_e4m3fn)
    >>> scales = torch.empty(64, 2, dtype=torch.float8_e8m0fnu)
    >>> _ = torchinit.init_shard_(weight, torchinit.Normal(0.02), global_shape=(64, 64),
    ...     offset=(0, 0), seed=0, name="weight", format=torchinit.MXFP8(), scales=scales)
    >>> round((weight.float() * scales.float().repeat_interleave(32, 1)).std().item(), 3)
    0.02
    """

    scale: Literal["rceil", "floor"] = "rceil"
    source: torch.dtype = torch.float32
    rows: ClassVar[int] = 1  # type: ignore[misc]
    columns: ClassVar[int] = 32  # type: ignore[misc]

    def __post_init__(self) -> None:
        _check_choice("scale", self.scale, "rceil", "floor")
        _check_source(self.source)

    @property
    def _rule(self) -> int:
        return _POWER_UP if self.scale == "rceil" else _POWER_DOWN


@dataclass(frozen=True)
class FP8Blocks(BlockFormat):
    """float8_e4m3fn with a factor for each block of rows and columns, as DeepSeek-V3 has.

    Args:
        rows, columns: of a block.
        scale: ``"float32"``: the largest magnitude of the block over 448; ``"ue8m0"``: that,
            rounded up to a power of two. Scales are what payload is multiplied by ("scale_inv").
        source: dtype of the values that are quantised.

    >>> import torchinit
    >>> torchinit.FP8Blocks(128, 128).scales_shape((4096, 11000))
    (32, 86)
    """

    rows: int = 128
    columns: int = 128
    scale: Literal["float32", "ue8m0"] = "float32"
    source: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        for name in ("rows", "columns"):
            number = getattr(self, name)
            if not (isinstance(number, int) and 0 < number <= _LONGEST):
                raise ArgumentError(f"{name}={number!r} must be a positive integer below 2^31")
        _check_choice("scale", self.scale, "float32", "ue8m0")
        _check_source(self.source)

    @property
    def scale_dtypes(self) -> dict[torch.dtype, int]:
        """float32; of powers of two also E8M0."""
        return {torch.float32: _FLOAT32} | (_E8M0_DTYPES if self.scale == "ue8m0" else {})

    @property
    def _rule(self) -> int:
        return _RATIO if self.scale == "float32" else _RATIO_POWER


@dataclass(frozen=True)
class NVFP4(BlockFormat):
    """NVIDIA's NVFP4: float4_e2m1, two in a byte, a float8 factor a block, and one of the tensor.

    The arithmetic is Transformer Engine's. The factor of the tensor is A / 2688, where A is the
    largest magnitude.

    Args:
        rows: 1 or 16 rows of a block, which has 16 columns.
        amax: A. ``"law"``: the bound of the values' distribution, which costs nothing and is equal
            for tensors of one rule; where there is none (callables), as ``"measured"``: what is
            largest in the whole tensor, found in a second pass; or a number.
        source: dtype of the values that are quantised.

    >>> import torchinit
    >>> torchinit.NVFP4(rows=16).payload_shape((64, 64))
    (64, 32)
    """

    rows: int = 1
    amax: Literal["law", "measured"] | float = "law"
    source: torch.dtype = torch.float32
    columns: ClassVar[int] = 16  # type: ignore[misc]
    packed: ClassVar[bool] = True
    payload_dtypes: ClassVar[Sequence[torch.dtype]] = _FP4
    has_whole: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_choice("rows", self.rows, 1, 16)
        if isinstance(self.amax, str):
            is_fine = self.amax in ("law", "measured")
        else:
            is_fine = isinstance(self.amax, float | int) and 0 <= self.amax <= _LARGEST
        if not is_fine:
            raise ArgumentError(
                f"amax={self.amax!r} must be 'law', 'measured' or the largest magnitude itself"
            )
        _check_source(self.source)

    @property
    def scale_dtypes(self) -> dict[torch.dtype, int]:
        """E4M3."""
        return {torch.float8_e4m3fn: _E4M3, torch.uint8: _E4M3}

    @property
    def _rule(self) -> int:
        return _TWO_LEVELS


def whole_factor(largest: float, *, inverse: bool) -> int:
    """The bits of NVFP4's factor of the whole tensor: largest / 2688 in float32, or 2688 / largest.

    In integers, for a program may have told the processor to take subnormals for zeros.

    Args:
        largest: the largest magnitude of the tensor.
        inverse: whether the second is asked for, as compressed-tensors stores it.
    """
    one = _bits_of(Fraction(1))
    if not 0 < largest < math.inf:
        return one
    magnitude = _number_of(_bits_of(Fraction(largest)))
    if not magnitude:
        return one
    return _bits_of(2688 / magnitude if inverse else magnitude / 2688)


def _bits_of(number: Fraction) -> int:
    """The bits of the nearest float32, ties to even; of the largest one for larger numbers."""
    exponent = number.numerator.bit_length() - number.denominator.bit_length()
    if number < Fraction(2) ** exponent:
        exponent -= 1
    exponent = max(exponent, -126)
    digits = round(number / Fraction(2) ** (exponent - 23))
    return min(((exponent + 126) << 23) + digits, 0x7F7FFFFF)


def _number_of(bits: int) -> Fraction:
    exponent, digits = divmod(bits, 1 << 23)
    digits += (1 << 23) if exponent else 0
    return digits * Fraction(2) ** (max(exponent, 1) - 150)
