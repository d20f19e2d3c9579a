"""Simulated rollouts, many at once: what replicas would count, judged by the project's own evidence.

One number a rollout and count, so that ten thousand rollouts take seconds; the functions of
`ctrain.rollout.evidence` take such arrays. That this judges as `analyse` does is a test
(`tests/unit/rollout/test_simulated.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import special

from ctrain.evaluation.evidence import BlockTest, Scales, block_statistics, harm, scales_from
from ctrain.records import ArmCounts, PairCounts, RecordedPair
from ctrain.rollout.evidence import (
    SLOW,
    Counts,
    e_value,
    log_above,
    log_harm,
    log_safe_excess,
    log_safe_slow,
    slow_harm,
    total_harm,
)
from ctrain.spec.rollout import Canary

Floats = npt.NDArray[np.float64]

HORIZON = 100_000
"""Requests that a rollout may take."""

SIGMA = 0.5
"""Standard deviation of the logarithm of latency."""

EARLIER = 5_000
"""Champion's requests of the minute before, from which the thresholds of slowness are."""

OUTAGE = 1_000
"""Requests of an outage that both arms share."""

STALL, BETWEEN_STALLS, REPLICAS = 800, 5_000, 4
"""Requests while one of the replicas stalls, mean number between stalls."""

FLIPPED, DISTANCE = 0.05, 0.03
"""Decisions and probabilities that differ between honest retrains on mirrored requests."""

BLOCK, LABELS, LATE = 5_000, 900, 5_000
"""Requests of a block of time; labelled ones among its mirrored ones (a fifth); requests until they come."""

POSITIVES, CORRELATION, DAY, RETRAIN = 0.1, 0.95, 0.05, 0.015
"""Share of positives; correlation of the two models' scores; standard deviation of their difference in
separation from block to block (0.01 of AUC), and from retrain to retrain."""


ARMS: tuple[Literal["challenger"], Literal["champion"]] = ("challenger", "champion")

ONE_STEP = ((0.1, 0),)
"""A canary of one step."""


def looks(horizon: int = HORIZON) -> npt.NDArray[np.int64]:
    """Requests so far at each look: every 10 at first, then every 50, then every 200."""
    grid = np.concatenate(
        [np.arange(10, 2_001, 10), np.arange(2_050, 20_001, 50), np.arange(20_200, horizon, 200)]
    )
    return np.append(grid[grid < horizon], horizon)


@dataclass(frozen=True)
class Truth:
    """What champion and challenger truly do."""

    name: str
    errors: tuple[float, float] = (0.001, 0.001)
    """Chance of an error, of champion and challenger."""
    outage: float = 0.0
    """Chance of an error in both arms during one outage at a random time."""
    stalls: bool = False
    """Whether replicas stall: whatever arm a request falls to, it is slower than the p99 then."""
    slower: float = 1.0
    """Factor on each of the challenger's times."""
    tail: float = 1.0
    """Factor on the share of the challenger's answers beyond the champion's p99 (2.48: p99 +20 %; 6: x2)."""
    auc: float = 0.80
    """Of the challenger; the champion's is 0.80."""


@dataclass
class Tally:
    """Counts of R rollouts at S splits, by arm: shapes [2, R, S], challenger and champion."""

    requests: Floats
    errors: Floats
    slow: Floats
    """Shape [3, 2, R, S]."""
    flipped: Floats
    """Shape [R], as that below: sums over mirrored requests."""
    distance: Floats

    @classmethod
    def of(cls, rollouts: int, splits: int = 1) -> Tally:
        """Before the first request."""
        shape = 2, rollouts, splits
        sums = np.zeros(rollouts), np.zeros(rollouts)
        return cls(np.zeros(shape), np.zeros(shape), np.zeros((len(SLOW), *shape)), *sums)

    def keep(self, chosen: npt.NDArray[np.bool_]) -> Tally:
        """Leave out the rollouts that have ended."""
        arms = (part[..., chosen, :] for part in (self.requests, self.errors, self.slow))
        return Tally(*arms, self.flipped[chosen], self.distance[chosen])

    @property
    def sent(self) -> Floats:
        """Requests of each arm over all splits: [2, R]."""
        total: Floats = self.requests.sum(axis=2)
        return total


@dataclass(frozen=True)
class Judged:
    """E-values of R rollouts."""

    harms: dict[str, Floats]
    """By metric."""
    safe: dict[str, Floats]
    """Evidence for promotion, by metric."""

    @property
    def harm(self) -> Floats:
        """Of the whole rollout."""
        return total_harm(self.harms)


def judge(tally: Tally, splits: tuple[float, ...], spec: Canary) -> Judged:
    """Look at R rollouts: errors, latency, agreement and shift as `ctrain.rollout.metrics` judges them."""

    def counts(values: Floats) -> Counts:
        return Counts(splits, values[0], values[1])

    slow = [counts(values) for values in tally.slow]
    failed, answered = counts(tally.errors), counts(tally.requests - tally.errors)
    pairs = tally.sent[1]
    at_each = [e_value(log_harm(found, one.ratios)) for one, found in zip(SLOW, slow, strict=True)]
    harms = {
        "errors": e_value(log_harm(failed)),
        "latency": slow_harm(np.stack(at_each, axis=-1)),
        "agreement": e_value(log_above(tally.flipped, pairs, spec.disagreement)),
        "shift": e_value(log_above(tally.distance, pairs, spec.shift)),
    }
    others = [counts(tally.requests - values) for values in tally.slow]
    spared = [
        log_safe_slow(found, rest, one, spec.slow_margin)
        for one, found, rest in zip(SLOW, slow, others, strict=True)
    ]
    safe = {
        "errors": e_value(log_safe_excess(failed, answered, spec.error_margin)),
        "latency": np.min([e_value(value) for value in spared], axis=0),
    }
    return Judged(harms, safe)


class Requests:
    """Requests of R rollouts of one truth, drawn interval by interval.

    The thresholds are order statistics of earlier champion's times, so that they miss their quantiles as
    real ones do.
    """

    def __init__(self, truth: Truth, rollouts: int, rng: np.random.Generator) -> None:
        self.truth, self._rng = truth, rng
        ranks = [round((1 - one.share) * EARLIER) for one in SLOW]
        gaps = np.diff([0, *ranks, EARLIER + 1])
        below = np.cumsum(rng.dirichlet(gaps, rollouts), axis=1)[:, :-1].T
        self.beyond = np.empty((len(SLOW), 2, rollouts))
        self.beyond[:, 1] = 1 - below
        shifted = special.ndtr(np.log(truth.slower) / SIGMA - special.ndtri(below))
        self.beyond[:, 0] = shifted
        self.beyond[-1, 0] = np.minimum(self.beyond[-1, 0] * truth.tail, self.beyond[-2, 0])
        self._outage = rng.integers(0, HORIZON // 2, rollouts)
        starts = rng.exponential(BETWEEN_STALLS, (rollouts, 4 * HORIZON // BETWEEN_STALLS)).cumsum(axis=1)
        self._stalls = starts + STALL * np.arange(starts.shape[1])
        if not truth.stalls:
            self._stalls = np.full((rollouts, 1), np.inf)

    def keep(self, chosen: npt.NDArray[np.bool_]) -> None:
        """Leave out the rollouts that have ended."""
        self.beyond = self.beyond[..., chosen]
        self._outage, self._stalls = self._outage[chosen], self._stalls[chosen]

    def draw(self, tally: Tally, start: int, end: int, split: float, step: int = 0) -> None:
        """Answer the requests `start` to `end` at one split and add what they show."""
        rng, truth, size = self._rng, self.truth, end - start
        challenger = rng.binomial(size, split, tally.requests.shape[1])
        sent = np.stack([challenger, size - challenger])
        tally.requests[..., step] += sent
        out = _overlap(self._outage[:, None], OUTAGE, start, end) / size
        rates = np.array(truth.errors[::-1])[:, None]
        tally.errors[..., step] += rng.binomial(sent, rates + out * np.maximum(truth.outage - rates, 0.0))
        stalled = _overlap(self._stalls, STALL, start, end) / size / REPLICAS
        beyond = stalled + (1 - stalled) * self.beyond
        reached, above = sent, np.ones_like(beyond[0])
        for number in range(len(SLOW)):
            reached = rng.binomial(reached, np.clip(beyond[number] / above, 0.0, 1.0))
            above = beyond[number]
            tally.slow[number, ..., step] += reached
        tally.flipped += rng.binomial(sent[1], FLIPPED)
        tally.distance += DISTANCE * sent[1]


def _overlap(starts: Floats, length: int, start: int, end: int) -> Floats:
    """Requests of [start, end) that lie in one of the spans: [R, N] starts, all of one length."""
    inside = np.minimum(starts + length, end) - np.maximum(starts, start)
    overlap: Floats = np.clip(inside, 0, None).sum(axis=1)
    return np.minimum(overlap, end - start)


def records(tally: Tally, splits: tuple[float, ...], one: int) -> tuple[list[ArmCounts], list[PairCounts]]:
    """One of the R rollouts as the records that a replica would send."""
    arms = []
    for arm, name in enumerate(ARMS):
        for step, split in enumerate(splits):
            sent, failed = (int(part[arm, one, step]) for part in (tally.requests, tally.errors))
            slow = tuple(int(count) for count in tally.slow[:, arm, one, step])
            arms.append(ArmCounts("r", split, name, sent, failed, slow, answered=sent - failed))
    pairs = PairCounts("r", int(tally.sent[1, one]), tally.flipped[one], distance=tally.distance[one])
    return arms, [pairs]


# --- quality ---


def paired_scores(
    rng: np.random.Generator, auc: float, rows: int, retrain: float = 0.0
) -> tuple[npt.NDArray[np.int64], Floats, Floats]:
    """Labels of one block, and the probabilities of a challenger of this AUC and of the champion (0.80)."""
    labels = (rng.random(rows) < POSITIVES).astype(int)
    shared = rng.standard_normal(rows)
    probabilities = []
    for target, moved in ((auc, retrain + DAY * rng.standard_normal()), (0.80, 0.0)):
        separation = np.sqrt(2) * special.ndtri(target)
        own = np.sqrt(CORRELATION) * shared + np.sqrt(1 - CORRELATION) * rng.standard_normal(rows)
        scores = (separation + moved) * labels + own
        logits = separation * scores - separation**2 / 2 + np.log(POSITIVES / (1 - POSITIVES))
        probabilities.append(special.expit(logits))
    return labels, probabilities[0], probabilities[1]


def block_pool(
    rng: np.random.Generator, auc: float, blocks: int, retrain: float = 0.0
) -> list[dict[str, float]]:
    """Harm, by statistic, of blocks of one truth, to draw rollouts' blocks from."""
    pool = []
    for _ in range(blocks):
        labels, challenger, champion = paired_scores(rng, auc, LABELS, retrain)
        pool.append(harm(block_statistics(labels, challenger), block_statistics(labels, champion)))
    return pool


def recorded_scales(rng: np.random.Generator, pairs: int = 12, blocks: int = 14) -> Scales:
    """Scales from a record of honest retrains."""
    record = []
    for number in range(pairs):
        table = block_pool(rng, 0.80, blocks, RETRAIN * rng.standard_normal())
        values = {name: [one[name] for one in table] for name in table[0]}
        mean = {name: float(np.mean(found)) for name, found in values.items()}
        variance = {name: float(np.var(found, ddof=1)) for name, found in values.items()}
        record.append(RecordedPair(f"v{number + 1}", f"v{number}", 1, blocks, mean, variance))
    return scales_from(record)


@dataclass(frozen=True)
class QualityPaths:
    """E-values of R rollouts after 0, 1, 2 ... matured blocks; shape [R, K + 1]."""

    worse: Floats
    safe: Floats


def quality_paths(
    rng: np.random.Generator,
    pool: Sequence[dict[str, float]],
    scales: Scales,
    spec: Canary,
    rollouts: int,
    horizon: int = HORIZON,
) -> QualityPaths:
    """Block evidence of R rollouts with blocks from a pool, as `ctrain.rollout.quality` judges it."""
    count, names = max(0, (horizon - LATE) // BLOCK), list(scales.sigma)
    table = np.array([[one[name] for name in names] for one in pool])
    sizes, least = [scales.sigma[name] for name in names], scales.margins()
    margin = max(spec.quality.no_harm, least["auc"])
    at = names.index("auc")
    worse, safe = np.ones((rollouts, count + 1)), np.ones((rollouts, count + 1))
    for number in range(rollouts):
        drawn = table[rng.integers(0, len(table), count)]
        harmed = BlockTest.new(sizes, [least[name] for name in names])
        spared = BlockTest.new([sizes[at]], [-margin])
        for block, values in enumerate(drawn, start=1):
            harmed, spared = harmed.add(values), spared.add(-values[at : at + 1])
            worse[number, block] = e_value(harmed.log_e_value)
            safe[number, block] = e_value(spared.log_e_value)
    return QualityPaths(worse, safe)


# --- whole rollouts ---


@dataclass(frozen=True)
class Ends:
    """Requests (of the challenger, and in all) at which each thing first happened; inf if it did not."""

    harm: Floats
    """The whole rollout's evidence of harm reached the bound; shape [2, R]."""
    errors: Floats
    """That of the errors alone would have, had they the whole budget."""
    latency: Floats
    promoted: Floats
    """Every metric but quality had its evidence, before any harm."""
    promoted_after_quality: Floats
    """Quality too."""


def roll_out(
    truth: Truth,
    rollouts: int,
    rng: np.random.Generator,
    quality: QualityPaths | None = None,
    spec: Canary | None = None,
    steps: tuple[tuple[float, int], ...] = ONE_STEP,
    horizon: int = HORIZON,
) -> Ends:
    """Run R rollouts to their ends, with a look every 10 to 200 requests.

    Args:
        truth: What both models do.
        rollouts: How many.
        rng: Source of chance.
        quality: Evidence of matured blocks; None has none.
        spec: Margins and error budgets.
        steps: (split, request at which it begins); promotion comes at the last one.
        horizon: Requests at most.
    """
    splits, begins = tuple(split for split, _ in steps), [begin for _, begin in steps]
    plan = spec or Canary()
    bound, enough = 1 / plan.alpha, 1 / plan.alpha_promote
    names = ("harm", "errors", "latency", "promoted", "promoted_after_quality")
    ends = {name: np.full((2, rollouts), np.inf) for name in names}
    requests, tally = Requests(truth, rollouts, rng), Tally.of(rollouts, len(splits))
    active, start = np.arange(rollouts), 0
    for end in looks(horizon):
        step = int(np.searchsorted(begins, start, side="right")) - 1
        requests.draw(tally, start, int(end), splits[step], step)
        start = int(end)
        judged = judge(tally, splits, plan)
        spared = np.ones(len(active), bool)
        if quality is not None:
            blocks = max(0, (start - LATE) // BLOCK)
            judged.harms["quality"] = quality.worse[active, blocks]
            spared = quality.safe[active, blocks] >= enough
        harmed = judged.harm >= bound
        safe = (judged.safe["errors"] >= enough) & (judged.safe["latency"] >= enough)
        safe &= (tally.sent[1] >= plan.shadow) & ~harmed & np.isinf(ends["harm"][0, active])
        safe &= step + 1 == len(splits)
        happened = {
            "harm": harmed,
            "errors": judged.harms["errors"] >= bound,
            "latency": judged.harms["latency"] >= bound,
            "promoted": safe,
            "promoted_after_quality": safe & spared,
        }
        for name, now in happened.items():
            first = now & np.isinf(ends[name][0, active])
            ends[name][:, active[first]] = [tally.sent[0, first], np.full(int(first.sum()), start)]
        going = np.isinf(ends["harm"][0, active]) & np.isinf(ends["promoted_after_quality"][0, active])
        if going.sum() < 0.8 * len(going):
            active, tally = active[going], tally.keep(going)
            requests.keep(going)
        if not len(active):
            break
    return Ends(**ends)
