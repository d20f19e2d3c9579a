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
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, Field, TypeAdapter

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
    """The newest matured ones among them, which the judged sets leave out and are judged on."""
    seed: int
    attempt: int = 1
    parent: str = ""
    """Model version that was champion when the run was asked for; lineage only."""


@dataclass(frozen=True, slots=True)
class WeightSet:
    """One set of weights of a version."""

    name: str
    """`served`, or `judged-0`, `refit-0` and so on (`training.sets`)."""
    file: str
    """Name inside the version's folder, e.g. served.safetensors."""
    sha256: str
    size: int
    """Bytes."""
    encoder: Json
    """Fitted encoder that belongs to these weights (`models.encoder.Encoder.to_json`)."""
    seed: int = 0
    left_out: tuple[str, ...] = ()
    """Partitions of the version's window that it has not learned from."""


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
    weights: tuple[WeightSet, ...]
    """In the order of training; `served`, which answers requests, is the last."""
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

    @property
    def served(self) -> WeightSet:
        """The weights that answer requests."""
        return self.weights[-1]

    @property
    def judged(self) -> tuple[WeightSet, ...]:
        """Replicates that have not learned from the judged blocks."""
        return tuple(one for one in self.weights if one.name.startswith("judged-"))

    @property
    def refits(self) -> tuple[WeightSet, ...]:
        """Trained as `served` was, each without one stretch of the judged blocks."""
        return tuple(one for one in self.weights if one.name.startswith("refit-"))


@dataclass(frozen=True, slots=True)
class RunStatus:
    """Where a run stands."""

    run_id: str
    state: Literal["running", "finished", "failed"]
    progress: str = ""
    """One line for people, e.g. `judged-0 3/5 epochs`."""
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
    """A metric that the block cannot give (AUC of one class) is absent. With replicates: their mean."""
    statistics: dict[str, float] = field(default_factory=dict)
    """What evidence is made of (`evaluation.evidence.block_statistics`): mean over the replicates."""
    replicates: tuple[dict[str, float], ...] = ()
    """The same of each replicate, in one order for all blocks."""


@dataclass(frozen=True, slots=True)
class ModelScore:
    """Metrics of one model on all judged blocks: pooled, and block by block."""

    version: str
    """Its id; of a trivial baseline its name, e.g. `base rate`."""
    overall: dict[str, float]
    """Metrics of all rows together; with replicates their mean."""
    blocks: tuple[BlockScore, ...]
    """In the order of time."""


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
    """Interval of the difference; of the value where nothing is compared."""
    blocks: int = 0
    """Blocks that it rests on."""
    verdict: Verdict = "not_enough_evidence"
    reason: str = ""
    needed: int | None = None
    """Blocks that would be enough for a verdict if they go on like these; None where it is not known."""


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
class RecordedPair:
    """How one candidate and its champion differed on the judged blocks: kept for the pipeline's scales."""

    candidate: str
    champion: str
    replicates: int
    """Models that were averaged on each side (the smaller number)."""
    blocks: int
    """Blocks that both could be scored on."""
    mean: dict[str, float]
    """Mean harm over blocks by statistic, positive where the candidate is worse."""
    variance: dict[str, float]
    """Variance of the harm over blocks, by statistic."""
    outputs: dict[str, float] = field(default_factory=dict)
    """How the candidate's outputs differed from the champion's: `log_sd_ratio`, `shift`, `correlation`."""


@dataclass(frozen=True, slots=True)
class OutputDifference:
    """How two models' outputs differ on one block, whatever the truth: of logits, or of values."""

    block: str
    rows: int
    log_sd_ratio: float
    """Logarithm of the judged model's standard deviation over the other's."""
    shift: float
    """Difference of means, in units of the other's standard deviation."""
    correlation: float


@dataclass(frozen=True, slots=True)
class GateEvidence:
    """All that the gate decides on; nothing else is asked."""

    candidate: ModelScore
    """Judged replicates on the judged blocks."""
    champion: ModelScore | None = None
    """The champion's judged replicates on those of the blocks that they have not learned from; a block
    without rows is one that it cannot read. None for the first model."""
    static: ModelScore | None = None
    """The pipeline's first model, on the blocks it has not seen."""
    baselines: tuple[ModelScore, ...] = ()
    """Trivial models on the same blocks, e.g. the base rate."""
    refit: ModelScore | None = None
    """Refits, each block by one that has not learned from it; None leaves the check out."""
    record: tuple[RecordedPair, ...] = ()
    """Earlier pairs of candidate and champion, oldest first."""
    uses: dict[str, int] = field(default_factory=dict)
    """Earlier gates that looked at a block, by block."""
    outputs: tuple[OutputDifference, ...] = ()
    """Candidate against champion, block by block."""
    segments: tuple[SegmentScore, ...] = ()
    groups: dict[str, ModelScore] = field(default_factory=dict)
    """Candidate on the rows of one segment, by segment: those that a criterion compares."""
    leaks: tuple[LeakFinding, ...] = ()
    latency: dict[str, float] = field(default_factory=dict)
    """Seconds for one request inside the served model, by quantile: p50, p99."""
    size: int | None = None
    """Bytes of the served weights; None if not known."""
    missing: dict[str, str] = field(default_factory=dict)
    """Why a metric has no value on all judged rows, by name."""


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
    pair: RecordedPair | None = None
    """This comparison, for the pipeline's record; None without a champion, with fewer than two blocks, or
    where the candidate is grossly harmed."""
    used: tuple[str, ...] = ()
    """Blocks that this gate looked at."""


@dataclass(frozen=True, slots=True)
class WatchReport:
    """What block evidence says of a champion since its promotion, against the model it dethroned."""

    verdict: Literal["pass", "continue", "fail"]
    """`fail` asks for a rollback, `pass` rules harm beyond the margin out."""
    blocks: int
    age: int
    """Blocks of time that the dethroned model is older than when it was promoted itself, or trained: what
    it has lost to age is not the champion's merit."""
    harm: float
    """e-value against "the champion is not worse by more than the margin"; it may be read every block."""
    safe: float
    """e-value against "it is worse by the margin or more"."""
    bound: float
    """What either must reach."""
    text: str
    """One line for people."""


# --- serving ------------------------------------------------------------------------------------


def _several(value: Any) -> Any:
    """What was written while there was one threshold of slowness is read as none."""
    return () if isinstance(value, int | float) else value


SlowSeconds = Annotated[tuple[float, ...], BeforeValidator(_several), Field(max_length=3)]
"""Seconds inside the model from which an answer counts as slow: the champion's p50, p90 and p99 of an
earlier minute, ascending; empty while they are unknown."""

SlowCounts = Annotated[tuple[int, ...], BeforeValidator(_several), Field(max_length=3)]
"""Counts at each of `SlowSeconds`; empty says the same as zeros."""


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
    mirror: Literal["", "challenger", "previous"] = ""
    """Slot that requests which the champion answers are mirrored to; it answers nobody."""
    slow_s: SlowSeconds = ()

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
    """Draws with an exception or an answer that is not finite, be it the first answer or a later one."""
    slow: SlowCounts = ()
    """Draws whose first answer took, inside the model, at least each of the document's `slow_s`."""
    keyed: bool = False
    """Whether these are keys: a key falls the same way in every replica, so they do not add up over
    replicas."""
    answered: int = 0
    """Draws whose first answer was none of the errors."""


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


# --- monitoring ---------------------------------------------------------------------------------


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
class ShadowBlock:
    """Two versions on the same matured, labelled requests of one block of time: one answered, one did not."""

    block: str
    """Its start, e.g. 2013-03-14."""
    answered_by: str
    """Version that answered."""
    shadow: str
    """Version that the requests were mirrored to."""
    rows: int
    positives: int
    answered: dict[str, float]
    """Statistics of the version that answered (`evaluation.evidence.block_statistics`)."""
    shadowed: dict[str, float]
    """The same of its shadow."""


@dataclass(frozen=True, slots=True)
class MetricInterval:
    """One metric with its interval."""

    metric: str
    value: float | None
    """None where it has no value; the reason says why."""
    low: float | None = None
    high: float | None = None
    """Interval whose unit of evidence is the block of time; None where the blocks bound nothing."""
    rows: int = 0
    blocks: int = 0
    segment: str = ""
    """e.g. `carrier=UA`; empty for all rows."""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class LabelCounts:
    """What became of the labels of some answers."""

    answers: int = 0
    labelled: int = 0
    """Answers with a label."""
    pending: int = 0
    """Answers without a label that may still get one."""
    unlabelled: int = 0
    """Answers that got no label within the horizon."""
    repeated: int = 0
    """Answers with the id of an earlier one; they are left out."""
    foreign: int = 0
    """Labels for no known answer."""
    unusable: int = 0
    """Labels without a time, or whose value is none that a label can have."""
    late: int = 0
    """Labels that came after the horizon; they are left out."""
    early: int = 0
    """Labels with a time before their answer: clocks jumped. They count."""
    duplicated: int = 0
    """Labels that said again what the one before said."""
    corrected: int = 0
    """Labels that changed the one before; the last one counts."""


@dataclass(frozen=True, slots=True)
class PerformanceReport:
    """A model against the truth, on matured answers."""

    state: Literal["judged", "not_enough_labels"]
    rows: int
    """Matured answers with a label."""
    blocks: int
    metrics: tuple[MetricInterval, ...] = ()
    segments: tuple[MetricInterval, ...] = ()
    labels: LabelCounts | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class EstimateCheck:
    """An estimate beside the truth that came later."""

    metric: str
    estimate: float
    low: float
    high: float
    truth: float
    within: bool
    """Whether the truth lies in the estimate's interval."""
    growth: float = 1.0
    """How many times wider the interval was made because earlier estimates had missed."""


@dataclass(frozen=True, slots=True)
class EstimateReport:
    """Performance estimated from scores alone, while labels are awaited.

    It follows moved inputs and is blind to a moved relation of inputs and label, so it alone never stops a
    retraining.
    """

    state: Literal["estimated", "not_enough_rows", "not_calibrated", "unusable_scores"]
    rows: int
    metrics: tuple[MetricInterval, ...] = ()
    """Estimates, not measurements."""
    calibration: str = ""
    """How scores were made probabilities: `none`, `platt` or `isotonic`."""
    trust: Literal["untested", "trusted", "doubtful", "refuted"] = "untested"
    """How earlier estimates met the truth that came later."""
    hits: int = 0
    """Earlier estimates whose interval, not widened, held the truth; of the metric that missed most."""
    scored: int = 0
    """Earlier estimates that met their truth."""
    growth: dict[str, float] = field(default_factory=dict)
    """How many times wider each metric's interval was made because earlier estimates missed."""
    blind_to: str = "concept_drift"
    reason: str = ""


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
    drift: tuple[DriftReport, ...] = ()
    state: Literal["judged", "not_enough_rows"] = "judged"
    pending_labels: int = 0
    """Answers that matured in this window without a label."""
    orphan_labels: int = 0
    """Labels that came in this window for no answer that is known."""
    blocks: tuple[ShadowBlock, ...] = ()
    """Blocks of mirrored requests that became mature in this window."""
    performance: PerformanceReport | None = None
    """Of the champions' answers on the newest matured blocks; None before the first."""
    estimate: EstimateReport | None = None
    """What the window's scores foretell of its metrics, until labels come."""
    diagnosis: Diagnosis | None = None
    """Why the stream moved; None where nobody asked."""


@dataclass(frozen=True, slots=True)
class KnownFacts:
    """What the controller knows of a stream without statistics."""

    promoted_ago: float | None = None
    """Seconds since the champion took over from another one; None if it is the first."""
    previous: str = ""
    """The champion before it; empty if there is none."""
    refused_share: float = 0.0
    """Share of the newest partition's rows that the contract refused."""
    usual_refused_share: float = 0.0
    """The largest such share among the partitions before it."""


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
    static: str = ""
    """The pipeline's first champion, shown beside the others; empty if there is none."""
    record: tuple[RecordedPair, ...] = ()
    """Earlier pairs of candidate and champion, oldest first."""
    uses: dict[str, int] = field(default_factory=dict)
    """Earlier gates that looked at a block, by block."""


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
    facts: KnownFacts = KnownFacts()


@dataclass(frozen=True, slots=True)
class Failure:
    """A piece of work that raised; the controller decides whether to try again."""

    key: str
    error: str
