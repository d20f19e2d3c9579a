"""Quality on matured labels: both models on the same requests, by blocks of time.

Rows of one day are not independent evidence, so the unit is the block (`evaluation.evidence`). A canary of
hours sees few of them. Its honest verdict is then "no gross harm seen, watching"; promotion waits for the
blocks only where the spec asks for it. Evidence that the challenger is worse feeds the one error budget of
the rollout all the same; and a challenger whose skill is gone is stopped by the size of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ctrain.evaluation.evidence import BlockTest, Scales, harm, scales_from
from ctrain.evaluation.gross import lost_skill
from ctrain.records import EvidenceState, MetricAnalysis, PairedBlock
from ctrain.rollout.evidence import e_value
from ctrain.rollout.metrics import Look, metric
from ctrain.rollout.needed import Forecast

STATISTICS = {"auc": "auc", "log_loss": "capped_log_loss"}
"""Statistic of a block that stands for each metric of the spec."""


def quality(
    look: Look, blocks: Sequence[PairedBlock], scales: Scales | None = None
) -> tuple[MetricAnalysis, str]:
    """Judge a challenger's quality.

    Worse means beyond half of what retrains of one procedure differ by, in all statistics together; safe
    means that a loss of the spec's `no_harm` is ruled out.

    Args:
        look: How the rollout is judged.
        blocks: Matured blocks in the order of time; `judged` is the challenger, `against` the champion.
        scales: From the pipeline's record of retrains; None takes the scatter of the blocks themselves.

    Returns:
        The metric, and why the challenger's skill is gone (empty if it is not).
    """
    spec = look.spec.quality
    harms = [harm(block.judged, block.against) for block in blocks]
    known = scales if scales is not None else scales_from((), blocks=harms)
    name = STATISTICS[spec.metric]
    worse = _evidence(harms, known.sigma, known.margins())
    margin = max(spec.no_harm, known.margins().get(name, 0.0))
    sigma = {name: known.sigma[name]} if name in known.sigma else {}
    safe = _evidence([{name: -one[name]} for one in harms if name in one], sigma, {name: -margin})
    told = _forecast(look, safe, len(blocks), margin / sigma[name] if sigma else math.inf)
    gone = lost_skill(blocks, known)
    text = _text(blocks, harms, name, gone)
    judged = metric(look, "quality", worse, safe, text, told)
    return judged, gone


def _evidence(
    harms: Sequence[Mapping[str, float]], sigma: Mapping[str, float], margins: Mapping[str, float]
) -> float:
    """E-value that differences lie above their margins; 1 where nothing is known of their scatter."""
    names = [name for name in sigma if any(name in one for one in harms)]
    if not names:
        return 1.0
    test = BlockTest.new([sigma[name] for name in names], [margins[name] for name in names])
    differences = np.array([[one.get(name, math.nan) for one in harms] for name in names])
    return float(e_value(test.add(differences).log_e_value))


def _forecast(look: Look, safe: float, so_far: int, effect: float) -> Forecast:
    """Blocks still needed where both models are alike; a day's clock is not this room's to know."""
    if safe >= look.enough:
        return Forecast("enough", 0, "blocks", 0.0)
    state: EvidenceState = "gathering" if look.spec.quality.before_promotion else "watching"
    if math.isinf(effect):
        return Forecast(state, None, "blocks")
    # Evidence grows by half the squared effect a block, and pays about two units for not knowing the effect.
    whole = 2 * (math.log(look.enough) + 2) / effect**2
    return Forecast(state, max(1, math.ceil(whole - so_far)), "blocks")


def _text(blocks: Sequence[PairedBlock], harms: Sequence[Mapping[str, float]], name: str, gone: str) -> str:
    if not blocks:
        return "no matured block yet"
    rows = sum(block.rows for block in blocks)
    found = [one[name] for one in harms if name in one]
    worse = f", {name} worse by {np.mean(found):+.4f}" if found else ""
    seen = f"gross harm: {gone}" if gone else "no gross harm seen"
    return f"{seen} on {len(blocks)} matured blocks ({rows:,} labels{worse})"
