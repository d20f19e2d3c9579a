"""What the controller knows, and readings of it. Nothing but `fold` makes a new state of an old one.

The live document is a reading of the state.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, field
from typing import Literal

from ctrain.records import (
    ArmCounts,
    Diagnosis,
    Json,
    Landing,
    LiveDocument,
    PairCounts,
    PairedBlock,
    Partition,
    RecordedPair,
    RunRequest,
    Slot,
    SlowSeconds,
    WindowReport,
    canonical,
)
from ctrain.spec import PipelineSpec, parse_spec
from ctrain.spec.rollout import Canary


@dataclass(frozen=True, slots=True)
class PartitionFact:
    """A partition that has been handled, once and for all."""

    sha256: str
    rows: int
    refused_rows: int
    refused: str
    """Why the whole partition was refused; empty if it is part of the dataset."""
    dataset_version: int
    first_event: float
    last_event: float
    unlabelled: int = 0
    """Those of the refused rows that had no label."""
    batch: int = 0
    """Number of the ingest that it landed with."""
    schema_changes: tuple[str, ...] = ()
    """How its columns differ from those that the contract needs."""


@dataclass(frozen=True, slots=True)
class VersionFact:
    """A registered model version."""

    id: str
    label: str
    sha256: str
    """Hash of its served weights: what a replica must find."""
    run_id: str
    trained_to: str
    """Newest partition it learned from."""
    rows: int
    at: float
    verdict: str = ""
    """The gate's verdict; empty before it."""
    end: str = ""
    """What became of it: promoted, refused, aborted ..."""
    warnings: tuple[str, ...] = ()
    """What the gate told beside its verdict."""


@dataclass(frozen=True, slots=True)
class IngestFact:
    """Partitions that are being landed."""

    key: str
    partitions: tuple[Partition, ...]
    attempt: int = 1


@dataclass(frozen=True, slots=True)
class Wanted:
    """A retraining that is due but has not begun."""

    trigger: str
    reason: str
    overrides: Json = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RunFact:
    """The run under way."""

    request: RunRequest
    trigger: str
    at: float
    reason: str = ""
    overrides: Json = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RolloutFact:
    """The rollout under way."""

    id: str
    version: str
    plan: Json
    """`rollout` of the spec under which it began: a new spec is for the next one."""
    phase: Literal["loading", "shadow", "canary"]
    step: int
    """Index into the plan's steps, for phase `canary`."""
    started: float
    since: float
    """When every replica was seen to serve the present document; 0 until then."""
    slow_s: SlowSeconds = ()
    """Empty until the champion's own latency is known."""
    verdict: str = ""
    analysed: float = 0.0
    """When an analysis was last journaled."""
    text: tuple[tuple[str, str, str], ...] = ()
    """(metric, verdict, words) of the newest journaled analysis."""
    blocks: tuple[PairedBlock, ...] = ()
    """Matured blocks of mirrored requests, in the order of time."""

    def canary(self) -> Canary:
        """The plan as checked records."""
        return _plan(canonical(self.plan))


@dataclass(frozen=True, slots=True)
class WatchFact:
    """A promotion whose quality is watched: the champion before it scores the same requests in shadow."""

    version: str
    against: str
    """The champion before it."""
    since: float
    until: float
    blocks: tuple[PairedBlock, ...] = ()
    """Matured blocks of both, in the order of time."""
    verdict: str = ""
    text: str = ""
    """Words of the newest look."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """Cumulative counts of one replica incarnation, kept because replicas die and rollouts go on."""

    arms: tuple[ArmCounts, ...]
    pairs: tuple[PairCounts, ...]


@dataclass(frozen=True, slots=True)
class State:
    """Everything the controller knows of one pipeline."""

    seq: int = 0
    epoch: int = 0
    at: float = 0.0
    """Time of the newest event."""
    spec: Json = field(default_factory=dict)
    code: str = ""
    stopped: bool = False
    partitions: dict[str, PartitionFact] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    """Why a folder of the source is not used, by name."""
    ingest: IngestFact | None = None
    ingests: int = 0
    ingest_failures: int = 0
    """Ingests in a row that were given up."""
    ingest_failed: float = 0.0
    """When the newest of them was."""
    fresh: int = 0
    """Partitions committed since the last run was asked for."""
    wanted: Wanted | None = None
    waiting: str = ""
    """Why a wanted run cannot begin."""
    run: RunFact | None = None
    runs: int = 0
    last_run: str = ""
    run_at: float = 0.0
    """When the newest run began."""
    evaluating: str = ""
    """Version that is before the gate."""
    evaluations: int = 0
    versions: dict[str, VersionFact] = field(default_factory=dict)
    labels: int = 0
    champion: str = ""
    previous: str = ""
    promoted_at: float = 0.0
    rollout: RolloutFact | None = None
    rollouts: int = 0
    evidence: dict[str, Evidence] = field(default_factory=dict)
    watch: WatchFact | None = None
    first: str = ""
    """The pipeline's first champion: the static model that others are shown beside."""
    record: tuple[RecordedPair, ...] = ()
    """Comparisons of candidates with champions so far: what their differences are measured by."""
    uses: dict[str, int] = field(default_factory=dict)
    """Gates that have looked at a block, by block."""
    paused: bool = False
    generation: int = 0
    converged: int = 0
    """Newest generation that every replica was seen to serve."""
    settled: int = 0
    """Newest generation that was put into Serve's own configuration."""
    window_end: float = 0.0
    windowing: float = 0.0
    """End of the window that is being summarised; 0 if none."""
    windowing_watermark: float = 0.0
    """Watermark that it is summarised under."""
    window: WindowReport | None = None
    hold: str = ""
    """Why nothing but a person starts a run: what diagnosis found wrong with the data or its labels."""
    diagnosis: Diagnosis | None = None
    """The newest one."""
    scheduled: float = 0.0
    """When a schedule last fired."""
    alerts: tuple[tuple[float, str, str], ...] = ()
    """(time, kind, text) of the newest alerts."""

    @property
    def watermark(self) -> float:
        """Newest event time that was committed; what "matured" is measured against."""
        return max((fact.last_event for fact in self.partitions.values() if not fact.refused), default=0.0)

    @property
    def committed(self) -> list[str]:
        """Names of the partitions of the dataset, oldest first."""
        return sorted(name for name, fact in self.partitions.items() if not fact.refused)

    @property
    def dataset_version(self) -> int:
        """Version of the Delta table that holds all committed partitions; -1 before the first."""
        return max((fact.dataset_version for fact in self.partitions.values()), default=-1)

    @property
    def busy(self) -> str:
        """What keeps the next run waiting; empty if nothing does."""
        if self.run is not None:
            return f"run {self.run.request.run_id} is under way"
        if self.evaluating:
            return f"{self.label(self.evaluating)} is before the gate"
        if self.rollout is not None:
            return f"{self.label(self.rollout.version)} is in rollout"
        return ""

    def label(self, version: str) -> str:
        """Name for people of a version id, e.g. v7."""
        fact = self.versions.get(version)
        return fact.label if fact is not None else version

    def pipeline_spec(self) -> PipelineSpec:
        """The spec as checked records."""
        return _parsed(canonical(self.spec))

    def document(self, epoch: int) -> LiveDocument:
        """What every replica should serve now."""
        rollout = self.rollout
        split = 0.0
        mirror: Literal["", "challenger", "previous"] = ""
        if rollout is not None:
            mirror = "" if rollout.phase == "loading" else "challenger"
            if rollout.phase == "canary":
                split = rollout.canary().steps[rollout.step]
        elif self.watch is not None:
            mirror = "previous"
        return LiveDocument(
            pipeline=str(self.spec.get("pipeline", "")),
            epoch=epoch,
            generation=self.generation,
            champion=self._slot(self.champion),
            challenger=self._slot(rollout.version) if rollout is not None else None,
            previous=self._slot(self.previous),
            rollout=rollout.id if rollout is not None else "",
            split=split,
            mirror=mirror,
            slow_s=rollout.slow_s if rollout is not None else (),
        )

    def _slot(self, version: str) -> Slot | None:
        fact = self.versions.get(version)
        return Slot(fact.id, fact.label, fact.sha256) if fact is not None else None


@functools.lru_cache(maxsize=64)
def _parsed(text: str) -> PipelineSpec:
    return parse_spec(json.loads(text))


@functools.lru_cache(maxsize=64)
def _plan(text: str) -> Canary:
    return Canary.model_validate_json(text)


def landings(state: State) -> dict[str, Landing]:
    """How each partition of the dataset landed."""
    facts = ((name, state.partitions[name]) for name in state.committed)
    return {name: Landing(fact.batch, fact.rows, fact.unlabelled) for name, fact in facts}
