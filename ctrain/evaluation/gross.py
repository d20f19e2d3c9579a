"""Gross harm, refused by its size within two blocks: skill that is gone, outputs unlike any retrain's."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ctrain.evaluation.blocks import logit
from ctrain.evaluation.compare import mean_outputs, values_of
from ctrain.evaluation.scales import ENOUGH_PAIRS, Scales
from ctrain.records import ModelScore, OutputDifference, PairedBlock, RecordedPair

ENOUGH_BLOCKS = 2

SKILL_SHARE = 0.4
"""Share of the champion's skill below which a candidate's is gone."""

NO_SKILL = {"auc": 0.5, "rank_correlation": 0.0}
"""Value of a statistic without any skill."""

BEYOND_LUCK = 3.0
"""Standard errors that a loss of skill must be beyond: where the champion shows little, luck takes it all."""

STRETCH = 3.0
"""Outputs are unlike the record's from this many times its own extreme on."""

LIMITS = {"log_sd_ratio": math.log(2.5), "shift": 5.0, "correlation": 0.9}
"""Least departure of outputs that is ever called unlike (correlation: from 1). The level's is wide: honest
models that are two months apart were seen to differ by four spreads, for the level of what they predict moves
with the season."""

LIMITS_WITHOUT_RECORD = {"log_sd_ratio": math.log(4), "shift": 10.0, "correlation": 1.0}
"""What is called so where the record is short."""


def output_difference(
    block: str, judged: npt.NDArray[Any], against: npt.NDArray[Any], probabilities: bool = True
) -> OutputDifference | None:
    """How two models' outputs on the same rows differ.

    Args:
        block: Its name.
        judged: Probabilities (or values) of the judged model, shape [B]; of replicates, the mean of logits.
        against: The same of the other model.
        probabilities: Whether these are probabilities, to be compared as logits.

    Returns:
        None with fewer than three rows, or outputs of the other model that are all the same.
    """
    one, two = (logit(x) if probabilities else np.asarray(x, np.float64) for x in (judged, against))
    if len(one) < 3 or not np.isfinite(one).all() or not np.isfinite(two).all() or not np.std(two):
        return None
    spread = float(np.std(one) / np.std(two))
    correlation = float(np.corrcoef(one, two)[0, 1]) if spread > 1e-9 else 0.0
    shift = float((one.mean() - two.mean()) / np.std(two))
    return OutputDifference(block, len(one), math.log(max(spread, 1e-9)), shift, correlation)


def lost_skill(pairs: Sequence[PairedBlock], scales: Scales) -> str:
    """Why the judged model's skill is gone, on blocks that both models were scored on; empty if it is not.

    Args:
        pairs: Blocks of both.
        scales: Scatter of ordinary blocks; a statistic without one is not judged.
    """
    for name, none in NO_SKILL.items():
        both = [one for one in pairs if name in one.judged and name in one.against]
        if len(both) < ENOUGH_BLOCKS or name not in scales.sigma:
            continue
        skill = float(np.mean([one.judged[name] - none for one in both]))
        champions = float(np.mean([one.against[name] - none for one in both]))
        # Two models without anything in common on rows as few as these, beside the scatter of blocks.
        rows = 2 * float(np.mean([_variance(name, one) for one in both]))
        luck = math.sqrt((scales.sigma[name] ** 2 + rows) / len(both))
        if skill < SKILL_SHARE * champions and champions - skill > BEYOND_LUCK * luck:
            return f"{name} {skill + none:.3f} against {champions + none:.3f} over {len(both)} blocks"
    return ""


def paired(judged: ModelScore, against: ModelScore, blocks: Collection[str]) -> tuple[PairedBlock, ...]:
    """Scores of two models on some blocks, as pairs."""
    other = {block.block: block for block in against.blocks}
    return tuple(
        PairedBlock(one.block, one.rows, one.positives, values_of(one), values_of(other[one.block]))
        for one in judged.blocks
        if one.block in blocks and one.block in other
    )


def _variance(name: str, block: PairedBlock) -> float:
    """Variance that scores without skill have on so many rows (Mann and Whitney 1947; Spearman's)."""
    if name != "auc":
        return 1 / max(1, block.rows - 1)
    positives, negatives = max(1, block.positives), max(1, block.rows - block.positives)
    return (positives + negatives + 1) / (12 * positives * negatives)


def unlike_outputs(outputs: Sequence[OutputDifference], record: Sequence[RecordedPair]) -> str:
    """Why a candidate's outputs are unlike those of any recorded retrain; empty if they are not."""
    if len(outputs) < ENOUGH_BLOCKS:
        return ""
    found, known = mean_outputs(outputs), [pair.outputs for pair in record if pair.outputs]
    limits = dict(LIMITS_WITHOUT_RECORD)
    if len(known) >= ENOUGH_PAIRS:
        limits = {
            name: max(least, STRETCH * max(_departure(name, one) for one in known))
            for name, least in LIMITS.items()
        }
    words = {
        "log_sd_ratio": f"their spread is {math.exp(found['log_sd_ratio']):.2f} times the champion's",
        "shift": f"their mean lies {found['shift']:+.2f} of its spread away",
        "correlation": f"their correlation with the champion's is {found['correlation']:.2f}",
    }
    told = [words[name] for name, limit in limits.items() if _departure(name, found) > limit]
    return f"outputs are unlike any retrain's: {', '.join(told)}" if told else ""


def _departure(name: str, outputs: dict[str, float]) -> float:
    return 1 - outputs[name] if name == "correlation" else abs(outputs[name])
