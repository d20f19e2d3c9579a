"""Records of rollouts: what a look at one finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

StepVerdict = Literal["pass", "continue", "fail"]

EvidenceState = Literal["enough", "gathering", "low_traffic", "watching", "harm"]
"""Evidence for promotion is there; grows; would not be there before the time-out at the present rate; is
gathered and not waited for; or the evidence is one of harm."""


@dataclass(frozen=True, slots=True)
class MetricAnalysis:
    """Sequential test of one metric, with its evidence."""

    metric: str
    verdict: StepVerdict
    harm: float
    """e-value against "no harm": evidence that the challenger is worse."""
    harm_bound: float
    """`harm` at which this metric alone ends the rollout; several together may end it before."""
    safe: float
    """e-value against "harm beyond the margin": evidence for promotion."""
    safe_bound: float
    text: str
    """One line for people: counts, and what is still needed."""
    state: EvidenceState = "gathering"
    needed: int | None = None
    """About how many more `unit`s give the evidence for promotion if the models are alike; None if that
    cannot be told."""
    unit: Literal["requests", "mirrored", "blocks"] = "requests"
    """What `needed` counts: requests that the challenger answers, mirrored ones, or blocks of time."""
    minutes: float | None = None
    """How long that takes at the present rate; None if either is not known."""


@dataclass(frozen=True, slots=True)
class Pace:
    """What an analysis needs to know of time, from whoever has a clock."""

    seconds: float
    """Since every replica was seen to serve the present step."""
    left: float
    """Until the rollout's time-out."""


@dataclass(frozen=True, slots=True)
class Analysis:
    """One look at a rollout."""

    rollout: str
    phase: str
    """`shadow` or `canary`."""
    split: float
    verdict: StepVerdict
    metrics: tuple[MetricAnalysis, ...]
    requests: int
    """Requests that the challenger answered so far; in shadow, mirrored requests."""
    reason: str
    state: EvidenceState = "gathering"
    """The least of what its metrics say of the evidence that the next move waits for."""
    minutes: float | None = None
    """Until the last of that evidence is there at the present rate; None if that cannot be told."""
