"""Analysis of a rollout: always-valid sequential tests on counts, so that looking often costs nothing.

Takes cumulative counts of every replica incarnation, gives a verdict a metric and one for the rollout. Its
state is the counts themselves: they survive a restart bit for bit.

Events (errors, slow answers) are judged by the coin of the split: both models share a replica, so stalls hit
both arms by the same coin. Predictions are compared on mirrored requests, quality on matured labels by
blocks of time. The whole rollout has one budget of false alarms, whatever its steps and however often one
looks (`evidence.total_harm`); promotion asks for evidence of its own from every metric (`metrics`).

Beside the statistics stand the hard stops: a challenger that failed three times on mirrored requests (an
exception, a number that is not finite, a request that it cannot read), a skill that is gone on matured
labels, and weights that a replica refuses, which is the controller's to see.
"""

from __future__ import annotations

from collections.abc import Sequence

from ctrain.evaluation.evidence import Scales
from ctrain.records import (
    Analysis,
    ArmCounts,
    EvidenceState,
    MetricAnalysis,
    Pace,
    PairCounts,
    PairedBlock,
    StepVerdict,
)
from ctrain.rollout.draws import Draws
from ctrain.rollout.evidence import total_harm
from ctrain.rollout.metrics import Look, agreement, errors, latency, shift
from ctrain.rollout.quality import quality as quality_of
from ctrain.spec.rollout import Canary

MIRROR_ERRORS = 3
"""Challenger failures on mirrored requests that end a rollout at once."""

LEAST_FIRST: tuple[EvidenceState, ...] = ("harm", "low_traffic", "gathering", "watching", "enough")
"""States of evidence, the one that decides for all metrics first."""


def analyse(
    rollout: str,
    phase: str,
    split: float,
    spec: Canary,
    arms: Sequence[Sequence[ArmCounts]],
    pairs: Sequence[PairCounts],
    quality: Sequence[PairedBlock] = (),
    scales: Scales | None = None,
    pace: Pace | None = None,
) -> Analysis:
    """Look at a rollout.

    Args:
        rollout: Its id; counts of other rollouts are left out.
        phase: `shadow` or `canary`.
        split: Challenger's present share of live traffic.
        spec: Margins and error budgets.
        arms: Counts of each replica incarnation, cumulative, by split, arm and whether they are keys.
        pairs: Mirrored comparisons of all replica incarnations, cumulative.
        quality: Matured blocks of mirrored requests in the order of time, the challenger `judged`.
        scales: Scatter and true differences of the pipeline's retrains; None takes that of the blocks.
        pace: Clock of the forecasts; None gives no minutes and never the state `low_traffic`.

    Returns:
        `fail` as soon as the weighted mean of the harm e-values reaches 1/alpha (one budget for the whole
        rollout, whatever its steps) or a hard stop is met; `pass` when every metric that the phase asks for
        has its own evidence against harm beyond its margin; else `continue`. A metric says `fail` when it
        alone, the others at zero, ends the rollout; several may end it together before that.
    """
    draws = Draws(rollout, arms)
    mirrored = [count for count in pairs if count.rollout == rollout]
    look = Look(spec, split if split > 0 else spec.steps[0], pace)
    asked = [agreement(look, mirrored), shift(look, mirrored)]
    requests = sum(count.pairs for count in mirrored)
    if phase != "shadow":
        asked = [errors(look, draws), latency(look, draws), *asked]
        requests = draws.requests
    judged, gross = quality_of(look, quality, scales)
    metrics = (*asked, judged)
    if phase != "shadow" and spec.quality.before_promotion:
        asked.append(judged)
    stop = f"quality: {judged.text}" if gross else ""
    failures = sum(count.errors for count in mirrored)
    if failures >= MIRROR_ERRORS:
        stop = f"the challenger failed on {failures} mirrored requests"
    verdict, reason = _verdict(metrics, asked, 1 / spec.alpha, stop)
    state = "harm" if verdict == "fail" else min((one.state for one in asked), key=LEAST_FIRST.index)
    return Analysis(rollout, phase, split, verdict, metrics, requests, reason, state, _longest(asked))


def _verdict(
    metrics: Sequence[MetricAnalysis], asked: Sequence[MetricAnalysis], bound: float, stop: str
) -> tuple[StepVerdict, str]:
    if stop:
        return "fail", stop
    if total_harm({one.metric: one.harm for one in metrics}) >= bound:
        worst = max(metrics, key=lambda one: one.harm / one.harm_bound)
        return "fail", f"{worst.metric}: {worst.text}"
    if all(one.verdict == "pass" for one in asked):
        watched = [f"; {one.metric}: {one.text}" for one in metrics if one.state == "watching"]
        return "pass", "no evidence of harm; harm beyond the margins ruled out" + "".join(watched)
    return "continue", "; ".join(one.text for one in asked if one.verdict != "pass")


def _longest(asked: Sequence[MetricAnalysis]) -> float | None:
    """Minutes until the last metric has its evidence."""
    spans = [metric.minutes for metric in asked if metric.state != "enough"]
    known = [span for span in spans if span is not None]
    return max(known, default=0.0) if len(known) == len(spans) else None
