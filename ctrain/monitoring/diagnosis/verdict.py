"""From evidence to one verdict with one action. Decides in order, and conservatively where signs conflict.

What is known from events comes first, then the quality of the data (no label is needed for it, and everything
else is meaningless on broken data), then labels that have not come, a version that was promoted, the
relation, and at last inputs that only moved.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ctrain.monitoring.diagnosis.calibration import compare
from ctrain.monitoring.diagnosis.case import Case
from ctrain.monitoring.diagnosis.changed import changed, level_costs
from ctrain.monitoring.diagnosis.frames import Events, Frame, sampled
from ctrain.monitoring.diagnosis.inputs import Inputs, read_inputs
from ctrain.monitoring.diagnosis.quality import broken_features
from ctrain.monitoring.diagnosis.relation import BEFORE, MINIMUM_LABELS, Relation, read_relation
from ctrain.monitoring.diagnosis.shift import Shift, read_shift
from ctrain.monitoring.diagnosis.version import bad_version
from ctrain.records import Diagnosis, DiagnosisEvidence

ROWS = 3_000
"""Rows of a window that are looked at; of larger ones, so many are drawn."""
MINIMUM_ROWS = 100
"""Rows below which a window is not judged."""
CALIBRATION = 6
"""Past windows with a reference of their own below which nothing is called by statistics."""
REFUSED_EFFECT, UNLABELLED_EFFECT, SKEW_EFFECT = 0.03, 0.1, 0.001
AGED_EFFECT, AGED_WINDOWS = 0.1, 3
"""How far a champion is behind a model of the windows before, and in how many in a row, to be called aged."""


def diagnose(
    window: Frame, past: Sequence[Frame], events: Events, seed: int, *, gap: int = 0, rows: int = ROWS
) -> Diagnosis:
    """Say why a window differs from those before it.

    Args:
        window: The judged one, matured.
        past: The contiguous windows before it, oldest first, scored by what served then; 12 or more are
            wanted. The newest ones are the reference, all of them the calibration.
        events: What is known without statistics.
        seed: Of the draws of rows; the same arguments give the same diagnosis.
        gap: Newest past windows that are left out, because what is looked for may have begun in them; each
            past window is then compared with the same gap. Windows since a promotion are left out as well.
        rows: Rows of a window that are looked at, at most.
    """
    case = Case(window, list(past), events, gap + (events.promoted_windows_ago or 0), [])
    known = _from_events(case)
    if known is not None:
        return known
    counted = len(past) - BEFORE - 2 * case.gap
    if window.rows < MINIMUM_ROWS:
        more = MINIMUM_ROWS - window.rows
        return case.conclude("unknown", f"{window.rows} rows are too few", would_decide=f"{more} more rows")
    if counted < CALIBRATION:
        return case.conclude(
            "unknown", f"{len(past)} past windows do not tell what is usual",
            would_decide=f"{CALIBRATION - counted} more windows",
        )  # fmt: skip
    random = np.random.default_rng(seed)
    # windows of the gap may be spoiled: they are neither reference nor calibration
    case.past = case.past[: len(past) - case.gap]
    windows = [sampled(frame, rows, random) for frame in (*case.past, window)]
    inputs = read_inputs(windows)
    return (
        _quality(case, inputs)
        or _labels(case)
        or _relation_and_shift(case, windows, inputs, random)
    )  # fmt: skip


def _from_events(case: Case) -> Diagnosis | None:
    events = case.events
    if events.schema_changes:
        case.evidence += [
            DiagnosisEvidence("event", "schema", 1.0, text=text) for text in events.schema_changes
        ]
        return case.conclude(
            "upstream_schema", f"The source's schema changed: {events.schema_changes[0]}",
            subjects=events.schema_changes, way="quarantine the window's partitions; ask the source's owner",
        )  # fmt: skip
    refused = events.refused_share - events.usual_refused_share
    if refused > max(REFUSED_EFFECT, events.usual_refused_share / 2):
        share = (
            f"{events.refused_share:.1%} of the rows were refused, {events.usual_refused_share:.1%} before"
        )
        case.evidence.append(DiagnosisEvidence("event", "refused", events.refused_share, text=share))
        return case.conclude("data_quality", share, kind="refused", way="quarantine the window's partitions")
    if events.skewed_share > SKEW_EFFECT:
        text = f"Online and batch differ on {events.skewed_share:.1%} of the rows"
        case.evidence.append(DiagnosisEvidence("event", "skew", events.skewed_share, text=text))
        return case.conclude("serving_skew", text, way="put the serving path right; training data are sound")
    return None


def _quality(case: Case, inputs: Inputs) -> Diagnosis | None:
    broken = broken_features(inputs, min(BEFORE, len(inputs.shares) // 2))
    if not broken:
        return None
    for one in broken:
        case.evidence.append(one.compared.evidence(one.text, one.feature))
    names = tuple(one.feature for one in broken)
    if case.events.code_changed:
        return _by_code(case, names)
    return case.conclude(
        "data_quality", case.evidence[0].text, kind=broken[0].kind, subjects=names,
        way=f"quarantine the window's rows of {', '.join(names[:3])}",
    )  # fmt: skip


def _by_code(case: Case, names: tuple[str, ...]) -> Diagnosis:
    """Inputs that changed with the code that makes them: the code is asked before the source is blamed."""
    return case.conclude(
        "serving_skew", f"{names[0]} changed with the code of the view", kind="code", subjects=names,
        way="compare the view's old and new code on the same rows",
    )  # fmt: skip


def _labels(case: Case) -> Diagnosis | None:
    """Labels that should be there and are not."""
    shares = np.array([1 - frame.labelled / max(frame.rows, 1) for frame in (*case.past, case.window)])
    if case.events.unlabelled_share is not None:
        shares[-1] = max(shares[-1], case.events.unlabelled_share)
    late = compare("unlabelled", shares, 1.5, UNLABELLED_EFFECT)
    if not late.passed:
        return None
    text = f"{late.value:.1%} of the matured rows have no label, usually {late.usual:.1%}"
    case.evidence.append(late.evidence(text))
    return case.conclude(
        "label_delay", text, way="train on nothing of this window until its labels are complete",
        would_decide="its labels",
    )  # fmt: skip


def _relation_and_shift(
    case: Case, windows: list[Frame], inputs: Inputs, random: np.random.Generator
) -> Diagnosis:
    shift = read_shift(inputs, case.gap)
    relation = read_relation(windows, inputs, random, case.gap)
    enough = relation.judged and len(relation.values["gain"]) > CALIBRATION
    found = (bad_version(case, relation) or changed(case, relation, shift, inputs.names)) if enough else None
    return found or _moved(case, shift, relation, enough) or _nothing(case, relation, enough)


def _moved(case: Case, shift: Shift, relation: Relation, enough: bool) -> Diagnosis | None:
    unusual = shift.moved or (shift.back if shift.like else ())
    if not unusual:
        return None
    for name, moved in unusual:
        case.evidence.append(
            moved.evidence(f"{name} moved by {moved.value:.2f}, usually {moved.usual:.2f}", name)
        )
    names = tuple(name for name, _ in unusual)
    if case.events.code_changed:
        return _by_code(case, names)
    if shift.like:
        back = shift.like[-1] + case.gap
        return case.conclude(
            "season", f"{names[0]} moved as it did {back} windows ago, and came back since", subjects=names,
            way="wait: it was so before",
        )  # fmt: skip
    if case.events.traffic_mix:
        return case.conclude("traffic_mix", f"{names[0]} moved, and a change of mix is known", subjects=names)
    costs = enough and level_costs(relation)
    holds = "the relation holds" if enough else "the relation cannot be judged yet"
    return case.conclude(
        "covariate_shift", f"{names[0]} moved further than ever before, and {holds}", subjects=names,
        would_decide="" if enough else _labels_needed(case, relation),
        kind="harmful" if costs else "harmless", action="retrain" if costs else "wait",
        way="all slices, weighted towards the newest" if costs else "watch the loss",
    )  # fmt: skip


def _nothing(case: Case, relation: Relation, enough: bool) -> Diagnosis:
    if enough:
        return _aged(case, relation) or case.conclude(
            "none", "Nothing lies beyond what this stream showed before"
        )
    return case.conclude(
        "unknown", "The inputs are as usual; the relation cannot be judged",
        would_decide=_labels_needed(case, relation),
    )  # fmt: skip


def _aged(case: Case, relation: Relation) -> Diagnosis | None:
    """No news in this window, but a champion that models of the windows before have beaten for long."""
    series = relation.values["champion"]
    behind = float(series[-AGED_WINDOWS:].min())
    if behind < AGED_EFFECT:
        return None
    text = f"the champion's loss was at least {behind:.2f} above that of a model of the windows before"
    evidence = DiagnosisEvidence(
        "champion",
        "",
        float(series[-1]),
        float(np.median(series[:-1])),
        AGED_EFFECT,
        len(series) - 1,
        True,
        text,
    )
    case.evidence.append(evidence)
    return case.conclude(
        "none", f"Nothing new in this window, but for {AGED_WINDOWS} windows {text}", kind="aged",
        way="a retraining is due in any case, and its gate decides",
    )  # fmt: skip


def _labels_needed(case: Case, relation: Relation) -> str:
    if relation.judged:
        return "more past windows with labels"
    missing = MINIMUM_LABELS - case.window.labelled
    return f"{missing} more labels" if missing > 0 else "labels of both classes"
