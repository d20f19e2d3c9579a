"""E-values from cumulative counts: the numbers behind a rollout's analysis.

Everything here is a function of sums, so that the counts are the whole state: they merge over replicas and
survive a restart bit for bit. Each e-value is a mixture over a few alternatives ("components"); functions
named `..._wealth` give the logarithm of each component, shape [..., J], and `log_mean_exp` mixes them.
Leading axes, if any, are rollouts.

An e-value tests one null and may be looked at after every request: the chance that it ever reaches 1/alpha
under the null is at most alpha (Ville's inequality).

* Split test (`log_ratio_wealth`): given that an event happened, which arm did it fall in? Under a rate ratio
  of `null` that is a coin whose chance follows from the split, whatever storms hit both arms.
* Excess test (`log_excess_wealth`): each request is worth 1/w if an event fell to the challenger, -1/(1-w) if
  it fell to the champion, else 0: the coin makes its mean the excess of the challenger's rate over the
  champion's in the same minutes. Bets on "below the margin" win where it is. A level that changes over time
  does no harm: the null is that the mean excess over the requests seen reaches the margin.
* Bets on a bounded mean (`log_above`), for shares and distances of mirrored requests.

Source: Lindon and Malek, Anytime-valid inference for multinomial count data (2022); Waudby-Smith and
Ramdas, Estimating means of bounded random variables by betting (2024).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ratios = tuple[float, ...]


def _spread(low: float, high: float, count: int) -> Ratios:
    return tuple(np.geomspace(low, high, count).tolist())


ERROR_RATIOS = _spread(1.25, 64.0, 24)
"""Ratios of error rates (challenger to champion) that evidence of harm is spread over."""


@dataclass(frozen=True, slots=True)
class SlowThreshold:
    """One quantile of the champion's latency."""

    name: str
    share: float
    """Share of the champion's answers that are as slow in an ordinary minute."""
    weight: float
    """Share of the latency's evidence of harm."""
    ratios: Ratios
    """Ratios of slow answers that evidence of harm is spread over; a share above one half cannot double."""


SLOW = (
    SlowThreshold("p50", 0.5, 0.2, _spread(1.1, 2.0, 12)),
    SlowThreshold("p90", 0.1, 0.2, _spread(1.1, 10.0, 12)),
    SlowThreshold("p99", 0.01, 0.6, _spread(1.25, 16.0, 16)),
)

BETS = np.geomspace(0.02, 0.95, 16)
"""Stakes that evidence of gross disagreement is spread over."""

STAKES = (0.05, 0.1, 0.2, 0.4, 0.7, 0.95)
"""Stakes that evidence against an excess of errors is spread over, as shares of the largest allowed."""

WEIGHTS: dict[str, float] = {
    "errors": 0.4,
    "latency": 0.4,
    "agreement": 0.05,
    "shift": 0.05,
    "quality": 0.1,
}
"""Shares of the one error budget. Gross disagreement doubles its evidence with every few requests, so that
a small share costs it little."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What both arms of draws of independent coins have shown at S splits; shapes [..., S]."""

    splits: tuple[float, ...]
    """Chance of the challenger, each in (0, 1)."""
    challenger: Floats
    champion: Floats


def log_mean_exp(logs: npt.ArrayLike) -> Floats:
    """Logarithm of the mean, over the last axis, of e-values given by their logarithms."""
    values = np.asarray(logs, float)
    top = values.max(axis=-1)
    sums = np.exp(values - top[..., None]).sum(axis=-1)
    mean: Floats = top + np.log(sums / values.shape[-1])
    return mean


def log_ratio_wealth(counts: Counts, ratios: Ratios, null: float = 1.0) -> Floats:
    """Evidence that the ratio of the arms' event rates is each of `ratios` rather than `null`.

    Args:
        counts: Events of both arms.
        ratios: Alternatives, shape [J]: all above `null`, which is then evidence against "`null` or less";
            or all below it, against "`null` or more".
        null: Ratio that the evidence is against.
    """
    challenger, champion = ratio_bets(counts.splits, ratios, null)
    wealth: Floats = counts.challenger @ challenger + counts.champion @ champion
    return wealth


@functools.lru_cache(maxsize=256)
def ratio_bets(splits: tuple[float, ...], ratios: Ratios, null: float) -> tuple[Floats, Floats]:
    """What one event of the challenger, and one of the champion, adds to each component: [S, J] each."""
    w = np.array(splits, float).reshape(-1, 1)
    rho = np.array(ratios)
    theta, coin = w * rho / (w * rho + 1 - w), w * null / (w * null + 1 - w)
    return np.log(theta / coin), np.log((1 - theta) / (1 - coin))


def log_harm(events: Counts, ratios: Ratios = ERROR_RATIOS) -> Floats:
    """Log e-value against "the challenger's rate of events is not above the champion's"."""
    return log_mean_exp(log_ratio_wealth(events, ratios))


def safe_ratios(margin: float) -> Ratios:
    """Ratios at which a model that keeps below `margin` is expected."""
    return (0.5, 1.0, math.sqrt(margin))


def log_safe_ratio(events: Counts, margin: float) -> Floats:
    """Log e-value against "the challenger's rate is `margin` times the champion's, or more".

    Args:
        events: Of both arms.
        margin: Above 1.
    """
    return log_mean_exp(log_ratio_wealth(events, safe_ratios(margin), margin))


def log_excess_wealth(events: Counts, others: Counts, margin: float) -> Floats:
    """Evidence that the challenger's rate exceeds the champion's by less than `margin`, a stake each.

    Args:
        events: Requests (for keys, first requests) of each arm with the event.
        others: Those without.
        margin: Excess that must be ruled out, in (0, 1).
    """
    challenger, champion, fine = excess_bets(events.splits, margin)
    wealth: Floats = (
        events.challenger @ challenger
        + events.champion @ champion
        + (others.challenger + others.champion) @ fine
    )
    return wealth


def log_safe_excess(events: Counts, others: Counts, margin: float) -> Floats:
    """Log e-value against "the challenger's rate exceeds the champion's by `margin` or more"."""
    return log_mean_exp(log_excess_wealth(events, others, margin))


def slow_excess(threshold: SlowThreshold, margin: float) -> float:
    """Excess of slow answers that a ratio of `margin` makes where the champion's share is the usual one."""
    return min((margin - 1) * threshold.share, 0.99)


def log_safe_slow(slow: Counts, others: Counts, threshold: SlowThreshold, margin: float) -> Floats:
    """Log e-value against "`margin` times as many slow answers as the champion, and as many more a request".

    Both parts are the same harm where the champion is as slow as in the minute that the threshold is from.
    Where it is slower, more answers a request are no harm by themselves; where it is faster, events are so
    rare that a ratio could not be judged. Evidence against either part is evidence against the harm.

    Args:
        slow: Slow requests of both arms.
        others: Their other requests.
        threshold: By which they are slow.
        margin: Ratio, above 1.
    """
    excess = log_safe_excess(slow, others, slow_excess(threshold, margin))
    return log_mean_exp(np.stack([log_safe_ratio(slow, margin), excess], axis=-1))


@functools.lru_cache(maxsize=256)
def excess_bets(splits: tuple[float, ...], margin: float) -> tuple[Floats, Floats, Floats]:
    """What an event of the challenger, one of the champion, and a request without add to each: [S, J]."""
    w = np.array(splits, float).reshape(-1, 1)
    stake = np.array(STAKES)
    return (
        np.log1p(-stake * (1 - w * margin)),
        np.log1p(stake * (w / (1 - w) + w * margin)),
        np.log1p(stake * w * margin),
    )


def log_above(total: npt.ArrayLike, trials: npt.ArrayLike, tolerated: float) -> Floats:
    """Log e-value against "the mean is `tolerated` or less", from a sum of numbers in [0, 1].

    A request's bet wins log(1 + stake * (x - tolerated)), which is concave in its number x: it is at least
    the straight line between 0 and 1 that the sum allows to compute. So numbers inside (0, 1), such as the
    share of flipped rows of one request, are judged a little late, never too early.

    Args:
        total: Sum of the numbers.
        trials: How many they are.
        tolerated: In [0, 1]; 1 tolerates everything.
    """
    found, count = np.asarray(total, float)[..., None], np.asarray(trials, float)[..., None]
    if tolerated >= 1.0:
        return np.zeros(np.broadcast_shapes(found.shape, count.shape)[:-1])
    stakes = BETS / tolerated if tolerated > 0 else BETS
    won, lost = np.log1p(stakes * (1 - tolerated)), np.log1p(-stakes * tolerated)
    return log_mean_exp(found * won + (count - found) * lost)


def e_value(log_value: npt.ArrayLike) -> Floats:
    """E-value from its logarithm, kept inside what JSON can hold."""
    value: Floats = np.exp(np.minimum(np.asarray(log_value, float), 700.0))
    return value


def slow_harm(e_values: npt.ArrayLike) -> Floats:
    """Harm of latency from its e-values at each of `SLOW`, on the last axis: their weighted mean."""
    harm: Floats = np.asarray(e_values, float) @ np.array([threshold.weight for threshold in SLOW])
    return harm


def total_harm(harms: Mapping[str, npt.ArrayLike]) -> Floats:
    """Evidence against "no metric is harmed": the mean of the metrics' e-values by `WEIGHTS`.

    A mean of e-values with fixed weights is an e-value, however they depend; a metric that is not named
    has no data and is 1.
    """
    total: Floats = np.asarray(
        sum(weight * np.asarray(harms.get(name, 1.0), float) for name, weight in WEIGHTS.items())
    )
    return total
