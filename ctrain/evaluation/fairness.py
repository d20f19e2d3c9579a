"""Fairness: how far a rate or a metric differs between named groups, with an interval by blocks of time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from ctrain.evaluation.influence import INFLUENCES, influence
from ctrain.evaluation.metrics import CostMatrix, unusable
from ctrain.evaluation.segment_keys import MISSING, OTHER, SegmentKey
from ctrain.records import SegmentScore, Verdict

MOST_GROUPS = 10
MINIMUM_ROWS = 100
MINIMUM_BLOCKS = 7


def fairness_gaps(
    metric: str,
    labels: npt.NDArray[Any],
    predictions: npt.NDArray[Any],
    groups: SegmentKey,
    blocks: npt.NDArray[np.int64],
    *,
    pairs: Sequence[tuple[str, str]] | None = None,
    allowed: float = 0.1,
    threshold: float = 0.5,
    costs: CostMatrix | None = None,
    confidence: float = 0.95,
) -> tuple[SegmentScore, ...]:
    """Compare a metric between groups, largest gap first.

    Args:
        metric: Of `influence.INFLUENCES`: `positive_rate` (demographic parity), `true_positive_rate` (equal
            opportunity), `false_positive_rate`, or any other.
        labels: 0 or 1, shape [B].
        predictions: Probabilities, shape [B].
        groups: Named groups of the rows; rows without a value, or of a rare one, stand for no group.
        blocks: Block of time of each row, shape [B].
        pairs: Groups to compare; None compares the largest `MOST_GROUPS` with one another.
        allowed: Gap that is tolerated either way.
        threshold: Probability at and above which the decision is positive.
        costs: For the metric `value`.
        confidence: Two-sided level for all pairs together (Bonferroni).

    Returns:
        One record a pair: `value` of the first group, `champion` of the second, their difference. Refused
        if the whole interval is beyond what is allowed, accepted if it is within.
    """
    assert metric in INFLUENCES, metric
    wanted = _pairs(groups) if pairs is None else list(pairs)
    problem = unusable(labels, predictions)
    day = np.unique(blocks, return_inverse=True)[1]
    found = {
        name: None if problem else _Group.of(metric, labels, predictions, groups, name, day, threshold, costs)
        for name in dict.fromkeys(name for pair in wanted for name in pair)
    }
    level = 1 - (1 - confidence) / max(len(wanted), 1)
    gaps = [_gap(metric, groups.name, pair, found, allowed, level, problem) for pair in wanted]
    return tuple(sorted(gaps, key=lambda gap: -abs(gap.difference or 0.0)))


class _Group:
    """One group: its metric, and what each block adds to it at the margin."""

    def __init__(
        self, value: float, sums: npt.NDArray[Any], rows: int, present: npt.NDArray[np.bool_]
    ) -> None:
        self.value, self.sums, self.rows, self.present = value, sums, rows, present

    @classmethod
    def of(
        cls,
        metric: str,
        labels: npt.NDArray[Any],
        predictions: npt.NDArray[Any],
        groups: SegmentKey,
        name: str,
        day: npt.NDArray[np.int64],
        threshold: float,
        costs: CostMatrix | None,
    ) -> _Group | None:
        """None where the group has no rows, or the metric no value on them."""
        if name not in groups.values:
            return None
        mine = groups.codes == groups.values.index(name)
        result = influence(metric, labels[mine], predictions[mine], threshold, costs)
        if result is None:
            return None
        blocks = int(day.max()) + 1
        sums = np.bincount(day[mine], weights=result[1], minlength=blocks)
        present = np.bincount(day[mine], minlength=blocks) > 0
        return cls(result[0], sums, int(mine.sum()), present)


def _pairs(groups: SegmentKey) -> list[tuple[str, str]]:
    counts = np.bincount(groups.codes, minlength=len(groups.values))
    largest = [groups.values[code] for code in np.argsort(-counts, kind="stable").tolist()]
    return list(combinations([name for name in largest if name not in (MISSING, OTHER)][:MOST_GROUPS], 2))


def _gap(
    metric: str,
    key: str,
    pair: tuple[str, str],
    found: dict[str, _Group | None],
    allowed: float,
    level: float,
    problem: str,
) -> SegmentScore:
    name = f"{key}={pair[0]} against {key}={pair[1]}"
    one, other = found[pair[0]], found[pair[1]]
    if one is None or other is None:
        reason = problem or f"{metric} has no value in {pair[0] if one is None else pair[1]}"
        return SegmentScore(name, metric, 0, 0, reason=reason)
    rows, blocks = min(one.rows, other.rows), int((one.present & other.present).sum())
    difference = one.value - other.value
    if rows < MINIMUM_ROWS or blocks < MINIMUM_BLOCKS:
        reason = f"{rows} rows of {blocks} blocks; {MINIMUM_ROWS} of {MINIMUM_BLOCKS} needed"
        return SegmentScore(name, metric, rows, blocks, one.value, other.value, difference, reason=reason)
    either = one.present | other.present
    sums = (one.sums - other.sums)[either]
    count = len(sums)
    error = float(np.sqrt(count / (count - 1) * np.square(sums - sums.mean()).sum()))
    reach = error * float(stats.t.ppf((1 + level) / 2, blocks - 1))
    low, high = difference - reach, difference + reach
    verdict: Verdict = "not_enough_evidence"
    if low > allowed or high < -allowed:
        verdict = "refuse"
    elif low >= -allowed and high <= allowed:
        verdict = "accept"
    reason = f"differs by {difference:+.4f} ({low:+.4f} … {high:+.4f}), allowed {allowed:g}"
    return SegmentScore(
        name, metric, rows, blocks, one.value, other.value, difference, low, high, verdict, reason
    )
