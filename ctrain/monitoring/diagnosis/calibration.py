"""What is usual in this stream: every statistic is compared with itself in the earlier windows.

A window's *reach* is its distance from the median of the past, in units of the distance of the farthest past
window on the same side. 1 is as far as the past ever went; a new window of the same stream goes beyond
it about once in n + 1 windows, so that a call asks for a margin more, and for an effect that matters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ctrain.monitoring.diagnosis.frames import Floats
from ctrain.records import DiagnosisEvidence


@dataclass(frozen=True)
class Compared:
    """One statistic of the judged window against its past."""

    name: str
    value: float
    usual: float
    limit: float
    """Value from which it counts, on the side that it was asked for."""
    windows: int
    passed: bool

    def evidence(self, text: str, subject: str = "") -> DiagnosisEvidence:
        """As a record."""
        return DiagnosisEvidence(
            self.name, subject, self.value, self.usual, self.limit, self.windows, self.passed, text
        )


def compare(
    name: str, values: Floats, margin: float, effect: float, side: int = 1, *, odd: int = 0
) -> Compared:
    """Compare the last value with those before it.

    Args:
        name: Of the statistic.
        values: Of the past windows, oldest first, and the judged one last.
        margin: Reach from which it counts.
        effect: Least distance from the median that matters at all.
        side: 1 for high values, -1 for low ones.
        odd: Farthest past windows that are passed over, so that one odd window does not blind the stream.
    """
    signed = side * values
    past, value = signed[:-1], float(signed[-1])
    usual = float(np.median(past))
    limit = usual + max(margin * (float(np.sort(past)[-1 - odd]) - usual), effect)
    passed = value > limit
    return Compared(name, side * value, side * usual, side * limit, len(past), passed)


def family_ratios(values: Floats, floor: float) -> tuple[Floats, float]:
    """How many times the farthest past window each member of a family of statistics went.

    Args:
        values: Distances >= 0 over [windows, members], the judged window last.
        floor: Added to all: distances below it are noise.

    Returns:
        Ratio of each member; and, of the largest ratios that each past window shows against the other
        past windows, whichever the member, the second largest: one odd window does not blind the stream.
    """
    raised = values + floor
    past = raised[:-1]
    order = np.sort(past, axis=0)
    # the largest of the others: the second largest for the window that is the largest itself
    others = np.where(past == order[-1], order[-2], order[-1])
    ratios: Floats = raised[-1] / order[-1]
    return ratios, float(np.sort((past / others).max(axis=1))[-2])
