"""A measured parameter: all that the table, the picture and the search for outliers use."""

from __future__ import annotations

import math
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchinit.reporting.goodness_of_fit import Fit, fit_distribution, resolution_of
from torchinit.reporting.inputs import Intended, ReportInput
from torchinit.reporting.measure import Moments, measure, measure_matrix
from torchinit.reporting.roles import Depth, depth_of, role_of


@dataclass(frozen=True)
class ReportRow:
    r"""A parameter, or a part of one that its rule fills on its own.

    Attributes:
        name: of the part, or of the whole parameter.
        parameter: the name of the parameter.
        shape: of the logical tensor.
        dtype: of the values.
        role: what its name tells, such as q, up, conv1, norm or other; see docs/report.md.
        place: its depth in the model, by the name.
        fan_in: inputs of each output as torch counts them; 1 for a vector.
        law: the distribution that fits the values.
        intended: by the rules; None without rules.
        moments: mean, std, kurtosis, low, high, zeros and what else was counted.
        spectral: the largest singular value over std (sqrt(m) + sqrt(n)), the largest in a stack of
            matrices; None for vectors, and if std is 0 or a value is not finite.
        orthogonality: the largest entry of \\|Q^T Q - I\\|, Q being the matrix over its gain; None
            if it was not computed.
        faults: what is wrong with the codes and scales of a quantised weight.
        rounding: of its format, relative to values; None if it is not quantised.

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
    place: Depth
    fan_in: int
    law: Fit
    intended: Intended | None
    moments: Moments
    spectral: float | None
    orthogonality: float | None
    faults: tuple[str, ...] = ()
    rounding: float | None = None

    @property
    def eps(self) -> float:
        """How far values are rounded, relative to them; 0 for integers."""
        if self.rounding is not None:
            return self.rounding
        return torch.finfo(self.dtype).eps if self.dtype.is_floating_point else 0.0

    def resolution_at(self, std: float) -> float:
        """How far rounding can move a value as large as std, in std."""
        return resolution_of(self.dtype, std) if self.rounding is None else self.rounding

    @property
    def gain(self) -> float:
        """Std sqrt(fan_in): the factor by which a layer scales independent inputs."""
        return self.moments.std * math.sqrt(self.fan_in)

    @property
    def intended_gain(self) -> float | None:
        """The gain of the intended std; None if it is unknown."""
        if self.intended is None or self.intended.law is None:
            return None
        return self.intended.law.std * math.sqrt(self.fan_in)

    def to_dict(self) -> dict[str, Any]:
        """The row for ``json.dumps``; numbers that are not finite are None."""
        moments, law = self.moments, None if self.intended is None else self.intended.law
        numbers = {
            "mean": moments.mean, "std": moments.std, "kurtosis": moments.kurtosis,
            "min": moments.low, "max": moments.high, "gain": self.gain, "norm": self.spectral,
            "orthogonality": self.orthogonality, "intended_mean": None if law is None else law.mean,
            "intended_std": None if law is None else law.std, "intended_gain": self.intended_gain,
        }  # fmt: skip
        return {
            "name": self.name, "parameter": self.parameter, "shape": list(self.shape),
            "dtype": str(self.dtype).removeprefix("torch."), "role": self.role,
            "stack": self.place.stack, "depth": list(self.place.depth), "fan_in": self.fan_in,
            "distribution": str(self.law),
            "intended": None if self.intended is None else self.intended.words,
            "values": moments.numel, "zeros": moments.zeros, "nans": moments.nans,
            "infinities": moments.infinities,
            **{key: one if one is not None and math.isfinite(one) else None
               for key, one in numbers.items()},
        }  # fmt: skip

    @property
    def resolution(self) -> float:
        """How far rounding to the dtype can move a value as large as std, in std."""
        return self.resolution_at(self.moments.std)


def row_of(source: ReportInput, threads: Executor) -> ReportRow:
    """Measures a parameter.

    Raises:
        TypeError: for a dtype that torch cannot convert.
    """
    with torch.no_grad():
        faults: list[str] = []
        rounding = None if source.blocks is None else source.blocks.rounding
        if source.blocks is None:
            tensor = source.load()
        else:
            tensor, faults = source.blocks.load()
        try:
            moments = measure(source.views(tensor), threads)
        except (RuntimeError, NotImplementedError) as error:
            said = str(error).partition("\n")[0]
            raise TypeError(
                f"parameter {source.name!r} of dtype {source.dtype} cannot be measured: {said}"
            ) from error
        spectral, orthogonality = _of_matrices(source, tensor, moments, threads)
    resolution = resolution_of(source.dtype, moments.std) if rounding is None else rounding
    return ReportRow(
        source.name, source.parameter, source.shape, source.dtype,
        role_of(source.name, len(source.shape)), depth_of(source.name), source.fan_in,
        fit_distribution(moments, resolution, orthogonality),
        source.intended, moments, spectral, orthogonality, tuple(faults), rounding,
    )  # fmt: skip


def _of_matrices(
    source: ReportInput, tensor: Tensor, moments: Moments, threads: Executor
) -> tuple[float | None, float | None]:
    """Spectral norm over std (sqrt(m) + sqrt(n)), and orthogonality error; the largest of each."""
    if tensor.is_complex() or not moments.std > 0 or moments.finite < moments.numel:
        return None, None
    norms: list[float] = []
    errors: list[float] = []
    is_orthogonal = source.intended is not None and source.intended.orthogonal
    rms = math.hypot(moments.std, moments.mean)
    for blocks in source.matrices(tensor):
        rows, columns = sum(map(len, blocks)), blocks[0].shape[1]
        if min(rows, columns) < 2:
            continue
        norm, error = measure_matrix(blocks, rms, threads, is_orthogonal=is_orthogonal)
        norms.append(norm / (moments.std * (math.sqrt(rows) + math.sqrt(columns))))
        errors += [] if error is None else [error]
    return max(norms, default=None), max(errors, default=None)
