"""The Serve application of a pipeline, and the service goals."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from ctrain.spec.base import Metric, PositiveDuration, Spec, faults, outside, values_of


class Serving(Spec):
    """Replicas and limits."""

    replicas: int = Field(2, ge=1)
    cpus_per_replica: float = Field(0.1, gt=0)

    max_in_flight: int = Field(200, ge=1)
    """Requests a replica works on at once; more are answered 503 with Retry-After."""

    body_limit: int = Field(1_048_576, ge=1024)
    """Bytes of a request body; more are answered 413."""

    flush: PositiveDuration = 1.0
    """Seconds between two flushes of the prediction log: what a killed replica may lose."""

    start_timeout: PositiveDuration = 60.0
    """Seconds that a starting replica waits for the champion's weights."""


class Goals(Spec):
    """What the service promises. A missed goal raises an alert; the rollout judges ratios."""

    latency_p99: PositiveDuration | None = None
    freshness: PositiveDuration | None = None
    """Age that the newest trained-on data may reach."""

    metrics: dict[Metric, float] = Field(default_factory=dict)
    """Live values that should hold, e.g. {auc: 0.62}; judged on joined labels a window."""

    rollback: Literal["previous"] = "previous"
    """Where a rollback goes: the previous champion, resident in every replica."""

    @field_validator("metrics")
    @classmethod
    def _values_of_their_metric(cls, metrics: dict[Metric, float]) -> dict[Metric, float]:
        problems = {metric: outside(metric, goal) for metric, goal in metrics.items()}
        found = [(metric, text, values_of(metric)) for metric, text in problems.items() if text]
        if found:
            raise faults(found)
        return metrics
