"""Calibration on the stream itself: what this stream's scores do while nothing is wrong.

Takes shifts of past windows, each against a profile of the other ones, and learns: how much the stream's own
days add to sampling noise; how a score follows from its last four values; and the residuals that are
left. A new window's p-value is the rank of its residual among them: no normality, no independence between
features, no table of critical values. Beyond all that was seen, means and scales of whole windows, and those
alone, are extrapolated by a tail that is fitted to the stream.

All of it is cross-fitted over contiguous folds, so that the past is judged as the future will be. That the
budget of false alarms holds is shown by simulation (`tests/benchmarks/drift.py`); ranks against one shared
past make it no theorem.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri
from scipy.stats import rankdata

from ctrain.monitoring.evidence import log_e_values
from ctrain.monitoring.profile import Entry, kinds, shifts, sizes
from ctrain.monitoring.summary import Floats, Layout

LAGS = 4
FOLDS = 10
RIDGE = 10.0
"""Windows' worth of belief that a score does not depend on its past."""

KEPT = 1000
"""Windows whose residuals are kept, of the `SEEN` last ones that they stand for."""

SEEN = 4000

LEAST_P = 0.005
"""Least p-value of a rank: by its rank alone one extreme window, a storm, is no alarm."""

CLEAR = 2.5
"""Standard errors by which the dependence of a `plain` score must exceed what independent windows show.
Distances, shares and the like cluster in ways that an autoregression leaves in: theirs always counts."""

LEAST_NOISE = 0.01
"""Standard deviations of the reference below which a move is none, however exact the windows are."""

TIE = 0.05
"""Residuals that are closer than this are equal: no rank is won by a rounding."""

FEWEST_AT_ONCE = 20.0
"""Independent windows below which nothing is drift at once."""

BEYOND, FAR_BEYOND = 1.2, 3.0
"""Times the farthest residual ever seen that a score must go to be drift at once: `plain` ones, and others,
whose tails are no normal's."""

LEAST_TAIL_P = 1e-4
"""Least p-value that the extrapolated tail of a `plain` score gives."""

FARTHEST = 5
"""Windows that a tail's scale is read from."""

LEAST_SCALE, HEAVIEST = 0.3, 3.0
"""Least scale of a tail, in units of noise; how much heavier than at its tenth it is at most."""

FEWEST = 40
"""Windows below which nothing is judged."""


@dataclass(frozen=True)
class Calibration:
    """What a stream's scores do while nothing is wrong; D shifts, C scores, N windows kept."""

    center_D: Floats
    """Mean of each shift; a distance, say, is never negative."""
    between_D: Floats
    """Variance that the stream's own days add to each shift."""
    weights_LC: Floats
    """Intercept and weights of the last values, shape [1 + LAGS, C]."""
    spans_K: Floats
    """Windows over which the evidence of each score, upwards and then downwards, depends on itself."""
    residuals_NC: npt.NDArray[np.float32]
    """Residuals of at most `KEPT` windows, an even sample of the stream's past."""
    windows: int
    """Windows that they stand for."""
    tail_K: Floats
    """Standard deviation of the normal whose tail each residual's is like, upwards and then downwards."""
    reach_K: Floats
    """How far each may go before it is drift at once."""

    def add(self, layout: Layout, residuals: Floats) -> Calibration:
        """With one more window; beyond `KEPT` it takes the place of another one."""
        farther = both_ways(residuals, tails(layout)) * _beyond(layout)
        return replace(self, reach_K=np.fmax(self.reach_K, farther))._sampled(residuals.astype(np.float32))

    def _sampled(self, new: npt.NDArray[np.float32]) -> Calibration:
        windows = self.windows + 1
        if len(self.residuals_NC) < KEPT:
            return replace(self, residuals_NC=np.vstack([self.residuals_NC, new]), windows=windows)
        # Reservoir sampling with a fixed sequence, so that a restart changes nothing.
        place = int(np.random.default_rng(windows).integers(min(windows, SEEN)))
        if place >= KEPT:
            return replace(self, windows=windows)
        kept = self.residuals_NC.copy()
        kept[place] = new
        return replace(self, residuals_NC=kept, windows=windows)


def tails(layout: Layout) -> npt.NDArray[np.bool_]:
    """Which scores are watched downwards too; all are watched upwards."""
    f, s, x = len(layout.features), len(layout.segment_names), len(layout.statistics)
    return np.concatenate([np.ones(2 * f), np.zeros(f), np.ones(f + s), np.zeros(2 * s + x)]).astype(bool)


def plain(layout: Layout) -> npt.NDArray[np.bool_]:
    """Which scores, upwards and then downwards, are means and scales of numbers with more than a few values.

    Over the rows of a window these become normal soon, so that their tails can be extrapolated.
    """
    many, down = layout.is_spread, tails(layout)
    is_plain = np.concatenate([many, many, np.zeros(len(down) - 2 * len(many), dtype=bool)])
    return np.concatenate([is_plain, is_plain[down]])


def there(layout: Layout) -> npt.NDArray[np.bool_]:
    """Which scores, upwards and then downwards, there are at all: not every feature has every kind.

    Shares of segments are the inputs' own: beside answers or losses they would be judged a second time.
    """
    missing, statistics = np.full(len(layout.features), True), np.full(len(layout.statistics), True)
    share = np.full(len(layout.segment_names), layout.kind == "data")
    local, down = (layout.has_mean & ~layout.own_SF).any(axis=1), tails(layout)
    found = np.concatenate([*kinds(layout), missing, share, local, local, statistics])
    return np.concatenate([found, found[down]])


def scores(
    layout: Layout, sizes_D: Floats, variances_D: Floats, between_D: Floats
) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Scores in their own units of noise, and which feature speaks for each segment.

    Scores are the shifts, but for those inside segments: of each segment the largest rise and the largest
    fall over features, so that their number stays features + segments.

    Returns:
        Scores, shape [C], and the number of the feature that speaks for each segment, up and down, [2, S].
    """
    z = sizes_D / np.sqrt(variances_D + between_D + LEAST_NOISE**2)
    parts = np.split(z, np.cumsum(sizes(layout))[:-1])
    f, s = len(layout.features), len(layout.segment_names)
    local = np.nan_to_num(parts[5].reshape(s, f), nan=0.0)
    silent = np.isnan(parts[5].reshape(s, f)).all(axis=1)
    which = np.stack([local.argmax(axis=1), local.argmin(axis=1)]) if s else np.zeros((2, 0), np.int64)
    up = np.where(silent, np.nan, local.max(axis=1)) if s else np.zeros(0)
    down = np.where(silent, np.nan, -local.min(axis=1)) if s else np.zeros(0)
    return np.concatenate([*parts[:5], up, down, parts[6]]), which


def past_shifts(
    layout: Layout, contexts: Sequence[str], windows_NP: Floats
) -> tuple[Floats, Floats, npt.NDArray[np.int64]]:
    """Shifts of past windows against the windows of the other folds, their variances, and the folds."""
    n = len(contexts)
    fold = np.arange(n) * min(FOLDS, n) // n
    codes = {name: code for code, name in enumerate(dict.fromkeys(contexts))}
    code = np.array([codes[name] for name in contexts])
    found = np.full((n, sum(sizes(layout))), np.nan)
    variances = np.full_like(found, np.nan)
    for name in codes.values():
        rows = np.flatnonzero(code == name)
        total = windows_NP[rows].sum(axis=0)
        for part in np.unique(fold[rows]):
            inside = rows[fold[rows] == part]
            visits = len(rows) - len(inside)
            if visits < 2:
                continue
            entry = Entry(total - windows_NP[inside].sum(axis=0), float(visits))
            for row in inside:
                one = shifts(layout, windows_NP[row], entry)
                found[row], variances[row] = one.sizes_D, one.variances_D
    return found, variances, fold


def calibrate(layout: Layout, contexts: Sequence[str], windows_NP: Floats, chances_K: Floats) -> Calibration:
    """Learn from past windows, oldest first.

    Args:
        layout: Of the summaries.
        contexts: Context of each window.
        windows_NP: Their summaries, each `profile.extended`, shape [windows, ...].
        chances_K: Probability that each score, upwards and then downwards, may have of being drift at once.
    """
    found, variances, fold = past_shifts(layout, contexts, windows_NP)
    counted = np.maximum((~np.isnan(found)).sum(axis=0), 1)
    center = np.nansum(found, axis=0) / counted
    found -= center
    excess = found**2 - variances
    between = np.maximum(np.nansum(excess, axis=0) / counted, 0.0)
    z = np.array([scores(layout, d, v, between)[0] for d, v in zip(found, variances, strict=True)])
    weights, residuals = _autoregression(z, fold)
    kept = np.sort(np.random.default_rng(0).permutation(len(residuals))[:KEPT])
    down = tails(layout)
    span = spans(layout, residuals)
    tail = tail_scales(both_ways(residuals, down), span)
    farthest = np.fmax.reduce(both_ways(residuals, down), axis=0, initial=0.0)
    reach = np.maximum(-ndtri(chances_K) * tail, farthest * _beyond(layout))
    sample = residuals[kept].astype(np.float32)
    return Calibration(center, between, weights, span, sample, len(residuals), tail, reach)


def tail_scales(residuals_NK: Floats, spans_K: Floats) -> Floats:
    """Standard deviation of the normal whose tail each residual's is like, from its five farthest windows.

    They count as those of so many independent windows, and for no less than the usual deviation. A tail that
    is already heavier there than at its tenth, beyond what chance makes, is taken to become so three times
    more on the way to where no window has been. Infinite where too few windows are known.
    """
    counted = (~np.isnan(residuals_NK)).sum(axis=0)
    independent = counted / spans_K
    enough = (counted >= FEWEST) & (independent >= FEWEST_AT_ONCE)
    known = np.where(enough, residuals_NK, 0.0)
    far = np.sort(np.where(np.isnan(known), -np.inf, known), axis=0)[::-1]
    tenth = np.take_along_axis(far, (counted // 10)[None], axis=0)[0] / ndtri(0.9)
    seen = -ndtri(np.arange(1, FARTHEST + 1)[:, None] / (np.maximum(independent, FEWEST_AT_ONCE) + 1.0))
    usual = np.sqrt(np.where(np.isnan(known), 0.0, known**2).sum(axis=0) / np.maximum(counted, 1))
    scale = np.maximum(np.maximum((far[:FARTHEST] / seen).mean(axis=0), usual), LEAST_SCALE)
    by_chance = 1.0 + 2.0 / np.sqrt(np.maximum(independent, FEWEST_AT_ONCE))
    heavier = np.clip(scale / np.maximum(tenth, LEAST_SCALE) / by_chance, 1.0, HEAVIEST)
    return np.where(enough, scale * heavier**3, np.inf)


def _beyond(layout: Layout) -> Floats:
    return np.where(plain(layout), BEYOND, FAR_BEYOND)


def both_ways(scores_NC: Floats, down: npt.NDArray[np.bool_]) -> Floats:
    """Scores upwards and, after them, downwards those that are watched so, along the last axis."""
    return np.concatenate([scores_NC, -scores_NC[..., down]], axis=-1)


def lagged(z_NC: Floats) -> Floats:
    """1 and the last values of each score, shape [1 + LAGS, N, C]; what is not known counts as 0."""
    filled = np.nan_to_num(z_NC)
    padded = np.vstack([np.zeros((LAGS, filled.shape[1])), filled])
    lags = [padded[LAGS - lag : len(padded) - lag] for lag in range(1, LAGS + 1)]
    return np.stack([np.ones_like(filled), *lags])


def _autoregression(z_NC: Floats, fold: npt.NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Weights fitted on all windows, and residuals each from weights of the other folds."""
    x = lagged(z_NC)
    there = ~np.isnan(z_NC)
    y = np.nan_to_num(z_NC)
    grams, moments = [], []
    for part in np.unique(fold):
        rows = fold == part
        seen = x[:, rows] * there[rows]
        grams.append(np.einsum("lnc,knc->clk", seen, x[:, rows]))
        moments.append(np.einsum("lnc,nc->cl", seen, y[rows]))
    ridge = np.diag([1e-6, *[RIDGE] * LAGS])
    gram, moment = np.sum(grams, axis=0), np.sum(moments, axis=0)
    residuals = np.full_like(z_NC, np.nan)
    for number, part in enumerate(np.unique(fold)):
        rows = fold == part
        weights = np.linalg.solve(gram - grams[number] + ridge, (moment - moments[number])[..., None])[..., 0]
        residuals[rows] = z_NC[rows] - np.einsum("lnc,cl->nc", x[:, rows], weights)
    weights = np.linalg.solve(gram + ridge, moment[..., None])[..., 0]
    return weights.T, residuals


def spans(layout: Layout, residuals_NC: Floats) -> Floats:
    """Windows over which each score depends on itself: integrated autocorrelation, 1 and above.

    Of its evidence, which storms bring in rows, or of its rank, which slow waves do: the larger one. From
    the variance of means of contiguous blocks, which of independent windows falls as blocks grow. What
    chance alone may show is taken off, so that independent windows give about 1.

    Args:
        layout: Of the summaries.
        residuals_NC: Residuals of past windows, oldest first.

    Returns:
        Spans of scores upwards and then downwards.
    """
    down, clear_K = tails(layout), np.where(plain(layout), CLEAR, 0.0)
    there = ~np.isnan(residuals_NC)
    ranks = rankdata(residuals_NC, axis=0, nan_policy="omit")
    counted = there.sum(axis=0)
    p = np.hstack([counted + 1 - ranks, ranks[:, down]]) / (np.concatenate([counted, counted[down]]) + 1)
    there = np.hstack([there, there[:, down]])
    evidence = np.exp(log_e_values(np.maximum(p, LEAST_P))).mean(axis=0)
    return np.maximum(_span(evidence, there, clear_K), _span(p, there, clear_K))


def _span(values_NK: Floats, there_NK: npt.NDArray[np.bool_], clear_K: Floats) -> Floats:
    """Integrated autocorrelation of each column, of the values that are there."""
    count = len(values_NK)
    counted = np.maximum(there_NK.sum(axis=0), 1)
    centred = np.where(there_NK, values_NK - np.where(there_NK, values_NK, 0.0).sum(axis=0) / counted, 0.0)
    total = np.maximum((centred**2).sum(axis=0), 1e-12)
    span = np.ones(centred.shape[1])
    size = 2
    while count // size >= 12:
        starts = np.arange(0, count, size)
        sums = np.add.reduceat(centred, starts, axis=0)
        counts = np.add.reduceat(there_NK.astype(np.float64), starts, axis=0)
        blocks = counts.sum(axis=0) ** 2 / np.maximum((counts**2).sum(axis=0), 1.0)
        ratio = (sums**2).sum(axis=0) / total
        error = np.sqrt(2.0 / np.maximum(blocks, 1.0))
        span = np.maximum(span, np.where(ratio > 1.0 + clear_K * error, ratio / (1.0 + error), 1.0))
        size = size + 1 if size < 8 else int(size * 1.5)
    return span


def p_values(layout: Layout, calibration: Calibration, residuals: Floats) -> Floats:
    """Rank of each residual among the stream's own: upwards for all scores, then downwards for some.

    NaN, from too few rows, stays NaN. None is below `LEAST_P`, nor below what so few independent windows
    can show, but for `plain` scores, of which the tail is extrapolated, to `LEAST_TAIL_P`.
    """
    down = tails(layout)
    kept, values = calibration.residuals_NC, residuals.astype(np.float32)
    counted = (~np.isnan(kept)).sum(axis=0)
    above = (kept >= values - np.float32(TIE)).sum(axis=0)
    below = (kept <= values + np.float32(TIE)).sum(axis=0)[down]
    stood_for = counted * min(calibration.windows, SEEN) / len(kept)
    stood_for = np.concatenate([stood_for, stood_for[down]])
    counted = np.concatenate([counted, counted[down]])
    independent = np.maximum(stood_for / calibration.spans_K, 1.0)
    ranks = (1.0 + np.concatenate([above, below])) / (counted + 1.0)
    # A share of so many independent windows is only known within its standard error.
    ranks = np.minimum(ranks + np.sqrt(ranks * (1.0 - ranks) / independent), 1.0)
    p = np.maximum(ranks, np.maximum(LEAST_P, 1.0 / (independent + 1.0)))
    both = both_ways(residuals, down)
    tail = np.maximum(ndtr(-both / calibration.tail_K), LEAST_TAIL_P)
    p = np.where(plain(layout), np.fmin(p, np.where(tail < LEAST_P, tail, 1.0)), p)
    return np.where(np.isnan(both) | (counted < FEWEST), np.nan, p)
