"""Logged answers as the rooms of monitoring take them, batch by batch, and a window's bounded samples."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ctrain.features import Column
from ctrain.monitoring.rows import Rows, columns_of
from ctrain.monitoring.sample import Sample
from ctrain.monitoring.samples import Sampled
from ctrain.monitoring.scores import Scored, Scores, Shadowed
from ctrain.monitoring.skew import SAMPLE
from ctrain.records import WindowRequest
from ctrain.spec import PipelineSpec

LATENCIES = 100_000
"""Requests of a window at most that its latency is computed from."""

ROWS = 50_000
"""Rows of a window at most that drift is judged on."""

COLUMNS = ("prediction_id", "time", "slot", "version", "value", "latency", "features")
"""Of the log, as they are read here."""


def told_apart(batch: pa.RecordBatch) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    """Answers, and what shadows would have answered."""
    is_shadow = pc.equal(batch.column("slot"), "shadow")
    return batch.filter(pc.invert(is_shadow)), batch.filter(is_shadow)


def scored_of(answers: pa.RecordBatch, spec: PipelineSpec) -> Iterator[Scored]:
    """Answers with their event time and segments, to wait for labels."""
    names = ("prediction_id", "time", "features", "slot", "value", "version")
    columns = (answers.column(name).to_pylist() for name in names)
    wanted = spec.monitoring.segments
    for name, time, features, slot, value, version in zip(*columns, strict=True):
        row = json.loads(features)
        event = seconds_of(row.get(spec.source.event_time))
        segments = json.dumps({one: text_of(row.get(one)) for one in wanted}) if wanted else "{}"
        yield Scored(name, time, event, slot == "champion", value, version, segments)


def sampled_of(scored: Iterable[Scored], answers: pa.RecordBatch) -> Iterator[Sampled]:
    """The champion's answers: what a challenger gave says nothing of how the stream is answered."""
    for one, features in zip(scored, answers.column("features").to_pylist(), strict=True):
        if one.champion:
            time = one.time if one.event is None else one.event
            yield Sampled(one.prediction_id, time, one.value, features)


def shadowed_of(shadows: pa.RecordBatch) -> Iterator[Shadowed]:
    """What shadows would have answered, to be compared with the answers under the same ids."""
    columns = (shadows.column(name).to_pylist() for name in Shadowed._fields)
    return itertools.starmap(Shadowed, zip(*columns, strict=True))


class WindowSamples:
    """What is kept of a window's answers: their number, and samples of latencies, features and answers."""

    def __init__(self, request: WindowRequest, spec: PipelineSpec) -> None:
        self._start, self._end = request.start, request.end
        self._latencies, self._rows, self._answers = Sample(LATENCIES), Sample(ROWS), Sample(SAMPLE)
        self._newest = (0.0, 0.0)
        self.rows = 0

    def add(self, batch: pa.RecordBatch) -> None:
        """Take answers; those before the window's start are left out."""
        table = pa.Table.from_batches([batch])
        table = table.filter(pa.array(table.column("time").to_numpy() >= self._start))
        if not table.num_rows:
            return
        self.rows += table.num_rows
        self._latencies.offer(table.select(["latency"]).filter(pa.array(self._first_rows(table))))
        self._rows.offer(table.select(["prediction_id", "value", "features"]))
        self._answers.offer(table.select(["version", "value", "features"]))

    @property
    def answers(self) -> pa.Table | None:
        """Some answers of whatever version; None without any."""
        return self._answers.rows

    def latency(self) -> dict[str, float]:
        """Quantiles in seconds of the time inside the model that answered, one a request.

        A challenger that failed before the champion answered in its place is not in it.
        """
        if self._latencies.rows is None:
            return {}
        seconds = self._latencies.rows.column("latency").to_numpy()
        found = np.quantile(seconds, [0.5, 0.9, 0.99])
        return dict(zip(("p50", "p90", "p99"), map(float, found), strict=True))

    def live_rows(self, columns: Mapping[str, Column], spec: PipelineSpec, scores: Scores) -> Rows:
        """A sample of its rows, with the labels that have come."""
        assert self._rows.rows is not None, "a window with rows"
        names, values, texts = (self._rows.rows.column(at) for at in range(3))
        rows = [json.loads(text) for text in texts.to_pylist()]
        times = [seconds_of(row.get(spec.source.event_time)) for row in rows]
        return Rows(
            columns_of(rows, columns),
            values.to_numpy(),
            scores.labels_of(names.to_pylist(), self._end),
            np.array([np.nan if time is None else time for time in times], np.float64),
        )

    def _first_rows(self, table: pa.Table) -> npt.NDArray[np.bool_]:
        """Which rows begin a request: those of one stand together, all with its time and latency."""
        times, seconds = (table.column(name).to_numpy() for name in ("time", "latency"))
        pairs = np.column_stack([times, seconds])
        before = np.vstack([[self._newest], pairs[:-1]])
        self._newest = (times[-1], seconds[-1])
        first: npt.NDArray[np.bool_] = (pairs != before).any(axis=1)
        return first


def seconds_of(moment: Any) -> float | None:
    """A request's timestamp as seconds since 1970; None where it is no timestamp."""
    if not isinstance(moment, str):
        return None
    try:
        parsed = datetime.fromisoformat(moment)
    except ValueError:
        return None
    return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()


def text_of(value: Any) -> str:
    """A segment's value: numbers by their shortest form, "" where it is missing."""
    if value is None:
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)
