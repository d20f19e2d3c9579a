"""The watch after a promotion: the dethroned champion answers in shadow, and block evidence goes on.

Evidence of its own: it starts with the first block after the promotion and owes nothing to the gate's. It may
be read after every block, for as long as the watch lasts.

The dethroned model ages meanwhile, so the watch answers "would swapping back help?", which is what a rollback
needs, and not "was the promotion right?". The report carries that age.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from ctrain.evaluation.evidence import BlockEvidence, harm
from ctrain.evaluation.gross import lost_skill
from ctrain.evaluation.relative import SPOILED
from ctrain.evaluation.scales import Scales, scales_from
from ctrain.records import PairedBlock, WatchReport

HISTORY = 3
"""Blocks from which the pair's own scatter stands in where the pipeline's is not known."""


def watch(
    blocks: Sequence[PairedBlock],
    scales: Scales | None = None,
    margins: Mapping[str, float] | None = None,
    age: int = 0,
    least_rows: int = 10,
    alpha: float = 0.05,
) -> WatchReport:
    """Judge the champion against the model that it dethroned, on matured blocks since the promotion.

    Args:
        blocks: In the order of time; `judged` is the champion, `against` the dethroned model in shadow.
        scales: Of single models of the pipeline (`one_against_one`); None, or one without scatter, lets
            the pair's own first blocks stand in.
        margins: Harm that is tolerated, by statistic; at least, and by default, half of tau.
        age: Blocks between the newest that the dethroned model learned from and the first one judged.
        least_rows: Rows from which a block counts.
        alpha: Chance of a rollback where the champion is no worse than the margin, however long the watch.

    Returns:
        `fail` as soon as harm beyond the margin is shown after any block, or where the champion's skill is
        gone; `pass` when harm of the size that spoiled labels do is ruled out.
    """
    kept = [one for one in blocks if one.rows >= least_rows and harm(one.judged, one.against)]
    harms = [harm(one.judged, one.against) for one in kept]
    used, skipped = scales, 0
    if used is None or not used.sigma:
        # The blocks that give the scatter are not judged by it again.
        used, skipped = scales_from((), None, harms[:HISTORY]), min(HISTORY, len(harms))
    bound = -math.log(alpha)
    evidence = BlockEvidence.new(used, margins).add(harms[skipped:])
    wide = {name: max(edge, SPOILED * used.sigma[name]) for name, edge in used.margins().items()}
    safe = BlockEvidence.new(used, wide).add(harms[skipped:]).safe
    problem = lost_skill(kept, used)
    gross = f"skill is gone: {problem}" if problem else ""
    verdict: Literal["pass", "continue", "fail"] = "continue"
    if gross or evidence.worse.exceeds(alpha):
        verdict = "fail"
    elif safe.exceeds(alpha):
        verdict = "pass"
    return WatchReport(
        verdict,
        len(kept),
        age,
        _e_value(evidence.worse.peak),
        _e_value(safe.peak),
        _e_value(bound),
        gross or _words(verdict, evidence, safe.peak, bound, len(kept), age),
    )


def one_against_one(scales: Scales, replicates: int) -> Scales:
    """Scales of a pair of single models, from those of pairs of means of R replicates.

    The scatter is taken as all due to the luck of single models, which is the cautious end.
    """
    factor = math.sqrt(max(1, replicates))
    sigma = {name: factor * value for name, value in scales.sigma.items()}
    tau = {name: factor * value for name, value in scales.tau.items()}
    return Scales(sigma, tau, scales.pairs, scales.source)


def _words(verdict: str, evidence: BlockEvidence, safe: float, bound: float, blocks: int, age: int) -> str:
    """One line for people."""
    mean = evidence.worse.sum / evidence.worse.blocks if evidence.worse.blocks else 0.0
    if verdict == "fail":
        found = "the dethroned model is better by more than retrains differ"
    elif verdict == "pass":
        found = "no harm: a spoiled model is ruled out"
    else:
        nearer = max(evidence.worse.peak, safe) / bound if blocks else 0.0
        found = f"no verdict yet, {np.clip(nearer, 0, 1):.0%} of the evidence for one"
    towards = "worse" if mean > 0 else "no worse"
    older = f", the dethroned model {age} blocks old" if age else ""
    return f"{found} over {blocks} blocks (leaning to {towards}{older})"


def _e_value(log_value: float) -> float:
    """E-value from its logarithm, kept inside what JSON can hold."""
    return math.exp(min(log_value, 700.0))
