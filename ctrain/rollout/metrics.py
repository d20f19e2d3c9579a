"""The metrics of a rollout, each with its evidence of harm, its evidence for promotion, and its words.

Evidence for promotion is against harm beyond the margin at every part of a metric: latency passes when
`slow_margin` is ruled out at p50, p90 and p99 each. Errors are compared with the champion's in the
same minutes, since an absolute rate would let a quiet hour promote and would never promote beside a champion
that fails as often. No evidence speaks of hours that were not seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ctrain.records import MetricAnalysis, Pace, PairCounts, StepVerdict
from ctrain.rollout.draws import Draws
from ctrain.rollout.evidence import (
    SLOW,
    WEIGHTS,
    e_value,
    log_above,
    log_harm,
    log_safe_excess,
    log_safe_slow,
    slow_harm,
)
from ctrain.rollout.needed import (
    Forecast,
    draws_without_excess,
    draws_without_slowness,
    forecast,
    in_words,
)
from ctrain.spec.rollout import Canary


@dataclass(frozen=True, slots=True)
class Look:
    """What every metric is judged by."""

    spec: Canary
    split: float
    """Challenger's share of live traffic from here on, above 0."""
    pace: Pace | None = None

    @property
    def enough(self) -> float:
        """Evidence for promotion that suffices."""
        return 1 / self.spec.alpha_promote


def errors(look: Look, draws: Draws) -> MetricAnalysis:
    """Exceptions, time-outs and answers that are not finite, by the split test."""
    margin = look.spec.error_margin
    harm = draws.e_value(lambda table: log_harm(table.errors()))
    safe = draws.e_value(lambda table: log_safe_excess(*table.first_answers(), margin))
    target = math.log(look.enough)
    lacking = draws.lacking(lambda table: draws_without_excess(table, look.split, margin, target))
    told = _of_arm(look, draws, safe >= look.enough, lacking)
    sent, _, failed = draws.challenger[:3]
    others_sent, _, others_failed = draws.champion[:3]
    text = f"{failed} errors of {sent:,} requests against {others_failed} of {others_sent:,}"
    return metric(look, "errors", harm, safe, text, told)


def latency(look: Look, draws: Draws) -> MetricAnalysis:
    """Slow answers at the champion's p50, p90 and p99, by the split test."""
    harms, safes, lacking = zip(*(_slow(look, draws, number) for number in range(len(SLOW))), strict=True)
    safe = min(safes)
    told = _of_arm(look, draws, safe >= look.enough, max(lacking))
    shares = (f"{_share(draws.challenger, n)} against {_share(draws.champion, n)}" for n in range(len(SLOW)))
    text = ", ".join(f"{slow.name} {share}" for slow, share in zip(SLOW, shares, strict=True))
    text = f"slower than the champion's {text} of {draws.requests:,} requests"
    return metric(look, "latency", float(slow_harm(harms)), safe, text, told)


def _slow(look: Look, draws: Draws, number: int) -> tuple[float, float, float]:
    """Harm, safety, and draws that the latter still needs, at one threshold."""
    margin, target, ratios = look.spec.slow_margin, math.log(look.enough), SLOW[number].ratios
    harm = draws.e_value(lambda table: log_harm(table.slow(number), ratios))
    safe = draws.e_value(
        lambda table: log_safe_slow(table.slow(number), table.not_slow(number), SLOW[number], margin)
    )
    if safe >= look.enough:
        return harm, safe, 0.0
    lacking = draws.lacking(lambda table: draws_without_slowness(table, number, look.split, margin, target))
    return harm, safe, lacking


def agreement(look: Look, pairs: Sequence[PairCounts]) -> MetricAnalysis:
    """Flipped decisions on mirrored requests."""
    count = sum(pair.pairs for pair in pairs)
    # The exact sum: the order in which replicas are listed changes no bit.
    flipped = math.fsum(pair.flipped for pair in pairs)
    harm = float(e_value(log_above(flipped, count, look.spec.disagreement)))
    text = f"{flipped / count if count else 0.0:.1%} of decisions differ on {count:,} mirrored requests"
    return _of_pairs(look, "agreement", harm, text, count)


def shift(look: Look, pairs: Sequence[PairCounts]) -> MetricAnalysis:
    """How far the two models' probabilities are apart on mirrored requests."""
    count = sum(pair.pairs for pair in pairs)
    distance = math.fsum(pair.distance for pair in pairs)
    moved = math.fsum(pair.shift for pair in pairs) / count if count else 0.0
    harm = float(e_value(log_above(distance, count, look.spec.shift)))
    mean = distance / count if count else 0.0
    text = f"predictions differ by {mean:.3f} (mean {moved:+.3f}) on {count:,} mirrored requests"
    return _of_pairs(look, "shift", harm, text, count)


def _of_pairs(look: Look, name: str, harm: float, text: str, count: int) -> MetricAnalysis:
    """What must be ruled out is a challenger that nobody compared: enough pairs are the evidence."""
    wanted = look.spec.shadow
    safe = look.enough if count >= wanted else 1.0
    told = forecast(count >= wanted, wanted - count, count, look.pace, "mirrored")
    return metric(look, name, harm, safe, text, told)


def _of_arm(look: Look, draws: Draws, enough: bool, lacking: float) -> Forecast:
    """Draws of both arms as requests of the challenger, which grow at the present step's pace."""
    so_far = round(draws.at_step(look.split, look.spec.steps) * look.split)
    return forecast(enough, lacking * look.split, so_far, look.pace)


def metric(look: Look, name: str, harm: float, safe: float, text: str, told: Forecast) -> MetricAnalysis:
    """Put a metric's evidence together. It says `fail` where it alone ends the rollout."""
    alone = 1 / (look.spec.alpha * WEIGHTS[name])
    verdict: StepVerdict = "continue"
    state = told.state
    if harm >= alone:
        verdict, state = "fail", "harm"
    elif safe >= look.enough:
        verdict = "pass"
    return MetricAnalysis(
        name,
        verdict,
        harm,
        alone,
        safe,
        look.enough,
        text + ("" if verdict == "fail" else in_words(told)),
        state,
        told.needed,
        told.unit,
        told.minutes,
    )


def _share(arm: Sequence[int], threshold: int) -> str:
    sent, slow = arm[0], arm[3 + threshold]
    return f"{slow / sent:.1%}" if sent else "none"
