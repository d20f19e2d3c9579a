import datetime as dt
import hashlib
import os
import random
import shutil
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
from factories import spec
from hypothesis import given, settings
from hypothesis import strategies as st
from landed import GOOD, NOON, TABLES, Landing

import ctrain.data.commit as commits
from ctrain.data import Dataset, ingest
from ctrain.data.commit import QUARANTINE_TABLE, ROWS_TABLE
from ctrain.data.ingest import check_file, commit
from ctrain.data.land import FileSource
from ctrain.errors import DataError
from ctrain.records import IngestRequest

module = sys.modules["ctrain.data.ingest"]
"""The package's attribute of this name is the function."""


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


@pytest.mark.parametrize("rows", ["kind,size,weight,vip,t,y\na,1,,true,2013-03-14T12:00:00,1\n", [GOOD]])
def test_a_source_may_be_a_url_of_fsspec(tmp_path: Path, rows: Any) -> None:
    landing, url = Landing(tmp_path), f"memory://{tmp_path.name}"
    landing.land("2013-03-14", rows)
    fsspec.filesystem("memory").put(str(landing.folder), f"/{tmp_path.name}", recursive=True)
    landing.spec = spec(source={**landing.spec.source.model_dump(), "path": url}, features="landed:view")
    (sighting,) = FileSource(landing.spec).look({})
    assert sighting.partition is not None, sighting.problem
    assert sighting.partition.path.startswith(url)
    shutil.rmtree(landing.folder)
    first = landing.ingest(sighting.partition)
    assert (first.refused, first.report.accepted) == ("", 1)
    table = Dataset(landing.root, "p", first.dataset_version).table("2013-03-14")
    assert table.column("kind").to_pylist() == ["a"]


@pytest.mark.parametrize("bad", ["", "b,two,,,2013-03-14,0\n"])
def test_a_bad_value_of_a_csv_changes_no_other(tmp_path: Path, bad: str) -> None:
    landing = Landing(tmp_path)
    landing.spec = spec(
        source=landing.spec.source.model_dump(), features="landed:view",
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
    assert found.schema_changes == tuple(f"{name}: column is gone" for name in ("weight", "vip", "t", "y"))


def test_a_column_of_another_kind_is_a_changed_schema_and_some_bad_values_are_none(tmp_path: Path) -> None:
    landing = Landing(tmp_path)
    words = [{**GOOD, "size": text} for text in ("large", "small", "huge")]
    header = ",".join(GOOD)

    def landed(day: str, rows: list) -> object:
        lines = [",".join("" if value is None else str(value) for value in row.values()) for row in rows]
        return landing.ingest(landing.land(day, "\n".join([header, *lines]) + "\n"))

    assert landed("2013-03-14", [*words, GOOD]).schema_changes == ("size: not a number",)
    few = landed("2013-03-15", [words[0], {**GOOD, "size": -1.0}, {**GOOD, "size": -1.0}, GOOD])
    assert few.refused.startswith("75.0% of rows break the contract")
    assert few.schema_changes == ()


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
    requests = [landing.request(offer) for offer in offers]
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


def test_ingest_without_ray_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # other tests may have started it
    with pytest.raises(DataError, match=r"not connected to Ray. Call ray.init\(\) first"):
        ingest(IngestRequest("k", "p", "/root", spec().to_json(), "", ()))


# --- what is wrong with one partition ------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"PAR1 no parquet at all", "is no readable parquet file"),
        (b"", "is no readable parquet file"),
        (None, "has sha256"),
    ],
)
def test_a_damaged_partition_is_refused_and_the_others_land(tmp_path: Path, content, problem: str) -> None:
    landing = Landing(tmp_path)
    good, bad = landing.land("2013-03-14", [GOOD]), landing.land("2013-03-15", [GOOD])
    data = content if content is not None else b"other bytes"
    (landing.folder / "2013-03-15" / "0.parquet").write_bytes(data)
    if content is not None:
        sealed = replace(bad.files[0], sha256=hashlib.sha256(content).hexdigest(), size=len(content))
        bad = replace(bad, files=(sealed,))
    first, second = landing.ingest_all(good, bad)
    assert (first.refused, second.dataset_version) == ("", -1)
    assert problem in second.refused


@pytest.mark.parametrize(
    "error", [KeyError("t"), RuntimeError("odd"), UnicodeDecodeError("utf-8", b"", 0, 1, "x")]
)
def test_any_exception_of_a_check_refuses_its_partition_by_name(tmp_path: Path, monkeypatch, error) -> None:
    landing = Landing(tmp_path)
    partitions = landing.land("2013-03-14", [GOOD] * 2), landing.land("2013-03-15", [GOOD])
    honest = module.check

    def check(table: Any, *rest: Any) -> Any:
        if table.num_rows == 2:
            raise error
        return honest(table, *rest)

    monkeypatch.setattr(module, "check", check)
    bad, good = landing.ingest_all(*partitions)
    assert bad.refused.startswith(f"0.parquet cannot be read: {type(error).__name__}: ")
    assert good.refused == ""


def test_an_exception_of_a_commit_refuses_its_partition_and_one_of_storage_leaves_it(
    tmp_path: Path, monkeypatch
) -> None:
    landing = Landing(tmp_path)
    partitions = [landing.land(f"2013-03-{day}", [GOOD]) for day in (14, 15, 16)]
    errors = {"2013-03-14": OSError("disk full"), "2013-03-15": LookupError("odd")}
    honest = module.commit_rows

    def commit_rows(tables: Path, partition: Any, *rest: Any) -> Any:
        if partition.name in errors:
            raise errors[partition.name]
        return honest(tables, partition, *rest)

    monkeypatch.setattr(module, "commit_rows", commit_rows)
    refused, landed = landing.ingest_all(*partitions)
    assert (refused.name, refused.refused) == ("2013-03-15", "it cannot be committed: LookupError: odd")
    assert (landed.name, landed.refused) == ("2013-03-16", "")
    with pytest.raises(OSError, match="2013-03-14: disk full"):
        landing.ingest_all(partitions[0])
    monkeypatch.undo()
    assert landing.ingest_all(*partitions)[0].refused == ""


def test_a_source_that_is_away_leaves_the_partition_for_another_time(tmp_path: Path) -> None:
    landing = Landing(tmp_path)
    away, good = landing.land("2013-03-14", [GOOD]), landing.land("2013-03-15", [GOOD])
    file = landing.folder / "2013-03-14" / "0.parquet"
    file.rename(tmp_path / "aside")
    assert [result.name for result in landing.ingest_all(away, good)] == ["2013-03-15"]
    with pytest.raises(OSError, match="FileNotFoundError"):
        landing.ingest_all(away)
    (tmp_path / "aside").rename(file)
    assert [result.refused for result in landing.ingest_all(away, good)] == ["", ""]


def test_columns_in_two_spellings_refuse_the_partition(tmp_path: Path) -> None:
    landing = Landing(tmp_path)
    found = landing.ingest(
        landing.land("2013-03-14", "kind,size,Size,weight,vip,t,t,y\na,1,2,,,2013-03-14,2013-03-14,1\n")
    )
    assert found.refused == "a.csv has columns size, t more than once, or in another case too"


def test_a_view_that_reads_the_label_lands_nothing(tmp_path: Path) -> None:
    landing = Landing(tmp_path)
    partition = landing.land("2013-03-14", [GOOD])
    landing.spec = landing.spec.model_copy(
        update={"label": landing.spec.label.model_copy(update={"name": "vip"})}
    )
    with pytest.raises(DataError, match="features: the view reads the label 'vip'"):
        landing.ingest(partition)


def test_a_row_of_another_day_is_refused_and_does_not_move_the_newest_event(tmp_path: Path) -> None:
    landing = Landing(tmp_path)
    source = landing.spec.source.model_copy(update={"tolerance": 3600.0})
    landing.spec = landing.spec.model_copy(update={"source": source})
    midnight = dt.datetime(2013, 3, 14)
    hours = [-1.5, -1, 12, 24.5, 25, 24 * 365 * 86]
    rows = [{**GOOD, "t": midnight + dt.timedelta(hours=hour)} for hour in hours]
    found = landing.ingest(landing.land("2013-03-14", rows))
    assert found.report.reasons == {"t: outside the partition's day": 3}
    newest = dt.datetime.fromtimestamp(found.last_event, dt.UTC).replace(tzinfo=None)
    assert newest == midnight + dt.timedelta(hours=24.5)


def test_two_files_of_the_same_bytes_are_both_there(tmp_path: Path) -> None:
    landing = Landing(tmp_path)
    found = landing.ingest(landing.land("2013-03-14", [GOOD, GOOD], files=2))
    assert len(landing.rows("2013-03-14", found.dataset_version)) == 2


# --- another contract ----------------------------------------------------------------------------


def test_a_committed_partition_keeps_its_first_rows_and_report_under_another_contract(tmp_path: Path) -> None:
    landing = Landing(tmp_path)
    partition = landing.land("2013-03-14", [GOOD, {**GOOD, "size": 5.0}, {**GOOD, "size": -1.0}])
    first = landing.ingest(partition)
    assert first.report.accepted == 2
    stricter = {"max_refused": 0.9, "columns": {"size": {"dtype": "number", "maximum": 2}}}
    landing.spec = spec(source=landing.spec.source.model_dump(), features="landed:view", contract=stricter)
    tables = landing.root.pipeline("p").tables
    before = {file: file.read_bytes() for file in tables.rglob("*.parquet")}
    assert landing.ingest(partition) == first
    assert {file: file.read_bytes() for file in tables.rglob("*.parquet")} == before
    # also where both were under way at once: the second commit finds the first
    request = landing.request(partition)
    again = commit(request, partition, [check_file(request, partition, file) for file in partition.files])
    assert again == first
    assert len(landing.rows("2013-03-14", first.dataset_version)) == 2


def test_data_is_on_disk_before_the_commit_names_it(tmp_path: Path, monkeypatch) -> None:
    landing, synced = Landing(tmp_path), set[str]()
    honest, append = os.fsync, commits._append

    def fsync(descriptor: int) -> None:
        synced.add(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        honest(descriptor)

    def checked(delta: Any, table: Path, name: str, files: list[dict[str, Any]], *rest: Any) -> None:
        folder = table / f"partition={name}"
        assert {str(folder), str(table), str(table.parent)} <= synced
        # a file is written under a passing name of its own
        assert all(any(Path(item["name"]).name in path for path in synced) for item in files)
        append(delta, table, name, files, *rest)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(commits, "_append", checked)
    found = landing.ingest(landing.land("2013-03-14", [GOOD, {**GOOD, "size": -1.0}]))
    assert found.refused == ""
    assert any(path.endswith("_delta_log/00000000000000000001.json") for path in synced)


def test_a_column_that_a_later_contract_adds_is_seen_by_every_reader_of_the_table(tmp_path: Path) -> None:
    landing = Landing(tmp_path)
    landing.ingest(landing.land("2013-03-14", [GOOD]))
    wider = {"columns": {"more": {"dtype": "category"}}}
    landing.spec = spec(source=landing.spec.source.model_dump(), features="landed:view", contract=wider)
    later = landing.ingest(
        landing.land("2013-03-15", "kind,size,weight,vip,t,y,more\na,1,,,2013-03-15,1,x\n")
    )
    from deltalake import DeltaTable

    table = DeltaTable(landing.root.pipeline("p").tables / ROWS_TABLE, version=later.dataset_version)
    assert "more" in [field.name for field in table.schema().fields]
