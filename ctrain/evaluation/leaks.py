"""Features that may know the label: found in the rows that a model would learn from.

What a table alone can show is searched here: a feature that predicts too well by itself, one that copies the
label or is a part of it, one whose single value or absence settles the label. A value that was filled in
after the prediction shows only where times tell (`late_features`).

A strong honest feature looks like a leak. So most checks have a warning and a refusal of their own, limits
that a spec can set (`evaluation.leaks`), and features that a person vouches for are never refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ctrain.evaluation.alone import Alone, Coded, code_column
from ctrain.evaluation.joint import beats_the_others, parts_of_label
from ctrain.records import LeakFinding

Columns = Mapping[str, npt.NDArray[Any]]

COPY = 0.999
"""Share of rows whose label follows from one feature's value at which it is a copy."""


@dataclass(frozen=True, slots=True)
class LeakLimits:
    """When a finding is a warning, and when a refusal."""

    alone_warn: float = 0.95
    """Out-of-fold AUC that a feature reaches by itself."""
    alone_refuse: float = 0.99
    beats_others: bool = True
    """Whether to warn of a feature that alone predicts better than all others together."""
    pure_warn: float = 0.985
    """How surely one value, or a missing one, settles the label: 1 - (rarer label's share there over its
    share overall)."""
    pure_refuse: float = 0.9995
    missing_warn: float = 0.7
    """AUC of whether the feature is missing."""
    missing_refuse: float = 0.9
    minimum_rows: int = 1000
    minimum_blocks: int = 10
    """Blocks in all, and with rows of a value that is called pure: groups book on one day."""
    vouched: frozenset[str] = frozenset()
    """Features that are known to be honest: they are warned of, never refused."""


@dataclass(frozen=True, slots=True)
class LeakReport:
    """What was found, strongest first."""

    state: Literal["checked", "not_enough_rows", "one_class", "labels_unusable"]
    refusals: tuple[LeakFinding, ...] = ()
    warnings: tuple[LeakFinding, ...] = ()
    alone: Mapping[str, float] | None = None
    """Out-of-fold AUC of each feature by itself; None where nothing was checked."""


def find_leaks(
    columns: Columns,
    labels: npt.NDArray[Any],
    blocks: npt.NDArray[np.int64],
    limits: LeakLimits | None = None,
    seed: int = 0,
) -> LeakReport:
    """Search the features of labelled rows for what they should not know.

    Args:
        columns: Raw features: text ("" is missing) or numbers (NaN is missing), shape [B] each.
        labels: 0 or 1, shape [B]; or numbers to predict: then what a feature alone tells is whether the
            label is above its median, and no single value is suspicious.
        blocks: Block of time of each row; folds are made of whole blocks, shape [B].
        limits: Warnings and refusals; None for the defaults.
        seed: Of the folds and samples.
    """
    limits = limits or LeakLimits()
    if not np.isfinite(labels).all():
        return LeakReport("labels_unusable")
    day = np.unique(blocks, return_inverse=True)[1]
    if len(labels) < limits.minimum_rows or day.max() + 1 < limits.minimum_blocks:
        return LeakReport("not_enough_rows")
    numbers = np.asarray(labels, np.float64)
    binary = bool(((numbers == 0) | (numbers == 1)).all())
    truth = numbers if binary else (numbers > np.median(numbers)).astype(np.float64)
    if truth.min() == truth.max():
        return LeakReport("one_class")
    coded = {name: code_column(values) for name, values in columns.items()}
    alone = Alone(truth, day, seed)
    reached = {name: alone.auc(each) for name, each in coded.items()}
    found = _Found(limits)
    for name, each in coded.items():
        _one_feature(found, name, each, alone, reached[name], binary)
    found.parts(parts_of_label(columns, numbers))
    if limits.beats_others:
        for name, difference in beats_the_others(columns, coded, alone, reached, found.names, seed):
            found.beats(name, difference)
    return LeakReport("checked", tuple(found.refusals), tuple(found.warnings), reached)


def _one_feature(found: _Found, name: str, coded: Coded, alone: Alone, reached: float, binary: bool) -> None:
    settled = alone.settled(coded)
    if binary and settled >= COPY and len(coded.names) <= max(10, len(alone.truth) // 100):
        text = f"{name} settles the label of {settled:.2%} of the rows: a copy of it, or its inverse"
        found.add("copy_of_label", name, settled, COPY, COPY, text)
        return
    text = f"{name} alone reaches an AUC of {reached:.4f} out of fold"
    found.add("predicts_too_well", name, reached, found.limits.alone_warn, found.limits.alone_refuse, text)
    pure = alone.purest(coded, found.limits.minimum_blocks)
    if binary and pure is not None:
        kind = "missing_tells_label" if pure.missing else "value_tells_label"
        text = (
            f"{name}={pure.name}: {pure.positive:.2%} positive of {pure.rows} rows, "
            f"{alone.truth.mean():.2%} of all"
        )
        found.add(kind, name, pure.purity, found.limits.pure_warn, found.limits.pure_refuse, text)
    missing = alone.missing_auc(coded)
    text = f"whether {name} is missing tells the label with an AUC of {missing:.4f}"
    found.add(
        "missing_tells_label", name, missing, found.limits.missing_warn, found.limits.missing_refuse, text
    )


class _Found:
    """Findings so far, sorted into warnings and refusals."""

    def __init__(self, limits: LeakLimits) -> None:
        self.limits = limits
        self.refusals: list[LeakFinding] = []
        self.warnings: list[LeakFinding] = []

    @property
    def names(self) -> set[str]:
        """Features found so far."""
        return {finding.feature for finding in (*self.refusals, *self.warnings)}

    def add(self, kind: str, name: str, value: float, warn: float, refuse: float, text: str) -> None:
        """Keep a finding if its value reaches one of its limits."""
        refused = value >= refuse and name not in self.limits.vouched
        if not refused and value < warn:
            return
        finding = LeakFinding(name, kind, value, refuse if refused else warn, text)
        (self.refusals if refused else self.warnings).append(finding)

    def parts(self, names: tuple[str, ...]) -> None:
        """Features of which the label is a weighted sum."""
        for name in names:
            text = f"the label is a weighted sum of {' and '.join(names)}"
            told = (*self.refusals, *self.warnings)
            if not any(each.feature == name and each.kind == "copy_of_label" for each in told):
                self.add("part_of_label", name, 1.0, COPY, COPY, text)

    def beats(self, name: str, difference: float) -> None:
        """A feature that is worth more than all others together."""
        text = f"{name} alone predicts better than all other features together, by {difference:.4f} of AUC"
        self.warnings.append(LeakFinding(name, "beats_all_others", difference, 0.0, text))


def late_features(
    times: Columns,
    predicted_at: npt.NDArray[Any],
    labelled_at: npt.NDArray[Any] | None = None,
    tolerated: float = 0.001,
) -> tuple[LeakFinding, ...]:
    """Find features that come later than the prediction that uses them.

    Args:
        times: When each row's value was known, or timestamps that are features themselves: seconds, or
            datetime64; missing ones are left out, shape [B] each.
        predicted_at: When the prediction is made, in the same kind, shape [B].
        labelled_at: When the label became known; None where nobody knows.
        tolerated: Share of rows that may be late: clocks differ.
    """
    found = []
    limits = [("later_than_prediction", "the prediction", predicted_at)]
    if labelled_at is not None:
        limits.insert(0, ("later_than_label", "the label", labelled_at))
    for name, values in times.items():
        known = ~_missing_time(values)
        for kind, words, limit in limits:
            late = float(np.mean(values[known] > limit[known])) if known.any() else 0.0
            if late > tolerated:
                text = f"{name} is later than {words} in {late:.2%} of its rows; vouch for it if it is a plan"
                found.append(LeakFinding(name, kind, late, tolerated, text))
                break
    return tuple(sorted(found, key=lambda finding: -finding.value))


def _missing_time(values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    missing: npt.NDArray[np.bool_] = np.isnat(values) if values.dtype.kind == "M" else np.isnan(values)
    return missing
