"""Windows of live traffic: join predictions with labels, score them, test the inputs for drift.

`summarise` is the room's door and runs in a Ray task; `judge_window` is its pure part. A label counts
once its prediction is mature by event time's rule of the pipeline (`matures_after` after the answer).
Labels are looked at within the horizon only: what is older has no answer to be matched with.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ctrain.evaluation import binary_metrics
from ctrain.monitoring.drift import tabular_drift
from ctrain.records import FeatureDrift, WindowReport, WindowRequest
from ctrain.serving.ids import time_of
from ctrain.spec import PipelineSpec, parse_spec
from ctrain.storage import Root, open_root

MILLISECOND = 0.001

REFERENCE_PARTITIONS = 7
"""Newest partitions of the champion's training data that the reference is drawn from."""


def summarise(request: WindowRequest) -> WindowReport:
    """Summarise one window; runs inside a Ray task that has the user's code."""
    from ctrain.serving.labels import read_labels
    from ctrain.serving.prediction_log import read_log

    spec = parse_spec(request.spec)
    root = Root(Path(request.root), open_root(request.root).store)
    folder = root.pipeline(request.pipeline).log
    # Labels come late: metrics are of every mature answer of the horizon, rows and drift of the window.
    begin = horizon_begin(request, spec)
    answers = read_log(folder, begin, request.end)
    labels = read_labels(folder)
    window = answers.filter(pc.greater_equal(answers.column("time"), request.start))
    reference: dict[str, Any] = {}
    if spec.monitoring.drift.detector != "none" and window.num_rows >= spec.monitoring.minimum_rows:
        reference = _reference(request, root, spec)
    return judge_window(request, spec, answers, labels, reference)


def judge_window(
    request: WindowRequest,
    spec: PipelineSpec,
    answers: pa.Table,
    labels: pa.Table,
    reference: dict[str, Any],
) -> WindowReport:
    """Judge one window.

    Args:
        request: Its bounds.
        spec: Threshold, minimum of rows, drift's settings.
        answers: Prediction log of the label horizon up to the window's end.
        labels: Label log: prediction_id, value, first_at.
        reference: Raw columns as arrays (`features.view`); empty leaves drift out.
    """
    window = answers.filter(pc.greater_equal(answers.column("time"), request.start))
    known = labels.select(["prediction_id", "value"]).rename_columns(["prediction_id", "truth"])
    joined = answers.join(known, "prediction_id", join_type="inner")
    pending, orphans = count_unmatched(answers, labels, horizon_begin(request, spec), request.end)
    champion = joined.filter(pc.equal(joined.column("version"), request.champion))
    champion = champion.filter(pa.array(mature(champion, request, spec), pa.bool_()))
    metrics = binary_metrics(
        champion.column("truth").to_numpy(), champion.column("value").to_numpy(), spec.evaluation.threshold
    )
    latencies = window.column("latency").to_numpy()
    latency = {}
    if len(latencies):
        found = np.quantile(latencies, [0.5, 0.9, 0.99])
        latency = dict(zip(("p50", "p90", "p99"), map(float, found), strict=True))
    drift: tuple[FeatureDrift, ...] = ()
    enough = window.num_rows >= spec.monitoring.minimum_rows
    if reference and enough:
        rows = [json.loads(text) for text in window.column("features").to_pylist()]
        drift = tabular_drift(reference, columns_of(rows, reference), spec.monitoring.drift)
    return WindowReport(
        start=request.start,
        end=request.end,
        rows=window.num_rows,
        labelled=champion.num_rows,
        metrics=metrics,
        latency=latency,
        drift=drift,
        state="judged" if enough else "not_enough_rows",
        pending_labels=pending,
        orphan_labels=orphans,
    )


def mature(answers: pa.Table, request: WindowRequest, spec: PipelineSpec) -> list[bool]:
    """Which answers' labels are final.

    By event time against the watermark, as for training data, where requests carry the event time;
    else by the time of the answer against the window's end.
    """
    ripe = []
    features, times = answers.column("features").to_pylist(), answers.column("time").to_pylist()
    for text, time in zip(features, times, strict=True):
        event = seconds_of(json.loads(text).get(spec.source.event_time))
        limit = request.end if event is None else request.watermark
        ripe.append((time if event is None else event) + spec.label.matures_after <= limit)
    return ripe


def seconds_of(moment: Any) -> float | None:
    """A request's timestamp as seconds since 1970; None where it is no timestamp."""
    if not isinstance(moment, str):
        return None
    try:
        parsed = datetime.fromisoformat(moment)
    except ValueError:
        return None
    return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()


def horizon_begin(request: WindowRequest, spec: PipelineSpec) -> float:
    """Time from which answers and labels are looked at."""
    return max(0.0, request.end - spec.label.horizon)


def count_unmatched(answers: pa.Table, labels: pa.Table, begin: float, end: float) -> tuple[int, int]:
    """Answers without a label, and labels without an answer, of predictions made in [begin, end).

    A prediction id carries its time; what is no prediction id counts by the time at which it came.
    """
    asked = set(answers.column("prediction_id").to_pylist())
    known = labels.column("prediction_id").to_pylist()
    orphans = 0
    for name, came in zip(known, labels.column("first_at").to_pylist(), strict=True):
        if name not in asked:
            made = time_of(name)
            # ids are cut to milliseconds: the last one may belong to an answer after the end
            orphans += begin <= (came if made is None else made) < end - MILLISECOND
    return len(asked.difference(known)), orphans


def columns_of(rows: list[dict[str, Any]], like: dict[str, Any]) -> dict[str, Any]:
    """Columns of logged rows, in the kinds of the reference: text, or float64 with NaN."""
    columns: dict[str, Any] = {}
    for name, values in like.items():
        found = [row.get(name) for row in rows]
        if values.dtype.kind == "U":
            columns[name] = np.array(["" if value is None else str(value) for value in found], np.str_)
        else:
            columns[name] = np.array([np.nan if value is None else float(value) for value in found], float)
    return columns


def _reference(request: WindowRequest, root: Root, spec: PipelineSpec) -> dict[str, Any]:
    from ctrain.data.read import Dataset
    from ctrain.features import arrays_from_table, columns_from_json
    from ctrain.registry import read_version

    version = read_version(root, request.champion)
    columns = columns_from_json(version.columns)
    watched = {name: column for name, column in columns.items() if column.kind != "timestamp"}
    dataset = Dataset(root, request.pipeline, version.dataset_version)
    parts = [
        arrays_from_table(watched, dataset.table(name, list(watched)))
        for name in version.partitions[-REFERENCE_PARTITIONS:]
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in watched}
