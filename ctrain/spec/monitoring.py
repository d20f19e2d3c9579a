"""What is watched on live traffic."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ctrain.spec.base import PositiveDuration, Spec


class Drift(Spec):
    """alibi-detect's univariate tests, window against reference. They warn; they start no run."""

    detector: Literal["tabular", "none"] = "tabular"
    p_value: float = Field(0.001, gt=0, lt=0.5)
    """Level after Bonferroni over the features."""

    minimum_effect: float = Field(0.1, ge=0, le=1)
    """Least Kolmogorov-Smirnov distance (numbers) or total variation (categories) worth a warning."""

    sample: int = Field(2000, ge=100)
    """Rows at most on either side."""


class Monitoring(Spec):
    """Windows of live traffic, judged one by one."""

    window: PositiveDuration = 3600.0
    """Span of one window, in seconds of wall clock."""

    minimum_rows: int = Field(200, ge=10)
    """A smaller window says "not enough rows" and is not judged."""

    block: PositiveDuration = 86400.0
    """Span of event time whose requests are one block of evidence on live quality."""

    drift: Drift = Drift()
