"""The drift monitors of a pipeline: begun at a promotion, updated by each window, kept as bytes in between.

One monitor watches the inputs, one the champion's answers, one its losses on labels that have matured. They
share the spec's budget of false alarms, and know the stream's past from landed partitions, cut into pieces as
long as a live window is in event time.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ctrain.monitoring.detectors import Detector, chosen, sample_rows, statistics_of
from ctrain.monitoring.drift import DriftMonitor
from ctrain.monitoring.profile import context_of
from ctrain.monitoring.rows import Floats, Rows, joined
from ctrain.monitoring.summary import Layout, Summary, summarise
from ctrain.monitoring.truth import Truth
from ctrain.records import DriftReport, from_json, to_json
from ctrain.spec import PipelineSpec

KINDS = ("data", "prediction", "concept")

LOSS_CAP = 4.0
"""Log loss of one row counts up to this, as in evidence on quality."""

DETECTOR_ROWS = 1_000
"""Landed rows at most that chosen detectors compare a window with."""


@dataclass
class Monitors:
    """Monitors of one champion."""

    champion: str
    span: float
    """Seconds of event time in one window."""
    by_kind: dict[str, DriftMonitor]
    truth: Truth
    reference: dict[str, npt.NDArray[Any]]
    """Sample of the landed inputs that chosen detectors are fitted on; empty without any."""

    @classmethod
    def begin(
        cls,
        spec: PipelineSpec,
        champion: str,
        window: Rows,
        landed: Callable[[], Iterable[Rows]],
        previous: Monitors | None = None,
    ) -> Monitors:
        """Begin after a promotion.

        Args:
            spec: Settings of monitoring.
            champion: Version that serves.
            window: A window of live rows; says how long one is in event time.
            landed: Gives the champion's landed partitions, oldest first; called three times.
            previous: Monitors of the champion before.
        """
        wanted = spec.monitoring.drift
        # The spec's budget is that of all monitors together.
        checks = len(KINDS) * wanted.checks(spec.monitoring.window)
        span = _span(window.times, spec.monitoring.window)
        reference = joined(list(landed()))
        sample = sample_rows(reference.columns, DETECTOR_ROWS) if wanted.detectors else {}
        detectors = chosen(wanted.detectors, sample)
        layouts = {
            kind: Layout.fit(
                columns_of_kind(kind, reference),
                segments_of_kind(kind, reference, spec),
                kind=kind,
                statistics=sorted(statistics_of(detectors, sample)) if kind == "data" else (),
            )
            for kind in KINDS
        }
        past: dict[str, list[tuple[str, Summary]]] = {kind: [] for kind in KINDS}
        pieces = list(cut(landed(), span))
        for number, rows in enumerate(pieces):
            # A joint test costs a second: it is calibrated on as many windows as it must be.
            recent = len(pieces) - number <= wanted.calibration_windows
            for kind in KINDS:
                looked = detectors if kind == "data" and recent else []
                past[kind].append(_summary(layouts[kind], rows, spec, looked))
        monitors = {
            kind: DriftMonitor.begin(
                layouts[kind],
                wanted,
                past[kind],
                checks=checks,
                previous=previous.by_kind.get(kind) if previous is not None else None,
            )
            for kind in KINDS
        }
        truth = Truth.begin(spec, champion, landed(), previous.truth if previous is not None else None)
        return cls(champion, span, monitors, truth, sample)

    def update(self, window: Rows, matured: Rows, spec: PipelineSpec) -> tuple[DriftReport, ...]:
        """Judge the next window.

        Args:
            window: Its rows.
            matured: Answers whose truth became known in it, whenever they were given.
            spec: Settings of monitoring.
        """
        reports = []
        detectors = chosen(spec.monitoring.drift.detectors, self.reference) if self.reference else []
        for kind, monitor in self.by_kind.items():
            rows = matured if kind == "concept" else window
            context, summary = _summary(monitor.layout, rows, spec, detectors if kind == "data" else [])
            reports.append(monitor.update(context, summary))
        return tuple(reports)

    def to_bytes(self) -> bytes:
        """State as an npz file without pickles."""
        arrays = {f"reference/{name}": values for name, values in self.reference.items()}
        plain: dict[str, Any] = {
            "champion": self.champion,
            "span": self.span,
            "truth": to_json(self.truth),
            "monitors": {},
        }
        for kind, monitor in self.by_kind.items():
            plain["monitors"][kind], own = monitor.to_state()
            arrays |= {f"{kind}/{name}": array for name, array in own.items()}
        sink = io.BytesIO()
        text = np.frombuffer(json.dumps(plain).encode(), np.uint8)
        np.savez_compressed(sink, allow_pickle=False, **{"json": text, **arrays})
        return sink.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes, spec: PipelineSpec) -> Monitors:
        """Rebuild from `to_bytes`."""
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        plain = json.loads(arrays["json"].tobytes())
        monitors = {
            kind: DriftMonitor.from_state(spec.monitoring.drift, about, _under(f"{kind}/", arrays))
            for kind, about in plain["monitors"].items()
        }
        truth = from_json(Truth, plain["truth"])
        return cls(plain["champion"], plain["span"], monitors, truth, _under("reference/", arrays))


def columns_of_kind(kind: str, rows: Rows) -> dict[str, npt.NDArray[Any]]:
    """What a monitor of this kind compares."""
    if kind == "data":
        return rows.columns
    if kind == "prediction":
        return {"prediction": rows.values}
    return {"loss": loss_of(rows), "residual": rows.labels - rows.values}


def segments_of_kind(kind: str, rows: Rows, spec: PipelineSpec) -> dict[str, npt.NDArray[Any]]:
    """Columns that name subgroups: those of the spec, else all categories."""
    named = spec.monitoring.segments or tuple(
        name for name, values in rows.columns.items() if values.dtype.kind == "U"
    )
    return {name: rows.columns[name] for name in named if name in rows.columns}


def loss_of(rows: Rows) -> Floats:
    """Capped log loss of each row; NaN where answer or label is not known."""
    chance = np.where(rows.labels == 1, rows.values, 1 - rows.values)
    found: Floats = np.minimum(-np.log(np.maximum(chance, 1e-12)), LOSS_CAP)
    found[np.isnan(rows.labels)] = np.nan
    return found


def cut(parts: Iterable[Rows], span: float) -> Iterator[Rows]:
    """Pieces of `span` seconds of event time, oldest first; rows without an event time are left out."""
    waiting: list[Rows] = []
    number = None
    for part in parts:
        rows = part.at(np.isfinite(part.times))
        numbers = np.floor(rows.times / span)
        for one in np.unique(numbers):
            if number is not None and one != number:
                yield joined(waiting)
                waiting = []
            number = one
            waiting.append(rows.at(numbers == one))
    if waiting:
        yield joined(waiting)


def _summary(
    layout: Layout, rows: Rows, spec: PipelineSpec, detectors: Sequence[Detector] = ()
) -> tuple[str, Summary]:
    kind, statistics = layout.kind, statistics_of(detectors, rows.columns)
    columns, segments = columns_of_kind(kind, rows), segments_of_kind(kind, rows, spec)
    if kind != "data":
        known = np.isfinite(next(iter(columns.values())))
        columns = {name: values[known] for name, values in columns.items()}
        segments = {name: values[known] for name, values in segments.items()}
    times = rows.times[np.isfinite(rows.times)]
    context = context_of(float(times.min()), float(times.max())) if len(times) else "all"
    return context, summarise(layout, columns, segments, statistics)


def _span(times: Floats, window: float) -> float:
    """How much event time a window covers; whole days where it is more than half a day."""
    known = times[np.isfinite(times)]
    if len(known) < 2:
        return window
    low, high = np.quantile(known, [0.01, 0.99])
    found = max(float(high - low), window)
    day = 86400.0
    return found if found <= day / 2 else day * float(np.ceil(found / day))


def _under(prefix: str, arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """Arrays whose name begins so, by the rest of their name."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
