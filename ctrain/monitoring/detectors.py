"""What a detector is to the monitor: fitted on reference rows, it scores a window with statistics.

A statistic is a number that grows with drift. It is no p-value and has no threshold: the monitor calibrates
it on the stream like every other score. So a detector may be anything, and a bad one costs power, not calm.

`Shape` is the one that needs no library; alibi-detect's are behind `ctrain.monitoring.alibi`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ctrain.monitoring.profile import jensen_shannon, population_stability
from ctrain.monitoring.summary import Columns, Layout, standardised, summarise
from ctrain.spec.monitoring import ChosenDetector

LEAST_ROWS = 20
"""Rows, or values of a feature, on either side below which nothing is said."""


class Detector(Protocol):
    """Two methods, and no state that a window changes: the same window gives the same statistics."""

    def fit(self, reference: Columns) -> None:
        """Take reference rows: columns of text ("" is missing) or of numbers (NaN is missing)."""

    def score(self, window: Columns) -> dict[str, float]:
        """Statistics of a window, by name. One that the window is too small for is absent.

        The names are those of `fit`'s columns with the detector's before them, e.g. `ks:price`, or the
        detector's alone where it looks at all columns at once.
        """


class Shape:
    """Population stability index and Jensen-Shannon distance of each feature, from binned counts."""

    def fit(self, reference: Columns) -> None:
        """Bin the reference."""
        self._layout = Layout.fit(reference)
        self._reference = summarise(self._layout, reference).parts()

    def score(self, window: Columns) -> dict[str, float]:
        """`psi:<feature>` and `js:<feature>`."""
        found: dict[str, float] = {}
        bins_FB = summarise(self._layout, window).parts().bins_FB
        for feature, p, q in zip(self._layout.features, bins_FB, self._reference.bins_FB, strict=True):
            if min(p.sum(), q.sum()) >= LEAST_ROWS:
                used = len(feature.edges or feature.values) + 1
                found[f"psi:{feature.name}"] = population_stability(p[:used], q[:used])
                found[f"js:{feature.name}"] = jensen_shannon(p[:used], q[:used])
        return found


def chosen(specs: Sequence[ChosenDetector], reference: Columns) -> list[Detector]:
    """The detectors of a spec, fitted. Imports alibi-detect, seconds of CPU, if there is any."""
    if not specs:
        return []
    from ctrain.monitoring.alibi import AlibiDetector

    detectors: list[Detector] = [AlibiDetector(spec) for spec in specs]
    for detector in detectors:
        detector.fit(reference)
    return detectors


def statistics_of(detectors: Sequence[Detector], window: Columns) -> dict[str, float]:
    """Statistics of all detectors on one window, for `summarise`; on reference rows, for their names."""
    found: dict[str, float] = {}
    for detector in detectors:
        found |= {name: value for name, value in detector.score(window).items() if np.isfinite(value)}
    return found


def sample_rows(columns: Columns, size: int, seed: int = 0) -> dict[str, npt.NDArray[Any]]:
    """At most `size` rows of all columns, the same ones each time, in their order."""
    rows = len(next(iter(columns.values()))) if columns else 0
    if rows <= size:
        return dict(columns)
    kept = np.sort(np.random.default_rng(seed).choice(rows, size, replace=False))
    return {name: values[kept] for name, values in columns.items()}


def matrix(layout: Layout, columns: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
    """Rows as standardised float32: numbers clipped, categories by their bin, missing ones at the mean.

    float32 on both sides, since alibi-detect's MMD refuses a mixture; without NaN, which it calls drift;
    and with the categories of the reference only, since a new one raises.
    """
    found = [np.nan_to_num(standardised(feature, columns[feature.name])) for feature in layout.features]
    return np.stack(found, axis=1).astype(np.float32)
