"""Metrics of a classifier: what its scores lead one to expect, and what the labels then show."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ctrain.evaluation.influence import influence
from ctrain.evaluation.metrics import log_losses, unusable
from ctrain.evaluation.ranking import Floats, Ranking

ESTIMATES = ("accuracy", "auc", "f1", "log_loss", "brier", "prevalence")
"""`prevalence` is the share of positive labels."""


def expected_metrics(scores: Floats, chances: Floats, threshold: float) -> dict[str, tuple[float, float]]:
    """Expectation of each metric, and its variance by the chance of the labels alone.

    Args:
        scores: What the model said, in 0 to 1, shape [B].
        chances: Calibrated chance of a positive label, shape [B].
        threshold: Probability at and above which the decision is positive.
    """
    raw, decided = np.asarray(scores, np.float64), (scores >= threshold).astype(np.float64)
    noise, size = chances * (1 - chances), len(raw)
    ones, zeros = np.ones(size), np.zeros(size)

    def mean(if_positive: Floats, if_negative: Floats) -> tuple[float, float]:
        value = np.mean(chances * if_positive + (1 - chances) * if_negative)
        return float(value), float(np.sum(noise * (if_positive - if_negative) ** 2)) / size**2

    total = float(decided.sum() + chances.sum())
    f1 = 2 * float(np.dot(decided, chances)) / total
    return {
        "accuracy": mean(decided, 1 - decided),
        "auc": _expected_auc(raw, chances, noise),
        "f1": (f1, float(np.sum(noise * (2 * decided - f1) ** 2)) / total**2),
        "log_loss": mean(log_losses(ones, raw), log_losses(zeros, raw)),
        "brier": mean((1 - raw) ** 2, raw**2),
        "prevalence": mean(ones, zeros),
    }


def _expected_auc(raw: Floats, chances: Floats, noise: Floats) -> tuple[float, float]:
    ranking = Ranking(chances, raw)
    pairs, own = ranking.positives * ranking.negatives, float(noise.sum())
    if pairs <= own:
        return 0.5, 0.25
    auc = (ranking.auc() * pairs - own / 2) / (pairs - own)  # a row is no pair with itself
    below, over = ranking.placements()
    moves = (below - auc) / ranking.positives - (over - auc) / ranking.negatives
    return auc, float(np.sum(noise * moves**2))


def true_metrics(scores: npt.NDArray[Any], labels: npt.NDArray[Any], threshold: float) -> dict[str, float]:
    """The metrics of `ESTIMATES` once the labels are there; those without a value are left out."""
    if unusable(labels, scores):
        return {}
    found = {name: influence(name, labels, scores, threshold) for name in ESTIMATES[:-1]}
    values = {name: result[0] for name, result in found.items() if result is not None}
    return values | {"prevalence": float(np.mean(labels))}
