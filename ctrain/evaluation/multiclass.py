"""Metrics of a classifier of several classes. Pure: labels and probabilities in, numbers out.

A pipeline's labels are 0 or 1 so far; for other ones these are called by hand.
"""

# B rows, C classes

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from ctrain.evaluation.metrics import (
    LABELS_UNUSABLE,
    NO_COSTS,
    NO_ROWS,
    OUTSIDE_0_1,
    PREDICTIONS_NOT_FINITE,
    PROBABILITY_FLOOR,
    Metrics,
    calibration_error,
    weights_problem,
)
from ctrain.evaluation.ranking import Floats, Ranking

MULTICLASS = ("log_loss", "accuracy", "macro_f1", "auc_one_vs_rest", "brier", "ece", "value")

SUM_TOLERANCE = 1e-4
"""How far a row of probabilities may be from a sum of 1."""

NOT_ONE = "probabilities_do_not_sum_to_1"
CLASS_ABSENT = "a_class_has_no_rows"


def score_multiclass(
    labels: npt.NDArray[Any],
    probabilities_BC: npt.NDArray[Any],
    *,
    weights: npt.NDArray[Any] | None = None,
    costs_CC: npt.NDArray[Any] | None = None,
    metrics: Iterable[str] = MULTICLASS,
) -> Metrics:
    """Compute the metrics asked for. The decision is the class with the highest probability.

    Args:
        labels: Class numbers 0 to C-1, shape [B].
        probabilities_BC: Of each class, rows sum to 1, shape [B, C].
        weights: Of the rows; None weighs all alike.
        costs_CC: Value of a row by label (first axis) and decision, shape [C, C], for `value`.
        metrics: Of `MULTICLASS`. `brier` is the mean over rows of the squared error summed over classes, in
            [0, 2]; `ece` is of the decided class's probability; `macro_f1` is over the classes that
            appear among labels or decisions; `auc_one_vs_rest` is the plain mean over all classes.
    """
    wanted = tuple(metrics)
    assert set(wanted) <= set(MULTICLASS), f"not multi-class metrics: {set(wanted) - set(MULTICLASS)}"
    if problem := _unusable(labels, probabilities_BC, weights):
        return Metrics({}, dict.fromkeys(wanted, problem))
    rows = _Rows(labels, probabilities_BC, weights, costs_CC)
    values, missing = {}, {}
    for name in wanted:
        if reason := rows.lacks(name):
            missing[name] = reason
        else:
            values[name] = float(getattr(rows, name)())
    return Metrics(values, missing)


def _unusable(labels: npt.NDArray[Any], scores: npt.NDArray[Any], weights: npt.NDArray[Any] | None) -> str:
    assert scores.ndim == 2, scores.shape
    assert len(labels) == len(scores), f"{len(labels)} labels, {len(scores)} predictions"
    if not len(labels):
        return NO_ROWS
    numbers = np.isfinite(labels).all() and (labels == np.floor(labels)).all()
    if not numbers or labels.min() < 0 or labels.max() >= scores.shape[1]:
        return LABELS_UNUSABLE
    if not np.isfinite(scores).all():
        return PREDICTIONS_NOT_FINITE
    return weights_problem(labels, weights)


class _Rows:
    """Labels and probabilities with what several metrics share."""

    def __init__(
        self,
        labels: npt.NDArray[Any],
        scores: npt.NDArray[Any],
        weights: npt.NDArray[Any] | None,
        costs: npt.NDArray[Any] | None,
    ) -> None:
        self._labels = np.asarray(labels, np.int64)
        self._scores = np.asarray(scores, np.float64)
        self._weights = None if weights is None else np.asarray(weights, np.float64)
        self._costs = costs
        self._classes = self._scores.shape[1]
        self._decided = self._scores.argmax(axis=1)
        self._counts = np.bincount(self._labels, weights=self._weights, minlength=self._classes)
        assert costs is None or np.shape(costs) == (self._classes, self._classes)

    def lacks(self, name: str) -> str:
        """Why a metric has no value; empty if it has one."""
        if name in ("log_loss", "brier", "ece", "auc_one_vs_rest"):
            if self._scores.min() < 0 or self._scores.max() > 1 + SUM_TOLERANCE:
                return OUTSIDE_0_1
            if np.abs(self._scores.sum(axis=1) - 1).max() > SUM_TOLERANCE:
                return NOT_ONE
        if name == "auc_one_vs_rest" and (self._classes < 2 or not self._counts.all()):
            return CLASS_ABSENT
        return NO_COSTS if name == "value" and self._costs is None else ""

    def log_loss(self) -> float:
        return self._mean(-np.log(np.clip(self._of_label(), PROBABILITY_FLOOR, 1.0)))

    def accuracy(self) -> float:
        return self._mean((self._decided == self._labels).astype(np.float64))

    def macro_f1(self) -> float:
        hit = self._decided == self._labels
        of_hits = None if self._weights is None else self._weights[hit]
        hits = np.bincount(self._labels[hit], weights=of_hits, minlength=self._classes)
        decided = np.bincount(self._decided, weights=self._weights, minlength=self._classes)
        both = self._counts + decided
        present = both > 0
        return float(np.mean(2 * hits[present] / both[present]))

    def auc_one_vs_rest(self) -> float:
        def one(number: int) -> float:
            truth = (self._labels == number).astype(np.float64)
            return Ranking(truth, self._scores[:, number], self._weights).auc()

        return float(np.mean([one(number) for number in range(self._classes)]))

    def brier(self) -> float:
        squares = np.einsum("bc,bc->b", self._scores, self._scores)
        return self._mean(squares - 2 * self._of_label() + 1)

    def ece(self) -> float:
        confidence = np.minimum(self._scores.max(axis=1), 1.0)
        right = (self._decided == self._labels).astype(np.float64)
        return calibration_error(right, confidence, self._weights)

    def value(self) -> float:
        assert self._costs is not None
        return self._mean(np.asarray(self._costs, np.float64)[self._labels, self._decided])

    def _of_label(self) -> Floats:
        chosen: Floats = self._scores[np.arange(len(self._labels)), self._labels]
        return chosen

    def _mean(self, values: Floats) -> float:
        return float(np.average(values, weights=self._weights))
