"""Criteria of the gate: one rule of the spec and the evidence in, a result with value and words out."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ctrain.evaluation.compare import Comparison, mean_interval, values_of
from ctrain.evaluation.groups import between, by_segment, margin_of
from ctrain.evaluation.relative import by_interval, combined
from ctrain.records import CriterionResult, GateEvidence, Verdict
from ctrain.spec.evaluation import GateCriterion


@dataclass(frozen=True, slots=True)
class Judged:
    """What all criteria look at."""

    evidence: GateEvidence
    confidence: float
    comparison: Comparison | None
    """Candidate against champion; None for the first model."""
    why_few: str = ""
    """Why blocks are missing from the comparison."""


def judge(rule: GateCriterion, judged: Judged) -> CriterionResult:
    """Judge one criterion of the spec."""
    if rule.metric in ("latency_p50", "latency_p99", "size"):
        return _of_the_version(rule, judged.evidence)
    if rule.metric in judged.evidence.missing:
        result = CriterionResult(rule.metric, _words(rule), margin_of(rule), None)
        return replace(result, reason=judged.evidence.missing[rule.metric])
    if rule.between:
        return between(rule, judged.evidence, judged.confidence)
    if rule.segments:
        return by_segment(rule, judged.evidence, _words(rule))
    if rule.no_harm is None and rule.better is None:
        return _absolute(rule, judged)
    champion, words = judged.evidence.champion, _words(rule)
    value = judged.evidence.candidate.overall.get(rule.metric)
    result = CriterionResult(rule.metric, words, margin_of(rule), value)
    if judged.comparison is None or champion is None:
        reason = "first model: nothing to compare with"
        return replace(result, verdict="accept", reason=reason)
    result = replace(result, champion=champion.overall.get(rule.metric))
    if rule.metric == "quality" or rule.no_harm == "auto":
        return combined(result, judged.comparison, judged.confidence, bool(rule.better), judged.why_few)
    return by_interval(
        result, judged.comparison, judged.confidence, margin_of(rule), bool(rule.better), judged.why_few
    )


def _words(rule: GateCriterion) -> str:
    if rule.better:
        return "better"
    if rule.no_harm == "auto":
        return "no harm"
    if rule.no_harm is not None:
        return f"no harm beyond {rule.no_harm:g}"
    return f"at least {rule.at_least:g}" if rule.at_least is not None else f"at most {rule.at_most:g}"


def _absolute(rule: GateCriterion, judged: Judged) -> CriterionResult:
    candidate = judged.evidence.candidate
    words, bound = _words(rule), rule.at_least if rule.at_least is not None else rule.at_most
    assert bound is not None
    value = candidate.overall.get(rule.metric)
    if value is None:
        reason = "cannot be computed on the judged blocks"
        return CriterionResult(rule.metric, words, bound, None, reason=reason)
    kept = value >= bound if rule.at_least is not None else value <= bound
    found = [values_of(block) for block in candidate.blocks]
    interval = mean_interval([one[rule.metric] for one in found if rule.metric in one], judged.confidence)
    # The pooled value is what counts; blocks say how far it may move.
    offset = value - interval.difference if interval is not None else 0.0
    return CriterionResult(
        rule.metric,
        words,
        bound,
        value,
        low=interval.low + offset if interval is not None else None,
        high=interval.high + offset if interval is not None else None,
        blocks=len(candidate.blocks),
        verdict="accept" if kept else "refuse",
        reason=f"{value:.4f}, expected {words}",
    )


def _of_the_version(rule: GateCriterion, evidence: GateEvidence) -> CriterionResult:
    assert rule.at_most is not None
    size, quantile = rule.metric == "size", rule.metric.removeprefix("latency_")
    value = evidence.size if size else evidence.latency.get(quantile)
    words = f"at most {_amount(rule.at_most, size)}"
    if value is None:
        return CriterionResult(rule.metric, words, rule.at_most, None, reason="was not measured")
    verdict: Verdict = "accept" if value <= rule.at_most else "refuse"
    reason = f"{_amount(value, size)}, expected {words}"
    return CriterionResult(rule.metric, words, rule.at_most, float(value), verdict=verdict, reason=reason)


def _amount(value: float, size: bool) -> str:
    return f"{value / 1e6:.3g} MB" if size else f"{value * 1000:.3g} ms"
