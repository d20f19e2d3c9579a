"""Which segments a search judges: by their rows and blocks alone, never by what it would find there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from ctrain.evaluation.segment_keys import Codes, SegmentKey


@dataclass(frozen=True, slots=True)
class SearchLimits:
    """What bounds a search."""

    minimum_rows: int = 100
    """Rows of a segment below which it is not judged."""
    minimum_blocks: int = 7
    """Blocks with rows of the segment below which it is not judged."""
    most_segments: int = 500
    """Segments judged: single keys first, then the largest pairs."""
    most_blocks: int = 1000
    pairs: bool = True
    resamples: int = 2000


@dataclass(frozen=True, slots=True)
class Family:
    """All segments of one key or of a pair of keys."""

    keys: tuple[SegmentKey, ...]

    @property
    def size(self) -> int:
        """Number of combinations of values."""
        return int(np.prod([len(key.values) for key in self.keys]))

    def codes(self) -> Codes:
        """Number of each row's combination, shape [B]."""
        first, *others = self.keys
        codes = first.codes
        for key in others:
            codes = codes * len(key.values) + key.codes
        return codes

    def name(self, code: int) -> str:
        """Name of a combination, e.g. `carrier=UA & origin=EWR`."""
        parts: list[str] = []
        for key in reversed(self.keys):
            code, value = divmod(code, len(key.values))
            parts.insert(0, key.segment(value))
        return " & ".join(parts)


@dataclass(frozen=True, slots=True)
class Chosen:
    """Segments of one family that are judged."""

    family: Family
    codes: Codes
    rows: Codes
    blocks: Codes

    def places(self) -> Codes:
        """Place of each row's segment among the judged ones, -1 if it is none of them; shape [B]."""
        place = np.full(self.family.size, -1)
        place[self.codes] = np.arange(len(self.codes))
        return place[self.family.codes()]


def choose(
    keys: Sequence[SegmentKey], day: Codes, blocks: int, limits: SearchLimits
) -> tuple[list[Chosen], list[tuple[str, int, int]], dict[str, int]]:
    """Segments to judge, single ones that are too small, and how many were left out by reason.

    Args:
        keys: What cuts the rows into segments; all have the same rows.
        day: Number of each row's block, from 0 on, shape [B].
        blocks: Number of blocks.
        limits: What bounds the search.
    """
    chosen: list[Chosen] = []
    small: list[tuple[str, int, int]] = []
    left_out = {"too_few_rows_or_blocks": 0, "same_rows_as_a_wider_segment": 0, "over_the_limit": 0}
    sizes: dict[str, Codes] = {}
    for family in _families(keys, limits.pairs):
        counts = np.bincount(family.codes() * blocks + day, minlength=family.size * blocks)
        counts = counts.reshape(family.size, blocks)
        rows, seen = counts.sum(axis=1), (counts > 0).sum(axis=1)
        enough = (rows >= limits.minimum_rows) & (seen >= limits.minimum_blocks)
        left_out["too_few_rows_or_blocks"] += int(((rows > 0) & ~enough).sum())
        if len(family.keys) == 1:
            sizes[family.keys[0].name] = rows
            too_small = np.flatnonzero((rows > 0) & ~enough)
            small += [(family.name(code), int(rows[code]), int(seen[code])) for code in too_small.tolist()]
        else:
            repeated = enough & _repeated(family, rows, sizes)
            left_out["same_rows_as_a_wider_segment"] += int(repeated.sum())
            enough &= ~repeated
        codes = np.flatnonzero(enough)
        chosen.append(Chosen(family, codes, rows[codes], seen[codes]))
    chosen, over = _largest(chosen, limits.most_segments)
    left_out["over_the_limit"] = over
    return chosen, small, {reason: count for reason, count in left_out.items() if count}


def _families(keys: Sequence[SegmentKey], pairs: bool) -> Iterator[Family]:
    yield from (Family((key,)) for key in keys)
    if pairs:
        yield from (Family(pair) for pair in combinations(keys, 2))


def _repeated(family: Family, rows: Codes, sizes: dict[str, Codes]) -> npt.NDArray[np.bool_]:
    """Which pairs hold the very rows of one of their two values."""
    one, other = (sizes[key.name] for key in family.keys)
    table = rows.reshape(len(one), len(other))
    same: npt.NDArray[np.bool_] = ((table == one[:, None]) | (table == other[None, :])).ravel()
    return same


def _largest(chosen: list[Chosen], room: int) -> tuple[list[Chosen], int]:
    """The segments that fit: values of single keys before pairs, and among each the largest."""
    rows = np.concatenate([each.rows for each in chosen]) if chosen else np.empty(0, np.int64)
    if len(rows) <= room:
        return chosen, 0
    paired = np.concatenate([np.full(len(each.codes), len(each.family.keys)) for each in chosen])
    kept = np.zeros(len(rows), bool)
    kept[np.lexsort((-rows, paired))[:room]] = True
    result, start = [], 0
    for each in chosen:
        mine = kept[start : start + len(each.codes)]
        result.append(Chosen(each.family, each.codes[mine], each.rows[mine], each.blocks[mine]))
        start += len(each.codes)
    return result, len(rows) - room
