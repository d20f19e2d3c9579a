"""What features know of the label together: a model of all others, and weighted sums that are the label."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from ctrain.evaluation.alone import FOLDS, Alone, Coded
from ctrain.evaluation.ranking import Floats, Ranking

SAMPLE = 20_000
"""Rows at most that a joint model learns from and is judged on."""

WORTH_A_LOOK = 0.8
"""AUC alone below which a feature is not compared with the others."""

LOOKS = 3
CONFIDENCE = 0.99
EXACT = 1 - 1e-6
"""Explained variance at which a weighted sum is the label itself."""


def beats_the_others(
    columns: Mapping[str, npt.NDArray[Any]],
    coded: Mapping[str, Coded],
    alone: Alone,
    reached: Mapping[str, float],
    found: set[str],
    seed: int,
) -> Iterator[tuple[str, float]]:
    """Features that alone predict better than a boosted model of all others, strongest first.

    What was found already counts for no one's side, so that one leak does not hide another.

    Args:
        columns: Raw features.
        coded: The same as codes.
        alone: Labels and folds.
        reached: AUC of each feature alone.
        found: Features that other checks have found.
        seed: Of the sample.

    Yields:
        Name, and by how much of AUC: the lower end of a 99 % interval by blocks, above 0.
    """
    chosen = np.random.default_rng(seed).permutation(len(alone.truth))[:SAMPLE]
    truth, day, folds = alone.truth[chosen], alone.day[chosen], alone.folds[chosen]
    left = [name for name in columns if name not in found]
    for name in sorted(left, key=lambda name: -reached[name])[:LOOKS]:
        others = [other for other in left if other != name]
        if reached[name] < WORTH_A_LOOK or len(others) < 2:
            return
        features = np.column_stack([_feature(columns[other], coded[other])[chosen] for other in others])
        theirs = Ranking(truth, _out_of_fold(features, truth, folds))
        own = Ranking(truth, alone.scores(coded[name])[chosen])
        low = own.auc() - theirs.auc()
        low -= _reach(own.auc_influence(truth) - theirs.auc_influence(truth), day)
        if low <= 0:
            return  # a weaker one alone will hardly beat them
        left.remove(name)
        yield name, low


def parts_of_label(columns: Mapping[str, npt.NDArray[Any]], labels: Floats) -> tuple[str, ...]:
    """The fewest numeric features whose weighted sum is the label; empty if none is.

    Args:
        columns: Raw features; text is left out, and so are numbers with missing values.
        labels: Numbers, shape [B].
    """
    names = [name for name, values in columns.items() if _usable(values)]
    rows = np.random.default_rng(0).permutation(len(labels))[:SAMPLE]
    centred = labels[rows] - labels[rows].mean()
    if not names or not centred.any():
        return ()
    numbers = np.column_stack([np.asarray(columns[name], np.float64)[rows] for name in names])
    numbers = (numbers - numbers.mean(axis=0)) / numbers.std(axis=0)
    kept = list(range(len(names)))
    if _explained(numbers, centred) < EXACT:
        return ()
    for at in range(len(names)):
        rest = [other for other in kept if other != at]
        if rest and _explained(numbers[:, rest], centred) >= EXACT:
            kept = rest
    return tuple(names[at] for at in kept)


def _usable(values: npt.NDArray[Any]) -> bool:
    return (
        values.dtype.kind in "fiu" and bool(np.isfinite(values).all()) and bool(values.min() < values.max())
    )


def _explained(numbers: Floats, centred: Floats) -> float:
    weights = np.linalg.lstsq(numbers, centred, rcond=None)[0]
    left = centred - numbers @ weights
    return 1 - float(left @ left) / float(centred @ centred)


def _feature(values: npt.NDArray[Any], coded: Coded) -> Floats:
    """Numbers as they are; text by the order of its frequency, which trees can cut."""
    if values.dtype.kind != "U":
        return np.asarray(values, np.float64)
    order = np.argsort(-np.bincount(coded.codes, minlength=len(coded.names)), kind="stable")
    place = np.empty(len(order))
    place[order] = np.arange(len(order))
    placed: Floats = place[coded.codes]
    return placed


def _out_of_fold(features: Floats, truth: Floats, folds: npt.NDArray[np.int64]) -> Floats:
    from sklearn.ensemble import HistGradientBoostingClassifier

    scores = np.full(len(truth), truth.mean())
    for fold in range(FOLDS):
        learnt, judged = folds != fold, folds == fold
        seen = features[learnt]
        useful = np.flatnonzero((~np.isnan(seen)).any(axis=0))  # boosting refuses a column without a value
        if not judged.any() or not len(useful) or truth[learnt].min() == truth[learnt].max():
            continue
        model = HistGradientBoostingClassifier(max_iter=60, early_stopping=False, random_state=0)
        model.fit(seen[:, useful], truth[learnt])
        scores[judged] = model.predict_proba(features[judged][:, useful])[:, 1]
    return scores


def _reach(influences: Floats, day: npt.NDArray[np.int64]) -> float:
    """One side of the interval whose unit is the block."""
    present = np.bincount(day) > 0
    sums = np.bincount(day, weights=influences)[present]
    blocks = len(sums)
    error = float(np.sqrt(blocks / (blocks - 1) * np.square(sums).sum())) if blocks > 1 else np.inf
    return error * float(stats.t.ppf((1 + CONFIDENCE) / 2, max(blocks - 1, 1)))
