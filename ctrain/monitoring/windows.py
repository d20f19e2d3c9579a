"""Windows of live traffic: join predictions with labels, score them, watch for drift.

`summarise` is the room's door and runs in a Ray task; `judge_window` is what it does with the logs. Rows,
latency and drift are those of the answers of the window; metrics are those of the champion's answers that
became ready in it: labelled, and mature by the pipeline's rule (`matures_after` after the event). The
champion is the one that answered then: where labels come later than promotions, the present one has none.
An answer whose label comes after the label horizon, or that the log lost, counts in no window.

The log is read batch by batch, each answer once; what is kept of it is bounded (`scores`, `sample`). What
no label reaches any more is deleted once a window. Some answers of the window, a challenger's too, are
computed again in batch (`skew`).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ctrain.evaluation import binary_metrics
from ctrain.evaluation.evidence import block_statistics
from ctrain.features import Column
from ctrain.monitoring.cause import PIECES, live_rows, why_it_moved
from ctrain.monitoring.monitors import Monitors
from ctrain.monitoring.rows import Floats, Landed, Rows, columns_of, watched_columns
from ctrain.monitoring.sample import Sample
from ctrain.monitoring.samples import BlockSamples, Sampled
from ctrain.monitoring.scores import Mark, PairedRows, Ready, Scored, Scores, Shadowed, whole
from ctrain.monitoring.skew import SAMPLE, BatchPath, Compute, check_skew
from ctrain.monitoring.truth import BLOCKS
from ctrain.records import Diagnosis, DriftReport, ModelVersion, ShadowBlock, WindowReport, WindowRequest
from ctrain.registry import read_version
from ctrain.serving.labels import LabelStore
from ctrain.serving.prediction_log import forget_log, scan_log
from ctrain.spec import PipelineSpec, parse_spec
from ctrain.storage import Root, open_root
from ctrain.telemetry import metrics

KEPT_BEYOND_HORIZON = 86400.0
"""Seconds that logs are kept longer than a label may come."""

LATENCIES = 100_000
"""Requests of a window at most that its latency is computed from."""

ROWS = 50_000
"""Rows of a window at most that drift is judged on."""

REFERENCE_ROWS = 200_000
"""Landed rows at most that the monitors begin with, spread over the partitions."""

REFERENCE_PARTITIONS = 60
"""Newest partitions of the champion's training data that they are drawn from."""

BLOCK_ROWS = 30
"""Rows below which a block of mirrored requests says nothing."""

_COLUMNS = ("prediction_id", "time", "slot", "version", "value", "latency", "features")


def summarise(request: WindowRequest) -> WindowReport:
    """Summarise one window; runs inside a Ray task that has the user's code."""
    spec = parse_spec(request.spec)
    root = Root(Path(request.root), open_root(request.root).store)
    folder = root.pipeline(request.pipeline).log
    # First, since nothing may fail once the window has been judged and its answers are counted.
    forget(folder, request.end, spec.label.horizon)
    with closing(LabelStore(folder)) as labels:
        metrics.LATE_LABELS.put(labels.late(request.start, request.end), pipeline=request.pipeline)
    return judge_window(request, spec, folder, LandedReference(request, root, spec), BatchPath(root))


class Reference(Protocol):
    """What the champion was trained on."""

    @property
    def columns(self) -> Mapping[str, Column]:
        """Raw columns of its requests that are compared."""
        ...

    def landed(self) -> Iterable[Rows]:
        """Rows of its landed partitions, oldest first, bounded."""
        ...


class LandedReference:
    """The reference as it lies in the tables; nothing is read before it is asked for."""

    def __init__(self, request: WindowRequest, root: Root, spec: PipelineSpec) -> None:
        self._request, self._root, self._spec = request, root, spec

    @cached_property
    def _version(self) -> ModelVersion:
        return read_version(self._root, self._request.champion)

    @property
    def columns(self) -> Mapping[str, Column]:
        """Raw columns of its requests that are compared."""
        return watched_columns(self._version)

    def landed(self) -> Iterable[Rows]:
        """Rows of its landed partitions, oldest first, bounded."""
        version, event_time = self._version, self._spec.source.event_time
        newest = version.partitions[-REFERENCE_PARTITIONS:]
        size = REFERENCE_ROWS // len(newest)
        random = np.random.default_rng(0)
        for rows in Landed(self._root, version, version.dataset_version, event_time).read_all(newest):
            if len(rows) > size:
                yield rows.at(np.sort(random.choice(len(rows), size, replace=False)))
            else:
                yield rows


def judge_window(
    request: WindowRequest,
    spec: PipelineSpec,
    folder: Path,
    reference: Reference,
    batch_path: Callable[[str], Compute],
) -> WindowReport:
    """Judge one window. The same request gives the same report, however often it is judged.

    Args:
        request: Its bounds.
        spec: Threshold, minimum of rows, drift's settings, rule of maturity.
        folder: Log folder of the pipeline.
        reference: What the champion was trained on; it is asked only where there are enough rows.
        batch_path: Gives what a version computes in batch (`skew.check_skew`).
    """
    LabelStore(folder).close()  # makes the file where no label ever came
    window = _Window(request, spec)
    with closing(Scores(folder)) as scores:
        samples = BlockSamples(scores.db, spec.monitoring.block)
        before = scores.before(request.end)
        begin = max(before.end, request.end - spec.label.horizon)
        for batch in scan_log(folder, begin, request.end, _COLUMNS):
            answers, shadows = _told_apart(batch)
            scored = list(_scored(answers, spec))
            scores.add(scored)
            samples.offer(_sampled(scored, answers))
            scores.add_shadows(_shadowed(shadows))
            window.add(answers)
        mark = _mark(request, spec, before)
        ready = scores.ready(before, mark)
        blocks = map(_block, scores.paired(before, mark, spec.monitoring.block))
        enough = window.rows >= spec.monitoring.minimum_rows
        report = WindowReport(
            start=request.start,
            end=request.end,
            rows=window.rows,
            labelled=ready.labelled,
            metrics=binary_metrics(ready.truths, ready.values, spec.evaluation.threshold),
            latency=window.latency(),
            state="judged" if enough else "not_enough_rows",
            pending_labels=ready.pending,
            orphan_labels=ready.orphans,
            blocks=tuple(block for block in blocks if block.rows >= BLOCK_ROWS),
            skew=check_skew(window.answers, batch_path) if window.answers is not None else None,
        )
        known = scores.monitors(request.end)
        monitors = Monitors.from_bytes(known, spec) if known is not None else None
        rows = window.live_rows(reference.columns, spec, scores) if enough else None
        if rows is not None and (monitors is None or monitors.champion != request.champion):
            monitors = Monitors.begin(spec, request.champion, rows, reference.landed, monitors)
        if monitors is not None:
            fresh = _newly_whole(before, mark, spec.monitoring.block)
            if len(fresh):
                recent = scores.recent(mark, spec.monitoring.block, BLOCKS)
                monitors.truth = monitors.truth.learned(recent, fresh, spec)
            report = replace(report, performance=monitors.truth.performance)
            if rows is not None:
                drift = monitors.update(rows, _matured(ready), spec)
                report = replace(report, drift=drift, estimate=monitors.truth.estimate(rows.values, spec))
                skew = report.skew
                begins = skew is not None and skew.state == "skewed" and not request.facts.skewed
                if begins or _asks_why(drift, fresh):
                    share = skew.share if skew is not None else 0.0
                    diagnosis = _diagnose(request, spec, scores, samples, ready, reference, share)
                    report = replace(report, diagnosis=diagnosis)
            scores.keep_monitors(request.end, monitors.to_bytes())
        samples.forget(request.end - spec.label.horizon)
        scores.commit()  # last: what a window that failed has seen is left to the next one
    return report


def forget(folder: Path, end: float, horizon: float) -> None:
    """Delete answers and labels that are older than any label that may still come.

    Args:
        folder: Log folder of the pipeline.
        end: Of the window, in seconds since 1970.
        horizon: The spec's label horizon, in seconds.
    """
    before = end - horizon - KEPT_BEYOND_HORIZON
    with closing(LabelStore(folder)) as labels, closing(Scores(folder)) as scores:
        scores.forget(before)
        scores.commit()
        labels.forget(before)
    forget_log(folder, before, end)


def _newly_whole(before: Mark, mark: Mark, length: float) -> Floats:
    """Starts of the blocks that became mature between two marks; of very many, the newest."""
    ends = [
        (whole(before.event_limit, length), whole(mark.event_limit, length)),
        (whole(before.clock_limit, length), whole(mark.clock_limit, length)),
    ]
    starts = [np.arange(max(first, last - BLOCKS * length), last, length) for first, last in ends]
    found: Floats = np.unique(np.concatenate(starts))
    return found


def _asks_why(drift: Iterable[DriftReport], fresh: Floats) -> bool:
    """Drift that begins is diagnosed at once, and one that goes on when a block of labels has come."""
    return any(one.alarm or (len(fresh) and one.state == "drift") for one in drift)


def _diagnose(
    request: WindowRequest,
    spec: PipelineSpec,
    scores: Scores,
    samples: BlockSamples,
    ready: Ready,
    reference: Reference,
    skewed: float,
) -> Diagnosis | None:
    """Why the newest block of live answers differs; None where none of them carries a time."""
    span = samples.span()
    if span is None:
        return None
    length = spec.monitoring.block
    sampled = list(samples.between(span[1] - (PIECES + 1) * length, span[1] + 1.0))
    names = [one.prediction_id for one in sampled]
    live = live_rows(sampled, scores.labels_of(names, request.end), reference.columns)
    previous = scores.shadows_of(names, request.facts.previous) if request.facts.previous else None
    matured = ready.labelled + ready.pending
    unlabelled = ready.pending / matured if matured else None
    return why_it_moved(reference.landed(), live, length, request.facts, unlabelled, previous, skewed)


def _matured(ready: Ready) -> Rows:
    """Answers whose truth is known now, with their segment columns alone."""
    objects = [json.loads(text) for text in ready.segments]
    names = sorted({name for one in objects for name in one})
    columns = {name: np.array([one.get(name, "") for one in objects], np.str_) for name in names}
    return Rows(columns, ready.values, ready.truths, ready.times)


class _Window:
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


def _mark(request: WindowRequest, spec: PipelineSpec, before: Mark) -> Mark:
    """What is mature at the window's end.

    By event time against the watermark, as for training data, where requests carry the event time;
    else by the time of the answer against the window's end. What was mature stays so, even if the spec
    now waits longer.
    """
    return Mark(
        request.end,
        max(before.event_limit, request.watermark - spec.label.matures_after),
        max(before.clock_limit, request.end - spec.label.matures_after),
    )


def _told_apart(batch: pa.RecordBatch) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    """Answers, and what shadows would have answered."""
    is_shadow = pc.equal(batch.column("slot"), "shadow")
    return batch.filter(pc.invert(is_shadow)), batch.filter(is_shadow)


def _scored(answers: pa.RecordBatch, spec: PipelineSpec) -> Iterator[Scored]:
    names = ("prediction_id", "time", "features", "slot", "value", "version")
    columns = (answers.column(name).to_pylist() for name in names)
    wanted = spec.monitoring.segments
    for name, time, features, slot, value, version in zip(*columns, strict=True):
        row = json.loads(features)
        event = seconds_of(row.get(spec.source.event_time))
        segments = json.dumps({one: text_of(row.get(one)) for one in wanted}) if wanted else "{}"
        yield Scored(name, time, event, slot == "champion", value, version, segments)


def _sampled(scored: Iterable[Scored], answers: pa.RecordBatch) -> Iterator[Sampled]:
    """The champion's answers: what a challenger gave says nothing of how the stream is answered."""
    for one, features in zip(scored, answers.column("features").to_pylist(), strict=True):
        if one.champion:
            time = one.time if one.event is None else one.event
            yield Sampled(one.prediction_id, time, one.value, features)


def _shadowed(shadows: pa.RecordBatch) -> Iterator[Shadowed]:
    columns = (shadows.column(name).to_pylist() for name in Shadowed._fields)
    return itertools.starmap(Shadowed, zip(*columns, strict=True))


def _block(rows: PairedRows) -> ShadowBlock:
    start = datetime.fromtimestamp(rows.start, UTC).isoformat(timespec="minutes")
    return ShadowBlock(
        block=start.removesuffix("+00:00").removesuffix("T00:00"),
        answered_by=rows.answered_by,
        shadow=rows.shadow,
        rows=len(rows.truths),
        positives=int(rows.truths.sum()),
        answered=block_statistics(rows.truths, rows.answered),
        shadowed=block_statistics(rows.truths, rows.shadowed),
    )


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
