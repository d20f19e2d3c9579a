import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from factories import spec

from ctrain.data import FileSource
from ctrain.demo.data import all_flights, day_rows, day_table, days, land_day
from ctrain.demo.flights import view
from ctrain.errors import DataError
from ctrain.features import arrays_from_rows, arrays_from_table
from ctrain.features.view import columns_to_json
from ctrain.serving.schemas import RequestSchema


def test_the_year_is_complete_and_joined() -> None:
    table = all_flights()
    assert len(table) == 336_776
    assert len(days()) == 365
    assert table["temp"].notna().mean() > 0.99
    assert 0.2 < table["late"].mean() < 0.3
    assert table["late"].isna().sum() == 9430
    assert table["wind_speed"].max() < 200


def test_a_landed_day_is_sealed_and_landing_again_changes_nothing(tmp_path: Path) -> None:
    folder = land_day(tmp_path, "2013-03-14")
    seal = (folder / "_SEALED.json").read_bytes()
    sightings = FileSource(spec(source={"path": str(tmp_path), "event_time": "sched_dep"})).look({})
    assert [(one.name, one.problem) for one in sightings] == [("2013-03-14", "")]
    assert sightings[0].partition is not None
    assert sightings[0].partition.rows == len(day_table("2013-03-14"))
    assert land_day(tmp_path, "2013-03-14") == folder
    assert (folder / "_SEALED.json").read_bytes() == seal


def test_a_landing_that_was_cut_off_is_landed_anew(tmp_path: Path) -> None:
    (tmp_path / "2013-01-01").mkdir()
    (tmp_path / "2013-01-01" / "flights.parquet").write_bytes(b"half")
    assert (land_day(tmp_path, "2013-01-01") / "_SEALED.json").exists()


def test_requests_are_json_that_the_replica_accepts(tmp_path: Path) -> None:
    rows = day_rows("2013-02-08")  # a snow storm: many flights never arrived
    assert {row["label"] for row in rows} == {0.0, 1.0, None}
    schema = RequestSchema(columns_to_json(view.columns))
    for row in rows[:50]:
        body = json.dumps({"key": row["key"], "features": row["features"]}, allow_nan=False)
        assert schema.read(body.encode()).key == row["key"]


def test_requests_and_the_landed_day_give_the_same_features(tmp_path: Path) -> None:
    rows = [row["features"] for row in day_rows("2013-07-04")]
    live = view(arrays_from_rows(view.columns, rows))
    landed = pq.read_table(land_day(tmp_path, "2013-07-04") / "flights.parquet")
    batch = view(arrays_from_table(view.columns, landed))
    assert live.keys() == batch.keys()
    for name, values in live.items():
        np.testing.assert_array_equal(values, batch[name], err_msg=name)


def test_a_day_without_flights_says_so() -> None:
    with pytest.raises(DataError, match="2014-01-01: no flights"):
        day_table("2014-01-01")


def test_weekday_is_the_calendar_s() -> None:
    row = day_rows("2013-03-04")[0]["features"]  # a Monday
    features = view(arrays_from_rows(view.columns, [row]))
    assert features["weekday_sin"][0] == 0.0
    assert features["weekday_cos"][0] == 1.0
