"""Intervals of many segments' differences that hold all at once, with the block as unit of evidence.

Whole blocks change their sign together, so what a day does to all segments stays together, and the largest
deviation over the segments has the distribution that the search needs. Exact where a block's
differences are as likely to be turned about as not; approximate where they are skewed.

Source: Romano and Wolf, Exact and approximate stepdown methods (2005); Canay, Romano and Shaikh,
Randomization tests under an approximate symmetry assumption (2017).
"""

# S segments, K blocks, R sign vectors

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ctrain.evaluation.ranking import Floats


@dataclass(frozen=True, slots=True)
class Intervals:
    """One difference a segment, shape [S] each."""

    difference: Floats
    low: Floats
    """-inf where the blocks bound nothing."""
    high: Floats
    deviation: Floats
    """Difference in its own unit of noise, comparable between segments as a normal score."""
    critical: float
    """Deviation beyond which a segment stands out from all that were searched."""


def simultaneous_intervals(
    weights_SK: Floats, totals_SK: Floats, confidence: float, resamples: int, seed: int
) -> Intervals:
    """Intervals of each segment's mean difference, all of them right together with probability `confidence`.

    Args:
        weights_SK: What each block counts in a segment, 0 where it has no rows; some in every segment.
        totals_SK: Differences summed over the block's rows: weight times the block's mean difference.
        confidence: Two-sided level for all segments together.
        resamples: Sign vectors; all are drawn from `seed`.
        seed: Of the sign vectors.
    """
    assert weights_SK.shape == totals_SK.shape
    assert (weights_SK.sum(axis=1) > 0).all()
    blocks = (weights_SK > 0).sum(axis=1).astype(np.float64)
    norm = np.sqrt((totals_SK**2).sum(axis=1))
    unit = np.divide(totals_SK, norm[:, None], out=np.zeros_like(totals_SK), where=norm[:, None] > 0)
    observed = unit.sum(axis=1)
    signs_RK = np.random.default_rng(seed).choice([-1.0, 1.0], size=(resamples, totals_SK.shape[1]))
    largest_R = _normal_score(signs_RK @ unit.T, blocks).max(axis=1)
    largest = np.sort(np.append(largest_R, _normal_score(observed, blocks).max()))
    critical = float(largest[int(np.ceil(confidence * len(largest))) - 1])
    low, high = _invert(weights_SK, totals_SK, _squared_bound(critical, blocks))
    return Intervals(
        difference=totals_SK.sum(axis=1) / weights_SK.sum(axis=1),
        low=low,
        high=high,
        deviation=np.sign(observed) * _normal_score(observed, blocks),
        critical=critical,
    )


def _normal_score(ratios: Floats, blocks: Floats) -> Floats:
    """Size of self-normalised sums, as that of a normal variable.

    A sum over its own root sum of squares is Student's t in disguise; segments with fewer blocks have fewer
    degrees of freedom, and only on a common scale can one bound serve all.

    Source: Wallace, Bounds on normal approximations to Student's (1959).
    """
    freedom = np.maximum(blocks - 1, 1.0)
    share = np.minimum(ratios**2 / blocks, 1 - 1e-12)
    scores: Floats = (8 * freedom + 1) / (8 * freedom + 3) * np.sqrt(-freedom * np.log1p(-share))
    return scores


def _squared_bound(critical: float, blocks: Floats) -> Floats:
    """The same turned about: the squared ratio that a score stands for."""
    freedom = np.maximum(blocks - 1, 1.0)
    bound: Floats = -blocks * np.expm1(-((critical * (8 * freedom + 3) / (8 * freedom + 1)) ** 2) / freedom)
    return bound


def _invert(weights_SK: Floats, totals_SK: Floats, bound: Floats) -> tuple[Floats, Floats]:
    """All differences d for which (sum of T - dW)^2 <= bound * sum of (T - dW)^2: between two roots."""
    weight, total = weights_SK.sum(axis=1), totals_SK.sum(axis=1)
    square = weight**2 - bound * (weights_SK**2).sum(axis=1)
    middle = weight * total - bound * (weights_SK * totals_SK).sum(axis=1)
    constant = total**2 - bound * (totals_SK**2).sum(axis=1)
    bounded = square > 1e-9 * weight**2  # else a few blocks hold nearly all rows
    root = np.sqrt(np.maximum(middle**2 - square * constant, 0.0))
    divisor = np.where(bounded, square, 1.0)
    low = np.where(bounded, (middle - root) / divisor, -np.inf)
    return low, np.where(bounded, (middle + root) / divisor, np.inf)
