"""Metrics that a user brings: functions by import path. One that fails never takes the others with it."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ctrain.errors import UserCodeError
from ctrain.evaluation.metrics import NO_ROWS, Metrics

UserMetric = Callable[[npt.NDArray[Any], npt.NDArray[Any]], float]
"""Takes labels and predictions, gives one finite number. The arrays cannot be written to."""


def load_user_metric(path: str, load: Callable[[str], Any] | None = None) -> UserMetric:
    """Import a metric by `module:attribute`.

    Args:
        path: Import path.
        load: Gives the attribute of an import path; None imports it from what is installed.

    Raises:
        UserCodeError: if there is no such attribute, or it cannot be called.
    """
    found = (load or _import)(path)
    if not callable(found):
        raise UserCodeError(path, f"is a {type(found).__name__}; a metric is a function")
    metric: UserMetric = found
    return metric


def score_user_metrics(
    metrics: Mapping[str, UserMetric], labels: npt.NDArray[Any], predictions: npt.NDArray[Any]
) -> Metrics:
    """Compute each metric on its own.

    Returns:
        A metric that raises, or gives no finite number, is missing; the reason is the text of its
        UserCodeError. Without rows no metric is asked.
    """
    if not len(labels):
        return Metrics({}, dict.fromkeys(metrics, NO_ROWS))
    values, missing = {}, {}
    for name, metric in metrics.items():
        try:
            values[name] = user_metric(name, metric, labels, predictions)
        except UserCodeError as error:
            missing[name] = str(error)
    return Metrics(values, missing)


def user_metric(
    name: str, metric: UserMetric, labels: npt.NDArray[Any], predictions: npt.NDArray[Any]
) -> float:
    """Compute one metric of the user's.

    Raises:
        UserCodeError: if it raises, or gives something else than one finite number.
    """
    shown = labels.view(), predictions.view()
    for array in shown:
        array.flags.writeable = False  # the metrics that follow see the same rows
    try:
        result = metric(*shown)
    except MemoryError:
        raise
    except Exception as error:
        problem = f"failed on {len(labels)} rows: {type(error).__name__}: {error}"
        raise UserCodeError(name, problem) from error
    number = _number(result)
    if number is None or not math.isfinite(number):
        raise UserCodeError(name, f"gave {result!r:.80}; expected a finite number")
    return number


def _number(result: Any) -> float | None:
    """The one number that a metric gave; None if it gave something else."""
    if isinstance(result, bool | np.bool_ | str) or np.ndim(result) != 0:
        return None
    try:
        return float(result)
    except (TypeError, ValueError):
        return None


def _import(path: str) -> Any:
    module, _, attribute = path.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ModuleNotFoundError, AttributeError) as error:
        raise UserCodeError(path, str(error)) from None
