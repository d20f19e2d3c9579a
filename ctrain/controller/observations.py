"""What the controller sees, decides and does: observations in, decisions and commands out. Plain records."""

from __future__ import annotations

from dataclasses import dataclass, field

from ctrain.controller.journal import Entry
from ctrain.records import (
    GateDecision,
    IngestedPartition,
    Json,
    ModelVersion,
    Observed,
    Partition,
    RunRequest,
    RunStatus,
    Sighting,
    WindowReport,
)

# --- observations: what the controller sees ---


@dataclass(frozen=True, slots=True)
class Tick:
    """Time went by."""


@dataclass(frozen=True, slots=True)
class Looked:
    """A look at the source."""

    sightings: tuple[Sighting, ...]


@dataclass(frozen=True, slots=True)
class Ingested:
    """Partitions were landed, each committed or refused."""

    key: str
    partitions: tuple[IngestedPartition, ...]


@dataclass(frozen=True, slots=True)
class IngestFailed:
    """Landing raised; nothing of it counts, and what it committed is found again by the next try."""

    key: str
    error: str


@dataclass(frozen=True, slots=True)
class RunSeen:
    """The run's own word on itself; `version` is its manifest once it has finished."""

    status: RunStatus
    version: ModelVersion | None = None


@dataclass(frozen=True, slots=True)
class Judged:
    """The gate's decision on a candidate."""

    decision: GateDecision


@dataclass(frozen=True, slots=True)
class EvaluationFailed:
    """Scoring raised."""

    version: str
    error: str


@dataclass(frozen=True, slots=True)
class Seen:
    """What the replicas say."""

    observed: Observed


@dataclass(frozen=True, slots=True)
class Settled:
    """The live document of this generation stands in Serve's own configuration."""

    generation: int


@dataclass(frozen=True, slots=True)
class Windowed:
    """A window was summarised; None if that failed."""

    end: float
    report: WindowReport | None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Operated:
    """A person asks for something."""

    verb: str
    by: str
    reason: str
    body: Json = field(default_factory=dict)


Observation = (
    Tick
    | Looked
    | Ingested
    | IngestFailed
    | RunSeen
    | Judged
    | EvaluationFailed
    | Seen
    | Settled
    | Windowed
    | Operated
)


@dataclass(frozen=True, slots=True)
class Decision:
    """Events that follow from an observation; `refusal` says why a verb had no effect."""

    events: tuple[Entry, ...] = ()
    refusal: str = ""
    status: int = 409
    """HTTP status of a refusal: 409 for what the state does not allow, 422 for what can never be done."""


def alert(kind: str, text: str) -> Entry:
    """Something that a person should know."""
    return Entry("alert", {"alert": kind, "text": text})


# --- commands: what has to be done, read off the state ---


@dataclass(frozen=True, slots=True)
class StartIngest:
    """Land these partitions."""

    key: str
    partitions: tuple[Partition, ...]


@dataclass(frozen=True, slots=True)
class StartRun:
    """Train."""

    key: str
    request: RunRequest


@dataclass(frozen=True, slots=True)
class ReleaseRun:
    """The run's result is journaled: its actor may go."""

    key: str
    run_id: str


@dataclass(frozen=True, slots=True)
class StartEvaluation:
    """Score a candidate and decide the gate."""

    key: str
    candidate: str
    champion: str


@dataclass(frozen=True, slots=True)
class StartWindow:
    """Summarise live traffic."""

    key: str
    start: float
    end: float


Command = StartIngest | StartRun | ReleaseRun | StartEvaluation | StartWindow
