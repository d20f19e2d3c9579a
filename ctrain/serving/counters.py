"""Counts of one replica incarnation: arms, pairs, latency, and the bounded queue of mirrored work.

The unit of evidence is what the coin of the split falls for: the key. A key counts once as a request and once
as an error, so that one client with many failing requests is one witness, not many; requests without a key
are each a draw of their own, counted apart.

How slow an answer was, and whether there was one, is noted of a key's first request under a throw of its
coin. So all thresholds of slowness share one memory of keys: each is a mark on the same draw, seen at the
moment at which the coin is, and stays the share of requests that it is for keyless ones, where "ever slow"
would in time be true of every key. Errors are also noted later, in a memory of their own: they are rare, and
a challenger that begins to fail must be found among keys that have long been seen. What becomes slow later
is found by new keys, by the new throws of the next step, and by the alert on latency.

A larger split throws a new coin for a key that the champion answered at a smaller one: given that it fell
above `known`, it falls below `split` with chance (split - known) / (1 - known), and under that chance it is
counted, in whichever arm. A key that the challenger answered stays there and has nothing left to tell.

All counts are cumulative. The event loop writes arms, the mirror's one thread writes pairs; readers take a
copy.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from ctrain.records import ArmCounts, PairCounts
from ctrain.serving.prediction_log import Answer, PredictionLog
from ctrain.serving.weights import FAILURES, Live, Model
from ctrain.telemetry.log import logger

_log = logger("serving")
_ROLLOUTS_KEPT = 4
_THRESHOLDS = 3
"""Thresholds of slowness in a live document."""

_KEYS_KEPT = 50_000
"""Keys remembered for each kind of event of a rollout."""

ArmName = Literal["champion", "challenger"]


@dataclass(slots=True)
class _Arm:
    requests: int = 0
    answered: int = 0
    errors: int = 0
    levels: list[int] = field(default_factory=lambda: [0] * (_THRESHOLDS + 1))
    """Requests by the number of thresholds of slowness that they reached."""

    def slow(self) -> tuple[int, ...]:
        """Requests that reached each threshold."""
        return tuple(sum(self.levels[at:]) for at in range(1, _THRESHOLDS + 1))


@dataclass(slots=True)
class _Pair:
    pairs: int = 0
    flipped: float = 0.0
    shift: float = 0.0
    distance: float = 0.0
    errors: int = 0
    shed: int = 0


class Keys:
    """What is known of the keys that showed one kind of event, in bounded memory.

    When it is full, the half of the keys with an odd hash is left out from then on, next time a half of what
    is left, and so on. Which half says nothing of a key's coin, so those that stay are still fair draws, and
    a storm of errors that begins late still finds its witnesses. To count a key that was not remembered as
    a draw of its own would not be sound: one client could then be a witness as often as it likes.

    Args:
        capacity: Keys kept.
    """

    def __init__(self, capacity: int = _KEYS_KEPT) -> None:
        self._capacity = capacity
        self._known: dict[int, float] = {}
        self._left_out = 0

    def __len__(self) -> int:
        return len(self._known)

    def draw(self, key: int, split: float, arm: ArmName) -> float:
        """Note that an event of this key was answered by an arm.

        Args:
            key: Hash of the key.
            split: Share of the challenger in the key's first throw.
            arm: Who answered.

        Returns:
            Chance that this draw had to fall to the challenger; 0 if it was none.
        """
        if key & self._left_out:
            return 0.0
        known = self._known.get(key, 0.0)
        if split <= known:
            return 0.0
        self._known[key] = 1.0 if arm == "challenger" else split
        if len(self._known) > self._capacity:
            self._left_out = self._left_out << 1 | 1
            self._known = {key: known for key, known in self._known.items() if not key & self._left_out}
        return (split - known) / (1.0 - known)


@dataclass(slots=True)
class _Rollout:
    arms: dict[tuple[float, ArmName, bool], _Arm] = field(default_factory=dict)
    requests: Keys = field(default_factory=Keys)
    errors: Keys = field(default_factory=Keys)
    pair: _Pair = field(default_factory=_Pair)

    def arm(self, split: float, arm: ArmName, keyed: bool) -> _Arm:
        counts = self.arms.get((split, arm, keyed))
        if counts is None:
            counts = self.arms[split, arm, keyed] = _Arm()
        return counts


class Counters:
    """Counts of the event loop and the mirror."""

    def __init__(self) -> None:
        self._rollouts: dict[str, _Rollout] = {}
        self._lock = threading.Lock()
        self._times: deque[tuple[float, float]] = deque(maxlen=4096)
        self.answered = 0
        self.failed = 0

    def arm(
        self, rollout: str, split: float, arm: ArmName, error: bool, slow: int, client: str | None = None
    ) -> None:
        """Count one request for which the coin of the split was thrown.

        Args:
            rollout: Its id.
            split: Share that the challenger had.
            arm: Who answered.
            error: It raised, or was not finite.
            slow: How many of the document's thresholds its time inside the model reached.
            client: The request's key; None is a draw of its own.
        """
        counts = self._of(rollout)
        if client is None:
            one = counts.arm(split, arm, False)
            one.requests += 1
            one.answered += not error
            one.errors += error
            one.levels[slow] += 1
            return
        key = hash(client)
        if chance := counts.requests.draw(key, split, arm):
            one = counts.arm(chance, arm, True)
            one.requests += 1
            one.answered += not error
            one.levels[slow] += 1
        if error and (chance := counts.errors.draw(key, split, arm)):
            counts.arm(chance, arm, True).errors += 1

    def pair(self, rollout: str) -> _Pair:
        """Counts of mirrored requests of a rollout."""
        return self._of(rollout).pair

    def took(self, seconds: float) -> None:
        """Note the champion's time inside the model."""
        self._times.append((time.monotonic(), seconds))

    def arms(self) -> tuple[ArmCounts, ...]:
        """A copy of the arms' counts."""
        return tuple(
            ArmCounts(rollout, split, arm, one.requests, one.errors, one.slow(), keyed, one.answered)
            for rollout, counts in list(self._rollouts.items())
            for (split, arm, keyed), one in list(counts.arms.items())
        )

    def pairs(self) -> tuple[PairCounts, ...]:
        """A copy of the pairs' counts."""
        return tuple(
            PairCounts(rollout, p.pairs, p.flipped, p.shift, p.distance, p.errors, p.shed)
            for rollout, p in [(name, counts.pair) for name, counts in list(self._rollouts.items())]
            if p.pairs or p.errors or p.shed
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

    def _of(self, rollout: str) -> _Rollout:
        counts = self._rollouts.get(rollout)
        if counts is None:
            with self._lock:
                counts = self._rollouts.setdefault(rollout, _Rollout())
                while len(self._rollouts) > _ROLLOUTS_KEPT:
                    del self._rollouts[next(iter(self._rollouts))]
        return counts


@dataclass(frozen=True, slots=True)
class Mirrored:
    """A request that the champion answered."""

    live: Live
    rows: list[dict[str, Any]]
    values: list[float]
    """What the champion gave, one a row."""
    prediction_ids: list[str] = field(default_factory=list)
    time: float = 0.0
    """Of the answer, in seconds since 1970."""


class Mirror:
    """Scores mirrored requests by the slot that the document names, off the event loop; a full queue sheds.

    What that slot would have answered goes to the prediction log under the ids of the answers, as slot
    `shadow`, so that labels can judge both.

    Args:
        counters: Where pairs of a rollout are counted.
        log: Where the shadow's values are written; None writes none.
        capacity: Requests that may wait.
    """

    def __init__(self, counters: Counters, log: PredictionLog | None = None, capacity: int = 64) -> None:
        self._counters, self._log = counters, log
        self._queue: queue.Queue[Mirrored | None] = queue.Queue(maxsize=capacity)
        self._thread = threading.Thread(target=self._run, name="mirror", daemon=True)
        self._thread.start()

    def offer(self, request: Mirrored) -> None:
        """Hand over a request that was answered."""
        try:
            self._queue.put_nowait(request)
        except queue.Full:
            self._pair(request.live).shed += 1

    def drain(self, seconds: float = 5.0) -> None:
        """Wait until the queue is empty (tests)."""
        end = time.monotonic() + seconds
        while self._queue.unfinished_tasks and time.monotonic() < end:
            time.sleep(0.002)

    def close(self) -> None:
        """End the thread, unless the challenger holds it up: it ends with the process then."""
        with suppress(queue.Full):
            self._queue.put(None, timeout=5)
        self._thread.join(timeout=5)

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def _run(self) -> None:
        while (work := self._queue.get()) is not None:
            try:
                self._compare(work)
            except FAILURES as error:  # the mirror outlives everything
                _log.warning("mirrored request not compared: %s", type(error).__name__)
            self._queue.task_done()

    def _pair(self, live: Live) -> _Pair:
        """Counts of the rollout; what is mirrored to the previous champion is counted by its labels alone."""
        return self._counters.pair(live.document.rollout) if live.document.rollout else _Pair()

    def _compare(self, request: Mirrored) -> None:
        """Count one request as one witness, whatever the number of its rows."""
        live, rows, values = request.live, request.rows, request.values
        champion, shadow = live.champion, live.shadow
        assert champion is not None
        if shadow is None:
            return  # not resident yet
        counts = self._pair(live)
        if shadow is live.challenger and not live.challenger_can_score(rows):
            counts.errors += 1  # clients do not send yet what it requires
            return
        start = time.perf_counter()
        try:
            others = shadow.predict(rows)
        except FAILURES:
            counts.errors += 1
            return
        if not finite(others, len(rows)):
            counts.errors += 1
            return
        self._write(request, shadow, others, time.perf_counter() - start)
        pairs = list(zip(values, others, strict=True))
        flips = sum((mine >= champion.threshold) != (other >= shadow.threshold) for mine, other in pairs)
        counts.flipped += flips / len(rows)
        counts.shift += sum(other - mine for mine, other in pairs) / len(rows)
        counts.distance += sum(abs(other - mine) for mine, other in pairs) / len(rows)
        counts.pairs += 1

    def _write(self, request: Mirrored, shadow: Model, values: list[float], seconds: float) -> None:
        if self._log is None:
            return
        document = request.live.document
        label = request.live.labels.get(shadow.version, shadow.version)
        for prediction_id, value in zip(request.prediction_ids, values, strict=True):
            self._log.append(
                Answer(
                    prediction_id,
                    request.time,
                    None,
                    shadow.version,
                    label,
                    "shadow",
                    document.rollout,
                    document.split,
                    value,
                    shadow.threshold,
                    seconds,
                    {},  # stands with the answer
                )
            )


def finite(values: list[float], rows: int) -> bool:
    """Whether there is one finite number a row."""
    return len(values) == rows and all(map(math.isfinite, values))
