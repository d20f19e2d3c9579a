"""Fits of the gate's benchmark: pairs of gradient-boosted models in sliding windows over the real sets.

Run by itself it only fills the scratch folder, which `gate.py` reads; a second run fits nothing again.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import sys
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ctrain.evaluation import blocks
from ctrain.evaluation.blocks import (
    CLASSIFIER_STATISTICS,
    REGRESSION_STATISTICS,
    block_statistics,
    logit,
    value_statistics,
)
from ctrain.evaluation.gross import output_difference
from tests.datasets import RealSet, load

TRAINED, JUDGED, OLDER, WEEK = 60, 40, 60, 7
"""Blocks that a model learns from and is judged on, by how many an older one lags, and a recorded one."""

STRIDES = {"flights": 4, "hotel": 11, "bank": 10, "bike": 22}
"""Blocks between two windows."""

BANK_ROWS = 100
"""Rows of a block of `bank`, whose days hold between 1 and 822 calls."""

SEEDS = {"champion": 3, "same": 3, "week": 3, "older": 3, "flipped": 3, "shuffled": 3}
"""Kinds of models, and how many of each: bootstrap samples of the same rows stand for seeds."""

PAIRS = {
    "same": ("same", "champion"),
    "a week fresher": ("champion", "week"),
    "a week older": ("week", "champion"),
    "flipped": ("flipped", "champion"),
    "older": ("older", "champion"),
    "fresher": ("champion", "older"),
    "shuffled": ("shuffled", "champion"),
    "inverted": ("inverted", "champion"),
}
"""Candidate and champion of each comparison; older and fresher by 60 blocks."""

FLIPPED = 0.2
"""Share of labels spoiled in `flipped`."""


@dataclass(frozen=True)
class Window:
    """One window of judged blocks with the probabilities (or values) of every kind of model on its rows."""

    first: int
    """First judged block."""
    block: npt.NDArray[np.int64]
    """Block of each row, from 0 on."""
    label: npt.NDArray[np.float64]
    scores: dict[str, npt.NDArray[np.float32]]
    """By kind, shape [seeds, rows]."""


def blocks_of(data: RealSet) -> npt.NDArray[np.int64]:
    """Block of each row: the day, or for `bank` a run of `BANK_ROWS` calls."""
    return np.arange(len(data.label)) // BANK_ROWS if data.name == "bank" else data.day


def starts(data: RealSet) -> list[int]:
    """First judged blocks of all windows."""
    count = int(blocks_of(data)[-1]) + 1
    return list(range(TRAINED + OLDER, count - JUDGED + 1, STRIDES[data.name]))


def matrix(data: RealSet) -> tuple[npt.NDArray[np.float64], list[int]]:
    """Features as one float matrix, categories as codes, and the columns that are categories."""
    columns, categories = [], []
    for number, name in enumerate(data.features):
        column = data.features[name]
        if str(column.dtype) == "category":
            categories.append(number)
            codes = column.cat.codes.to_numpy().astype(float)
            columns.append(np.where(codes < 0, np.nan, codes))
        else:
            columns.append(column.to_numpy(float))
    return np.column_stack(columns), categories


def fit_window(data: RealSet, first: int, folder: Path) -> Window:
    """Train every kind of model for the window that starts at block `first`, or read what was trained."""
    file = folder / f"{data.name}-{first:04d}.npz"
    block = blocks_of(data)
    rows = slice(*np.searchsorted(block, [first, first + JUDGED]))
    if not file.exists():
        inputs, categories = matrix(data)
        learned = {"week": first - WEEK, "older": first - OLDER}
        scores = {}
        for kind, count in SEEDS.items():
            end = learned.get(kind, first)
            train = slice(*np.searchsorted(block, [end - TRAINED, end]))
            seeds = [[first, list(SEEDS).index(kind), seed] for seed in range(count)]
            found = [_scores(data, inputs, categories, train, rows, kind, seed) for seed in seeds]
            scores[kind] = np.array(found, np.float32)
        _save(file, scores)
    with np.load(file) as kept:
        return Window(first, block[rows] - first, data.label[rows], dict(kept))


def score_window(data: RealSet, first: int, folder: Path) -> dict[str, npt.NDArray[np.float64]]:
    """Statistics of every kind's models on every block of a window, kept like the fits.

    Returns:
        By kind, shape [seeds, S, K], NaN where a block gives none; and by pair of kinds, `a/b`, how their
        outputs differ, shape [K, 3].
    """
    code = hashlib.sha256(inspect.getsource(blocks).encode()).hexdigest()[:8]
    file = folder / f"{data.name}-{first:04d}-blocks-{code}.npz"
    if not file.exists():
        window = fit_window(data, first, folder)
        _save(file, _tables(data, window))
    with np.load(file) as kept:
        return dict(kept)


def names_of(data: RealSet) -> tuple[str, ...]:
    """Statistics of a set, in the order of tables."""
    return CLASSIFIER_STATISTICS if data.kind == "binary" else REGRESSION_STATISTICS


def _tables(data: RealSet, window: Window) -> dict[str, npt.NDArray[np.float64]]:
    cuts = np.searchsorted(window.block, np.arange(JUDGED + 1))
    spans = [slice(*pair) for pair in pairwise(cuts)]
    binary, names = data.kind == "binary", names_of(data)
    scores = dict(window.scores)
    scores["inverted"] = 1 - scores["same"] if binary else 2 * scores["same"].mean() - scores["same"]
    statistics = block_statistics if binary else value_statistics
    found: dict[str, npt.NDArray[np.float64]] = {}
    for kind, models in scores.items():
        values = [[statistics(window.label[span], model[span]) for span in spans] for model in models]
        table = [[[one.get(name, np.nan) for one in row] for name in names] for row in values]
        found[kind] = np.array(table)
    means = {
        kind: logit(models).mean(axis=0) if binary else models.mean(axis=0) for kind, models in scores.items()
    }
    for one, two in PAIRS.values():
        rows = [output_difference("", means[one][span], means[two][span], False) for span in spans]
        found[f"{one}/{two}"] = np.array(
            [[np.nan] * 3 if x is None else [x.log_sd_ratio, x.shift, x.correlation] for x in rows]
        )
    found["rows"] = np.diff(cuts).astype(float)
    return found


def _save(file: Path, arrays: dict[str, npt.NDArray[Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    half = file.with_name("half-" + file.name)
    np.savez(half, **arrays)
    half.rename(file)


def _scores(
    data: RealSet,
    inputs: npt.NDArray[np.float64],
    categories: list[int],
    train: slice,
    rows: slice,
    kind: str,
    seed: list[int],
) -> npt.NDArray[np.float64]:
    """Scores of one model that learned from a bootstrap sample of its rows."""
    rng = np.random.default_rng(seed)
    count = train.stop - train.start
    picked = rng.integers(0, count, count)
    label = _spoiled(data.label[train], kind, data.kind, rng)[picked]
    learned = inputs[train][picked]
    present = ~np.isnan(learned).all(axis=0)
    named = [number for number, column in enumerate(np.flatnonzero(present)) if column in categories]
    binary = data.kind == "binary"
    options = {"early_stopping": False, "categorical_features": named, "random_state": 0}
    model = HistGradientBoostingClassifier(**options) if binary else HistGradientBoostingRegressor(**options)
    model.fit(learned[:, present], label)
    judged = inputs[rows][:, present]
    return model.predict_proba(judged)[:, 1] if binary else model.predict(judged)


def _spoiled(
    label: npt.NDArray[np.float64], kind: str, task: str, rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Labels as the kind of candidate learns them; a regression's are exchanged where classes are flipped."""
    if kind == "shuffled":
        return rng.permutation(label)
    if kind != "flipped":
        return label
    hit = rng.random(len(label)) < FLIPPED
    return np.where(hit, 1 - label if task == "binary" else rng.permutation(label), label)


def main() -> None:
    """Fill the scratch folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", nargs="+", default=list(STRIDES))
    parser.add_argument("--folder", type=Path, required=True)
    asked = parser.parse_args()
    for name in asked.sets:
        data, begun = load(name), time.monotonic()
        windows = starts(data)
        for first in windows:
            score_window(data, first, asked.folder)
        print(f"{name}: {len(windows)} windows in {time.monotonic() - begun:.0f} s", flush=True)


if __name__ == "__main__":
    main()
