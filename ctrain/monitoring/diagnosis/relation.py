"""Statistics of the relation between inputs and labels, window by window.

A small boosted model is fitted on the windows before each window: the relation *as it was*. On the window
itself it is corrected twice, both cross-fitted: linearly (recalibration), and by a ridge regression whose
coefficients differ by bin, of all features or of the one that repairs most (a changed relation, wherever it
changed). What the first repairs is calibration, what only the second repairs is concept drift, and what
neither repairs is noise or a harder period. The model knows nothing of the champion, so the champion's own
loss on the same rows tells a bad version from a changed world.

Losses are squared errors of probabilities, or of asinh-scaled values, over the variance of the labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

from ctrain.monitoring.diagnosis.correct import GROUPS, corrected
from ctrain.monitoring.diagnosis.frames import Floats, Frame
from ctrain.monitoring.diagnosis.inputs import BINS, MISSING, OTHER, Inputs

BEFORE = 4
"""Windows whose relation is compared with: those before each window."""
FIT_ROWS = 4_000
"""Rows of them that the model is fitted on, at most."""
MINIMUM_LABELS = 100
"""Labelled rows of a window, and of those before it, without which its relation is not judged."""
PRIOR = 5.0
"""Rows of the mean label that each bin is mixed with."""
SEGMENT_SHARE, SEGMENT_LEVELS = 0.05, 24

NAMES = (
    "gain", "skill", "order", "excess", "champion", "symmetric", "lost_positive", "lost_negative",
)  # fmt: skip
"""Statistics of a window; they grow with the fault that they are for, but `skill` and `order` fall."""


@dataclass(frozen=True)
class Segment:
    """A level of a feature in the judged window, with its part of the change."""

    feature: str
    level: str
    share: float
    """Of the labelled rows."""
    inside: float
    """Mean loss that a new relation would save in it, per row, over the variance of the labels."""
    outside: float
    """The same of all other rows."""


@dataclass(frozen=True)
class Relation:
    """Statistics over [windows that could be judged], the judged one last."""

    values: dict[str, Floats]
    effects: Floats
    """Signed share of the labels' variance that each feature's former effect explains: below 0 it is turned
    round. Shape [windows, features]."""
    judged: bool
    """Whether the last entry is of the judged window; False where it has too few labels."""
    segments: tuple[Segment, ...] = ()
    """Of the judged window, the most local change first."""


def read_relation(
    windows: Sequence[Frame], inputs: Inputs, random: np.random.Generator, gap: int
) -> Relation:
    """Compare the relation in each window with that of the windows before it.

    Args:
        windows: Oldest first, the judged one last; without those of the gap before it.
        inputs: The same windows, coded.
        random: Draws the rows that the models are fitted on.
        gap: Windows that were left out before the judged one, and are between each other one and those
            that it is compared with.
    """
    labels = [_labels(window) for window in windows]
    scale = _scale(labels[:-1], windows[-1].kind)
    groups = _groups(inputs)
    found: list[dict[str, float]] = []
    effects: list[Floats] = []
    judged = False
    segments: tuple[Segment, ...] = ()
    last = len(windows) - 1
    for index in (*range(BEFORE + gap, last), last):
        end = index if index == last else index - gap
        before = range(end - BEFORE, end)
        fitted = _fit(inputs, labels, before, scale, random)
        known = np.isfinite(labels[index])
        if fitted is None or known.sum() < MINIMUM_LABELS:
            continue
        codes, truth = inputs.codes[index][known], _scaled(labels[index][known], scale)
        if truth.std() < 1e-9:
            continue
        was = fitted.predict(codes)
        champion = _scaled(windows[index].scores[known], scale)
        calibrated, renewed = corrected(codes, groups, truth, was, binary=scale is None)
        noise = _noise_number(truth - calibrated, fitted.unit) if scale else _noise_binary(truth, was)
        found.append(_statistics(truth, was, champion, calibrated, renewed) | noise)
        effects.append(_signed_shares(fitted.means[np.arange(codes.shape[1]), codes], truth))
        judged = index == last
        if judged:
            saved = ((truth - was) ** 2 - (truth - renewed) ** 2) / truth.var()
            segments = _segments(inputs, codes, saved)
    values = {name: np.array([one[name] for one in found]) for name in NAMES}
    return Relation(values, np.array(effects).reshape(-1, len(inputs.names)), judged, segments)


def _labels(window: Frame) -> Floats:
    return np.full(window.rows, np.nan) if window.labels is None else np.asarray(window.labels, np.float64)


def _scale(labels: Sequence[Floats], kind: str) -> float | None:
    """Unit in which values become asinh; None for a binary label, which stays as it is."""
    if kind == "binary":
        return None
    pooled = np.concatenate(labels)
    pooled = np.abs(pooled[np.isfinite(pooled)])
    return float(np.median(pooled)) or 1.0 if len(pooled) else 1.0


def _scaled(values: Floats, scale: float | None) -> Floats:
    return values if scale is None else np.arcsinh(values / scale)


def scaled_labels(labels: Floats, *scores: Floats, kind: str) -> list[Floats]:
    """Labels and scores of the rows that have all of them, in the unit in which losses are taken."""
    known = np.isfinite(labels) & np.isfinite(np.stack(scores)).all(axis=0)
    scale = _scale([labels[known]], kind)
    return [_scaled(values[known], scale) for values in (labels, *scores)]


class _Fitted:
    """A small boosted model on bins; the levels of a text are put in the order of their mean label."""

    def __init__(
        self, codes: npt.NDArray[np.uint8], truth: Floats, text: npt.NDArray[np.bool_], binary: bool
    ) -> None:
        self.ranks = np.tile(np.arange(OTHER + 1), (len(text), 1))
        self.means = np.empty((len(text), OTHER + 1))
        """Mean label of each bin, drawn a little to that of all rows: the effect of a feature by itself."""
        for column in range(len(text)):
            counts = np.bincount(codes[:, column], minlength=OTHER + 1)
            sums = np.bincount(codes[:, column], weights=truth, minlength=OTHER + 1)
            self.means[column] = (sums + PRIOR * truth.mean()) / (counts + PRIOR)
            if text[column]:
                order = np.argsort(self.means[column], kind="stable")
                self.ranks[column] = np.argsort(order, kind="stable")
        kind = HistGradientBoostingClassifier if binary else HistGradientBoostingRegressor
        self.model = kind(
            max_iter=30, learning_rate=0.15, max_leaf_nodes=12, early_stopping=False, random_state=0
        )
        self.model.fit(self._ranked(codes), truth)
        self.unit = 1.4826 * float(np.median(np.abs(truth - self.predict(codes)))) or 1.0
        """Usual size of a residual, of the rows that it was fitted on."""

    def predict(self, codes: npt.NDArray[np.uint8]) -> Floats:
        """Probabilities, or values."""
        ranked = self._ranked(codes)
        if isinstance(self.model, HistGradientBoostingClassifier):
            found: Floats = self.model.predict_proba(ranked)[:, 1]
        else:
            found = self.model.predict(ranked)
        return found

    def _ranked(self, codes: npt.NDArray[np.uint8]) -> Floats:
        ranked: Floats = self.ranks[np.arange(codes.shape[1]), codes].astype(np.float64)
        return ranked


def _fit(
    inputs: Inputs, labels: Sequence[Floats], before: range, scale: float | None, random: np.random.Generator
) -> _Fitted | None:
    codes = np.concatenate([inputs.codes[index] for index in before])
    truth = np.concatenate([labels[index] for index in before])
    rows = np.flatnonzero(np.isfinite(truth))
    if len(rows) < MINIMUM_LABELS or len(np.unique(truth[rows])) < 2:
        return None
    if len(rows) > FIT_ROWS:
        rows = np.sort(random.choice(rows, FIT_ROWS, replace=False))
    return _Fitted(codes[rows], _scaled(truth[rows], scale), inputs.text, scale is None)


def _groups(inputs: Inputs) -> npt.NDArray[np.int64]:
    """Coarse group of each bin, shape [features, bins]: equal shares of the past, or the largest levels."""
    usual = inputs.shares[:-1].mean(axis=0)
    table = np.full((len(inputs.names), OTHER + 1), GROUPS - 1)
    order = np.argsort(-usual[:, :BINS], axis=1, kind="stable")
    ranks = np.argsort(order, axis=1, kind="stable")
    cumulated = np.cumsum(usual[:, :BINS], axis=1) - usual[:, :BINS] / 2
    spread = cumulated / np.maximum(usual[:, :BINS].sum(axis=1, keepdims=True), 1e-12)
    quantile = np.minimum((spread * GROUPS).astype(np.int64), GROUPS - 1)
    table[:, :BINS] = np.where(inputs.text[:, None], np.minimum(ranks, GROUPS - 1), quantile)
    table[:, MISSING] = GROUPS
    return table


def _statistics(
    truth: Floats, was: Floats, champion: Floats, calibrated: Floats, renewed: Floats
) -> dict[str, float]:
    variance = float(truth.var())

    def loss(predicted: Floats) -> float:
        return float(np.mean((truth - predicted) ** 2)) / variance

    answered = np.isfinite(champion)
    paired = (truth - champion)[answered] ** 2 - (truth - was)[answered] ** 2
    return {
        "gain": loss(calibrated) - loss(renewed),
        "skill": 1 - min(loss(calibrated), loss(renewed)),
        "order": float(_signed_shares(was[:, None], truth)[0]),
        "excess": loss(was) - loss(calibrated),
        "champion": float(paired.mean()) / variance if answered.any() else 0.0,
    }


def _signed_shares(columns: Floats, truth: Floats) -> Floats:
    """Squared correlation of each column with the labels, below 0 where it is negative; 0 of a constant."""
    centred, y = columns - columns.mean(axis=0), truth - truth.mean()
    spread = np.sqrt((centred**2).mean(axis=0) * np.mean(y**2))
    correlation = (centred * y[:, None]).mean(axis=0) / np.maximum(spread, 1e-12)
    signed: Floats = np.where(spread > 1e-9, correlation * np.abs(correlation), 0.0)
    return signed


_RATES = np.linspace(0, 0.5, 51)


def _noise_binary(truth: Floats, was: Floats) -> dict[str, float]:
    """Log-likelihood gained by flipped labels over a shifted intercept, a hundred rows.

    Flips bound the chance of a label away from 0 or 1 where the model is sure; a shifted intercept does not.
    Source: Menon et al., Learning from corrupted binary labels via class-probability estimation (2015).
    """
    chance = np.clip(was, 1e-3, 1 - 1e-3)[:, None]
    odds = chance / (1 - chance) * np.exp(np.linspace(-3, 3, 61))
    shifted = _likelihood(truth, odds / (1 + odds))
    flips = {
        "symmetric": _RATES + (1 - 2 * _RATES) * chance,
        "lost_positive": (1 - _RATES) * chance,
        "lost_negative": _RATES + (1 - _RATES) * chance,
    }
    return {name: _likelihood(truth, expected) - shifted for name, expected in flips.items()}


def _likelihood(truth: Floats, chances: Floats) -> float:
    logs = np.where(truth[:, None] > 0.5, np.log(chances), np.log1p(-chances))
    return float(logs.mean(axis=0).max()) * 100


def _noise_number(residual: Floats, unit: float) -> dict[str, float]:
    """Rows far off on either side, in hundredths of the rows; a label that was lost is far too low."""
    residual = residual - np.median(residual)
    low, high = float(np.mean(residual < -4 * unit)) * 100, float(np.mean(residual > 4 * unit)) * 100
    return {"symmetric": min(low, high), "lost_positive": low - high, "lost_negative": high - low}


def _segments(inputs: Inputs, codes: npt.NDArray[np.uint8], saved: Floats) -> tuple[Segment, ...]:
    """Levels of features with few of them, by how much of the change lies in each alone."""
    found = []
    total, rows = float(saved.sum()), len(saved)
    for column, levels in enumerate(inputs.levels):
        counts = np.bincount(codes[:, column], minlength=OTHER + 1)
        sums = np.bincount(codes[:, column], weights=saved, minlength=OTHER + 1)
        for code, level in enumerate(levels):
            inside_rows = int(counts[code])
            if SEGMENT_SHARE * rows <= inside_rows <= (1 - SEGMENT_SHARE) * rows:
                inside = float(sums[code]) / inside_rows
                outside = (total - float(sums[code])) / (rows - inside_rows)
                found.append(Segment(inputs.names[column], level, inside_rows / rows, inside, outside))
    # t-like: a small segment with a large change beside a large one with a small change
    return tuple(sorted(found, key=lambda s: -(s.inside - s.outside) * (s.share * (1 - s.share)) ** 0.5)[:5])
