"""Records of monitoring: drift, performance, its estimate, diagnosis, and the report of a window."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

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
class PerformanceReport:
    """A model against the truth, on matured answers."""

    state: Literal["judged", "not_enough_labels"]
    rows: int
    """Matured answers with a label."""
    blocks: int
    metrics: tuple[MetricInterval, ...] = ()
    segments: tuple[MetricInterval, ...] = ()
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
class SkewReport:
    """Whether answers that were given are those that the batch path computes from the same rows."""

    state: Literal["alike", "skewed", "not_computed"]
    """`not_computed`: none of the sampled answers could be."""
    rows: int
    """Answers that were computed again."""
    skewed: int
    """Those of them that differ by more than float32 explains."""
    share: float
    """The same as a fraction."""
    largest: float
    """Largest difference of two probabilities."""
    gone: int = 0
    """Answers of versions whose files or code cannot be loaded any more."""
    refused: int = 0
    """Answered rows that the version's view refuses in batch."""
    reason: str = ""
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
    skew: SkewReport | None = None
    """Whether serving and batch compute the same; None without answers."""


@dataclass(frozen=True, slots=True)
class KnownFacts:
    """What the controller knows of a stream without statistics."""

    promoted_ago: float | None = None
    """Seconds since the champion took over from another one; None if it is the first."""
    previous: str = ""
    """The champion before it; empty if there is none."""
    refused_share: float = 0.0
    """Share of the newest partition's rows that broke the contract; 1 if it was refused whole."""
    usual_refused_share: float = 0.0
    """The largest such share among the accepted partitions before it."""
    schema_changes: tuple[str, ...] = ()
    """How the newest partition's columns differ from those that the contract needs."""
    skewed: bool = False
    """Whether the window before was skewed: then it is no news."""
