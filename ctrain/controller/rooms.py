"""Doors of the controller to the other rooms. Each is narrow enough to fake in thirty lines.

No method blocks longer than it must to hand a message over: heavy work runs in Ray tasks and actors
behind these doors, and its outcomes are polled. Every method may be called again with the same
arguments after a crash; the second call must not do the work twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ctrain.records import (
    EvaluationRequest,
    Failure,
    GateDecision,
    IngestedPartition,
    IngestRequest,
    LiveDocument,
    ModelVersion,
    Observed,
    RunRequest,
    RunStatus,
    Sighting,
    WindowReport,
    WindowRequest,
)


class Source(Protocol):
    """Where partitions come from."""

    def start(self, known: dict[str, str]) -> None:
        """Begin to look for new partitions, unless a look is under way.

        Args:
            known: Content hash by partition name, of those already handled.
        """
        ...

    def poll(self) -> Sequence[Sighting] | Failure | None:
        """What the look found, once; None while it goes on.

        Sealed partitions whose (name, hash) was not known, and folders that cannot be used yet with
        the reason. A missing source gives one sighting with an empty name.
        """
        ...


class Ingest(Protocol):
    """Lands partitions."""

    def start(self, request: IngestRequest) -> None:
        """Begin, unless work with this key is under way."""
        ...

    def poll(self) -> list[tuple[str, tuple[IngestedPartition, ...]] | Failure]:
        """Outcomes since the last poll: (key, one record a partition in the request's order)."""
        ...


class Training(Protocol):
    """Runs training, in an actor that outlives the controller."""

    def start(self, request: RunRequest) -> None:
        """Begin the run, or adopt it if it is under way or done."""
        ...

    def poll(self, run_id: str) -> RunStatus:
        """Where the run stands. A run whose actor died without a result is `failed`."""
        ...

    def release(self, run_id: str) -> None:
        """End the run's actor; its results stay in storage. Also stops a run that is under way."""
        ...

    def running(self, pipeline: str) -> list[str]:
        """Ids of a pipeline's runs that have an actor, whoever started it."""
        ...


class Evaluation(Protocol):
    """Scores candidates and decides the gate."""

    def start(self, request: EvaluationRequest) -> None:
        """Begin, unless work with this key is under way."""
        ...

    def poll(self) -> list[tuple[str, GateDecision] | Failure]:
        """Outcomes since the last poll."""
        ...


class Monitoring(Protocol):
    """Summarises windows of live traffic."""

    def start(self, request: WindowRequest) -> None:
        """Begin, unless work with this key is under way."""
        ...

    def poll(self) -> list[tuple[str, WindowReport] | Failure]:
        """Outcomes since the last poll."""
        ...


class Serving(Protocol):
    """The replicas of one pipeline, as far as the controller steers them."""

    def deploy(self, document: LiveDocument) -> None:
        """See that the Serve application exists; a missing one is created with this document."""
        ...

    def apply(self, document: LiveDocument) -> None:
        """Write the document to storage, then broadcast it to all replicas."""
        ...

    def settle(self, document: LiveDocument) -> None:
        """Put the document into Serve's own `user_config`."""
        ...

    def observe(self) -> Observed:
        """Newest reports of the replicas and the ids that Serve means to run."""
        ...

    def remove(self) -> None:
        """Delete the application."""
        ...


class Registry(Protocol):
    """Model versions by id."""

    def read(self, version: str) -> ModelVersion:
        """The manifest of a version. Raises MissingArtifactError or CorruptArtifactError."""
        ...


@dataclass(frozen=True, slots=True)
class Rooms:
    """All doors of one pipeline."""

    source: Source
    ingest: Ingest
    training: Training
    registry: Registry
    evaluation: Evaluation
    monitoring: Monitoring
    serving: Serving
