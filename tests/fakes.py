"""Fakes of the rooms: each does its work at once and keeps it, as storage would, over restarts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from ctrain.controller.rooms import Rooms
from ctrain.records import (
    ArmCounts,
    ContractReport,
    EvaluationRequest,
    Failure,
    GateDecision,
    IngestedPartition,
    IngestRequest,
    LiveDocument,
    ModelScore,
    ModelVersion,
    Observed,
    PairCounts,
    Partition,
    RecordedPair,
    ReplicaReport,
    RunRequest,
    RunStatus,
    Sighting,
    WeightSet,
    WindowReport,
    WindowRequest,
)

DAY = 86400.0


def partition(day: int) -> Partition:
    """A sealed partition of one day."""
    return Partition(f"day-{day:03d}", f"/landing/day-{day:03d}", (), f"{day:064d}", 100)


def model_version(name: str, partitions: tuple[str, ...] = ("day-000",)) -> ModelVersion:
    """A manifest with the given id; its weights' hash follows from it."""
    weights = WeightSet("served", "served.safetensors", f"sha-{name}", 10, {})
    return ModelVersion(
        id=name, pipeline="p", run_id="r", code="", features="m:view", view_hash="h", columns={}, model={},
        label="y", threshold=0.5, weights=(weights,), dataset_version=0, partitions=partitions,
        blocks=(), seed=0, workers=1, parent="", rows=100, spec_sha256="", environment={},
    )  # fmt: skip


@dataclass
class FakeSource:
    """Lists what the test has landed."""

    landed: list[Sighting] = field(default_factory=list)
    found: list[Sighting] | Failure | None = None
    away: str = ""
    """Why it cannot be looked at."""

    def start(self, known: dict[str, str]) -> None:
        self.found = [
            seen
            for seen in self.landed
            if seen.partition is None or known.get(seen.name) != seen.partition.sha256
        ]
        if self.away:
            self.found = Failure("look", self.away)

    def poll(self) -> list[Sighting] | Failure | None:
        found, self.found = self.found, None
        return found


@dataclass
class FakeIngest:
    """Commits every partition once, whatever the number of calls; `bad` ones raise, `refused` ones fail."""

    commits: dict[str, int] = field(default_factory=dict)
    done: list[tuple[str, tuple[IngestedPartition, ...]] | Failure] = field(default_factory=list)
    bad: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)
    """Content hashes that the contract refuses."""
    starts: list[tuple[str, ...]] = field(default_factory=list)

    def start(self, request: IngestRequest) -> None:
        self.starts.append(tuple(item.name for item in request.partitions))
        if self.bad & {item.name for item in request.partitions}:
            self.done.append(Failure(request.key, "storage is away"))
            return
        items = []
        for item in request.partitions:
            if item.sha256 in self.refused:
                report = ContractReport(100, 0, {"y: null": 100})
                items.append(IngestedPartition(item.name, item.sha256, report, "no row has a label"))
                continue
            version = self.commits.setdefault(item.name, len(self.commits))
            day = int(item.name.split("-")[1])
            items.append(
                IngestedPartition(
                    item.name,
                    item.sha256,
                    ContractReport(100, 100, {}),
                    "",
                    version,
                    day * DAY,
                    day * DAY + DAY - 1,
                )
            )
        self.done.append((request.key, tuple(items)))

    def poll(self) -> list[tuple[str, tuple[IngestedPartition, ...]] | Failure]:
        done, self.done = self.done, []
        return done


@dataclass
class FakeTraining:
    """Finishes a run at once; `bad` names runs that must fail."""

    runs: dict[str, RunRequest] = field(default_factory=dict)
    starts: list[str] = field(default_factory=list)
    released: list[str] = field(default_factory=list)
    actors: set[str] = field(default_factory=set)
    """Runs that hold an actor, and with it processors."""
    bad: set[str] = field(default_factory=set)
    hopeless: bool = False
    """Whether the failures would come again with every attempt."""

    def start(self, request: RunRequest) -> None:
        self.starts.append(request.run_id)
        self.actors.add(request.run_id)
        self.runs.setdefault(request.run_id, request)

    def poll(self, run_id: str) -> RunStatus:
        if run_id not in self.runs or run_id in self.bad:
            return RunStatus(run_id, "failed", error="worker lost", retryable=not self.hopeless)
        return RunStatus(run_id, "finished", version=f"m-{run_id}", rows=100, seconds=1.0)

    def release(self, run_id: str) -> None:
        self.released.append(run_id)
        self.actors.discard(run_id)

    def running(self, pipeline: str) -> list[str]:
        return sorted(self.actors)


@dataclass
class FakeRegistry:
    """Knows every version that a run finished; `fault` is raised once it is set."""

    training: FakeTraining
    fault: Exception | None = None

    def read(self, version: str) -> ModelVersion:
        if self.fault is not None:
            raise self.fault
        run = self.training.runs[version.removeprefix("m-")]
        return model_version(version, run.partitions)


@dataclass
class FakeEvaluation:
    """Accepts, or what `verdicts` says of a version; `bad` ones cannot be scored."""

    verdicts: dict[str, str] = field(default_factory=dict)
    done: list[tuple[str, GateDecision] | Failure] = field(default_factory=list)
    bad: set[str] = field(default_factory=set)
    pairs: dict[str, RecordedPair] = field(default_factory=dict)
    used: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    requests: list[EvaluationRequest] = field(default_factory=list)

    def start(self, request: EvaluationRequest) -> None:
        self.requests.append(request)
        if request.candidate in self.bad:
            self.done.append(Failure(request.key, "a block is missing"))
            return
        verdict = self.verdicts.get(request.candidate, "accept")
        score = ModelScore(request.candidate, {"auc": 0.7}, ())
        pair = self.pairs.get(request.candidate)
        decision = GateDecision(
            request.candidate, request.champion, verdict, (), score, None, "said so", pair, self.used,
            self.warnings,
        )  # fmt: skip
        self.done.append((request.key, decision))

    def poll(self) -> list[tuple[str, GateDecision] | Failure]:
        done, self.done = self.done, []
        return done


@dataclass
class FakeMonitoring:
    """Sees no traffic, or what `report` says of a window."""

    done: list[tuple[str, WindowReport] | Failure] = field(default_factory=list)
    requests: list[WindowRequest] = field(default_factory=list)
    report: WindowReport | None = None
    fails: bool = False

    def start(self, request: WindowRequest) -> None:
        self.requests.append(request)
        if self.fails:
            self.done.append(Failure(request.key, "the log is torn"))
            return
        seen = self.report or WindowReport(0.0, 0.0, 0, 0, {}, state="not_enough_rows")
        self.done.append((request.key, replace(seen, start=request.start, end=request.end)))

    def poll(self) -> list[tuple[str, WindowReport] | Failure]:
        done, self.done = self.done, []
        return done


@dataclass
class FakeReplica:
    """A replica that loads at once and keeps the highest (epoch, generation)."""

    name: str
    fenced: bool = True
    document: LiveDocument | None = None
    history: list[LiveDocument] = field(default_factory=list)
    past: list[list[LiveDocument]] = field(default_factory=list)
    """Histories of earlier incarnations."""
    refuses: set[str] = field(default_factory=set)
    errors: set[str] = field(default_factory=set)
    """Versions that fail on every request that they answer."""
    arms: dict[tuple[str, float, str], ArmCounts] = field(default_factory=dict)
    pairs: dict[str, PairCounts] = field(default_factory=dict)

    def take(self, document: LiveDocument) -> None:
        if self.fenced and self.document is not None and document.order < self.document.order:
            return
        if self.document is None or document.order != self.document.order:
            self.history.append(document)
        self.document = document

    def restart(self, stored: LiveDocument | None) -> None:
        """Die and come back with the document that lies in storage."""
        self.past.append(self.history)
        self.document, self.history = None, []
        self.arms, self.pairs = {}, {}
        if stored is not None:
            self.take(stored)

    def serve(self, requests: int) -> None:
        """Answer requests in exact proportion of the split, and mirror."""
        document = self.document
        if document is None or not document.rollout or document.challenger is None:
            return
        if document.mirror:
            old = self.pairs.get(document.rollout, PairCounts(document.rollout))
            self.pairs[document.rollout] = replace(old, pairs=old.pairs + requests)
        if document.split > 0:
            answered = max(1, round(requests * document.split))
            broken = document.challenger.version in self.errors
            self._count(document, "challenger", answered, answered if broken else 0, answered // 10)
            rest = max(requests, round(answered / document.split) - answered)
            self._count(document, "champion", rest, 0, rest // 10)

    def _count(self, document: LiveDocument, arm: str, requests: int, errors: int, slow: int) -> None:
        key = (document.rollout, document.split, arm)
        old = self.arms.get(key, ArmCounts(document.rollout, document.split, arm, slow=(0, 0, 0)))
        shares = (requests // 2, slow, slow // 10)
        self.arms[key] = replace(
            old,
            requests=old.requests + requests,
            errors=old.errors + errors,
            slow=tuple(before + more for before, more in zip(old.slow, shares, strict=True)),
            answered=old.answered + requests - errors,
        )

    def report(self) -> ReplicaReport:
        document = self.document
        slots = document.slots.values() if document is not None else ()
        return ReplicaReport(
            replica=self.name,
            incarnation=f"{self.name}{len(self.past)}",
            epoch=document.epoch if document else 0,
            generation=document.generation if document else 0,
            resident={s.version: s.sha256 for s in slots if s.version not in self.refuses},
            refused={s.version: "sha256 differs" for s in slots if s.version in self.refuses},
            arms=tuple(self.arms.values()),
            pairs=tuple(self.pairs.values()),
            latency={"p50": 0.005, "p90": 0.01, "p99": 0.02},
        )


@dataclass
class FakeServing:
    """Replicas that outlive every controller."""

    replicas: list[FakeReplica] = field(default_factory=lambda: [FakeReplica("a"), FakeReplica("b")])
    stored: LiveDocument | None = None
    settled: list[int] = field(default_factory=list)
    configured: int | None = None
    deployed: bool = False
    deliver: Callable[[FakeReplica], bool] = lambda replica: True
    fault: Exception | None = None
    """What Serve answers to every change of its configuration, once set."""

    def deploy(self, document: LiveDocument) -> None:
        self._answer()
        self.deployed = True

    def _answer(self) -> None:
        if self.fault is not None:
            raise self.fault

    def apply(self, document: LiveDocument) -> None:
        if self.stored is None or document.order >= self.stored.order:
            self.stored = document
        for replica in self.replicas:
            if self.deliver(replica):
                replica.take(document)

    def settle(self, document: LiveDocument) -> None:
        self._answer()
        self.settled.append(document.generation)
        self.configured = document.generation

    def observe(self) -> Observed:
        reports = tuple(replica.report() for replica in self.replicas)
        return Observed(
            reports, tuple(replica.name for replica in self.replicas), self.deployed, self.configured
        )

    def remove(self) -> None:
        self._answer()
        self.deployed = False


@dataclass
class World:
    """All fake rooms of one pipeline."""

    source: FakeSource = field(default_factory=FakeSource)
    ingest: FakeIngest = field(default_factory=FakeIngest)
    training: FakeTraining = field(default_factory=FakeTraining)
    evaluation: FakeEvaluation = field(default_factory=FakeEvaluation)
    monitoring: FakeMonitoring = field(default_factory=FakeMonitoring)
    serving: FakeServing = field(default_factory=FakeServing)

    def __post_init__(self) -> None:
        self.registry = FakeRegistry(self.training)

    def land(self, *days: int) -> None:
        self.source.landed += [Sighting(partition(day).name, partition(day)) for day in days]

    def rooms(self) -> Rooms:
        return Rooms(
            self.source,
            self.ingest,
            self.training,
            self.registry,
            self.evaluation,
            self.monitoring,
            self.serving,
        )


class FakeClock:
    """A clock that the test moves."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now
