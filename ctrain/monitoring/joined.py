"""Answers and their labels joined by id, with a count of every label that could not simply be used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ctrain.evaluation.ranking import Floats
from ctrain.records import LabelCounts


@dataclass(frozen=True, slots=True)
class Joined:
    """Labels in the order of the answers."""

    labels: Floats
    """NaN where there is none, shape [B]."""
    labelled_at: Floats
    """When the label that counts came, in seconds; NaN where there is none."""
    counts: LabelCounts


def join_labels(
    answer_ids: npt.NDArray[Any],
    answered_at: npt.NDArray[Any],
    label_ids: npt.NDArray[Any],
    label_values: npt.NDArray[Any],
    labelled_at: npt.NDArray[Any],
    *,
    horizon: float,
    now: float,
    binary: bool = True,
) -> Joined:
    """Find each answer's label. The last label within the horizon counts.

    Args:
        answer_ids: Shape [B]; of equal ones the first counts.
        answered_at: Seconds, finite, shape [B].
        label_ids: In the same kind as the answers', any order, shape [L].
        label_values: Numbers, shape [L].
        labelled_at: When each label came, in seconds, shape [L].
        horizon: Seconds after its answer within which a label counts.
        now: Seconds; labels that came later are not known yet.
        binary: Whether a label must be 0 or 1; else it must be finite.
    """
    ids, first = np.unique(answer_ids, return_index=True)
    answered = np.asarray(answered_at, np.float64)
    values, times = np.asarray(label_values, np.float64), np.asarray(labelled_at, np.float64)
    usable = np.isfinite(times) & ((values == 0) | (values == 1) if binary else np.isfinite(values))
    arrived = usable & (times <= now)
    place, known = _find(ids, label_ids)
    asked = answered[first][place] if len(ids) else np.zeros(len(values))
    late = arrived & known & (times > asked + horizon)
    early = arrived & known & (times < asked)
    kept = np.flatnonzero(arrived & known & ~late)
    kept = kept[np.lexsort((kept, times[kept], place[kept]))]
    same = place[kept][1:] == place[kept][:-1]
    changed = values[kept][1:] != values[kept][:-1]
    last = kept[np.append(~same, True)] if len(kept) else kept
    labels, came = np.full(len(answered), np.nan), np.full(len(answered), np.nan)
    labels[first[place[last]]], came[first[place[last]]] = values[last], times[last]
    open_answers = np.isnan(labels[first])
    pending = int((open_answers & (answered[first] + horizon > now)).sum())
    counts = LabelCounts(
        answers=len(ids),
        labelled=len(last),
        pending=pending,
        unlabelled=int(open_answers.sum()) - pending,
        repeated=len(answered) - len(ids),
        foreign=int((arrived & ~known).sum()),
        unusable=int((~usable).sum()),
        late=int(late.sum()),
        early=int(early.sum()),
        duplicated=int((same & ~changed).sum()),
        corrected=int((same & changed).sum()),
    )
    return Joined(labels, came, counts)


def _find(
    ids: npt.NDArray[Any], wanted: npt.NDArray[Any]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Place of each wanted id among the sorted ones, and whether it is there."""
    if not len(ids) or not len(wanted):
        return np.zeros(len(wanted), np.int64), np.zeros(len(wanted), bool)
    place = np.minimum(np.searchsorted(ids, wanted), len(ids) - 1)
    return place, ids[place] == wanted
