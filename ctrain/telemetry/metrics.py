"""Every metric of ctrain once: kind, unit, tags. Published by `ray.util.metrics` on Ray's own endpoint.

Figures are added up by their owners and published about once a second, never on a request's path.
Counters get `_total` from Ray. Tags stay few: pipeline, result, kind, quantile, and for what only one
replica can say (gauges only) its short id; never a version or a key. Ray drops the gauges of a process
that has gone, so replicas that come and go leave nothing behind.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Metric:
    """Declaration of one metric."""

    name: str
    kind: Literal["counter", "gauge"]
    unit: str
    text: str
    tags: tuple[str, ...] = ("pipeline",)

    def add(self, amount: float, **tags: str) -> None:
        """Count up; zero is left out, since Ray refuses it."""
        if amount > 0:
            _made(self).inc(amount, tags=tags)

    def put(self, value: float, **tags: str) -> None:
        """Set a gauge."""
        _made(self).set(value, tags=tags)


@functools.cache
def _made(metric: Metric) -> Any:
    from ray.util import metrics

    kind = metrics.Counter if metric.kind == "counter" else metrics.Gauge
    return kind(metric.name, description=f"{metric.text} [{metric.unit}]", tag_keys=metric.tags)


REQUESTS = Metric("ctrain_requests", "counter", "requests", "Predictions asked for", ("pipeline", "result"))
LOG_DROPPED = Metric("ctrain_log_dropped", "counter", "answers", "Answers the prediction log had to drop")
MODEL_SECONDS = Metric(
    "ctrain_model_seconds",
    "gauge",
    "s",
    "Champion's time inside the model, last minute",
    ("pipeline", "replica", "quantile"),
)
GENERATION = Metric(
    "ctrain_generation", "gauge", "1", "Generation of the live document taken", ("pipeline", "replica")
)
REFUSED = Metric(
    "ctrain_refused_versions",
    "gauge",
    "versions",
    "Versions a replica could not load",
    ("pipeline", "replica"),
)
LATE_LABELS = Metric(
    "ctrain_late_labels", "gauge", "labels", "Labels dropped as late in the hours of the newest window"
)
SKEWED = Metric(
    "ctrain_skewed_share",
    "gauge",
    "fraction",
    "Answers of the newest window that the batch path gives otherwise",
)
RUNS = Metric("ctrain_runs", "counter", "runs", "Ended runs", ("pipeline", "result"))
PARTITIONS = Metric(
    "ctrain_partitions", "counter", "partitions", "Handled partitions", ("pipeline", "result")
)
PROMOTIONS = Metric("ctrain_promotions", "counter", "promotions", "Changes of champion", ("pipeline", "kind"))
STEP_SECONDS = Metric("ctrain_controller_step_seconds", "gauge", "s", "Last step of the controller")
SPLIT = Metric("ctrain_split", "gauge", "fraction", "Share of live traffic the challenger answers")

ALL = (
    REQUESTS,
    LOG_DROPPED,
    MODEL_SECONDS,
    GENERATION,
    REFUSED,
    LATE_LABELS,
    SKEWED,
    RUNS,
    PARTITIONS,
    PROMOTIONS,
    STEP_SECONDS,
    SPLIT,
)
