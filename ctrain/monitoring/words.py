"""Reports of drift in words for people."""

from __future__ import annotations

from collections.abc import Iterable

from ctrain.records import (
    Diagnosis,
    DriftCause,
    DriftReport,
    DriftState,
    EstimateReport,
    MetricInterval,
    PerformanceReport,
)

SHOWN = ("auc", "log_loss")
"""Metrics that a line for people names."""

_ORDER: tuple[DriftState, ...] = (
    "drift", "warning", "recovered", "steady", "calibrating", "not_enough_rows",
)  # fmt: skip
"""What is told of several reports: the first of these that one of them says."""

_NAMES = {"data": "inputs", "prediction": "answers", "concept": "losses"}


def overall_state(reports: Iterable[DriftReport]) -> str:
    """One word for all kinds of drift; empty without reports."""
    found = {report.state for report in reports}
    return next((state.replace("_", " ") for state in _ORDER if state in found), "")


def report_in_words(report: DriftReport) -> str:
    """One line, e.g. `inputs drift: dest=MIA share up .31 sd (62 % of the evidence)`."""
    state = report.state.replace("_", " ")
    name = _NAMES.get(report.kind, report.kind)
    if report.state in ("drift", "warning") and report.causes:
        return f"{name} {state}: {', '.join(map(cause_in_words, report.causes))}"
    return f"{name} {state}: {report.reason}"


def cause_in_words(cause: DriftCause) -> str:
    """What moved, where to, how far, and its part of the evidence."""
    words = [word for word in (cause.feature, cause.what if cause.what != "statistic" else "") if word]
    if cause.segment:
        words = [cause.segment, *words] if cause.what == "share" else [*words, f"in {cause.segment}"]
    effect = f" {abs(cause.effect):.2f} sd" if cause.effect is not None else ""
    return f"{' '.join(words)} {cause.direction}{effect} ({cause.share:.0%} of the evidence)"


def performance_in_words(report: PerformanceReport) -> str:
    """One line, e.g. `auc .684 (.671 … .697) over 14 blocks, 12,311 labels; worst carrier=EV .641`."""
    if report.state == "not_enough_labels":
        return report.reason
    shown = [one for one in report.metrics if one.metric in SHOWN and one.value is not None]
    words = ", ".join(map(_interval_in_words, shown))
    words = f"{words} over {report.blocks} blocks, {report.rows:,} labels"
    weak = [one for one in report.segments if one.metric == "auc" and one.value is not None]
    if weak:
        worst = min(weak, key=lambda one: one.value or 0.0)
        words += f"; weakest {worst.segment}: auc {worst.value:.3f}"
    return words


def estimate_in_words(report: EstimateReport) -> str:
    """One line that says that it is an estimate, and how far it can be trusted."""
    if report.state != "estimated":
        return f"no estimate: {report.reason}"
    shown = [one for one in report.metrics if one.metric in SHOWN and one.value is not None]
    return f"{', '.join(map(_interval_in_words, shown))} estimated without labels ({report.trust})"


def _interval_in_words(one: MetricInterval) -> str:
    reach = f" ({one.low:.3f} … {one.high:.3f})" if one.low is not None and one.high is not None else ""
    return f"{one.metric} {one.value:.3f}{reach}"


def diagnosis_in_words(found: Diagnosis) -> str:
    """The verdict, its reason, and what follows or would decide it."""
    words = f"{found.verdict.replace('_', ' ')}: {found.reason}"
    if found.would_decide:
        return f"{words}; {found.would_decide} would decide it"
    way = f" ({found.way})" if found.way else ""
    return f"{words}; {found.action.replace('_', ' ')}{way}" if found.action != "none" else words
