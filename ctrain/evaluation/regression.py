"""Metrics of a regression. Pure: labels and predictions in, numbers out.

A pipeline's labels are 0 or 1 so far; for other ones these are called by hand.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from ctrain.evaluation.metrics import (
    LABELS_UNUSABLE,
    NO_ROWS,
    PREDICTIONS_NOT_FINITE,
    Metrics,
    weights_problem,
)
from ctrain.evaluation.ranking import Floats

REGRESSION = ("rmse", "mae", "quantile_loss")


def score_regression(
    labels: npt.NDArray[Any],
    predictions: npt.NDArray[Any],
    *,
    weights: npt.NDArray[Any] | None = None,
    quantile: float = 0.5,
    metrics: Iterable[str] = REGRESSION,
) -> Metrics:
    """Root mean squared error, mean absolute error and quantile (pinball) loss.

    Args:
        labels: Finite numbers, shape [B].
        predictions: Shape [B].
        weights: Of the rows; None weighs all alike.
        quantile: In (0, 1), which the predictions stand for in `quantile_loss`.
        metrics: Of `REGRESSION`.
    """
    assert 0 < quantile < 1, quantile
    wanted = tuple(metrics)
    assert set(wanted) <= set(REGRESSION), f"not metrics of a regression: {set(wanted) - set(REGRESSION)}"
    if problem := _unusable(labels, predictions, weights):
        return Metrics({}, dict.fromkeys(wanted, problem))
    error = np.asarray(labels, np.float64) - np.asarray(predictions, np.float64)
    values = {name: float(np.average(_losses(name, error, quantile), weights=weights)) for name in wanted}
    if "rmse" in values:
        values["rmse"] **= 0.5
    return Metrics(values)


def _losses(metric: str, error: Floats, quantile: float) -> Floats:
    if metric == "rmse":
        return error**2
    return np.abs(error) if metric == "mae" else quantile_losses(error, quantile)


def quantile_losses(error: Floats, quantile: float) -> Floats:
    """Pinball loss of each row from its error, label minus prediction."""
    return np.where(error >= 0, quantile * error, (quantile - 1) * error)


def _unusable(
    labels: npt.NDArray[Any], predictions: npt.NDArray[Any], weights: npt.NDArray[Any] | None
) -> str:
    assert len(labels) == len(predictions), f"{len(labels)} labels, {len(predictions)} predictions"
    if not len(labels):
        return NO_ROWS
    if not np.isfinite(labels).all():
        return LABELS_UNUSABLE
    if not np.isfinite(predictions).all():
        return PREDICTIONS_NOT_FINITE
    return weights_problem(labels, weights)
