"""Matured cohorts: which rows may be trained on and judged, and whether a labelled set is censored.

A label that comes sooner for one class than for the other makes "every row whose label is known" a biased
set: of the bookings that lie ahead only the cancelled ones are known. Only rows whose event is old enough for
every label to have come are a fair set, whatever their labels say.

A run takes partitions that are mature by now (`matured`), but a partition lands once: rows whose label was
not known when it was taken from the source are not in it, however old it is by now. So the gate asks whether
rows were mature when they were taken (`check_censoring`), which the times of the labels tell (`taken_at`).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from ctrain.evaluation.ranking import Floats
from ctrain.records import Censoring, CensoringState

TOLERATED = 0.005
"""Share of rows that may be younger than the rule of maturity allows."""

MINIMUM_ROWS = 100
"""Matured rows of each class below which nothing can be said of their delays."""
MINIMUM_BLOCKS = 7

BATCH_ROWS = 400
"""Labels of a batch that tell when it was taken."""

UNLABELLED = 0.01
"""Share of rows that landed without a label from which on it is told."""


def matured(
    event_time: npt.NDArray[Any], matures_after: float, watermark: float | Floats
) -> npt.NDArray[np.bool_]:
    """Which rows may be trained on and judged: those whose event is old enough, labelled or not.

    Args:
        event_time: Seconds, shape [B]; a missing one is never mature.
        matures_after: Seconds after the event until every label is final.
        watermark: Present time of the events, in seconds; or that of each row, shape [B].
    """
    with np.errstate(invalid="ignore"):
        result: npt.NDArray[np.bool_] = np.asarray(event_time, np.float64) + matures_after <= watermark
    return result


def taken_at(
    newest: Mapping[str, float],
    rows: Mapping[str, int],
    batches: Mapping[str, int],
    block: float = 86400.0,
) -> dict[str, float]:
    """When each partition was taken from its source at the latest, as far as labels tell.

    No clock is asked, since an old history may land today: it is the end of the block in which the newest
    label came, of the partitions that landed with it or before it. Few labels would make that too early, and
    a fair set look censored, so small batches that landed one after the other are taken as one, and the
    newest ones are absent until they hold enough.

    Args:
        newest: Newest time of a label in each partition, in seconds; -infinity where none has a time.
        rows: Labels with a time in each partition.
        batches: Number of the ingest that a partition landed with; 0 where it is not known.
        block: Length of a block of time in seconds.
    """
    found: dict[str, float] = {}
    together: list[str] = []
    latest = -np.inf
    order = sorted(newest, key=lambda name: batches.get(name, 0))
    for _, batch in itertools.groupby(order, key=lambda name: batches.get(name, 0)):
        together += batch
        latest = max(latest, *(np.ceil(newest[name] / block) * block for name in together))
        if sum(rows[name] for name in together) >= BATCH_ROWS:
            found.update(dict.fromkeys(together, latest))
            together = []
    return found


def check_censoring(
    event_time: npt.NDArray[Any],
    label_time: npt.NDArray[Any],
    labels: npt.NDArray[Any],
    matures_after: float,
    watermark: float | Floats,
    *,
    selected: npt.NDArray[np.bool_] | None = None,
    tolerated: float = TOLERATED,
    unfair: float = 0.05,
    block: float = 86400.0,
    confidence: float = 0.99,
) -> Censoring:
    """Tell whether the rows that a candidate learns from were chosen by their label.

    Delays are learnt from mature rows, of which all labels are known: of each class, how many labels had come
    by the age that the young selected rows have now. If that differs, so does what is selected.

    Args:
        event_time: Seconds, shape [B].
        label_time: When each label became known, in seconds; NaN or infinity where it is not, shape [B].
        labels: 0 or 1 (numbers are told apart at their median); anything where not known, shape [B].
        matures_after: Seconds after the event until every label is final.
        watermark: Time by which labels had to be known, in seconds; or that of each row, shape [B].
        selected: Rows that the candidate uses; None stands for every row whose label is known.
        tolerated: Share of young rows up to which the set counts as matured; also of all rows, the share that
            the difference between the classes must take away to count.
        unfair: Difference between the classes' shares that makes the set censored.
        block: Length of a block of time in seconds.
        confidence: Two-sided level of the interval.
    """
    event, known_at = np.asarray(event_time, np.float64), np.asarray(label_time, np.float64)
    present = np.broadcast_to(np.asarray(watermark, np.float64), event.shape)
    known = np.isfinite(known_at) & (known_at <= present)
    chosen = known if selected is None else np.asarray(selected, bool)
    mature = matured(event, matures_after, present)
    young = chosen & ~mature
    counts = (int(chosen.sum()), int(young.sum()), int((mature & ~known).sum()))
    future = int((chosen & ~known).sum())
    if future > tolerated * max(counts[0], 1):
        reason = f"{future} of {counts[0]} labels were not known by then"
        return Censoring("labels_from_the_future", *counts, reason=reason)
    if not counts[0]:
        return Censoring("not_enough_rows", *counts, reason="no row is selected")
    if counts[1] <= tolerated * counts[0]:
        return Censoring("matured", *counts, reason=f"{counts[1]} of {counts[0]} rows are young")
    ages = np.sort((present - event)[young & np.isfinite(event)])
    return _judge_delays(
        event, known_at - event, labels, mature & known, young, counts, ages,
        max(unfair, tolerated * counts[0] / counts[1]), block, confidence,
    )  # fmt: skip


def _judge_delays(
    event: Floats,
    delay: Floats,
    labels: npt.NDArray[Any],
    learnt: npt.NDArray[np.bool_],
    young: npt.NDArray[np.bool_],
    counts: tuple[int, int, int],
    ages: Floats,
    unfair: float,
    block: float,
    confidence: float,
) -> Censoring:
    """Compare how early the two classes' labels come, at the ages of the young rows."""
    truth = _classes(np.asarray(labels, np.float64), learnt)
    positive = truth[learnt] == 1
    if min(positive.sum(), (~positive).sum()) < MINIMUM_ROWS or not len(ages):
        found = f"{int(positive.sum())} positives and {int((~positive).sum())} negatives"
        reason = f"{found} are mature, {MINIMUM_ROWS} of each needed"
        return Censoring("not_enough_rows", *counts, reason=reason)
    # Share of the young rows' ages by which a mature row's label had come.
    early = 1 - np.searchsorted(ages, delay[learnt], side="left") / len(ages)
    shares = float(early[positive].mean()), float(early[~positive].mean())
    influences = np.where(
        positive, (early - shares[0]) / positive.sum(), -(early - shares[1]) / (~positive).sum()
    )
    blocks = np.unique(event[learnt] // block, return_inverse=True)[1]
    sums = np.bincount(blocks, weights=influences)
    count, difference = len(sums), shares[0] - shares[1]
    if count < MINIMUM_BLOCKS:
        reason = f"mature rows of {count} blocks, {MINIMUM_BLOCKS} needed"
        return Censoring("not_enough_rows", *counts, reason=reason)
    error = float(np.sqrt(count / (count - 1) * np.square(sums).sum()))
    reach = error * float(stats.t.ppf((1 + confidence) / 2, count - 1))
    low, high = difference - reach, difference + reach
    state: CensoringState = "not_enough_evidence"
    if low > unfair or high < -unfair:
        state = "censored"
    elif -unfair <= low and high <= unfair:
        state = "young_but_fair"
    rates = float((truth[young] == 1).mean()), float(positive.mean())
    reason = (
        f"{counts[1]} of {counts[0]} rows are young; known at their age: {shares[0]:.1%} of positives, "
        f"{shares[1]:.1%} of negatives; positive: {rates[0]:.1%} of them, {rates[1]:.1%} of mature rows"
    )
    return Censoring(state, *counts, *rates, *shares, low, high, reason)


def _classes(labels: Floats, learnt: npt.NDArray[np.bool_]) -> Floats:
    values = labels[learnt]
    if ((values == 0) | (values == 1)).all():
        return labels
    with np.errstate(invalid="ignore"):
        return np.where(labels > np.median(values), 1.0, 0.0)
