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

    That is the logarithm of each feature's deviation inside the window, and whether it has one. The
    deviation of all rows of a profile would not do: it contains the moves of the mean from window to window.
    """
    parts = split(layout, values)
    spread = _log_deviation(parts.bins_FB.sum(axis=1), parts.sums_F2)
    there = ~np.isnan(spread)
    return np.concatenate([values, np.nan_to_num(spread), there.astype(np.float64)])


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

    Args:
        layout: Of both.
        window: The window's summary, `extended`.
        entry: Profile of the window's context, without this window.
    """
    f, size = len(layout.features), sum(layout.sizes)
    w, q = split(layout, window[:size]), split(layout, entry.sums[:size])
    known = 1.0 + 1.0 / entry.visits  # the profile has noise of its own
    n, m = w.bins_FB.sum(axis=1), q.bins_FB.sum(axis=1)
    enough = (n >= LEAST_ROWS) & (m >= LEAST_ROWS)
    n, m = np.where(enough, n, np.nan), np.where(enough, m, np.nan)
    mean, mean_q = w.sums_F2[:, 0] / n, q.sums_F2[:, 0] / m
    spread_q = np.maximum(q.sums_F2[:, 1] / m - mean_q**2, 0.0) + LEAST_SPREAD
    log_w, log_q = window[size:].reshape(2, f), entry.sums[size:].reshape(2, f)
    distance, distance_variance = _distance(layout, w.bins_FB, q.bins_FB, n, m)
    missing = _share(w.missing_F, w.missing_F + w.bins_FB.sum(axis=1), q.missing_F, q.missing_F + q.bins_FB.sum(axis=1))
    share = _share(w.rows_S, np.full(len(w.rows_S), w.rows), q.rows_S, np.full(len(w.rows_S), q.rows))
    local, local_variance = _local(layout, w, q, spread_q)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = log_w[0] / log_w[1] - log_q[0] / log_q[1]
        statistics = w.statistics_X / w.counted_X - q.statistics_X / q.counted_X
    sizes = [mean - mean_q, scale, distance * DISTANCE_TO_SD, missing[0], share[0]]
    variances = [spread_q / n, 0.5 / n, distance_variance * DISTANCE_TO_SD**2, missing[1], share[1]]
    return Shifts(
        np.concatenate([*sizes, local.ravel(), statistics]),
        np.concatenate([*variances, local_variance.ravel(), np.full(len(statistics), 1e-12)]) * known,
    )


def _distance(
    layout: Layout, w_FB: Floats, q_FB: Floats, n_F: Floats, m_F: Floats
) -> tuple[Floats, Floats]:
    """Kolmogorov-Smirnov distance of numbers, total variation of categories, and their mean squares by chance."""
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
    return np.where(here, left, 0.0)


def _share(count: Floats, rows: Floats, count_q: Floats, rows_q: Floats) -> tuple[Floats, Floats]:
    """Shift of a share, and its variance by chance."""
    with np.errstate(divide="ignore", invalid="ignore"):
        enough = (rows >= LEAST_ROWS) & (rows_q >= LEAST_ROWS)
        difference = np.where(enough, count / rows - count_q / rows_q, np.nan)
        expected = (count_q + 0.5) / (rows_q + 1.0)
        variance = np.where(enough, expected * (1 - expected) / rows, np.nan)
    return difference * DISTANCE_TO_SD, variance * DISTANCE_TO_SD**2


def _local(layout: Layout, w: Parts, q: Parts, spread_F: Floats) -> tuple[Floats, Floats]:
    """Shift of each feature's mean inside each segment beyond the shift of all other rows.

    A segment says nothing about the feature that names it, nor where it holds nearly all rows.
    """
    inside, outside = (w.rows_S, q.rows_S), (w.rows - w.rows_S, q.rows - q.rows_S)
    enough = np.min([*inside, *outside], axis=0) >= LEAST_ROWS
    n, m, n_rest, m_rest = (np.where(enough, rows, np.nan)[:, None] for rows in (*inside, *outside))
    moved = w.sums_SF / n - q.sums_SF / m
    rest = (w.sums_F2[:, 0] - w.sums_SF) / n_rest - (q.sums_F2[:, 0] - q.sums_SF) / m_rest
    moved = moved - rest
    moved[layout.own_SF] = np.nan
    return moved, spread_F * (1.0 / n + 1.0 / m + 1.0 / n_rest + 1.0 / m_rest)


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
    """Kolmogorov-Smirnov distance of two windows' counts in ordered bins: at most the exact one of the rows."""
    p, q = p_B / max(p_B.sum(), 1.0), q_B / max(q_B.sum(), 1.0)
    return float(np.abs(np.cumsum(p - q)).max())


def _smoothed(counts: Floats) -> Floats:
    smoothed: Floats = (counts + 0.5) / (counts.sum() + 0.5 * len(counts))
    return smoothed


def _entropy(shares: npt.NDArray[np.float64]) -> float:
    there = shares[shares > 0]
    return float(-(there * np.log2(there)).sum())
