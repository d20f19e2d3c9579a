"""What others do with the same traffic: repeated z and t tests, Mann-Whitney on interval points, thresholds.

Each method takes the series of R rollouts and gives the requests (of the canary, and in all) at which it
rolled back, inf where it did not. Written from their published descriptions; all look after every interval.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special, stats

from tests.rollouts import (
    BETWEEN_STALLS,
    BLOCK,
    EARLIER,
    HORIZON,
    LABELS,
    LATE,
    OUTAGE,
    REPLICAS,
    SIGMA,
    STALL,
    Truth,
    paired_scores,
)

Floats = npt.NDArray[np.float64]
Ends = tuple[Floats, Floats]

INTERVAL = 1_000
"""Requests of one interval point."""

Z_EVERY = 200
"""Requests between two looks of the repeated z-test."""

LEVEL = 1.96
FAILED_CHECKS = 5
"""Failed checks that end a rollout, as Flagger counts them."""

LEAST_POINTS = 5
"""Interval points before a test of them is looked at."""


def first(hits: npt.NDArray[np.bool_], canary: Floats, every: int) -> Ends:
    """Requests at the first hit of each rollout: hits and the canary's cumulative requests are [R, K]."""
    came, at = hits.any(axis=1), hits.argmax(axis=1)
    own = np.where(came, canary[np.arange(len(at)), at], np.inf)
    return own, np.where(came, (at + 1.0) * every, np.inf)


def t_of(differences: Floats) -> Floats:
    """One-sample t statistic of the first 1, 2 ... K differences of each rollout: [R, K]."""
    count = np.arange(1, differences.shape[1] + 1)
    mean = differences.cumsum(axis=1) / count
    square = (differences**2).cumsum(axis=1) / count
    variance = np.maximum(square - mean**2, 1e-18) * count / np.maximum(count - 1, 1)
    statistic: Floats = mean / np.sqrt(variance / count)
    return statistic


def repeated_t(differences: Floats) -> npt.NDArray[np.bool_]:
    """Whether the t-test at 5 % says "worse" after each interval."""
    count = np.arange(1, differences.shape[1] + 1)
    bound = stats.t.ppf(0.975, np.maximum(count - 1, 1))
    return (t_of(differences) > bound) & (count >= LEAST_POINTS)


def repeated_mann_whitney(canary: Floats, baseline: Floats) -> npt.NDArray[np.bool_]:
    """Whether the Mann-Whitney test at 5 % says "worse" after each interval; with the correction for ties."""
    rollouts, points = canary.shape
    hits = np.zeros((rollouts, points), bool)
    greater = np.zeros(rollouts)
    for n in range(points):
        new, other = canary[:, n : n + 1], baseline[:, n : n + 1]
        for one, two in ((new, baseline[:, : n + 1]), (canary[:, :n], other)):
            greater += (one > two).sum(axis=1) + 0.5 * (one == two).sum(axis=1)
        if n + 1 < LEAST_POINTS:
            continue
        both = np.sort(np.concatenate([canary[:, : n + 1], baseline[:, : n + 1]], axis=1), axis=1)
        size, whole = n + 1, 2 * (n + 1)
        variance = size * size / 12 * (whole + 1 - _ties(both) / (whole * (whole - 1)))
        z = (greater - size * size / 2) / np.sqrt(np.maximum(variance, 1e-9))
        hits[:, n] = z > LEVEL
    return hits


def _ties(sorted_rows: Floats) -> Floats:
    """Sum of t^3 - t over groups of equal values of each row."""
    rows, size = sorted_rows.shape
    new = np.ones((rows, size), bool)
    new[:, 1:] = sorted_rows[:, 1:] != sorted_rows[:, :-1]
    group = np.cumsum(new.ravel()) - 1
    lengths = np.bincount(group).astype(float)
    owner = np.repeat(np.arange(rows), size)[new.ravel()]
    ties: Floats = np.bincount(owner, weights=lengths**3 - lengths, minlength=rows)
    return ties


@dataclass(frozen=True)
class ErrorSeries:
    """Errors of R rollouts in intervals of 200 requests: [2, R, K], challenger first."""

    sent: Floats
    failed: Floats

    @classmethod
    def draw(cls, truth: Truth, rollouts: int, split: float, rng: np.random.Generator) -> ErrorSeries:
        """Answer all requests of the horizon."""
        count = HORIZON // Z_EVERY
        challenger = rng.binomial(Z_EVERY, split, (rollouts, count))
        sent = np.stack([challenger, Z_EVERY - challenger])
        edges = np.arange(count) * Z_EVERY
        begin = rng.integers(0, HORIZON // 2, rollouts)[:, None]
        overlap = np.minimum(begin + OUTAGE, edges + Z_EVERY) - np.maximum(begin, edges)
        out = np.clip(overlap, 0, None) / Z_EVERY
        rates = np.array(truth.errors[::-1])[:, None, None]
        failed = rng.binomial(sent, rates + out * np.maximum(truth.outage - rates, 0.0))
        return cls(sent.astype(float), failed.astype(float))

    def points(self) -> tuple[Floats, Floats, Floats]:
        """Both arms' error rates in intervals of 1,000 requests, and the challenger's requests so far."""
        per = INTERVAL // Z_EVERY
        sent, failed = (x.reshape(2, x.shape[1], -1, per).sum(axis=3) for x in (self.sent, self.failed))
        rates = failed / np.maximum(sent, 1)
        return rates[0], rates[1], sent[0].cumsum(axis=1)


def z_on_errors(series: ErrorSeries) -> Ends:
    """Two-proportion z-test of all requests so far."""
    return _repeated_z(series.sent, series.failed, Z_EVERY)


def _repeated_z(sent: Floats, events: Floats, every: int) -> Ends:
    n, x = sent.cumsum(axis=2), events.cumsum(axis=2)
    pooled = x.sum(axis=0) / n.sum(axis=0)
    error = np.sqrt(np.maximum(pooled * (1 - pooled), 1e-12) * (1 / np.maximum(n[0], 1) + 1 / n[1]))
    z = (x[0] / np.maximum(n[0], 1) - x[1] / n[1]) / error
    return first(z > LEVEL, n[0], every)


def t_on_errors(series: ErrorSeries) -> Ends:
    """t-test on the intervals' differences of error rates."""
    canary, baseline, sent = series.points()
    return first(repeated_t(canary - baseline), sent, INTERVAL)


def mann_whitney_on_errors(series: ErrorSeries) -> Ends:
    """Kayenta's judge on the intervals' error rates."""
    canary, baseline, sent = series.points()
    return first(repeated_mann_whitney(canary, baseline), sent, INTERVAL)


def threshold_on_errors(series: ErrorSeries) -> Ends:
    """Success of the canary at least 99 % in each interval; the fifth failed check rolls back."""
    canary, _, sent = series.points()
    return first((canary > 0.01).cumsum(axis=1) >= FAILED_CHECKS, sent, INTERVAL)


@dataclass(frozen=True)
class LatencySeries:
    """Latency of R rollouts in intervals of 1,000 requests."""

    sent: Floats
    """Of both arms: [2, R, K]."""
    slow: Floats
    """Answers beyond the champion's earlier p99: [2, R, K]."""
    p99: Floats
    """99 % quantile of each arm's answers, as its logarithm: [2, R, K]."""

    @classmethod
    def draw(cls, truth: Truth, rollouts: int, split: float, rng: np.random.Generator) -> LatencySeries:
        """Answer all requests of the horizon."""
        count = HORIZON // INTERVAL
        challenger = rng.binomial(INTERVAL, split, (rollouts, count))
        sent = np.stack([challenger, INTERVAL - challenger])
        # The threshold is an order statistic of earlier answers.
        above = rng.beta(EARLIER // 100 + 1, EARLIER - EARLIER // 100, rollouts)[:, None]
        shifted = special.ndtr(np.log(truth.slower) / SIGMA + special.ndtri(above)) * truth.tail
        stalled = _stalled(truth, rollouts, count, rng)
        chances = np.stack([np.broadcast_to(np.minimum(shifted, 1.0), stalled.shape),
                            np.broadcast_to(above, stalled.shape)])  # fmt: skip
        slow = rng.binomial(sent, stalled + (1 - stalled) * chances)
        return cls(sent.astype(float), slow.astype(float), _p99(truth, sent, stalled, rng))


def _stalled(truth: Truth, rollouts: int, count: int, rng: np.random.Generator) -> Floats:
    """Share of each interval's requests that meet a stalled replica."""
    if not truth.stalls:
        return np.zeros((rollouts, count))
    starts = rng.exponential(BETWEEN_STALLS, (rollouts, 4 * HORIZON // BETWEEN_STALLS)).cumsum(axis=1)
    starts += STALL * np.arange(starts.shape[1])
    share = np.zeros((rollouts, count))
    for number in range(count):
        edge = number * INTERVAL
        inside = np.minimum(starts + STALL, edge + INTERVAL) - np.maximum(starts, edge)
        share[:, number] = np.clip(inside, 0, None).sum(axis=1) / INTERVAL / REPLICAS
    return share


def _p99(truth: Truth, sent: npt.NDArray[np.int64], stalled: Floats, rng: np.random.Generator) -> Floats:
    """Logarithm of each arm's 99 % quantile: an order statistic, or a stall's second where enough stalled."""
    n = np.maximum(sent, 1)
    rank = np.ceil(0.99 * n).astype(int)
    exceed = rng.beta(n - rank + 1, rank)
    # A tail that is `tail` times as likely: the quantile of the tail's own chance.
    tail = np.array([truth.tail, 1.0])[:, None, None]
    edge = 0.01 * tail
    exceed = np.where(exceed <= edge, exceed / tail, 0.01 + (exceed - edge) * 0.99 / (1 - edge))
    shift = np.array([np.log(truth.slower), 0.0])[:, None, None]
    usual = shift - SIGMA * special.ndtri(exceed)
    return np.where(rng.binomial(sent, stalled) > n - rank, np.log(100.0), usual)


def z_on_slow(series: LatencySeries) -> Ends:
    """Two-proportion z-test of answers beyond the champion's earlier p99."""
    return _repeated_z(series.sent, series.slow, INTERVAL)


def t_on_p99(series: LatencySeries) -> Ends:
    """t-test on the intervals' differences of p99."""
    p99 = np.exp(series.p99)
    return first(repeated_t(p99[0] - p99[1]), series.sent[0].cumsum(axis=1), INTERVAL)


def mann_whitney_on_p99(series: LatencySeries) -> Ends:
    """Kayenta's judge on the intervals' p99."""
    hits = repeated_mann_whitney(series.p99[0], series.p99[1])
    return first(hits, series.sent[0].cumsum(axis=1), INTERVAL)


def threshold_on_p99(series: LatencySeries) -> Ends:
    """p99 at most 1.2 times the champion's in each interval; the fifth failed check rolls back."""
    failed = series.p99[0] - series.p99[1] > np.log(1.2)
    return first(failed.cumsum(axis=1) >= FAILED_CHECKS, series.sent[0].cumsum(axis=1), INTERVAL)


@dataclass(frozen=True)
class QualitySeries:
    """AUC of R rollouts block by block, [R, K], and the variance of the paired difference within a block."""

    challenger: Floats
    champion: Floats
    variance: Floats

    @classmethod
    def draw(cls, rng: np.random.Generator, auc: float, rollouts: int, pool: int = 1_000) -> QualitySeries:
        """Draw rollouts' blocks from a pool of them."""
        rows = np.array([_block(rng, auc) for _ in range(pool)])
        drawn = rows[rng.integers(0, pool, (rollouts, (HORIZON - LATE) // BLOCK))]
        return cls(drawn[..., 0], drawn[..., 1], drawn[..., 2])

    def ends(self, hits: npt.NDArray[np.bool_]) -> Ends:
        """Requests at the first hit; labels come late."""
        came, at = hits.any(axis=1), hits.argmax(axis=1)
        requests = np.where(came, (at + 1.0) * BLOCK + LATE, np.inf)
        return 0.1 * requests, requests


def _block(rng: np.random.Generator, auc: float) -> tuple[float, float, float]:
    """AUC of both models and the variance of their difference by DeLong."""
    labels, *models = paired_scores(rng, auc, LABELS)
    areas, by_positive, by_negative = [], [], []
    for scores in models:
        good, bad = scores[labels == 1], scores[labels == 0]
        wins = (good[:, None] > bad).astype(float)
        areas.append(float(wins.mean()))
        by_positive.append(wins.mean(axis=1))
        by_negative.append(wins.mean(axis=0))
    variance = sum(float(np.var(x[0] - x[1], ddof=1)) / len(x[0]) for x in (by_positive, by_negative))
    return areas[0], areas[1], variance


def z_on_auc(series: QualitySeries) -> Ends:
    """Paired z-test that takes rows as independent."""
    harm = series.champion - series.challenger
    z = harm.cumsum(axis=1) / np.sqrt(series.variance.cumsum(axis=1))
    return series.ends(z > LEVEL)


def t_on_auc(series: QualitySeries) -> Ends:
    """t-test on the blocks' differences."""
    return series.ends(repeated_t(series.champion - series.challenger))


def mann_whitney_on_auc(series: QualitySeries) -> Ends:
    """Kayenta's judge on the blocks' AUC."""
    return series.ends(repeated_mann_whitney(-series.challenger, -series.champion))


def threshold_on_auc(series: QualitySeries) -> Ends:
    """AUC at most 0.02 below the champion's on each block; the fifth failed check rolls back."""
    failed = series.champion - series.challenger > 0.02
    return series.ends(failed.cumsum(axis=1) >= FAILED_CHECKS)


ERROR_PEERS: dict[str, Callable[[ErrorSeries], Ends]] = {
    "repeated z, every 200 requests": z_on_errors,
    "repeated t, interval points": t_on_errors,
    "repeated Mann-Whitney (Kayenta)": mann_whitney_on_errors,
    "success >= 99 %, 5 failed checks (Flagger)": threshold_on_errors,
}
LATENCY_PEERS: dict[str, Callable[[LatencySeries], Ends]] = {
    "repeated z on slow answers": z_on_slow,
    "repeated t on interval p99": t_on_p99,
    "repeated Mann-Whitney (Kayenta)": mann_whitney_on_p99,
    "p99 <= 1.2 x, 5 failed checks (Flagger)": threshold_on_p99,
}
AUC_PEERS: dict[str, Callable[[QualitySeries], Ends]] = {
    "repeated paired z by rows": z_on_auc,
    "repeated t on blocks": t_on_auc,
    "repeated Mann-Whitney (Kayenta)": mann_whitney_on_auc,
    "AUC >= champion's - .02, 5 failed (Flagger)": threshold_on_auc,
}
