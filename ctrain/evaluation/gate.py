"""The gate: offline criteria before any traffic. Pure: scores in, a decision with its evidence out."""

from __future__ import annotations

from ctrain.evaluation.compare import paired_interval
from ctrain.records import CriterionResult, GateDecision, ModelScore, Verdict
from ctrain.spec.evaluation import Evaluation, GateCriterion


def decide_gate(evaluation: Evaluation, candidate: ModelScore, champion: ModelScore | None) -> GateDecision:
    """Judge a candidate by every criterion of the spec.

    Args:
        evaluation: Criteria and level.
        candidate: Judged weights' scores on the judged blocks.
        champion: The champion's judged weights on those of the blocks that it has not trained on, with no
            row where it cannot read them; None for the first model, which absolute criteria alone decide.

    Returns:
        `refuse` if any criterion refuses, else `not_enough_evidence` if any lacks evidence, else
        `accept`. A candidate without enough evidence is held: it never serves by default.
    """
    results = tuple(_judge(rule, evaluation, candidate, champion) for rule in evaluation.gate)
    verdicts = [result.verdict for result in results]
    verdict: Verdict = "accept"
    if "refuse" in verdicts:
        verdict = "refuse"
    elif "not_enough_evidence" in verdicts:
        verdict = "not_enough_evidence"
    telling = [result for result in results if result.verdict == verdict] or list(results)
    reason = "; ".join(f"{result.metric} {result.reason}" for result in telling) or "no criterion"
    return GateDecision(
        version=candidate.version,
        champion=champion.version if champion is not None else "",
        verdict=verdict,
        criteria=results,
        candidate_score=candidate,
        champion_score=champion,
        reason=reason,
    )


def _judge(
    rule: GateCriterion, evaluation: Evaluation, candidate: ModelScore, champion: ModelScore | None
) -> CriterionResult:
    value = candidate.overall.get(rule.metric)
    if rule.no_harm is not None:
        return _no_harm(rule.metric, rule.no_harm, evaluation, candidate, champion)
    bound = rule.at_least if rule.at_least is not None else rule.at_most
    assert bound is not None
    words = f"at {'least' if rule.at_least is not None else 'most'} {bound:g}"
    if value is None:
        reason = "cannot be computed on the judged blocks"
        return CriterionResult(rule.metric, words, bound, None, reason=reason)
    kept = value >= bound if rule.at_least is not None else value <= bound
    reason = f"{value:.4f}, expected {words}"
    return CriterionResult(
        rule.metric,
        words,
        bound,
        value,
        blocks=len(candidate.blocks),
        verdict="accept" if kept else "refuse",
        reason=reason,
    )


def _no_harm(
    metric: str,
    margin: float,
    evaluation: Evaluation,
    candidate: ModelScore,
    champion: ModelScore | None,
) -> CriterionResult:
    words = f"no harm beyond {margin:g}"
    value = candidate.overall.get(metric)
    if champion is None:
        reason = "first model: nothing to compare with"
        return CriterionResult(metric, words, margin, value, verdict="accept", reason=reason)
    interval = paired_interval(candidate, champion, metric, evaluation.confidence)
    if interval is None:
        reason = _too_few_blocks(metric, candidate, champion)
        return CriterionResult(metric, words, margin, value, champion.overall.get(metric), reason=reason)
    verdict: Verdict = "not_enough_evidence"
    if interval.low > -margin:
        verdict = "accept"
    elif interval.high < -margin:
        verdict = "refuse"
    better = "better" if interval.difference >= 0 else "worse"
    reason = (
        f"{better} by {abs(interval.difference):.4f} ({evaluation.confidence:.0%} {interval.low:+.4f} … "
        f"{interval.high:+.4f}, positive is better) over {interval.blocks} blocks, expected {words}"
    )
    return CriterionResult(
        metric,
        words,
        margin,
        value,
        champion.overall.get(metric),
        interval.difference,
        interval.low,
        interval.high,
        interval.blocks,
        verdict,
        reason,
    )


def _too_few_blocks(metric: str, candidate: ModelScore, champion: ModelScore) -> str:
    """Why two models cannot be compared: one has no value on too many of the judged blocks."""
    scored = {score.block: score.rows for score in champion.blocks}
    seen = [score.block for score in candidate.blocks if score.block not in scored]
    unreadable = [block for block, rows in scored.items() if not rows]
    reason = f"has no value for both models on two of the {len(candidate.blocks)} judged blocks"
    if seen:
        reason += f"; the champion has trained on {', '.join(seen)}"
    if unreadable:
        reason += f"; the champion's feature view cannot read {', '.join(unreadable)}"
    return reason
