"""Contract: decide row by row what may be used. Pure: a table in, accepted and refused rows out.

Columns come from the feature view's declaration, the label and the event time; the spec's contract
overrides them column by column. Further columns of the source are allowed and dropped. A row counts
for the first reason that it meets. A row without a label is left out too, but is no fault of the
data: it does not count towards the limit of refused rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from ctrain.features import Column, FeatureView
from ctrain.records import ContractReport
from ctrain.spec import PipelineSpec

NO_LABEL = "label is null"
TYPES = {
    "category": pa.string(),
    "number": pa.float64(),
    "timestamp": pa.timestamp("us"),
    "flag": pa.float64(),
}


@dataclass(frozen=True)
class Checked:
    """A table's rows after the contract."""

    accepted: pa.Table
    """Contract columns in their canonical types."""
    refused: pa.Table
    """Rows as text, with column `reason`."""
    report: ContractReport


def contract_columns(spec: PipelineSpec, view: FeatureView) -> dict[str, Column]:
    """Every column that a partition must have, with its rules."""
    columns = dict(view.columns)
    columns.setdefault(spec.source.event_time, Column.timestamp())
    columns[spec.label.name] = Column("flag", nullable=True)
    for name, rule in spec.contract.columns.items():
        columns[name] = Column(rule.dtype, rule.nullable, "", rule.minimum, rule.maximum, rule.allowed)
    return columns


def missing_columns(table: pa.Table, columns: Mapping[str, Column]) -> list[str]:
    """Names of the columns that the table lacks."""
    return [name for name in columns if name not in table.column_names]


def check(table: pa.Table, columns: Mapping[str, Column], label: str, event_time: str) -> Checked:
    """Check every row.

    Args:
        table: Rows as the source gives them; all `columns` are there.
        columns: Rules by name.
        label: Name of the label's column.
        event_time: Name of the event time's column, which must not be null.

    Raises:
        ValueError: if a column has an extension type, whose values would run code when read.
    """
    rows = table.num_rows
    reasons = np.full(rows, "", dtype=object)
    values: dict[str, pa.Array] = {}
    for name, column in columns.items():
        source = table.column(name).combine_chunks()
        if isinstance(source.type, pa.BaseExtensionType):
            raise ValueError(f"column {name} has extension type {source.type}; expected a plain type")
        converted, unreadable = _convert(source, column)
        nullable = column.nullable and name != event_time
        for reason, mask in _faults(name, column, converted, unreadable, nullable):
            reasons = np.where((reasons == "") & mask, reason, reasons)
        values[name] = converted
    without = np.asarray(pc.is_null(values[label]))
    reasons = np.where((reasons == "") & without, NO_LABEL, reasons)
    good = pa.array(reasons == "")
    fields = {name: values[name].filter(good) for name in columns}
    bad = pc.invert(good)
    refused = {name: _text(table.column(name)).filter(bad) for name in columns}
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
        worst = max(report.reasons, key=lambda reason: (reason != NO_LABEL, report.reasons[reason]))
        return f"{share:.1%} of rows break the contract, {limit:.1%} are allowed; most often {worst}"
    return "" if report.accepted else "no row has a label"


def _convert(source: pa.Array, column: Column) -> tuple[pa.Array, npt.NDArray[np.bool_]]:
    """Canonical values, and which ones could not be read as such."""
    target = TYPES[column.kind]
    try:
        if column.kind == "timestamp" and pa.types.is_timestamp(source.type):
            return source.cast(target, safe=False), np.zeros(len(source), bool)
        if column.kind == "flag" and pa.types.is_boolean(source.type):
            return source.cast(pa.int8()).cast(target), np.zeros(len(source), bool)
        if column.kind in ("number", "flag") and not _is_text(source.type):
            converted = source.cast(target, safe=False)
            return pc.if_else(pc.is_nan(converted), None, converted), np.zeros(len(source), bool)
        if column.kind == "category":
            return source.cast(target), np.zeros(len(source), bool)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        pass
    series = source.to_pandas()
    if column.kind == "timestamp":
        read = pd.to_datetime(series, errors="coerce", utc=True, format="ISO8601").dt.tz_localize(None)
    elif column.kind == "category":
        read = series.map(lambda value: None if value is None else str(value))
    else:
        read = pd.to_numeric(series, errors="coerce")
    unreadable = np.asarray(read.isna() & series.notna())
    return pa.Array.from_pandas(read).cast(target, safe=False), unreadable


def _faults(
    name: str, column: Column, values: pa.Array, unreadable: npt.NDArray[np.bool_], nullable: bool
) -> list[tuple[str, npt.NDArray[np.bool_]]]:
    null = np.asarray(pc.is_null(values))
    faults = [(f"{name}: not a {column.kind}", unreadable)]
    if not nullable:
        faults.append((f"{name}: null", null))
    if column.kind in ("number", "flag"):
        numbers = values.to_numpy(zero_copy_only=False)
        faults.append((f"{name}: not finite", np.isinf(numbers)))
        if column.kind == "flag":
            faults.append((f"{name}: neither 0 nor 1", ~null & ~np.isin(numbers, (0.0, 1.0))))
        if column.minimum is not None:
            faults.append((f"{name}: below {column.minimum:g}", numbers < column.minimum))
        if column.maximum is not None:
            faults.append((f"{name}: above {column.maximum:g}", numbers > column.maximum))
    if column.allowed is not None:
        known = np.asarray(pc.is_in(values, pa.array(column.allowed, pa.string())))
        faults.append((f"{name}: not an allowed value", ~null & ~known))
    return faults


def _text(values: pa.ChunkedArray) -> Any:
    plain = values.combine_chunks()
    try:
        return plain.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return pa.array([None if v is None else str(v) for v in plain.to_pylist()], pa.string())


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind))
