"""What the drift monitor is compared with: its peers, each with one number to tune, from their descriptions.

A peer sees the same windows as the monitor and says one statistic a check, large where it sees drift; the
benchmark tunes the threshold. Peers get what the monitor has, the season: windows are compared with a
reference of their own hour and weekend, or come with that season's mean taken out.

* Bonferroni: smallest p-value of Kolmogorov-Smirnov tests of all features, times their number (p < 0.05 is
  the rule as it is used).
* alibi-detect's MMD online, over a few rows of each window.
* River's ADWIN, KSWIN and Page-Hinkley, one for each feature's window mean: what is tuned is their own delta,
  alpha or lambda, by running several. If River is absent they are skipped by name.
* Modyn's dynamic thresholds: a distance (mean Kolmogorov-Smirnov distance over features) against a quantile
  of the last ones, or against the rolling average of the last ones (Böther et al., Modyn, 2023).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.stats import kstwobign

Rows = Any


class Reference:
    """Sorted rows by context, and distances of a window from them."""

    def __init__(self, windows: list[tuple[str, Rows, Any]], most: int = 2000) -> None:
        gathered: dict[str, list[Rows]] = {}
        for context, rows, _ in windows:
            gathered.setdefault(context, []).append(rows)
        self.rows = {name: np.sort(np.concatenate(parts)[:most], axis=0) for name, parts in gathered.items()}
        self.means = {name: rows.mean(axis=0) for name, rows in self.rows.items()}

    def distances(self, context: str, rows: Rows) -> tuple[Any, Any]:
        """Kolmogorov-Smirnov distance and p-value of each feature."""
        here, found = self.rows[context], []
        for column in range(rows.shape[1]):
            values = np.sort(rows[:, column])
            below = np.searchsorted(here[:, column], values, side="right") / len(here)
            steps = np.arange(len(values)) / len(values)
            found.append(max(np.max(below - steps), np.max(steps + 1 / len(values) - below)))
        size = len(here) * len(rows) / (len(here) + len(rows))
        return np.array(found), kstwobign.sf(np.array(found) * np.sqrt(size))


class Bonferroni:
    """-log10 of the smallest p-value times the number of features."""

    def look(self, context: str, distances: Any, p_values: Any, means: Any, rows: Rows) -> float:
        return float(-np.log10(max(p_values.min() * len(p_values), 1e-300)))


class Quantile:
    """Rank of the distance among the last ones, and by how much it is beyond them."""

    def __init__(self, last: int = 30) -> None:
        self._last: deque[float] = deque(maxlen=last)

    def look(self, context: str, distances: Any, p_values: Any, means: Any, rows: Rows) -> float:
        distance = float(distances.mean())
        top = float(np.quantile(self._last, 0.95)) if len(self._last) == self._last.maxlen else np.inf
        self._last.append(distance)
        return distance / top


class RollingAverage:
    """Distance over the rolling average of the last ones."""

    def __init__(self, last: int = 30) -> None:
        self._last: deque[float] = deque(maxlen=last)

    def look(self, context: str, distances: Any, p_values: Any, means: Any, rows: Rows) -> float:
        distance = float(distances.mean())
        average = float(np.mean(self._last)) if len(self._last) == self._last.maxlen else np.inf
        self._last.append(distance)
        return distance / average


class River:
    """One of River's detectors for each feature's mean; the statistic is the strictest setting that fires."""

    def __init__(self, make: list[Callable[[], Any]], features: int) -> None:
        self._detectors = [[one() for _ in range(features)] for one in make]

    def look(self, context: str, distances: Any, p_values: Any, means: Any, rows: Rows) -> float:
        level = 0
        for number, detectors in enumerate(self._detectors, 1):
            for detector, value in zip(detectors, means, strict=True):
                detector.update(float(value))
                if detector.drift_detected:
                    level = number
        return float(level)


class MmdOnline:
    """alibi-detect's online MMD on a few rows of each window; the largest statistic among them.

    Made once and reset for each stream: rows come without their season, so that all have one reference.
    """

    _made: Any = None

    def __init__(self, reference: Rows, rows: int = 8) -> None:
        from alibi_detect.cd import MMDDriftOnline

        if MmdOnline._made is None:
            settings = {
                "ert": 20,
                "window_size": 40,
                "backend": "pytorch",
                "n_bootstraps": 400,
                "verbose": False,
            }
            MmdOnline._made = MMDDriftOnline(reference.astype(np.float32), **settings)
        MmdOnline._made.reset_state()
        self._rows, self._detector, self._seen = rows, MmdOnline._made, 0

    def look(self, context: str, distances: Any, p_values: Any, means: Any, rows: Rows) -> float:
        found = []
        for row in rows[: self._rows].astype(np.float32):
            found.append(float(np.max(self._detector.predict(row)["data"]["test_stat"])))
            self._seen += 1
        return max(found) if self._seen > 40 else 0.0


def river_makers() -> dict[str, list[Callable[[], Any]]]:
    """Settings of River's detectors from lax to strict, by name; empty where River is not installed."""
    try:
        from river import drift
    except ImportError:
        return {}
    return {
        "River ADWIN": [
            lambda delta=delta: drift.ADWIN(delta=delta, clock=1, grace_period=5)
            for delta in (0.1, 0.01, 1e-3, 1e-4, 1e-6, 1e-9, 1e-13)
        ],
        "River KSWIN": [
            lambda alpha=alpha: drift.KSWIN(alpha=alpha, window_size=100, stat_size=30, seed=1)
            for alpha in (1e-3, 1e-4, 1e-5, 1e-6, 1e-8, 1e-10)
        ],
        "River Page-Hinkley": [
            lambda limit=limit: drift.PageHinkley(min_instances=30, delta=0.02, threshold=limit, mode="both")
            for limit in (0.5, 0.8, 1.2, 1.7, 2.5, 4.0, 7.0, 12.0)
        ],
    }
