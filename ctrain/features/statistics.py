"""Mergeable statistics of a partition's features: what an encoder is fitted from.

Computed once for each (partition, view). Merging is the same as computing on all rows: for moments but
for rounding, for quantiles within about 1/256 of rank, for categories exactly while a feature has at
most 10,000 values. Bounded: 256 points a number, the 10,000 most frequent values a category. Above
that a merged count is a lower bound: a partition in which a value is not among its 10,000 most frequent
adds nothing to it, so a value that is rare everywhere may be left out of a vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ctrain.features.view import LARGEST, Arrays
from ctrain.records import Json

POINTS = 256
CATEGORIES = 10_000


@dataclass(frozen=True)
class NumberStatistics:
    """Moments and a quantile summary of one numeric feature; NaN counts as missing."""

    rows: int
    missing: int
    mean: float
    m2: float
    """Sum of squared deviations from the mean."""
    points: tuple[float, ...]
    """Sorted representative values ..."""
    weights: tuple[float, ...]
    """... and the number of rows that each stands for."""

    @property
    def deviation(self) -> float:
        """Standard deviation of the values that are there; 0 for fewer than two."""
        count = self.rows - self.missing
        return float(np.sqrt(self.m2 / count)) if count > 1 else 0.0

    def quantiles(self, shares: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Values below which the given shares of rows lie; empty if there is no value."""
        if not self.points:
            return np.array([])
        weights = np.asarray(self.weights)
        middle = (np.cumsum(weights) - weights / 2) / weights.sum()
        return np.interp(shares, middle, np.asarray(self.points))


@dataclass(frozen=True)
class CategoryStatistics:
    """Counts of one categorical feature; "" counts as missing."""

    rows: int
    counts: dict[str, int]


@dataclass(frozen=True)
class PartitionStatistics:
    """Statistics of all features of some rows."""

    rows: int
    numbers: dict[str, NumberStatistics]
    categories: dict[str, CategoryStatistics]

    @staticmethod
    def of(features: Arrays) -> PartitionStatistics:
        """Statistics of one partition's features."""
        numbers, categories = {}, {}
        rows = len(next(iter(features.values()))) if features else 0
        for name, values in features.items():
            if values.dtype.kind == "U":
                unique, counts = np.unique(values, return_counts=True)
                table = {str(value): int(count) for value, count in zip(unique, counts, strict=True)}
                categories[name] = CategoryStatistics(rows, _most_frequent(table))
            else:
                numbers[name] = _number(values)
        return PartitionStatistics(rows, numbers, categories)

    @staticmethod
    def merge(parts: Sequence[PartitionStatistics]) -> PartitionStatistics:
        """Statistics of all rows of the parts; the order of the parts must be fixed by the caller."""
        numbers = {name: _merge_numbers([part.numbers[name] for part in parts]) for name in parts[0].numbers}
        categories = {}
        for name in parts[0].categories:
            table: dict[str, int] = {}
            for part in parts:
                for value, count in part.categories[name].counts.items():
                    table[value] = table.get(value, 0) + count
            rows = sum(part.categories[name].rows for part in parts)
            categories[name] = CategoryStatistics(rows, _most_frequent(table))
        return PartitionStatistics(sum(part.rows for part in parts), numbers, categories)

    def to_json(self) -> Json:
        """Plain JSON."""
        numbers = {
            name: [s.rows, s.missing, s.mean, s.m2, list(s.points), list(s.weights)]
            for name, s in self.numbers.items()
        }
        categories = {name: [s.rows, s.counts] for name, s in self.categories.items()}
        return {"rows": self.rows, "numbers": numbers, "categories": categories}

    @staticmethod
    def from_json(data: Mapping[str, object]) -> PartitionStatistics:
        """Rebuild from `to_json`."""
        raw: Json = dict(data)
        numbers = {
            name: NumberStatistics(rows, missing, mean, m2, tuple(points), tuple(weights))
            for name, (rows, missing, mean, m2, points, weights) in raw["numbers"].items()
        }
        categories = {
            name: CategoryStatistics(rows, counts) for name, (rows, counts) in raw["categories"].items()
        }
        return PartitionStatistics(raw["rows"], numbers, categories)


def _most_frequent(table: dict[str, int]) -> dict[str, int]:
    kept = sorted(table.items(), key=lambda item: (-item[1], item[0]))[:CATEGORIES]
    return dict(kept)


def _number(values: npt.NDArray[np.float64]) -> NumberStatistics:
    there = np.sort(np.clip(values[np.isfinite(values)], -LARGEST, LARGEST))
    missing = len(values) - len(there)
    if not len(there):
        return NumberStatistics(len(values), missing, 0.0, 0.0, (), ())
    mean = float(there.mean())
    m2 = float(((there - mean) ** 2).sum())
    points, weights = _compress(there, np.ones(len(there)))
    return NumberStatistics(len(values), missing, mean, m2, points, weights)


def _merge_numbers(parts: Sequence[NumberStatistics]) -> NumberStatistics:
    rows, missing, mean, m2 = 0, 0, 0.0, 0.0
    for part in parts:
        count, other = rows - missing, part.rows - part.missing
        if other:
            delta, total = part.mean - mean, count + other
            mean += delta * other / total
            m2 += part.m2 + delta * delta * count * other / total
        rows, missing = rows + part.rows, missing + part.missing
    values = np.concatenate([np.asarray(part.points, dtype=np.float64) for part in parts])
    weights = np.concatenate([np.asarray(part.weights, dtype=np.float64) for part in parts])
    order = np.argsort(values, kind="stable")
    points, kept = _compress(values[order], weights[order])
    return NumberStatistics(rows, missing, mean, m2, points, kept)


def _compress(
    values: npt.NDArray[np.float64], weights: npt.NDArray[np.float64]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """At most POINTS values of equal weight, each the one in the middle of its share of the rows."""
    if len(values) <= POINTS:
        return tuple(values.tolist()), tuple(weights.tolist())
    total = float(weights.sum())
    middle = np.cumsum(weights) - weights / 2
    targets = (np.arange(POINTS) + 0.5) * total / POINTS
    chosen = np.clip(np.searchsorted(middle, targets), 0, len(values) - 1)
    chosen[0], chosen[-1] = 0, len(values) - 1  # the ends are kept: they bound the encoder's bins
    return tuple(values[chosen].tolist()), (total / POINTS,) * POINTS
