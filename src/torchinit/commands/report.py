"""Everything a run of the demo found out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torchinit.commands.ways import Timing
from torchinit.reporting.offenders import Offender
from torchinit.reporting.report import ModelReport


@dataclass(frozen=True)
class Report:
    """Everything the demo found out.

    Attributes:
        model, dtype, device, seed: what was built, and how.
        parameters, values, nbytes: of the model.
        timings: of the ways; the first is what people do.
        zero: of allocating and zeroing the memory.
        judged: the reports of the models that torchinit filled, by the name of the way.
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
    judged: Mapping[str, ModelReport]

    @property
    def false_alarm_rate(self) -> float:
        """How often a run of correct fills fails, at most."""
        return sum(report.false_alarm_rate for report in self.judged.values())

    @property
    def failures(self) -> dict[str, Sequence[Offender]]:
        """The parameters whose values are not as they should be, by the name of the way."""
        return {way: report.offenders for way, report in self.judged.items() if report.offenders}

    def rate(self, timing: Timing) -> float:
        """GB/s that a time comes to."""
        return self.nbytes / timing.seconds / 1e9

    def speed(self, timing: Timing) -> float:
        """How often a way could be taken in the time of the first."""
        return self.timings[0].seconds / timing.seconds

    def beside_zero(self, timing: Timing) -> float:
        """How often the memory could be allocated and zeroed meanwhile."""
        return timing.seconds / self.zero.seconds
