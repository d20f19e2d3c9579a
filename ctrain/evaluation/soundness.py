"""Whether the rows of a candidate are sound, whatever models say of them: leaks, and rows chosen by label.

Leaks are looked for in the rows that are judged on, which no judged model has learned from. Whether rows were
chosen by their label is asked of all rows, judged or learned from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ctrain.data.read import Dataset
from ctrain.evaluation.cohorts import check_censoring, taken_at
from ctrain.evaluation.leaks import LeakLimits, find_leaks, late_features
from ctrain.evaluation.ranking import Floats
from ctrain.features import Arrays, Column, columns_from_json
from ctrain.records import Censoring, Landing, LeakFinding, ModelVersion
from ctrain.spec import PipelineSpec

Findings = tuple[LeakFinding, ...]


@dataclass(frozen=True, slots=True)
class CandidateRows:
    """A candidate and the dataset version that it came from."""

    version: ModelVersion
    dataset: Dataset

    def columns(self, partitions: Sequence[str], wanted: Mapping[str, Column]) -> Arrays:
        """Raw columns of some partitions, one after the other; none without a partition."""
        if not partitions or not wanted:
            return {}
        parts = [self.dataset.arrays(name, wanted) for name in partitions]
        return {name: np.concatenate([part[name] for part in parts]) for name in wanted}


def leak_limits(spec: PipelineSpec) -> LeakLimits:
    """Limits of the search for leaks that a spec sets."""
    asked = spec.evaluation.leaks
    return LeakLimits(
        alone_warn=asked.alone_warn,
        alone_refuse=asked.alone_refuse,
        pure_refuse=asked.pure_refuse,
        missing_refuse=asked.missing_refuse,
        vouched=frozenset(asked.vouched),
    )


def leaks(
    spec: PipelineSpec, rows: CandidateRows, raw: Arrays, judged: Sequence[tuple[str, Floats]]
) -> tuple[Findings, Findings]:
    """Columns that know the label, and those that may or that a person vouches for.

    Args:
        spec: Limits, and the columns that say when a row happened and when its label became known.
        rows: Where the timestamps of the judged rows are read.
        raw: Raw columns of the judged rows but for timestamps.
        judged: Each judged block with the labels of its rows.
    """
    if not judged:
        return (), ()
    limits = leak_limits(spec)
    labels = np.concatenate([truth for _, truth in judged])
    blocks = np.repeat(np.arange(len(judged)), [len(truth) for _, truth in judged])
    report = find_leaks(raw, labels, blocks, limits)
    columns = columns_from_json(rows.version.columns)
    stamps = {name: column for name, column in columns.items() if column.kind == "timestamp"}
    times = rows.columns([block for block, _ in judged], stamps | times_of(spec))
    event = times.pop(spec.source.event_time)
    known_at = times.pop(spec.label.known_at) if spec.label.known_at is not None else None
    late = late_features(times, event, known_at)
    refused = tuple(one for one in late if one.feature not in limits.vouched)
    told = tuple(one for one in late if one.feature in limits.vouched)
    return (*report.refusals, *refused), (*report.warnings, *told)


def censoring(spec: PipelineSpec, rows: CandidateRows, landed: Mapping[str, Landing]) -> Censoring | None:
    """Whether the rows learned from and judged on were chosen by their label.

    Args:
        spec: When labels are final, and the column that says when each became known.
        rows: The candidate's.
        landed: How partitions landed, by name.

    Returns:
        None where too few labels have a time. Rows without one, such as those that landed before the spec
        named the column, are left out, and so are those of partitions that nobody knows when they were taken.
    """
    version, known_at = rows.version, spec.label.known_at
    if known_at is None:
        return None
    wanted = {**times_of(spec), version.label: Column.flag()}
    parts = {name: rows.columns([name], wanted) for name in version.partitions}
    known = {name: _seconds(part[known_at]) for name, part in parts.items()}
    newest = {
        name: float(np.max(times, initial=-np.inf, where=np.isfinite(times))) for name, times in known.items()
    }
    counts = {name: int(np.isfinite(times).sum()) for name, times in known.items()}
    taken = taken_at(newest, counts, {name: one.batch for name, one in landed.items()})
    if not taken:
        return None
    event, label_time = (
        np.concatenate([_seconds(parts[name][column]) for name in taken])
        for column in (spec.source.event_time, known_at)
    )
    return check_censoring(
        event,
        label_time,
        np.concatenate([parts[name][version.label] for name in taken]),
        spec.label.matures_after,
        np.concatenate([np.full(len(known[name]), time) for name, time in taken.items()]),
        selected=np.isfinite(label_time) & np.isfinite(event),
    )


def unlabelled(candidate: ModelVersion, landed: Mapping[str, Landing]) -> float:
    """Share of the rows of a candidate's partitions that were left out because they had no label."""
    facts = [landed[name] for name in candidate.partitions if name in landed]
    without = sum(one.unlabelled for one in facts)
    return without / max(1, without + sum(one.rows for one in facts))


def times_of(spec: PipelineSpec) -> dict[str, Column]:
    """Columns that say when a row happened and, where there is one, when its label became known.

    Either may be null: partitions that landed under another spec lack it.
    """
    names = [spec.source.event_time, *filter(None, [spec.label.known_at])]
    return {name: Column.timestamp(nullable=True) for name in names}


def _seconds(moments: npt.NDArray[Any]) -> Floats:
    """Seconds since 1970; NaN where there is no time."""
    found: Floats = moments.astype("datetime64[us]").astype(np.int64) / 1e6
    return np.where(np.isnat(moments), np.nan, found)
