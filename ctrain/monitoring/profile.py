"""Seasonal profiles: what windows of a context (hour of day, weekend) looked like, and shifts against it.

The profile of a context is the exponentially weighted sum of earlier summaries of that context: itself a
summary, so that all of it is bounded by contexts times the size of one. `shifts` compares a window with it.
Every shift comes in standard deviations of the reference, with the variance that sampling alone would give
it; what the stream's own days add to that variance is the calibration's to learn.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt

from ctrain.monitoring.summary import Floats, Layout, Parts, split

MEMORY = 60.0
"""Visits of a context that its profile remembers."""

CONTEXTS = 96
"""Contexts kept at most; windows of further ones are not judged."""

LEAST_ROWS = 8
"""Values of a feature, or rows of a segment, below which a window says nothing about it."""

LEAST_SPREAD = 0.01
"""Variance, in the reference's units, that is added to every variance: less than that is no spread."""

DISTANCE_TO_SD = 2.5
"""A shift of one standard deviation moves the distribution function of a normal by about 1 / 2.5."""


def context_of(start: float, end: float) -> str:
    """Name of a window's season: hour of day and weekend, for windows up to half a day; else the weekday.

    Windows of several days have one context. A clock that jumped back (`end` before `start`) gives the
    context of `start`.

    Args:
        start: Event time of the window's first moment, in seconds since 1970.
        end: Event time of its end.
    """
    span = max(end - start, 0.0)
    moment = datetime.fromtimestamp(start + span / 2, UTC)
    if span > 1.5 * 86400.0:
        return "all"
    if span > 43200.0:
        return f"weekday={moment.weekday()}"
    hours = max(1, round(span / 3600.0))
    return f"hour={moment.hour // hours * hours} weekend={int(moment.weekday() >= 5)}"


@dataclass(frozen=True, slots=True)
class Entry:
    """Profile of one context."""

    sums: Floats
    """Weighted sum of its windows, each as `extended`."""
    visits: float
    """Weighted number of them."""


def extended(layout: Layout, values: Floats) -> Floats:
    """A summary's array and, after it, what does not add up over rows but is averaged over windows.

    That is the logarithm of each feature's deviation inside the window, and the contrast of its mean inside
    a segment with the mean of all other rows; after each, whether the window has it. Those of a profile's
    pooled rows would not do: they contain the moves of means from window to window.
    """
    parts = split(layout, values)
    spread = _log_deviation(parts.bins_FB.sum(axis=1), parts.sums_F2)
    contrast, there = _contrast(layout, parts)
    known = ~np.isnan(spread)
    return np.concatenate([values, np.nan_to_num(spread), known, np.nan_to_num(contrast).ravel(), there])


def _contrast(layout: Layout, w: Parts) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Mean inside each segment minus the mean of all other rows, and which segments have enough of both.

    A segment says nothing about the feature that names it, nor where it holds nearly all rows; nor is there a
    contrast of what has no mean.
    """
    there = np.minimum(w.rows_S, w.rows - w.rows_S) >= LEAST_ROWS
    inside, rest = (np.where(there, rows, np.nan)[:, None] for rows in (w.rows_S, w.rows - w.rows_S))
    contrast = w.sums_SF / inside - (w.sums_F2[:, 0] - w.sums_SF) / rest
    contrast[layout.own_SF | ~layout.has_mean] = np.nan
    return contrast, there


def _log_deviation(rows_F: Floats, sums_F2: Floats) -> Floats:
    rows = np.where(rows_F >= LEAST_ROWS, rows_F, np.nan)
    mean = sums_F2[:, 0] / rows
    spread: Floats = 0.5 * np.log(np.maximum(sums_F2[:, 1] / rows - mean**2, 0.0) + LEAST_SPREAD)
    return spread


@dataclass(frozen=True)
class Profile:
    """Entries by context."""

    entries: dict[str, Entry] = field(default_factory=dict)

    def add(self, context: str, window: Floats) -> Profile:
        """The profile after one more window, `extended`; older ones fade beyond `MEMORY` visits."""
        known = self.entries.get(context)
        if known is None:
            if len(self.entries) >= CONTEXTS:
                return self
            return replace(self, entries=self.entries | {context: Entry(window.copy(), 1.0)})
        kept = 1.0 if known.visits < MEMORY else 1.0 - 1.0 / MEMORY
        entry = Entry(known.sums * kept + window, known.visits * kept + 1.0)
        return replace(self, entries=self.entries | {context: entry})


@dataclass(frozen=True)
class Shifts:
    """A window against its profile. NaN where either side has too little to say."""

    sizes_D: Floats
    """In standard deviations of the reference, or what corresponds to them; order of `names`."""
    variances_D: Floats
    """Variance of each that sampling alone gives."""


def shifts(layout: Layout, window: Floats, entry: Entry) -> Shifts:
    """Shifts of every feature and segment: mean, scale, shape, missing; share; mean inside a segment.

    A feature has those that its values support (`kinds`).

    Args:
        layout: Of both.
        window: The window's summary, `extended`.
        entry: Profile of the window's context, without this window.
    """
    size = sum(layout.sizes)
    w, q = split(layout, window[:size]), split(layout, entry.sums[:size])
    known = 1.0 + 1.0 / entry.visits  # the profile has noise of its own
    n, m = w.bins_FB.sum(axis=1), q.bins_FB.sum(axis=1)
    enough = (n >= LEAST_ROWS) & (m >= LEAST_ROWS)
    n, m = np.where(enough, n, np.nan), np.where(enough, m, np.nan)
    mean, mean_q = w.sums_F2[:, 0] / n, q.sums_F2[:, 0] / m
    spread_q = np.maximum(q.sums_F2[:, 1] / m - mean_q**2, 0.0) + LEAST_SPREAD
    spread_w, known_w, _, _ = _averaged(layout, window)
    log_q, known_q, contrast_q, there_q = _averaged(layout, entry.sums)
    distance, distance_variance = _distance(layout, w.bins_FB, q.bins_FB, n, m)
    missing = _share(
        w.missing_F, w.missing_F + w.bins_FB.sum(axis=1), q.missing_F, q.missing_F + q.bins_FB.sum(axis=1)
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        log_w = spread_w / known_w
        scale = log_w - log_q / known_q
        statistics = w.statistics_X / w.counted_X - q.statistics_X / q.counted_X
    # The fit of shift and stretch is the first term of a series: the next one is no change of shape.
    moved = (mean - mean_q) ** 2 + (log_w - 0.5 * np.log(spread_q)) ** 2
    distance_variance = distance_variance + (0.12 * moved) ** 2
    share = _share(w.rows_S, np.full(len(w.rows_S), w.rows), q.rows_S, np.full(len(w.rows_S), q.rows))
    contrast, _ = _contrast(layout, w)
    with np.errstate(divide="ignore", invalid="ignore"):
        local = contrast - contrast_q / there_q[:, None]
        local_variance = spread_q * (1.0 / w.rows_S + 1.0 / (w.rows - w.rows_S))[:, None]
    mean_shift, scale, distance = (
        np.where(has, shift, np.nan)
        for has, shift in zip(kinds(layout), (mean - mean_q, scale, distance), strict=True)
    )
    sizes = [mean_shift, scale, distance * DISTANCE_TO_SD, missing[0], share[0]]
    variances = [spread_q / n, 0.5 / n, distance_variance * DISTANCE_TO_SD**2, missing[1], share[1]]
    return Shifts(
        np.concatenate([*sizes, local.ravel(), statistics]),
        np.concatenate([*variances, local_variance.ravel(), np.full(len(statistics), 1e-12)]) * known,
    )


def kinds(layout: Layout) -> tuple[npt.NDArray[np.bool_], ...]:
    """Which features have a mean, a scale and a shape, each shape [F].

    A mean is all that a feature of two values has; a shape is all that a category of more has.
    """
    shape = layout.is_spread | ~layout.has_mean
    return layout.has_mean, layout.is_spread, shape


def _averaged(layout: Layout, window: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """The parts of an `extended` array behind the summary's."""
    f, s = len(layout.features), len(layout.segment_names)
    ends = np.cumsum([sum(layout.sizes), f, f, s * f])
    _, spread, known, contrast, there = np.split(window, ends)
    return spread, known, contrast.reshape(s, f), there


def _distance(layout: Layout, w_FB: Floats, q_FB: Floats, n_F: Floats, m_F: Floats) -> tuple[Floats, Floats]:
    """Smirnov's distance of numbers, total variation of categories, and their mean squares by chance."""
    p, q = w_FB / n_F[:, None], q_FB / m_F[:, None]
    smirnov = np.abs(_beyond_location_and_scale(layout, np.cumsum(p - q, axis=1)[:, :-1], q)).max(axis=1)
    variation = 0.5 * np.abs(p - q).sum(axis=1)
    chance = np.sqrt(q * (1 - q)).sum(axis=1) ** 2 / (2 * np.pi)
    number = layout.is_number
    return np.where(number, smirnov, variation), np.where(number, 0.25, np.maximum(chance, 0.1)) / n_F


def _beyond_location_and_scale(layout: Layout, moved_FE: Floats, q_FB: Floats) -> Floats:
    """What is left of a moved distribution function once a shift and a stretch are fitted and taken out.

    Both have scores of their own; a distance that contains them would judge them twice, and without a sign,
    so that a mean which wanders makes it cluster.
    """
    edges = layout.edges_FE
    here = ~np.isnan(edges)
    width = np.empty_like(edges)
    width[:, 1:-1] = edges[:, 2:] - edges[:, :-2]
    width[:, 0], width[:, -1] = 2 * (edges[:, 1] - edges[:, 0]), 2 * (edges[:, -1] - edges[:, -2])
    ends = np.fmax(np.nan_to_num(np.diff(edges, axis=1, prepend=np.nan)), 1e-6) * 2
    width = np.where(np.isnan(width), ends, np.maximum(width, 1e-6))
    density = np.where(here, np.nan_to_num(q_FB[:, :-1] + q_FB[:, 1:]) / width, 0.0)
    stretch = density * np.nan_to_num(edges)
    a, b, c = (density**2).sum(1), (density * stretch).sum(1), (stretch**2).sum(1)
    u, v = (density * moved_FE).sum(1), (stretch * moved_FE).sum(1)
    determinant = np.maximum(a * c - b * b, 1e-9 * a * c + 1e-12)
    shift, scale = (c * u - b * v) / determinant, (a * v - b * u) / determinant
    left: Floats = moved_FE - shift[:, None] * density - scale[:, None] * stretch
    return np.where(here & (here.sum(axis=1, keepdims=True) > 2), left, 0.0)  # two edges are fitted whole


def _share(count: Floats, rows: Floats, count_q: Floats, rows_q: Floats) -> tuple[Floats, Floats]:
    """Shift of a share, and its variance by chance."""
    with np.errstate(divide="ignore", invalid="ignore"):
        enough = (rows >= LEAST_ROWS) & (rows_q >= LEAST_ROWS)
        difference = np.where(enough, count / rows - count_q / rows_q, np.nan)
        expected = (count_q + 0.5) / (rows_q + 1.0)
        variance = np.where(enough, expected * (1 - expected) / rows, np.nan)
    return difference * DISTANCE_TO_SD, variance * DISTANCE_TO_SD**2


def sizes(layout: Layout) -> tuple[int, ...]:
    """Lengths of the kinds of shifts: mean, scale, shape, missing; share; local; statistics."""
    f, s = len(layout.features), len(layout.segment_names)
    return (f, f, f, f, s, s * f, len(layout.statistics))


def population_stability(p_B: Floats, q_B: Floats) -> float:
    """Population stability index of two windows' counts: symmetric KL divergence of their shares, in nats.

    Half a row is added to each bin, so that an empty one gives a large number and not an infinite one.

    Source: Siddiqi, Credit Risk Scorecards (2006).
    """
    p, q = _smoothed(p_B), _smoothed(q_B)
    return float(((p - q) * np.log(p / q)).sum())


def jensen_shannon(p_B: Floats, q_B: Floats) -> float:
    """Jensen-Shannon distance of two windows' counts: root of the divergence in bits, in [0, 1]."""
    p, q = (side / side.sum() if side.sum() else np.full(len(side), 1 / len(side)) for side in (p_B, q_B))
    middle = (p + q) / 2
    return float(np.sqrt(max(0.0, (_entropy(middle) - (_entropy(p) + _entropy(q)) / 2))))


def smirnov(p_B: Floats, q_B: Floats) -> float:
    """Kolmogorov-Smirnov distance of two windows' counts in ordered bins; the exact one is no smaller."""
    p, q = p_B / max(p_B.sum(), 1.0), q_B / max(q_B.sum(), 1.0)
    return float(np.abs(np.cumsum(p - q)).max())


def _smoothed(counts: Floats) -> Floats:
    smoothed: Floats = (counts + 0.5) / (counts.sum() + 0.5 * len(counts))
    return smoothed


def _entropy(shares: npt.NDArray[np.float64]) -> float:
    there = shares[shares > 0]
    return float(-(there * np.log2(there)).sum())
