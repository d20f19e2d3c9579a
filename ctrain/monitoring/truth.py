"""What labels have said of a champion: its performance by blocks of time, and what its scores alone foretell.

A window's own performance is not known before its labels have matured. Until then it is estimated from the
scores, calibrated on earlier labels; when a block of time has matured, what would have been estimated for it
meets the truth, and the trust in estimates follows from that.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ctrain.evaluation.segment_keys import SegmentKey, segment_key
from ctrain.monitoring.estimate import (
    REMEMBERED,
    Calibration,
    calibrate,
    check_estimate,
    estimate_performance,
)
from ctrain.monitoring.expected import true_metrics
from ctrain.monitoring.performance import performance
from ctrain.monitoring.rows import Floats, Rows
from ctrain.monitoring.scores import Matured
from ctrain.records import EstimateCheck, EstimateReport, PerformanceReport
from ctrain.spec import PipelineSpec

BLOCKS = 28
"""Newest matured blocks that performance is told of and calibration learned from."""

CHECKS_KEPT = 8 * REMEMBERED


@dataclass(frozen=True, slots=True)
class Truth:
    """State between windows; plain data."""

    champion: str
    calibration: Calibration
    checks: tuple[EstimateCheck, ...] = ()
    """Estimates of matured blocks beside their truth, oldest first."""
    performance: PerformanceReport | None = None
    """Of the newest matured blocks, whichever champion answered; None before the first."""

    @classmethod
    def begin(
        cls, spec: PipelineSpec, champion: str, landed: Iterable[Rows], previous: Truth | None
    ) -> Truth:
        """Begin after a promotion: calibrated on landed rows that the champion has not learned from.

        Args:
            spec: Threshold, length of a block.
            champion: Version that serves.
            landed: Its landed partitions, oldest first.
            previous: What was known of the champion before; performance is told on.
        """
        parts = [rows.at(np.isfinite(rows.values) & np.isfinite(rows.labels)) for rows in landed]
        scores = np.concatenate([part.values for part in parts] or [np.empty(0)])
        labels = np.concatenate([part.labels for part in parts] or [np.empty(0)])
        times = np.concatenate([part.times for part in parts] or [np.empty(0)])
        calibration = calibrate(scores, labels, _blocks(times, spec), spec.evaluation.threshold)
        return cls(champion, calibration, (), previous.performance if previous is not None else None)

    def learned(self, recent: Matured, newest: Floats, spec: PipelineSpec) -> Truth:
        """After one or more blocks have matured.

        Args:
            recent: Labelled answers of the newest blocks, all of them mature.
            newest: Starts of the blocks that have just matured, in seconds.
            spec: Threshold, length of a block, segments.
        """
        threshold = spec.evaluation.threshold
        told = performance(
            recent.truths,
            recent.values,
            _blocks(recent.times, spec),
            np.ones(len(recent.truths), bool),
            threshold=threshold,
            keys=_keys(recent.segments),
        )
        own = np.array([version == self.champion for version in recent.versions], bool)
        checks = self.checks
        starts = _blocks(recent.times, spec) * spec.monitoring.block
        for start in newest:
            rows = own & (starts == start)
            estimate = estimate_performance(recent.values[rows], threshold, self.calibration, past=checks)
            truths = true_metrics(recent.values[rows], recent.truths[rows], threshold) if rows.any() else {}
            checks = (*checks, *check_estimate(estimate, truths))
        found = calibrate(recent.values[own], recent.truths[own], _blocks(recent.times[own], spec), threshold)
        calibration = found if found.state == "calibrated" else self.calibration
        return replace(self, calibration=calibration, checks=checks[-CHECKS_KEPT:], performance=told)

    def estimate(self, values: Floats, spec: PipelineSpec) -> EstimateReport:
        """What a window's scores foretell of its metrics."""
        return estimate_performance(values, spec.evaluation.threshold, self.calibration, past=self.checks)


def _blocks(times: Floats, spec: PipelineSpec) -> npt.NDArray[np.int64]:
    numbers: npt.NDArray[np.int64] = np.floor(times / spec.monitoring.block).astype(np.int64)
    return numbers


def _keys(segments: Sequence[str]) -> list[SegmentKey]:
    """Segment columns, as they were written beside each answer."""
    rows = [json.loads(text) for text in segments]
    names = sorted({name for row in rows for name in row})
    return [segment_key(name, np.array([row.get(name, "") for row in rows], np.str_)) for name in names]
