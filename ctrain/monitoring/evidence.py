"""e-detectors: evidence of a change that accumulates from window to window, and forgets what is past.

Each score gives a p-value a window; p-values become e-values, which a detector multiplies up while they
stay large. The average of detectors is a detector, whatever their dependence: no correction for their number.

Source: Shin, Ramdas and Rinaldo, E-detectors: a nonparametric framework for sequential change detection
(2023); Vovk and Wang, E-values: calibration, combination and applications (2021).
"""

from __future__ import annotations

import numpy as np

from ctrain.monitoring.summary import Floats

POWERS = np.array([0.15, 0.35, 0.6])
"""Calibrators e = a * p ** (a - 1) that are mixed: from bold to careful."""


def log_e_values(p: Floats) -> Floats:
    """Logarithm of each p-value's e-value; NaN, no opinion, gives 0."""
    p = np.where(np.isnan(p), 1.0, p)
    mixed = (POWERS[:, None] * p[None, :] ** (POWERS[:, None] - 1.0)).mean(axis=0)
    return np.log(mixed)


def accumulate(log_m: Floats, p: Floats, span: Floats, cap: Floats) -> Floats:
    """One step of every detector: M <- (M + 1/span) * e ** (1/span).

    The windows of a span depend on each other, so that together they are worth one: a geometric mean of
    dependent e-values is an e-value (Hölder).

    Args:
        log_m: Logarithm of the evidence so far; -inf for none.
        p: p-value of each score in this window; NaN leaves its detector as it is.
        span: Windows over which each score depends on itself, 1 and above.
        cap: Logarithm above which a detector grows no further, so that recovery is seen soon.
    """
    grown = np.logaddexp(log_m, -np.log(span)) + log_e_values(p) / span
    moved: Floats = np.where(np.isnan(p), log_m, np.minimum(grown, cap))
    return moved
