"""Performance without labels: what a calibrated classifier's scores say of its own metrics.

Each score is taken as the chance of a positive label, and the metric's expectation follows. This is right
where only the inputs moved, and blind where the relation of inputs and label moved: so an estimate carries
an interval from how earlier ones missed, meets the truth when it comes (`check_estimate`), and loses trust
when it missed. Scores that are not calibrated are first made so from recent matured labels (`calibrate`).

Source: Guillory et al., Predicting with confidence on unseen distributions (2021); NannyML's CBPE.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

from ctrain.evaluation.catalogue import CATALOGUE
from ctrain.evaluation.metrics import unusable
from ctrain.evaluation.ranking import Floats
from ctrain.monitoring.calibration import Curve, Method, fit_curve, forward_losses
from ctrain.monitoring.expected import ESTIMATES, expected_metrics, true_metrics
from ctrain.records import EstimateCheck, EstimateReport, MetricInterval

METHODS: tuple[Method, ...] = ("none", "platt", "isotonic")

REMEMBERED = 20
"""Earlier estimates of a metric that trust is judged on."""
MINIMUM_CHECKS = 5

LASTING = 0.3
"""Share of a block's miss that the blocks after it share, so that it does not average out over a window.
Chosen on weeks of flights and of hotel bookings, whose intervals would else hold the truth in only 75 %."""

PRIOR_CHECKS = 5
"""Checks that the intervals' own width counts for against how earlier estimates missed."""

NOTE = "estimated from scores alone: blind to a moved relation of inputs and label"

Trust = Literal["untested", "trusted", "doubtful", "refuted"]


@dataclass(frozen=True, slots=True)
class Calibration:
    """How scores become probabilities, and how far estimates from them missed; plain numbers."""

    curve: Curve
    rows: int
    blocks: int
    tested: int
    """Blocks that were estimated from the blocks before them and compared with their truth."""
    spread: dict[str, float]
    """Standard deviation of one block's truth around its estimate by metric, beyond the chance of labels."""
    state: Literal["calibrated", "not_enough_labels"] = "calibrated"
    reason: str = ""


def calibrate(
    scores: npt.NDArray[Any],
    labels: npt.NDArray[Any],
    blocks: npt.NDArray[np.int64],
    threshold: float,
    *,
    methods: Sequence[Method] = METHODS,
    minimum_blocks: int = 7,
    minimum_rows: int = 500,
    most_rows: int = 30_000,
) -> Calibration:
    """Learn from matured labels how scores become probabilities, and how far such estimates miss.

    Every block is estimated from the blocks before it. The simplest curve is kept unless one with more
    freedom lost clearly less there.

    Args:
        scores: In 0 to 1, of matured answers, shape [B].
        labels: 0 or 1, shape [B].
        blocks: Block of time of each row, rising in time, shape [B].
        threshold: Probability at and above which the decision is positive.
        methods: Curves to choose from, simplest first.
        minimum_blocks: Below which nothing is learnt.
        minimum_rows: The same for rows.
        most_rows: Rows used at most; of more, every n-th of each block.
    """
    names, day = np.unique(blocks, return_inverse=True)
    problem = _problem(scores, labels, len(names), minimum_blocks, minimum_rows)
    if problem:
        return Calibration(Curve("none"), len(labels), len(names), 0, {}, "not_enough_labels", problem)
    order = np.argsort(day, kind="stable")[:: -(-len(day) // most_rows)]
    ends = np.searchsorted(day[order], np.arange(1, len(names)))
    columns = (np.asarray(array, np.float64)[order] for array in (scores, labels))
    parts = list(zip(*(np.split(column, ends) for column in columns), strict=True))
    first = max(2, len(parts) // 4)
    method, curves = _choose(methods, parts, first)
    spread = _spread(parts[first:], curves, threshold)
    curve = fit_curve(method, *(np.concatenate([part[side] for part in parts]) for side in (0, 1)))
    return Calibration(curve, len(labels), len(names), len(curves), spread)


def estimate_performance(
    scores: npt.NDArray[Any],
    threshold: float,
    calibration: Calibration,
    *,
    blocks: int = 1,
    past: Sequence[EstimateCheck] = (),
    minimum_rows: int = 100,
    confidence: float = 0.95,
) -> EstimateReport:
    """Estimate the metrics of a window whose labels have not come.

    Args:
        scores: In 0 to 1, shape [B].
        threshold: Probability at and above which the decision is positive.
        calibration: From `calibrate`.
        blocks: Blocks of time that the window covers: part of what a block misses by averages out over them.
        past: Earlier estimates beside their truth, of windows like this one, oldest first. Where they
            missed by more than their intervals said, the intervals grow.
        minimum_rows: Below which nothing is estimated.
        confidence: Two-sided level of the intervals, which are for the metric that the labels will show.
    """
    if len(scores) < minimum_rows:
        return EstimateReport(
            "not_enough_rows", len(scores), reason=f"{len(scores)} rows, {minimum_rows} needed"
        )
    if not (np.isfinite(scores).all() and (scores >= 0).all() and (scores <= 1).all()):
        return EstimateReport("unusable_scores", len(scores), reason="scores are not all in 0 to 1")
    if calibration.state != "calibrated":
        return EstimateReport("not_calibrated", len(scores), reason=calibration.reason)
    found = expected_metrics(scores, calibration.curve.probabilities(scores), threshold)
    reach = float(stats.t.ppf((1 + confidence) / 2, max(calibration.tested - 1, 1)))
    share = LASTING + (1 - LASTING) / max(blocks, 1)
    metrics, growth = [], {}
    for name in ESTIMATES:
        value, variance = found[name]
        growth[name] = _growth([check for check in past if check.metric == name], reach)
        miss = calibration.spread.get(name)
        half = None if miss is None else reach * growth[name] * (variance + share * miss**2) ** 0.5
        metrics.append(_interval(name, value, half, len(scores), blocks))
    trust, hits, scored = trust_in(past, confidence)
    words = {
        "refuted": "; earlier estimates missed too often: do not rely on it",
        "doubtful": "; missed often",
    }
    return EstimateReport(
        state="estimated",
        rows=len(scores),
        metrics=tuple(metrics),
        calibration=calibration.curve.kind,
        trust=trust,
        hits=hits,
        scored=scored,
        growth=growth,
        reason=NOTE + words.get(trust, ""),
    )


def check_estimate(report: EstimateReport, truths: Mapping[str, float]) -> tuple[EstimateCheck, ...]:
    """Compare an estimate with the metrics that the labels showed later.

    Args:
        report: The estimate.
        truths: Metrics of the same rows, by name; those that the report lacks are left out.
    """
    return tuple(
        EstimateCheck(
            metric=each.metric,
            estimate=each.value,
            low=each.low,
            high=each.high,
            truth=truth,
            within=each.low <= truth <= each.high,
            growth=report.growth[each.metric],
        )
        for each in report.metrics
        if (truth := truths.get(each.metric)) is not None
        and each.value is not None
        and each.low is not None
        and each.high is not None
    )


def trust_in(past: Sequence[EstimateCheck], confidence: float = 0.95) -> tuple[Trust, int, int]:
    """Judge estimates by how earlier ones met the truth.

    Intervals that earlier misses have widened are taken as they would have been: a wide one is honest, but
    it is no merit.

    Returns:
        Trust, and hits and checks of the metric that missed most: `refuted` if so many misses happen to
        honest intervals in under 1 % of cases, `doubtful` under 10 %, `untested` with too few checks.
    """
    names = dict.fromkeys(check.metric for check in past)
    if not names:
        return "untested", 0, 0
    worst: tuple[float, int, int] = (2.0, 0, 0)
    for name in names:
        mine = [_size(check) <= 1 for check in past if check.metric == name][-REMEMBERED:]
        misses = len(mine) - sum(mine)
        chance = float(stats.binom.sf(misses - 1, len(mine), 1 - confidence))
        worst = min(worst, (chance, sum(mine), len(mine)))
    chance, hits, scored = worst
    chance *= len(names)
    if scored < MINIMUM_CHECKS:
        return "untested", hits, scored
    return ("refuted" if chance < 0.01 else "doubtful" if chance < 0.1 else "trusted"), hits, scored


def _problem(
    scores: npt.NDArray[Any], labels: npt.NDArray[Any], blocks: int, minimum_blocks: int, minimum_rows: int
) -> str:
    if problem := unusable(labels, scores):
        return problem
    if len(labels) < minimum_rows or blocks < minimum_blocks:
        return f"{len(labels)} labels of {blocks} blocks, {minimum_rows} of {minimum_blocks} needed"
    return "predictions_outside_0_1" if scores.min() < 0 or scores.max() > 1 else ""


def _choose(
    methods: Sequence[Method], parts: list[tuple[Floats, Floats]], first: int
) -> tuple[Method, list[Curve]]:
    """The simplest curve whose losses on later blocks no other one clearly beats."""
    best, (curves, losses) = methods[0], forward_losses(methods[0], parts, first)
    for method in methods[1:]:
        others, theirs = forward_losses(method, parts, first)
        won = losses - theirs
        if won.mean() > 2 * won.std(ddof=1) / len(won) ** 0.5:
            best, curves, losses = method, others, theirs
    return best, curves


def _spread(parts: list[tuple[Floats, Floats]], curves: list[Curve], threshold: float) -> dict[str, float]:
    """How far the truth of a block lies from its estimate, beyond what the chance of labels explains."""
    squares: dict[str, list[float]] = {name: [] for name in ESTIMATES}
    for (scores, labels), curve in zip(parts, curves, strict=True):
        expected = expected_metrics(scores, curve.probabilities(scores), threshold)
        for name, truth in true_metrics(scores, labels, threshold).items():
            value, variance = expected[name]
            squares[name].append((truth - value) ** 2 - variance)
    return {name: max(float(np.mean(found)), 0.0) ** 0.5 for name, found in squares.items() if found}


def _size(check: EstimateCheck) -> float:
    """Miss of an estimate in units of its interval as it was before earlier misses widened it."""
    half = max(check.high - check.estimate, check.estimate - check.low) / check.growth
    miss = abs(check.truth - check.estimate)
    return miss / half if half > 0 else float(miss > 0)


def _growth(past: Sequence[EstimateCheck], reach: float) -> float:
    """By how much earlier misses exceeded what their intervals allowed; at least 1."""
    squares = [(reach * _size(check)) ** 2 for check in past[-REMEMBERED:]]
    mean = (PRIOR_CHECKS + sum(squares)) / (PRIOR_CHECKS + len(squares))
    return float(max(mean, 1.0) ** 0.5)


def _interval(name: str, value: float, half: float | None, rows: int, blocks: int) -> MetricInterval:
    if half is None:
        reason = "no earlier block could be compared"
        return MetricInterval(name, value, rows=rows, blocks=blocks, reason=reason)
    low, high = value - half, value + half
    floor, ceiling = (0.0, 1.0) if name == "prevalence" else (CATALOGUE[name].low, CATALOGUE[name].high)
    low = low if floor is None else max(low, floor)
    high = high if ceiling is None else min(high, ceiling)
    return MetricInterval(name, value, low, high, rows, blocks)
