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

SHRINKAGE = 4.0
"""Windows that the family's median spread is worth, beside a member's own."""
LEAST_SPREAD = 0.25
"""Of log distances: a quarter more or less is what sampling alone does."""


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


def log_scores(values: Floats, floor: float) -> Floats:
    """Standard scores of the last distances among the past ones, member by member of a family.

    Distances are skewed to the right and of one order of magnitude, so that their logarithms are judged. A
    dozen windows tell a spread badly: it is shrunk towards the median spread of the family.

    Args:
        values: Distances >= 0 over [windows, members], the judged window last.
        floor: Added to all: distances below it are noise.

    Returns:
        One score a member, in standard deviations of a new window's log distance.
    """
    logs = np.log(values + floor)
    past, windows = logs[:-1], len(logs) - 1
    variance = past.var(axis=0, ddof=1)
    pooled = (windows - 1) * variance + SHRINKAGE * np.median(np.sqrt(variance)) ** 2
    spread = np.maximum(np.sqrt(pooled / (windows - 1 + SHRINKAGE)), LEAST_SPREAD)
    scores: Floats = (logs[-1] - past.mean(axis=0)) / (spread * np.sqrt(1 + 1 / windows))
    return scores
