"""Counts of one replica incarnation: arms, pairs, latency, and the bounded queue of mirrored work.

The unit of evidence is what the coin of the split falls for: the key. A key counts once as a request, once
as an error and once as a slow answer of a rollout, so that one client with many failing requests is one
witness, not many; requests without a key are each a draw of their own. All counts are cumulative; the
controller sums them over replicas. The event loop writes arms, the mirror's one thread writes pairs; readers
take a copy.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Any, Literal

from ctrain.records import ArmCounts, PairCounts
from ctrain.serving.weights import FAILURES, Model

_ROLLOUTS_KEPT = 4
_KEYS_KEPT = 200_000
"""Marks of keys a rollout; beyond them keys that are new are served and not counted."""


@dataclass(slots=True)
class _Arm:
    requests: int = 0
    errors: int = 0
    slow: int = 0


@dataclass(slots=True)
class _Pair:
    pairs: int = 0
    flipped: int = 0
    shift: float = 0.0
    distance: float = 0.0
    errors: int = 0
    shed: int = 0


ArmName = Literal["champion", "challenger"]


class Counters:
    """Counts of the event loop and the mirror."""

    def __init__(self) -> None:
        self._arms: dict[tuple[str, float, ArmName], _Arm] = {}
        self._pairs: dict[str, _Pair] = {}
        self._marks: dict[str, set[int]] = {}
        self._times: deque[tuple[float, float]] = deque(maxlen=4096)
        self.answered = 0
        self.failed = 0

    def arm(
        self, rollout: str, split: float, arm: ArmName, error: bool, slow: bool, client: str | None = None
    ) -> None:
        """Count one request of an arm; without a rollout nothing is counted.

        Args:
            rollout: Its id.
            split: Share that the challenger had.
            arm: Who answered.
            error: It raised, or was not finite.
            slow: Its time inside the model reached the document's threshold.
            client: The request's key; None is a draw of its own.
        """
        if not rollout:
            return
        key = (rollout, split, arm)
        counts = self._arms.get(key)
        if counts is None:
            counts = self._arms[key] = _Arm()
            self._forget()
        marks = self._marks.setdefault(rollout, set())
        counts.requests += _first(marks, "request", client)
        if error:
            counts.errors += _first(marks, "error", client)
        if slow:
            counts.slow += _first(marks, "slow", client)

    def pair(self, rollout: str) -> _Pair:
        """Counts of mirrored requests of a rollout."""
        counts = self._pairs.get(rollout)
        if counts is None:
            counts = self._pairs.setdefault(rollout, _Pair())
        return counts

    def took(self, seconds: float) -> None:
        """Note the champion's time inside the model."""
        self._times.append((time.monotonic(), seconds))

    def arms(self) -> tuple[ArmCounts, ...]:
        """A copy of the arms' counts."""
        return tuple(
            ArmCounts(rollout, split, arm, counts.requests, counts.errors, counts.slow)
            for (rollout, split, arm), counts in list(self._arms.items())
        )

    def pairs(self) -> tuple[PairCounts, ...]:
        """A copy of the pairs' counts."""
        return tuple(
            PairCounts(rollout, p.pairs, p.flipped, p.shift, p.distance, p.errors, p.shed)
            for rollout, p in list(self._pairs.items())
        )

    def latency(self) -> dict[str, float]:
        """Quantiles of the last minute, in seconds."""
        since = time.monotonic() - 60
        times = sorted(seconds for at, seconds in list(self._times) if at >= since)
        if not times:
            return {}
        last = len(times) - 1
        return {
            name: times[round(share * last)] for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))
        }

    def _forget(self) -> None:
        kept = list(dict.fromkeys(rollout for rollout, _, _ in self._arms))[-_ROLLOUTS_KEPT:]
        for key in [key for key in self._arms if key[0] not in kept]:
            del self._arms[key]
        for rollout in [rollout for rollout in self._marks if rollout not in kept]:
            del self._marks[rollout]
        for rollout in [r for r in self._pairs if r not in kept and len(self._pairs) > _ROLLOUTS_KEPT]:
            self._pairs.pop(rollout, None)


class Mirror:
    """Scores mirrored requests by the challenger, off the event loop; a full queue sheds.

    Args:
        counters: Where pairs are counted.
        capacity: Requests that may wait.
    """

    def __init__(self, counters: Counters, capacity: int = 64) -> None:
        self._counters = counters
        self._queue: queue.Queue[tuple[Any, ...] | None] = queue.Queue(maxsize=capacity)
        self._thread = threading.Thread(target=self._run, name="mirror", daemon=True)
        self._thread.start()

    def offer(
        self,
        rollout: str,
        champion: Model,
        challenger: Model,
        rows: list[dict[str, Any]],
        values: list[float],
    ) -> None:
        """Hand over a request that the champion answered with `values`."""
        try:
            self._queue.put_nowait((rollout, champion.threshold, challenger, rows, values))
        except queue.Full:
            self._counters.pair(rollout).shed += 1

    def drain(self, seconds: float = 5.0) -> None:
        """Wait until the queue is empty (tests)."""
        end = time.monotonic() + seconds
        while self._queue.unfinished_tasks and time.monotonic() < end:
            time.sleep(0.002)

    def close(self) -> None:
        """End the thread."""
        self._queue.put(None)
        self._thread.join(timeout=5)

    def _run(self) -> None:
        while (work := self._queue.get()) is not None:
            self._compare(*work)
            self._queue.task_done()

    def _compare(
        self,
        rollout: str,
        threshold: float,
        challenger: Model,
        rows: list[dict[str, Any]],
        values: list[float],
    ) -> None:
        counts = self._counters.pair(rollout)
        try:
            others = challenger.predict(rows)
        except FAILURES:
            counts.errors += 1
            return
        if not finite(others, len(rows)):
            counts.errors += 1
            return
        for mine, other in zip(values, others, strict=True):
            counts.flipped += (mine >= threshold) != (other >= challenger.threshold)
            counts.shift += other - mine
            counts.distance += abs(other - mine)
        counts.pairs += len(rows)


def _first(marks: set[int], kind: str, client: str | None) -> bool:
    """Whether a key shows this kind of event for the first time."""
    if client is None:
        return True
    mark = hash((kind, client))
    if mark in marks or len(marks) >= _KEYS_KEPT:
        return False
    marks.add(mark)
    return True


def finite(values: list[float], rows: int) -> bool:
    """Whether there is one finite number a row."""
    return len(values) == rows and all(map(math.isfinite, values))
