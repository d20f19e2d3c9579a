"""Values as the contract reads them: one canonical Arrow type a kind, and which values do not fit.

Takes a column of the source in whatever type it has; no value depends on another row. A value is read as
the checks of a request would read it: no number from a flag, no text that is not UTF-8.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from ctrain.features import Column

NULLS = pa.array(["", "NA", "N/A", "NULL", "null", "NaN", "nan"])
"""Text that means "no value" in a column of numbers, flags or timestamps."""
TYPES = {
    "category": pa.string(),
    "number": pa.float64(),
    "timestamp": pa.timestamp("us"),
    "flag": pa.float64(),
}


def plain_array(column: pa.ChunkedArray) -> pa.Array:
    """One array, in a layout that every function of Arrow knows."""
    values = column.combine_chunks()
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if pa.types.is_string_view(values.type):
        return values.cast(pa.large_string())
    return values.cast(pa.large_binary()) if pa.types.is_binary_view(values.type) else values


def valid_text(source: pa.Array) -> tuple[pa.Array, npt.NDArray[np.bool_]]:
    """Text and bytes as text, null where they are not UTF-8, and where that is; others as they are."""
    intact = np.zeros(len(source), bool)
    if not _is_text(source.type) and not _is_bytes(source.type):
        return source, intact
    try:
        text = source.cast(pa.large_string())  # the cast of text does not look at its bytes
        text.validate(full=True)
    except pa.ArrowInvalid:
        decoded = [_decoded(value) for value in source.cast(pa.large_binary()).to_pylist()]
        text = pa.array(decoded, pa.string())
        return text, np.asarray(pc.and_(pc.is_null(text), pc.is_valid(source)))
    return text.cast(pa.string()), intact


def convert(source: pa.Array, column: Column) -> tuple[pa.Array, npt.NDArray[np.bool_]]:
    """Canonical values, and which ones could not be read as such. No value depends on another row."""
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
    if column.kind in ("number", "flag") and (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
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
    if pa.types.is_nested(source.type):
        return pa.nulls(len(source), pa.string()), np.asarray(pc.is_valid(source))
    text = source.cast(pa.string())
    return pc.if_else(pc.equal(text, ""), None, text), np.zeros(len(source), bool)


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


def spelled_out(plain: pa.Array) -> pa.Array:
    """Values as people read them in quarantine, whatever they are."""
    if _is_text(plain.type) or _is_bytes(plain.type):
        raw = plain.cast(pa.large_binary()).to_pylist()
        return pa.array(
            [None if v is None else v.decode(errors="backslashreplace") for v in raw], pa.string()
        )
    try:
        return plain.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return pa.array([None if v is None else str(v) for v in plain.to_pylist()], pa.string())


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)
    )


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
