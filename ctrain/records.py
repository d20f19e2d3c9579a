"""Frozen records handed from room to room. Plain data: no behaviour beyond JSON and small readings.

Every record turns into JSON by `to_json(record)` and back by `from_json(Type, data)`, strictly: that
is how records travel through the journal, storage, HTTP and Ray. Times are seconds since 1970 (UTC),
shares are fractions in [0, 1], hashes are sha256 in hex.
"""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from pydantic import TypeAdapter

R = TypeVar("R")
Json = dict[str, Any]


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def to_json(record: Any) -> Any:
    """Turn a record (or a container of records) into plain JSON values."""
    kind: Any = type(record)
    return _adapter(kind).dump_python(record, mode="json")


def from_json(kind: type[R], data: Any) -> R:
    """Rebuild a record of type `kind`; unknown and missing fields raise pydantic's ValidationError."""
    wanted: Any = kind
    result: R = _adapter(wanted).validate_python(data)
    return result


def canonical(data: Any) -> str:
    """JSON text with one spelling a value: sorted keys, no spaces, no NaN; what hashes are taken of."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def sha256_of(data: Any) -> str:
    """Hash of a JSON value's canonical text."""
    return hashlib.sha256(canonical(data).encode()).hexdigest()


# --- data ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of a partition, as its seal names it."""

    name: str
    size: int
    """Bytes."""
    sha256: str
    rows: int


@dataclass(frozen=True, slots=True)
class Partition:
    """A sealed partition seen in the source."""

    name: str
    """Start of its time range, e.g. 2013-03-14; also the name of its block of evidence."""
    path: str
    """Folder or URL that holds the files."""
    files: tuple[SourceFile, ...]
    sha256: str
    """Content hash: of the sorted (name, sha256) of its files."""
    rows: int


@dataclass(frozen=True, slots=True)
class Sighting:
    """What a look at one folder of the source found: a sealed partition, or why it is not used."""

    name: str
    partition: Partition | None
    problem: str = ""
    """Why it is not used yet: unsealed, truncated, an unreadable seal."""


@dataclass(frozen=True, slots=True)
class ContractReport:
    """Verdict on a partition's rows."""

    rows: int
    accepted: int
    reasons: dict[str, int]
    """Refused rows by reason, e.g. {"distance: below 0": 3}; a row counts for its first reason."""

    @property
    def refused(self) -> int:
        """Number of refused rows."""
        return self.rows - self.accepted


@dataclass(frozen=True, slots=True)
class IngestedPartition:
    """Outcome of landing one partition: committed as part of a dataset version, or refused whole."""

    name: str
    sha256: str
    """Content hash of the source files."""
    report: ContractReport
    refused: str = ""
    """Why the whole partition was refused; empty if it was committed."""
    dataset_version: int = -1
    """Version of the Delta table that first holds it; -1 if refused."""
    first_event: float = 0.0
    last_event: float = 0.0
    """Newest event time of its accepted rows."""


# --- training -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RunRequest:
    """Everything a run needs; written beside its results, so that it can be repeated."""

    run_id: str
    pipeline: str
    root: str
    spec: Json
    """The pipeline's whole spec as JSON, overrides of this run applied."""
    code: str
    """sha256 of the user code's zip under root/code; empty when the code is installed."""
    dataset_version: int
    partitions: tuple[str, ...]
    """Partitions of the window, oldest first: what `served` learns from."""
    blocks: tuple[str, ...]
    """The newest matured ones among them, which `judged` leaves out and is judged on."""
    seed: int
    attempt: int = 1
    parent: str = ""
    """Model version that was champion when the run was asked for; lineage only."""


@dataclass(frozen=True, slots=True)
class WeightSet:
    """One set of weights of a version."""

    file: str
    """Name inside the version's folder, e.g. served.safetensors."""
    sha256: str
    size: int
    """Bytes."""
    encoder: Json
    """Fitted encoder that belongs to these weights (`models.encoder.Encoder.to_json`)."""


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """Manifest of an immutable model version; its id is the hash of this record without the id."""

    id: str
    """First 12 hex digits of the manifest's hash."""
    pipeline: str
    run_id: str
    code: str
    features: str
    """Import path of the feature view."""
    view_hash: str
    columns: Json
    """Columns of the feature view, as declared: what a request must hold."""
    model: Json
    """Spec of the network."""
    label: str
    threshold: float
    """Probability at and above which the decision is positive."""
    judged: WeightSet
    served: WeightSet
    dataset_version: int
    partitions: tuple[str, ...]
    blocks: tuple[str, ...]
    seed: int
    workers: int
    parent: str
    rows: int
    """Rows that `served` learned from."""
    spec_sha256: str
    environment: dict[str, str]
    """Versions of Python, ctrain, torch, ray, numpy; device."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Training loss and the like, by name."""


@dataclass(frozen=True, slots=True)
class RunStatus:
    """Where a run stands."""

    run_id: str
    state: Literal["running", "finished", "failed"]
    progress: str = ""
    """One line for people, e.g. `judged 3/5 epochs`."""
    version: str = ""
    """Id of the model version, once finished."""
    rows: int = 0
    seconds: float = 0.0
    error: str = ""
    retryable: bool = True
    """Whether another attempt may end otherwise; a failed run of unusable rows fails again."""


# --- evaluation ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BlockScore:
    """Metrics of one model on one matured block."""

    block: str
    rows: int
    positives: int
    metrics: dict[str, float]
    """A metric that the block cannot give (AUC of one class) is absent."""


@dataclass(frozen=True, slots=True)
class ModelScore:
    """Metrics of one model on all judged blocks: pooled, and block by block."""

    version: str
    overall: dict[str, float]
    blocks: tuple[BlockScore, ...]


Verdict = Literal["accept", "refuse", "not_enough_evidence"]


@dataclass(frozen=True, slots=True)
class CriterionResult:
    """One gate criterion with its evidence."""

    metric: str
    rule: str
    """Words, e.g. `at least 0.62` or `no harm beyond 0.02`."""
    threshold: float
    value: float | None
    """Candidate's pooled value; None if it cannot be computed."""
    champion: float | None = None
    difference: float | None = None
    """Mean paired difference over blocks, positive if the candidate is better."""
    low: float | None = None
    high: float | None = None
    """Paired interval of the difference."""
    blocks: int = 0
    verdict: Verdict = "not_enough_evidence"
    reason: str = ""


@dataclass(frozen=True, slots=True)
class SegmentScore:
    """A model on one segment of the judged rows, against another one if there is one."""

    segment: str
    """e.g. `carrier=UA`."""
    metric: str
    rows: int
    blocks: int
    value: float | None = None
    champion: float | None = None
    difference: float | None = None
    """Mean paired difference over blocks, positive if the judged model is better."""
    low: float | None = None
    high: float | None = None
    """Interval of the difference that holds for all segments of the search at once."""
    verdict: Verdict = "not_enough_evidence"
    reason: str = ""


@dataclass(frozen=True, slots=True)
class LeakFinding:
    """A feature that may know the label."""

    feature: str
    kind: str
    """`predicts_too_well`, `later_than_label` ..."""
    value: float
    threshold: float
    text: str


@dataclass(frozen=True, slots=True)
class PairedBlock:
    """Two models on the same matured, labelled rows of one block of time."""

    block: str
    """e.g. 2013-03-14."""
    rows: int
    positives: int
    judged: dict[str, float]
    """Statistics of the model that is judged, by name (`evaluation.evidence`)."""
    against: dict[str, float]
    """The same of the model that it is compared with."""


@dataclass(frozen=True, slots=True)
class GateDecision:
    """The gate's verdict on a candidate."""

    version: str
    champion: str
    """Version compared with; empty for the first model."""
    verdict: Verdict
    criteria: tuple[CriterionResult, ...]
    candidate_score: ModelScore
    champion_score: ModelScore | None
    reason: str


# --- serving ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Slot:
    """What a slot of a replica should hold."""

    version: str
    """Id of the model version."""
    label: str
    """Its name for people, e.g. v7."""
    sha256: str
    """Hash of its served weights, from the registry."""


@dataclass(frozen=True, slots=True)
class LiveDocument:
    """What every replica of a pipeline should serve. The highest (epoch, generation) wins."""

    pipeline: str
    epoch: int
    """Fencing epoch of the controller that wrote it; 0 for an operator's file."""
    generation: int
    champion: Slot | None = None
    challenger: Slot | None = None
    previous: Slot | None = None
    rollout: str = ""
    """Id of the rollout under way; empty if none."""
    split: float = 0.0
    """Share of live traffic that the challenger answers."""
    mirror: bool = False
    """Whether requests that the champion answers are mirrored to the challenger."""
    slow_s: float = 0.0
    """Seconds inside the model from which an answer counts as slow; 0 counts none."""

    @property
    def order(self) -> tuple[int, int]:
        """(epoch, generation): what replicas compare."""
        return (self.epoch, self.generation)

    @property
    def slots(self) -> dict[str, Slot]:
        """The filled slots by name."""
        named = {"champion": self.champion, "challenger": self.challenger, "previous": self.previous}
        return {name: slot for name, slot in named.items() if slot is not None}


@dataclass(frozen=True, slots=True)
class ArmCounts:
    """Cumulative draws of one arm of a rollout at one split, in one replica incarnation.

    A draw is a throw of the split's coin: a request without a key is one, and so is each key.
    """

    rollout: str
    split: float
    """Chance that the draw fell to the challenger; for a key seen at an earlier step, given what that
    step showed of it."""
    arm: Literal["champion", "challenger"]
    requests: int = 0
    """Draws with a request."""
    errors: int = 0
    """Draws with an exception or an answer that is not finite."""
    slow: int = 0
    """Draws with an answer whose time inside the model reached the document's `slow_s`."""
    keyed: bool = False
    """Whether these are keys: a key falls the same way in every replica, so they do not add up over
    replicas."""


@dataclass(frozen=True, slots=True)
class PairCounts:
    """Cumulative comparison of champion and challenger on mirrored requests, each one witness."""

    rollout: str
    pairs: int = 0
    """Requests that both models scored."""
    flipped: float = 0.0
    """Sum over requests of the share of rows on whose decision they differ."""
    shift: float = 0.0
    """Sum over requests of the mean of challenger's minus champion's probability."""
    distance: float = 0.0
    """Sum over requests of the mean absolute difference."""
    errors: int = 0
    """Mirrored requests at which the challenger raised or was not finite."""
    shed: int = 0
    """Requests that were not mirrored because the queue was full."""


@dataclass(frozen=True, slots=True)
class ReplicaReport:
    """What one replica says of itself: on every pull, and as its answer to a document."""

    replica: str
    """Serve's id of the replica."""
    incarnation: str
    """New at each start of the process; counters belong to it."""
    epoch: int
    generation: int
    """Of the newest document it has taken."""
    resident: dict[str, str]
    """sha256 of the weights in memory, by version id."""
    refused: dict[str, str]
    """Why a version could not be loaded, by version id."""
    arms: tuple[ArmCounts, ...] = ()
    pairs: tuple[PairCounts, ...] = ()
    answered: int = 0
    """Requests answered 200 since its start."""
    failed: int = 0
    """Requests answered 5xx since its start."""
    latency: dict[str, float] = field(default_factory=dict)
    """Quantiles (p50, p90, p99) of the champion's seconds inside the model, last minute."""
    dropped: int = 0
    """Answers that the bounded prediction log had to drop."""
    at: float = 0.0

    def serves(self, document: LiveDocument) -> bool:
        """Whether it has taken this document and holds its champion and challenger weights."""
        if (self.epoch, self.generation) < document.order:
            return False
        needed = [slot for slot in (document.champion, document.challenger) if slot is not None]
        return all(self.resident.get(slot.version) == slot.sha256 for slot in needed)


@dataclass(frozen=True, slots=True)
class Observed:
    """What the controller sees of serving."""

    reports: tuple[ReplicaReport, ...]
    """Newest report of every replica heard lately."""
    expected: tuple[str, ...] | None
    """Replica ids that Serve means to run; None if Serve could not be asked."""
    deployed: bool = True
    """Whether the application exists."""
    configured: int | None = None
    """Generation in Serve's own configuration, 0 for an operator's file; None if Serve was not asked."""


# --- rollout ------------------------------------------------------------------------------------

StepVerdict = Literal["pass", "continue", "fail"]


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


# --- monitoring ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FeatureDrift:
    """Test of one feature, window against reference."""

    feature: str
    p_value: float
    effect: float
    """Kolmogorov-Smirnov distance, or total variation for categories, in [0, 1]."""
    drifted: bool


DriftState = Literal["steady", "calibrating", "warning", "drift", "recovered", "not_enough_rows"]


@dataclass(frozen=True, slots=True)
class DriftCause:
    """One score with a large share of the evidence."""

    feature: str
    """Feature or detector's statistic; empty where the share of a segment's rows moved."""
    what: Literal["mean", "scale", "shape", "missing", "share", "statistic"]
    direction: Literal["up", "down"]
    segment: str
    """e.g. `carrier=UA`; empty for all rows."""
    effect: float | None
    """Mean shift of the last windows in standard deviations of the reference, signed; None where the
    statistic has no such unit."""
    share: float
    """Of the evidence, in [0, 1]."""


@dataclass(frozen=True, slots=True)
class DriftReport:
    """What one window says of one kind of drift."""

    kind: str
    """`data`: inputs; `prediction`: answers; `concept`: matured losses."""
    state: DriftState
    alarm: bool
    """Whether drift begins with this window; a drift that goes on is no new alarm."""
    evidence: float
    threshold: float
    """Evidence from which on it is drift."""
    causes: tuple[DriftCause, ...]
    """At most three, the largest share first; empty where there is hardly any evidence."""
    rows: int
    checks: int
    """Windows judged since the calibration."""
    budget: str
    """Words, e.g. `at most one false alarm in 1000 checks`."""
    reason: str
    """One line for people."""


@dataclass(frozen=True, slots=True)
class WindowReport:
    """Summary of one window of live traffic."""

    start: float
    end: float
    rows: int
    labelled: int
    metrics: dict[str, float]
    """Live metrics of the champion's answers on joined, matured labels."""
    baseline: dict[str, float] = field(default_factory=dict)
    latency: dict[str, float] = field(default_factory=dict)
    drift: tuple[FeatureDrift, ...] = ()
    state: Literal["judged", "not_enough_rows"] = "judged"
    pending_labels: int = 0
    """Answers that matured in this window without a label."""
    orphan_labels: int = 0
    """Labels that came in this window for no answer that is known."""


DiagnosisVerdict = Literal[
    "none", "season", "data_quality", "upstream_schema", "serving_skew", "label_delay", "traffic_mix",
    "covariate_shift", "concept", "concept_local", "label_noise", "needs_recalibration", "bad_version",
    "unknown",
]  # fmt: skip
DiagnosisAction = Literal[
    "none", "wait", "quarantine", "hold_training", "retrain", "recalibrate", "roll_back", "escalate"
]


@dataclass(frozen=True, slots=True)
class DiagnosisEvidence:
    """One statistic of the judged window, beside what it was in the stream's own past."""

    statistic: str
    """e.g. `missing`, `moved`, `gain` (`monitoring.diagnosis`), or `event`."""
    subject: str
    """Feature or segment; empty for the whole window."""
    value: float
    usual: float | None = None
    """Median over the past windows; None for an event."""
    limit: float | None = None
    """What it had to pass; None for an event."""
    windows: int = 0
    """Past windows that `usual` and `limit` come from."""
    passed: bool = True
    text: str = ""
    """One line for people."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Why a window differs from those before it: one verdict, and the one action that follows."""

    verdict: DiagnosisVerdict
    action: DiagnosisAction
    kind: str = ""
    """Of data quality: missing, stuck, new_category, range, refused; of noise: symmetric, lost_positive,
    lost_negative; of a covariate shift: harmful, harmless; of skew: code; of none: aged, where the
    champion has long been behind a model of recent windows. Empty elsewhere."""
    subjects: tuple[str, ...] = ()
    """Features at fault, or the segment (`carrier=UA`), the worst first."""
    way: str = ""
    """How to act: slices of a retraining, what to quarantine."""
    reason: str = ""
    """One sentence for people."""
    would_decide: str = ""
    """For `unknown`, and for `none` on thin evidence: what would decide it."""
    evidence: tuple[DiagnosisEvidence, ...] = ()
    rows: int = 0
    labelled: int = 0
    windows: int = 0
    """Past windows that thresholds come from."""


# --- requests to rooms --------------------------------------------------------------------------


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


@dataclass(frozen=True, slots=True)
class Failure:
    """A piece of work that raised; the controller decides whether to try again."""

    key: str
    error: str
