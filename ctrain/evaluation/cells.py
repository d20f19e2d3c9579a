"""A metric in many cells of rows at once: one pass over the rows for all segments and blocks of a key."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ctrain.evaluation.metrics import CostMatrix, log_losses
from ctrain.evaluation.ranking import Floats

CELL_METRICS = ("log_loss", "brier", "accuracy", "value", "auc", "squared_error", "absolute_error")
"""Metrics that a cell of a few rows can give without bias: means over rows, and AUC."""

_LOSSES = ("log_loss", "brier", "squared_error", "absolute_error")

Codes = npt.NDArray[np.int64]


class CellMetric:
    """One model's metric by cell, signed so that higher is better.

    Args:
        metric: Of `CELL_METRICS`.
        labels: Shape [B].
        predictions: Of one model, finite, shape [B].
        threshold: Probability at and above which the decision is positive.
        costs: For `value`.
    """

    def __init__(
        self,
        metric: str,
        labels: npt.NDArray[Any],
        predictions: npt.NDArray[Any],
        threshold: float,
        costs: CostMatrix | None,
    ) -> None:
        assert metric in CELL_METRICS, metric
        self._truth = np.asarray(labels, np.float64)
        scores = np.asarray(predictions, np.float64)
        self._by_rank = metric == "auc"
        self.sign = -1.0 if metric in _LOSSES else 1.0
        if self._by_rank:
            self._order = np.argsort(scores)
            ordered = scores[self._order]
            self._positive = self._truth[self._order]
            self._groups = np.cumsum(np.concatenate([[0], ordered[1:] != ordered[:-1]]))
        else:
            self._values = self.sign * _row_values(metric, self._truth, scores, threshold, costs)

    def means(self, cells: Codes, count: int) -> tuple[Floats, Floats]:
        """The metric in each cell, and how much the cell weighs: its rows, or for AUC its pairs' worth.

        Args:
            cells: Number of each row's cell, shape [B]; -1 for a row that is in none.
            count: Number of cells; those without a value have weight 0.
        """
        if self._by_rank:
            return self._auc(cells, count)
        spare = np.where(cells < 0, count, cells)
        rows = np.bincount(spare, minlength=count + 1)[:count].astype(np.float64)
        sums = np.bincount(spare, weights=self._values, minlength=count + 1)[:count]
        return _divide(sums, rows), rows

    def _auc(self, cells: Codes, count: int) -> tuple[Floats, Floats]:
        """By ranks within the cells: rows are sorted by score once, and by cell in a stable way."""
        ordered = cells[self._order]
        inside = np.flatnonzero(ordered >= 0)
        if not len(inside):
            return np.zeros(count), np.zeros(count)
        small = np.uint16 if count <= 65536 else np.int64  # numpy sorts 16 bits by radix
        within = inside[np.argsort(ordered[inside].astype(small), kind="stable")]
        cell, group = ordered[within], self._groups[within]
        starts = np.flatnonzero(np.concatenate([[True], (cell[1:] != cell[:-1]) | (group[1:] != group[:-1])]))
        positive = np.add.reduceat(self._positive[within], starts)
        negative = np.diff(np.append(starts, len(cell))) - positive
        run_cell = cell[starts]
        positives = np.bincount(run_cell, weights=positive, minlength=count)
        negatives = np.bincount(run_cell, weights=negative, minlength=count)
        before_cell = np.cumsum(negatives) - negatives
        before = np.cumsum(negative) - negative - before_cell[run_cell]
        won = np.bincount(run_cell, weights=positive * (before + negative / 2), minlength=count)
        return _divide(won, positives * negatives), _divide(positives * negatives, positives + negatives)


def _divide(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> Floats:
    return np.divide(one, other, out=np.zeros(len(one)), where=other > 0)


def _row_values(
    metric: str, truth: Floats, scores: Floats, threshold: float, costs: CostMatrix | None
) -> Floats:
    if metric == "log_loss":
        return log_losses(truth, np.clip(scores, 0.0, 1.0))
    if metric in ("brier", "squared_error"):
        return (scores - truth) ** 2
    if metric == "absolute_error":
        return np.asarray(np.abs(scores - truth))
    decided = (scores >= threshold).astype(np.float64)
    if metric == "accuracy":
        return np.where(decided == truth, 1.0, 0.0)
    assert costs is not None, "value needs costs"
    return costs.values(truth, decided)
