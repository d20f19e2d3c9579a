"""What is watched on live traffic."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from ctrain.spec.base import ColumnName, PositiveDuration, Spec, fault, seconds

LEAST_CHECKS = 20.0
"""Fewest checks that may hold one false alarm."""


class Checks(Spec):
    """A number of windows that are judged."""

    checks: float = Field(ge=LEAST_CHECKS)


class Days(Spec):
    """A span of time, in seconds; how many checks it holds is told by the window's length."""

    span: PositiveDuration


def _budget(value: Any) -> Any:
    if isinstance(value, str):
        return {"span": seconds(value)}
    if isinstance(value, int | float) and not isinstance(value, bool):
        return {"checks": value}
    return value


Budget = Annotated[Checks | Days, BeforeValidator(_budget)]
"""Checks, written as a number, or a span of time, written as text such as `60d`."""

DetectorType = Literal[
    "ks",
    "chi_square",
    "cvm",
    "fet",
    "mmd",
    "lsdd",
    "classifier",
    "mmd_online",
    "lsdd_online",
    "cvm_online",
    "fet_online",
]


class ChosenDetector(Spec):
    """One of alibi-detect's detectors; its statistic is calibrated on the stream like every other score."""

    type: DetectorType
    sample: int = Field(500, ge=50, le=1000)
    """Rows at most on either side: joint tests cost their square."""

    features: tuple[str, ...] = ()
    """Features it looks at; empty for all that it can take."""


def _one_of_each(detectors: tuple[ChosenDetector, ...]) -> tuple[ChosenDetector, ...]:
    kinds = [detector.type for detector in detectors]
    twice = sorted({kind for kind in kinds if kinds.count(kind) > 1})
    if twice:
        raise fault(f"{', '.join(twice)} is named twice", "each detector once, with all its features")
    return detectors


class Drift(Spec):
    """Drift of inputs, answers and losses: evidence that accumulates, calibrated on the stream itself."""

    one_false_alarm_in: Budget = Checks(checks=1000)
    """At most one false alarm in so many checks (a number), or in such a span (`60d`), of inputs, answers and
    losses together."""

    min_effect: float = Field(0.1, ge=0)
    """Least shift worth an alarm, in standard deviations of the reference."""

    least_rows: int = Field(20, ge=8)
    """A smaller window says "not enough rows"."""

    calibration_windows: int = Field(168, ge=40, le=1000)
    """Past windows that are watched before anything is judged."""

    detectors: Annotated[tuple[ChosenDetector, ...], AfterValidator(_one_of_each)] = ()
    """alibi-detect's detectors that are run beside, on samples."""

    def checks(self, window: float) -> float:
        """Checks that may hold one false alarm.

        Args:
            window: Seconds of one window.
        """
        budget = self.one_false_alarm_in
        return budget.checks if isinstance(budget, Checks) else max(budget.span / window, LEAST_CHECKS)


class Monitoring(Spec):
    """Windows of live traffic, judged one by one."""

    window: PositiveDuration = 3600.0
    """Span of one window, in seconds of wall clock."""

    minimum_rows: int = Field(200, ge=10)
    """A smaller window says "not enough rows" and is not judged."""

    segments: tuple[ColumnName, ...] = ()
    """Columns of requests whose values are watched each on their own; drift looks at all categories if there
    are none."""

    block: PositiveDuration = 86400.0
    """Span of event time whose requests are one block of evidence on live quality."""

    drift: Drift = Drift()

    @model_validator(mode="after")
    def _enough_checks(self) -> Monitoring:
        budget = self.drift.one_false_alarm_in
        if isinstance(budget, Days) and budget.span / self.window < LEAST_CHECKS:
            raise fault(
                f"one_false_alarm_in holds {budget.span / self.window:.3g} windows",
                f"a span of at least {LEAST_CHECKS:.0f} windows",
            )
        return self
