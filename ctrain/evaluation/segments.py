"""Overall and by segment: where a model is worse than another one, found by an honest search.

All values of single keys and of pairs of keys are searched at once, and the intervals hold for all of them
together, so the worst of hundreds is not worse by its luck. The unit of evidence is the block of time: a
day favours one of two models as a whole. Which segments are searched is decided by their rows alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ctrain.evaluation.cells import CellMetric
from ctrain.evaluation.metrics import CostMatrix, unusable
from ctrain.evaluation.ranking import Floats
from ctrain.evaluation.segment_choice import Chosen, Family, SearchLimits, choose
from ctrain.evaluation.segment_keys import Codes, SegmentKey
from ctrain.evaluation.simultaneous import Intervals, simultaneous_intervals
from ctrain.records import SegmentScore, Verdict

NUMBER_METRICS = ("squared_error", "absolute_error")


@dataclass(frozen=True, slots=True)
class SegmentSearch:
    """What a search found."""

    state: Literal["searched", "not_searched"]
    overall: SegmentScore | None
    segments: tuple[SegmentScore, ...] = ()
    """Worst first; values of single keys that are too small to judge come last, with the reason."""
    searched: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    """Segments that were not judged, by reason."""
    merged: dict[str, int] = field(default_factory=dict)
    """Values that became `other`, by key."""
    reason: str = ""
    """Why nothing was searched."""


def search_segments(
    labels: npt.NDArray[Any],
    judged: npt.NDArray[Any],
    against: npt.NDArray[Any] | None,
    blocks: npt.NDArray[np.int64],
    keys: Sequence[SegmentKey],
    *,
    metric: str = "log_loss",
    threshold: float = 0.5,
    costs: CostMatrix | None = None,
    margin: float = 0.0,
    confidence: float = 0.95,
    limits: SearchLimits | None = None,
    seed: int = 0,
) -> SegmentSearch:
    """Compare two models on every segment.

    Args:
        labels: 0 or 1 (numbers for the error metrics), shape [B].
        judged: Predictions of the model that is judged, shape [B].
        against: Of the model that it is compared with; None compares each segment with all rows of its
            blocks, to show where the model is weak.
        blocks: Block of time of each row, any whole numbers, shape [B].
        keys: What cuts the rows into segments.
        metric: Of `cells.CELL_METRICS`.
        threshold: Probability at and above which the decision is positive.
        costs: For the metric `value`.
        margin: Harm that is tolerated, 0 and above: a segment is refused if its whole interval is below
            -margin, accepted if its whole interval is above. With 0, even two retrains of one procedure
            truly differ in some segment.
        confidence: Two-sided level of the intervals of all segments together.
        limits: What bounds the search; None for the defaults.
        seed: Of the resampling.

    Returns:
        A search that refuses some segment wrongly in about (1 - confidence) / 2 of all cases; in up to twice
        as many where a day's differences are strongly skewed.
    """
    limits = limits or SearchLimits()
    merged = {key.name: key.merged for key in keys if key.merged}
    day, names = _numbered(blocks)
    problem = _problem(labels, (judged, against), metric) or _block_problem(len(names), limits)
    if problem:
        return SegmentSearch("not_searched", None, merged=merged, reason=problem)
    models = [
        CellMetric(metric, labels, scores, threshold, costs)
        for scores in (judged, against)
        if scores is not None
    ]
    pair = _Pair(models, day, len(names))
    chosen, small, left_out = choose(keys, day, len(names), limits)
    score = _Scorer(metric, margin, confidence, limits, seed, pair)
    whole = SegmentKey("rows", np.zeros(len(labels), np.int64), ("all",))
    everything = Chosen(Family((whole,)), *_single(len(labels), len(names)))
    return SegmentSearch(
        state="searched",
        overall=score.segments([everything])[0],
        segments=score.segments(chosen) + tuple(_too_small(metric, limits, *each) for each in small),
        searched=sum(len(each.codes) for each in chosen),
        left_out=left_out,
        merged=merged,
    )


def _single(rows: int, blocks: int) -> tuple[Codes, Codes, Codes]:
    return np.zeros(1, np.int64), np.array([rows]), np.array([blocks])


def _numbered(blocks: npt.NDArray[np.int64]) -> tuple[Codes, npt.NDArray[np.int64]]:
    names, day = np.unique(blocks, return_inverse=True)
    return day.astype(np.int64), names


def _problem(labels: npt.NDArray[Any], models: Sequence[npt.NDArray[Any] | None], metric: str) -> str:
    shown = (labels > 0) if metric in NUMBER_METRICS and np.isfinite(labels).all() else labels
    found = (unusable(shown, scores) for scores in models if scores is not None)
    return next(filter(None, found), "")


def _block_problem(blocks: int, limits: SearchLimits) -> str:
    if blocks < max(limits.minimum_blocks, 2):
        return f"{blocks} blocks, {max(limits.minimum_blocks, 2)} needed"
    return f"{blocks} blocks, at most {limits.most_blocks}" if blocks > limits.most_blocks else ""


def _too_small(metric: str, limits: SearchLimits, name: str, rows: int, blocks: int) -> SegmentScore:
    reason = f"{rows} rows of {blocks} blocks; {limits.minimum_rows} of {limits.minimum_blocks} needed"
    return SegmentScore(name, metric, rows, blocks, reason=reason)


class _Pair:
    """Two models (or one, against all rows of each block) in cells of segment and block."""

    def __init__(self, models: list[CellMetric], day: Codes, blocks: int) -> None:
        self._models, self._day, self._blocks = models, day, blocks
        self._whole = models[0].means(day, blocks)[0]

    def cells(self, chosen: Chosen) -> tuple[Floats, Floats]:
        """Weights and weighted differences by segment and block, shape [S, K] each."""
        places, count = chosen.places(), len(chosen.codes)
        cells = np.where(places >= 0, places * self._blocks + self._day, -1)
        means = [model.means(cells, count * self._blocks) for model in self._models]
        shape = (count, self._blocks)
        judged, weight = (array.reshape(shape) for array in means[0])
        against = means[1][0].reshape(shape) if len(means) > 1 else self._whole
        return weight, weight * (judged - against)

    def values(self, chosen: Chosen) -> list[Floats]:
        """Each model's metric on all rows of the segments, in the metric's own sign."""
        places, count = chosen.places(), len(chosen.codes)
        return [model.sign * model.means(places, count)[0] for model in self._models]


@dataclass(frozen=True, slots=True)
class _Scorer:
    """Turns segments into their scores."""

    metric: str
    margin: float
    confidence: float
    limits: SearchLimits
    seed: int
    pair: _Pair

    def segments(self, chosen: list[Chosen]) -> tuple[SegmentScore, ...]:
        """Scores of all segments, worst first."""
        chosen = [each for each in chosen if len(each.codes)]
        if not chosen:
            return ()
        cells = [self.pair.cells(each) for each in chosen]
        weights, totals = (np.concatenate([each[part] for each in cells]) for part in (0, 1))
        values = np.concatenate([np.column_stack(self.pair.values(each)) for each in chosen])
        facts = [
            (each.family.name(code), rows, blocks)
            for each in chosen
            for code, rows, blocks in zip(
                each.codes.tolist(), each.rows.tolist(), each.blocks.tolist(), strict=True
            )
        ]
        enough = (weights > 0).sum(axis=1) >= self.limits.minimum_blocks
        unusable = [
            SegmentScore(name, self.metric, rows, blocks, reason="no value in most of its blocks")
            for (name, rows, blocks), fine in zip(facts, enough.tolist(), strict=True)
            if not fine
        ]
        usable = np.flatnonzero(enough)
        if not len(usable):
            return tuple(unusable)
        found = simultaneous_intervals(
            weights[usable], totals[usable], self.confidence, self.limits.resamples, self.seed
        )
        order = np.argsort(found.high, kind="stable").tolist()  # by the harm that is certain
        return (*(self._score(facts[usable[at]], values[usable[at]], found, at) for at in order), *unusable)

    def _score(self, facts: tuple[str, int, int], values: Floats, found: Intervals, at: int) -> SegmentScore:
        name, rows, blocks = facts
        difference, low, high = (float(array[at]) for array in (found.difference, found.low, found.high))
        bounded = bool(np.isfinite(low))
        verdict: Verdict = "not_enough_evidence"
        if bounded and high < -self.margin:
            verdict = "refuse"
        elif bounded and low >= -self.margin:
            verdict = "accept"
        return SegmentScore(
            segment=name,
            metric=self.metric,
            rows=rows,
            blocks=blocks,
            value=float(values[0]),
            champion=float(values[1]) if len(values) > 1 else None,
            difference=difference,
            low=low if bounded else None,
            high=high if bounded else None,
            verdict=verdict,
            reason=self._words(difference, low, high, bounded),
        )

    def _words(self, difference: float, low: float, high: float, bounded: bool) -> str:
        if not bounded:
            return "a few blocks hold nearly all of its rows"
        better = "better" if difference >= 0 else "worse"
        return f"{better} by {abs(difference):.4g} ({self.confidence:.0%} for all {low:+.4g} … {high:+.4g})"
