"""Why the newest live block of time differs: gathers the stream for diagnosis, and what is known beside it.

The stream is landed rows until live answers begin, and a sample of the live answers from then on. It is cut
backwards from the newest answer into pieces as long as a block, so that all hold the same hours of the day.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from ctrain.features import Column
from ctrain.monitoring.diagnosis import Events, Frame, diagnose
from ctrain.monitoring.rows import Floats, Rows, columns_of, joined
from ctrain.monitoring.samples import Sampled
from ctrain.records import Diagnosis, KnownFacts

PIECES = 28
"""Pieces before the newest one that are looked at."""


def live_rows(sampled: Sequence[Sampled], labels: Floats, columns: Mapping[str, Column]) -> Rows:
    """Sampled live answers as rows.

    Args:
        sampled: In the order of time.
        labels: Of each, NaN where none has come.
        columns: Raw columns that are compared.
    """
    rows = [json.loads(one.features) for one in sampled]
    values, times = (np.array(column, np.float64) for column in _two(sampled))
    return Rows(columns_of(rows, columns), values, labels, times)


def why_it_moved(
    landed: Iterable[Rows],
    live: Rows,
    length: float,
    facts: KnownFacts,
    unlabelled: float | None,
    previous: Floats | None = None,
    skewed: float = 0.0,
    seed: int = 0,
) -> Diagnosis:
    """Diagnose the newest piece of the stream.

    Args:
        landed: Landed partitions as the champion meets them, oldest first.
        live: Sample of the live answers, in the order of time; at least one.
        length: Of a piece, in seconds.
        facts: What the controller knows of sources and promotions.
        unlabelled: Share of the matured answers that got no label; None if none matured.
        previous: What the champion before would have answered to the live rows, NaN where it was not asked.
        skewed: Share of the window's answers that the batch path computes otherwise.
        seed: Of the draws of rows.
    """
    end, begin = float(live.times[-1]), float(live.times[0])
    before = [rows for rows in (rows.at(rows.times < begin) for rows in landed) if len(rows)]
    stream = joined([*before, live])
    pieces = np.ceil((end - stream.times) / length - 1e-9).clip(min=1).astype(np.int64)
    first = min(int(pieces.max()), PIECES + 1)
    frames = [_frame(stream.at(pieces == number)) for number in range(first, 0, -1)]
    if previous is not None and np.isfinite(previous).any():
        shadow = np.concatenate([np.full(len(stream) - len(live), np.nan), previous])
        frames[-1] = replace(frames[-1], previous=shadow[pieces == 1])
    ago = None if facts.promoted_ago is None else int(facts.promoted_ago // length)
    events = Events(
        schema_changes=facts.schema_changes,
        refused_share=facts.refused_share,
        usual_refused_share=facts.usual_refused_share,
        promoted_windows_ago=ago if ago is not None and ago < PIECES else None,
        unlabelled_share=unlabelled,
        skewed_share=skewed,
    )
    return diagnose(frames[-1], [one for one in frames[:-1] if one.rows], events, seed)


def _frame(rows: Rows) -> Frame:
    return Frame(rows.columns, rows.labels, rows.values)


def _two(sampled: Sequence[Sampled]) -> tuple[list[float], list[float]]:
    return [one.value for one in sampled], [one.time for one in sampled]
