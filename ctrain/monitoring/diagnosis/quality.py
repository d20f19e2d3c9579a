"""Data quality from the inputs alone: which feature broke, and how.

The order is from the plainest sign to the least: missing values, a value that repeats, numbers that come
times a power of ten, levels that were never seen, numbers that were never seen or lie outside all earlier
ones (another unit).
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

import numpy as np

from ctrain.monitoring.diagnosis.calibration import Compared, compare
from ctrain.monitoring.diagnosis.frames import Floats
from ctrain.monitoring.diagnosis.inputs import Inputs

MARGIN = 2.5
"""Reach beyond which a share counts: a shift of other features moves shares too, but not so far."""
MISSING_EFFECT, RUN_EFFECT, NEW_EFFECT, FAR_EFFECT, NOVEL_EFFECT = 0.03, 0.1, 0.03, 0.1, 0.25
"""Least rise of a share worth a quarantine, in shares of rows. New numbers inside the range need many rows:
weather brings some, a unit changes nearly all."""
MOSTLY = 0.5
"""Usual share from which such values are the rule, and more of them no fault."""
STILL = 0.2
"""Usual longest run, as a share of a window, from which a number stands still for stretches (an index that
is published once a month): that it takes new values is then no fault."""
RECENT = 8
"""Newest windows that tell whether a feature stands still, and how long its runs are: one that the source
once did not fill (a campaign's history, before there was one) stood still long ago."""
RUN_SURPRISE = 5.0
"""Least surprise of a run, in runs that independent rows would show."""


@dataclass(frozen=True)
class Broken:
    """A feature that broke."""

    feature: str
    kind: str
    """`missing`, `stuck`, `scale`, `new_category` or `range`."""
    compared: Compared
    factor: float = 1.0
    """Of a scale: what the numbers came times."""

    @property
    def text(self) -> str:
        """In words."""
        now, usual = self.compared.value, self.compared.usual
        if self.kind == "scale":
            return f"{self.feature}: its numbers come times {self.factor:g}"
        return f"{self.feature}: {self.kind}, {now:.1%} of the rows, usually {usual:.1%}"


def broken_features(inputs: Inputs, first: int) -> tuple[Broken, ...]:
    """Features whose values are at fault, the gravest first, each with its plainest sign.

    Args:
        inputs: Coded windows with their statistics.
        first: Number of the first window whose statistics count: those before it have too little past.
    """
    found: dict[str, Broken] = {}
    signs = (
        ("missing", inputs.missing, MISSING_EFFECT),
        ("new_category", inputs.novel, NEW_EFFECT),
        ("range", inputs.beyond, FAR_EFFECT),
        ("range", inputs.grown, NOVEL_EFFECT),
        ("range", inputs.novel, NOVEL_EFFECT),
    )
    for sign, values, effect in signs:
        for column, name in enumerate(inputs.names):
            series = values[first:, column]
            # a number of few values is a code, and another code is what another level is
            least = NEW_EFFECT if values is inputs.beyond and inputs.levels[column] else effect
            if sign == "new_category" and not inputs.text[column]:
                continue
            if sign == "range" and values is not inputs.grown and _stands_still(inputs, column):
                continue
            if name in found or series[-1] - np.median(series[:-1]) <= least:
                continue
            # where some values are missing anyway, a shift of other features moves that share a little
            compared = compare(sign, series, MARGIN, least)
            certain = compared.passed or (compared.limit >= 1 and values is not inputs.grown)
            if compared.usual < MOSTLY and _doubled(series) and certain:
                found[name] = Broken(name, sign, compared)
        if sign == "missing":
            found |= _stuck(inputs, first, found)
            found |= _scaled(inputs, found)
    return tuple(sorted(found.values(), key=lambda b: b.compared.usual - b.compared.value))


def _scaled(inputs: Inputs, known: Container[str]) -> dict[str, Broken]:
    """Features whose numbers come times a power of ten: no stream grows by one from window to window."""
    found = {}
    for name, power in zip(inputs.names, inputs.powers, strict=True):
        if power is not None and name not in known:
            compared = Compared("scale", power.distance, power.left, power.distance, 0, True)
            found[name] = Broken(name, "scale", compared, 10.0**power.exponent)
    return found


def _doubled(series: Floats) -> bool:
    """Whether a share is twice the highest there was, or half-way from it to 1."""
    highest = float(series[:-1].max())
    return bool(series[-1] > min(2 * highest, (1 + highest) / 2))


def _stands_still(inputs: Inputs, column: int) -> bool:
    return bool(not inputs.text[column] and np.median(inputs.run[-RECENT - 1 : -1, column]) >= STILL)


def _stuck(inputs: Inputs, first: int, known: Container[str]) -> dict[str, Broken]:
    """Features with a run of one value that is longer and less to be expected than any run before."""
    found = {}
    for column, name in enumerate(inputs.names):
        run = compare("stuck", inputs.run[-RECENT - 1 :, column], 1.0, RUN_EFFECT)
        surprise = compare("surprise", inputs.surprise[first:, column], MARGIN, RUN_SURPRISE)
        if name in known or _stands_still(inputs, column) or not (run.passed and surprise.passed):
            continue
        if _doubled(inputs.run[-RECENT - 1 :, column]):
            found[name] = Broken(name, "stuck", run)
    return found
