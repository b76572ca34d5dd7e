"""Everything a run of the demo found out."""

from __future__ import annotations

from dataclasses import dataclass

from torchinit.commands.checks import FALSE_ALARM, Failure
from torchinit.commands.timing import Timing


@dataclass(frozen=True)
class Report:
    """Everything the demo found out."""

    model: str
    dtype: str
    device: str
    seed: int
    parameters: int
    timings: list[Timing]
    statistical_checks: int
    failures: list[Failure]

    @property
    def total(self) -> Timing:
        """The schemes' times added up."""
        rows = self.timings
        return Timing(
            scheme="total",
            route="",
            values=sum(row.values for row in rows),
            nbytes=sum(row.nbytes for row in rows),
            seconds=sum(row.seconds for row in rows),
            torch_seconds=sum(row.torch_seconds for row in rows),
            torch_slice=sum(row.torch_slice for row in rows),
            zero_seconds=sum(row.zero_seconds for row in rows),
        )

    @property
    def false_alarm_rate(self) -> float:
        """How often a run of correct fills fails: a bound on the sum over all checks."""
        return self.statistical_checks * FALSE_ALARM
