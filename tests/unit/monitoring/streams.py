"""Streams of windows for tests and benchmarks of drift: seasons, wandering means, growth, and changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ctrain.monitoring.drift import DriftMonitor
from ctrain.monitoring.profile import context_of
from ctrain.monitoring.summary import Layout, Summary, summarise
from ctrain.spec.monitoring import Drift

HOUR = 3600.0
Change = Callable[[Any, Any, int], Any]


@dataclass
class Stream:
    """Hourly windows of a table whose means follow hours and weekends and wander from window to window."""

    seed: int
    features: int = 8
    segments: int = 5
    rows: int = 400
    wander: float = 0.05
    """Standard deviation of the wandering means, in those of a feature."""
    memory: float = 0.5
    """Autocorrelation of the wandering from window to window."""
    season: float = 0.3
    growth: float = 0.0
    """Traffic of the first 1,000 windows grows by this much."""
    hour: int = 0
    random: Any = field(init=False)

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)
        shape = (self.features, 3)
        self.amplitudes = self.random.normal(size=shape) * self.season
        self.phases = self.random.uniform(0, 2 * np.pi, shape)
        self.shares = self.random.dirichlet(np.full(self.segments, 5.0))
        self.offsets = self.random.normal(size=(self.segments, self.features)) * self.season
        self.means = np.zeros(self.features)

    def step(self, change: Change | None = None) -> tuple[str, Any, Any]:
        """(context, rows, segment of each row) of the next window.

        Args:
            change: What becomes of the rows: (rows, segments, hour) -> rows.
        """
        noise = self.random.normal(size=self.features)
        self.means = self.memory * self.means + np.sqrt(1 - self.memory**2) * self.wander * noise
        angles = 2 * np.pi * self.hour * np.array([1 / 24, 1 / 168, 1 / 12]) + self.phases
        day = (self.amplitudes * np.sin(angles) * [1.0, 0.15, 1.0]).sum(axis=1)
        weekend = (self.hour // 24 + 3) % 7 >= 5  # day 0 is a Thursday, as 1 January 1970
        rows = self.rows * (1 + self.growth * self.hour / 1000)
        rows *= 1 + 0.5 * np.sin(2 * np.pi * self.hour / 24) * (self.season > 0)
        segments = self.random.choice(self.segments, self.random.poisson(rows), p=self.shares)
        values = self.random.normal(size=(len(segments), self.features))
        values += day + self.means + weekend * self.amplitudes[:, 1] + self.offsets[segments]
        if change is not None:
            values = change(values, segments, self.hour)
        context = context_of(self.hour * HOUR, (self.hour + 1) * HOUR)
        self.hour += 1
        return context, values, segments


def columns(values: Any, segments: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Feature columns and segment column of a window."""
    names = np.array([f"g{number}" for number in range(100)])
    return {f"x{number}": values[:, number] for number in range(values.shape[1])}, {"g": names[segments]}


def begun(stream: Stream, past: int = 504, spec: Drift | None = None, checks: float = 1000.0) -> DriftMonitor:
    """A monitor that has seen the stream's first windows."""
    windows = [stream.step() for _ in range(past)]
    reference = [np.concatenate([window[part] for window in windows[::4]]) for part in (1, 2)]
    layout = Layout.fit(*columns(*reference))
    summaries = [
        (context, summarise(layout, *columns(values, groups))) for context, values, groups in windows
    ]
    return DriftMonitor.begin(layout, spec or Drift(), summaries, checks=checks)


def next_summary(stream: Stream, layout: Layout, change: Change | None = None) -> tuple[str, Summary]:
    """(context, summary) of the stream's next window."""
    context, values, segments = stream.step(change)
    return context, summarise(layout, *columns(values, segments))


def moved(features: int, by: float, size: int) -> Any:
    """`by` for the first features, 0 for the others."""
    return np.where(np.arange(size) < features, by, 0.0)


CHANGES: dict[str, Change] = {
    "sudden": lambda x, g, t: x + moved(3, 0.3, x.shape[1]),
    "single": lambda x, g, t: x + moved(1, 0.3, x.shape[1]),
    "gradual": lambda x, g, t: x + min(t / 240, 1.0) * moved(3, 0.5, x.shape[1]),
    "recurring": lambda x, g, t: x + (t // 24 % 2 == 0) * moved(3, 0.3, x.shape[1]),
    "local": lambda x, g, t: x + (g == 1)[:, None] * moved(1, 1.0, x.shape[1]),
    "scale": lambda x, g, t: x * (1 + moved(3, 0.3, x.shape[1])),
}
"""Kinds of drift; hours count from its beginning. Recurring: every second day."""
