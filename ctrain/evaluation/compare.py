"""Paired comparison of two models by blocks of time: rows of one day are not independent evidence.

Only blocks that both models were scored on count; values are means over the replicates of each side.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from ctrain.evaluation.blocks import harm
from ctrain.evaluation.scales import Scales, replicate_scatter, scales_from
from ctrain.records import BlockScore, ModelScore, OutputDifference, RecordedPair

RECORDED = 64
"""Pairs that a pipeline's record keeps: enough for scales, and bounded."""

FARTHEST = 1000
"""Blocks beyond which an estimate of what would be enough says nothing."""


@dataclass(frozen=True, slots=True)
class PairedInterval:
    """Mean over blocks with its t interval; of a difference, positive means the candidate is better."""

    difference: float
    low: float
    high: float
    blocks: int

    def needed(self, margin: float) -> int | None:
        """Blocks from which the interval would leave -margin out, if they go on like these.

        None where the mean is so near to it that no number within reach would do.
        """
        distance = abs(self.difference + margin)
        reach = (self.high - self.low) / 2
        if not distance or not math.isfinite(reach):
            return None
        blocks = math.ceil(self.blocks * (reach / distance) ** 2)
        return max(blocks, self.blocks + 1) if blocks <= FARTHEST else None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two models block by block."""

    blocks: tuple[str, ...]
    harms: tuple[dict[str, float], ...]
    """By metric and statistic, a block each: positive where the judged model is worse."""
    scales: Scales


def mean_interval(values: Sequence[float], confidence: float) -> PairedInterval | None:
    """t interval of the mean of blocks; None with fewer than two: a single block bounds nothing."""
    count = len(values)
    if count < 2:
        return None
    table = np.asarray(values, np.float64)
    mean, error = float(table.mean()), float(table.std(ddof=1)) / count**0.5
    reach = float(stats.t.ppf((1 + confidence) / 2, count - 1)) * error
    return PairedInterval(mean, mean - reach, mean + reach, count)


def interval_of(comparison: Comparison, metric: str, confidence: float) -> PairedInterval | None:
    """Interval of the mean difference in one metric, positive where the judged model is better."""
    return mean_interval([-one[metric] for one in comparison.harms if metric in one], confidence)


def compare(
    judged: ModelScore,
    against: ModelScore,
    record: Sequence[RecordedPair] = (),
    least_rows: int = 1,
    left_out: Collection[str] = (),
) -> Comparison:
    """Pair two models' blocks and learn the scales of their difference.

    Args:
        judged: Scores by block.
        against: Scores of the other model.
        record: Earlier pairs of the pipeline; those with another number of replicates do not count.
        least_rows: Rows from which a block counts.
        left_out: Blocks that do not count.
    """
    other = {score.block: score for score in against.blocks}
    pairs = [
        (score, other[score.block])
        for score in judged.blocks
        if score.block in other and score.block not in left_out
        if min(score.rows, other[score.block].rows) >= least_rows
    ]
    harms = [harm(values_of(one), values_of(two)) for one, two in pairs]
    kept = [(one.block, found) for (one, _), found in zip(pairs, harms, strict=True) if found]
    counts = replicates_of(judged), replicates_of(against)
    comparable = [pair for pair in record if pair.replicates == min(counts)]
    sides = ([one for one, _ in pairs], [two for _, two in pairs])
    luck = [found for found in (replicate_scatter(replicates_by_model(side)) for side in sides) if found]
    scales = scales_from(comparable, luck, [found for _, found in kept])
    return Comparison(tuple(block for block, _ in kept), tuple(found for _, found in kept), scales)


def values_of(score: BlockScore) -> dict[str, float]:
    """Metrics and statistics of a block."""
    return {**score.metrics, **score.statistics}


def replicates_of(score: ModelScore) -> int:
    """Models whose mean a score is."""
    return max((len(block.replicates) for block in score.blocks), default=0) or 1


def replicates_by_model(blocks: Sequence[BlockScore]) -> list[list[dict[str, float]]]:
    """Statistics of each replicate, block by block; empty where a block lacks one."""
    counts = {len(block.replicates) for block in blocks}
    if len(counts) != 1:
        return []
    return [[block.replicates[number] for block in blocks] for number in range(counts.pop())]


def recorded_pair(
    candidate: ModelScore,
    champion: ModelScore,
    outputs: Sequence[OutputDifference] = (),
    least_rows: int = 1,
) -> RecordedPair | None:
    """What a pipeline's record keeps of one comparison; None with fewer than two common blocks.

    A pair belongs in it whatever its verdict, but for gross harm: a record of accepted pairs alone would be
    too narrow, and one broken model would make every other one look like its brother.
    """
    comparison = compare(candidate, champion, least_rows=least_rows)
    names = sorted({name for one in comparison.harms for name in one})
    values = {name: [one[name] for one in comparison.harms if name in one] for name in names}
    values = {name: found for name, found in values.items() if len(found) > 1}
    if not values:
        return None
    return RecordedPair(
        candidate.version,
        champion.version,
        min(replicates_of(candidate), replicates_of(champion)),
        len(comparison.blocks),
        {name: float(np.mean(found)) for name, found in values.items()},
        {name: float(np.var(found, ddof=1)) for name, found in values.items()},
        mean_outputs(outputs),
    )


def with_pair(record: Sequence[RecordedPair], pair: RecordedPair) -> tuple[RecordedPair, ...]:
    """The record with one more pair, the oldest ones dropped; the same two models judged again replace
    what was recorded of them."""
    key = (pair.candidate, pair.champion)
    others = [one for one in record if (one.candidate, one.champion) != key]
    return (*others[-(RECORDED - 1) :], pair)


def mean_outputs(outputs: Sequence[OutputDifference]) -> dict[str, float]:
    """Means over blocks of how two models' outputs differ, by name; empty without blocks."""
    if not outputs:
        return {}
    return {
        name: float(np.mean([getattr(one, name) for one in outputs]))
        for name in ("log_sd_ratio", "shift", "correlation")
    }
