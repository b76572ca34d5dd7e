"""A report as JSON and as text: a heading, a table of times and the outcome of the checks."""

from __future__ import annotations

import math
from typing import Any

import torch

from torchinit.commands.report import Report
from torchinit.commands.ways import Timing
from torchinit.text_table import text_table
from torchinit.version import __version__

_HEADS = ("", "seconds", "GB/s", "times faster", "times zeroing")


def to_json(report: Report) -> dict[str, Any]:
    """Returns the report as numbers and strings."""
    return {
        "version": __version__,
        "torch": torch.__version__,
        "model": report.model,
        "dtype": report.dtype,
        "device": report.device,
        "seed": report.seed,
        "parameters": report.parameters,
        "values": report.values,
        "bytes": report.nbytes,
        "ways": {timing.name: _json_time(report, timing) for timing in _rows(report)},
        "checks": {
            "passed": not report.failures,
            "failures": {
                way: [{"name": one.name, "problems": one.problems} for one in failures]
                for way, failures in report.failures.items()
            },
            "false_alarm_rate": report.false_alarm_rate,
        },
    }


def _rows(report: Report) -> list[Timing]:
    return [*report.timings, report.zero]


def _json_time(report: Report, timing: Timing) -> dict[str, float]:
    return {
        "seconds": timing.seconds,
        "gb_per_second": report.rate(timing),
        "times_faster_than_plain": report.speed(timing),
        "times_as_long_as_zeroing": report.beside_zero(timing),
    }


def to_text(report: Report) -> str:
    """Returns the report as a heading, a table and the outcome of the checks."""
    lines = [
        f"{report.model}: {report.values:,} values in {report.parameters} parameters, "
        f"{report.dtype}, {_significant(report.nbytes / 1e9)} GB",
        f"on {report.device}; seed {report.seed}",
        "",
        *_table(report),
        "",
        *_verdict(report),
    ]
    return "\n".join(lines)


def _table(report: Report) -> list[str]:
    rows = [
        (
            timing.title,
            _significant(timing.seconds),
            _significant(report.rate(timing)),
            _significant(report.speed(timing)),
            _significant(report.beside_zero(timing)),
        )
        for timing in _rows(report)
    ]
    return text_table([_HEADS, *rows], left=1)


def _significant(number: float) -> str:
    """Three significant digits without an exponent; more before the point if need be."""
    if number <= 0:
        return "0"
    return f"{number:.{max(2 - math.floor(math.log10(number)), 0)}f}"


def _verdict(report: Report) -> list[str]:
    if report.failures:
        titles = {timing.name: timing.title for timing in report.timings}
        lines = []
        for way, failures in report.failures.items():
            lines.append(
                f"FAILED, {titles[way]}: {len(failures)} of {report.parameters} parameters"
            )
            lines += [f"  {failure.name}: {'; '.join(failure.problems)}" for failure in failures]
        return lines
    checked = f"all {report.parameters} parameters pass, each of {len(report.judged)} times"
    return [
        f"{checked}: finite, within bounds, and with the",
        "mean, std and distribution that the model's constructor asks for",
        f"(false alarm: 1 in {1 / report.false_alarm_rate:,.0f} correct runs)",
    ]
