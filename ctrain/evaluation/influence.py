"""Intervals of a metric by blocks of time: what each row adds to it at the margin, summed by block.

Every metric here is a smooth function of sums over rows, so its error is that of the sum of its rows'
influences; rows of one block are not independent, so the blocks are what varies. One pass over the rows,
whatever the number of blocks.

Source: Hampel, The influence curve (1974); Obuchowski, Nonparametric analysis of clustered ROC curve
data (1997).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from ctrain.evaluation.metrics import CALIBRATION_BINS, CostMatrix, log_losses
from ctrain.evaluation.ranking import Floats, Ranking

MEANS = ("log_loss", "brier", "accuracy", "positive_rate", "value")
RATIOS = ("f1", "precision", "true_positive_rate", "false_positive_rate")
RANKS = ("auc", "average_precision")
NUMBERS = ("rmse", "mae")
INFLUENCES = (*RANKS, *RATIOS, *MEANS, "ece", *NUMBERS)


@dataclass(frozen=True, slots=True)
class BlockInterval:
    """A metric on all rows, with an interval whose unit is the block."""

    value: float
    low: float | None
    """None with fewer than two blocks: a single block bounds nothing."""
    high: float | None
    blocks: int


def influence(
    metric: str,
    labels: npt.NDArray[Any],
    predictions: npt.NDArray[Any],
    threshold: float = 0.5,
    costs: CostMatrix | None = None,
) -> tuple[float, Floats] | None:
    """A metric's value and each row's influence on it, shape [B], which sums to 0.

    Args:
        metric: Of `INFLUENCES`.
        labels: 0 or 1, or finite numbers for `NUMBERS`, shape [B].
        predictions: Finite, shape [B]; probabilities but for `NUMBERS`.
        threshold: Probability at and above which the decision is positive.
        costs: For `value`.

    Returns:
        None where the metric has no value: no rows, one class, no decision of the kind it counts.
    """
    assert metric in INFLUENCES, metric
    if not len(labels):
        return None
    truth, scores = np.asarray(labels, np.float64), np.asarray(predictions, np.float64)
    if metric in NUMBERS:
        return _of_numbers(metric, truth - scores)
    if metric in RANKS:
        return _of_ranking(metric, truth, scores)
    decided = (scores >= threshold).astype(np.float64)
    if metric in RATIOS:
        return _ratio(*_parts(metric, truth, decided))
    if metric == "ece":
        return _of_calibration(truth, scores)
    return _mean(_row_values(metric, truth, scores, decided, costs))


def block_interval(
    value: float, influences: Floats, blocks: npt.NDArray[np.int64], confidence: float = 0.95
) -> BlockInterval:
    """Interval of a metric from its rows' influences.

    A block pulls the metric towards itself by its share of the rows, and so hides as much of its own
    deviation: that is put back, which few blocks and blocks of unlike sizes need.

    Source: Bell and McCaffrey, Bias reduction in standard errors for linear regression with multi-stage
    samples (2002), the estimator called CR3.

    Args:
        value: The metric on all rows.
        influences: Shape [B].
        blocks: Number of each row's block, 0 and above, shape [B].
        confidence: Level of the two-sided t interval.
    """
    rows = np.bincount(blocks)
    present = rows > 0
    count = int(present.sum())
    if count < 2:
        return BlockInterval(value, None, None, count)
    sums = np.bincount(blocks, weights=influences)[present]
    error = float(np.sqrt(np.square(sums / (1 - rows[present] / rows.sum())).sum()))
    reach = error * float(stats.t.ppf((1 + confidence) / 2, count - 1))
    return BlockInterval(value, value - reach, value + reach, count)


def _mean(values: Floats) -> tuple[float, Floats]:
    mean = float(values.mean())
    return mean, (values - mean) / len(values)


def _row_values(
    metric: str, truth: Floats, scores: Floats, decided: Floats, costs: CostMatrix | None
) -> Floats:
    """What the metric is the mean of."""
    if metric == "log_loss":
        return log_losses(truth, scores)
    if metric == "brier":
        return (scores - truth) ** 2
    if metric == "accuracy":
        return np.where(decided == truth, 1.0, 0.0)
    if metric == "positive_rate":
        return decided
    assert costs is not None, "value needs costs"
    return costs.values(truth, decided)


def _parts(metric: str, truth: Floats, decided: Floats) -> tuple[Floats, Floats]:
    """Counted rows, and the rows that they are a share of."""
    if metric == "f1":
        return 2 * truth * decided, truth + decided
    if metric == "precision":
        return truth * decided, decided
    if metric == "true_positive_rate":
        return truth * decided, truth
    return (1 - truth) * decided, 1 - truth


def _ratio(counted: Floats, of: Floats) -> tuple[float, Floats] | None:
    total = float(of.sum())
    if total == 0:
        return None
    ratio = float(counted.sum()) / total
    return ratio, (counted - ratio * of) / total


def _of_ranking(metric: str, truth: Floats, scores: Floats) -> tuple[float, Floats] | None:
    if truth.min() == truth.max():
        return None
    ranking = Ranking(truth, scores)
    if metric == "auc":
        return ranking.auc(), ranking.auc_influence(truth)
    return ranking.average_precision(), ranking.average_precision_influence(truth)


def _of_calibration(truth: Floats, scores: Floats) -> tuple[float, Floats]:
    """Near perfect calibration the error is not smooth: its interval is then too wide rather than narrow."""
    bins = np.clip((scores * CALIBRATION_BINS).astype(np.int64), 0, CALIBRATION_BINS - 1)
    gap = np.bincount(bins, weights=scores - truth, minlength=CALIBRATION_BINS)
    return _mean(np.sign(gap)[bins] * (scores - truth))


def _of_numbers(metric: str, error: Floats) -> tuple[float, Floats]:
    if metric == "mae":
        return _mean(np.abs(error))
    square, influences = _mean(np.square(error))
    root = float(np.sqrt(square))
    return root, influences / (2 * root) if root else influences
