"""What one feature knows of the label by itself, out of fold, from counts by fold and value."""

# F folds, V values of a feature

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ctrain.evaluation.ranking import Floats, Ranking
from ctrain.evaluation.segment_keys import Codes

FOLDS = 5
BINS = 64
MOST_VALUES = 5000
PRIOR = 20.0
"""Rows that a value's share of positives starts with, at the base rate: rare values say little."""

EXPECTED = 50.0
"""Rows of the rarer label that a value must be expected to have before it can be called pure."""


@dataclass(frozen=True, slots=True)
class Coded:
    """A column as codes."""

    codes: Codes
    names: tuple[str, ...]
    missing: int | None
    """Code of a missing value; None if none is missing."""


@dataclass(frozen=True, slots=True)
class PureValue:
    """A value that settles the label."""

    name: str
    missing: bool
    rows: int
    positive: float
    """Share of positives among its rows."""
    purity: float


def code_column(values: npt.NDArray[Any]) -> Coded:
    """Code text by its values and numbers by their quantiles, with missing values apart."""
    if values.dtype.kind == "U":
        found, codes, counts = np.unique(values, return_inverse=True, return_counts=True)
        names = [str(name) for name in found]
        if len(found) > MOST_VALUES:  # the rare ones share a code
            place = np.full(len(found), MOST_VALUES)
            kept = np.sort(np.argsort(-counts, kind="stable")[:MOST_VALUES])
            place[kept] = np.arange(MOST_VALUES)
            codes, names = place[codes], [names[at] for at in kept] + ["other"]
        absent = names.index("") if "" in names else None
        return Coded(codes.astype(np.int64), tuple(name or "missing" for name in names), absent)
    numbers = np.asarray(values, np.float64)
    known = np.isfinite(numbers)
    edges = np.unique(numbers[known])
    if len(edges) > BINS:
        edges = np.unique(np.quantile(numbers[known], np.arange(BINS) / BINS))
    codes = np.clip(np.searchsorted(edges, numbers, side="right") - 1, 0, None)
    names = [f"{edge:g}" if len(edges) < BINS else f"from {edge:g}" for edge in edges]
    if known.all():
        return Coded(codes.astype(np.int64), tuple(names), None)
    return Coded(np.where(known, codes, len(names)), (*names, "missing"), len(names))


class Alone:
    """Labels and folds, shared by all features.

    Args:
        truth: 0 or 1 with both there, shape [B].
        day: Number of each row's block, from 0 on; folds are whole blocks, shape [B].
        seed: Of the folds.
    """

    def __init__(self, truth: Floats, day: Codes, seed: int) -> None:
        self.truth, self.day = truth, day
        blocks = int(day.max()) + 1
        self.folds: Codes = (np.random.default_rng(seed).permutation(blocks) % FOLDS)[day]

    def auc(self, coded: Coded) -> float:
        """Out-of-fold AUC of the share of positives by value, over the folds' pairs; 0.5 knows nothing."""
        rows_FV, positives_FV = self._tables(coded)
        shares_FV = _others_shares(rows_FV, positives_FV)
        won = pairs = 0.0
        for rows, positives, shares in zip(rows_FV, positives_FV, shares_FV, strict=True):
            filled = rows > 0
            fold_won, fold_pairs = _won(rows[filled], positives[filled], shares[filled])
            won, pairs = won + fold_won, pairs + fold_pairs
        return won / pairs if pairs else 0.5

    def scores(self, coded: Coded) -> Floats:
        """Out-of-fold share of positives of each row's value, shape [B]."""
        shares: Floats = _others_shares(*self._tables(coded))[self.folds, coded.codes]
        return shares

    def settled(self, coded: Coded) -> float:
        """Share of rows whose label is that of most rows with the same value."""
        rows, positives = (table.sum(axis=0) for table in self._tables(coded))
        return float(np.maximum(positives, rows - positives).sum() / len(self.truth))

    def purest(self, coded: Coded, minimum_blocks: int) -> PureValue | None:
        """The value whose rows lack one label most; None if no value has enough rows and blocks."""
        rows, positives = (table.sum(axis=0) for table in self._tables(coded))
        base = float(self.truth.mean())
        best: PureValue | None = None
        for found, share in ((positives, base), (rows - positives, 1 - base)):
            expected = rows * share
            ratio = np.divide(found, expected, out=np.ones(len(rows)), where=expected >= EXPECTED)
            for code in np.argsort(ratio, kind="stable")[:3].tolist():
                purity = 1 - float(ratio[code])
                if purity <= (best.purity if best else 0.0):
                    break
                if len(np.unique(self.day[coded.codes == code])) >= minimum_blocks:
                    missing = code == coded.missing
                    positive = float(positives[code] / rows[code])
                    best = PureValue(coded.names[code], missing, int(rows[code]), positive, purity)
                    break
        return best

    def missing_auc(self, coded: Coded) -> float:
        """AUC of whether the value is missing, in the better direction; 0.5 if none or all are."""
        if coded.missing is None:
            return 0.5
        absent = (coded.codes == coded.missing).astype(np.float64)
        auc = Ranking(self.truth, absent).auc()
        return max(auc, 1 - auc)

    def _tables(self, coded: Coded) -> tuple[Floats, Floats]:
        """Rows and positives by fold and value, shape [F, V] each."""
        values = len(coded.names)
        cells, size = self.folds * values + coded.codes, FOLDS * values
        rows = np.bincount(cells, minlength=size).astype(np.float64)
        positives = np.bincount(cells, weights=self.truth, minlength=size).astype(np.float64)
        return rows.reshape(FOLDS, values), positives.reshape(FOLDS, values)


def _others_shares(rows_FV: Floats, positives_FV: Floats) -> Floats:
    """Share of positives of each value in all folds but the one, drawn towards the base rate."""
    rows, positives = rows_FV.sum(axis=0) - rows_FV, positives_FV.sum(axis=0) - positives_FV
    base_F1 = positives.sum(axis=1, keepdims=True) / np.maximum(rows.sum(axis=1, keepdims=True), 1.0)
    shares: Floats = (positives + PRIOR * base_F1) / (rows + PRIOR)
    return shares


def _won(rows: Floats, positives: Floats, shares: Floats) -> tuple[float, float]:
    """Pairs of a positive and a negative that the shares put in order, and all pairs."""
    order = np.argsort(shares, kind="stable")
    positive, negative, ordered = positives[order], (rows - positives)[order], shares[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    positive, negative = np.add.reduceat(positive, starts), np.add.reduceat(negative, starts)
    before = np.cumsum(negative) - negative
    return float(np.dot(positive, before + negative / 2)), float(positive.sum() * negative.sum())
