"""Analysis of a rollout: always-valid sequential tests on counts, so that looking often costs nothing.

Takes cumulative counts of every replica incarnation, gives a verdict a metric and one for the rollout. Its
state is the counts themselves: they survive a restart bit for bit.

Events (errors, slow answers) are judged by the coin of the split: both models share a replica, so stalls hit
both arms by the same coin. Predictions are compared on mirrored requests, quality on matured labels by
blocks of time. The whole rollout has one budget of false alarms, whatever its steps and however often one
looks (`evidence.total_harm`); promotion asks for evidence of its own from every metric (`metrics`).

Beside the statistics stand the hard stops: a challenger that failed three times on mirrored requests (an
exception, a number that is not finite, a request that it cannot read), and weights that a replica refuses,
which is the controller's to see.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ctrain.records import Analysis, ArmCounts, EvidenceState, MetricAnalysis, Pace, PairCounts, StepVerdict
from ctrain.rollout.draws import Draws
from ctrain.rollout.evidence import total_harm
from ctrain.rollout.metrics import Look, agreement, errors, latency, shift
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
    harm = float(total_harm({metric.metric: metric.harm for metric in asked}))
    analysis = Analysis(rollout, phase, split, "continue", tuple(asked), requests, "")
    return _decide(analysis, asked, harm, 1 / spec.alpha, sum(count.errors for count in mirrored))


def _decide(
    analysis: Analysis, asked: Sequence[MetricAnalysis], harm: float, bound: float, mirror_errors: int
) -> Analysis:
    verdict: StepVerdict = "continue"
    state = min((metric.state for metric in asked), key=LEAST_FIRST.index)
    minutes = _longest(asked)
    reason = "; ".join(metric.text for metric in asked if metric.verdict != "pass")
    worst = max(analysis.metrics, key=lambda metric: metric.harm / metric.harm_bound)
    if mirror_errors >= MIRROR_ERRORS:
        verdict, state = "fail", "harm"
        reason = f"the challenger failed on {mirror_errors} mirrored requests"
    elif harm >= bound:
        verdict, state = "fail", "harm"
        reason = f"{worst.metric}: {worst.text}"
    elif all(metric.verdict == "pass" for metric in asked):
        verdict, reason = "pass", "no evidence of harm; harm beyond the margins ruled out"
    return replace(analysis, verdict=verdict, reason=reason, state=state, minutes=minutes)


def _longest(asked: Sequence[MetricAnalysis]) -> float | None:
    """Minutes until the last metric has its evidence."""
    spans = [metric.minutes for metric in asked if metric.state != "enough"]
    known = [span for span in spans if span is not None]
    return max(known, default=0.0) if len(known) == len(spans) else None
