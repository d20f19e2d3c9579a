"""Evidence that is still needed: how many more draws, and how long at the present rate.

A forecast for people: it supposes that both models are alike from here on, with the rates seen so far. No
verdict follows from it, only the name of a state (`low_traffic`), so that waiting for evidence that will
not come is never silent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ctrain.records import EvidenceState, Pace
from ctrain.rollout.draws import Table, share_of
from ctrain.rollout.evidence import (
    SLOW,
    Counts,
    Floats,
    excess_bets,
    log_excess_wealth,
    log_ratio_wealth,
    ratio_bets,
    safe_ratios,
    slow_excess,
)

Unit = Literal["requests", "mirrored", "blocks"]


@dataclass(frozen=True, slots=True)
class Forecast:
    """What is still needed of one metric."""

    state: EvidenceState
    needed: int | None = None
    unit: Unit = "requests"
    minutes: float | None = None


def draws_without_excess(table: Table, split: float, margin: float, target: float) -> float:
    """Draws of both arms until an excess of errors of `margin` is ruled out.

    Args:
        table: Draws so far.
        split: Challenger's share from here on.
        margin: Excess.
        target: Logarithm of the e-value that is enough.
    """
    failed, answered = table.first_answers()
    return _without_excess(failed, answered, share_of(failed, table.requests), split, margin, target)


def draws_without_slowness(table: Table, threshold: int, split: float, margin: float, target: float) -> float:
    """Draws of both arms until `margin` is ruled out at a threshold of slowness; as above."""
    slow, ratios = table.slow(threshold), safe_ratios(margin)
    share = share_of(slow, table.requests) if table.requests else SLOW[threshold].share
    challenger, champion = (bets[0] for bets in ratio_bets((split,), ratios, margin))
    growth = share * (split * challenger + (1 - split) * champion)
    either = target + math.log(2)  # the mean of two e-values
    excess = slow_excess(SLOW[threshold], margin)
    return min(
        _until(log_ratio_wealth(slow, ratios, margin), growth, either),
        _without_excess(slow, table.not_slow(threshold), share, split, excess, either),
    )


def _without_excess(
    events: Counts, others: Counts, rate: float, split: float, margin: float, target: float
) -> float:
    challenger, champion, fine = (bets[0] for bets in excess_bets((split,), margin))
    growth = rate * (split * challenger + (1 - split) * champion) + (1 - rate) * fine
    return _until(log_excess_wealth(events, others, margin), growth, target)


def _until(wealth: Floats, growth: Floats, target: float) -> float:
    """Draws until the mean of components reaches the target, by the one that is there first."""
    growing = growth > 0
    if not growing.any():
        return math.inf
    lacking = target + math.log(len(wealth)) - wealth[growing]
    return max(1.0, float(np.min(lacking / growth[growing])))


def forecast(
    enough: bool, needed: float, so_far: int, pace: Pace | None, unit: Unit = "requests"
) -> Forecast:
    """Name the state of a metric's evidence.

    Args:
        enough: Whether the evidence is there.
        needed: Units still needed; inf if that cannot be told.
        so_far: Units that came in `pace.seconds`.
        pace: Clock; None gives no minutes and never `low_traffic`.
        unit: What is counted.
    """
    if enough:
        return Forecast("enough", 0, unit, 0.0)
    if math.isinf(needed):
        return Forecast("gathering", None, unit)
    count = math.ceil(needed)
    if pace is None or pace.seconds <= 0:
        return Forecast("gathering", count, unit)
    minutes = count * pace.seconds / so_far / 60 if so_far else None
    # One unit is granted to what has not come yet, so that the first seconds are not called low traffic.
    low = count * pace.seconds / (so_far + 1) > pace.left
    return Forecast("low_traffic" if low else "gathering", count, unit, minutes)


def in_words(told: Forecast) -> str:
    """What is still needed, as the end of a sentence; empty if nothing is."""
    if told.state == "enough":
        return ""
    watching = ", watching" if told.state == "watching" else ""
    if told.needed is None:
        return watching or ", it cannot be told how many more are needed"
    unit = {"requests": "", "mirrored": " mirrored requests", "blocks": " blocks"}[told.unit]
    words = f"{watching}, about {told.needed:,} more{unit} needed"
    if told.state == "low_traffic":
        words += ": low traffic, not before the time-out"
    if told.minutes is not None:
        words += f" ({_span(told.minutes)} at the present rate)"
    return words


def _span(minutes: float) -> str:
    if minutes < 2:
        return f"{max(1, round(minutes * 60))} s"
    if minutes < 120:
        return f"{minutes:.0f} min"
    if minutes < 2 * 1440:
        return f"{minutes / 60:.0f} h"
    return f"{minutes / 1440:,.0f} d"
