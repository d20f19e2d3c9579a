"""From evidence to one verdict with one action. Decides in order, and conservatively where signs conflict.

What is known from events comes first, then the quality of the data (no label is needed for it, and everything
else is meaningless on broken data), then labels that have not come, a version that was promoted, the
relation, and at last inputs that only moved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ctrain.monitoring.diagnosis.calibration import Compared, compare
from ctrain.monitoring.diagnosis.frames import Events, Frame, sampled
from ctrain.monitoring.diagnosis.inputs import Inputs, read_inputs
from ctrain.monitoring.diagnosis.quality import broken_features
from ctrain.monitoring.diagnosis.relation import (
    BEFORE,
    MINIMUM_LABELS,
    Relation,
    Segment,
    read_relation,
    scaled_labels,
)
from ctrain.monitoring.diagnosis.shift import Shift, read_shift
from ctrain.records import Diagnosis, DiagnosisAction, DiagnosisEvidence, DiagnosisVerdict

ROWS = 3_000
"""Rows of a window that are looked at; of larger ones, so many are drawn."""
MINIMUM_ROWS = 100
"""Rows below which a window is not judged."""
CALIBRATION = 6
"""Past windows with a reference of their own below which nothing is called by statistics."""
REFUSED_EFFECT, UNLABELLED_EFFECT, SKEW_EFFECT = 0.03, 0.1, 0.001
LOSS_EFFECT = 0.03
TURNED_MARGIN, TURNED_EFFECT, TURNED_CHANGE = 1.2, 0.01, 0.035
"""Share of the labels' variance that an effect explains, before and with the other sign now; least change."""
GAIN_EFFECT, EXCESS_EFFECT = 0.1, 0.05
"""Least change of a loss, of what a new relation saves, and of what a new level saves, in shares of the
labels' variance."""
GAIN_OF_REST = 0.3
"""Part of what the relation leaves unexplained that a new one must save, where that is less."""
REGAINED = 0.03
"""What a new relation must save more than usual where labels look flipped, to be believed."""
GAIN_MARGIN, EXCESS_MARGIN, SKILL_MARGIN, NOISE_MARGIN, VERSION_MARGIN = 3.0, 2.2, 1.3, 3.0, 2.0
VERSION_EFFECT, VERSION_BLOCKS, VERSION_ERRORS = 0.1, 10, 1.0
"""Least paired loss of a bad version; blocks of the window that must not contradict it, by so many standard
errors over them. Retrains of one procedure differ by a tenth to a half of that loss."""
NOISE_EFFECT = 1.0
"""Log-likelihood a hundred rows, or hundredths of the rows, from which labels look flipped."""
LOCAL, MAJORITY = 0.25, 0.6
"""Of a local change: what the rest of the rows loses at most, of the segment's loss a row; the segment's
least part of the whole loss."""
AGED_EFFECT, AGED_WINDOWS = 0.1, 3
"""How far a champion is behind a model of the windows before, and in how many in a row, to be called aged."""
AUDIT = 300

FLIPS = ("symmetric", "lost_positive", "lost_negative")

ACTIONS: dict[DiagnosisVerdict, DiagnosisAction] = {
    "none": "none", "season": "wait", "data_quality": "quarantine", "upstream_schema": "quarantine",
    "serving_skew": "escalate", "label_delay": "hold_training", "traffic_mix": "wait",
    "covariate_shift": "wait", "concept": "retrain", "concept_local": "retrain",
    "label_noise": "hold_training", "needs_recalibration": "recalibrate", "bad_version": "roll_back",
    "unknown": "escalate",
}  # fmt: skip
"""The action of each verdict; a covariate shift that costs loss is retrained for."""


@dataclass
class _Case:
    window: Frame
    past: list[Frame]
    events: Events
    gap: int
    evidence: list[DiagnosisEvidence]

    def conclude(
        self,
        verdict: DiagnosisVerdict,
        reason: str,
        *,
        kind: str = "",
        subjects: tuple[str, ...] = (),
        way: str = "",
        would_decide: str = "",
        action: DiagnosisAction | None = None,
    ) -> Diagnosis:
        counted = max((one.windows for one in self.evidence), default=0)
        return Diagnosis(
            verdict, action or ACTIONS[verdict], kind, subjects, way, reason, would_decide,
            tuple(self.evidence), self.window.rows, self.window.labelled, counted,
        )  # fmt: skip


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
    case = _Case(window, list(past), events, gap + (events.promoted_windows_ago or 0), [])
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


def _from_events(case: _Case) -> Diagnosis | None:
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


def _quality(case: _Case, inputs: Inputs) -> Diagnosis | None:
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


def _by_code(case: _Case, names: tuple[str, ...]) -> Diagnosis:
    """Inputs that changed with the code that makes them: the code is asked before the source is blamed."""
    return case.conclude(
        "serving_skew", f"{names[0]} changed with the code of the view", kind="code", subjects=names,
        way="compare the view's old and new code on the same rows",
    )  # fmt: skip


def _labels(case: _Case) -> Diagnosis | None:
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
    case: _Case, windows: list[Frame], inputs: Inputs, random: np.random.Generator
) -> Diagnosis:
    shift = read_shift(inputs, case.gap)
    relation = read_relation(windows, inputs, random, case.gap)
    enough = relation.judged and len(relation.values["gain"]) > CALIBRATION
    found = (_version(case, relation) or _changed(case, relation, shift, inputs.names)) if enough else None
    return found or _moved(case, shift, relation, enough) or _nothing(case, relation, enough)


def _version(case: _Case, relation: Relation) -> Diagnosis | None:
    """A version that is worse than the one before it, on the same rows; the season is the same for both."""
    if case.events.promoted_windows_ago is None:
        return None
    worse = _against_previous(case.window)
    if worse is None:
        series = relation.values["champion"]
        change = series[2:] - (series[1:-1] + series[:-2]) / 2
        worse = compare("version", change, VERSION_MARGIN, VERSION_EFFECT)
    what = "the version before it" if worse.windows == 0 else "a model of the former relation"
    text = f"the promoted version's loss is {worse.value:+.3f} above that of {what}"
    case.evidence.append(worse.evidence(text))
    if not worse.passed:
        return None
    return case.conclude(
        "bad_version", f"The promotion explains it: {text}", way="back to the version before it"
    )


def _against_previous(window: Frame) -> Compared | None:
    """Paired loss of the two versions over contiguous blocks of the window.

    The past has no such pairs to calibrate it by: the blocks must agree, and the effect is one that retrains
    of one procedure do not show.
    """
    if window.previous is None or window.labels is None:
        return None
    truth, scores, previous = scaled_labels(window.labels, window.scores, window.previous, kind=window.kind)
    if len(truth) < MINIMUM_LABELS or truth.std() < 1e-9:
        return None
    paired = ((truth - scores) ** 2 - (truth - previous) ** 2) / truth.var()
    blocks = np.array([block.mean() for block in np.array_split(paired, VERSION_BLOCKS)])
    error = float(blocks.std(ddof=1)) / VERSION_BLOCKS**0.5
    limit = max(VERSION_EFFECT, VERSION_ERRORS * error)
    return Compared("version", float(paired.mean()), 0.0, limit, 0, float(paired.mean()) > limit)


def _changed(case: _Case, relation: Relation, shift: Shift, names: Sequence[str]) -> Diagnosis | None:
    """The relation between inputs and labels: changed, blurred by labels, or only off in level."""
    values = relation.values
    skill = compare("skill", values["skill"], SKILL_MARGIN, LOSS_EFFECT, side=-1)
    # inputs that moved bend a relation a little; where they did not, little is left that could save much
    effect = GAIN_EFFECT if shift.moved else min(GAIN_EFFECT, GAIN_OF_REST * (1 - skill.usual))
    gain = compare("gain", values["gain"], GAIN_MARGIN, effect, odd=1)
    excess = compare("excess", values["excess"], EXCESS_MARGIN, EXCESS_EFFECT)
    case.evidence += [
        gain.evidence(
            f"a new relation would save {gain.value:.3f} beyond recalibration, usually {gain.usual:.3f}"
        ),
        skill.evidence(f"any model explains {skill.value:.3f} of the labels, usually {skill.usual:.3f}"),
        excess.evidence(f"recalibration would save {excess.value:.3f}, usually {excess.usual:.3f}"),
    ]
    noise = {name: float(values[name][-1]) for name in FLIPS}
    kind = max(noise, key=lambda name: noise[name])
    flips = compare(kind, values[kind], NOISE_MARGIN, NOISE_EFFECT, odd=1)
    binary = case.window.kind == "binary"
    # of a count, far residuals are noise only where no level explains them: growth has them too
    flipped = flips.value > NOISE_EFFECT and (flips.passed or excess.passed) and (binary or skill.passed)
    # labels that are flipped everywhere leave a new relation nothing; those of a part of the space, much
    regained = flipped and gain.value > gain.usual + REGAINED
    if regained or (gain.passed and gain.value > effect):
        return _concept(case, relation, gain)
    # by itself an effect turns with the season: summer's heat and winter's; with it labels look flipped
    alike = flipped and kind == "symmetric" and not shift.moved
    turned = _turned(relation, names if alike else ())
    if turned is not None:
        what, order = turned
        text = f"{what} explains {-order.value:.3f} of the labels turned round, usually {order.usual:.3f}"
        case.evidence.append(order.evidence(text, what))
        return case.conclude("concept", f"The relation changed: {text}", way="newest slices")
    if not (excess.passed or flipped):
        return None  # a lower skill alone is a harder period, or a shift of the inputs
    if shift.moved and kind != "symmetric":
        return None  # a level that moved with the inputs is theirs first
    case.evidence.append(
        flips.evidence(f"labels look flipped ({kind}): {flips.value:.1f} against a shift of level")
    )
    if flipped:
        return case.conclude(
            "label_noise", f"Labels look flipped ({kind}), and no model would repair it", kind=kind,
            way=f"hold training on this window; audit {AUDIT} of its labels",
        )  # fmt: skip
    if skill.passed:
        return case.conclude(
            "concept", f"The level moved, and no model explains as much: {skill.value:.2f} of the labels, "
            f"usually {skill.usual:.2f}", way="newest slices",
        )  # fmt: skip
    if binary and flips.value >= -NOISE_EFFECT:
        return case.conclude(
            "unknown", "The labels fit less well than ever: a level that moved, or flipped labels",
            would_decide=f"an audit of {AUDIT} labels of this window, or two more windows",
        )  # fmt: skip
    return case.conclude(
        "needs_recalibration",
        f"The level moved, the order holds: recalibration would save {excess.value:.3f}",
    )


def _concept(case: _Case, relation: Relation, gain: Compared) -> Diagnosis:
    local = relation.segments[0] if relation.segments else None
    if local is not None and _is_local(local):
        name = f"{local.feature}={local.level}"
        text = f"{name} ({local.share:.0%} of the rows): {local.inside:.2f}, elsewhere {local.outside:.2f}"
        case.evidence.append(DiagnosisEvidence("segment", name, local.inside, limit=local.outside, text=text))
        return case.conclude(
            "concept_local", f"The relation changed in {text}", subjects=(name,),
            way=f"newest slices of {name}, all slices elsewhere",
        )  # fmt: skip
    return case.conclude(
        "concept", f"The relation changed: a new one would save {gain.value:.2f}, usually {gain.usual:.2f}",
        way="newest slices",
    )  # fmt: skip


def _turned(relation: Relation, names: Sequence[str]) -> tuple[str, Compared] | None:
    """The whole relation, or the effect of one of the features, whose sign is the opposite of what it was."""
    effects = relation.effects
    series = {"the former relation": relation.values["order"]}
    series |= {f"the former effect of {name}": effects[:, number] for number, name in enumerate(names)}
    found = []
    for what, values in series.items():
        order = compare("order", values, TURNED_MARGIN, TURNED_CHANGE, side=-1)
        if order.passed and order.value < -TURNED_EFFECT < TURNED_EFFECT < order.usual:
            found.append((what, order))
    return min(found, key=lambda one: one[1].value, default=None)


def _is_local(segment: Segment) -> bool:
    inside, outside = segment.inside * segment.share, segment.outside * (1 - segment.share)
    return segment.outside < LOCAL * segment.inside and inside >= MAJORITY * (inside + outside)


def _moved(case: _Case, shift: Shift, relation: Relation, enough: bool) -> Diagnosis | None:
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
    costs = enough and compare("excess", relation.values["excess"], EXCESS_MARGIN, EXCESS_EFFECT).passed
    costs = costs and max(float(relation.values[kind][-1]) for kind in FLIPS) < NOISE_EFFECT
    holds = "the relation holds" if enough else "the relation cannot be judged yet"
    return case.conclude(
        "covariate_shift", f"{names[0]} moved further than ever before, and {holds}", subjects=names,
        would_decide="" if enough else _labels_needed(case, relation),
        kind="harmful" if costs else "harmless", action="retrain" if costs else "wait",
        way="all slices, weighted towards the newest" if costs else "watch the loss",
    )  # fmt: skip


def _nothing(case: _Case, relation: Relation, enough: bool) -> Diagnosis:
    if enough:
        return _aged(case, relation) or case.conclude(
            "none", "Nothing lies beyond what this stream showed before"
        )
    return case.conclude(
        "unknown", "The inputs are as usual; the relation cannot be judged",
        would_decide=_labels_needed(case, relation),
    )  # fmt: skip


def _aged(case: _Case, relation: Relation) -> Diagnosis | None:
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


def _labels_needed(case: _Case, relation: Relation) -> str:
    if relation.judged:
        return "more past windows with labels"
    missing = MINIMUM_LABELS - case.window.labelled
    return f"{missing} more labels" if missing > 0 else "labels of both classes"
