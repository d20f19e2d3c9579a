"""What starts a run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from ctrain.spec.base import Duration, Metric, Spec, fault, faults, outside, values_of


class NewData(Spec):
    """So many partitions were committed since the last run."""

    type: Literal["new_data"] = "new_data"
    partitions: int = Field(1, ge=1)


class Schedule(Spec):
    """A cron line, in UTC."""

    type: Literal["schedule"] = "schedule"
    cron: str
    """Five fields, e.g. `0 6 * * *`."""

    @field_validator("cron")
    @classmethod
    def _readable(cls, cron: str) -> str:
        from datetime import UTC, datetime

        from cronsim import CronSim, CronSimError

        try:
            CronSim(cron, datetime(2026, 1, 1, tzinfo=UTC))
        except CronSimError as error:
            raise fault(f"{cron!r} is not a cron line: {error}", "e.g. '0 6 * * *'") from None
        return cron


class Performance(Spec):
    """A live metric of a window with joined labels is worse than a bound."""

    type: Literal["performance"] = "performance"
    metric: Metric
    worse_than: float
    cooldown: Duration = 86400.0

    @model_validator(mode="after")
    def _a_value_of_its_metric(self) -> Performance:
        if problem := outside(self.metric, self.worse_than):
            raise faults([("worse_than", problem, values_of(self.metric))])
        return self


class DriftTrigger(Spec):
    """Drift was found, and its diagnosis says that training again is what helps."""

    type: Literal["drift"] = "drift"
    cooldown: Duration = 86400.0


Trigger = Annotated[NewData | Schedule | Performance | DriftTrigger, Field(discriminator="type")]
