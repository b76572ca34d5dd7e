"""``report_model``: every parameter measured, judged, and drawn in one picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torchinit.native.kernels import serial_if_forked
from torchinit.progress import progress
from torchinit.quantised.formats import BlockFormat
from torchinit.reporting.inputs import ReportInput, inputs_by_constructor, inputs_of
from torchinit.reporting.outliers import FALSE_ALARMS, Outlier, ReportResults, find_outliers
from torchinit.reporting.rows import ReportRow, row_of
from torchinit.reporting.stored import Unmeasured
from torchinit.text_table import text_table
from torchinit.untrusted import printable

WIDTH = 100  # of the table
_HEADS = (
    "parameter", "shape", "law", "mean", "std", "kurt", "min", "max", "zeros", "norm", "orth",
)  # fmt: skip


class ModelReport(Sequence[ReportRow]):
    """Rows, one for each parameter or part of one, in the model's order. Printed, a table.

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
        self._results: ReportResults = ReportResults(title, list(rows), find_outliers(rows), other)

    def __getitem__(self, index: int) -> ReportRow:  # type: ignore[override]
        return self._results.rows[index]

    def __len__(self) -> int:
        return len(self._results.rows)

    def __str__(self) -> str:
        """The table, and below it the outliers; a stack's names stand below its own."""
        rows, wrong = self._results.rows, {outlier.name for outlier in self.offenders}
        cells = [_HEADS, *(_cells(row, row.name in wrong) for row in rows)]
        heads, *found = text_table(cells, left=3, most=WIDTH)
        lines, stack = [heads], ""
        for row, line in zip(rows, found, strict=True):
            if row.place.stack not in ("", stack):
                lines.append(f"{printable(row.place.stack)}:")
            stack = row.place.stack
            lines.append(line)
        return "\n".join([*lines, "", *self._verdict()])

    __repr__ = __str__

    def _verdict(self) -> Iterator[str]:
        """The outliers in words."""
        count = f"{len(self)} parameters and parts"
        odds = f"{1 / self.false_alarm_rate:,.0f}" if self else ""
        rate = f" (a right model has any in one of {odds})" if self else ""
        wrong = f"{len(self.offenders)} offenders of {count}{rate}:"
        yield wrong if self.offenders else f"{count}, no offenders{rate}"
        for outlier in self.offenders:
            yield f"  {printable(outlier.name)}"
            yield from (f"    {printable(problem)}" for problem in outlier.problems)
        for report in (self, *([] if self.against is None else [self.against])):
            if report.unmeasured:
                of = "" if report is self else f" of {printable(report.title)}"
                yield f"{len(report.unmeasured)}{of} not measured:"
                yield from (f"  {printable(one)}" for one in report.unmeasured)

    @property
    def title(self) -> str:
        """What was measured."""
        return self._results.title

    @property
    def offenders(self) -> Sequence[Outlier]:
        """The outliers: parameters whose values are not as intended, or unlike their siblings'."""
        return self._results.outliers

    @property
    def false_alarm_rate(self) -> float:
        """The probability that a correct model has an outlier, at most: the sum over all tests."""
        return FALSE_ALARMS * len(self)

    def save(self, path: str | Path) -> None:
        """Draws the picture.

        Args:
            path: of the file; its suffix is the format: png, pdf, svg.

        Raises:
            ImportError: without matplotlib, which the extra ``report`` installs.
            OSError: if the file cannot be written.
            ValueError: for a suffix that matplotlib does not know.
        """
        from torchinit.reporting.picture import save_picture

        with torch.device("cpu"):
            save_picture(self._results, Path(path))


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
    >>> report.offenders
    []
    """
    with torch.device("cpu"), serial_if_forked():  # whatever the caller's default is
        sources, unmeasured = inputs_of(model, rules, seed=seed, formats=formats)
        others, their = ([], []) if against is None else inputs_of(against, None, "against")
        rows, other = _measured(sources), None
        if against is not None:
            other = ModelReport(_title(against), _measured(others), None, their)
        return ModelReport(_title(model), rows, other, unmeasured)


def judge_values(model: nn.Module, build: Callable[[], nn.Module]) -> ModelReport:
    """Checks a model's values against what its constructor asks for, as ``report_model`` does.

    Spectral norms are not measured: they take most of the time, and no check needs them.

    Args:
        model: with values, on any device; built by the same constructor in any way.
        build: the constructor, as ``build_model`` takes it.
    """
    with torch.device("cpu"), serial_if_forked():
        sources = [_quick(source) for source in inputs_by_constructor(model, build)]
        return ModelReport(_title(model), _measured(sources))


def _quick(source: ReportInput) -> ReportInput:
    """The same to be measured quickly: on the CPU, without norms where those judge nothing."""
    has_norms = source.intended is not None and source.intended.orthogonal
    return source._replace(load=lambda: source.load().cpu(), has_norms=has_norms)


def _measured(sources: Sequence[ReportInput]) -> list[ReportRow]:
    sizes = [math.prod(source.shape) * source.dtype.itemsize for source in sources]
    rows = []
    with (
        progress("measuring", sum(sizes)) as advance,
        ThreadPoolExecutor(torch.get_num_threads()) as threads,
    ):
        for source, size in zip(sources, sizes, strict=True):
            rows.append(row_of(source, threads))
            advance(size)
    return rows


def _title(model: Any) -> str:
    if isinstance(model, nn.Module):
        return type(model).__name__
    if callable(model):
        return str(getattr(model, "__qualname__", type(model).__name__))
    return Path(model).name or str(model)


def _cells(row: ReportRow, is_wrong: bool) -> tuple[str, ...]:
    moments = row.moments
    name = row.name.removesuffix(".weight")
    if row.place.depth:
        rest = row.place.rest.removesuffix(".weight")
        name = f"  {'.'.join(map(str, row.place.depth))}.{rest}".removesuffix(".")
    if is_wrong:
        name = f"!{name.removeprefix(' ')}"
    return (
        name, "x".join(map(str, row.shape)), str(row.law),
        _short(moments.mean), _short(moments.std, 3), _kurtosis(moments.kurtosis),
        _short(moments.low), _short(moments.high), _share(moments.zeros, moments.numel),
        "" if row.spectral is None else f"{row.spectral:.2f}",
        "" if row.orthogonality is None else _short(row.orthogonality, 1),
    )  # fmt: skip


def _kurtosis(value: float) -> str:
    return "" if not value else f"{value:.2f}" if abs(value) < 100 else f"{value:.0e}"


def _share(part: int, count: int) -> str:
    if not part:
        return ""
    share = 100 * part / count
    return f"{share:.0f}%" if share >= 1 else "<1%"


def _short(value: float, digits: int = 2) -> str:
    """A number in few characters."""
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    size = abs(value)
    if 1e-3 <= size < 10 ** (digits + 1):
        places = max(digits - 1 - math.floor(math.log10(size)), 0)
        text = f"{value:.{places}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return f"{mantissa}e{int(exponent)}"
