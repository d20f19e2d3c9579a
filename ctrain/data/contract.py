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
NULLS = pa.array(["", "NA", "N/A", "NULL", "null", "NaN", "nan"])
"""Text that means "no value" in a column of numbers, flags or timestamps."""
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
        worst = max(report.reasons, key=lambda reason: (reason != NO_LABEL, report.reasons[reason], reason))
        return f"{share:.1%} of rows break the contract, {limit:.1%} are allowed; most often {worst}"
    return "" if report.accepted else "no row has a label"


def _convert(source: pa.Array, column: Column) -> tuple[pa.Array, npt.NDArray[np.bool_]]:
    """Canonical values, and which ones could not be read as such. No value depends on another row."""
    if pa.types.is_dictionary(source.type):
        source = source.dictionary_decode()
    kind, target = source.type, TYPES[column.kind]
    readable = np.zeros(len(source), bool)
    if pa.types.is_null(kind):
        return source.cast(target), readable
    if column.kind == "category":
        return _category(source)
    if column.kind == "timestamp" and pa.types.is_timestamp(kind):
        return _timestamp(source)
    if column.kind == "flag" and pa.types.is_boolean(kind):
        return source.cast(pa.int8()).cast(target), readable
    if column.kind in ("number", "flag") and pa.types.is_primitive(kind) and not pa.types.is_temporal(kind):
        converted = source.cast(target, safe=False)
        return pc.if_else(pc.is_nan(converted), None, converted), readable
    if pa.types.is_decimal(kind) and column.kind == "number":
        return source.cast(target), readable
    if pa.types.is_date(kind) and column.kind == "timestamp":
        return _timestamp(source.cast(pa.timestamp("s" if kind == pa.date32() else "ms")))
    if not _is_text(kind):
        return pa.nulls(len(source), target), np.asarray(pc.is_valid(source))
    text = source.cast(pa.string())
    text = pc.if_else(pc.is_in(pc.utf8_trim_whitespace(text), NULLS), None, text)
    if column.kind == "timestamp":
        read = pd.to_datetime(text.to_pandas(), errors="coerce", utc=True, format="ISO8601")
        converted = pa.Array.from_pandas(read.dt.tz_localize(None)).cast(target, safe=False)
    else:
        words = {"true": "1", "false": "0"} if column.kind == "flag" else {}
        converted = pa.array([_number(value, words) for value in text.to_pylist()], target)
    return converted, np.asarray(pc.and_(pc.is_null(converted), pc.is_valid(text)))


def _number(text: str | None, words: Mapping[str, str]) -> float | None:
    """The nearest float, which `pd.to_numeric` misses by a bit; None if it is no number."""
    if text is None or "_" in text:
        return None
    try:
        found = float(words.get(text.strip().lower(), text))
    except ValueError:
        return None
    return None if found != found else found


def _category(source: pa.Array) -> tuple[pa.Array, npt.NDArray[np.bool_]]:
    """Text as it is, plain values spelled out; empty text is a missing value, as in feature views."""
    kind, readable = source.type, np.zeros(len(source), bool)
    if pa.types.is_nested(kind):
        return pa.nulls(len(source), pa.string()), np.asarray(pc.is_valid(source))
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        decoded = [_decoded(value) for value in source.to_pylist()]
        text = pa.array(decoded, pa.string())
        readable = np.asarray(pc.and_(pc.is_null(text), pc.is_valid(source)))
    else:
        text = source.cast(pa.string())
    return pc.if_else(pc.equal(text, ""), None, text), readable


def _decoded(value: bytes | None) -> str | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return None


def _timestamp(source: pa.Array) -> tuple[pa.Array, npt.NDArray[np.bool_]]:
    """Microseconds in UTC; a time that they cannot hold is unreadable, not another time."""
    factor = {"s": 1_000_000, "ms": 1_000}.get(source.type.unit, 1)
    whole = source.cast(pa.int64())
    limit = (2**63 - 1) // factor
    fits = pc.and_(pc.less_equal(whole, limit), pc.greater_equal(whole, -limit))
    kept = pc.if_else(fits, source, None)
    unreadable = np.asarray(pc.fill_null(pc.invert(fits), False))
    return kept.cast(TYPES["timestamp"], safe=False), unreadable


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
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))
