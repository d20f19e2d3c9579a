"""The controller's clock: paced by the monotonic clock, drawn towards the wall clock."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

SLEW = 0.5
"""Share of the time that passes by which the clock may run fast or slow to meet the wall clock."""


class SteadyClock:
    """Seconds since 1970 that never go back and never jump while the process lives.

    Holds and time-outs are differences of journaled times. A wall clock that jumps by an hour would skip
    or stretch them; this one starts at the wall clock, or at the journal's newest event if that is later,
    and then advances with the monotonic clock, up to `SLEW` faster or slower until it agrees with the wall
    clock again. So one start under a wrong wall clock does not stay for ever.
    """

    def __init__(
        self,
        not_before: float = 0.0,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wall, self._monotonic = wall, monotonic
        self._lock = threading.Lock()
        self._now = max(wall(), not_before)
        self._read_at = monotonic()

    def __call__(self) -> float:
        """Seconds since 1970."""
        with self._lock:
            at = self._monotonic()
            passed, self._read_at = at - self._read_at, at
            gap = self._wall() - (self._now + passed)
            self._now += passed + min(max(gap, -SLEW * passed), SLEW * passed)
            return self._now
