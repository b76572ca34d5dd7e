"""The tables of a report, by role and in full, and its outliers in words."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence

from torchinit.errors import counted
from torchinit.reporting.outliers import Outlier
from torchinit.reporting.roles import ROLES
from torchinit.reporting.rows import ReportRow
from torchinit.reporting.stored import Unmeasured
from torchinit.text_table import text_table
from torchinit.untrusted import printable

WIDTH = 100  # of the tables
_ROLE_HEADS = (
    "role", "count", "shape", "fit", "mean", "std", "gain", "norm",
)  # fmt: skip
_HEADS = (
    "parameter", "shape", "fit", "mean", "std", "kurt", "min", "max", "zeros", "norm", "orth",
)  # fmt: skip


def table_by_role(rows: Sequence[ReportRow], wrong: Collection[str]) -> list[str]:
    """One line for each role, with the smallest and the largest number of its rows.

    Args:
        rows: of the report.
        wrong: the names of outliers, whose roles are marked.
    """
    cells: list[tuple[str, ...]] = [_ROLE_HEADS]
    for role in ROLES:
        if alike := [row for row in rows if row.role == role]:
            mark = "!" if any(row.name in wrong for row in alike) else ""
            moments = [row.moments for row in alike]
            cells.append((
                f"{mark}{role}", str(len(alike)),
                _all_of([_shape(row) for row in alike], "shapes", 12),
                _all_of([str(row.law) for row in alike], "kinds"),
                _range(_short(one.mean, 1) for one in moments),
                _range(_short(one.std, 3) for one in moments),
                _range(_short(row.gain) for row in alike if row.gain),
                _range(_norm(row) for row in alike),
            ))  # fmt: skip
    return text_table(cells, left=4, most=WIDTH)


def full_table(rows: Sequence[ReportRow], wrong: Collection[str]) -> list[str]:
    """One line for each row; the names of a stack stand below its own."""
    cells: list[tuple[str, ...]] = [_HEADS]
    for row in rows:
        name = row.name.removeprefix(_head(row)).removesuffix(".weight") or row.name
        space = "  " if _head(row) else ""
        moments = row.moments
        cells.append((
            f"!{space[1:]}{name}" if row.name in wrong else f"{space}{name}",
            _shape(row), str(row.law), _short(moments.mean), _short(moments.std, 3),
            _kurtosis(moments.kurtosis), _short(moments.low), _short(moments.high),
            _share(moments.zeros, moments.numel), _norm(row),
            "" if row.orthogonality is None else _short(row.orthogonality, 1),
        ))  # fmt: skip
    heads, *found = text_table(cells, left=3, most=WIDTH)
    lines, head = [heads], ""
    for row, line in zip(rows, found, strict=True):
        if _head(row) not in ("", head):
            lines.append(f"{printable(_head(row)[:-1])}:")
        head = _head(row)
        lines.append(line)
    return lines


def verdict(
    rows: Sequence[ReportRow], outliers: Sequence[Outlier], false_alarm_rate: float
) -> Iterator[str]:
    """The outliers in words."""
    count = counted(len(rows), "parameter")
    if any(row.name != row.parameter for row in rows):
        count += " and parts"
    rate = f" (false alarm: 1 in {1 / false_alarm_rate:,.0f} correct models)" if rows else ""
    if not outliers:
        yield f"{count}, no outliers{rate}"
        return
    yield f"{counted(len(outliers), 'outlier')} among {count}{rate}:"
    for outlier in outliers:
        yield f"  {printable(outlier.name)}"
        yield from (f"    {printable(problem)}" for problem in outlier.problems)


def not_measured(unmeasured: Sequence[Unmeasured], of: str = "") -> Iterator[str]:
    """The tensors without a row, and why; none without any."""
    if unmeasured:
        yield f"{len(unmeasured)}{of} not measured:"
        yield from (f"  {printable(one)}" for one in unmeasured)


def _head(row: ReportRow) -> str:
    """The start of a name that all layers of its stack share; empty without one."""
    stack, depth = row.place.stack, row.place.depth
    start = f"{stack}." if stack else ""
    return start if depth and row.name.startswith(f"{start}{depth[0]}") else ""


def _shape(row: ReportRow) -> str:
    return "x".join(map(str, row.shape))


def _all_of(texts: Sequence[str], what: str, most: int = 20) -> str:
    """The text, if all are equal; two, in so many characters at most; or how many there are."""
    several = sorted(set(texts), key=texts.count, reverse=True)
    joined = ", ".join(several)
    is_short = len(several) == 1 or (len(several) == 2 and len(joined) <= most)
    return joined if is_short else f"{len(several)} {what}"


def _range(texts: Iterable[str]) -> str:
    """The smallest and the largest of numbers, as they are written; one if they are the same."""
    found = [text for text in texts if text]
    if not found:
        return ""
    low, high = min(found, key=_ordered), max(found, key=_ordered)
    return low if low == high else f"{low}…{high}"


def _ordered(text: str) -> float:
    return math.inf if text == "nan" else float(text)


def _norm(row: ReportRow) -> str:
    return "" if row.spectral is None else f"{row.spectral:.2f}"


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
