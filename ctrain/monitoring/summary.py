"""Mergeable, bounded summaries of a window's rows: what drift is judged on, instead of the rows.

A `Layout` is fitted once on reference rows and says what is counted: for each feature 24 bins (quantiles of a
number, the most frequent values of a category) and its missing values, for each segment its rows, and inside
each segment the sum of every feature. A `Summary` holds these counts in one array, so that merging two
windows is adding two arrays. Its size depends on the layout alone, never on the rows or on how many values
a key has: what the layout does not know is counted as `other`.

Columns are text (`<U`, "" is missing) or numbers (NaN and infinite values are missing); `as_column` makes
them from lists with None.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ctrain.records import Json

Columns = Mapping[str, npt.NDArray[Any]]
Floats = npt.NDArray[np.float64]

BINS = 24
"""Bins of a feature; missing values are counted beside them."""

SEGMENTS = 100
"""Segments of a layout at most, `other` of each key included."""

CLIP = 8.0
"""Standard deviations from the reference's mean at which a value is cut, so that one alone is no mean."""

PIECE = 16384
"""Rows counted at a time."""

CELLS_A_DEVIATION = 256
"""Of the grid by which bins are found."""

OTHER = "other"

_MULTIPLIERS = np.random.default_rng(20130101).integers(1, 2**63, 4096, dtype=np.uint64) * np.uint64(
    2
) + np.uint64(1)


@dataclass(frozen=True, slots=True)
class Feature:
    """How one column is counted."""

    name: str
    edges: tuple[float, ...]
    """Upper ends of all bins but the last, ascending; empty for a category."""
    values: tuple[str, ...]
    """Known categories, the most frequent one first; the bin after them is `other`. Empty for a number."""
    center: float
    scale: float
    """Mean and standard deviation on the reference, of a category's bin number if it is one."""

    @property
    def is_number(self) -> bool:
        """Whether the column holds numbers."""
        return bool(self.edges)


@dataclass(frozen=True, slots=True)
class SegmentKey:
    """A column that names subgroups."""

    name: str
    values: tuple[str, ...]
    """Known values; all others together are one more segment, `other`."""


@dataclass(frozen=True)
class Layout:
    """What is counted in a window; fitted once on reference rows. `kind` names what its columns are."""

    kind: str
    features: tuple[Feature, ...]
    segments: tuple[SegmentKey, ...] = ()
    statistics: tuple[str, ...] = ()
    """Names of statistics that chosen detectors add to each window."""

    @staticmethod
    def fit(
        columns: Columns,
        segments: Columns | None = None,
        *,
        kind: str = "data",
        statistics: Sequence[str] = (),
        segment_values: int = 12,
    ) -> Layout:
        """Fit bins, known categories and segments on reference rows.

        Args:
            columns: Reference columns by name; all of one length.
            segments: Columns that name subgroups, text or numbers, by name.
            kind: `data`, `prediction` or `concept`.
            statistics: Names of what detectors will add (`Summary.statistics`).
            segment_values: Values kept of each segment key; together never more than `SEGMENTS`.
        """
        keys = []
        room = SEGMENTS
        for name, values in (segments or {}).items():
            kept = _frequent(as_text(values), min(segment_values, room - 1)) if room > 1 else ()
            keys.append(SegmentKey(name, kept))
            room -= len(kept) + 1
        keys = [key for key in keys if key.values]
        features = tuple(_fit(name, values) for name, values in columns.items())
        return Layout(kind, features, tuple(keys), tuple(statistics))

    @cached_property
    def segment_names(self) -> tuple[str, ...]:
        """One name a segment, e.g. `carrier=UA`, in the order of the counts."""
        return tuple(f"{key.name}={value}" for key in self.segments for value in (*key.values, OTHER))

    @cached_property
    def own_SF(self) -> npt.NDArray[np.bool_]:
        """Which feature names which segment, shape [S, F]."""
        names = [key.name for key in self.segments for _ in (*key.values, OTHER)]
        own = [[feature.name == name for feature in self.features] for name in names]
        return np.array(own, dtype=bool).reshape(len(names), len(self.features))

    @cached_property
    def is_number(self) -> npt.NDArray[np.bool_]:
        """Which features are numbers."""
        return np.array([feature.is_number for feature in self.features], dtype=bool)

    @cached_property
    def is_spread(self) -> npt.NDArray[np.bool_]:
        """Which features are numbers with more than a few values, so that they have a scale and a shape."""
        return np.array([len(feature.edges) > 2 for feature in self.features], dtype=bool)

    @cached_property
    def has_mean(self) -> npt.NDArray[np.bool_]:
        """Which features have a mean: numbers, and categories of two values (the rarer one's share).

        The numbers of more categories are names; their mean would only say that names were given in an order.
        """
        return np.array([f.is_number or len(f.values) <= 2 for f in self.features], dtype=bool)

    @cached_property
    def edges_FE(self) -> Floats:
        """Standardised edges of all features, NaN where a feature has fewer, shape [F, BINS - 1]."""
        edges = np.full((len(self.features), BINS - 1), np.nan)
        for index, feature in enumerate(self.features):
            edges[index, : len(feature.edges)] = (np.array(feature.edges) - feature.center) / feature.scale
        return edges

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Lengths of the parts of a summary's array."""
        f, s, x = len(self.features), len(self.segment_names), len(self.statistics)
        return (1, f * (BINS + 1), f * 2, s, s * f, x, x)

    def to_json(self) -> Json:
        """Plain JSON."""
        features = [[f.name, list(f.edges), list(f.values), f.center, f.scale] for f in self.features]
        keys = [[key.name, list(key.values)] for key in self.segments]
        return {
            "kind": self.kind,
            "features": features,
            "segments": keys,
            "statistics": list(self.statistics),
        }

    @staticmethod
    def from_json(data: Json) -> Layout:
        """Rebuild from `to_json`."""
        features = tuple(
            Feature(name, tuple(edges), tuple(values), center, scale)
            for name, edges, values, center, scale in data["features"]
        )
        keys = tuple(SegmentKey(name, tuple(values)) for name, values in data["segments"])
        return Layout(data["kind"], features, keys, tuple(data["statistics"]))


@dataclass(frozen=True)
class Summary:
    """Counts of a window's rows, by a layout. Merging is adding."""

    layout: Layout
    values: Floats
    """All counts and sums, shape [sum of layout.sizes]."""

    @property
    def rows(self) -> float:
        """Rows of the window."""
        return float(self.values[0])

    def parts(self) -> Parts:
        """The same as named arrays (views)."""
        return split(self.layout, self.values)

    def to_json(self) -> list[float]:
        """Plain JSON; the layout is kept once, elsewhere."""
        return [float(value) for value in self.values]

    @staticmethod
    def from_json(layout: Layout, data: Sequence[float]) -> Summary:
        """Rebuild from `to_json`."""
        values = np.array(data, dtype=np.float64)
        assert len(values) == sum(layout.sizes), "the summary was made by another layout"
        return Summary(layout, values)


@dataclass(frozen=True)
class Parts:
    """Named views of a summary's array; F features, S segments, X statistics."""

    rows: float
    bins_FB: Floats
    """Rows in each bin."""
    missing_F: Floats
    sums_F2: Floats
    """Sum and sum of squares of the standardised, clipped values."""
    rows_S: Floats
    sums_SF: Floats
    """Sum of each standardised feature inside each segment; a missing value adds nothing."""
    statistics_X: Floats
    """Sum over the merged windows ..."""
    counted_X: Floats
    """... and how many of them had the statistic."""


def split(layout: Layout, values: Floats) -> Parts:
    """Cut a summary's array into its parts."""
    f = len(layout.features)
    rows, counts, sums, rows_S, sums_SF, statistics, counted = np.split(values, np.cumsum(layout.sizes)[:-1])
    counts_FB = counts.reshape(f, BINS + 1)
    return Parts(
        float(rows[0]),
        counts_FB[:, :BINS],
        counts_FB[:, BINS],
        sums.reshape(f, 2),
        rows_S,
        sums_SF.reshape(len(rows_S), f),
        statistics,
        counted,
    )


def summarise(
    layout: Layout,
    columns: Columns,
    segments: Columns | None = None,
    statistics: Mapping[str, float] | None = None,
) -> Summary:
    """Summarise a window's rows.

    Args:
        layout: What is counted.
        columns: Columns by name. One that is absent is counted nowhere: no evidence for or against drift.
        segments: Columns of the segment keys, by name; an absent one counts nothing.
        statistics: What the chosen detectors found in this window; NaN or absent counts nothing.
    """
    given = [columns[f.name] for f in layout.features if f.name in columns]
    rows = len(given[0]) if given else 0
    assert all(len(values) == rows for values in given), "columns differ in length"
    values = np.zeros(sum(layout.sizes))
    values[0] = rows
    parts = split(layout, values)
    codes = _segment_codes(layout, segments or {}, parts)
    for index, feature in enumerate(layout.features):
        if feature.name in columns and rows:
            _count(feature, columns[feature.name], index, parts, codes)
    for index, name in enumerate(layout.statistics):
        found = (statistics or {}).get(name, np.nan)
        if np.isfinite(found):
            parts.statistics_X[index], parts.counted_X[index] = found, 1.0
    return Summary(layout, values)


def merge(summaries: Sequence[Summary]) -> Summary:
    """Summary of all rows of several windows of one layout."""
    layout = summaries[0].layout
    assert all(one.layout == layout for one in summaries), "summaries of different layouts"
    return Summary(layout, np.sum([one.values for one in summaries], axis=0))


def as_column(values: Sequence[Any]) -> npt.NDArray[Any]:
    """A column of Python values: text if any value is text (None is ""), else float64 (None is NaN)."""
    if any(isinstance(value, str) for value in values):
        return np.array(["" if value is None else str(value) for value in values], dtype=np.str_)
    return np.array([np.nan if value is None else float(value) for value in values], dtype=np.float64)


def as_text(values: npt.NDArray[Any]) -> npt.NDArray[np.str_]:
    """A segment key as text: numbers by their shortest form, missing ones as ""."""
    if values.dtype.kind == "U":
        return values
    numbers, inverse = np.unique(values.astype(np.float64), return_inverse=True)
    names = np.array(["" if np.isnan(number) else f"{number:g}" for number in numbers], dtype=np.str_)
    found: npt.NDArray[np.str_] = names[inverse]
    return found


def _fit(name: str, values: npt.NDArray[Any]) -> Feature:
    if values.dtype.kind == "U":
        known = _frequent(values, BINS - 1)
        bins = _code(known, values)
        bins = bins[bins >= 0].astype(np.float64)
        center, scale = (float(bins.mean()), float(bins.std())) if len(bins) else (0.0, 1.0)
        return Feature(name, (), known, center, scale or 1.0)
    numbers = values.astype(np.float64)
    numbers = numbers[np.isfinite(numbers)]
    if not len(numbers):
        return Feature(name, (0.0,), (), 0.0, 1.0)
    edges = np.unique(np.quantile(numbers, np.arange(1, BINS) / BINS, method="inverted_cdf"))
    low, high = np.quantile(numbers, [0.001, 0.999], method="inverted_cdf")
    inside = np.clip(numbers, low, high)
    center, scale = float(inside.mean()), float(inside.std())
    # A constant has no scale of its own: any other value is then far away.
    floor = 1e-9 * max(abs(center), 1.0)
    return Feature(name, tuple(map(float, edges)), (), center, max(scale, floor))


def _frequent(values: npt.NDArray[Any], size: int) -> tuple[str, ...]:
    names, counts = np.unique(values[values != ""], return_counts=True)
    order = np.lexsort((names, -counts))[:size]
    return tuple(str(name) for name in names[order])


def _hash(values: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    """A 64-bit hash of each text, the same whatever the array's width; "" is 0."""
    values = np.ascontiguousarray(values)
    width = values.dtype.itemsize // 4
    hashed = np.zeros(len(values), dtype=np.uint64)
    if not width or not len(values):
        return hashed
    letters = values.view(np.uint32).reshape(len(values), width)
    for place in range(min(width, len(_MULTIPLIERS))):
        hashed += letters[:, place] * _MULTIPLIERS[place]
    return hashed


def _code(known: tuple[str, ...], values: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Place of each value in `known`; len(known) for another one, -1 for a missing one."""
    hashed = _hash(values)
    if not known:
        return np.where(hashed == 0, -1, 0)
    wanted, order = _hashes(known)
    place = np.minimum(np.searchsorted(wanted, hashed), len(known) - 1)
    codes = np.where(wanted[place] == hashed, order[place], len(known))
    codes[hashed == 0] = -1
    return codes


@functools.lru_cache(maxsize=2000)
def _hashes(known: tuple[str, ...]) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
    """Hashes of known values in their order, and the place of each in `known`."""
    wanted = _hash(np.array(known, dtype=np.str_))
    order = np.argsort(wanted)
    return wanted[order], order


def _segment_codes(layout: Layout, segments: Columns, parts: Parts) -> list[npt.NDArray[np.int64]]:
    """Segment number of each row by each key that is given; counts the rows of each segment."""
    codes, offset = [], 0
    for key in layout.segments:
        size = len(key.values) + 1
        if key.name in segments and len(segments[key.name]):
            code = _code(key.values, as_text(segments[key.name]))
            code[code < 0] = size - 1
            codes.append(code + offset)
            parts.rows_S[offset : offset + size] = np.bincount(code, minlength=size)
        offset += size
    return codes


def standardised(feature: Feature, values: npt.NDArray[Any]) -> Floats:
    """Values in standard deviations of the reference, clipped; NaN where missing. Categories by their bin."""
    if feature.is_number:
        numbers = values.astype(np.float64)
        numbers = np.where(np.isfinite(numbers), numbers, np.nan)
        reach = CLIP * feature.scale
        kept = np.clip(numbers, feature.center - reach, feature.center + reach)
        found: Floats = (kept - feature.center) / feature.scale
        return found
    code = _code(feature.values, values)
    return np.where(code < 0, np.nan, (code - feature.center) / feature.scale)


def _count(
    feature: Feature,
    values: npt.NDArray[Any],
    index: int,
    parts: Parts,
    codes: list[npt.NDArray[np.int64]],
) -> None:
    """Add one column to the counts, piece by piece so that a piece stays in the processor's cache."""
    binned = _bin_numbers if feature.is_number else _bin_categories
    for start in range(0, len(values), PIECE):
        piece = slice(start, start + PIECE)
        bins, standard, there = binned(feature, values[piece])
        parts.bins_FB[index] += np.bincount(bins, minlength=BINS)
        parts.sums_F2[index] += standard.sum(), np.dot(standard, standard)
        for code in codes:
            inside = np.bincount(code[piece] if there is None else code[piece][there], weights=standard)
            parts.sums_SF[: len(inside), index] += inside
    parts.missing_F[index] = len(values) - parts.bins_FB[index].sum()


Binned = tuple[npt.NDArray[np.int64], Floats, npt.NDArray[np.bool_] | None]
"""Bins and standardised values of what is there, and where that is; None for everywhere."""


def _bin_numbers(feature: Feature, values: npt.NDArray[Any]) -> Binned:
    kept = values.astype(np.float64, copy=False)
    there = None
    if not np.isfinite(np.dot(kept, kept)):  # cheaper than looking at each; large values only cost the look
        there = np.isfinite(kept)
        kept = kept[there]
    reach = CLIP * feature.scale
    standard = np.clip(kept, feature.center - reach, feature.center + reach)
    standard -= feature.center
    standard /= feature.scale
    cells = _cells(feature)
    if cells is None:
        return np.searchsorted(feature.edges, kept), standard, there
    below, edge = cells
    cell = _cell(standard)
    bins = below[cell]
    bins += kept > edge[cell]
    return bins, standard, there


def _bin_categories(feature: Feature, values: npt.NDArray[Any]) -> Binned:
    code = _code(feature.values, values)
    there = None
    if code.min() < 0:
        there = code >= 0
        code = code[there]
    return code, (code - feature.center) / feature.scale, there


def _cell(standard: Floats) -> npt.NDArray[np.int64]:
    cell: npt.NDArray[np.int64] = ((standard + CLIP) * CELLS_A_DEVIATION).astype(np.int64)
    return cell


@functools.lru_cache(maxsize=2000)
def _cells(feature: Feature) -> tuple[npt.NDArray[np.int64], Floats] | None:
    """Edges below each cell of a fine even grid, and the one inside it: a bin is found without a search.

    The bins are exactly those of the search: cells grow with the values, so that all edges of lower cells are
    below a value, and the one of its own cell is compared. None if two edges share a cell.
    """
    edges = np.array(feature.edges)
    reach = CLIP * feature.scale
    clipped = np.clip(edges, feature.center - reach, feature.center + reach)
    cell = _cell((clipped - feature.center) / feature.scale)
    if len(np.unique(cell)) < len(cell):
        return None
    size = int(2 * CLIP * CELLS_A_DEVIATION) + 1
    edge = np.full(size, np.inf)
    edge[cell] = edges
    return np.searchsorted(cell, np.arange(size)), edge
