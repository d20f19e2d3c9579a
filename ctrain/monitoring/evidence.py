"""e-detectors: evidence of a change that accumulates from window to window, and forgets what is past.

Each score gives a p-value a window; p-values become e-values, which a detector multiplies up while they
stay large. The average of detectors is a detector, whatever their dependence: no correction for their number.

Source: Shin, Ramdas and Rinaldo, E-detectors: a nonparametric framework for sequential change detection
(2023); Vovk and Wang, E-values: calibration, combination and applications (2021).
"""

from __future__ import annotations

import numpy as np
from scipy.special import ndtri

from ctrain.monitoring.summary import Floats

BETS = np.array([0.6, 1.2, 2.4])
"""Shifts, in units of a score's noise, that detectors bet on: each score has one detector a bet."""


def log_e_values(p: Floats) -> Floats:
    """Logarithm of the e-values of p-values, exp(bet * z - bet ** 2 / 2) with z = normal quantile of 1 - p.

    Args:
        p: In (0, 1]; NaN, no opinion, gives 0.

    Returns:
        Shape [bets, ...].
    """
    z = -ndtri(np.clip(np.where(np.isnan(p), 0.5, p), 1e-9, 1.0 - 1e-9))
    bets = BETS.reshape(-1, *[1] * p.ndim)
    found: Floats = np.where(np.isnan(p), 0.0, bets * z - bets**2 / 2.0)
    return found


def accumulate(log_m: Floats, p: Floats, span: Floats, cap: Floats) -> Floats:
    """One step of every detector: M <- (M + 1/span) * e ** (1/span).

    The windows of a span depend on each other, so that together they are worth one: a geometric mean of
    dependent e-values is an e-value (Hölder).

    Args:
        log_m: Logarithm of the evidence so far, shape [bets, K]; -inf for none.
        p: p-value of each score in this window; NaN leaves its detectors as they are.
        span: Windows over which each score depends on itself, 1 and above.
        cap: Logarithm above which a detector grows no further, so that recovery is seen soon.
    """
    grown = np.logaddexp(log_m, -np.log(span)) + log_e_values(p) / span
    moved: Floats = np.where(np.isnan(p), log_m, np.minimum(grown, cap))
    return moved
