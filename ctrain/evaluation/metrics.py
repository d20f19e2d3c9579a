"""Metrics of a binary classifier. Pure: labels and probabilities in, numbers out."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn import metrics as sk

CALIBRATION_BINS = 15
PROBABILITY_FLOOR = 1e-7


def binary_metrics(
    labels: npt.NDArray[Any], probabilities: npt.NDArray[Any], threshold: float
) -> dict[str, float]:
    """AUC, F1, log loss, Brier score and expected calibration error.

    Args:
        labels: 0 or 1, shape [B].
        probabilities: Of the positive class, shape [B].
        threshold: Probability at and above which the decision is positive, for F1.

    Returns:
        Metrics by name. AUC is absent where only one class is there; all are absent without rows.
    """
    if not len(labels):
        return {}
    truth = np.asarray(labels, dtype=np.int64)
    scores = np.clip(np.asarray(probabilities, np.float64), PROBABILITY_FLOOR, 1 - PROBABILITY_FLOOR)
    decided = (np.asarray(probabilities, np.float64) >= threshold).astype(np.int64)
    values = {
        "f1": sk.f1_score(truth, decided, zero_division=0.0),
        "log_loss": sk.log_loss(truth, scores, labels=[0, 1]),
        "brier": float(np.mean((scores - truth) ** 2)),
        "ece": calibration_error(truth, scores),
    }
    if 0 < truth.sum() < len(truth):
        values["auc"] = sk.roc_auc_score(truth, scores)
    return {name: float(value) for name, value in values.items()}


def calibration_error(labels: npt.NDArray[Any], probabilities: npt.NDArray[Any]) -> float:
    """Expected calibration error over equal-width bins: mean |share of positives - mean probability|.

    Source: Naeini et al., Obtaining well calibrated probabilities using Bayesian binning (2015).
    """
    bins = np.minimum((probabilities * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    count = np.bincount(bins, minlength=CALIBRATION_BINS)
    gap = np.bincount(bins, weights=probabilities - labels, minlength=CALIBRATION_BINS)
    return float(np.abs(gap[count > 0]).sum() / len(labels))
