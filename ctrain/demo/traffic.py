"""The demo's clients: requests without pause, and their labels some seconds later."""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from dataclasses import dataclass, field

import httpx2

from ctrain.client import Client
from ctrain.demo.data import day_rows
from ctrain.errors import ClientError

LABEL_DELAY = 5.0
PAUSE = 0.01


@dataclass
class Traffic:
    """Sends the flights of the days in `days` again and again, and counts what comes back."""

    url: str
    pipeline: str
    days: list[str]
    sent: int = 0
    failed: list[str] = field(default_factory=list)
    answers: deque[tuple[float, float, str, str]] = field(default_factory=lambda: deque(maxlen=200_000))
    """(time, seconds, version, slot) of each answer."""
    labelled: int = 0

    def start(self) -> None:
        """Begin; the threads end with the process."""
        self._stop = threading.Event()
        self._waiting: deque[tuple[float, str, float]] = deque()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._send, self._label)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End, and wait for the requests in flight."""
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=15)

    def _send(self) -> None:
        # No retries here: a request that fails once has failed.
        with httpx2.Client(timeout=10) as http:
            for day in itertools.cycle(self.days):
                for row in day_rows(day):
                    if self._stop.is_set():
                        return
                    began = time.monotonic()
                    body = {"key": row["key"], "features": row["features"]}
                    self.sent += 1
                    try:
                        response = http.post(f"{self.url}/{self.pipeline}/predict", json=body)
                    except httpx2.HTTPError as error:
                        self.failed.append(f"{type(error).__name__}: {error}")
                        continue
                    if response.status_code != 200:
                        self.failed.append(f"{response.status_code}: {response.text[:200]}")
                        continue
                    answer = response.json()
                    now = time.monotonic()
                    self.answers.append((now, now - began, answer["version"], answer["slot"]))
                    if row["label"] is not None:
                        self._waiting.append((now, answer["prediction_id"], row["label"]))
                    time.sleep(PAUSE)

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
