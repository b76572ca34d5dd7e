"""A report as a table of at most 100 columns."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torchinit.reporting.outliers import ReportResults
from torchinit.reporting.rows import ReportRow
from torchinit.text_table import text_table

WIDTH = 100
_HEADS = (
    "parameter", "shape", "law", "mean", "std", "kurt", "min", "max", "zeros", "norm", "orth",
)  # fmt: skip


def table_of(results: ReportResults) -> str:
    """The table, and below it the offenders.

    Names in layers stand below the name of their stack, without it.
    """
    wrong = {offender.name for offender in results.offenders}
    cells = [_HEADS, *(_cells(row, row.name in wrong) for row in results.rows)]
    heads, *rows = text_table(cells, left=3, most=WIDTH)
    lines = [heads]
    stack = ""
    for row, line in zip(results.rows, rows, strict=True):
        if row.place.stack != stack:
            stack = row.place.stack
            lines += [f"{stack}:"] if stack else []
        lines.append(line)
    return "\n".join([*lines, "", *verdict(results)])


def verdict(results: ReportResults) -> Iterable[str]:
    """The offenders in words."""
    count = f"{len(results.rows)} parameters and parts"
    rate = (
        f"a right model has any in one of {1 / results.false_alarm_rate:,.0f}"
        if len(results.rows)
        else ""
    )
    if not results.offenders:
        yield f"{count}, no offenders" + (f" ({rate})" if rate else "")
        return
    yield f"{len(results.offenders)} offenders of {count} ({rate}):"
    for offender in results.offenders:
        yield f"  {offender.name}"
        for problem in offender.problems:
            yield f"    {problem}"


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
