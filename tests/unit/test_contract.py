import datetime as dt
import decimal
import random
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from factories import spec
from hypothesis import given, settings
from hypothesis import strategies as st

from ctrain.data import Dataset, contract_columns, ingest, seal_partition
from ctrain.data.contract import NO_LABEL, Checked, check, missing_columns, refusal
from ctrain.data.ingest import QUARANTINE_TABLE, ROWS_TABLE, check_file, commit
from ctrain.data.land import FileSource
from ctrain.errors import DataError
from ctrain.features import Column, feature_view
from ctrain.records import ContractReport, IngestedPartition, IngestRequest, Partition
from ctrain.storage import Root

NOON = dt.datetime(2013, 3, 14, 12)


@feature_view(
    kind=Column.category(allowed=("a", "b")),
    size=Column.number(minimum=0, maximum=10),
    weight=Column.number(nullable=True),
    vip=Column.flag(nullable=True),
)
def view(rows):
    return {"kind": rows["kind"], "size": rows["size"]}


COLUMNS = contract_columns(spec(), view)
GOOD = {"kind": "a", "size": 1.0, "weight": 2.0, "vip": True, "t": NOON, "y": 1}


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
    assert found.report.reasons == {"kind: not a category": 1}


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


VALUES = {
    "kind": st.sampled_from(["a", "b", "c", "", None]),
    "size": st.one_of(st.none(), st.floats(-2, 12), st.sampled_from([float("nan"), float("inf")])),
    "weight": st.one_of(st.none(), st.floats()),
    "vip": st.sampled_from([0.0, 1.0, 0.5, None]),
    "t": st.one_of(st.none(), st.datetimes(dt.datetime(1900, 1, 1), dt.datetime(2200, 1, 1))),
    "y": st.sampled_from([0.0, 1.0, 2.0, None]),
}
SCHEMA = pa.schema(
    [
        ("kind", pa.string()), ("size", pa.float64()), ("weight", pa.float64()), ("vip", pa.float64()),
        ("t", pa.timestamp("us")), ("y", pa.float64()),
    ]
)  # fmt: skip
TABLES = st.lists(st.fixed_dictionaries(VALUES), max_size=12)


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


# --- files and commits --------------------------------------------------------------------------


class Landing:
    """A landing folder and the root that it is ingested into, without Ray."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.root = folder / "landing", Root(folder / "root")
        source = {"type": "files", "path": str(self.folder), "event_time": "t"}
        self.spec = spec(source=source, features=f"{__name__}:view", contract={"max_refused": 0.5})

    def land(self, name: str, rows: list[dict[str, Any]] | str, files: int = 1) -> Partition:
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        if isinstance(rows, str):
            (folder / "a.csv").write_text(rows)
        else:
            for number in range(files):
                part = pa.Table.from_pylist(rows[number::files], SCHEMA)
                pq.write_table(part, folder / f"{number}.parquet")
        seal_partition(folder)
        (found,) = [s.partition for s in FileSource(self.spec).look({}) if s.name == name]
        assert found is not None
        return found

    def ingest(self, partition: Partition) -> IngestedPartition:
        request = IngestRequest("k", "p", str(self.root.path), self.spec.to_json(), "", (partition,))
        return commit(request, partition, [check_file(request, partition, f) for f in partition.files])

    def rows(self, name: str, version: int) -> list[str]:
        return sorted(str(row) for row in Dataset(self.root, "p", version).table(name).to_pylist())


def test_columns_of_a_csv_are_read_by_the_contract_not_by_guess(tmp_path: Path) -> None:
    landing = Landing(tmp_path)
    text = (
        "kind,size,weight,vip,t,y,more\na,1,,true,2013-03-14T12:00:00,1,x\nb,2,NA,,2013-03-14 12:00:00Z,0,y\n"
    )
    first = landing.ingest(landing.land("2013-03-14", text))
    assert first.refused == ""
    table = Dataset(landing.root, "p", first.dataset_version).table("2013-03-14")
    assert table.select(list(GOOD)).to_pylist() == [
        {"kind": "a", "size": 1.0, "weight": None, "vip": 1.0, "t": NOON, "y": 1.0},
        {"kind": "b", "size": 2.0, "weight": None, "vip": None, "t": NOON, "y": 0.0},
    ]


@pytest.mark.parametrize("bad", ["", "b,two,,,2013-03-14,0\n"])
def test_a_bad_value_of_a_csv_changes_no_other(tmp_path: Path, bad: str) -> None:
    landing = Landing(tmp_path)
    landing.spec = spec(
        source=landing.spec.source.model_dump(), features=f"{__name__}:view",
        contract={"max_refused": 0.5, "columns": {"kind": {"dtype": "category"}}},
    )  # fmt: skip
    first = landing.ingest(
        landing.land(
            "2013-03-14", f"kind,size,weight,vip,t,y\n01,1,,,2013-03-14,1\n02,2,,,2013-03-14,0\n{bad}"
        )
    )
    table = Dataset(landing.root, "p", first.dataset_version).table("2013-03-14")
    assert table.column("kind").to_pylist() == ["01", "02"]
    assert first.report.reasons == ({"size: not a number": 1} if bad else {})


def test_a_file_that_lacks_columns_refuses_the_partition(tmp_path: Path) -> None:
    landing = Landing(tmp_path)
    found = landing.ingest(landing.land("2013-03-14", "kind,size\na,1\n"))
    assert found.refused == "a.csv lacks columns weight, vip, t, y; it has kind, size"
    assert found.dataset_version == -1


def test_too_many_bad_rows_refuse_the_partition_and_stay_in_quarantine(tmp_path: Path) -> None:
    landing = Landing(tmp_path)
    found = landing.ingest(landing.land("2013-03-14", [{**GOOD, "size": -1.0}] * 3 + [GOOD]))
    assert found.refused.startswith("75.0% of rows break the contract")
    from deltalake import DeltaTable

    tables = landing.root.pipeline("p").tables
    assert len(DeltaTable(tables / QUARANTINE_TABLE).file_uris()) == 1
    assert not (tables / ROWS_TABLE / "_delta_log").exists()
    # what was refused whole may be landed again, better
    better = landing.ingest(landing.land("2013-03-14", [GOOD, {**GOOD, "size": -1.0}]))
    assert better.refused == ""
    assert len(landing.rows("2013-03-14", better.dataset_version)) == 1


def test_other_content_under_a_committed_name_is_refused(tmp_path: Path) -> None:
    landing = Landing(tmp_path)
    first = landing.ingest(landing.land("2013-03-14", [GOOD]))
    other = landing.land("2013-03-14", [GOOD, GOOD, {**GOOD, "size": -1.0}])
    again = landing.ingest(other)
    assert again.refused == (
        f"landed again with other content ({other.sha256[:12]}); {first.sha256[:12]} stands. "
        "Land corrections as a new partition"
    )
    assert again.dataset_version == -1
    next_day = landing.ingest(landing.land("2013-03-15", [GOOD]))
    assert len(landing.rows("2013-03-14", next_day.dataset_version)) == 1


def test_of_two_contents_that_are_committed_at_once_one_stands(tmp_path: Path) -> None:
    landing = Landing(tmp_path)
    offers = [landing.land("2013-03-14", [GOOD] * count) for count in (1, 2, 3, 4)]
    requests = [
        IngestRequest("k", "p", str(landing.root.path), landing.spec.to_json(), "", (offer,))
        for offer in offers
    ]
    summaries = []
    for count, (request, offer) in enumerate(zip(requests, offers, strict=True), 1):
        landing.land("2013-03-14", [GOOD] * count)
        summaries.append([check_file(request, offer, file) for file in offer.files])
    results = at_once([(commit, args) for args in zip(requests, offers, summaries, strict=True)])
    assert sorted(bool(result.refused) for result in results) == [False, True, True, True]
    (stands,) = [result for result in results if not result.refused]
    assert len(landing.rows("2013-03-14", stands.dataset_version)) == stands.report.rows


def test_partitions_that_are_committed_at_once_all_land(tmp_path: Path) -> None:
    landing = Landing(tmp_path)
    names = [f"2013-03-{day:02d}" for day in range(10, 16)]
    partitions = [landing.land(name, [GOOD]) for name in names]
    results = at_once([(landing.ingest, (partition,)) for partition in partitions * 2])
    assert [result.refused for result in results] == [""] * 12
    assert results[:6] == results[6:]
    newest = max(result.dataset_version for result in results)
    assert [len(landing.rows(name, newest)) for name in names] == [1] * 6


def at_once(calls: list[tuple[Any, tuple[Any, ...]]]) -> list[Any]:
    results: list[Any] = [None] * len(calls)
    barrier = threading.Barrier(len(calls))

    def work(index: int) -> None:
        function, arguments = calls[index]
        barrier.wait()
        results[index] = function(*arguments)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@given(st.lists(TABLES, min_size=1, max_size=3), st.randoms(use_true_random=False), st.integers(1, 3))
@settings(max_examples=8, deadline=None)
def test_order_repetition_and_division_into_files_do_not_change_what_is_accepted(
    tmp_path_factory, tables, chance: random.Random, files: int
) -> None:
    days = [(f"2013-03-{day:02d}", [GOOD, *rows]) for day, rows in enumerate(tables, 1)]
    plain, disturbed = Landing(tmp_path_factory.mktemp("a")), Landing(tmp_path_factory.mktemp("b"))
    once = {name: plain.ingest(plain.land(name, rows)) for name, rows in days}
    offers = [disturbed.land(name, chance.sample(rows, len(rows)), files) for name, rows in days]
    results = [disturbed.ingest(offer) for offer in chance.sample(offers * 2, 2 * len(offers))]
    assert len({result.name: result for result in results}) == len(days)
    assert len(set(map(str, results))) == len(days)
    here, there = (max(r.dataset_version for r in found) for found in (once.values(), results))
    for result in results:
        assert result.report == once[result.name].report
        assert result.refused == once[result.name].refused
        if not result.refused:
            assert plain.rows(result.name, here) == disturbed.rows(result.name, there)


def test_ingest_without_ray_says_what_to_do() -> None:
    import ray

    if ray.is_initialized():
        pytest.skip("integration tests have started Ray in this process")
    with pytest.raises(DataError, match=r"not connected to Ray. Call ray.init\(\) first"):
        ingest(IngestRequest("k", "p", "/root", spec().to_json(), "", ()))
