"""The controller's clock: wall time at its start, the monotonic clock from there on."""

from __future__ import annotations

import time
from collections.abc import Callable


class SteadyClock:
    """Seconds since 1970 that never go back and never jump while the process lives.

    Holds and time-outs are differences of journaled times. A wall clock that jumps by an hour would
    shorten or stretch them; this one starts at the wall clock, or at the journal's newest event if
    that is later, and advances with the monotonic clock.
    """

    def __init__(
        self,
        not_before: float = 0.0,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._monotonic = monotonic
        self._start = max(wall(), not_before)
        self._origin = monotonic()

    def __call__(self) -> float:
        """Seconds since 1970."""
        return self._start + (self._monotonic() - self._origin)
