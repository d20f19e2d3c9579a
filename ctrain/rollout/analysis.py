"""Analysis of a rollout: always-valid sequential tests on counts, so that looking often costs nothing.

Takes cumulative counts of every replica incarnation, gives a verdict a metric and one for the rollout. Its
state is the counts themselves: they survive a restart bit for bit.

Events (errors, slow answers) are judged by the split test: given that an event happened, which arm
did it fall in? Under equal rates that is the coin of the split, whatever storms hit both arms. Each
test is an e-process, so its level holds at every look (Ville's inequality). Both models share a
replica, so stalls hit both arms by the same coin.

Requests without a key are each a draw of their own, wherever they were answered: their counts add up over
incarnations. A key falls the same way in every replica, so the same slow client, seen by four replicas, is
one witness and not four. Hence the keyed draws of each incarnation give an e-value of their own, and their
mean counts: a mean of e-values is an e-value, however they depend. (That holds exactly at any one look. At
the first crossing of many looks it is exact where replicas see the same keys in the same order or
different ones, and holds with room in simulation where each sees them in an order of its own.) The coins
of keyless draws are independent of all keys, so the two factors multiply.

Source: Lindon and Malek, Anytime-valid inference for multinomial count data (2022); Waudby-Smith and
Ramdas, Estimating means of bounded random variables by betting (2024); Vovk and Wang, E-values:
calibration, combination and applications (2021).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ctrain.records import Analysis, ArmCounts, MetricAnalysis, PairCounts, StepVerdict
from ctrain.spec.rollout import Canary

RATIOS = np.geomspace(1.25, 64.0, 24)
"""Rate ratios (challenger to champion) that evidence of harm is spread over."""

BETS = np.geomspace(0.02, 0.95, 16)
"""Stakes that evidence of gross disagreement is spread over."""

MIRROR_ERRORS = 3
"""Challenger failures on mirrored requests that end a rollout at once."""

METRICS = 3
"""Errors, latency, agreement."""


@dataclass(frozen=True, slots=True)
class SplitCounts:
    """Counts of both arms while one split was live."""

    split: float
    challenger: int
    champion: int


def log_mean_exp(logs: npt.NDArray[np.float64]) -> float:
    """Logarithm of the mean of e-values given by their logarithms."""
    top = float(np.max(logs))
    return top + math.log(float(np.mean(np.exp(logs - top))))


def log_harm(counts: Iterable[SplitCounts]) -> float:
    """Log e-value against "the challenger's rate of events is not above the champion's".

    Args:
        counts: Events of both arms, by split in (0, 1).
    """
    total = np.zeros(len(RATIOS))
    for count in counts:
        w = count.split
        theta = w * RATIOS / (w * RATIOS + 1 - w)
        total += count.challenger * np.log(theta / w) + count.champion * np.log((1 - theta) / (1 - w))
    return log_mean_exp(total)


def log_safe_ratio(counts: Iterable[SplitCounts], margin: float) -> float:
    """Log e-value against "the challenger's rate is `margin` times the champion's, or more".

    Args:
        counts: Events of both arms, by split.
        margin: Ratio that must be ruled out, above 1.
    """
    alternatives = np.geomspace(0.25, 1.0, 8)
    total = np.zeros(len(alternatives))
    for count in counts:
        w = count.split
        null = w * margin / (w * margin + 1 - w)
        theta = w * alternatives / (w * alternatives + 1 - w)
        total += count.challenger * np.log(theta / null)
        total += count.champion * np.log((1 - theta) / (1 - null))
    return log_mean_exp(total)


def log_safe_rate(events: int, trials: int, margin: float) -> float:
    """Log e-value against "the rate of events is `margin` or more"."""
    rates = margin * np.array([0.02, 0.05, 0.1, 0.2, 0.4])
    total = events * np.log(rates / margin) + (trials - events) * np.log((1 - rates) / (1 - margin))
    return log_mean_exp(total)


def log_disagreement(flipped: float, pairs: int, tolerated: float) -> float:
    """Log e-value against "the mean share of flipped decisions is `tolerated` or less".

    A request's bet wins log(1 + stake * (share - tolerated)), which is concave in its share of flipped rows:
    it is at least the straight line between share 0 and share 1 that the sum of shares allows to compute.
    So requests with many rows are judged a little late, never too early.

    Args:
        flipped: Sum over requests of the share of rows whose decision flipped.
        pairs: Number of requests.
        tolerated: In [0, 1]; 1 tolerates everything.
    """
    if tolerated >= 1.0:
        return 0.0
    stakes = BETS / tolerated if tolerated > 0 else BETS
    won = np.log1p(stakes * (1 - tolerated))
    lost = np.log1p(-stakes * tolerated)
    return log_mean_exp(flipped * won + (pairs - flipped) * lost)


def analyse(
    rollout: str,
    phase: str,
    split: float,
    spec: Canary,
    arms: Sequence[Sequence[ArmCounts]],
    pairs: Sequence[PairCounts],
) -> Analysis:
    """Look at a rollout.

    Args:
        rollout: Its id; counts of other rollouts are left out.
        phase: `shadow` or `canary`.
        split: Challenger's present share of live traffic.
        spec: Margins and error budgets.
        arms: Counts of each replica incarnation, cumulative, by split, arm and whether they are keys.
        pairs: Mirrored comparisons of all replica incarnations, cumulative.

    Returns:
        `fail` as soon as the mean of the harm e-values reaches 1/alpha (one budget for the whole
        rollout, whatever its steps) or a hard stop is met; `pass` when every metric of the phase has
        its own evidence against harm beyond its margin; else `continue`. A metric says `fail` when it
        alone, the others at zero, ends the rollout; several may end it together before that.
    """
    mine = _Draws([[count for count in one if count.rollout == rollout] for one in arms])
    mirrored = [count for count in pairs if count.rollout == rollout]
    metrics = [_errors(spec, mine), _latency(spec, mine), _agreement(spec, mirrored)]
    # A mean of e-processes with fixed weights is an e-process; without counts each of them is 1.
    harm = sum(metric.harm for metric in metrics)
    bound = _alone(spec)
    requests = mine.total("requests", "challenger")
    if phase == "shadow":
        metrics = metrics[2:]
        requests = sum(count.pairs for count in mirrored)
    mirror_errors = sum(count.errors for count in mirrored)
    verdict: StepVerdict = "continue"
    worst = max(metrics, key=lambda metric: metric.harm)
    reason = "; ".join(metric.text for metric in metrics if metric.verdict != "pass")
    if mirror_errors >= MIRROR_ERRORS:
        verdict = "fail"
        reason = f"the challenger failed on {mirror_errors} mirrored requests"
    elif harm >= bound:
        verdict, reason = "fail", f"{worst.metric}: {worst.text}"
    elif all(metric.verdict == "pass" for metric in metrics):
        verdict, reason = "pass", "no evidence of harm; harm beyond the margins ruled out"
    return Analysis(rollout, phase, split, verdict, tuple(metrics), requests, reason)


class _Draws:
    """Draws of a rollout: the keyless ones of all incarnations, and the keyed ones of each."""

    def __init__(self, arms: Sequence[Sequence[ArmCounts]]) -> None:
        self.all = [count for one in arms for count in one if 0 < count.split < 1]
        self.keyless = [count for count in self.all if not count.keyed]
        keyed = ([count for count in one if count.keyed and 0 < count.split < 1] for one in arms)
        self.keyed = [one for one in keyed if one]

    def total(self, field: str, arm: str) -> int:
        """Sum of a field of one arm, for people."""
        return sum(int(getattr(count, field)) for count in self.all if count.arm == arm)

    def e_value(self, log_value: Callable[[Sequence[ArmCounts]], float]) -> float:
        """Evidence of all draws, from the logarithm that draws of independent coins give."""
        keyed = log_mean_exp(np.array([log_value(one) for one in self.keyed])) if self.keyed else 0.0
        return _e(log_value(self.keyless) + keyed)


def _by_split(arms: Iterable[ArmCounts], field: str) -> list[SplitCounts]:
    sums: dict[float, list[int]] = {}
    for count in arms:
        pair = sums.setdefault(count.split, [0, 0])
        pair[0 if count.arm == "challenger" else 1] += int(getattr(count, field))
    return [SplitCounts(split, pair[0], pair[1]) for split, pair in sorted(sums.items())]


def _errors(spec: Canary, draws: _Draws) -> MetricAnalysis:
    def safe_rate(arms: Sequence[ArmCounts]) -> float:
        own = [count for count in arms if count.arm == "challenger"]
        events, trials = sum(count.errors for count in own), sum(count.requests for count in own)
        return log_safe_rate(events, trials, spec.error_margin)

    failed, sent = draws.total("errors", "challenger"), draws.total("requests", "challenger")
    harm = draws.e_value(lambda arms: log_harm(_by_split(arms, "errors")))
    safe = draws.e_value(safe_rate)
    text = f"{failed} errors of {sent:,} requests"
    if safe < 1 / spec.alpha_promote:
        need = math.ceil(math.log(5 / spec.alpha_promote) / -math.log1p(-spec.error_margin))
        need *= max(1, len(draws.keyed))  # each replica gathers evidence of its own on keys
        text += f", about {max(need, sent + 1):,} needed to rule out {spec.error_margin:.2%}"
    return _metric(spec, "errors", harm, safe, text)


def _latency(spec: Canary, draws: _Draws) -> MetricAnalysis:
    slow, sent = draws.total("slow", "challenger"), draws.total("requests", "challenger")
    others, others_sent = draws.total("slow", "champion"), draws.total("requests", "champion")
    harm = draws.e_value(lambda arms: log_harm(_by_split(arms, "slow")))
    safe = draws.e_value(lambda arms: log_safe_ratio(_by_split(arms, "slow"), spec.slow_margin))
    text = f"{slow} of {sent:,} slow against {others} of {others_sent:,}"
    if safe < 1 / spec.alpha_promote:
        text += f", more slow answers needed to rule out a ratio of {spec.slow_margin:g}"
    return _metric(spec, "latency", harm, safe, text)


def _agreement(spec: Canary, pairs: Sequence[PairCounts]) -> MetricAnalysis:
    count, flipped = sum(p.pairs for p in pairs), sum(p.flipped for p in pairs)
    harm = _e(log_disagreement(flipped, count, spec.disagreement))
    # What must be ruled out is a challenger that nobody compared: enough pairs are the evidence.
    safe = 1 / spec.alpha_promote if count >= spec.shadow else 1.0
    share = flipped / count if count else 0.0
    text = f"{share:.1%} of decisions differ on {count:,} mirrored requests"
    if count < spec.shadow:
        text += f", {spec.shadow - count:,} more needed"
    return _metric(spec, "agreement", harm, safe, text)


def _metric(spec: Canary, name: str, harm: float, safe: float, text: str) -> MetricAnalysis:
    verdict: StepVerdict = "continue"
    if harm >= _alone(spec):
        verdict = "fail"
    elif safe >= 1 / spec.alpha_promote:
        verdict = "pass"
    return MetricAnalysis(name, verdict, harm, _alone(spec), safe, 1 / spec.alpha_promote, text)


def _alone(spec: Canary) -> float:
    """What the harm of all metrics must add up to for their mean to reach 1/alpha."""
    return METRICS / spec.alpha


def _e(log_value: float) -> float:
    """E-value from its logarithm, kept inside what JSON can hold."""
    return math.exp(min(log_value, 700.0))
