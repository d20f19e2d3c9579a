"""Metrics of a binary classifier. Pure: labels and probabilities in, numbers out.

A metric that cannot be computed has no value and a named reason (`Metrics.missing`); it never takes the
others with it. Regression, multi-class and user metrics stand in their own files, with the same outcome;
`catalogue` says of each name which way is better and what it needs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ctrain.evaluation.ranking import Floats, Ranking

CALIBRATION_BINS = 15
PROBABILITY_FLOOR = 1e-7
ROUNDING = 1e-6
"""How far a probability may lie outside 0 to 1: float32 rounds."""

BINARY = ("auc", "average_precision", "f1", "log_loss", "brier", "ece", "accuracy", "value")

_USUAL = BINARY[:6]

NO_ROWS = "no_rows"
ONE_CLASS = "one_class"
LABELS_UNUSABLE = "labels_unusable"
PREDICTIONS_NOT_FINITE = "predictions_not_finite"
OUTSIDE_0_1 = "predictions_outside_0_1"
WEIGHTS_UNUSABLE = "weights_unusable"
NO_COSTS = "no_costs"


@dataclass(frozen=True, slots=True)
class Metrics:
    """Metrics by name, and why those that were asked for have no value."""

    values: dict[str, float]
    missing: dict[str, str] = field(default_factory=dict)
    """Reason by metric: `no_rows`, `one_class`, `predictions_not_finite` ..."""


@dataclass(frozen=True, slots=True)
class CostMatrix:
    """What one row is worth by its label and decision, in the business's unit; costs are negative."""

    true_positive: float = 0.0
    false_positive: float = 0.0
    false_negative: float = 0.0
    true_negative: float = 0.0

    def values(self, truth: Floats, decided: Floats) -> Floats:
        """Value of each row, shape [B]; labels and decisions are 0 or 1."""
        missed = self.true_negative + (self.false_negative - self.true_negative) * truth
        acted = self.false_positive + (self.true_positive - self.false_positive) * truth
        return np.where(decided == 1, acted, missed)


@dataclass(frozen=True, slots=True)
class CalibrationBin:
    """Rows whose probability lies in one of the equal-width bins."""

    low: float
    high: float
    rows: float
    """Number, or weight, of rows."""
    predicted: float
    """Mean probability."""
    positive: float
    """Share of positives."""


def binary_metrics(
    labels: npt.NDArray[Any], probabilities: npt.NDArray[Any], threshold: float
) -> dict[str, float]:
    """AUC, average precision, F1, log loss, Brier score and expected calibration error.

    Args:
        labels: 0 or 1, shape [B].
        probabilities: Of the positive class, shape [B].
        threshold: Probability at and above which the decision is positive, for F1.

    Returns:
        Metrics by name. AUC and average precision are absent where only one class is there; all are absent
        without rows, or where any probability is not finite.
    """
    return score_binary(labels, probabilities, threshold, metrics=_USUAL).values


def score_binary(
    labels: npt.NDArray[Any],
    probabilities: npt.NDArray[Any],
    threshold: float,
    *,
    weights: npt.NDArray[Any] | None = None,
    costs: CostMatrix | None = None,
    metrics: Iterable[str] = BINARY,
) -> Metrics:
    """Compute the metrics asked for, with a reason for each that has no value.

    Args:
        labels: 0 or 1, shape [B].
        probabilities: Of the positive class, shape [B].
        threshold: Probability at and above which the decision is positive.
        weights: Of the rows, finite and not negative, shape [B]; None weighs all alike.
        costs: For `value`, the mean value of a row.
        metrics: Of `BINARY`; without costs, `value` is missing.
    """
    wanted = tuple(metrics)
    assert set(wanted) <= set(BINARY), f"not metrics of a binary classifier: {set(wanted) - set(BINARY)}"
    problem = unusable(labels, probabilities, weights)
    if problem:
        return Metrics({}, dict.fromkeys(wanted, problem))
    if weights is not None and not weights.all():
        kept = weights > 0
        labels, probabilities, weights = labels[kept], probabilities[kept], weights[kept]
    rows = _Rows(labels, probabilities, threshold, weights, costs)
    values, missing = {}, {}
    for name in wanted:
        if reason := rows.lacks(name):
            missing[name] = reason
        else:
            values[name] = float(getattr(rows, name)())
    return Metrics(values, missing)


def unusable(
    labels: npt.NDArray[Any], predictions: npt.NDArray[Any], weights: npt.NDArray[Any] | None = None
) -> str:
    """Why no metric of 0/1 labels can be computed; empty if some can."""
    assert len(labels) == len(predictions), f"{len(labels)} labels, {len(predictions)} predictions"
    if not len(labels):
        return NO_ROWS
    if not ((labels == 0) | (labels == 1)).all():
        return LABELS_UNUSABLE
    if not np.isfinite(predictions).all():
        return PREDICTIONS_NOT_FINITE
    return weights_problem(labels, weights)


def weights_problem(labels: npt.NDArray[Any], weights: npt.NDArray[Any] | None) -> str:
    """Why weights cannot be used; empty if they can, or if there are none."""
    if weights is None:
        return ""
    assert len(weights) == len(labels), f"{len(labels)} labels, {len(weights)} weights"
    usable = np.isfinite(weights).all() and (weights >= 0).all() and weights.sum() > 0
    return "" if usable else WEIGHTS_UNUSABLE


class _Rows:
    """Labels and probabilities with what several metrics share: decisions, totals, the one sorting."""

    def __init__(
        self,
        labels: npt.NDArray[Any],
        probabilities: npt.NDArray[Any],
        threshold: float,
        weights: npt.NDArray[Any] | None,
        costs: CostMatrix | None,
    ) -> None:
        self._truth = np.asarray(labels, np.float64)
        self._scores = np.asarray(probabilities, np.float64)
        self._weights = None if weights is None else np.asarray(weights, np.float64)
        self._decided = (self._scores >= threshold).astype(np.float64)
        self._costs = costs
        self._positives = self._sum(self._truth)
        self._total = float(len(self._truth)) if self._weights is None else float(self._weights.sum())
        low, high = float(self._scores.min()), float(self._scores.max())
        self._inside = low >= -ROUNDING and high <= 1 + ROUNDING
        if self._inside and (low < 0 or high > 1):
            self._scores = np.clip(self._scores, 0.0, 1.0)
        self._ranking: Ranking | None = None

    def lacks(self, name: str) -> str:
        """Why a metric has no value; empty if it has one."""
        if name in ("auc", "average_precision") and not 0 < self._positives < self._total:
            return ONE_CLASS
        if name in ("log_loss", "brier", "ece") and not self._inside:
            return OUTSIDE_0_1
        return NO_COSTS if name == "value" and self._costs is None else ""

    def auc(self) -> float:
        return self._ranked().auc()

    def average_precision(self) -> float:
        return self._ranked().average_precision()

    def f1(self) -> float:
        hits, decided = self._sum(self._truth * self._decided), self._sum(self._decided)
        return 2 * hits / (decided + self._positives) if decided + self._positives else 0.0

    def log_loss(self) -> float:
        return self._mean(log_losses(self._truth, self._scores))

    def brier(self) -> float:
        return self._mean((self._scores - self._truth) ** 2)

    def ece(self) -> float:
        return calibration_error(self._truth, self._scores, self._weights)

    def accuracy(self) -> float:
        return self._mean((self._decided == self._truth).astype(np.float64))

    def value(self) -> float:
        assert self._costs is not None
        return self._mean(self._costs.values(self._truth, self._decided))

    def _ranked(self) -> Ranking:
        if self._ranking is None:
            self._ranking = Ranking(self._truth, self._scores, self._weights)
        return self._ranking

    def _sum(self, values: Floats) -> float:
        return float(values.sum() if self._weights is None else np.dot(values, self._weights))

    def _mean(self, values: Floats) -> float:
        return self._sum(values) / self._total


def log_losses(truth: Floats, probabilities: Floats) -> Floats:
    """Log loss of each row, at most -ln(`PROBABILITY_FLOOR`), shape [B]."""
    floored = np.clip(probabilities, PROBABILITY_FLOOR, 1 - PROBABILITY_FLOOR)
    losses: Floats = -np.log(np.where(truth == 1, floored, 1 - floored))
    return losses


def calibration_error(
    labels: npt.NDArray[Any], probabilities: npt.NDArray[Any], weights: npt.NDArray[Any] | None = None
) -> float:
    """Expected calibration error over equal-width bins: mean |share of positives - mean probability|.

    Source: Naeini et al., Obtaining well calibrated probabilities using Bayesian binning (2015).
    """
    gaps = probabilities - labels if weights is None else (probabilities - labels) * weights
    gap = np.bincount(_bins(probabilities), weights=gaps, minlength=CALIBRATION_BINS)
    return float(np.abs(gap).sum() / (len(labels) if weights is None else weights.sum()))


def calibration_curve(
    labels: npt.NDArray[Any], probabilities: npt.NDArray[Any], weights: npt.NDArray[Any] | None = None
) -> tuple[CalibrationBin, ...]:
    """Share of positives against mean probability in the filled bins of `calibration_error`.

    Returns:
        Nothing where `unusable` names a problem or a probability lies outside 0 to 1.
    """
    if unusable(labels, probabilities, weights) or not ((probabilities >= 0) & (probabilities <= 1)).all():
        return ()
    bins = _bins(probabilities)
    weight = np.ones(len(labels)) if weights is None else weights
    rows, predicted, positive = (
        np.bincount(bins, weights=values, minlength=CALIBRATION_BINS)
        for values in (weight, weight * probabilities, weight * labels)
    )
    edges = np.arange(CALIBRATION_BINS + 1) / CALIBRATION_BINS
    filled = np.flatnonzero(rows > 0)
    columns = (edges[filled], edges[filled + 1], rows[filled])
    means = (predicted[filled] / rows[filled], positive[filled] / rows[filled])
    return tuple(CalibrationBin(*map(float, bin)) for bin in zip(*columns, *means, strict=True))


def _bins(probabilities: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    bins: npt.NDArray[np.int64] = (probabilities * CALIBRATION_BINS).astype(np.int64)
    return np.minimum(bins, CALIBRATION_BINS - 1)
