"""The demo's clients: flights as live requests without pause, their labels some seconds later.

Nothing is retried here: a request that fails once has failed. Beside each answer stands what the first
model would have said, scored in this process, so that the champion can be held against a static one.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

import httpx2
import numpy as np
import numpy.typing as npt

from ctrain.client import Client
from ctrain.demo.data import day_rows
from ctrain.errors import ClientError
from ctrain.features import arrays_from_rows
from ctrain.models.loading import Network

LABEL_DELAY = 5.0
"""Seconds between an answer and its label."""

PAUSE = 0.008
"""Seconds that each of the senders rests between two requests."""

SENDERS = 2


class Answered(NamedTuple):
    """One request that was answered."""

    at: float
    """Seconds since 1970, when it was sent."""
    seconds: float
    version: str
    slot: str
    value: float
    static: float
    """What the first model says."""
    label: float
    """The truth; NaN if it never comes."""


@dataclass
class Traffic:
    """Sends the flights of a day again and again until it is given the next one."""

    url: str
    pipeline: str
    static: Network
    day: str
    sent: int = 0
    labelled: int = 0
    failed: list[str] = field(default_factory=list)
    answers: list[Answered] = field(default_factory=list)

    def start(self) -> None:
        """Begin."""
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._waiting: deque[tuple[float, str, float]] = deque()
        senders = [threading.Thread(target=self._send, args=(i,), daemon=True) for i in range(SENDERS)]
        self._threads = [*senders, threading.Thread(target=self._label, daemon=True)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End, and wait for the requests in flight."""
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=15)

    def latency(self, seconds: float = 10.0) -> tuple[float, float]:
        """(p50, p99) of the last seconds, in seconds; NaN without answers."""
        since = time.time() - seconds
        recent = []
        for answer in reversed(self.answers):
            if answer.at < since:
                break
            recent.append(answer.seconds)
        if not recent:
            return float("nan"), float("nan")
        p50, p99 = np.quantile(recent, [0.5, 0.99])
        return float(p50), float(p99)

    def _send(self, sender: int) -> None:
        with httpx2.Client(timeout=10, trust_env=False) as http:
            while not self._stop.is_set():
                day, rows, static = self._rows()
                for index in range(sender, len(rows), SENDERS):
                    if self._stop.is_set() or self.day != day:
                        break
                    self._one(http, rows[index], float(static[index]))
                    time.sleep(PAUSE)

    def _rows(self) -> tuple[str, list[dict[str, object]], npt.NDArray[np.float64]]:
        day = self.day
        with self._lock:
            rows = day_rows(day)
        view = self.static.view
        arrays = arrays_from_rows(view.columns, [row["features"] for row in rows])
        return day, rows, self.static.predict(arrays)

    def _one(self, http: httpx2.Client, row: dict[str, object], static: float) -> None:
        body = {"key": row["key"], "features": row["features"]}
        began, at = time.monotonic(), time.time()
        self.sent += 1
        try:
            response = http.post(f"{self.url}/{self.pipeline}/predict", json=body)
        except httpx2.HTTPError as error:
            self.failed.append(f"{type(error).__name__}: {error}")
            return
        if response.status_code != 200:
            self.failed.append(f"{response.status_code}: {response.text[:200]}")
            return
        answer = response.json()
        label = float(row["label"]) if isinstance(row["label"], float) else float("nan")
        seconds = time.monotonic() - began
        self.answers.append(
            Answered(at, seconds, answer["version"], answer["slot"], answer["value"], static, label)
        )
        if label == label:
            self._waiting.append((time.monotonic(), answer["prediction_id"], label))

    def _label(self) -> None:
        with Client(self.url, self.pipeline) as client:
            while not self._stop.wait(1.0):
                batch = {}
                while self._waiting and time.monotonic() - self._waiting[0][0] > LABEL_DELAY:
                    _, name, value = self._waiting.popleft()
                    batch[name] = value
                if batch:
                    try:
                        client.label_many(batch)
                        self.labelled += len(batch)
                    except ClientError as error:
                        self.failed.append(f"labels: {error}")
