"""One parameter measured: everything that the table, the judgement and the picture are made of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import torch
from torch import Tensor

from torchinit.reporting.laws import Found, find_law, resolution_of
from torchinit.reporting.matrices import (
    gram_matrix,
    is_cheap,
    may_be_orthogonal,
    norm_of,
    orthogonality_error,
    spectral_norm,
)
from torchinit.reporting.measure import Moments, measure
from torchinit.reporting.roles import Place, place_of, role_of
from torchinit.reporting.sources import Intended, Source


@dataclass(frozen=True)
class ReportRow:
    r"""A parameter, or a part of one that its rule fills alone.

    Attributes:
        name: of the part, or of the parameter where it is whole.
        parameter: that it lies in.
        shape: of the logical tensor.
        dtype: of the values.
        role: q, k, v, o, qkv, up, gate, gate_up, down, router, conv, embedding, head, norm, bias or
            other: by the name.
        place: how deep it lies, by the name.
        fan_in: inputs of each output as torch counts them; 1 for a vector.
        law: that the values were found to follow.
        intended: by the rules; None without.
        moments: mean, std, kurtosis, low, high, zeros and what else was counted.
        spectral: the largest singular value over std (sqrt(m) + sqrt(n)), of a stack of matrices
            the largest; None of a vector, and where std is 0 or a value is not finite.
        orthogonality: the largest entry of \\|Q^T Q - I\\|, Q being the matrix over its gain; None
            where it was not looked for.

    >>> import torchinit
    >>> row = torchinit.report_model(torch.nn.Linear(64, 32, bias=False))[0]
    >>> isinstance(row, torchinit.ReportRow), row.name, row.shape, row.fan_in
    (True, 'weight', (32, 64), 64)
    """

    name: str
    parameter: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    role: str
    place: Place
    fan_in: int
    law: Found
    intended: Intended | None
    moments: Moments
    spectral: float | None
    orthogonality: float | None

    @property
    def gain(self) -> float:
        """Std sqrt(fan_in): what a layer does to the size of independent inputs."""
        return self.moments.std * math.sqrt(self.fan_in)

    @property
    def intended_gain(self) -> float | None:
        """The same of the rule's std; None without."""
        if self.intended is None or self.intended.law is None:
            return None
        return self.intended.law.std * math.sqrt(self.fan_in)

    @property
    def resolution(self) -> float:
        """How far rounding to the dtype may move a value of the size of std, in std."""
        return resolution_of(self.dtype, self.moments.std)


def row_of(source: Source, threads: Executor) -> ReportRow:
    """Measures a parameter.

    Raises:
        TypeError: for values that torch cannot widen.
    """
    with torch.no_grad():
        tensor = source.load()
        views = [view for view in source.views(tensor) if view.numel()]
        try:
            moments = measure(views, threads)
        except (RuntimeError, NotImplementedError) as error:
            said = str(error).partition("\n")[0]
            raise TypeError(
                f"parameter {source.name!r} of dtype {source.dtype} cannot be measured: {said}"
            ) from error
        spectral, orthogonality = _of_matrices(source, tensor, moments, threads)
    return ReportRow(
        source.name, source.parameter, source.shape, source.dtype,
        role_of(source.name, len(source.shape)), place_of(source.name), source.fan_in,
        find_law(moments, resolution_of(source.dtype, moments.std), orthogonality),
        source.intended, moments, spectral, orthogonality,
    )  # fmt: skip


def _of_matrices(
    source: Source, tensor: Tensor, moments: Moments, threads: Executor
) -> tuple[float | None, float | None]:
    """Spectral norm over std (sqrt(m) + sqrt(n)), and orthogonality error: of the worst matrix."""
    if tensor.is_complex() or not moments.std > 0 or moments.finite < moments.numel:
        return None, None
    norms: list[float] = []
    errors: list[float] = []
    wanted = source.intended is not None and source.intended.orthogonal
    rms = math.hypot(moments.std, moments.mean)
    for blocks in source.matrices(tensor):
        shape = (sum(map(len, blocks)), blocks[0].shape[1])
        if min(shape) < 2:
            continue
        gram = gram_matrix(blocks, rms) if is_cheap(shape) else None
        norm = spectral_norm(blocks, rms, threads) if gram is None else rms * norm_of(gram)
        norms.append(norm / (moments.std * (math.sqrt(shape[0]) + math.sqrt(shape[1]))))
        if gram is None and (wanted or may_be_orthogonal(norm, rms, shape)):
            gram = gram_matrix(blocks, rms)
        if gram is not None:
            errors.append(orthogonality_error(gram))
    return _largest(norms), _largest(errors)


def _largest(values: Sequence[float]) -> float | None:
    return max(values) if values else None
