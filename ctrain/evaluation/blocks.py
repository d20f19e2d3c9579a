"""Statistics that one block of time gives of a model. Pure: labels and outputs in, numbers out.

They are what evidence on quality is made of (`evidence`), three a block: a loss that no single row decides,
a loss that forgives the day its level and spread, and the order of the scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special, stats

from ctrain.spec.base import LOWER_IS_BETTER

Floats = npt.NDArray[np.float64]

LOSS_CAP = 4.0
"""Log loss of one row counts up to this: a few sure mistakes must not decide a day."""

RIDGE = 4.0
"""Pull of a day's own intercept and slope towards 0 and 1, in units of Fisher information."""

CLASSIFIER_STATISTICS = ("capped_log_loss", "auc", "adjusted_log_loss")
REGRESSION_STATISTICS = ("root_squared_error", "absolute_error", "rank_correlation")


def block_statistics(labels: npt.NDArray[Any], probabilities: npt.NDArray[Any]) -> dict[str, float]:
    """What one block says of a binary classifier.

    Args:
        labels: 0 or 1, shape [B].
        probabilities: Of the positive class, shape [B].

    Returns:
        `capped_log_loss` (each row at most 4), `auc`, and `adjusted_log_loss`, the same loss after the
        block's own intercept and slope on the logits (ridge-fitted), which is left of the loss when the
        day's level and spread are not the model's fault. The last two are absent where a class is absent;
        all are without rows, or where a probability is not a finite one.
    """
    truth, scores = np.asarray(labels, np.float64), np.asarray(probabilities, np.float64)
    if not len(truth) or not np.isfinite(truth).all() or not np.isfinite(scores).all():
        return {}
    logits = logit(scores)
    values = {"capped_log_loss": _capped_loss(truth, logits)}
    positives = int(truth.sum())
    if 0 < positives < len(truth):
        above = float(stats.rankdata(logits)[truth == 1].sum()) - positives * (positives + 1) / 2
        values["auc"] = above / (positives * (len(truth) - positives))
        values["adjusted_log_loss"] = _capped_loss(truth, _recalibrated(truth, logits))
    return values


def value_statistics(labels: npt.NDArray[Any], predictions: npt.NDArray[Any]) -> dict[str, float]:
    """What one block says of a regression: the analogue of `block_statistics`.

    Args:
        labels: Real values or counts, shape [B].
        predictions: In the label's unit, shape [B].

    Returns:
        `root_squared_error` and `absolute_error` (means, in the label's unit) and `rank_correlation`
        (Spearman), which is absent where labels or predictions are all the same; all are absent without
        rows, or where a value is not finite.
    """
    truth, values = np.asarray(labels, np.float64), np.asarray(predictions, np.float64)
    if not len(truth) or not np.isfinite(truth).all() or not np.isfinite(values).all():
        return {}
    error = values - truth
    found = {
        "root_squared_error": float(np.sqrt(np.mean(error**2))),
        "absolute_error": float(np.mean(np.abs(error))),
    }
    ranks = stats.rankdata(truth), stats.rankdata(values)
    if len(truth) > 1 and all(np.ptp(rank) > 0 for rank in ranks):
        found["rank_correlation"] = float(np.corrcoef(*ranks)[0, 1])
    return found


def harm(judged: Mapping[str, float], against: Mapping[str, float]) -> dict[str, float]:
    """Difference of two models on one block, by statistic or metric: positive where `judged` is worse."""
    return {
        name: (value - against[name] if name in LOWER_IS_BETTER else against[name] - value)
        for name, value in judged.items()
        if name in against
    }


def logit(probabilities: npt.NDArray[Any]) -> Floats:
    """Log odds, with probabilities kept a millionth away from 0 and 1."""
    kept = np.clip(np.asarray(probabilities, np.float64), 1e-6, 1 - 1e-6)
    odds: Floats = np.log(kept / (1 - kept))
    return odds


def _capped_loss(truth: Floats, logits: Floats) -> float:
    loss = np.logaddexp(0.0, np.where(truth == 1, -logits, logits))
    return float(np.minimum(loss, LOSS_CAP).mean())


def _recalibrated(truth: Floats, logits: Floats) -> Floats:
    """Logits after the intercept and slope that fit these rows best, by Newton's method with a ridge."""
    centred = logits - logits.mean()
    level = slope = 0.0
    for _ in range(12):
        probabilities = special.expit(logits + level + slope * centred)
        weights, residuals = probabilities * (1 - probabilities), truth - probabilities
        tilted = weights * centred
        a, b, c = weights.sum() + RIDGE, tilted.sum(), (tilted * centred).sum() + RIDGE
        up, along = residuals.sum() - RIDGE * level, (residuals * centred).sum() - RIDGE * slope
        determinant = a * c - b * b
        steps = ((c * up - b * along) / determinant, (a * along - b * up) / determinant)
        level, slope = level + _bounded(steps[0]), slope + _bounded(steps[1])
        if max(map(abs, steps)) < 1e-7:
            break
    adjusted: Floats = logits + level + slope * centred
    return adjusted


def _bounded(step: float) -> float:
    return max(-2.0, min(2.0, float(step)))
