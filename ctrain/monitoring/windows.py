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

import json
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

import numpy as np

from ctrain.evaluation import binary_metrics
from ctrain.evaluation.evidence import block_statistics
from ctrain.monitoring.cause import PIECES, live_rows, why_it_moved
from ctrain.monitoring.logged import COLUMNS, WindowSamples, sampled_of, scored_of, shadowed_of, told_apart
from ctrain.monitoring.monitors import Monitors
from ctrain.monitoring.reference import LandedReference, Reference
from ctrain.monitoring.rows import Floats, Rows
from ctrain.monitoring.samples import BlockSamples
from ctrain.monitoring.scores import Mark, PairedRows, Ready, Scores, whole
from ctrain.monitoring.skew import BatchPath, Compute, check_skew
from ctrain.monitoring.truth import BLOCKS
from ctrain.records import Diagnosis, DriftReport, ShadowBlock, WindowReport, WindowRequest
from ctrain.serving.labels import LabelStore
from ctrain.serving.prediction_log import forget_log, scan_log
from ctrain.spec import PipelineSpec, parse_spec
from ctrain.storage import Root, open_root
from ctrain.telemetry import metrics

KEPT_BEYOND_HORIZON = 86400.0
"""Seconds that logs are kept longer than a label may come."""

BLOCK_ROWS = 30
"""Rows below which a block of mirrored requests says nothing."""


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
    with closing(Scores(folder)) as scores:
        samples = BlockSamples(scores.db, spec.monitoring.block)
        before = scores.before(request.end)
        window = _take(request, spec, folder, scores, samples, before)
        mark = _mark(request, spec, before)
        judged = _Judged(request, spec, scores, samples, reference, window, before, mark)
        report = judged.watched(judged.counted(batch_path))
        samples.forget(request.end - spec.label.horizon)
        scores.commit()  # last: what a window that failed has seen is left to the next one
    return report


def _take(
    request: WindowRequest,
    spec: PipelineSpec,
    folder: Path,
    scores: Scores,
    samples: BlockSamples,
    before: Mark,
) -> WindowSamples:
    """Read what was logged since the window before; answers wait in `scores` for their labels."""
    window = WindowSamples(request, spec)
    begin = max(before.end, request.end - spec.label.horizon)
    for batch in scan_log(folder, begin, request.end, COLUMNS):
        answers, shadows = told_apart(batch)
        scored = list(scored_of(answers, spec))
        scores.add(scored)
        samples.offer(sampled_of(scored, answers))
        scores.add_shadows(shadowed_of(shadows))
        window.add(answers)
    return window


@dataclass(frozen=True)
class _Judged:
    """One window, once its log has been read."""

    request: WindowRequest
    spec: PipelineSpec
    scores: Scores
    samples: BlockSamples
    reference: Reference
    window: WindowSamples
    before: Mark
    mark: Mark

    @cached_property
    def ready(self) -> Ready:
        """Answers whose truth became known in it."""
        return self.scores.ready(self.before, self.mark)

    @property
    def enough(self) -> bool:
        """Whether there are rows enough to watch for drift."""
        return self.window.rows >= self.spec.monitoring.minimum_rows

    def counted(self, batch_path: Callable[[str], Compute]) -> WindowReport:
        """What its answers and labels are by themselves."""
        spec, window, ready = self.spec, self.window, self.ready
        blocks = map(_block, self.scores.paired(self.before, self.mark, spec.monitoring.block))
        return WindowReport(
            start=self.request.start,
            end=self.request.end,
            rows=window.rows,
            labelled=ready.labelled,
            metrics=binary_metrics(ready.truths, ready.values, spec.evaluation.threshold),
            latency=window.latency(),
            state="judged" if self.enough else "not_enough_rows",
            pending_labels=ready.pending,
            orphan_labels=ready.orphans,
            blocks=tuple(block for block in blocks if block.rows >= BLOCK_ROWS),
            skew=check_skew(window.answers, batch_path) if window.answers is not None else None,
        )

    def watched(self, report: WindowReport) -> WindowReport:
        """With what the monitors say of it; they are kept for the next window."""
        request, spec, scores = self.request, self.spec, self.scores
        known = scores.monitors(request.end)
        monitors = Monitors.from_bytes(known, spec) if known is not None else None
        rows = self.window.live_rows(self.reference.columns, spec, scores) if self.enough else None
        if rows is not None and (monitors is None or monitors.champion != request.champion):
            monitors = Monitors.begin(spec, request.champion, rows, self.reference.landed, monitors)
        if monitors is None:
            return report
        fresh = _newly_whole(self.before, self.mark, spec.monitoring.block)
        if len(fresh):
            recent = scores.recent(self.mark, spec.monitoring.block, BLOCKS)
            monitors.truth = monitors.truth.learned(recent, fresh, spec)
        report = replace(report, performance=monitors.truth.performance)
        if rows is not None:
            drift = monitors.update(rows, _matured(self.ready), spec)
            report = replace(report, drift=drift, estimate=monitors.truth.estimate(rows.values, spec))
            if self._skew_begins(report) or _asks_why(drift, fresh):
                report = replace(report, diagnosis=self._diagnosis(report))
        scores.keep_monitors(request.end, monitors.to_bytes())
        return report

    def _skew_begins(self, report: WindowReport) -> bool:
        skew = report.skew
        return skew is not None and skew.state == "skewed" and not self.request.facts.skewed

    def _diagnosis(self, report: WindowReport) -> Diagnosis | None:
        """Why the newest block of live answers differs; None where none of them carries a time."""
        request, scores, span = self.request, self.scores, self.samples.span()
        if span is None:
            return None
        length = self.spec.monitoring.block
        sampled = list(self.samples.between(span[1] - (PIECES + 1) * length, span[1] + 1.0))
        names = [one.prediction_id for one in sampled]
        live = live_rows(sampled, scores.labels_of(names, request.end), self.reference.columns)
        previous = scores.shadows_of(names, request.facts.previous) if request.facts.previous else None
        matured = self.ready.labelled + self.ready.pending
        unlabelled = self.ready.pending / matured if matured else None
        skewed = report.skew.share if report.skew is not None else 0.0
        landed = self.reference.landed()
        return why_it_moved(landed, live, length, request.facts, unlabelled, previous, skewed)


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


def _matured(ready: Ready) -> Rows:
    """Answers whose truth is known now, with their segment columns alone."""
    objects = [json.loads(text) for text in ready.segments]
    names = sorted({name for one in objects for name in one})
    columns = {name: np.array([one.get(name, "") for one in objects], np.str_) for name in names}
    return Rows(columns, ready.values, ready.truths, ready.times)


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
