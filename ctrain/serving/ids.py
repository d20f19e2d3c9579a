"""Prediction ids: `<pipeline>.<milliseconds, hex>.<replica>.<sequence, hex>`."""

from __future__ import annotations

import itertools
import re
import time

_ID = re.compile(r"([a-z][a-z0-9-]{0,62})\.([0-9a-f]{1,12})\.([A-Za-z0-9_-]{1,64})\.([0-9a-f]{1,16})")


class PredictionIds:
    """Ids of one replica incarnation; no two are the same."""

    def __init__(self, pipeline: str, replica: str) -> None:
        self._pipeline, self._replica = pipeline, replica
        self._next = itertools.count()

    def new(self, now: float | None = None) -> str:
        """A fresh id."""
        at = time.time() if now is None else now
        return f"{self._pipeline}.{int(at * 1000):x}.{self._replica}.{next(self._next):x}"


def pipeline_of(prediction_id: str) -> str | None:
    """Pipeline that an id names; None if it is no prediction id."""
    match = _ID.fullmatch(prediction_id)
    return match[1] if match else None


def time_of(prediction_id: str) -> float | None:
    """Seconds since 1970 at which the prediction was made; None if it is no prediction id."""
    match = _ID.fullmatch(prediction_id)
    return int(match[2], 16) / 1000 if match else None
