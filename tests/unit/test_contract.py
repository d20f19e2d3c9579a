import datetime as dt
import decimal
import re
from typing import Any

import pyarrow as pa
import pytest
from factories import spec
from hypothesis import given, settings
from hypothesis import strategies as st
from landed import GOOD, NOON, SCHEMA, TABLES, view

from ctrain.data import contract_columns
from ctrain.data.contract import (
    NO_LABEL,
    Checked,
    ambiguous_columns,
    check,
    check_contract,
    contract_faults,
    missing_columns,
    refusal,
)
from ctrain.errors import DataError
from ctrain.features import Column, feature_view
from ctrain.records import ContractReport

COLUMNS = contract_columns(spec(), view)


def checked(columns: dict[str, Any]) -> Checked:
    rows = max((len(v) for v in columns.values()), default=1)
    table = pa.table({name: columns.get(name, [good] * rows) for name, good in GOOD.items()})
    return check(table, COLUMNS, "y", "t")


def reasons(**columns: Any) -> dict[str, int]:
    return checked(columns).report.reasons


def test_the_contract_is_of_view_label_and_event_time() -> None:
    assert set(COLUMNS) == {"kind", "size", "weight", "vip", "t", "y"}
    assert COLUMNS["y"] == Column("flag", nullable=True)
    override = spec(contract={"columns": {"size": {"dtype": "number", "maximum": 3}, "z": {"dtype": "flag"}}})
    columns = contract_columns(override, view)
    assert columns["size"] == Column("number", maximum=3)
    assert "z" in columns


def test_good_rows_come_out_in_canonical_types() -> None:
    found = checked({"size": pa.array([1, 2], pa.int32()), "y": [True, False]})
    assert found.report == ContractReport(2, 2, {})
    assert found.refused.num_rows == 0
    types = {field.name: str(field.type) for field in found.accepted.schema}
    assert types == {
        "kind": "string", "size": "double", "weight": "double", "vip": "double", "t": "timestamp[us]",
        "y": "double",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("kind", "c", "kind: not an allowed value"),
        ("kind", None, "kind: null"),
        ("kind", "", "kind: null"),
        ("size", -1.0, "size: below 0"),
        ("size", 11.0, "size: above 10"),
        ("size", None, "size: null"),
        ("size", float("nan"), "size: null"),
        ("size", float("inf"), "size: not finite"),
        ("size", float("-inf"), "size: not finite"),
        ("size", True, "size: not a number"),
        ("weight", 1.1e30, "weight: out of range"),
        ("weight", "-1e31", "weight: out of range"),
        ("size", "many", "size: not a number"),
        ("size", "1_0", "size: not a number"),
        ("size", "", "size: null"),
        ("size", "-1", "size: below 0"),
        ("size", [1.0], "size: not a number"),
        ("size", NOON, "size: not a number"),
        ("weight", "inf", "weight: not finite"),
        ("vip", 2, "vip: neither 0 nor 1"),
        ("vip", "perhaps", "vip: not a flag"),
        ("vip", float("inf"), "vip: not finite"),
        ("t", None, "t: null"),
        ("t", "yesterday", "t: not a timestamp"),
        ("t", "2013-02-30", "t: not a timestamp"),
        ("t", 1363262400, "t: not a timestamp"),
        ("y", 3, "y: neither 0 nor 1"),
        ("y", "late", "y: not a flag"),
        ("y", None, NO_LABEL),
    ],
)
def test_each_bad_value_has_its_reason(column: str, value: Any, reason: str) -> None:
    assert reasons(**{column: [value]}) == {reason: 1}


@pytest.mark.parametrize(
    ("column", "values", "expected"),
    [
        ("weight", ["0.1", " 2.5 ", "1e3", "", "NA", "nan", None], [0.1, 2.5, 1000.0, *[None] * 4]),
        ("weight", [decimal.Decimal("1.5")], [1.5]),
        ("weight", pa.array(["1", "2", "1"]).dictionary_encode(), [1.0, 2.0, 1.0]),
        ("vip", ["true", "False", "1", "0", " TRUE ", ""], [1, 0, 1, 0, 1, None]),
        ("vip", [True, None], [1, None]),
        ("kind", [b"a", b"b"], ["a", "b"]),
        ("kind", pa.array(["a", "b"], pa.large_string()), ["a", "b"]),
        ("t", ["2013-03-14T12:00:00", "2013-03-14 13:00:00+01:00", "2013-03-14T12:00:00Z"], [NOON] * 3),
        ("t", [NOON.replace(tzinfo=dt.timezone(dt.timedelta(hours=2)))], [NOON - dt.timedelta(hours=2)]),
        ("t", [dt.date(2013, 3, 14)], [dt.datetime(2013, 3, 14)]),
        ("t", pa.array([NOON]).cast(pa.timestamp("ns")), [NOON]),
    ],
)
def test_what_a_value_is_read_as(column: str, values: Any, expected: list[Any]) -> None:
    found = checked({column: values})
    assert found.report.reasons == {}
    assert found.accepted.column(column).to_pylist() == expected


def test_a_time_that_microseconds_cannot_hold_is_no_other_time() -> None:
    assert reasons(t=pa.array([2**62, 0], pa.timestamp("s"))) == {"t: not a timestamp": 1}


def test_one_value_that_is_no_text_leaves_the_others_as_they_are() -> None:
    found = checked({"kind": [b"a", b"\xff"]})
    assert found.accepted.column("kind").to_pylist() == ["a"]
    assert found.report.reasons == {"kind: not UTF-8": 1}


BROKEN = pa.array([b"a", b"\xff", None, b"\xed\xa0\x80"])


@pytest.mark.parametrize(
    "values",
    [
        pa.Array.from_buffers(pa.string(), 4, BROKEN.buffers()),
        pa.Array.from_buffers(pa.string(), 4, BROKEN.buffers()).dictionary_encode(),
        BROKEN,
        BROKEN.cast(pa.large_binary()),
        BROKEN.cast(pa.binary_view()),
    ],
    ids=["text", "dictionary", "bytes", "large bytes", "view of bytes"],
)
def test_text_that_is_not_utf8_is_refused_row_by_row_and_kept_readable(values: pa.Array) -> None:
    found = checked({"kind": values})
    assert found.report.reasons == {"kind: not UTF-8": 2, "kind: null": 1}
    assert found.accepted.column("kind").to_pylist() == ["a"]
    assert found.refused.column("kind").to_pylist() == ["\\xff", None, "\\xed\\xa0\\x80"]


@pytest.mark.parametrize("column", ["size", "vip", "t", "y"])
def test_text_that_is_not_utf8_is_no_other_value_either(column: str) -> None:
    assert (
        reasons(**{column: pa.Array.from_buffers(pa.string(), 4, BROKEN.buffers())})[f"{column}: not UTF-8"]
        == 2
    )


def test_bytes_of_a_fixed_size_are_text() -> None:
    found = checked({"kind": pa.array([b"a", b"b"], pa.binary(1))})
    assert found.accepted.column("kind").to_pylist() == ["a", "b"]


DAY = 86_400_000_000


def test_an_event_time_outside_the_span_is_refused_row_by_row() -> None:
    begin = int(dt.datetime(2013, 3, 14, tzinfo=dt.UTC).timestamp()) * 1_000_000
    times = pa.array(
        [begin - 1, begin, begin + DAY - 1, begin + DAY, None, 2**62, -(2**62)], pa.timestamp("us")
    )
    table = pa.table({name: times if name == "t" else [good] * 7 for name, good in GOOD.items()})
    found = check(table, COLUMNS, "y", "t", (begin, begin + DAY))
    assert found.report.reasons == {"t: outside the partition's day": 4, "t: null": 1}
    assert found.accepted.column("t").cast(pa.int64()).to_pylist() == [begin, begin + DAY - 1]
    assert check(table, COLUMNS, "y", "t", (-(2**80), 2**80)).report.reasons == {"t: null": 1}


def test_columns_in_two_spellings_are_ambiguous() -> None:
    names = ["size", "Size", "t", "t", "more", "MORE", "kind"]
    table = pa.Table.from_arrays([pa.array([1])] * 7, names=names)
    assert ambiguous_columns(table, COLUMNS) == ["size", "t"]


@pytest.mark.parametrize(
    ("columns", "contract", "where", "problem"),
    [
        ({"y": Column.flag()}, {}, "features", "the view reads the label 'y', which no request can hold"),
        ({}, {"y": {"dtype": "number"}}, "contract.columns.y", "the label is a flag, 0 or 1, not a number"),
        (
            {},
            {"t": {"dtype": "timestamp", "nullable": True}},
            "contract.columns.t",
            "the event time is a timestamp that is never null",
        ),
        (
            {},
            {"t": {"dtype": "number"}},
            "contract.columns.t",
            "the event time is a timestamp that is never null",
        ),
        (
            {"t": Column.category()},
            {},
            "source.event_time",
            "the view declares it as category, and event times are timestamps",
        ),
        (
            {"x": Column.number()},
            {"x": {"dtype": "flag"}},
            "contract.columns.x",
            "dtype flag is not the view's, number",
        ),
        (
            {"reason": Column.number()},
            {},
            "features",
            "column 'reason' has a name that the tables use themselves",
        ),
        (
            {},
            {"Partition": {"dtype": "flag"}},
            "features",
            "column 'Partition' has a name that the tables use themselves",
        ),
        (
            {"x": Column.number(), "X": Column.number()},
            {},
            "features",
            "columns 'x' and 'X' differ only in case",
        ),
        ({"T": Column.number()}, {}, "features", "columns 'T' and 't' differ only in case"),
    ],
)
def test_a_spec_and_a_view_that_cannot_go_together_are_faults(columns, contract, where, problem) -> None:
    wanted = feature_view(**{"ok": Column.number(), **columns})(lambda rows: rows)
    pipeline = spec(contract={"columns": contract})
    assert [fault[:2] for fault in contract_faults(pipeline, wanted)] == [(where, problem)]
    with pytest.raises(DataError, match=re.escape(f"{where}: {problem}")):
        check_contract(pipeline, wanted)


def test_the_time_of_a_label_is_landed_and_never_a_feature() -> None:
    timed = spec(label={"name": "y", "known_at": "z"})
    assert contract_columns(timed, view)["z"] == Column.timestamp(nullable=True)
    reads = feature_view(z=Column.timestamp())(lambda rows: rows)
    assert [fault[:2] for fault in contract_faults(timed, reads)] == [
        ("features", "the view reads label.known_at, 'z', which no request can hold")
    ]
    typed = spec(label={"name": "y", "known_at": "z"}, contract={"columns": {"z": {"dtype": "number"}}})
    assert [fault[:2] for fault in contract_faults(typed, view)] == [
        ("contract.columns.z", "the time of a label is a timestamp, not a number")
    ]


def test_a_spec_and_a_view_that_go_together_have_no_faults() -> None:
    contract = {
        "size": {"dtype": "number", "maximum": 3}, "y": {"dtype": "flag"}, "t": {"dtype": "timestamp"},
        "more": {"dtype": "category"},
    }  # fmt: skip
    assert contract_faults(spec(contract={"columns": contract}), view) == []


def test_a_row_counts_for_its_first_reason_and_is_kept_as_text() -> None:
    found = checked({"kind": ["c"], "size": [-1.0]})
    assert found.report.reasons == {"kind: not an allowed value": 1}
    (row,) = found.refused.to_pylist()
    assert row["reason"] == "kind: not an allowed value"
    assert (row["size"], row["kind"]) == ("-1", "c")
    assert {str(field.type) for field in found.refused.schema} == {"string"}


def test_an_event_time_is_never_null_whatever_the_contract_says() -> None:
    table = pa.table({"t": pa.array([None], pa.timestamp("us")), "y": [1]})
    columns = {"t": Column.timestamp(nullable=True), "y": Column.flag(nullable=True)}
    assert check(table, columns, "y", "t").report.reasons == {"t: null": 1}


@pytest.mark.parametrize("name", list(GOOD))
def test_a_column_of_nulls_without_a_type_is_read(name: str) -> None:
    found = reasons(**{name: pa.nulls(2)})
    assert found == ({} if name in ("weight", "vip") else {NO_LABEL if name == "y" else f"{name}: null": 2})


def test_an_empty_table_is_checked_and_refused() -> None:
    table = pa.table({name: pa.array([], pa.string()) for name in GOOD})
    found = check(table, COLUMNS, "y", "t")
    assert found.report == ContractReport(0, 0, {})
    assert found.accepted.num_rows == 0
    assert refusal(found.report, 0.5) == "it is empty"


def test_missing_columns_are_named_in_order() -> None:
    assert missing_columns(pa.table({"size": [1], "t": [1], "extra": [0]}), COLUMNS) == [
        "kind", "weight", "vip", "y",
    ]  # fmt: skip


def test_an_extension_type_is_refused() -> None:
    table = pa.table({**{name: [good] for name, good in GOOD.items()}, "size": pa.array(["1"], pa.json_())})
    with pytest.raises(ValueError, match="column size has extension type"):
        check(table, COLUMNS, "y", "t")


def test_a_row_without_a_label_is_no_fault() -> None:
    report = ContractReport(100, 10, {NO_LABEL: 88, "size: null": 2})
    assert refusal(report, 0.02) == ""
    text = refusal(report, 0.01)
    assert text == "2.0% of rows break the contract, 1.0% are allowed; most often size: null"
    assert refusal(ContractReport(5, 0, {NO_LABEL: 5}), 0.0) == "no row has a label"


def accepted(rows: list[dict[str, Any]], schema: pa.Schema | None = SCHEMA) -> list[str]:
    found = check(pa.Table.from_pylist(rows, schema), COLUMNS, "y", "t").accepted
    return [str(row) for row in found.to_pylist()]


@given(TABLES, st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_the_verdict_on_a_row_does_not_depend_on_the_rows_beside_it(rows, chance) -> None:
    whole = accepted(rows)
    assert whole == [line for row in rows for line in accepted([row])]
    shuffled = chance.sample(rows, len(rows))
    assert sorted(accepted(shuffled)) == sorted(whole)


@given(TABLES)
@settings(max_examples=50, deadline=None)
def test_text_and_typed_values_meet_the_same_verdict(rows) -> None:
    spelled = [{name: None if v is None else str(v) for name, v in row.items()} for row in rows]
    text = pa.schema([(name, pa.string()) for name in GOOD])
    typed = check(pa.Table.from_pylist(rows, SCHEMA), COLUMNS, "y", "t")
    read = check(pa.Table.from_pylist(spelled, text), COLUMNS, "y", "t")
    assert read.report == typed.report
    assert str(read.accepted.to_pylist()) == str(typed.accepted.to_pylist())
