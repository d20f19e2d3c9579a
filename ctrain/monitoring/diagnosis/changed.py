"""The relation between inputs and labels: changed, blurred by labels, or only off in level."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ctrain.monitoring.diagnosis.calibration import Compared, compare
from ctrain.monitoring.diagnosis.case import Case
from ctrain.monitoring.diagnosis.relation import Relation, Segment
from ctrain.monitoring.diagnosis.shift import Shift
from ctrain.records import Diagnosis, DiagnosisEvidence

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
GAIN_MARGIN, EXCESS_MARGIN, SKILL_MARGIN, NOISE_MARGIN = 3.0, 2.2, 1.3, 3.0
"""Times the usual distance from the median that a statistic must go; gain and noise past one odd window."""
NOISE_EFFECT = 1.0
"""Log-likelihood a hundred rows, or hundredths of the rows, from which labels look flipped."""
LOCAL, MAJORITY = 0.25, 0.6
"""Of a local change: what the rest of the rows loses at most, of the segment's loss a row; the segment's
least part of the whole loss."""
AUDIT = 300

FLIPS = ("symmetric", "lost_positive", "lost_negative")


@dataclass(frozen=True)
class _Signs:
    """What the statistics of the relation say of the judged window."""

    skill: Compared
    gain: Compared
    excess: Compared
    flips: Compared
    """Of the kind of flipped labels that explains most."""
    least_gain: float
    """What a new relation must save to be believed by itself."""
    binary: bool

    @classmethod
    def read(cls, relation: Relation, *, moved: bool, binary: bool) -> _Signs:
        """Compare with the past; `moved` says whether the inputs moved."""
        values = relation.values
        skill = compare("skill", values["skill"], SKILL_MARGIN, LOSS_EFFECT, side=-1)
        # inputs that moved bend a relation a little; where they did not, little is left that could save much
        least_gain = GAIN_EFFECT if moved else min(GAIN_EFFECT, GAIN_OF_REST * (1 - skill.usual))
        kind = max(FLIPS, key=lambda name: float(values[name][-1]))
        return cls(
            skill=skill,
            gain=compare("gain", values["gain"], GAIN_MARGIN, least_gain, odd=1),
            excess=compare("excess", values["excess"], EXCESS_MARGIN, EXCESS_EFFECT),
            flips=compare(kind, values[kind], NOISE_MARGIN, NOISE_EFFECT, odd=1),
            least_gain=least_gain,
            binary=binary,
        )

    @property
    def flipped(self) -> bool:
        """Whether labels look flipped.

        Of a count, far residuals are noise only where no level explains them: growth has them too.
        """
        told = self.flips.passed or self.excess.passed
        return self.flips.value > NOISE_EFFECT and told and (self.binary or self.skill.passed)

    @property
    def renewed(self) -> bool:
        """Whether a new relation is there to be learned.

        Labels that are flipped everywhere leave a new relation nothing; those of a part of the space, much.
        """
        regained = self.flipped and self.gain.value > self.gain.usual + REGAINED
        return regained or (self.gain.passed and self.gain.value > self.least_gain)

    def evidence(self) -> list[DiagnosisEvidence]:
        """In words."""
        gain, skill, excess = self.gain, self.skill, self.excess
        return [
            gain.evidence(
                f"a new relation would save {gain.value:.3f} beyond recalibration, usually {gain.usual:.3f}"
            ),
            skill.evidence(f"any model explains {skill.value:.3f} of the labels, usually {skill.usual:.3f}"),
            excess.evidence(f"recalibration would save {excess.value:.3f}, usually {excess.usual:.3f}"),
        ]


def changed(case: Case, relation: Relation, shift: Shift, names: Sequence[str]) -> Diagnosis | None:
    """Say what became of the relation between inputs and labels; None if nothing did.

    Args:
        case: Evidence is noted in it.
        relation: Of all windows.
        shift: Of the inputs.
        names: Of the features, in the order of `relation.effects`.
    """
    moved = bool(shift.moved)
    signs = _Signs.read(relation, moved=moved, binary=case.window.kind == "binary")
    case.evidence += signs.evidence()
    if signs.renewed:
        return _concept(case, relation, signs.gain)
    # by itself an effect turns with the season: summer's heat and winter's; with it labels look flipped
    asked = names if signs.flipped and signs.flips.name == "symmetric" and not moved else ()
    turned = _turned(relation, asked)
    if turned is not None:
        what, order = turned
        text = f"{what} explains {-order.value:.3f} of the labels turned round, usually {order.usual:.3f}"
        case.evidence.append(order.evidence(text, what))
        return case.conclude("concept", f"The relation changed: {text}", way="newest slices")
    if not (signs.excess.passed or signs.flipped):
        return None  # a lower skill alone is a harder period, or a shift of the inputs
    if moved and signs.flips.name != "symmetric":
        return None  # a level that moved with the inputs is theirs first
    return _blurred_or_off(case, signs)


def _blurred_or_off(case: Case, signs: _Signs) -> Diagnosis:
    """Labels that no new relation repairs: flipped, of a lost relation, or only of another level."""
    skill, flips = signs.skill, signs.flips
    text = f"labels look flipped ({flips.name}): {flips.value:.1f} against a shift of level"
    case.evidence.append(flips.evidence(text))
    if signs.flipped:
        return case.conclude(
            "label_noise", f"Labels look flipped ({flips.name}), and no model would repair it",
            kind=flips.name, way=f"hold training on this window; audit {AUDIT} of its labels",
        )  # fmt: skip
    if skill.passed:
        return case.conclude(
            "concept", f"The level moved, and no model explains as much: {skill.value:.2f} of the labels, "
            f"usually {skill.usual:.2f}", way="newest slices",
        )  # fmt: skip
    if signs.binary and flips.value >= -NOISE_EFFECT:
        return case.conclude(
            "unknown", "The labels fit less well than ever: a level that moved, or flipped labels",
            would_decide=f"an audit of {AUDIT} labels of this window, or two more windows",
        )  # fmt: skip
    return case.conclude(
        "needs_recalibration",
        f"The level moved, the order holds: recalibration would save {signs.excess.value:.3f}",
    )


def level_costs(relation: Relation) -> bool:
    """Whether recalibration would save more than ever, and labels do not look flipped."""
    values = relation.values
    passed = compare("excess", values["excess"], EXCESS_MARGIN, EXCESS_EFFECT).passed
    return passed and max(float(values[kind][-1]) for kind in FLIPS) < NOISE_EFFECT


def _concept(case: Case, relation: Relation, gain: Compared) -> Diagnosis:
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
