"""Evidence on quality by blocks of time: statistics of a block, scales of a pipeline, and sequential tests.

Rows of one block (a day) are not independent evidence: a day favours one of two models as a whole. So the
unit here is the block. Each model gives some statistics a block; two models are compared by their
differences, block after block, in units of the pipeline's own day-to-day scatter (`Scales`). All statistics
are combined into one sum C a block, so that a harm which only one of them shows is still seen.

Every test is one-sided against a margin, and its error rate is stated for a kind of looking: once, at
planned looks (`LOOKS`), or after every block (`e_value`). Days are taken as nearly normal around their mean
and as exchangeable; the tests are calibrated for that, not exact.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import special, stats

from ctrain.records import RecordedPair

Floats = npt.NDArray[np.float64]

LOSS_CAP = 4.0
"""Log loss of one row counts up to this: a few sure mistakes must not decide a day."""

RIDGE = 4.0
"""Pull of a day's own intercept and slope towards 0 and 1, in units of Fisher information."""

HIGHER_IS_BETTER = frozenset({"auc", "rank_correlation"})

CLASSIFIER_STATISTICS = ("capped_log_loss", "auc", "adjusted_log_loss")
REGRESSION_STATISTICS = ("root_squared_error", "absolute_error", "rank_correlation")


# --- statistics of a block ---


def block_statistics(labels: npt.NDArray[Any], probabilities: npt.NDArray[Any]) -> dict[str, float]:
    """What one block says of a binary classifier.

    Args:
        labels: 0 or 1, shape [B].
        probabilities: Of the positive class, shape [B].

    Returns:
        `capped_log_loss` (each row at most 4), `auc`, and `adjusted_log_loss`, the same loss after the
        block's own intercept and slope on the logits (ridge-fitted), which is left of the loss when the
        day's level and spread are not the model's fault. The last two are absent where a class is absent;
        all are without rows, or where a probability is not a finite one.
    """
    truth, scores = np.asarray(labels, np.float64), np.asarray(probabilities, np.float64)
    if not len(truth) or not np.isfinite(truth).all() or not np.isfinite(scores).all():
        return {}
    logits = logit(scores)
    values = {"capped_log_loss": _capped_loss(truth, logits)}
    positives = int(truth.sum())
    if 0 < positives < len(truth):
        above = float(stats.rankdata(logits)[truth == 1].sum()) - positives * (positives + 1) / 2
        values["auc"] = above / (positives * (len(truth) - positives))
        values["adjusted_log_loss"] = _capped_loss(truth, _recalibrated(truth, logits))
    return values


def value_statistics(labels: npt.NDArray[Any], predictions: npt.NDArray[Any]) -> dict[str, float]:
    """What one block says of a regression: the analogue of `block_statistics`.

    Args:
        labels: Real values or counts, shape [B].
        predictions: In the label's unit, shape [B].

    Returns:
        `root_squared_error` and `absolute_error` (means, in the label's unit) and `rank_correlation`
        (Spearman), which is absent where labels or predictions are all the same; all are absent without
        rows, or where a value is not finite.
    """
    truth, values = np.asarray(labels, np.float64), np.asarray(predictions, np.float64)
    if not len(truth) or not np.isfinite(truth).all() or not np.isfinite(values).all():
        return {}
    error = values - truth
    found = {
        "root_squared_error": float(np.sqrt(np.mean(error**2))),
        "absolute_error": float(np.mean(np.abs(error))),
    }
    ranks = stats.rankdata(truth), stats.rankdata(values)
    if len(truth) > 1 and all(np.ptp(rank) > 0 for rank in ranks):
        found["rank_correlation"] = float(np.corrcoef(*ranks)[0, 1])
    return found


def harm(judged: Mapping[str, float], against: Mapping[str, float]) -> dict[str, float]:
    """Difference of two models' statistics on one block, by name: positive where `judged` is worse."""
    return {
        name: (against[name] - value if name in HIGHER_IS_BETTER else value - against[name])
        for name, value in judged.items()
        if name in against
    }


def logit(probabilities: npt.NDArray[Any]) -> Floats:
    """Log odds, with probabilities kept a millionth away from 0 and 1."""
    kept = np.clip(np.asarray(probabilities, np.float64), 1e-6, 1 - 1e-6)
    odds: Floats = np.log(kept / (1 - kept))
    return odds


def _capped_loss(truth: Floats, logits: Floats) -> float:
    loss = np.logaddexp(0.0, np.where(truth == 1, -logits, logits))
    return float(np.minimum(loss, LOSS_CAP).mean())


def _recalibrated(truth: Floats, logits: Floats) -> Floats:
    """Logits after the intercept and slope that fit these rows best, by Newton's method with a ridge."""
    design = np.column_stack([np.ones_like(logits), logits - logits.mean()])
    change = np.zeros(2)
    for _ in range(10):
        probabilities = 1 / (1 + np.exp(-(logits + design @ change)))
        slope = design.T @ (truth - probabilities) - RIDGE * change
        weights = probabilities * (1 - probabilities)
        curvature = (design * weights[:, None]).T @ design + RIDGE * np.eye(2)
        change = change + np.clip(np.linalg.solve(curvature, slope), -2.0, 2.0)
    adjusted: Floats = logits + design @ change
    return adjusted


# --- scales of a pipeline ---

CAUTION = 1.2
"""Factor on the day-to-day scatter of recorded pairs: the next pair's may be larger."""

CAUTION_WITHOUT_RECORD = 1.5
"""The same where the record is short and the present pair stands in for it."""

ENOUGH_PAIRS = 5
"""Recorded pairs from which the record alone gives the scatter."""

TAU_WITHOUT_RECORD = 0.4
"""True difference between retrains, in units of scatter, where no record says it: twice what real sets
showed."""

PAIRS_OF_PRIOR = 4.0
"""Recorded pairs that this assumption weighs as much as."""

Source = Literal["record", "replicates", "blocks", "none"]


@dataclass(frozen=True, slots=True)
class Scales:
    """How much two models of one procedure differ: from block to block, and truly."""

    sigma: dict[str, float]
    """Standard deviation of the paired difference from block to block, by statistic."""
    tau: dict[str, float]
    """Standard deviation of true differences between retrains of one procedure, by statistic."""
    pairs: int
    """Recorded pairs behind them."""
    source: Source
    """Where sigma is from: the record, the present replicates, or the present pair's own blocks."""

    def margins(self, share: float = 0.5) -> dict[str, float]:
        """Harm that is within what retrains of one procedure differ by, by statistic: half of tau."""
        return {name: share * tau for name, tau in self.tau.items()}


def scales_from(
    record: Sequence[RecordedPair],
    replicates: Sequence[Mapping[str, float]] | None = None,
    blocks: Sequence[Mapping[str, float]] | None = None,
) -> Scales:
    """Learn the scales from a pipeline's record of retrains, and only the scales: never a mean.

    tau^2 is the variance of the pairs' means less what the blocks' scatter explains, pooled with a
    cautious assumption that weighs as much as four pairs. With fewer than five pairs sigma is the largest
    of what the record and the present pair say, with more caution.

    Args:
        record: Earlier pairs of the same kind (as many replicates a side).
        replicates: Standard deviation over blocks of the difference between two means of replicates of one
            side, by statistic, one entry a side (`replicate_scatter`); used where the record is short.
        blocks: Harm on each block of the present pair, by statistic; used where the record is short and
            there are no replicates.

    Returns:
        Statistics of which nothing is known are absent; `source` is `none` without any.
    """
    names = sorted({name for pair in record for name in pair.mean})
    known = {name: [pair for pair in record if name in pair.variance and pair.blocks > 1] for name in names}
    sigma = {name: CAUTION * _scatter(known[name], name) for name in names if known[name]}
    source: Source = "record"
    if len(record) < ENOUGH_PAIRS:
        stand_in = _worst(replicates or ()) or _own_scatter(blocks or ())
        source = "replicates" if replicates else "blocks"
        for name, value in stand_in.items():
            sigma[name] = max(sigma.get(name, 0.0), CAUTION_WITHOUT_RECORD * value)
    sigma = {name: value for name, value in sigma.items() if value > 0}
    tau = {name: _tau(known.get(name, []), name, value) for name, value in sigma.items()}
    return Scales(sigma, tau, len(record), source if sigma else "none")


def _scatter(pairs: Sequence[RecordedPair], name: str) -> float:
    """Standard deviation over blocks, pooled over pairs by their degrees of freedom."""
    freedom = np.array([pair.blocks - 1 for pair in pairs], float)
    variance = np.array([pair.variance[name] for pair in pairs])
    return math.sqrt(float(np.average(variance, weights=freedom)))


def _tau(pairs: Sequence[RecordedPair], name: str, sigma: float) -> float:
    count, assumed = len(pairs), (TAU_WITHOUT_RECORD * sigma) ** 2
    if count < 2:
        return math.sqrt(assumed)
    means = np.array([pair.mean[name] for pair in pairs])
    explained = float(np.mean([pair.variance[name] / pair.blocks for pair in pairs]))
    found = max(0.0, float(means.var(ddof=1)) - explained)
    return math.sqrt((count * found + PAIRS_OF_PRIOR * assumed) / (count + PAIRS_OF_PRIOR))


def _worst(scatters: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = {name for scatter in scatters for name in scatter}
    return {name: max(scatter.get(name, 0.0) for scatter in scatters) for name in sorted(names)}


def _own_scatter(blocks: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = sorted({name for block in blocks for name in block})
    values = {name: [block[name] for block in blocks if name in block] for name in names}
    return {name: float(np.std(found, ddof=1)) for name, found in values.items() if len(found) > 1}


def replicate_scatter(replicates: Sequence[Sequence[Mapping[str, float]]]) -> dict[str, float]:
    """Scatter over blocks that the luck of one training alone gives to a difference of two means of R.

    Args:
        replicates: Statistics of each of R models of one side, block by block.

    Returns:
        By statistic; empty with fewer than two replicates or two blocks.
    """
    count = len(replicates)
    if count < 2:
        return {}
    found = {}
    for name in sorted({name for block in replicates[0] for name in block}):
        rows = [
            [one[name] for one in block] for block in zip(*replicates, strict=True) if _all_have(block, name)
        ]
        if len(rows) > 1:
            values = np.array(rows)
            # The variance over blocks, not over models: a model that is better everywhere is tau's part.
            alone = (values - values.mean(axis=1, keepdims=True)).var(axis=0, ddof=1).sum() / (count - 1)
            found[name] = math.sqrt(2 * float(alone) / count)
    return found


def _all_have(block: Sequence[Mapping[str, float]], name: str) -> bool:
    return all(name in one for one in block)


# --- sequential tests ---

CLIP = 4.0
"""Largest weight of one block in one statistic, in units of scatter."""

EFFECTS = np.array([0.15, 0.3, 0.5, 0.8, 1.2, 1.8])
"""Effects (mean over standard deviation of C) that the e-value is spread over."""

WEIGHTS = np.array([0.1, 0.2, 0.25, 0.2, 0.15, 0.1])

LOOKS: dict[tuple[int, ...], tuple[float, ...]] = {
    (7, 28): (1.77, 1.94),
    (7, 14, 28): (1.89, 1.97, 1.97),
    (3, 7, 14, 28): (1.93, 1.95, 1.98, 1.97),
}
"""Bounds on Z for planned looks: all looks together err in at most 5 % at the margin itself."""


@dataclass(frozen=True, slots=True)
class BlockTest:
    """Running one-sided test that differences lie above a margin. Plain floats: its state is JSON.

    Blocks are added in the order of time; the outcome is the same however they are batched.
    """

    scales: tuple[float, ...]
    """Scatter of each of the S statistics."""
    margins: tuple[float, ...]
    """What each statistic's difference must exceed."""
    counts: tuple[int, ...]
    """Blocks that gave each statistic."""
    squares: tuple[float, ...]
    """Sum of squared standardised differences of each."""
    blocks: int = 0
    sum: float = 0.0
    """Sum of the combined C over blocks."""
    sum_squares: float = 0.0
    peak: float = 0.0
    """Largest logarithm of the e-value after any block: evidence once found is not lost."""

    @classmethod
    def new(cls, scales: Sequence[float], margins: Sequence[float]) -> BlockTest:
        """A test before its first block."""
        assert len(scales) == len(margins)
        assert all(scale > 0 for scale in scales)
        size = len(scales)
        return cls(tuple(scales), tuple(margins), (0,) * size, (0.0,) * size)

    def add(self, differences: npt.NDArray[Any]) -> BlockTest:
        """Add blocks: shape [S, K], NaN where a block did not give a statistic.

        A block that gave none is no evidence and does not count.
        """
        test = self
        for column in np.asarray(differences, np.float64).reshape(len(self.scales), -1).T:
            test = test._add_block(column.tolist())
        return test

    def _add_block(self, differences: list[float]) -> BlockTest:
        counts, squares, combined = list(self.counts), list(self.squares), 0.0
        present = [number for number, value in enumerate(differences) if math.isfinite(value)]
        for number in present:
            z = (differences[number] - self.margins[number]) / self.scales[number]
            own = math.sqrt((3 + squares[number]) / (counts[number] + 3))
            combined += max(-CLIP, min(CLIP, z / own))
            counts[number] += 1
            squares[number] += z * z
        if not present:
            return self
        grown = replace(
            self,
            counts=tuple(counts),
            squares=tuple(squares),
            blocks=self.blocks + 1,
            sum=self.sum + combined,
            sum_squares=self.sum_squares + combined * combined,
        )
        return replace(grown, peak=max(self.peak, grown.log_e_value))

    @property
    def prior(self) -> float:
        """Sum of squares of C that three blocks of ordinary scatter give, assumed before the first one."""
        size = len(self.scales)
        return float(size * (size + 1))

    @property
    def z(self) -> float:
        """Standardised sum of C, nearly standard normal where the truth is the margin; 0 without blocks."""
        if not self.blocks:
            return 0.0
        variance = (self.sum_squares + self.prior) / (self.blocks + 3)
        return self.sum / math.sqrt(self.blocks * variance)

    @property
    def log_e_value(self) -> float:
        """Logarithm of the evidence against "not above the margin", which may be read after every block.

        A t-test of C mixed over effects: the scatter is integrated out.
        """
        if not self.blocks:
            return 0.0
        power = self.blocks + 2
        tilt = np.append(EFFECTS, 0.0) * self.sum / math.sqrt(self.sum_squares + self.prior)
        logs = _log_moments(power, tilt)
        terms = np.log(WEIGHTS) + logs[:-1] - logs[-1] - 0.5 * self.blocks * EFFECTS**2
        return float(np.logaddexp.reduce(terms))

    def exceeds(self, alpha: float = 0.05) -> bool:
        """Whether the evidence reached 1/alpha after any block so far."""
        return self.peak >= -math.log(alpha)


def _log_moments(power: int, tilt: Floats) -> Floats:
    """log of the integral of x^power exp(-x^2/2 + tilt x) over x > 0, for each tilt.

    The integrand is log-concave with curvature of at least one, so ten units around its mode hold it all.
    """
    mode = (tilt + np.sqrt(tilt**2 + 4 * power)) / 2
    low, high = np.maximum(mode - 10, 0.0), mode + 10
    nodes, weights = _NODES
    x = low[:, None] + (high - low)[:, None] * nodes
    logs = power * np.log(x) - 0.5 * x**2 + tilt[:, None] * x
    top = logs.max(axis=1)
    sums = (np.exp(logs - top[:, None]) * weights).sum(axis=1) * (high - low)
    found: Floats = top + np.log(sums)
    return found


def _unit_nodes(count: int) -> tuple[Floats, Floats]:
    nodes, weights = special.roots_legendre(count)
    return (nodes + 1) / 2, weights / 2


_NODES = _unit_nodes(64)


# --- the three questions of a comparison ---


@dataclass(frozen=True, slots=True)
class BlockEvidence:
    """Evidence that a model is worse than another by more than a margin, not worse by as much, or better."""

    names: tuple[str, ...]
    worse: BlockTest
    """Harm exceeds the margin."""
    safe: BlockTest
    """Harm of the margin or more is ruled out."""
    better: BlockTest
    """It is better by more than the margin."""

    @classmethod
    def new(cls, scales: Scales, margins: Mapping[str, float] | None = None) -> BlockEvidence:
        """Before the first block.

        Args:
            scales: Scatter by statistic; statistics without one are left out.
            margins: By statistic, 0 or more; by default half of tau, and never less than that.
        """
        asked, least = margins or {}, scales.margins()
        names = tuple(name for name in scales.sigma if margins is None or name in asked)
        sizes = [scales.sigma[name] for name in names]
        edges = [max(asked.get(name, 0.0), least.get(name, 0.0)) for name in names]
        worse, safe = BlockTest.new(sizes, edges), BlockTest.new(sizes, [-edge for edge in edges])
        return cls(names, worse, safe, worse)

    @property
    def blocks(self) -> int:
        """Blocks that gave any statistic."""
        return self.worse.blocks

    def add(self, harms: Sequence[Mapping[str, float]]) -> BlockEvidence:
        """Add blocks in the order of time: harm by statistic, as `harm` gives it."""
        table = [[one.get(name, math.nan) for one in harms] for name in self.names]
        differences = np.array(table, float).reshape(len(self.names), len(harms))
        return replace(
            self,
            worse=self.worse.add(differences),
            safe=self.safe.add(-differences),
            better=self.better.add(-differences),
        )


def first_crossing(test: BlockTest, differences: npt.NDArray[Any], looks: tuple[int, ...]) -> int | None:
    """Which of the planned looks first finds the margin exceeded; None if none does.

    Args:
        test: A new test.
        differences: Shape [S, K], in the order of time.
        looks: A key of `LOOKS`; those that K does not reach are not taken.
    """
    taken = 0
    for look, bound in zip(looks, LOOKS[looks], strict=True):
        if look > np.shape(differences)[1]:
            break
        test, taken = test.add(differences[:, taken:look]), look
        if test.z > bound:
            return look
    return None
