"""Feature view of the demonstration: what is known of a flight at its scheduled departure.

Weather is that of the scheduled hour at the origin. Nothing that happens later (departure delay, air
time, tail number's earlier delays) is an input.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ctrain.features import Column, feature_view


@feature_view(
    carrier=Column.category(),
    origin=Column.category(allowed=("EWR", "JFK", "LGA")),
    dest=Column.category(),
    sched_dep=Column.timestamp(),
    distance=Column.number(unit="miles", minimum=0),
    temp=Column.number(unit="degrees F", nullable=True),
    wind_speed=Column.number(unit="mph", minimum=0, nullable=True),
    precip=Column.number(unit="inches", minimum=0, nullable=True),
    visib=Column.number(unit="miles", minimum=0, nullable=True),
    pressure=Column.number(unit="mbar", nullable=True),
    plane_age=Column.number(unit="years", nullable=True),
)
def view(rows: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """Categories as they are, the clock as angles, distances and rain on a log scale."""
    minutes = rows["sched_dep"].astype("datetime64[m]").astype(np.int64)
    day = (minutes % 1440) * (2 * np.pi / 1440)
    weekday = (minutes // 1440 + 3) % 7  # 1970-01-01 was a Thursday; Monday is 0
    week = weekday * (2 * np.pi / 7)
    return {
        "carrier": rows["carrier"],
        "origin": rows["origin"],
        "dest": rows["dest"],
        "route": np.char.add(np.char.add(rows["origin"], "-"), rows["dest"]),
        "hour_sin": np.sin(day),
        "hour_cos": np.cos(day),
        "weekday_sin": np.sin(week),
        "weekday_cos": np.cos(week),
        "distance": np.log1p(rows["distance"]),
        "temp": rows["temp"],
        "wind_speed": rows["wind_speed"],
        "precip": np.log1p(100.0 * rows["precip"]),
        "visib": rows["visib"],
        "pressure": rows["pressure"],
        "plane_age": rows["plane_age"],
    }
