"""``report_model``: every parameter measured, judged, and drawn in one picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torchinit.check.tensors_of import plainly
from torchinit.native.kernels import serial_if_forked
from torchinit.progress import progress
from torchinit.quantised.formats import BlockFormat
from torchinit.reporting.inputs import ReportInput, inputs_by_constructor, inputs_of
from torchinit.reporting.outliers import FALSE_ALARMS, Outlier, ReportResults, find_outliers
from torchinit.reporting.rows import ReportRow, row_of
from torchinit.reporting.stored import Unmeasured
from torchinit.reporting.tables import full_table, not_measured, table_by_role, verdict
from torchinit.untrusted import printable

# Rows that a table shows one by one, as they fit on a screen.
_FEW = 20
# Bytes worth a bar: they take a second.
_LONG = 1 << 27


class ModelReport(Sequence[ReportRow]):
    """Rows, one for each parameter or part of one, in the model's order.

    Printed, a table by role; ``table(full=True)`` has a line for each row.

    Attributes:
        against: the report that this one is compared with; None without one.
        unmeasured: tensors of a checkpoint that have no row, each with its name and the reason:
            the index or the header names them and no file has them, a file has them and the index
            does not, or their dtype is unknown; and files that the index does not name.

    >>> import torchinit
    >>> report = torchinit.report_model(torch.nn.LayerNorm(8))
    >>> isinstance(report, torchinit.ModelReport), [str(row.law) for row in report]
    (True, ['ones', 'zeros'])
    """

    def __init__(
        self,
        title: str,
        rows: Sequence[ReportRow],
        against: ModelReport | None = None,
        unmeasured: Sequence[Unmeasured] = (),
    ) -> None:
        self.against = against
        self.unmeasured = unmeasured
        other = None if against is None else against._results
        with plainly():
            outliers = find_outliers(rows)
        self._results: ReportResults = ReportResults(title, list(rows), outliers, other)

    def __getitem__(self, index: int) -> ReportRow:  # type: ignore[override]
        return self._results.rows[index]

    def __len__(self) -> int:
        return len(self._results.rows)

    def __str__(self) -> str:
        return self.table()

    __repr__ = __str__

    def table(self, *, full: bool = False) -> str:
        """The table, and below it the outliers, each in full.

        Args:
            full: one line for each row; else one for each role, with the smallest and the largest
                number of its rows, unless there are 20 rows or fewer.
        """
        rows, wrong = self._results.rows, {outlier.name for outlier in self.outliers}
        table = full_table if full or len(rows) <= _FEW else table_by_role
        lines = [*table(rows, wrong), "", *verdict(rows, self.outliers, self.false_alarm_rate)]
        lines += not_measured(self.unmeasured)
        if self.against is not None:
            title = printable(self.against.title)
            lines += not_measured(self.against.unmeasured, f" of {title}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The report as dicts, lists, strings and numbers, for ``json.dumps``; see docs/report.md.

        Numbers that are not finite are None, as JSON has none of them.

        >>> import json, torchinit
        >>> found = torchinit.report_model(torch.nn.LayerNorm(8)).to_dict()
        >>> json.dumps(found["rows"][1]["name"]), found["outliers"]
        ('"bias"', [])
        """
        return {
            "title": self.title,
            "values": sum(row.moments.numel for row in self),
            "false_alarm_rate": self.false_alarm_rate,
            "rows": [row.to_dict() for row in self],
            "outliers": [{"name": one.name, "problems": one.problems} for one in self.outliers],
            "unmeasured": [{"name": one.name, "reason": one.reason} for one in self.unmeasured],
            "against": None if self.against is None else self.against.to_dict(),
        }

    @property
    def title(self) -> str:
        """What was measured."""
        return self._results.title

    @property
    def outliers(self) -> Sequence[Outlier]:
        """The outliers: parameters whose values are not as intended, or unlike their siblings'."""
        return self._results.outliers

    @property
    def false_alarm_rate(self) -> float:
        """The probability that a correct model has an outlier, at most: the sum over all tests."""
        return FALSE_ALARMS * len(self)

    def save(self, path: str | Path, *, dark: bool = False) -> None:
        """Draws the picture.

        Args:
            path: of the file; its suffix is the format: png, pdf, svg.
            dark: draws bright on a transparent ground, for dark pages and slides.

        Raises:
            ImportError: without matplotlib, which the extra ``report`` installs.
            OSError: if the file cannot be written.
            ValueError: for a suffix that matplotlib does not know.
        """
        from torchinit.reporting.picture import save_picture

        with plainly():
            save_picture(self._results, Path(path), dark=dark)


def report_model(
    model: nn.Module | str | Path | Callable[[], nn.Module],
    rules: Mapping[Any, Any] | None = None,
    *,
    against: nn.Module | str | Path | None = None,
    seed: int | None = None,
    formats: Mapping[Any, BlockFormat] | None = None,
) -> ModelReport:
    """Measures every parameter of a model, and names the outliers.

    Every value is read, in a few passes by ``torch.get_num_threads()`` threads. Nothing is written,
    and no random state changes. Of a checkpoint, memory holds one tensor at a time.

    Args:
        model: with values; or the path of a safetensors checkpoint: a file, an index, or a
            directory with one of them; or a function that builds a model, as ``build_model`` takes
            it, whose parameters are then tested against what their constructor intends.
        rules: as ``init_model_`` takes them, to test parameters against; without rules, each is
            compared with its siblings at other depths. See docs/report.md.
        against: another model or checkpoint for the picture to show beside this one.
        seed, formats: with rules, of a checkpoint that ``write_checkpoint`` wrote with the same:
            its low-precision weights are quantised anew, and every byte is compared.

    Raises:
        ArgumentError: for parameters whose values are not in this process (on the meta device,
            lazy, DTensors), a path without a checkpoint or with a damaged one, rules that do not
            fit.
        TypeError: for any other argument; for sparse values, and quantised ones of a module.
        OSError: for files that cannot be read.

    >>> import torchinit
    >>> rules = {"**.bias": "zeros", "**": torchinit.Normal(0.02)}
    >>> model = torchinit.init_model_(torch.nn.Linear(64, 32), rules, seed=0)
    >>> report = torchinit.report_model(model, rules)
    >>> [(row.name, row.role, str(row.law)) for row in report]
    [('weight', 'other', 'normal'), ('bias', 'bias', 'zeros')]
    >>> report.outliers
    []
    """
    with torch.device("cpu"), serial_if_forked():  # whatever the caller's default is
        title, sources, unmeasured = inputs_of(model, rules, seed=seed, formats=formats)
        beside = None if against is None else inputs_of(against, None, "against")
        rows, other = _measured(sources), None
        if beside is not None:
            name, others, their = beside
            other = ModelReport(name, _measured(others), None, their)
        return ModelReport(title, rows, other, unmeasured)


def judge_values(model: nn.Module, build: Callable[[], nn.Module]) -> ModelReport:
    """Checks a model's values against what its constructor asks for, as ``report_model`` does.

    Spectral norms are not measured: they take most of the time, and no check needs them.

    Args:
        model: with values, on any device; built by the same constructor in any way.
        build: the constructor, as ``build_model`` takes it.
    """
    with torch.device("cpu"), serial_if_forked():
        sources = [_quick(source) for source in inputs_by_constructor(model, build)]
        return ModelReport(type(model).__name__, _measured(sources))


def _quick(source: ReportInput) -> ReportInput:
    """The same to be measured quickly: on the CPU, without norms where those judge nothing."""
    has_norms = source.intended is not None and source.intended.orthogonal
    return source._replace(load=lambda: source.load().cpu(), has_norms=has_norms)


def _measured(sources: Sequence[ReportInput]) -> list[ReportRow]:
    sizes = [math.prod(source.shape) * source.dtype.itemsize for source in sources]
    rows = []
    with (
        plainly(),
        progress("measuring", sum(sizes), least=_LONG) as advance,
        ThreadPoolExecutor(torch.get_num_threads()) as threads,
    ):
        for source, size in zip(sources, sizes, strict=True):
            rows.append(row_of(source, threads))
            advance(size)
    return rows
