"""What a candidate must prove before it meets traffic."""

from __future__ import annotations

from pydantic import Field, model_validator

from ctrain.spec.base import Metric, Share, Spec, fault, faults, outside, values_of

HIGHER_IS_BETTER: frozenset[Metric] = frozenset({"auc", "f1"})

_BOUNDS = ("at_least", "at_most", "no_harm")


class GateCriterion(Spec):
    """One rule of the gate: exactly one of the bounds.

    `at_least` and `at_most` are on the point estimate. `no_harm: D` compares with the champion on
    the same matured blocks: accepted if the lower bound of the paired interval is above -D, refused
    if the upper bound is below -D, else there is not enough evidence. Differences are signed so
    that positive means the candidate is better, also where lower values are better.
    """

    metric: Metric
    at_least: float | None = None
    at_most: float | None = None
    no_harm: float | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _one_bound(self) -> GateCriterion:
        bounds = [name for name in _BOUNDS if getattr(self, name) is not None]
        if len(bounds) != 1:
            found = " and ".join(bounds) + " together" if bounds else "no bound"
            raise fault(found, f"exactly one of {', '.join(_BOUNDS)}")
        (rule,), higher = bounds, self.metric in HIGHER_IS_BETTER
        problems = []
        if rule == ("at_most" if higher else "at_least"):
            better = "higher" if higher else "lower"
            hint = "at_least" if higher else "at_most"
            problems.append(("", f"{rule} asks for a bad {self.metric}: {better} is better", hint))
        if problem := outside(self.metric, getattr(self, rule)):
            problems.append((rule, problem, values_of(self.metric)))
        if problems:
            raise faults(problems)
        return self


class Evaluation(Spec):
    """Judged blocks and the gate."""

    blocks: int = Field(14, ge=2)
    """Newest matured blocks (partitions) that both judged models have not seen."""

    replicates: int = Field(3, ge=1)
    """Judged models of each version, which differ by their seed alone; the gate averages them."""

    refit_folds: int = Field(2, ge=0)
    """Stretches of the judged blocks on which a refit is judged out of sample; fewer than 2 are no check."""

    threshold: Share = 0.5
    """Probability at and above which the decision is positive."""

    confidence: float = Field(0.95, gt=0.5, lt=1)
    """Level of the paired interval over blocks."""

    gate: tuple[GateCriterion, ...] = Field((GateCriterion(metric="auc", no_harm=0.02),), min_length=1)
    """All must accept; without a criterion every candidate would meet traffic."""
