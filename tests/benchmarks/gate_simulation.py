"""Simulated comparisons with day effects: coverage of intervals, and pairs of one procedure called worse."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ctrain.evaluation.compare import mean_interval
from ctrain.evaluation.evidence import LOOKS, BlockTest, fixed_look_bound, scales_from
from ctrain.records import RecordedPair

DESIGN_EFFECTS = (1, 5, 20, 80)
ROWS, BLOCKS, STATISTICS = 200, 40, 3
TAU = 0.2
"""True difference between retrains, in units of the day's scatter, as the real sets show it."""

AGREEMENT = 0.6
"""Correlation between the statistics of a block."""

RECORDED = 20


def related(draw: Callable[[tuple[int, int]], Any], columns: int) -> npt.NDArray[np.float64]:
    """Draws that agree between statistics, shape [S, columns]."""
    own, common = draw((STATISTICS, columns)), draw((1, columns))
    return np.asarray(math.sqrt(AGREEMENT) * common + math.sqrt(1 - AGREEMENT) * own)


def retrained(rng: np.random.Generator, tau: float) -> npt.NDArray[np.float64]:
    """True differences of a pair of one procedure, shape [S]."""
    return related(lambda size: rng.normal(0.0, tau, size), 1)[:, 0]


def differences(
    rng: np.random.Generator, effect: float, means: npt.NDArray[np.float64], tails: float = 0.0
) -> npt.NDArray[np.float64]:
    """Paired differences of block means, shape [S, K], of rows with unit variance and a day effect.

    Args:
        rng: Randomness.
        effect: Design effect: variance of a block's mean over what independent rows would give.
        means: True difference in each statistic, shape [S].
        tails: Degrees of freedom of the day effects' t distribution; 0 is normal.
    """

    def draw(size: tuple[int, int]) -> Any:
        if not tails:
            return rng.normal(size=size)
        return rng.standard_t(tails, size) / math.sqrt(tails / (tails - 2))

    day = math.sqrt((effect - 1) / ROWS) * related(draw, BLOCKS)
    rows = math.sqrt(1 / ROWS) * related(lambda size: rng.normal(size=size), BLOCKS)
    return np.asarray(means[:, None] + day + rows)


def simulate(runs: int, seed: int) -> dict[str, Any]:
    """Print and return rates by design effect.

    Returns:
        `coverage_95`, the lowest over design effects and 7, 14, 28 blocks, and `simulated.same_called_worse`,
        the highest over design effects and promised lookings.
    """
    print(f"\nsimulation: {runs} comparisons of {BLOCKS} blocks of {ROWS} rows a design effect")
    print(f"  {'design effect':<15}{'tau':>5}{'tails':>7}  coverage of 95 % at 7, 14, 28    called worse")
    coverage, worse = [], []
    cases = [(effect, TAU, 0.0) for effect in DESIGN_EFFECTS]
    cases += [(20, TAU, 5.0), (20, 0.1, 0.0), (20, 0.3, 0.0), (20, 0.4, 0.0)]
    for number, (effect, tau, tails) in enumerate(cases):
        rng = np.random.default_rng([seed, number])
        covered, called = _case(rng, runs, effect, tau, tails)
        if tails == 0.0 and tau == TAU:
            coverage += list(covered.values())
            worse += list(called.values())
        shown = "  ".join(f"{name} {100 * share:.1f}" for name, share in called.items())
        cells = "  ".join(f"{100 * share:.1f}" for share in covered.values())
        print(f"  {effect:<15}{tau:>5.1f}{tails or 'none':>7}  {cells:<32} {shown}")
    error = 100 * math.sqrt(0.05 * 0.95 / runs)
    print(f"  (standard error ±{error:.1f}; pairs of one procedure, against half of tau, by {BLOCKS} blocks)")
    return {
        "coverage_95": round(min(coverage), 4),
        "coverage_95_highest": round(max(coverage), 4),
        "simulated.same_called_worse": round(max(worse), 4),
    }


def _case(
    rng: np.random.Generator, runs: int, effect: float, tau: float, tails: float
) -> tuple[dict[int, float], dict[str, float]]:
    scatter = math.sqrt(effect / ROWS)
    names = [str(number) for number in range(STATISTICS)]
    covered: dict[int, list[bool]] = {blocks: [] for blocks in (7, 14, 28)}
    called: dict[str, list[bool]] = {}
    for run in range(runs):
        if run % 20 == 0:  # one record serves twenty pairs
            scales = scales_from([_recorded(rng, effect, tau * scatter, tails) for _ in range(RECORDED)])
        truth = retrained(rng, tau * scatter)
        table = differences(rng, effect, truth, tails)
        for blocks, found in covered.items():
            interval = mean_interval(table[0, :blocks].tolist(), 0.95)
            assert interval is not None
            found.append(interval.low <= truth[0] <= interval.high)
        margins = scales.margins()
        test = BlockTest.new([scales.sigma[n] for n in names], [margins[n] for n in names])
        z = [0.0]
        for column in table.T:
            test = test.add(column[:, None])
            z.append(test.z)
        for looks, bounds in LOOKS.items():
            crossed = any(z[look] > bound for look, bound in zip(looks, bounds, strict=True))
            called.setdefault(", ".join(map(str, looks)), []).append(crossed)
        called.setdefault("once (28)", []).append(z[28] > fixed_look_bound(28))
        called.setdefault("always", []).append(test.exceeds())
    return (
        {blocks: float(np.mean(found)) for blocks, found in covered.items()},
        {name: float(np.mean(found)) for name, found in called.items()},
    )


def _recorded(rng: np.random.Generator, effect: float, tau: float, tails: float) -> RecordedPair:
    table = differences(rng, effect, retrained(rng, tau), tails)[:, :14]
    mean = {str(number): float(row.mean()) for number, row in enumerate(table)}
    variance = {str(number): float(row.var(ddof=1)) for number, row in enumerate(table)}
    return RecordedPair("", "", 1, 14, mean, variance)
