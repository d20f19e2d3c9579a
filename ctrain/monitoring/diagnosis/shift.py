"""Shift of the inputs: which features moved further than this stream moves, and whether they did before."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ctrain.monitoring.diagnosis.calibration import Compared, family_ratios
from ctrain.monitoring.diagnosis.frames import Floats
from ctrain.monitoring.diagnosis.inputs import Inputs, distances

REFERENCE = 2
"""Windows that a window's distribution is compared with."""
FLOOR = 0.02
MARGIN, OWN_MARGIN = 1.25, 1.4
"""Times the farthest ratio of the past, of all features or of the feature's own two farthest windows, beyond
which a feature has moved."""
CHANCE = 1.2
"""Distance of two windows of n rows that chance alone makes, in 1 / sqrt(n)."""
EFFECT = 0.05
"""Least distance of a feature that moved."""


@dataclass(frozen=True)
class Shift:
    """How the inputs moved."""

    moved: tuple[tuple[str, Compared], ...]
    """Features beyond the past's farthest move, the farthest first."""
    like: tuple[int, ...]
    """Earlier windows, as windows before the judged one, that were like it after a stretch that was not."""


def read_shift(inputs: Inputs, gap: int) -> Shift:
    """Compare each window's distributions with those of the windows before it.

    Args:
        inputs: Coded windows, the judged one last; without those of the gap before it.
        gap: Windows that were left out before the judged one, and are between each other one and those
            that it is compared with.
    """
    first = REFERENCE + gap
    shares = inputs.shares
    ends = [*range(first - gap, len(shares) - 1 - gap), len(shares) - 1]
    before = np.stack([shares[end - REFERENCE : end].mean(axis=0) for end in ends])
    far = distances(shares[first:], before, inputs.text)
    ratios, farthest = family_ratios(far, FLOOR)
    # where some features jump, one that never did is judged by itself
    second, highest = np.sort(far[:-1] + FLOOR, axis=0)[-2:]
    limits = np.minimum(MARGIN * max(farthest, 1.0), OWN_MARGIN * highest / second)
    moved = []
    for column in np.argsort(-ratios):
        if ratios[column] > limits[column] and far[-1, column] > EFFECT:
            bound = float(limits[column] * highest[column]) - FLOOR
            usual = float(np.median(far[:-1, column]))
            compared = Compared("moved", float(far[-1, column]), usual, bound, len(far) - 1, True)
            moved.append((inputs.names[column], compared))
    columns = [inputs.names.index(name) for name, _ in moved]
    return Shift(tuple(moved), _seen_before(inputs, far, columns) if columns else ())


def _seen_before(inputs: Inputs, far: Floats, columns: list[int]) -> tuple[int, ...]:
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
