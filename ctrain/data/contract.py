"""Contract: decide row by row what may be used. Pure: a table in, accepted and refused rows out.

Columns come from the feature view's declaration, the label and the event time; the spec's contract
overrides them column by column. Further columns of the source are allowed and dropped. A row counts
for the first reason that it meets. A row without a label is left out too, but is no fault of the
data: it does not count towards the limit of refused rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ctrain.data.convert import convert, plain_array, spelled_out, valid_text
from ctrain.errors import DataError, Fault
from ctrain.features import LARGEST, Column, FeatureView
from ctrain.records import NO_LABEL, ContractReport
from ctrain.spec import PipelineSpec

RESERVED = ("partition", "reason")
"""Columns that the tables add."""


OTHER_KIND = 0.5
"""Share of a partition's rows above which a column whose values cannot be read is one of another kind."""


@dataclass(frozen=True)
class Checked:
    """A table's rows after the contract."""

    accepted: pa.Table
    """Contract columns in their canonical types."""
    refused: pa.Table
    """Rows as text, with column `reason`."""
    report: ContractReport


def contract_faults(spec: PipelineSpec, view: FeatureView) -> list[Fault]:
    """Where spec and view cannot go together: what neither shows alone."""
    label, event_time, rules = spec.label.name, spec.source.event_time, spec.contract.columns
    known_at = spec.label.known_at
    faults = []
    if label in view.columns:
        problem = f"the view reads the label {label!r}, which no request can hold"
        faults.append(Fault("features", problem, "leave it out of the view's columns"))
    if known_at in view.columns:
        problem = f"the view reads label.known_at, {known_at!r}, which no request can hold"
        faults.append(Fault("features", problem, "leave it out of the view's columns"))
    if known_at in rules and rules[known_at].dtype != "timestamp":
        problem = f"the time of a label is a timestamp, not a {rules[known_at].dtype}"
        faults.append(Fault(f"contract.columns.{known_at}", problem, "dtype: timestamp"))
    if label in rules and rules[label].dtype != "flag":
        problem = f"the label is a flag, 0 or 1, not a {rules[label].dtype}"
        faults.append(Fault(f"contract.columns.{label}", problem, "dtype: flag"))
    if event_time in view.columns and view.columns[event_time].kind != "timestamp":
        problem = f"the view declares it as {view.columns[event_time].kind}, and event times are timestamps"
        faults.append(Fault("source.event_time", problem, "Column.timestamp()"))
    if event_time in rules and (rules[event_time].dtype != "timestamp" or rules[event_time].nullable):
        problem = "the event time is a timestamp that is never null"
        faults.append(Fault(f"contract.columns.{event_time}", problem, "dtype: timestamp, nullable: false"))
    for name, rule in rules.items():
        if name in view.columns and name != event_time and rule.dtype != view.columns[name].kind:
            problem = f"dtype {rule.dtype} is not the view's, {view.columns[name].kind}"
            faults.append(Fault(f"contract.columns.{name}", problem, f"dtype: {view.columns[name].kind}"))
    names = [*view.columns, event_time, label, *filter(None, [known_at]), *rules]
    for name in dict.fromkeys(names):
        if name.lower() in RESERVED:
            problem = f"column {name!r} has a name that the tables use themselves"
            faults.append(Fault("features", problem, f"any name but {', '.join(RESERVED)}"))
    for twins in _twins(names):
        problem = f"columns {' and '.join(map(repr, twins))} differ only in case"
        faults.append(Fault("features", problem, "tables do not tell them apart"))
    return faults


def check_contract(spec: PipelineSpec, view: FeatureView) -> None:
    """Refuse a spec and a view that cannot go together.

    Raises:
        DataError: names every fault.
    """
    if faults := contract_faults(spec, view):
        raise DataError("; ".join(f"{fault.where}: {fault.message} ({fault.hint})" for fault in faults))


def _twins(names: list[str]) -> list[list[str]]:
    """Groups of different names that are the same but for case."""
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        groups.setdefault(name.casefold(), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def contract_columns(spec: PipelineSpec, view: FeatureView) -> dict[str, Column]:
    """Every column that a partition must have, with its rules."""
    columns = dict(view.columns)
    columns.setdefault(spec.source.event_time, Column.timestamp())
    columns[spec.label.name] = Column("flag", nullable=True)
    if spec.label.known_at is not None:
        columns[spec.label.known_at] = Column.timestamp(nullable=True)
    for name, rule in spec.contract.columns.items():
        columns[name] = Column(rule.dtype, rule.nullable, "", rule.minimum, rule.maximum, rule.allowed)
    return columns


def missing_columns(table: pa.Table, columns: Mapping[str, Column]) -> list[str]:
    """Names of the columns that the table lacks."""
    return [name for name in columns if name not in table.column_names]


def ambiguous_columns(table: pa.Table, columns: Mapping[str, Column]) -> list[str]:
    """Columns that the table has more than once, or in spellings that differ only in case."""
    spellings = Counter(name.casefold() for name in table.column_names)
    return [name for name in columns if spellings[name.casefold()] > 1]


def check(
    table: pa.Table,
    columns: Mapping[str, Column],
    label: str,
    event_time: str,
    span: tuple[int, int] | None = None,
) -> Checked:
    """Check every row.

    Args:
        table: Rows as the source gives them; all `columns` are there.
        columns: Rules by name.
        label: Name of the label's column.
        event_time: Name of the event time's column, which must not be null.
        span: Event times that the partition may hold, in microseconds since 1970, the end left out;
            None for any.

    Raises:
        ValueError: if a column has an extension type, whose values would run code when read.
    """
    rows = table.num_rows
    reasons = np.full(rows, "", dtype=object)
    raw, values = {name: plain_array(table.column(name)) for name in columns}, dict[str, pa.Array]()
    for name, column in columns.items():
        source = raw[name]
        if isinstance(source.type, pa.BaseExtensionType):
            raise ValueError(f"column {name} has extension type {source.type}; expected a plain type")
        source, broken = valid_text(source)
        converted, unreadable = convert(source, column)
        nullable = column.nullable and name != event_time
        faults = [(f"{name}: not UTF-8", broken)]
        faults += _faults(name, column, converted, unreadable, nullable)
        if name == event_time and span is not None:
            faults.append((f"{name}: outside the partition's day", _outside(converted, span)))
        for reason, mask in faults:
            reasons = np.where((reasons == "") & mask, reason, reasons)
        values[name] = converted
    without = np.asarray(pc.is_null(values[label]))
    reasons = np.where((reasons == "") & without, NO_LABEL, reasons)
    good = pa.array(reasons == "")
    fields = {name: values[name].filter(good) for name in columns}
    bad = pc.invert(good)
    refused = {name: spelled_out(raw[name].filter(bad)) for name in columns}
    refused["reason"] = pa.array(reasons[reasons != ""].astype(str), pa.string())
    unique, counts = np.unique(reasons[reasons != ""].astype(str), return_counts=True)
    report = ContractReport(
        rows=rows,
        accepted=int((reasons == "").sum()),
        reasons={str(reason): int(count) for reason, count in zip(unique, counts, strict=True)},
    )
    return Checked(pa.table(fields), pa.table(refused), report)


def refusal(report: ContractReport, limit: float) -> str:
    """Why the whole partition is refused; empty if it is used."""
    if report.rows == 0:
        return "it is empty"
    faults = sum(count for reason, count in report.reasons.items() if reason != NO_LABEL)
    share = faults / report.rows
    if share > limit:
        worst = max(report.reasons, key=lambda reason: (reason != NO_LABEL, report.reasons[reason], reason))
        return f"{share:.1%} of rows break the contract, {limit:.1%} are allowed; most often {worst}"
    return "" if report.accepted else "no row has a label"


def other_kinds(report: ContractReport, columns: Mapping[str, Column]) -> tuple[str, ...]:
    """Columns that come as another kind: most of their values cannot be read as the contract's."""
    counts = {name: report.reasons.get(not_a(name, column), 0) for name, column in columns.items()}
    return tuple(
        not_a(name, columns[name]) for name, count in counts.items() if count > OTHER_KIND * report.rows
    )


def not_a(name: str, column: Column) -> str:
    """Reason of a value that cannot be read."""
    return f"{name}: not a {column.kind}"


def _outside(times: pa.Array, span: tuple[int, int]) -> npt.NDArray[np.bool_]:
    begin, end = (min(max(bound, -(2**63)), 2**63 - 1) for bound in span)
    whole = times.cast(pa.int64())
    inside = pc.and_(pc.greater_equal(whole, begin), pc.less(whole, end))
    return np.asarray(pc.fill_null(pc.invert(inside), False))


def _faults(
    name: str, column: Column, values: pa.Array, unreadable: npt.NDArray[np.bool_], nullable: bool
) -> list[tuple[str, npt.NDArray[np.bool_]]]:
    null = np.asarray(pc.is_null(values))
    faults = [(not_a(name, column), unreadable)]
    if not nullable:
        faults.append((f"{name}: null", null))
    if column.kind in ("number", "flag"):
        numbers = values.to_numpy(zero_copy_only=False)
        faults.append((f"{name}: not finite", np.isinf(numbers)))
        if column.kind == "flag":
            faults.append((f"{name}: neither 0 nor 1", ~null & ~np.isin(numbers, (0.0, 1.0))))
        else:
            faults.append((f"{name}: out of range", np.abs(numbers) > LARGEST))
        if column.minimum is not None:
            faults.append((f"{name}: below {column.minimum:g}", numbers < column.minimum))
        if column.maximum is not None:
            faults.append((f"{name}: above {column.maximum:g}", numbers > column.maximum))
    if column.allowed is not None:
        known = np.asarray(pc.is_in(values, pa.array(column.allowed, pa.string())))
        faults.append((f"{name}: not an allowed value", ~null & ~known))
    return faults
