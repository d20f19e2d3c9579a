"""Records of evaluation: scores by block, the gate's evidence and decision, the watch after it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


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


CensoringState = Literal[
    "matured",
    "censored",
    "young_but_fair",
    "labels_from_the_future",
    "not_enough_rows",
    "not_enough_evidence",
]


@dataclass(frozen=True, slots=True)
class Censoring:
    """Whether the labelled rows are a fair set, with the evidence."""

    state: CensoringState
    """`matured`: no young rows. `young_but_fair`: young, but labels of both classes come alike."""
    rows: int
    """Selected rows."""
    young: int
    """Selected rows that are not mature."""
    unlabelled: int
    """Mature rows without a label by now: the wait is too short, or labels are lost."""
    young_positive: float | None = None
    """Share of positives among the young rows."""
    matured_positive: float | None = None
    """Share of positives among the mature rows with a label."""
    known_positive: float | None = None
    """Share of mature positives that were known at the age of the young rows."""
    known_negative: float | None = None
    low: float | None = None
    """Interval, by blocks of event time, of the difference of the two shares."""
    high: float | None = None
    reason: str = ""

    @property
    def usable(self) -> bool:
        """Whether a model may learn from the rows and be judged on them."""
        return self.state in ("matured", "young_but_fair")


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
    """Features that know the label."""
    doubts: tuple[LeakFinding, ...] = ()
    """Features that may know it, or that a person vouches for."""
    censoring: Censoring | None = None
    """Whether the rows learned from and judged on were chosen by their label; None if labels have no time."""
    unlabelled: float = 0.0
    """Share of the rows of its partitions that were left out because they had no label when they landed."""
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
    warnings: tuple[str, ...] = ()
    """What a person should know and what decides nothing, one line each."""


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
