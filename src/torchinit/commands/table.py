"""A report as JSON and as text: a heading, a table of times and the outcome of the checks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from torchinit.commands.report import Report
from torchinit.commands.timing import Timing
from torchinit.version import __version__


def to_json(report: Report) -> dict[str, Any]:
    """Returns the report as numbers and strings."""

    def row(timing: Timing) -> dict[str, Any]:
        return {
            "values": timing.values,
            "bytes": timing.nbytes,
            "torchinit": _json_time(timing, timing.seconds),
            "torch_nn_init": {
                **_json_time(timing, timing.torch_seconds),
                "measured_on_values": timing.torch_slice,
                "extrapolated": timing.torch_slice < timing.values,
            },
            "zero_": _json_time(timing, timing.zero_seconds),
            "speed_against_torch_nn_init": timing.torch_seconds / timing.seconds,
            "speed_against_zero_": timing.zero_seconds / timing.seconds,
        }

    return {
        "version": __version__,
        "torch": torch.__version__,
        "model": report.model,
        "dtype": report.dtype,
        "device": report.device,
        "seed": report.seed,
        "parameters": report.parameters,
        "schemes": [
            {"scheme": timing.scheme, "route": timing.route, **row(timing)}
            for timing in report.timings
        ],
        "total": row(report.total),
        "checks": {
            "passed": not report.failures,
            "failures": [vars(failure) for failure in report.failures],
            "false_alarm_rate": report.false_alarm_rate,
        },
    }


def _json_time(timing: Timing, seconds: float) -> dict[str, float]:
    return {"seconds": seconds, "gb_per_second": timing.rate(seconds)}


def to_text(report: Report) -> str:
    """Returns the report as a heading, a table and the outcome of the checks."""
    total = report.total
    largest_slice = max(timing.torch_slice for timing in report.timings)
    lines = [
        f"{report.model}: {total.values:,} values in {report.parameters} parameters, "
        f"{report.dtype}, {_significant(total.nbytes / 1e9)} GB",
        f"on {report.device}; seed {report.seed}",
        "",
        *_table([*report.timings, total]),
        "",
        f"* measured on a slice, the first {largest_slice:,} values at most of each scheme; "
        "seconds extrapolated",
        "",
        *_verdict(report),
    ]
    return "\n".join(lines)


def _table(timings: Sequence[Timing]) -> list[str]:
    groups = ("", "", "", "torchinit", "", "torch.nn.init*", "", "zero_", "", "speed against", "")
    heads = ("scheme", "route", "values", *(("seconds", "GB/s") * 3), "nn.init", "zero_")
    rows = [
        (
            timing.scheme,
            timing.route,
            f"{timing.values:,}",
            *_time_cells(timing, timing.seconds),
            *_time_cells(timing, timing.torch_seconds),
            *_time_cells(timing, timing.zero_seconds),
            f"{_significant(timing.torch_seconds / timing.seconds)}x",
            f"{_significant(timing.zero_seconds / timing.seconds)}x",
        )
        for timing in timings
    ]
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    # A group's title stands above its two columns.
    spans = [*widths[:3], *(a + 2 + b for a, b in zip(widths[3::2], widths[4::2], strict=True))]
    titles = [*groups[:3], *groups[3::2]]
    lines = ["  ".join(t.rjust(w) for t, w in zip(titles, spans, strict=True))]
    for row in (heads, *rows):
        left = [cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)]
        right = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        lines.append("  ".join(left + right))
    return lines


def _time_cells(timing: Timing, seconds: float) -> tuple[str, str]:
    return _significant(seconds), _significant(timing.rate(seconds))


def _significant(number: float) -> str:
    """Three significant digits without an exponent; more before the point if need be."""
    if number <= 0:
        return "0"
    return f"{number:.{max(2 - math.floor(math.log10(number)), 0)}f}"


def _verdict(report: Report) -> list[str]:
    if report.failures:
        return [
            f"FAILED: {len(report.failures)} of {report.parameters} parameters",
            *(f"  {failure.name}: {'; '.join(failure.problems)}" for failure in report.failures),
        ]
    return [
        f"all {report.parameters} parameters pass: filled, finite, within their bounds, mean and "
        "std within 6 standard errors",
        f"(correct fills fail this in one run of {1 / report.false_alarm_rate:,.0f})",
    ]
