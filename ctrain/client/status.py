"""Status of a pipeline as records. Fields that a server does not send keep their defaults."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from ctrain.records import Json


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class VersionStatus(_Part):
    """A version that serves or is in rollout."""

    label: str = ""
    version: str = ""
    age_s: float = 0.0
    trained_to: str = ""
    rows: int = 0
    warnings: tuple[str, ...] = ()
    """What its gate told beside the verdict."""


class MetricStatus(_Part):
    """One metric of a rollout's analysis."""

    metric: str = ""
    verdict: str = ""
    text: str = ""


class RolloutStatus(_Part):
    """The rollout under way."""

    id: str = ""
    label: str = ""
    phase: str = ""
    step: int = 0
    steps: int = 0
    verdict: str = ""
    metrics: tuple[MetricStatus, ...] = ()


class RequestStatus(_Part):
    """Requests since the replicas' start."""

    answered: int = 0
    failed: int = 0


class DataStatus(_Part):
    """Partitions so far."""

    partitions: int = 0
    last: str = ""
    refused: int = 0
    quarantined_rows: int = 0
    problems: dict[str, str] = {}


class DriftStatus(_Part):
    """Newest window's drift."""

    state: str = ""
    lines: tuple[str, ...] = ()
    """One a kind of drift."""
    diagnosis: str = ""
    hold: str = ""
    """Why only a person starts a run; empty if any trigger may."""


class SkewStatus(_Part):
    """Whether serving computed what the batch path computes, on answers of the newest window."""

    state: str = ""
    text: str = ""


class AlertStatus(_Part):
    """One alert."""

    at: float = 0.0
    alert: str = ""
    text: str = ""


class Status(_Part):
    """Where a pipeline stands; `raw` is the server's JSON."""

    pipeline: str = ""
    owner: str = ""
    epoch: int = 0
    generation: int = 0
    converged: int = 0
    stopped: bool = False
    paused: bool = False
    champion: VersionStatus | None = None
    previous: VersionStatus | None = None
    challenger: VersionStatus | None = None
    split: float = 0.0
    rollout: RolloutStatus | None = None
    requests: RequestStatus = RequestStatus()
    data: DataStatus = DataStatus()
    drift: DriftStatus = DriftStatus()
    quality: tuple[str, ...] = ()
    """What labels and scores say of the champion, one line each."""
    skew: SkewStatus | None = None
    run: str = ""
    progress: str = ""
    runs: int = 0
    versions: tuple[dict[str, str], ...] = ()
    next: str = ""
    alerts: tuple[AlertStatus, ...] = ()
    error: str = ""
    raw: dict[str, Any] = {}


def parse_status(data: Json) -> Status:
    """Read a status."""
    return Status.model_validate({**data, "raw": data})
