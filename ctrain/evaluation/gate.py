"""The gate: offline criteria before any traffic. Pure: one record of evidence in, a decision out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ctrain.evaluation.cohorts import UNLABELLED
from ctrain.evaluation.compare import Comparison, compare, interval_of, recorded_pair, replicates_of
from ctrain.evaluation.criteria import Judged, judge
from ctrain.evaluation.gross import ENOUGH_BLOCKS, NO_SKILL, lost_skill, paired, unlike_outputs
from ctrain.evaluation.relative import combined, found_words
from ctrain.evaluation.scales import Scales
from ctrain.records import CriterionResult, GateDecision, GateEvidence, ModelScore, Verdict
from ctrain.spec.evaluation import Evaluation

LOSSES = ("capped_log_loss", "root_squared_error", "log_loss", "rmse", "brier")
"""What a trivial model is compared in, beside the order of scores: the first one that both have."""


def decide_gate(evaluation: Evaluation, evidence: GateEvidence) -> GateDecision:
    """Judge a candidate by every criterion of the spec, and by what needs no rule to be wrong.

    Beside the spec's criteria stand: gross harm against the champion, the refit against the replicates'
    band, a trivial or the first model that is better, leaks, and rows that were chosen by their label; each
    only where there is evidence on it.

    Args:
        evaluation: Criteria, level, sizes and budgets.
        evidence: All that is known; the champion's score holds only blocks that it has not learned from.

    Returns:
        `refuse` if any criterion refuses, else `not_enough_evidence` if any lacks evidence, else
        `accept`. A candidate without enough evidence is held: it never serves by default.
    """
    sight = _Sight.of(evaluation, evidence)
    judged = Judged(evidence, evaluation.confidence, sight.comparison, sight.why_few)
    results = [judge(rule, judged) for rule in evaluation.gate]
    gross = sight.gross()
    results += gross + sight.refit() + sight.simpler_models() + sight.leaks() + sight.cohort()
    verdicts = [result.verdict for result in results]
    verdict: Verdict = "accept"
    if "refuse" in verdicts:
        verdict = "refuse"
    elif "not_enough_evidence" in verdicts:
        verdict = "not_enough_evidence"
    telling = [result for result in results if result.verdict == verdict] or results
    champion = evidence.champion
    pair = None
    # What is grossly broken is no retrain of the procedure: in the record it would blunt the next gates.
    if champion is not None and all(result.verdict == "accept" for result in gross):
        pair = recorded_pair(evidence.candidate, champion, evidence.outputs, evaluation.block_rows)
    return GateDecision(
        version=evidence.candidate.version,
        champion=champion.version if champion is not None else "",
        verdict=verdict,
        criteria=tuple(results),
        candidate_score=evidence.candidate,
        champion_score=champion,
        reason="; ".join(f"{result.metric} {result.reason}" for result in telling),
        pair=pair,
        used=tuple(block.block for block in evidence.candidate.blocks if block.block not in sight.spent),
        warnings=tuple(sight.warnings()),
    )


@dataclass(frozen=True, slots=True)
class _Sight:
    """The evidence as far as sizes and the reuse budget let it be looked at."""

    evaluation: Evaluation
    evidence: GateEvidence
    spent: frozenset[str]
    comparison: Comparison | None
    why_few: str

    @classmethod
    def of(cls, evaluation: Evaluation, evidence: GateEvidence) -> _Sight:
        spent = frozenset(block for block, uses in evidence.uses.items() if uses >= evaluation.reuse)
        sight = cls(evaluation, evidence, spent, None, "")
        if evidence.champion is None:
            return sight
        why_few = _why_few(evaluation, evidence.candidate, evidence.champion, spent)
        return replace(sight, comparison=sight.against(evidence.champion), why_few=why_few)

    def against(self, other: ModelScore) -> Comparison:
        """The candidate against another model."""
        evidence = self.evidence
        return compare(evidence.candidate, other, evidence.record, self.evaluation.block_rows, self.spent)

    def gross(self) -> list[CriterionResult]:
        """Gross harm against the champion, which two blocks show."""
        champion, comparison = self.evidence.champion, self.comparison
        if champion is None or comparison is None or len(comparison.blocks) < ENOUGH_BLOCKS:
            return []
        known = any(name in one for one in comparison.harms for name in NO_SKILL)
        if not known and not self.evidence.outputs:
            return []
        found = [
            lost_skill(paired(self.evidence.candidate, champion, comparison.blocks), comparison.scales),
            unlike_outputs(self.evidence.outputs, self.evidence.record),
        ]
        told = "; ".join(problem for problem in found if problem)
        return [
            CriterionResult(
                "gross_harm",
                "none",
                0.0,
                None,
                blocks=len(comparison.blocks),
                verdict="refuse" if told else "accept",
                reason=told or f"not seen over {len(comparison.blocks)} blocks",
            )
        ]

    def refit(self) -> list[CriterionResult]:
        """The refit, out of sample, against the replicates' band: refused where it is shown to be outside.

        The spec's rules have judged the procedure; this looks for faults that the newest blocks brought in.
        """
        refit, candidate = self.evidence.refit, self.evidence.candidate
        if refit is None:
            return []
        result = CriterionResult("refit", "within the replicates' band", 0.0, None)
        found = compare(refit, candidate, (), self.evaluation.block_rows)
        if not found.scales.sigma:
            return [replace(result, reason="fewer than two blocks of its own", needed=3)]
        count = replicates_of(candidate)
        banded = replace(found, scales=_of_one_model(found.scales, self.against(candidate).scales, count))
        judged = combined(replace(result, metric="quality"), banded, self.evaluation.confidence)
        judged = replace(judged, metric="refit", needed=None)
        if lost := lost_skill(paired(refit, candidate, banded.blocks), banded.scales):
            return [replace(judged, verdict="refuse", reason=lost)]
        if judged.verdict != "refuse":
            inside = f"not shown outside the band over {judged.blocks} blocks"
            return [replace(judged, verdict="accept", reason=inside)]
        return [judged]

    def simpler_models(self) -> list[CriterionResult]:
        """Trivial models and the pipeline's first one: a candidate that is shown to be worse is refused."""
        others = [*self.evidence.baselines, *([self.evidence.static] if self.evidence.static else [])]
        return [found for other in others if (found := self._simpler(other)) is not None]

    def _simpler(self, other: ModelScore) -> CriterionResult | None:
        comparison, level = self.against(other), self.evaluation.confidence
        intervals = {name: interval_of(comparison, name, level) for name in (*LOSSES, *NO_SKILL)}
        loss = next((intervals[name] for name in LOSSES if intervals[name] is not None), None)
        order = next((intervals[name] for name in NO_SKILL if intervals[name] is not None), None)
        shown = loss if loss is not None else order
        if shown is None:
            return None
        worse = shown.high < 0 and not (order is not None and order.low > 0)
        word = "worse" if worse else "not worse"
        return CriterionResult(
            "loss" if loss is not None else "order",
            f"not worse than {other.version}",
            0.0,
            None,
            difference=shown.difference,
            low=shown.low,
            high=shown.high,
            blocks=shown.blocks,
            verdict="refuse" if worse else "accept",
            reason=f"{word} than {other.version}: {found_words(shown, level)}",
        )

    def leaks(self) -> list[CriterionResult]:
        """Features that seem to know the label."""
        if not self.evaluation.leaks.refuse:
            return []
        return [
            CriterionResult(
                "leak",
                f"{leak.feature} does not know the label",
                leak.threshold,
                leak.value,
                verdict="refuse",
                reason=leak.text,
            )
            for leak in self.evidence.leaks
        ]

    def cohort(self) -> list[CriterionResult]:
        """Whether the rows learned from and judged on were chosen by their label."""
        found = self.evidence.censoring
        if found is None:
            return []
        verdict: Verdict = "accept" if found.usable else "not_enough_evidence"
        if found.state in ("censored", "labels_from_the_future"):
            verdict = "refuse"
        words = {"young_but_fair": "young but fair", "matured": "matured"}.get(found.state, "")
        words = words or (
            "are chosen by their label" if verdict == "refuse" else "may be chosen by their label"
        )
        return [
            CriterionResult(
                "cohort",
                "rows are not chosen by their label",
                0.0,
                found.young / max(1, found.rows),
                low=found.low,
                high=found.high,
                verdict=verdict,
                reason=f"{words}: {found.reason}",
            )
        ]

    def warnings(self) -> Iterator[str]:
        """What decides nothing and should be known."""
        told = self.evidence.doubts
        if not self.evaluation.leaks.refuse:
            told = (*self.evidence.leaks, *told)
        yield from (f"{leak.feature} may know the label: {leak.text}" for leak in told)
        share = self.evidence.unlabelled
        if share > UNLABELLED and self.evidence.censoring is None:
            yield (
                f"{share:.1%} of the rows had no label when they landed and are left out: whether the others "
                "were chosen by their label, label.known_at would tell"
            )


def _of_one_model(found: Scales, pipeline: Scales, replicates: int) -> Scales:
    """Scales of one model against the mean of R replicates, from those of two means of R.

    With v the variance of one model's luck, two means differ by 2v/R and one model from a mean by v(1+1/R).
    The band is one tau, so the margin, half of it, is doubled. Without replicates the blocks themselves
    give the scatter.
    """
    factor = ((replicates + 1) / 2) ** 0.5
    sigma = found.sigma if replicates < 2 else {name: factor * x for name, x in found.sigma.items()}
    assumed = {name: pipeline.tau.get(name, found.tau[name]) for name in sigma}
    return replace(found, sigma=sigma, tau={name: 2 * factor * tau for name, tau in assumed.items()})


def _why_few(
    evaluation: Evaluation, candidate: ModelScore, champion: ModelScore, spent: frozenset[str]
) -> str:
    """Why two models cannot be compared on all judged blocks; empty if they can."""
    scored = {score.block: score.rows for score in champion.blocks}
    sizes = {score.block: score.rows for score in candidate.blocks}
    seen = [block for block in sizes if block not in scored]
    unreadable = [block for block, rows in scored.items() if not rows]
    small = [block for block, rows in sizes.items() if 0 < rows < evaluation.block_rows]
    used = [block for block in sizes if block in spent]
    told = [
        (seen, "the champion has trained on {}"),
        (unreadable, "the champion's feature view cannot read {}"),
        (small, f"fewer than {evaluation.block_rows} labelled rows in {{}}"),
        (used, f"{evaluation.reuse} gates have looked at {{}}"),
    ]
    words = [text.format(", ".join(blocks)) for blocks, text in told if blocks]
    return "".join(f"; {text}" for text in words)
