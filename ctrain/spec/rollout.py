"""How new weights meet traffic, and what must hold meanwhile."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, field_validator

from ctrain.spec.base import Duration, PositiveDuration, Share, Spec, faults

_STEPS = (0.01, 0.05, 0.25)


class Quality(Spec):
    """Quality on matured labels, champion against challenger on the same requests, by blocks of time.

    A canary of hours sees few blocks. It stops gross harm, and goes on watching after promotion; only where
    `before_promotion` is set must harm of `no_harm` or more be ruled out first, which takes days.
    """

    metric: Literal["auc", "log_loss"] = "auc"

    no_harm: float = Field(0.02, gt=0)
    """Loss of quality that counts as harm, in the metric's unit; never less than what two retrains of the
    same procedure differ by."""

    before_promotion: bool = False
    """Whether promotion waits until that is ruled out."""


class Canary(Spec):
    """Shadow, then a growing share of live traffic, then promotion."""

    type: Literal["canary"] = "canary"

    shadow: int = Field(200, ge=0)
    """Requests mirrored to the challenger before it answers anyone; 0 leaves the shadow out."""

    steps: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(_STEPS, min_length=1)
    """Share of live traffic at each step, in (0, 1), strictly increasing."""

    hold: Duration = 60.0
    """Least seconds at each step, shadow included. Evidence speaks of the hours that it is from: what
    must be seen over a whole day needs a last step that is held for a day."""

    alpha: float = Field(0.05, gt=0, lt=0.5)
    """Bound on the chance that an identical model is rolled back, over the whole rollout."""

    alpha_promote: float = Field(0.05, gt=0, lt=0.5)
    """Bound on the chance that a model harmful by a margin below is promoted."""

    error_margin: float = Field(0.005, gt=0, lt=1)
    """Excess of the challenger's error rate over the champion's in the same minutes that must be ruled out
    before promotion."""

    slow_margin: float = Field(2.0, gt=1)
    """Ratio of slow answers, challenger to champion, that must be ruled out before promotion, at the
    champion's p50, p90 and p99 each: at 2 that another 1 % of answers are slower than its p99."""

    disagreement: Share = 0.2
    """Share of flipped decisions above which the challenger disagrees grossly. A fresh model is meant to
    differ; this and `shift` stop one that answers another question."""

    shift: Share = 0.2
    """Mean absolute difference of the two models' probabilities above which predictions shifted grossly."""

    quality: Quality = Quality()

    timeout: PositiveDuration = 7 * 86400.0
    """Without evidence for promotion by then, the champion stays."""

    watch: Duration = 14 * 86400.0
    """Time after a promotion in which the champion before it stays in shadow, so that labels judge both by
    blocks of time; 0 leaves the watch out."""

    @field_validator("steps")
    @classmethod
    def _steps_increase(cls, steps: tuple[float, ...]) -> tuple[float, ...]:
        found = [
            (str(index), f"{share} comes after {previous}: steps must increase", f"e.g. {list(_STEPS)}")
            for index, (previous, share) in enumerate(pairwise(steps), start=1)
            if share <= previous
        ]
        if found:
            raise faults(found)
        return steps


Rollout = Canary
