"""Everything a run of the demo found out."""

from __future__ import annotations

from dataclasses import dataclass

from torchinit.commands.checks import FALSE_ALARM, Failure
from torchinit.commands.ways import Timing


@dataclass(frozen=True)
class Report:
    """Everything the demo found out.

    Attributes:
        model, dtype, device, seed: what was built, and how.
        parameters, values, nbytes: of the model.
        timings: of the ways; the first is what people do.
        zero: of allocating and zeroing the memory.
        checked: number of ways whose models were checked.
        statistical_checks: number of means and stds among the checks.
        failures: parameters that failed theirs, by way.
    """

    model: str
    dtype: str
    device: str
    seed: int
    parameters: int
    values: int
    nbytes: int
    timings: list[Timing]
    zero: Timing
    checked: int
    statistical_checks: int
    failures: dict[str, list[Failure]]

    @property
    def false_alarm_rate(self) -> float:
        """How often a run of correct fills fails: a bound on the sum over all checks."""
        return self.statistical_checks * FALSE_ALARM

    def rate(self, timing: Timing) -> float:
        """GB/s that a time comes to."""
        return self.nbytes / timing.seconds / 1e9

    def speed(self, timing: Timing) -> float:
        """How often a way could be taken in the time of the first."""
        return self.timings[0].seconds / timing.seconds

    def beside_zero(self, timing: Timing) -> float:
        """How often the memory could be allocated and zeroed meanwhile."""
        return timing.seconds / self.zero.seconds
