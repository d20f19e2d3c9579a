"""Evidence on quality by blocks of time: sequential tests on the paired differences of two models.

Rows of one block (a day) are not independent evidence: a day favours one of two models as a whole. So the
unit here is the block. Each model gives some statistics a block (`blocks`); two models are compared by their
differences, block after block, in units of the pipeline's own day-to-day scatter (`scales`). All statistics
are combined into one sum C a block, so that a harm which only one of them shows is still seen.

Every test is one-sided against a margin, and its error rate is stated for a kind of looking: once
(`fixed_look_bound`), at planned looks (`LOOKS`), or after every block (`BlockTest.log_e_value`). Days are
taken as nearly normal around their mean and as exchangeable; the tests are calibrated for that, not exact.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special

from ctrain.evaluation.blocks import (
    CLASSIFIER_STATISTICS,
    REGRESSION_STATISTICS,
    Floats,
    block_statistics,
    harm,
    logit,
    value_statistics,
)
from ctrain.evaluation.scales import Scales, replicate_scatter, scales_from

__all__ = [
    "CLASSIFIER_STATISTICS",
    "LOOKS",
    "REGRESSION_STATISTICS",
    "BlockEvidence",
    "BlockTest",
    "Scales",
    "block_statistics",
    "first_crossing",
    "fixed_look_bound",
    "harm",
    "logit",
    "replicate_scatter",
    "scales_from",
    "value_statistics",
]

CLIP = 4.0
"""Largest weight of one block in one statistic, in units of scatter."""

EFFECTS = np.array([0.15, 0.3, 0.5, 0.8, 1.2, 1.8])
"""Effects (mean over standard deviation of C) that the e-value is spread over."""

WEIGHTS = np.array([0.1, 0.2, 0.25, 0.2, 0.15, 0.1])

LOOKS: dict[tuple[int, ...], tuple[float, ...]] = {
    (7, 28): (1.9, 2.0),
    (7, 14, 28): (1.97, 2.05, 2.05),
    (3, 7, 14, 28): (2.0, 2.02, 2.06, 2.07),
}
"""Bounds on Z for planned looks: all looks together err in 5 % where the truth is the margin itself, with
normal days and statistics that correlate by 0.6, and less below it. By simulation."""


def fixed_look_bound(blocks: int) -> float:
    """Bound on Z for one look that was planned, by simulation: errs in 5 % at the margin, 3 blocks and more.

    It is a little above the normal 1.645 for few blocks, where the scatter is hardly known.
    """
    return 1.645 + min(0.09, 0.7 / max(blocks, 1))


@dataclass(frozen=True, slots=True)
class BlockTest:
    """Running one-sided test that differences lie above a margin. Plain floats: its state is JSON.

    Blocks are added in the order of time; the outcome is the same however they are batched.
    """

    scales: tuple[float, ...]
    """Scatter of each of the S statistics."""
    margins: tuple[float, ...]
    """What each statistic's difference must exceed."""
    counts: tuple[int, ...]
    """Blocks that gave each statistic."""
    squares: tuple[float, ...]
    """Sum of squared standardised differences of each."""
    blocks: int = 0
    sum: float = 0.0
    """Sum of the combined C over blocks."""
    sum_squares: float = 0.0
    peak: float = 0.0
    """Largest logarithm of the e-value after any block: evidence once found is not lost."""

    @classmethod
    def new(cls, scales: Sequence[float], margins: Sequence[float]) -> BlockTest:
        """A test before its first block."""
        assert len(scales) == len(margins)
        assert all(scale > 0 for scale in scales)
        size = len(scales)
        return cls(tuple(scales), tuple(margins), (0,) * size, (0.0,) * size)

    def add(self, differences: npt.NDArray[Any]) -> BlockTest:
        """Add blocks: shape [S, K], NaN where a block did not give a statistic.

        A block that gave none is no evidence and does not count.
        """
        test = self
        if not self.scales:
            return self  # without any scatter nothing can be said
        for column in np.asarray(differences, np.float64).reshape(len(self.scales), -1).T:
            test = test._add_block(column.tolist())
        return test

    def _add_block(self, differences: list[float]) -> BlockTest:
        counts, squares, combined = list(self.counts), list(self.squares), 0.0
        present = [number for number, value in enumerate(differences) if math.isfinite(value)]
        for number in present:
            z = (differences[number] - self.margins[number]) / self.scales[number]
            own = math.sqrt((3 + squares[number]) / (counts[number] + 3))
            combined += max(-CLIP, min(CLIP, z / own))
            counts[number] += 1
            squares[number] += z * z
        if not present:
            return self
        grown = replace(
            self,
            counts=tuple(counts),
            squares=tuple(squares),
            blocks=self.blocks + 1,
            sum=self.sum + combined,
            sum_squares=self.sum_squares + combined * combined,
        )
        return replace(grown, peak=max(self.peak, grown.log_e_value))

    @property
    def prior(self) -> float:
        """Sum of squares of C that three blocks of ordinary scatter give, assumed before the first one."""
        size = len(self.scales)
        return float(size * (size + 1))

    @property
    def z(self) -> float:
        """Standardised sum of C, nearly standard normal where the truth is the margin; 0 without blocks."""
        if not self.blocks:
            return 0.0
        variance = (self.sum_squares + self.prior) / (self.blocks + 3)
        return self.sum / math.sqrt(self.blocks * variance)

    @property
    def log_e_value(self) -> float:
        """Logarithm of the evidence against "not above the margin", which may be read after every block.

        A t-test of C mixed over effects: the scatter is integrated out.
        """
        if not self.blocks:
            return 0.0
        power = self.blocks + 2
        tilt = np.append(EFFECTS, 0.0) * self.sum / math.sqrt(self.sum_squares + self.prior)
        logs = _log_moments(power, tilt)
        terms = np.log(WEIGHTS) + logs[:-1] - logs[-1] - 0.5 * self.blocks * EFFECTS**2
        return float(np.logaddexp.reduce(terms))

    def exceeds(self, alpha: float = 0.05) -> bool:
        """Whether the evidence reached 1/alpha after any block so far."""
        return self.peak >= -math.log(alpha)


def _log_moments(power: int, tilt: Floats) -> Floats:
    """log of the integral of x^power exp(-x^2/2 + tilt x) over x > 0, for each tilt.

    The integrand is log-concave with curvature of at least one, so ten units around its mode hold it all.
    """
    mode = (tilt + np.sqrt(tilt**2 + 4 * power)) / 2
    low, high = np.maximum(mode - 10, 0.0), mode + 10
    nodes, weights = _NODES
    x = low[:, None] + (high - low)[:, None] * nodes
    logs = power * np.log(x) - 0.5 * x**2 + tilt[:, None] * x
    top = logs.max(axis=1)
    sums = (np.exp(logs - top[:, None]) * weights).sum(axis=1) * (high - low)
    found: Floats = top + np.log(sums)
    return found


def _unit_nodes(count: int) -> tuple[Floats, Floats]:
    nodes, weights = special.roots_legendre(count)
    return (nodes + 1) / 2, weights / 2


_NODES = _unit_nodes(64)


# --- the three questions of a comparison ---


@dataclass(frozen=True, slots=True)
class BlockEvidence:
    """Evidence that a model is worse than another by more than a margin, not worse by as much, or better."""

    names: tuple[str, ...]
    worse: BlockTest
    """Harm exceeds the margin."""
    safe: BlockTest
    """Harm of the margin or more is ruled out."""
    better: BlockTest
    """It is better by more than the margin."""

    @classmethod
    def new(cls, scales: Scales, margins: Mapping[str, float] | None = None) -> BlockEvidence:
        """Before the first block.

        Args:
            scales: Scatter by statistic; statistics without one are left out.
            margins: By statistic, 0 or more; by default half of tau, and never less than that.
        """
        asked, least = margins or {}, scales.margins()
        names = tuple(name for name in scales.sigma if margins is None or name in asked)
        sizes = [scales.sigma[name] for name in names]
        edges = [max(asked.get(name, 0.0), least.get(name, 0.0)) for name in names]
        worse, safe = BlockTest.new(sizes, edges), BlockTest.new(sizes, [-edge for edge in edges])
        return cls(names, worse, safe, worse)

    @property
    def blocks(self) -> int:
        """Blocks that gave any statistic."""
        return self.worse.blocks

    def add(self, harms: Sequence[Mapping[str, float]]) -> BlockEvidence:
        """Add blocks in the order of time: harm by statistic, as `harm` gives it."""
        table = [[one.get(name, math.nan) for one in harms] for name in self.names]
        differences = np.array(table, float).reshape(len(self.names), len(harms))
        return replace(
            self,
            worse=self.worse.add(differences),
            safe=self.safe.add(-differences),
            better=self.better.add(-differences),
        )


def first_crossing(test: BlockTest, differences: npt.NDArray[Any], looks: tuple[int, ...]) -> int | None:
    """Which of the planned looks first finds the margin exceeded; None if none does.

    Args:
        test: A new test.
        differences: Shape [S, K], in the order of time.
        looks: A key of `LOOKS`; those that K does not reach are not taken.
    """
    taken = 0
    for look, bound in zip(looks, LOOKS[looks], strict=True):
        if look > np.shape(differences)[1]:
            break
        test, taken = test.add(differences[:, taken:look]), look
        if test.z > bound:
            return look
    return None
