"""Analysis of a rollout: always-valid sequential tests on counts, so that looking often costs nothing.

Takes cumulative counts of all replicas, gives a verdict a metric and one for the rollout. Its state
is the counts themselves: they merge by addition and survive a restart bit for bit.

Events (errors, slow answers) are judged by the split test: given that an event happened, which arm
did it fall in? Under equal rates that is the coin of the split, whatever storms hit both arms. Each
test is an e-process, so its level holds at every look (Ville's inequality). Both models share a
replica, so stalls hit both arms by the same coin.

Source: Lindon and Malek, Anytime-valid inference for multinomial count data (2022); Waudby-Smith and
Ramdas, Estimating means of bounded random variables by betting (2024).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
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
    alternatives = np.geomspace(0.25, 1.0, 8) * min(1.0, margin)
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


def log_disagreement(flipped: int, pairs: int, tolerated: float) -> float:
    """Log e-value against "the share of flipped decisions is `tolerated` or less"."""
    if tolerated >= 1.0:
        return 0.0
    stakes = BETS / tolerated if tolerated > 0 else BETS
    stakes = np.minimum(stakes, 0.95 / tolerated) if tolerated > 0 else stakes
    won = np.log1p(stakes * (1 - tolerated))
    lost = np.log1p(-stakes * tolerated)
    return log_mean_exp(flipped * won + (pairs - flipped) * lost)


def analyse(
    rollout: str,
    phase: str,
    split: float,
    spec: Canary,
    arms: Sequence[ArmCounts],
    pairs: Sequence[PairCounts],
) -> Analysis:
    """Look at a rollout.

    Args:
        rollout: Its id; counts of other rollouts are left out.
        phase: `shadow` or `canary`.
        split: Challenger's present share of live traffic.
        spec: Margins and error budgets.
        arms: Counts of every replica incarnation, cumulative, by split and arm.
        pairs: Mirrored comparisons of every replica incarnation, cumulative.

    Returns:
        `fail` as soon as the mean of the harm e-values reaches 1/alpha (one budget for the whole
        rollout, whatever its steps) or a hard stop is met; `pass` when every metric of the phase has
        its own evidence against harm beyond its margin; else `continue`.
    """
    mine = [count for count in arms if count.rollout == rollout]
    mirrored = [count for count in pairs if count.rollout == rollout]
    metrics = [_errors(spec, mine), _latency(spec, mine), _agreement(spec, mirrored)]
    # A mean of e-processes with fixed weights is an e-process; without counts each of them is 1.
    harm = sum(metric.harm for metric in metrics) / len(metrics)
    if phase == "shadow":
        metrics = metrics[2:]
    bound = 1 / spec.alpha
    mirror_errors = sum(count.errors for count in mirrored)
    requests = sum(count.requests for count in mine if count.arm == "challenger")
    if phase == "shadow":
        requests = sum(count.pairs for count in mirrored)
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


def _by_split(arms: Iterable[ArmCounts], field: str) -> list[SplitCounts]:
    sums: dict[float, list[int]] = {}
    for count in arms:
        if 0 < count.split < 1:
            pair = sums.setdefault(count.split, [0, 0])
            pair[0 if count.arm == "challenger" else 1] += int(getattr(count, field))
    return [SplitCounts(split, pair[0], pair[1]) for split, pair in sorted(sums.items())]


def _errors(spec: Canary, arms: Sequence[ArmCounts]) -> MetricAnalysis:
    events, trials = _by_split(arms, "errors"), _by_split(arms, "requests")
    failed, sent = sum(c.challenger for c in events), sum(c.challenger for c in trials)
    harm, safe = _e(log_harm(events)), _e(log_safe_rate(failed, sent, spec.error_margin))
    text = f"{failed} errors of {sent:,} requests"
    if safe < 1 / spec.alpha_promote:
        need = math.ceil(math.log(5 / spec.alpha_promote) / -math.log1p(-spec.error_margin))
        text += f", about {max(need, sent + 1):,} needed to rule out {spec.error_margin:.2%}"
    return _metric(spec, "errors", harm, safe, text)


def _latency(spec: Canary, arms: Sequence[ArmCounts]) -> MetricAnalysis:
    events, trials = _by_split(arms, "slow"), _by_split(arms, "requests")
    slow, sent = sum(c.challenger for c in events), sum(c.challenger for c in trials)
    others, others_sent = sum(c.champion for c in events), sum(c.champion for c in trials)
    harm, safe = _e(log_harm(events)), _e(log_safe_ratio(events, spec.slow_margin))
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
    text = f"{flipped} of {count:,} decisions differ ({share:.1%})"
    if count < spec.shadow:
        text += f", {spec.shadow - count:,} more pairs needed"
    return _metric(spec, "agreement", harm, safe, text)


def _metric(spec: Canary, name: str, harm: float, safe: float, text: str) -> MetricAnalysis:
    verdict: StepVerdict = "continue"
    if harm >= 1 / spec.alpha:
        verdict = "fail"
    elif safe >= 1 / spec.alpha_promote:
        verdict = "pass"
    return MetricAnalysis(name, verdict, harm, 1 / spec.alpha, safe, 1 / spec.alpha_promote, text)


def _e(log_value: float) -> float:
    """E-value from its logarithm, kept inside what JSON can hold."""
    return math.exp(min(log_value, 700.0))
