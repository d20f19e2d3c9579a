"""Statistics of the inputs, feature by feature, of each window against the windows before it. No labels.

The windows are coded once: a number falls into a bin of the pooled past (its own value, where it has few),
a text into its level, a missing value into a bin of its own. Every statistic is an array over windows
and features, so that the judged window (the last one) can be compared with what was usual (calibration).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from ctrain.monitoring.diagnosis.frames import Floats, Frame, is_missing

BINS = 24
"""Bins of a feature; one more holds missing values, and one what the past never had."""
MISSING, OTHER = BINS, BINS + 1
SEVERAL = 3
"""Distinct values, and new ones among them, without which a number's new values tell nothing."""
GROWN, GROWN_FLOOR = 4.0, 0.03
"""Times the largest share of any earlier window, and shares beyond it, from which a value has grown: rows of
a half that are all that is left are two to three times as many as before."""
CODES = 60
"""Distinct values up to which a number is a code or a count, of which each value has a share of its own."""
NEAR = 0.25
"""Part of the earlier range by which seasons and growth may widen it: what lies so near it is no fault."""


POWERS = (-3, -2, -1, 1, 2, 3)
FAR, LIKE = 0.3, 1 / 3
"""Kolmogorov-Smirnov distance from which numbers may come from another scale; the part of it that is left
once they are put back."""
REFERENCE = 4
"""Windows before the judged one that its scale is compared with."""


@dataclass(frozen=True)
class Power:
    """A number that comes times a power of ten."""

    exponent: int
    distance: float
    """Of its distribution from that of the windows before."""
    left: float
    """The same once it is divided by the power."""


@dataclass(frozen=True)
class Inputs:
    """Windows, oldest first and the judged one last, as bins and as statistics over [window, feature]."""

    names: tuple[str, ...]
    codes: list[npt.NDArray[np.uint8]]
    """Bin of each value, shape [rows, features] for each window."""
    shares: Floats
    """Share of each bin, shape [windows, features, bins]."""
    missing: Floats
    """Share of missing values."""
    novel: Floats
    """Share of rows whose value no earlier window had. A number just outside their range does not count, nor
    does a number that hardly changes within a window (a month, an index that is published once a month)."""
    beyond: Floats
    """Share of rows far outside the range of all earlier windows; 0 for text."""
    grown: Floats
    """Share of rows whose value's share is far above any earlier window's; 0 for measures. To draw other rows
    multiplies a share by a few; a unit, a scale and a value that repeats make it out of nothing."""
    run: Floats
    """Longest run of one value, as a share of the rows."""
    surprise: Floats
    """Of the run that is the least to be expected: its length times -log(usual share of its value), over the
    log of the number of rows; about 1 where rows are independent."""
    powers: tuple[Power | None, ...]
    """By which power of ten the judged window's numbers differ from those before it, by feature."""
    text: npt.NDArray[np.bool_]
    """Which features are text, shape [features]."""
    levels: tuple[tuple[str, ...], ...]
    """What each bin stands for, by feature; empty where a bin holds several values."""


def read_inputs(windows: Sequence[Frame]) -> Inputs:
    """Code the windows and compute their statistics.

    Args:
        windows: Contiguous windows, oldest first; the last one is judged. A feature counts if the judged
            window has it; where an earlier one lacks it, it was missing there.
    """
    names = tuple(windows[-1].columns)
    starts = np.concatenate([[0], np.cumsum([window.rows for window in windows])])
    number = np.repeat(np.arange(len(windows)), np.diff(starts))
    shape = len(windows), len(names)
    missing, novel, beyond, grown, run, surprise = (np.zeros(shape) for _ in range(6))
    codes = np.zeros((int(starts[-1]), len(names)), np.uint8)
    text = np.zeros(len(names), np.bool_)
    meaning: list[tuple[str, ...]] = []
    powers: list[Power | None] = []
    recent = slice(int(starts[max(len(windows) - 1 - REFERENCE, 0)]), int(starts[-2]))
    for column, name in enumerate(names):
        values = _pooled(windows, name)
        text[column] = values.dtype.kind == "U"
        absent = is_missing(values)
        levels, place = np.unique(values[~absent], return_inverse=True)
        first = np.full(len(levels), len(windows))
        np.minimum.at(first, place, number[~absent])
        full = np.full(len(values), -1)
        full[~absent] = place
        missing[:, column] = _share(absent, number, starts)
        fresh = np.zeros(len(values), np.bool_)
        fresh[~absent] = first[place] == number[~absent]
        if not text[column]:
            outside, far = _outside(values, absent, starts)
            several = (np.bincount(first, minlength=len(windows)) >= SEVERAL)[number]
            several &= bool(np.median(_distinct(full, starts)[:-1]) >= SEVERAL)
            # no season moves most values out of all that was, unless it is the number of a month itself
            far |= outside & several & (_share(outside & ~absent, number, starts)[number] > 0.5)
            fresh &= several & ~outside | far
            beyond[:, column] = _share(far, number, starts)
        powers.append(None if text[column] else _power(values[starts[-2] :], values[recent]))
        novel[:, column] = _share(fresh, number, starts)
        if text[column] or len(levels) <= CODES:
            grown[:, column] = _grown(place, number[~absent], starts)
        known = full[: starts[-2]]
        usual = np.bincount(known[known >= 0], minlength=len(levels)) + 0.5
        rarity = -np.log(np.minimum(usual / (starts[-2] + 1), 1 - 1e-6))
        for index, (a, b) in enumerate(pairwise(starts)):
            run[index, column], surprise[index, column] = _longest_run(full[a:b], rarity)
        codes[:, column], named = _code(values, absent, levels, full, first, starts)
        meaning.append(named)
    split = np.split(codes, starts[1:-1])
    shares = np.stack([shares_of(part) for part in split])
    return Inputs(
        names,
        split,
        shares,
        missing,
        novel,
        beyond,
        grown,
        run,
        surprise,
        tuple(powers),
        text,
        tuple(meaning),
    )


def _pooled(windows: Sequence[Frame], name: str) -> npt.NDArray[Any]:
    """One feature of all windows; of another kind than the judged window's it counts as missing."""
    kind = windows[-1].columns[name].dtype.kind
    parts = []
    for window in windows:
        values = window.columns.get(name)
        if values is None or (values.dtype.kind == "U") != (kind == "U"):
            values = np.full(window.rows, "" if kind == "U" else np.nan)
        parts.append(values if kind == "U" else values.astype(np.float64))
    return np.concatenate(parts)


def _share(flags: npt.NDArray[np.bool_], number: npt.NDArray[Any], starts: npt.NDArray[Any]) -> Floats:
    counts = np.bincount(number, weights=flags, minlength=len(starts) - 1)
    shares: Floats = counts / np.maximum(np.diff(starts), 1)
    return shares


def _grown(place: npt.NDArray[Any], number: npt.NDArray[Any], starts: npt.NDArray[Any]) -> Floats:
    """Share of the rows of each window whose value has grown; place and window of each present value."""
    windows, levels = len(starts) - 1, int(place.max(initial=-1)) + 1
    counts = np.bincount(number * levels + place, minlength=windows * levels).reshape(windows, levels)
    shares = counts / np.maximum(np.diff(starts), 1)[:, None]
    highest = np.maximum.accumulate(shares, axis=0)[:-1]
    grown = np.where(shares[1:] > GROWN * highest + GROWN_FLOOR, shares[1:], 0.0).sum(axis=1)
    found: Floats = np.concatenate([[0.0], grown])
    return found


def _distinct(places: npt.NDArray[Any], starts: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Number of distinct present values of each window."""
    found = [np.count_nonzero(np.bincount(places[a:b] + 1)[1:]) for a, b in pairwise(starts)]
    return np.array(found, np.int64)


def _outside(
    values: npt.NDArray[Any], absent: npt.NDArray[np.bool_], starts: npt.NDArray[Any]
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Which numbers lie outside the range of all earlier windows, and which of them far outside."""
    outside, far = np.zeros(len(values), np.bool_), np.zeros(len(values), np.bool_)
    low, high = np.inf, -np.inf
    for a, b in pairwise(starts):
        now, there = values[a:b], ~absent[a:b]
        if low <= high:
            near = NEAR * (high - low)
            outside[a:b] = there & ((now < low) | (now > high))
            far[a:b] = there & ((now < low - near) | (now > high + near))
        if there.any():
            low, high = min(low, now[there].min()), max(high, now[there].max())
    return outside, far


def _power(now: Floats, before: Floats) -> Power | None:
    """The power of ten that numbers came times of, if dividing by it makes them what they were."""
    now, before = now[np.isfinite(now)], before[np.isfinite(before)]
    if not len(now) or not len(before):
        return None
    distance = _smirnov(now, before)
    if distance < FAR:
        return None
    left, exponent = min((_smirnov(now / 10.0**power, before), power) for power in POWERS)
    return Power(exponent, distance, left) if left < LIKE * distance else None


def _smirnov(one: Floats, other: Floats) -> float:
    """Kolmogorov-Smirnov distance; values that differ by rounding alone are the same."""
    one, other = np.sort(one), np.sort(other)
    at = np.concatenate([one, other])
    at = at + 1e-9 * np.abs(at)
    below = np.searchsorted(one, at, "right") / len(one) - np.searchsorted(other, at, "right") / len(other)
    return float(np.abs(below).max())


def _longest_run(places: npt.NDArray[Any], rarity: Floats) -> tuple[float, float]:
    """The most surprising run of one value (missing ones break it): share of the rows, and its surprise."""
    if not len(places):
        return 0.0, 0.0
    breaks = np.flatnonzero(np.diff(places) != 0) + 1
    starts = np.concatenate([[0], breaks])
    lengths, values = np.diff(np.concatenate([starts, [len(places)]])), places[starts]
    lengths, values = lengths[values >= 0], values[values >= 0]
    if not len(lengths):
        return 0.0, 0.0
    surprises = lengths * rarity[values]
    worst = int(np.argmax(surprises))
    return float(lengths[worst] / len(places)), float(surprises[worst] / np.log(len(places) + 1))


def _code(
    values: npt.NDArray[Any],
    absent: npt.NDArray[np.bool_],
    levels: npt.NDArray[Any],
    place: npt.NDArray[Any],
    first: npt.NDArray[Any],
    starts: npt.NDArray[Any],
) -> tuple[npt.NDArray[np.uint8], tuple[str, ...]]:
    """Bins by the past alone: what the judged window brings new falls into `OTHER`, or a number's end bin."""
    past = place[: starts[-2]]
    known = first < len(starts) - 2
    named: tuple[str, ...] = ()
    codes = np.full(len(values), OTHER, np.uint8)
    if known.sum() <= BINS or values.dtype.kind == "U":
        counts = np.bincount(past[past >= 0], minlength=len(levels))
        kept = np.sort(np.argsort(-counts, kind="stable")[:BINS])
        bins = np.full(len(levels), OTHER, np.uint8)
        bins[kept] = np.arange(len(kept))
        bins[~known] = OTHER
        codes[~absent] = bins[place[~absent]]
        named = tuple(f"{level:g}" if values.dtype.kind == "f" else str(level) for level in levels[kept])
    else:
        edges = np.quantile(levels[past[past >= 0]], np.linspace(0, 1, BINS + 1)[1:-1])
        codes[~absent] = np.searchsorted(edges, values[~absent], side="right")
    codes[absent] = MISSING
    return codes, named


def shares_of(codes: npt.NDArray[np.uint8]) -> Floats:
    """Share of each bin, shape [features, bins]."""
    features, bins = codes.shape[1], OTHER + 1
    flat = codes.astype(np.int64) + bins * np.arange(features)
    counts = np.bincount(flat.ravel(), minlength=features * bins).reshape(features, bins)
    shares: Floats = counts / max(len(codes), 1)
    return shares


def distances(one: Floats, other: Floats, text: npt.NDArray[np.bool_]) -> Floats:
    """How far two windows' present values are apart: Kolmogorov-Smirnov (numbers), total variation (text).

    Args:
        one: Shares of bins, shape [..., features, bins].
        other: The same, of the same or a broadcast shape.
        text: Which features are text.
    """
    here, there = _present(one), _present(other)
    total = np.abs(here - there).sum(axis=-1) / 2
    order = np.abs(np.cumsum(here - there, axis=-1)).max(axis=-1)
    found: Floats = np.where(text, total, order)
    return found


def _present(shares: Floats) -> Floats:
    kept = np.delete(shares, MISSING, axis=-1)
    present: Floats = kept / np.maximum(kept.sum(axis=-1, keepdims=True), 1e-12)
    return present
