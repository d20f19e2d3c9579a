"""What the controller asks of rooms that work in Ray tasks."""

from __future__ import annotations

from dataclasses import dataclass, field

from ctrain.records.base import Json
from ctrain.records.data import Partition
from ctrain.records.evaluation import RecordedPair
from ctrain.records.monitoring import KnownFacts


@dataclass(frozen=True, slots=True)
class IngestRequest:
    """Land these partitions: check the contract, quarantine, commit."""

    key: str
    pipeline: str
    root: str
    spec: Json
    code: str
    partitions: tuple[Partition, ...]


@dataclass(frozen=True, slots=True)
class Landing:
    """How a partition landed."""

    batch: int
    """Number of the ingest: partitions of one lay in the source together."""
    rows: int
    """Rows that were accepted."""
    unlabelled: int
    """Rows that were left out because they had no label."""


@dataclass(frozen=True, slots=True)
class EvaluationRequest:
    """Score a candidate and the champion on the candidate's judged blocks, and decide the gate."""

    key: str
    pipeline: str
    root: str
    spec: Json
    candidate: str
    champion: str
    """Empty for the first model."""
    code: str = ""
    """User code that the task runs with, as in RunRequest."""
    static: str = ""
    """The pipeline's first champion, shown beside the others; empty if there is none."""
    record: tuple[RecordedPair, ...] = ()
    """Earlier pairs of candidate and champion, oldest first."""
    uses: dict[str, int] = field(default_factory=dict)
    """Earlier gates that looked at a block, by block."""
    landed: dict[str, Landing] = field(default_factory=dict)
    """How each partition of the dataset landed, by name."""


@dataclass(frozen=True, slots=True)
class WindowRequest:
    """Summarise one window of live traffic."""

    key: str
    pipeline: str
    root: str
    spec: Json
    champion: str
    start: float
    end: float
    watermark: float
    """Newest event time that was landed: labels of events that are mature by then count."""
    code: str = ""
    """User code that the task runs with, as in RunRequest."""
    facts: KnownFacts = field(default_factory=KnownFacts)


@dataclass(frozen=True, slots=True)
class Failure:
    """A piece of work that raised; the controller decides whether to try again."""

    key: str
    error: str
