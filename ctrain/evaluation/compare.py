"""Paired comparison of two models by blocks of time: rows of one day are not independent evidence."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from ctrain.records import ModelScore
from ctrain.spec.evaluation import HIGHER_IS_BETTER


@dataclass(frozen=True, slots=True)
class PairedInterval:
    """Mean difference over blocks with its t interval; positive means the candidate is better."""

    difference: float
    low: float
    high: float
    blocks: int


def paired_interval(
    candidate: ModelScore, champion: ModelScore, metric: str, confidence: float
) -> PairedInterval | None:
    """Compare two models on the blocks that both could be scored on.

    Args:
        candidate: Scores by block.
        champion: Scores on the same blocks.
        metric: Name; for metrics where lower is better the sign is turned.
        confidence: Level of the two-sided interval.

    Returns:
        None with fewer than two common blocks: a single block bounds nothing.
    """
    sign = 1.0 if metric in HIGHER_IS_BETTER else -1.0
    other = {score.block: score.metrics for score in champion.blocks}
    differences = np.array(
        [
            sign * (score.metrics[metric] - other[score.block][metric])
            for score in candidate.blocks
            if metric in score.metrics and metric in other.get(score.block, {})
        ]
    )
    count = len(differences)
    if count < 2:
        return None
    mean = float(differences.mean())
    error = float(differences.std(ddof=1)) / count**0.5
    reach = float(stats.t.ppf((1 + confidence) / 2, count - 1)) * error
    return PairedInterval(mean, mean - reach, mean + reach, count)
