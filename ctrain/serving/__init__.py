"""Room of serving: one Serve application a pipeline, whose replicas hold the weights that answer.

Takes live documents and requests, gives answers, reports, and the logs of predictions and labels.
Names are loaded when they are first used, so that reading a log needs neither torch nor Ray.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "LabelStore": "ctrain.serving.labels",
    "PredictionLog": "ctrain.serving.prediction_log",
    "Predictor": "ctrain.serving.predictor",
    "RayServing": "ctrain.serving.deploy",
    "challenger_answers": "ctrain.serving.split",
    "read_labels": "ctrain.serving.labels",
    "read_log": "ctrain.serving.prediction_log",
}

__all__ = [
    "LabelStore",
    "PredictionLog",
    "Predictor",
    "RayServing",
    "challenger_answers",
    "read_labels",
    "read_log",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
