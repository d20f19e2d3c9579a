"""What a partition must satisfy before its rows are used."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ctrain.spec.base import Share, Spec, fault


class ColumnContract(Spec):
    """What one column of the source must satisfy."""

    dtype: Literal["category", "number", "timestamp", "flag"]
    """Kind of value: text, a float or integer, a point in time, true/false (or 0/1)."""

    nullable: bool = False
    minimum: float | None = None
    maximum: float | None = None

    allowed: tuple[str, ...] | None = None
    """Values that a category may take; None allows every value."""

    @model_validator(mode="after")
    def _rules_fit_the_dtype(self) -> ColumnContract:
        if self.dtype != "number" and (self.minimum is not None or self.maximum is not None):
            raise fault(f"minimum and maximum do not fit dtype {self.dtype}", "they need dtype number")
        if self.dtype != "category" and self.allowed is not None:
            raise fault(f"allowed does not fit dtype {self.dtype}", "it needs dtype category")
        if self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            raise fault(f"minimum {self.minimum} is above maximum {self.maximum}")
        return self


class Contract(Spec):
    """Rules for a partition. Columns that are not named follow the feature view's declaration."""

    columns: dict[str, ColumnContract] = Field(default_factory=dict)

    max_refused: Share = 0.05
    """Share of refused rows above which the whole partition is refused."""
