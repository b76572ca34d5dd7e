"""Low-precision weights of a checkpoint: found with their scales, dequantised, and checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchinit.checkpoint.block_ranges import QuantisedSource, StoredDtypes
from torchinit.frameworks.transformers import config_beside
from torchinit.quantised.fill import Weight
from torchinit.quantised.formats import PACKED, SCALES, WHOLE, BlockFormat
from torchinit.reporting.stored import StoredTensor, Unmeasured

# Sides of blocks, by which ambiguous ones are told.
_LIKELY = (1, 128, 32, 16)
_CHUNK = 1 << 22  # values that are dequantised at a time
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


class QuantisedTensor(NamedTuple):
    """A weight in low precision.

    Attributes:
        payload, scales: of it.
        whole: the factor of the whole tensor, if there is one.
        inverse: whether whole is the reciprocal of the factor.
        shape: in values.
        rows, columns: of a block.
        remade: says what differs from the bytes that are intended; None if these are unknown.
    """

    payload: StoredTensor
    scales: StoredTensor
    whole: StoredTensor | None
    inverse: bool
    shape: tuple[int, ...]
    rows: int
    columns: int
    remade: Callable[[QuantisedTensor], list[str]] | None = None

    @property
    def is_packed(self) -> bool:
        """Whether a byte has two values."""
        return self.payload.dtype == torch.uint8

    @property
    def rounding(self) -> float:
        """How far a value is rounded, relative to it, but for values far below a block's largest.

        As ``finfo.eps``, but for float4, whose steps are as wide as values, half of that.
        """
        return 0.25 if self.is_packed else 0.125

    def load(self) -> tuple[Tensor, list[str]]:
        """Its values as float32, and what is wrong with codes and scales."""
        payload, scales = self.payload.load(), _as_numbers(self.scales.load())
        whole, faults = self._factor()
        faults += _faults_of_scales(scales)
        high, wide = self.shape[-2], self.shape[-1]
        values = torch.empty(self.shape)
        flat, codes = values.view(-1, high, wide), payload.view(-1, high, payload.shape[-1])
        scales = scales.reshape(len(flat), -(-high // self.rows), -(-wide // self.columns))
        step = max(1, _CHUNK // max(1, wide) // self.rows) * self.rows
        nans = lost = 0
        for matrix in range(len(flat)):
            for row in range(0, high, step):
                there = flat[matrix, row : row + step]
                there.copy_(_as_values(codes[matrix, row : row + step]))
                begin, end = row // self.rows, -(-(row + len(there)) // self.rows)
                spread = scales[matrix, begin:end].repeat_interleave(self.rows, 0)[: len(there)]
                spread = spread.repeat_interleave(self.columns, 1)[:, :wide]
                nans += int(there.isnan().sum())
                lost += int(((spread == 0) & (there != 0)).sum())
                there.mul_(spread * whole)
        if nans:
            faults.append(f"{nans:,} of {values.numel():,} codes of the payload are NaN")
        if lost:
            faults.append(f"{lost:,} codes that are not zero have a scale of zero")
        if self.remade is not None:
            faults += self.remade(self)
        return values, faults

    def load_values(self) -> Tensor:
        """Its values as float32."""
        return self.load()[0]

    def _factor(self) -> tuple[float, list[str]]:
        if self.whole is None:
            return 1.0, []
        stored = float(self.whole.load().reshape(-1)[0])
        if not 0 < stored < math.inf:
            return 1.0, [f"the factor of the whole tensor is {stored:.4g}"]
        return 1 / stored if self.inverse else stored, []


def compare_bytes(
    form: BlockFormat, weigh: Callable[[], Weight], there: QuantisedTensor
) -> list[str]:
    """What differs between a stored weight and the same quantised anew.

    Args:
        form: the format.
        weigh: what the weight is filled with.
        there: what is stored.
    """
    payload, scales, whole = there.payload, there.scales, there.whole
    if (
        form.packed != there.is_packed
        or scales.shape != form.scales_shape(there.shape)
        or scales.dtype not in form.scale_dtypes
        or form.has_whole != (whole is not None)
        or (whole is not None and whole.dtype != torch.float32)
    ):
        return [f"it is not stored as {form}"]
    dtypes = StoredDtypes(payload.dtype, scales.dtype, there.inverse)
    names = ("the payload", "the scales", "the factor of the whole tensor")
    made = QuantisedSource(weigh, dtypes).make()
    found = []
    for what, one, wanted in zip(names, (payload, scales, whole), made, strict=True):
        if one is None:
            continue
        stored = one.load().reshape(-1).view(torch.uint8)
        differ = int((stored != wanted.reshape(-1).view(torch.uint8)).sum())
        if differ:
            found.append(f"{differ:,} of {len(stored):,} bytes of {what} are not those of the seed")
    return found


def _as_numbers(scales: Tensor) -> Tensor:
    """Scales as float32."""
    if scales.dtype == torch.uint8:
        scales = scales.view(torch.float8_e8m0fnu)
    return scales.float()


def _as_values(codes: Tensor) -> Tensor:
    """What codes stand for."""
    if codes.dtype != torch.uint8:
        return codes.float()
    table = torch.tensor([*_E2M1, *(-one for one in _E2M1)])
    pairs = torch.stack((table.repeat(16), table.repeat_interleave(16)), 1)
    return pairs[codes.int()].flatten(-2)


def _faults_of_scales(scales: Tensor) -> list[str]:
    checks = {"NaN": scales.isnan(), "infinite": scales.isinf(), "negative": scales < 0}
    counts = {what: int(found.sum()) for what, found in checks.items()}
    total = scales.numel()
    return [f"{count:,} of {total:,} scales are {what}" for what, count in counts.items() if count]


class FoundWeights(NamedTuple):
    """A checkpoint's tensors, with those of low-precision weights as one.

    Attributes:
        rest: the other tensors, and each such weight as one in its payload's place.
        blocks: such weights by name.
        unmeasured: those that cannot be read.
    """

    rest: list[StoredTensor]
    blocks: Mapping[str, QuantisedTensor]
    unmeasured: list[Unmeasured]


def find_blocks(path: Path, stored: Sequence[StoredTensor]) -> FoundWeights:
    """Finds the low-precision weights of a checkpoint by the names beside each payload.

    Args:
        path: of the checkpoint, whose config may say how large blocks are.
        stored: its tensors.
    """
    by_name = {one.name: one for one in stored}
    blocks: dict[str, QuantisedTensor] = {}
    unmeasured: list[Unmeasured] = []
    at: dict[str, str] = {}  # the names of weights by those of their tensors
    said: Any = None
    for one in stored:
        base = one.name.removesuffix(PACKED)
        scales = next((by_name[base + end] for end in SCALES if base + end in by_name), None)
        if scales is None or one.dtype not in (torch.uint8, torch.float8_e4m3fn):
            continue
        if said is None:
            said = _block_size(path)
        end = next((end for end in WHOLE if base + end in by_name), None)
        whole = None if end is None else by_name[base + end]
        at |= {part.name: base for part in (one, scales, whole) if part is not None}
        weight = _blocks_of(one, scales, whole, end is not None and WHOLE[end], said)
        if whole is not None and math.prod(whole.shape) != 1:
            reason = f"is quantised, and {whole.name!r} is not one factor but {whole.shape}"
            unmeasured.append(Unmeasured(base, reason))
        elif weight is None:
            reason = f"is quantised, and scales of shape {scales.shape} fit no blocks of it"
            unmeasured.append(Unmeasured(base, reason))
        else:
            blocks[base] = weight
    rest = []
    for one in stored:
        base = at.get(one.name, "")
        if not base:
            rest.append(one)
        elif base in blocks and blocks[base].payload is one:
            found = blocks[base]
            rest.append(StoredTensor(base, found.shape, torch.float32, found.load_values))
    return FoundWeights(rest, blocks, unmeasured)


def _block_size(path: Path) -> tuple[int, ...]:
    """The sides of blocks that a config names; empty if it names none."""
    entry = config_beside(path).get("quantization_config")
    sides = entry.get("weight_block_size") if isinstance(entry, dict) else None
    if not isinstance(sides, list) or len(sides) != 2:
        return ()
    return tuple(sides) if all(type(one) is int and one > 0 for one in sides) else ()


def _blocks_of(
    payload: StoredTensor, scales: StoredTensor, whole: StoredTensor | None, inverse: bool,
    said: Sequence[int],
) -> QuantisedTensor | None:  # fmt: skip
    shape = payload.shape
    if payload.dtype == torch.uint8 and shape:
        shape = (*shape[:-1], 2 * shape[-1])
    counts = scales.shape
    if math.prod(counts) == 1:
        counts = (1,) * len(shape)
    if len(shape) < 2 or len(counts) != len(shape) or counts[:-2] != shape[:-2]:
        return None
    if not math.prod(shape):
        return None
    rows, columns = (_side(shape[dim], counts[dim], said[dim:][:1]) for dim in (-2, -1))
    if rows is None or columns is None:
        return None
    return QuantisedTensor(payload, scales, whole, inverse, shape, rows, columns)


def _side(size: int, count: int, said: Sequence[int]) -> int | None:
    """The side of blocks of which so many cover a size."""
    whole = [size // count] if count and not size % count else []
    for side in (*said, *_LIKELY, *whole):
        if -(-size // side) == count:
            return side
    return None
