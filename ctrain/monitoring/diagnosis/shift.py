"""Shift of the inputs: which features moved further than this stream moves, and whether they did before.

Two distances are taken of each window, feature by feature: from the windows just before it, and from the
nearest window of its whole past. What weather and seasons do lies far from last week and near to some other
week; a shift that is news is far from both, each beyond what the stream's own past shows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ctrain.monitoring.diagnosis.calibration import Compared, log_scores
from ctrain.monitoring.diagnosis.frames import Floats
from ctrain.monitoring.diagnosis.inputs import Inputs, distances

REFERENCE = 2
"""Windows that a window's distribution is compared with."""
FIRST = 4
"""Least number of earlier windows among which the nearest one is looked for."""
FLOOR = 0.02
SCORE, TIMES = 2.0, 1.3
"""Standard score of a log distance, and times the farthest of the past, beyond both of which it is unusual.
Twenty features are judged at once: the second keeps those with heavy tails, the first those with few windows
from alarming by chance."""
SEASON_SCORE = 3.0
"""Score from which a move that came back is named: below it, it is what the stream does every month."""
CHANCE = 1.2
"""Distance of two windows of n rows that chance alone makes, in 1 / sqrt(n)."""
EFFECT = 0.05
"""Least distance of a feature that moved."""


@dataclass(frozen=True)
class Shift:
    """How the inputs moved."""

    moved: tuple[tuple[str, Compared], ...]
    """Features that are far from the windows before and from all the past, the farthest first."""
    back: tuple[tuple[str, Compared], ...]
    """Features that are far from the windows before, and where some earlier window was."""
    like: tuple[int, ...]
    """Earlier windows, as windows before the judged one, that were like it in the features of `back` after a
    stretch that was not; empty where `moved` says that there is news."""


def read_shift(inputs: Inputs, gap: int) -> Shift:
    """Compare each window's distributions with those of the windows before it.

    Args:
        inputs: Coded windows, the judged one last; without those of the gap before it.
        gap: Windows that were left out before the judged one, and are between each other one and those
            that it is compared with.
    """
    shares, text = inputs.shares, inputs.text
    last = len(shares) - 1
    before = [(index, index if index == last else index - gap) for index in range(last + 1)]
    far = np.stack(
        [
            distances(shares[index], shares[end - REFERENCE : end].mean(axis=0), text)
            for index, end in before
            if end >= REFERENCE
        ]
    )
    near = np.stack(
        [distances(shares[index], shares[:end], text).min(axis=0) for index, end in before if end >= FIRST]
    )
    scores, limits = log_scores(far, FLOOR), TIMES * far[:-1].max(axis=0)
    unusual = (scores > SCORE) & (far[-1] > np.maximum(limits, EFFECT))
    novel = (log_scores(near, FLOOR) > SCORE) & (near[-1] > np.maximum(TIMES * near[:-1].max(axis=0), EFFECT))

    def named(columns: npt.NDArray[np.int64]) -> tuple[tuple[str, Compared], ...]:
        found = []
        for column in columns[np.argsort(-scores[columns], kind="stable")]:
            usual, limit = float(np.median(far[:-1, column])), max(float(limits[column]), EFFECT)
            compared = Compared("moved", float(far[-1, column]), usual, limit, len(far) - 1, True)
            found.append((inputs.names[column], compared))
        return tuple(found)

    back = np.flatnonzero(unusual & ~novel & (scores > SEASON_SCORE))
    news = named(np.flatnonzero(unusual & novel))
    like = _seen_before(inputs, far, back) if len(back) and not news else ()
    return Shift(news, named(back), like)


def _seen_before(inputs: Inputs, far: Floats, columns: npt.NDArray[np.int64]) -> tuple[int, ...]:
    """Windows in which the moved features lay as they lie now, with others in between."""
    shares = inputs.shares[:, columns]
    apart = distances(shares[:-1], shares[-1], inputs.text[columns])
    near = far[:-1, columns].max(axis=0)
    # nearer than half of the present move, and no further than neighbours usually are; but no nearer than the
    # chance of so few rows allows
    chance = CHANCE / np.sqrt(min(len(inputs.codes[-1]), len(inputs.codes[-2])))
    like = (apart <= np.maximum(np.minimum(near, far[-1, columns] / 2), chance)).all(axis=1)
    last = len(like) - 1
    return tuple(last + 1 - i for i in np.flatnonzero(like) if i < last - 1 and not like[i:].all())
