"""Data quality from the inputs alone: which feature broke, and how.

The order is from the plainest sign to the least: missing values, a value that repeats, levels that were never
seen, numbers that were never seen or lie outside all earlier ones (another unit or scale).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ctrain.monitoring.diagnosis.calibration import Compared, compare
from ctrain.monitoring.diagnosis.inputs import Inputs

MARGIN = 1.5
"""Reach beyond which a share counts."""
MISSING_EFFECT, RUN_EFFECT, NOVEL_EFFECT, BEYOND_EFFECT = 0.03, 0.1, 0.03, 0.05
"""Least rise of a share worth a quarantine, in shares of rows."""


@dataclass(frozen=True)
class Broken:
    """A feature that broke."""

    feature: str
    kind: str
    """`missing`, `stuck`, `new_category` or `range`."""
    compared: Compared


def broken_features(inputs: Inputs, first: int) -> tuple[Broken, ...]:
    """Features whose values are at fault, the gravest first, each with its plainest sign.

    Args:
        inputs: Coded windows with their statistics.
        first: Number of the first window whose statistics count: those before it have too little past.
    """
    found: dict[str, Broken] = {}
    signs = (
        ("missing", inputs.missing, MISSING_EFFECT),
        ("stuck", inputs.run, RUN_EFFECT),
        ("novel", inputs.novel, NOVEL_EFFECT),
        ("range", inputs.beyond, BEYOND_EFFECT),
    )
    for sign, values, effect in signs:
        for column, name in enumerate(inputs.names):
            series = values[first:, column]
            if name in found or series[-1] - np.median(series[:-1]) <= effect:
                continue
            # a share near 1 cannot pass a margin: it counts if it was never so high, by the effect
            margin = MARGIN if series[:-1].max() < 0.5 else 1.0
            compared = compare(sign, series, margin, effect)
            if compared.passed and compared.value - series[:-1].max() > effect:
                kind = sign if sign != "novel" else ("new_category" if inputs.text[column] else "range")
                found[name] = Broken(name, kind, compared)
    return tuple(sorted(found.values(), key=lambda b: b.compared.usual - b.compared.value))
