"""Criteria against the champion: one metric by its interval, or all statistics of a block together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from ctrain.evaluation.blocks import CLASSIFIER_STATISTICS, REGRESSION_STATISTICS
from ctrain.evaluation.compare import Comparison, PairedInterval, interval_of, mean_interval
from ctrain.evaluation.evidence import BlockTest, fixed_look_bound
from ctrain.evaluation.scales import Scales
from ctrain.records import CriterionResult, Verdict

SPOILED = 0.75
"""Harm, in units of scatter, that `no_harm: auto` must rule out: a model that learned from labels of which
20 % were flipped is worse by about one such unit. Half of tau itself is ruled out by no number of blocks that
a pipeline has."""

LEAST_BLOCKS = 3
"""Blocks that a combined test needs: its bounds are calibrated from there on."""


def by_interval(
    result: CriterionResult,
    comparison: Comparison,
    confidence: float,
    asked: float = 0.0,
    better: bool = False,
    why_few: str = "",
) -> CriterionResult:
    """Judge the mean difference in one metric by its interval over blocks.

    Args:
        result: With metric and words of the rule.
        comparison: Candidate against champion.
        confidence: Level of the two-sided interval.
        asked: Harm that the rule tolerates; never taken below half of what retrains truly differ by.
        better: Whether proof is asked that the candidate is better by more than the margin.
        why_few: Why blocks are missing, for the words.
    """
    found = interval_of(comparison, result.metric, confidence)
    if found is None:
        reason = f"has no value for both models on two of the judged blocks{why_few}"
        return replace(result, reason=reason, needed=2)
    # Only a record says what retrains differ by: without one, what was asked stands.
    known = comparison.scales.margins() if comparison.scales.known else {}
    margin = max(asked, known.get(result.metric, 0.0))
    floor = margin if better else -margin
    verdict: Verdict = "not_enough_evidence"
    if found.low > floor:
        verdict = "accept"
    elif found.high < floor:
        verdict = "refuse"
    needed = found.needed(-floor) if verdict == "not_enough_evidence" else None
    words = result.rule
    if margin > asked:
        words += (
            f" by more than {margin:.2g}" if better else f" (raised to {margin:.2g}: retrains differ by it)"
        )
    reason = f"{found_words(found, confidence)}, expected {words}{enough_words(verdict, needed)}"
    return replace(
        result,
        threshold=margin,
        difference=found.difference,
        low=found.low,
        high=found.high,
        blocks=found.blocks,
        verdict=verdict,
        reason=reason,
        needed=needed,
    )


def found_words(found: PairedInterval, confidence: float, unit: str = "") -> str:
    """An interval of a difference, for people."""
    better = "better" if found.difference >= 0 else "worse"
    return (
        f"{better} by {abs(found.difference):.4f}{unit} ({confidence:.0%} {found.low:+.4f} … "
        f"{found.high:+.4f}, positive is better) over {found.blocks} blocks"
    )


def enough_words(verdict: Verdict, needed: int | None) -> str:
    """What would be enough evidence, for people; empty for a verdict."""
    if verdict != "not_enough_evidence":
        return ""
    if needed is None:
        return "; no number of blocks within reach would decide if they go on like these"
    return f"; about {needed} blocks would be enough if they go on like these"


def combined(
    result: CriterionResult,
    comparison: Comparison,
    confidence: float,
    better: bool = False,
    why_few: str = "",
) -> CriterionResult:
    """Judge the combined evidence at one fixed look: worse, safe, better by more than retrains differ.

    Differences, interval and threshold are in units of the pipeline's scatter from block to block.
    """
    scales, names = comparison.scales, _statistics(result.metric, comparison)
    found = mean_interval(
        [
            -math.fsum(one[name] / scales.sigma[name] for name in names if name in one) / len(names)
            for one in comparison.harms
            if any(name in one for name in names)
        ],
        confidence,
    )
    if found is None or found.blocks < LEAST_BLOCKS:
        count = found.blocks if found is not None else 0
        reason = f"{count} blocks with a value for both models, {LEAST_BLOCKS} are the least{why_few}"
        return replace(result, blocks=count, reason=reason, needed=LEAST_BLOCKS)
    margins = scales.margins()
    harm_z = _z(comparison, names, margins, +1)
    if better:
        ask_z, what = _z(comparison, names, margins, -1), "better"
    else:
        wide = {name: max(margins[name], SPOILED * scales.sigma[name]) for name in names}
        ask_z, what = _z(comparison, names, {name: -wide[name] for name in names}, -1), "safe"
    bound = fixed_look_bound(found.blocks)
    verdict: Verdict = "not_enough_evidence"
    if harm_z > bound:
        verdict = "refuse"
    elif ask_z > bound:
        verdict = "accept"
    needed = None
    if verdict == "not_enough_evidence" and ask_z > 0:
        needed = max(found.blocks + 1, math.ceil(found.blocks * (bound / ask_z) ** 2))
    reason = (
        f"{found_words(found, confidence, ' of a block’s scatter')}; Z {harm_z:.2f} for worse and "
        f"{ask_z:.2f} for {what}, {bound:.2f} decides (scales: {_source(scales)})"
        f"{enough_words(verdict, needed)}"
    )
    return replace(
        result,
        threshold=max(margins[name] / scales.sigma[name] for name in names),
        difference=found.difference,
        low=found.low,
        high=found.high,
        blocks=found.blocks,
        verdict=verdict,
        reason=reason,
        needed=needed,
    )


def _statistics(metric: str, comparison: Comparison) -> tuple[str, ...]:
    names = (*CLASSIFIER_STATISTICS, *REGRESSION_STATISTICS) if metric == "quality" else (metric,)
    return tuple(name for name in names if name in comparison.scales.sigma)


def _z(comparison: Comparison, names: Sequence[str], margins: Mapping[str, float], sign: int) -> float:
    """Z that the harm (sign +1) or the gain (-1) exceeds the margin."""
    test = BlockTest.new([comparison.scales.sigma[name] for name in names], [margins[name] for name in names])
    rows = [[sign * one.get(name, math.nan) for one in comparison.harms] for name in names]
    return test.add(np.array(rows)).z


def _source(scales: Scales) -> str:
    if scales.known:
        return f"{scales.pairs} recorded pairs"
    stand_in = "replicates" if scales.source == "replicates" else "own blocks"
    return f"{scales.pairs} recorded pairs, so the {stand_in}"
