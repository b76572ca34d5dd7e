"""What a report found, as the table and the picture show it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torchinit.reporting.laws import ALPHA
from torchinit.reporting.offenders import COMPARISONS, Offender
from torchinit.reporting.rows import ReportRow


class Results(NamedTuple):
    """All of it.

    Attributes:
        title: what was measured.
        rows: one for each parameter or part of one, in the model's order.
        offenders: among them.
        against: of another model, to be shown beside; None without.
    """

    title: str
    rows: Sequence[ReportRow]
    offenders: Sequence[Offender]
    against: Results | None

    @property
    def false_alarm_rate(self) -> float:
        """How often a right model has an offender, at most: the sum over all comparisons."""
        return COMPARISONS * ALPHA * len(self.rows)
