"""Calibration on the stream itself: what this stream's scores do while nothing is wrong.

Takes shifts of past windows, each against a profile of the other ones, and learns: how much the stream's own
days add to sampling noise; how a score follows from its last four values; and the residuals that are
left. A new window's p-value is the rank of its residual among them: no normality, no independence between
features, no table of critical values.

All of it is cross-fitted over contiguous folds, so that the past is judged as the future will be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri
from scipy.stats import rankdata

from ctrain.monitoring.evidence import log_e_values
from ctrain.monitoring.profile import Entry, shifts, sizes
from ctrain.monitoring.summary import Floats, Layout

LAGS = 4
FOLDS = 10
RIDGE = 10.0
"""Windows' worth of belief that a score does not depend on its past."""

KEPT = 1000
"""Windows whose residuals are kept, of the `SEEN` last ones that they stand for."""

SEEN = 4000

LEAST_P = 0.005
"""One extreme window, a storm, never alarms alone."""

CHANCE = 1.0
"""Standard errors by which dependence must exceed what independent windows show by chance."""

LEAST_NOISE = 0.01
"""Standard deviations of the reference below which a move is none, however exact the windows are."""

TIE = 0.05
"""Residuals that are closer than this are equal: no rank is won by a rounding."""

FEWEST_AT_ONCE = 20.0
"""Independent windows below which nothing is drift at once."""

LEAST_TENTH, HEAVIEST = 0.3, 3.0
"""Least scale at a tail's tenth, in units of noise; how much heavier than it the tail is at most."""

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
    reach_K: Floats
    """How far each residual may go, upwards and then downwards, before it is drift at once."""
    stretch_K: Floats
    """How much farther than the farthest one of the past that is."""

    def add(self, residuals: Floats, down: npt.NDArray[np.bool_]) -> Calibration:
        """With one more window; beyond `KEPT` it takes the place of another one."""
        reach = np.fmax(self.reach_K, both_ways(residuals, down) * self.stretch_K)
        return replace(self, reach_K=reach)._sampled(residuals.astype(np.float32))

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
    span = spans(residuals, down)
    reach, stretch = reaches(both_ways(residuals, down), span, chances_K)
    sample = residuals[kept].astype(np.float32)
    return Calibration(center, between, weights, span, sample, len(residuals), reach, stretch)


def reaches(residuals_NK: Floats, spans_K: Floats, chances_K: Floats) -> tuple[Floats, Floats]:
    """How far residuals go with the given chances, and how much that is beyond the farthest one seen.

    By the farthest of so many independent windows, as if the tail were a normal's from there on; a tail that
    is already heavier there than at its tenth is taken to become so again. Infinite where too few are known.
    """
    counted = (~np.isnan(residuals_NK)).sum(axis=0)
    independent = counted / spans_K
    enough = (counted >= FEWEST) & (independent >= FEWEST_AT_ONCE)
    filled = np.where(enough, residuals_NK, 0.0)
    there = np.where(np.isnan(filled), -np.inf, filled)
    far = np.sort(there, axis=0)[::-1]
    tenth = np.take_along_axis(far, (counted // 10)[None], axis=0)[0] / ndtri(0.9)
    seen = -ndtri(1.0 / (np.maximum(independent, 2.0) + 1.0))
    top = np.maximum(far[0], 1.0)
    heavier = np.clip(top / seen / np.maximum(tenth, LEAST_TENTH), 1.0, HEAVIEST)
    stretch = -ndtri(chances_K) / seen * heavier**2
    return np.where(enough, top * stretch, np.inf), stretch


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


def spans(residuals_NC: Floats, down: npt.NDArray[np.bool_]) -> Floats:
    """Windows over which each score depends on itself: integrated autocorrelation, 1 and above.

    Of its evidence, which storms bring in rows, or of its rank, which slow waves do: the larger one. From
    the variance of means of contiguous blocks, which of independent windows falls as blocks grow. What
    chance alone may show is taken off, so that independent windows give about 1.

    Args:
        residuals_NC: Residuals of past windows, oldest first.
        down: Scores that are watched downwards too; their spans come last.
    """
    there = ~np.isnan(residuals_NC)
    ranks = rankdata(residuals_NC, axis=0, nan_policy="omit")
    counted = there.sum(axis=0)
    p = np.hstack([counted + 1 - ranks, ranks[:, down]]) / (np.concatenate([counted, counted[down]]) + 1)
    there = np.hstack([there, there[:, down]])
    evidence = np.exp(log_e_values(np.maximum(p, LEAST_P))).mean(axis=0)
    return np.maximum(_span(evidence, there), _span(p, there))


def _span(values_NK: Floats, there_NK: npt.NDArray[np.bool_]) -> Floats:
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
        span = np.maximum(span, ratio / (1.0 + CHANCE * np.sqrt(2.0 / np.maximum(blocks, 1.0))))
        size = size + 1 if size < 8 else int(size * 1.5)
    return span


def p_values(calibration: Calibration, residuals: Floats, down: npt.NDArray[np.bool_]) -> Floats:
    """Rank of each residual among the stream's own: upwards for all scores, then downwards for some.

    NaN, from too few rows, stays NaN. None is below `LEAST_P`, nor below what so few independent windows
    can show.
    """
    kept = calibration.residuals_NC
    there = ~np.isnan(kept)
    counted = there.sum(axis=0)
    values = residuals.astype(np.float32)
    above = (kept >= values - np.float32(TIE)).sum(axis=0)
    below = (kept <= values + np.float32(TIE)).sum(axis=0)[down]
    ranks = np.concatenate([(1.0 + above) / (counted + 1.0), (1.0 + below) / (counted[down] + 1.0)])
    counted = np.concatenate([counted, counted[down]])
    stood_for = counted * min(calibration.windows, SEEN) / len(kept)
    independent = np.maximum(stood_for / calibration.spans_K, 1.0)
    least = np.maximum(LEAST_P, 1.0 / (independent + 1.0))
    silent = np.isnan(np.concatenate([values, values[down]])) | (counted < FEWEST)
    # A share of so many independent windows is only known within its standard error.
    ranks = np.minimum(ranks + np.sqrt(ranks * (1.0 - ranks) / independent), 1.0)
    return np.where(silent, np.nan, np.maximum(ranks, least))
