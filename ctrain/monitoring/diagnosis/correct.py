"""Corrections of a former model on one window, cross-fitted: of its level and slope, and of its relation."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ctrain.monitoring.diagnosis.frames import Floats

GROUPS = 8
"""Coarse groups of a feature's bins that a new relation tells apart; missing values are one more."""
FOLDS, PIECES = 5, 5
"""Folds of a window, each of so many contiguous pieces: long enough that a row's neighbours in time are
mostly in its own fold, short enough that every day and weather is in several."""
RIDGE, RIDGE_OF_ONE = 100.0, 10.0
NEWTON_STEPS = 8


def corrected(
    codes: npt.NDArray[np.uint8],
    groups: npt.NDArray[np.int64],
    truth: Floats,
    was: Floats,
    *,
    binary: bool,
) -> tuple[Floats, Floats]:
    """Cross-fitted predictions: recalibrated, and with a relation of the window's own."""
    rows, features = codes.shape
    place = groups[np.arange(features), codes] + (GROUPS + 1) * np.arange(features)
    flags = np.zeros((rows, features * (GROUPS + 1)))
    flags[np.arange(rows)[:, None], place] = 1.0
    unit = (was - was.mean()) / (was.std() or 1.0)
    wide = np.hstack([flags, flags * unit[:, None]])
    fold = np.arange(rows) * FOLDS * PIECES // rows % FOLDS
    calibrated = _recalibrated(truth, was, fold, binary=binary)
    fit = _CrossFit(wide, truth - calibrated, fold)
    corrections = [fit.predicted(RIDGE)]
    for feature in range(features):
        own = np.arange(GROUPS + 1) + (GROUPS + 1) * feature
        corrections.append(fit.predicted(RIDGE_OF_ONE, np.concatenate([own, own + flags.shape[1]])))
    left = [float(np.square(truth - calibrated - correction).sum()) for correction in corrections]
    return calibrated, calibrated + corrections[int(np.argmin(left))]


def _recalibrated(truth: Floats, was: Floats, fold: npt.NDArray[np.int64], *, binary: bool) -> Floats:
    """Intercept and slope, of log odds or of values, each fold from the others."""
    score = _log_odds(was) if binary else was
    line = np.column_stack([np.ones(len(was)), (score - score.mean()) / (score.std() or 1.0)])
    if not binary:
        return _CrossFit(line, truth, fold).predicted(1e-6 * len(was))
    found = np.empty(len(truth))
    for number in range(FOLDS):
        held = fold == number
        found[held] = _logistic(line[held] @ _logistic_weights(line[~held], truth[~held]))
    return found


def _logistic_weights(line: Floats, truth: Floats) -> Floats:
    """Maximum likelihood by Newton's method, a little drawn to 0 so that it always exists."""
    weights = np.zeros(2)
    for _ in range(NEWTON_STEPS):
        chance = _logistic(line @ weights)
        slope = line.T @ (truth - chance) - weights
        curve = (line * (chance * (1 - chance))[:, None]).T @ line + np.eye(2)
        weights = weights + np.clip(np.linalg.solve(curve, slope), -2, 2)
    return weights


def _log_odds(chance: Floats) -> Floats:
    clipped = np.clip(chance, 1e-3, 1 - 1e-3)
    odds: Floats = np.log(clipped / (1 - clipped))
    return odds


def _logistic(odds: Floats) -> Floats:
    chance: Floats = 1 / (1 + np.exp(-np.clip(odds, -30, 30)))
    return chance


class _CrossFit:
    """Ridge regressions on columns of one design, each fold predicted from the others."""

    def __init__(self, design: Floats, truth: Floats, fold: npt.NDArray[np.int64]) -> None:
        self._parts = [np.flatnonzero(fold == number) for number in range(FOLDS)]
        self._design, self._size = design, len(truth)
        self._grams = [design[part].T @ design[part] for part in self._parts]
        self._moments = [design[part].T @ truth[part] for part in self._parts]
        self._gram, self._moment = np.sum(self._grams, axis=0), np.sum(self._moments, axis=0)

    def predicted(self, ridge: float, columns: npt.NDArray[np.int64] | None = None) -> Floats:
        """Predictions from some columns, all of them by default."""
        chosen = np.arange(len(self._moment)) if columns is None else columns
        square = np.ix_(chosen, chosen)
        found = np.empty(self._size)
        for part, gram, moment in zip(self._parts, self._grams, self._moments, strict=True):
            others = (self._gram - gram)[square] + ridge * np.eye(len(chosen))
            weights = np.linalg.solve(others, (self._moment - moment)[chosen])
            found[part] = self._design[np.ix_(part, chosen)] @ weights
        return found
