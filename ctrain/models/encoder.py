"""The fitted part of a model's inputs: vocabularies and scales, saved inside the model version.

Takes features as arrays, gives one float32 matrix `[B, W]`: first a column of category indexes for
each category (0 is the unknown bucket), then a column of standardised values for each number, NaN
where missing or not finite. The same bits for one row and for a million. No torch here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ctrain.errors import FeatureError
from ctrain.features.statistics import PartitionStatistics
from ctrain.features.view import FLOAT64, Arrays
from ctrain.records import Json

FAR = 1e6
"""Standard deviations from the mean at which a value is cut: beyond it float32 would lose it."""
_FAR_SQUARED = FAR * FAR
SMALL = 16
"""Rows up to which a dictionary is faster than a sorted search; both give the same index."""


@dataclass(frozen=True)
class Inputs:
    """Layout of the matrix: what a network needs to know to be built."""

    categories: tuple[tuple[str, int], ...]
    """(name, number of indexes, the unknown bucket included) of each category column."""
    numbers: tuple[str, ...]
    edges: tuple[tuple[float, ...], ...]
    """Quantile edges of each number, standardised and strictly increasing; at least two."""

    @property
    def width(self) -> int:
        """Columns of the matrix, W."""
        return len(self.categories) + len(self.numbers)


@dataclass(frozen=True)
class Encoder:
    """Vocabularies and scales."""

    vocabularies: dict[str, tuple[str, ...]]
    """Known values of each category, sorted; the i-th has index i + 1."""
    scales: dict[str, tuple[float, float]]
    """(mean, standard deviation) of each number."""
    edges: dict[str, tuple[float, ...]]
    _lookup: dict[str, dict[str, int]] = field(init=False, repr=False, compare=False)
    _scales: Any = field(init=False, repr=False, compare=False)
    _sorted: dict[str, npt.NDArray[np.str_]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        lookup = {
            name: {value: index + 1 for index, value in enumerate(values)}
            for name, values in self.vocabularies.items()
        }
        object.__setattr__(self, "_lookup", lookup)
        arrays = {name: np.array(values, dtype=np.str_) for name, values in self.vocabularies.items()}
        object.__setattr__(self, "_sorted", arrays)
        scales = np.array(list(self.scales.values()), dtype=np.float64).reshape(-1, 2)
        object.__setattr__(self, "_scales", (scales[:, 0].copy(), scales[:, 1].copy()))

    @staticmethod
    def fit(statistics: PartitionStatistics, bins: int, minimum_count: int) -> Encoder:
        """Fit from merged statistics.

        Args:
            statistics: Of the rows that training may see.
            bins: Quantile bins a number.
            minimum_count: Categories seen fewer times share the unknown bucket.
        """
        vocabularies = {
            name: tuple(sorted(v for v, n in s.counts.items() if n >= minimum_count and v != ""))
            for name, s in statistics.categories.items()
        }
        scales, edges = {}, {}
        for name, number in statistics.numbers.items():
            deviation = number.deviation or 1.0
            scales[name] = (number.mean, deviation)
            found = number.quantiles(np.linspace(0, 1, bins + 1))
            standard = np.unique(((found - number.mean) / deviation).astype(np.float32))
            if len(standard) < 2:
                standard = np.array([-1.0, 1.0], dtype=np.float32)
            edges[name] = tuple(float(edge) for edge in standard)
        return Encoder(vocabularies, scales, edges)

    @property
    def inputs(self) -> Inputs:
        """Layout of the matrix that `encode` gives."""
        return Inputs(
            categories=tuple((name, len(v) + 1) for name, v in self.vocabularies.items()),
            numbers=tuple(self.scales),
            edges=tuple(self.edges[name] for name in self.scales),
        )

    def encode(self, features: Arrays) -> npt.NDArray[np.float32]:
        """Encode B rows.

        Returns:
            float32 `[B, W]` as `inputs` says.

        Raises:
            FeatureError: if a feature is absent or of another kind than the fitted one.
        """
        rows = len(next(iter(features.values()), ()))
        matrix = np.empty((rows, len(self.vocabularies) + len(self.scales)), dtype=np.float32)
        column = 0
        for name in self.vocabularies:
            values = features.get(name)
            if values is None or values.dtype.kind != "U":
                raise FeatureError(name, "is absent or no text; the encoder was fitted on text")
            matrix[:, column] = self._indexes(name, values)
            column += 1
        numbers = []
        for name in self.scales:
            values = features.get(name)
            if values is None or (values.dtype is not FLOAT64 and values.dtype.kind == "U"):
                raise FeatureError(name, "is absent or text; the encoder was fitted on numbers")
            numbers.append(values)
        if not numbers:
            return matrix
        mean, deviation = self._scales
        if rows == 1:
            matrix[0, column:] = _standard(np.concatenate(numbers), mean, deviation)
            return matrix
        for at, values in enumerate(numbers):
            matrix[:, column + at] = _standard(values, mean[at], deviation[at])
        return matrix

    def encode_one(self, features: Mapping[str, Any]) -> npt.NDArray[np.float32] | None:
        """Encode one row straight from what a view's function gave, without checks column by column.

        Returns:
            float32 `[1, W]`, the bits of `encode`; None where anything is unusual, so that the caller
            takes the way with checks, which names what is wrong.
        """
        matrix = np.empty((1, len(self.vocabularies) + len(self.scales)), dtype=np.float32)
        row, mean = matrix[0], self._scales[0]
        try:
            for column, (name, lookup) in enumerate(self._lookup.items()):
                text = features[name]
                if text.dtype.kind != "U":
                    return None
                (value,) = text.tolist()
                row[column] = lookup.get(value, 0)
            if len(mean):
                parts = [features[name] for name in self.scales]
                vector = np.concatenate(parts)
                # A wrong kind anywhere shows in the whole; so does a wrong length, if none is above 1.
                if vector.dtype is not FLOAT64 or vector.shape != mean.shape or max(map(len, parts)) != 1:
                    return None
                standard = (vector - mean) / self._scales[1]
                # No value is far where the sum of squares is not. NaN of a missing value looks closer: a far
                # value shows in the bytes of the comparison, at half the cost of `any`.
                near = float(standard.dot(standard)) <= _FAR_SQUARED
                if not near and b"\x01" in (np.abs(standard) > FAR).tobytes():
                    return None
                row[len(self.vocabularies) :] = standard
        except (KeyError, ValueError, TypeError, AttributeError):
            return None
        return matrix

    def _indexes(self, name: str, values: npt.NDArray[Any]) -> Any:
        if len(values) <= SMALL:
            lookup = self._lookup[name]
            return [lookup.get(value, 0) for value in values.tolist()]
        known = self._sorted[name]
        if not len(known):
            return np.zeros(len(values))
        at = np.minimum(np.searchsorted(known, values), len(known) - 1)
        return np.where(known[at] == values, at + 1, 0)

    def to_json(self) -> Json:
        """Plain JSON for the manifest. Floats keep all their bits."""
        return {
            "vocabularies": {name: list(values) for name, values in self.vocabularies.items()},
            "scales": {name: list(scale) for name, scale in self.scales.items()},
            "edges": {name: list(values) for name, values in self.edges.items()},
            "order": [list(self.vocabularies), list(self.scales)],
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Encoder:
        """Rebuild from `to_json`; the order of columns is part of it, whatever JSON does to keys."""
        categories, numbers = data["order"]
        return Encoder(
            {name: tuple(data["vocabularies"][name]) for name in categories},
            {name: (data["scales"][name][0], data["scales"][name][1]) for name in numbers},
            {name: tuple(data["edges"][name]) for name in numbers},
        )


def _standard(values: npt.NDArray[Any], mean: Any, deviation: Any) -> npt.NDArray[np.float64]:
    """Standardised values within `FAR`; what is not finite, such as the logarithm of 0, is missing."""
    known = np.where(np.isfinite(values), values, np.nan)
    with np.errstate(over="ignore"):
        standard: npt.NDArray[np.float64] = np.clip((known - mean) / deviation, -FAR, FAR)
    return standard
