"""Scales of a pipeline: how much retrains of one procedure differ, from block to block and truly.

Taken from the record of earlier pairs of candidate and champion. Only scales are learned, never a mean: a
record that says "candidates are usually better" would certify the spoiled one too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ctrain.records import RecordedPair

CAUTION = 1.2
"""Factor on the day-to-day scatter of recorded pairs: the next pair's may be larger."""

CAUTION_WITHOUT_RECORD = 1.5
"""The same where the record is short and the present pair stands in for it."""

ENOUGH_PAIRS = 5
"""Recorded pairs from which the record alone gives the scatter."""

TAU_WITHOUT_RECORD = 0.4
"""True difference between retrains, in units of scatter, where no record says it: twice what real sets
showed."""

PAIRS_OF_PRIOR = 4.0
"""Recorded pairs that this assumption weighs as much as."""

Source = Literal["record", "replicates", "blocks", "none"]


@dataclass(frozen=True, slots=True)
class Scales:
    """How much two models of one procedure differ: from block to block, and truly."""

    sigma: dict[str, float]
    """Standard deviation of the paired difference from block to block, by statistic."""
    tau: dict[str, float]
    """Standard deviation of true differences between retrains of one procedure, by statistic."""
    pairs: int
    """Recorded pairs behind them."""
    source: Source
    """Where sigma is from: the record, the present replicates, or the present pair's own blocks."""

    @property
    def known(self) -> bool:
        """Whether the record is long enough to say what retrains truly differ by."""
        return self.pairs >= ENOUGH_PAIRS

    def margins(self, share: float = 0.5) -> dict[str, float]:
        """Harm that is within what retrains of one procedure differ by, by statistic: half of tau."""
        return {name: share * tau for name, tau in self.tau.items()}


def scales_from(
    record: Sequence[RecordedPair],
    replicates: Sequence[Mapping[str, float]] | None = None,
    blocks: Sequence[Mapping[str, float]] | None = None,
) -> Scales:
    """Learn the scales from a pipeline's record of retrains, and only the scales: never a mean.

    tau^2 is the variance of the pairs' means less what the blocks' scatter explains, pooled with a
    cautious assumption that weighs as much as four pairs. With fewer than five pairs sigma is the largest
    of what the record and the present pair say, with more caution.

    Args:
        record: Earlier pairs of the same kind (as many replicates a side).
        replicates: Standard deviation over blocks of the difference between two means of replicates of one
            side, by statistic, one entry a side (`replicate_scatter`); used where the record is short.
        blocks: Harm on each block of the present pair, by statistic; used where the record is short, for
            statistics that the replicates do not give.

    Returns:
        Statistics of which nothing is known are absent; `source` is `none` without any.
    """
    names = sorted({name for pair in record for name in pair.mean})
    known = {name: [pair for pair in record if name in pair.variance and pair.blocks > 1] for name in names}
    caution = CAUTION if len(record) >= ENOUGH_PAIRS else CAUTION_WITHOUT_RECORD
    sigma = {name: caution * _scatter(known[name], name) for name in names if known[name]}
    source: Source = "record"
    if len(record) < ENOUGH_PAIRS and (replicates or blocks):
        stand_in = _own_scatter(blocks or ()) | _worst(replicates or ())
        source = "replicates" if replicates else "blocks"
        for name, value in stand_in.items():
            sigma[name] = max(sigma.get(name, 0.0), CAUTION_WITHOUT_RECORD * value)
    sigma = {name: value for name, value in sigma.items() if value > 0}
    tau = {name: _tau(known.get(name, []), name, value) for name, value in sigma.items()}
    return Scales(sigma, tau, len(record), source if sigma else "none")


def _scatter(pairs: Sequence[RecordedPair], name: str) -> float:
    """Standard deviation over blocks, pooled over pairs by their degrees of freedom."""
    freedom = np.array([pair.blocks - 1 for pair in pairs], float)
    variance = np.array([pair.variance[name] for pair in pairs])
    return math.sqrt(float(np.average(variance, weights=freedom)))


def _tau(pairs: Sequence[RecordedPair], name: str, sigma: float) -> float:
    count, assumed = len(pairs), (TAU_WITHOUT_RECORD * sigma) ** 2
    if count < 2:
        return math.sqrt(assumed)
    means = np.array([pair.mean[name] for pair in pairs])
    explained = float(np.mean([pair.variance[name] / pair.blocks for pair in pairs]))
    found = max(0.0, float(means.var(ddof=1)) - explained)
    return math.sqrt((count * found + PAIRS_OF_PRIOR * assumed) / (count + PAIRS_OF_PRIOR))


def _worst(scatters: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = {name for scatter in scatters for name in scatter}
    return {name: max(scatter.get(name, 0.0) for scatter in scatters) for name in sorted(names)}


def _own_scatter(blocks: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = sorted({name for block in blocks for name in block})
    values = {name: [block[name] for block in blocks if name in block] for name in names}
    return {name: float(np.std(found, ddof=1)) for name, found in values.items() if len(found) > 1}


def replicate_scatter(replicates: Sequence[Sequence[Mapping[str, float]]]) -> dict[str, float]:
    """Scatter over blocks that the luck of one training alone gives to a difference of two means of R.

    Args:
        replicates: Statistics of each of R models of one side, block by block.

    Returns:
        By statistic; empty with fewer than two replicates or two blocks.
    """
    count = len(replicates)
    if count < 2:
        return {}
    found = {}
    for name in sorted({name for block in replicates[0] for name in block}):
        rows = [
            [one[name] for one in block] for block in zip(*replicates, strict=True) if _all_have(block, name)
        ]
        if len(rows) > 1:
            values = np.array(rows)
            # The variance over blocks, not over models: a model that is better everywhere is tau's part.
            alone = (values - values.mean(axis=1, keepdims=True)).var(axis=0, ddof=1).sum() / (count - 1)
            found[name] = math.sqrt(2 * float(alone) / count)
    return found


def _all_have(block: Sequence[Mapping[str, float]], name: str) -> bool:
    return all(name in one for one in block)
