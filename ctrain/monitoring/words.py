"""Reports of drift in words for people."""

from __future__ import annotations

from collections.abc import Iterable

from ctrain.records import DriftCause, DriftReport, DriftState

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
