"""Whether a promoted version is worse than the one before it, on the same rows."""

from __future__ import annotations

import numpy as np

from ctrain.monitoring.diagnosis.calibration import Compared, compare
from ctrain.monitoring.diagnosis.case import Case
from ctrain.monitoring.diagnosis.frames import Frame
from ctrain.monitoring.diagnosis.relation import MINIMUM_LABELS, Relation, scaled_labels
from ctrain.records import Diagnosis

VERSION_MARGIN = 2.0
VERSION_EFFECT, VERSION_BLOCKS, VERSION_ERRORS = 0.1, 10, 1.0
"""Least paired loss of a bad version; blocks of the window that must not contradict it, by so many standard
errors over them. Retrains of one procedure differ by a tenth to a half of that loss."""


def bad_version(case: Case, relation: Relation) -> Diagnosis | None:
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
