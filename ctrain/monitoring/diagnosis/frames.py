"""What diagnosis is given: windows of the stream as plain columns, and what is known without statistics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
LabelKind = Literal["binary", "number"]


@dataclass(frozen=True)
class Frame:
    """One contiguous window of the stream, rows in the order of their events."""

    columns: dict[str, npt.NDArray[Any]]
    """Raw columns: text (`<U`, "" is missing) or float64 (NaN is missing), shape [rows] each."""
    labels: Floats | None
    """Matured labels, NaN where unknown; None if there are none at all."""
    scores: Floats
    """What the version that served then answered: probabilities, or predicted values; NaN for no answer."""
    kind: LabelKind = "binary"
    previous: Floats | None = None
    """What the version before would have answered, from its shadow after a promotion; None without one."""

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.scores)

    @property
    def labelled(self) -> int:
        """Number of rows with a label."""
        return 0 if self.labels is None else int(np.isfinite(self.labels).sum())


@dataclass(frozen=True)
class Events:
    """What is known of the judged window without statistics. The defaults say that nothing happened."""

    schema_changes: tuple[str, ...] = ()
    """What the contract found: a column gone, new, or of another kind."""
    refused_share: float = 0.0
    """Share of the window's rows that the contract refused."""
    usual_refused_share: float = 0.0
    """The largest such share among the past windows."""
    skewed_share: float = 0.0
    """Share of rows on which online and batch inputs, or their scores, differed."""
    promoted_windows_ago: int | None = None
    """Windows since the version in `scores` took over; 0: with the judged window. None: before the past."""
    code_changed: bool = False
    """Whether the feature view or the serving code changed within those windows."""
    unlabelled_share: float | None = None
    """Share of the window's matured rows without a label; None if it is not known."""
    traffic_mix: tuple[str, ...] = ()
    """Features whose mix is known to have changed: a campaign, a new market, a source switched on."""


def sampled(frame: Frame, rows: int, random: np.random.Generator) -> Frame:
    """At most so many rows of a window, drawn without replacement, in their order."""
    if frame.rows <= rows:
        return frame
    kept = np.sort(random.choice(frame.rows, rows, replace=False))
    labels = None if frame.labels is None else frame.labels[kept]
    columns = {name: values[kept] for name, values in frame.columns.items()}
    previous = None if frame.previous is None else frame.previous[kept]
    return Frame(columns, labels, frame.scores[kept], frame.kind, previous)


def is_missing(values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Which values are missing."""
    absent: npt.NDArray[np.bool_] = values == "" if values.dtype.kind == "U" else ~np.isfinite(values)
    return absent
