"""Keys that cut rows into segments: a column's values as bounded codes.

Text is taken as it is, "" as missing; numbers with many values are cut at their quantiles, NaN as missing.
Of a key with more values than fit, the frequent ones keep their names and the rest become `other`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from ctrain.evaluation.ranking import Floats

MOST_VALUES = 50
"""Values of a key that keep their names."""

QUANTILE_BINS = 4
FEW_VALUES = 12
"""Distinct numbers up to which each is a value of its own, as an hour or a weekday is."""

MISSING, OTHER = "missing", "other"

Codes = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SegmentKey:
    """One column as codes."""

    name: str
    codes: Codes
    """Position in `values` of each row's value, shape [B]."""
    values: tuple[str, ...]
    merged: int = 0
    """Distinct values that became `other`."""

    def segment(self, code: int) -> str:
        """Name of a segment, e.g. `carrier=UA`."""
        return f"{self.name}={self.values[code]}"


def segment_key(name: str, values: npt.NDArray[Any], most: int = MOST_VALUES) -> SegmentKey:
    """Code one raw column.

    Args:
        name: Of the column.
        values: Text ("" is missing), or numbers (NaN is missing), shape [B].
        most: Values that keep their names, at least 1; a key with more gives `other`.
    """
    assert most >= 1
    if values.dtype.kind == "U":
        return _text_key(name, values, most)
    return _number_key(name, np.asarray(values, np.float64), most)


def _text_key(name: str, values: npt.NDArray[Any], most: int) -> SegmentKey:
    found, codes, counts = np.unique(values, return_inverse=True, return_counts=True)
    if len(found) <= most:
        return SegmentKey(name, codes.astype(np.int64), tuple(str(value) or MISSING for value in found))
    kept = np.sort(np.argsort(-counts, kind="stable")[:most])
    named = np.full(len(found), most)  # whatever is not kept
    named[kept] = np.arange(most)
    names = (*(str(found[position]) or MISSING for position in kept), OTHER)
    return SegmentKey(name, named[codes], names, len(found) - most)


def _number_key(name: str, values: Floats, most: int) -> SegmentKey:
    known = ~np.isnan(values)
    found = np.unique(values[known])
    if len(found) <= min(FEW_VALUES, most):
        codes, names = np.searchsorted(found, values), [f"{value:g}" for value in found]
    else:
        edges = np.unique(np.quantile(values[known], np.arange(1, QUANTILE_BINS) / QUANTILE_BINS))
        codes, names = np.searchsorted(edges, values, side="right"), _between(edges)
    if known.all():
        return SegmentKey(name, codes.astype(np.int64), tuple(names))
    return SegmentKey(name, np.where(known, codes, len(names)), (*names, MISSING))


def _between(edges: Floats) -> list[str]:
    middle = [f"{low:g}..{high:g}" for low, high in pairwise(edges)]
    return [f"below {edges[0]:g}", *middle, f"{edges[-1]:g} and above"]
