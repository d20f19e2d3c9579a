"""Criteria on named groups: a difference between them, and a rule that every segment must keep."""

from __future__ import annotations

from dataclasses import replace

from ctrain.evaluation.compare import PairedInterval, mean_interval, values_of
from ctrain.evaluation.relative import enough_words
from ctrain.records import CriterionResult, GateEvidence, ModelScore, SegmentScore, Verdict
from ctrain.spec.evaluation import GateCriterion


def between(rule: GateCriterion, evidence: GateEvidence, confidence: float) -> CriterionResult:
    """Largest difference between named groups, each pair by blocks that both have."""
    assert rule.at_most is not None
    words = f"differs by at most {rule.at_most:g} between {', '.join(rule.between)}"
    result = CriterionResult(rule.metric, words, rule.at_most, None)
    groups = evidence.groups
    absent = [name for name in rule.between if rule.metric not in getattr(groups.get(name), "overall", {})]
    if absent:
        return replace(result, reason=f"cannot be computed for {', '.join(absent)}")
    values = {name: groups[name].overall[rule.metric] for name in rule.between}
    low, high = min(values, key=values.__getitem__), max(values, key=values.__getitem__)
    gap = values[high] - values[low]
    interval = _gap(groups[high], groups[low], rule.metric, confidence)
    reason = f"{high} {values[high]:.4f}, {low} {values[low]:.4f}: they differ by {gap:.4f}"
    if interval is None:
        reason += "; two blocks that hold both groups are the least for an interval"
        return replace(result, value=gap, difference=gap, reason=reason, needed=2)
    verdict: Verdict = "not_enough_evidence"
    if interval.high <= rule.at_most:
        verdict = "accept"
    elif interval.low > rule.at_most:
        verdict = "refuse"
    needed = interval.needed(-rule.at_most) if verdict == "not_enough_evidence" else None
    reason += f" ({confidence:.0%} {interval.low:.4f} … {interval.high:.4f}), expected {words}"
    return replace(
        result,
        value=gap,
        difference=interval.difference,
        low=interval.low,
        high=interval.high,
        blocks=interval.blocks,
        verdict=verdict,
        reason=reason + enough_words(verdict, needed),
        needed=needed,
    )


def _gap(one: ModelScore, two: ModelScore, metric: str, confidence: float) -> PairedInterval | None:
    other = {block.block: values_of(block) for block in two.blocks}
    mine = [(values_of(block), other.get(block.block, {})) for block in one.blocks]
    gaps = [first[metric] - second[metric] for first, second in mine if metric in first and metric in second]
    return mean_interval(gaps, confidence)


def by_segment(rule: GateCriterion, evidence: GateEvidence, words: str) -> CriterionResult:
    """No segment of the named columns may break the rule; those that are too small are only counted."""
    columns = ", ".join(rule.segments)
    result = CriterionResult(rule.metric, f"{words} in each {columns}", _bound(rule), None)
    named = [
        one
        for one in evidence.segments
        if one.segment.split("=", 1)[0] in rule.segments and one.metric == rule.metric
    ]
    if _relative(rule) and evidence.champion is None:
        return replace(result, verdict="accept", reason="first model: nothing to compare with")
    usable = [one for one in named if _shown(rule, one) is not None]
    if not usable:
        reason = f"none of {len(named)} segments of {columns} has enough rows"
        return replace(result, reason=reason)
    worst = min(usable, key=lambda one: _shown(rule, one) or 0.0)
    broken = [one for one in usable if _breaks(rule, one)]
    reason = f"worst of {len(usable)} is {worst.segment} ({_figures(rule, worst)})"
    if broken:
        reason = f"{len(broken)} of {len(usable)} break it: " + "; ".join(
            f"{one.segment} ({_figures(rule, one)})" for one in sorted(broken, key=lambda x: x.segment)[:5]
        )
    if len(named) > len(usable):
        reason += f"; {len(named) - len(usable)} are too small to judge"
    return replace(
        result,
        value=worst.value,
        champion=worst.champion,
        difference=worst.difference,
        low=worst.low,
        high=worst.high,
        blocks=worst.blocks,
        verdict="refuse" if broken else "accept",
        reason=reason,
    )


def _relative(rule: GateCriterion) -> bool:
    return rule.no_harm is not None or rule.better is not None


def _bound(rule: GateCriterion) -> float:
    return next((x for x in (rule.at_least, rule.at_most) if x is not None), margin_of(rule))


def _shown(rule: GateCriterion, one: SegmentScore) -> float | None:
    """What a segment shows, higher is better; None where it is too small to show anything."""
    if _relative(rule):
        return one.difference if one.high is not None else None
    if one.value is None:
        return None
    return one.value if rule.at_least is not None else -one.value


def _breaks(rule: GateCriterion, one: SegmentScore) -> bool:
    if _relative(rule):
        edge = 0.0 if rule.better else -margin_of(rule)
        return one.high is not None and one.high < edge
    assert one.value is not None
    return one.value < rule.at_least if rule.at_least is not None else one.value > _bound(rule)


def _figures(rule: GateCriterion, one: SegmentScore) -> str:
    if _relative(rule):
        return f"{one.difference or 0.0:+.4f}, at best {one.high or 0.0:+.4f}, {one.blocks} blocks"
    return f"{one.value or 0.0:.4f}, {one.rows} rows"


def margin_of(rule: GateCriterion) -> float:
    """Harm that a rule tolerates; 0 where it names none."""
    return rule.no_harm if isinstance(rule.no_harm, float) else 0.0
