"""Performance against the truth: metrics of matured answers, with intervals by blocks of time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ctrain.evaluation.influence import NUMBERS, block_interval, influence
from ctrain.evaluation.metrics import CostMatrix
from ctrain.evaluation.segment_keys import SegmentKey
from ctrain.records import MetricInterval, PerformanceReport

METRICS = ("auc", "average_precision", "f1", "log_loss", "brier", "ece", "accuracy")


def performance(
    labels: npt.NDArray[Any],
    predictions: npt.NDArray[Any],
    blocks: npt.NDArray[np.int64],
    mature: npt.NDArray[np.bool_],
    *,
    threshold: float = 0.5,
    costs: CostMatrix | None = None,
    metrics: Sequence[str] = METRICS,
    keys: Iterable[SegmentKey] = (),
    minimum_rows: int = 100,
    confidence: float = 0.95,
) -> PerformanceReport:
    """Measure a model on its matured, labelled answers.

    Args:
        labels: 0 or 1 (finite numbers where the metrics are of numbers), NaN where unknown, shape [B].
        predictions: Of the model that answered, shape [B].
        blocks: Block of time of each answer's event, shape [B].
        mature: Whether every label of that event must have come (`evaluation.cohorts.matured`), shape [B];
            younger answers are left out even if labelled, since those are chosen by their label.
        threshold: Probability at and above which the decision is positive.
        costs: For the metric `value`.
        metrics: Of `evaluation.influence.INFLUENCES`.
        keys: What cuts the rows into segments; each segment's interval stands for itself.
        minimum_rows: Labelled rows below which neither the whole nor a segment is judged.
        confidence: Two-sided level of each interval.

    Returns:
        Intervals have no ends where there are fewer than two blocks. A metric without a value says why.
    """
    chosen = np.flatnonzero(np.asarray(mature, bool) & np.isfinite(np.asarray(labels, np.float64)))
    day = np.unique(blocks[chosen], return_inverse=True)[1]
    rows, days = len(chosen), int(day.max()) + 1 if len(chosen) else 0
    if rows < minimum_rows:
        reason = f"{rows} matured answers have a label, {minimum_rows} needed"
        return PerformanceReport("not_enough_labels", rows, days, reason=reason)
    measured = _Measured(labels[chosen], predictions[chosen], day, threshold, costs, confidence, minimum_rows)
    segments = [
        measured.metric(name, part, segment)
        for key in keys
        for segment, part in _parts(key, chosen)
        for name in metrics
    ]
    return PerformanceReport(
        state="judged",
        rows=rows,
        blocks=days,
        metrics=tuple(measured.metric(name) for name in metrics),
        segments=tuple(segments),
    )


def _parts(key: SegmentKey, chosen: npt.NDArray[np.int64]) -> Iterator[tuple[str, npt.NDArray[np.int64]]]:
    """Each value's rows, as positions among the chosen ones."""
    codes = key.codes[chosen]
    order = np.argsort(codes, kind="stable")
    ends = np.cumsum(np.bincount(codes, minlength=len(key.values)))
    for code, part in enumerate(np.split(order, ends[:-1])):
        if len(part):
            yield key.segment(code), part


class _Measured:
    """Matured, labelled rows and how they are judged."""

    def __init__(
        self,
        labels: npt.NDArray[Any],
        predictions: npt.NDArray[Any],
        day: npt.NDArray[np.int64],
        threshold: float,
        costs: CostMatrix | None,
        confidence: float,
        minimum_rows: int,
    ) -> None:
        self._labels, self._predictions, self._day = labels, predictions, day
        self._threshold, self._costs = threshold, costs
        self._confidence, self._minimum_rows = confidence, minimum_rows

    def metric(
        self, name: str, part: npt.NDArray[np.int64] | slice = slice(None), segment: str = ""
    ) -> MetricInterval:
        """One metric on some of the rows."""
        labels, predictions, day = self._labels[part], self._predictions[part], self._day[part]
        rows = len(labels)
        if problem := self._problem(name, labels, predictions):
            return MetricInterval(name, None, rows=rows, segment=segment, reason=problem)
        found = influence(name, labels, predictions, self._threshold, self._costs)
        if found is None:
            return MetricInterval(name, None, rows=rows, segment=segment, reason="one_class")
        span = block_interval(*found, day, self._confidence)
        reason = "" if span.low is not None else f"{span.blocks} block, 2 needed for an interval"
        return MetricInterval(name, span.value, span.low, span.high, rows, span.blocks, segment, reason)

    def _problem(self, name: str, labels: npt.NDArray[Any], predictions: npt.NDArray[Any]) -> str:
        if len(labels) < self._minimum_rows:
            return f"{len(labels)} labels, {self._minimum_rows} needed"
        if not np.isfinite(predictions).all():
            return "predictions_not_finite"
        if name not in NUMBERS and not ((labels == 0) | (labels == 1)).all():
            return "labels_unusable"
        return "no_costs" if name == "value" and self._costs is None else ""
