"""What a candidate must prove before it meets traffic."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, field_validator, model_validator

from ctrain.spec.base import (
    LOWER_IS_BETTER,
    ColumnName,
    ImportPath,
    Metric,
    Share,
    Spec,
    did_you_mean,
    fault,
    faults,
    outside,
    seconds,
    values_of,
)

_OF_THE_VERSION = ("latency_p50", "latency_p99", "size")
GATE_METRICS = (*get_args(Metric), "quality", *_OF_THE_VERSION)
"""What a criterion may name beside the user's own metrics. `quality` is the combined evidence of all
statistics of a block; latency (seconds for one request) and size (bytes of the weights) are the version's
own; `value` needs `costs`."""

RATES = ("positive_rate", "true_positive_rate", "false_positive_rate")
"""Rates of positive decisions, by which named groups are compared: demographic parity, equal opportunity."""

_BOUNDS = ("at_least", "at_most", "no_harm", "better")
_BY_SEGMENT = ("auc", "log_loss", "brier", "value")
_SIZE = re.compile(r"^\s*([0-9]*\.?[0-9]+)\s*(B|KB|MB|GB)\s*$")
_BYTES = {"B": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9}


def _margin(value: Any) -> Any:
    if value is None or value == "auto":
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise fault(f"{value!r} is not a number", "e.g. 0.02, or auto")
    if value < 0:
        raise fault(f"{value:g} is below 0", "e.g. 0.02, or auto")
    return float(value)


Margin = Annotated[float | Literal["auto"], BeforeValidator(_margin)]


class GateCriterion(Spec):
    """One rule of the gate: exactly one of the bounds.

    `at_least` and `at_most` are on the point estimate; `50ms` and `200MB` are understood for latency and
    size. `no_harm: D` compares with the champion on the same matured blocks: accepted if the lower bound of
    the paired interval is above -D, refused if the upper bound is below -D, else there is not enough
    evidence. Differences are signed so that positive means the candidate is better, also where lower values
    are better. D is never taken below half of what retrains of the pipeline truly differ by (`auto`: that
    half itself, learned from the pipeline's record). `better: true` asks for proof that the candidate is
    better by more than that. `no_harm: auto` refuses where harm is proved and accepts where harm of the size
    that spoiled labels do is ruled out.
    """

    metric: str
    at_least: float | None = None
    at_most: float | None = None
    no_harm: Margin | None = None
    better: Literal[True] | None = None

    segments: tuple[ColumnName, ...] = ()
    """Columns whose every value is judged on its own, e.g. [carrier]; none of them may break the rule."""

    between: tuple[str, ...] = ()
    """Named groups, e.g. [sex=F, sex=M]: `at_most` then bounds the largest difference between them."""

    @model_validator(mode="before")
    @classmethod
    def _units(cls, data: Any) -> Any:
        bound = data.get("at_most") if isinstance(data, dict) else None
        if not isinstance(bound, str):
            return data
        if str(data.get("metric")).startswith("latency"):
            return data | {"at_most": seconds(bound)}
        if data.get("metric") == "size" and (match := _SIZE.match(bound)):
            return data | {"at_most": float(match[1]) * _BYTES[match[2]]}
        return data

    @field_validator("between")
    @classmethod
    def _groups(cls, between: tuple[str, ...]) -> tuple[str, ...]:
        for group in between:
            if "=" not in group:
                raise fault(f"{group!r} is not a group", "column=value, e.g. carrier=UA")
        if len(set(between)) < len(between) or len(between) == 1:
            raise fault("is not two groups or more, each once", "e.g. [carrier=UA, carrier=AA]")
        return between

    @model_validator(mode="after")
    def _one_bound(self) -> GateCriterion:
        bounds = [name for name in _BOUNDS if getattr(self, name) is not None]
        if len(bounds) != 1:
            found = " and ".join(bounds) + " together" if bounds else "no bound"
            raise fault(found, f"exactly one of {', '.join(_BOUNDS)}")
        (rule,) = bounds
        if problems := [*self._of_the_kind(rule), *self._of_the_value(rule)]:
            raise faults(problems)
        return self

    def _of_the_kind(self, rule: str) -> list[tuple[str, str, str]]:
        """What is wrong with a bound for this metric, or for these groups."""
        if self.between:
            return (
                [] if rule == "at_most" else [("between", f"{rule} does not bound a difference", "at_most")]
            )
        if self.metric in RATES:
            return [("", f"{self.metric} is neither good nor bad by itself", "between: [column=a, column=b]")]
        if self.metric == "quality" and not (rule == "better" or self.no_harm == "auto"):
            return [("", f"{rule} of quality has no unit", "no_harm: auto, or better: true")]
        if self.segments and self.metric not in (*_BY_SEGMENT, *_OF_THE_VERSION):
            wrong = f"{self.metric} cannot be judged segment by segment"
            return [("segments", wrong, f"one of {', '.join(_BY_SEGMENT)}")]
        if self.metric in _OF_THE_VERSION:
            wrong = "" if rule == "at_most" else f"{rule} is no bound on {self.metric}"
            wrong = wrong or ("no segment has a " + self.metric if self.segments else "")
            return [("", wrong, "at_most")] if wrong else []
        higher = self.metric not in LOWER_IS_BETTER
        if rule == ("at_most" if higher else "at_least"):
            better = "higher" if higher else "lower"
            hint = "at_least" if higher else "at_most"
            return [("", f"{rule} asks for a bad {self.metric}: {better} is better", hint)]
        return []

    def _of_the_value(self, rule: str) -> list[tuple[str, str, str]]:
        """What is wrong with the number itself."""
        bound = getattr(self, rule)
        if not isinstance(bound, float) or self.metric in ("quality", "value"):
            return []
        if self.metric in get_args(Metric):
            metric: Any = self.metric
            problem = outside(metric, bound)
            return [(rule, problem, values_of(metric))] if problem else []
        if self.metric in _OF_THE_VERSION and bound < 0:
            return [(rule, f"{bound:g} is no value of {self.metric}", "0 and above")]
        return []


class Costs(Spec):
    """What one decision is worth, in the business's unit; costs are negative."""

    true_positive: float = 0.0
    false_positive: float = 0.0
    false_negative: float = 0.0
    true_negative: float = 0.0


class Leaks(Spec):
    """The search for columns that know the label. A strong honest column looks like one that does."""

    refuse: bool = True
    """Whether what is found refuses the candidate; else it is only told."""

    vouched: tuple[ColumnName, ...] = ()
    """Columns of the view that a person knows to be honest: they are warned of, never refused."""

    alone_warn: float = Field(0.95, gt=0.5, le=1)
    alone_refuse: float = Field(0.99, gt=0.5, le=1)
    """AUC, out of sample, that a column may reach by itself."""

    pure_refuse: Share = 0.9995
    """How surely one value may settle the label: 1 - (rarer label's share there over its share overall)."""

    missing_refuse: float = Field(0.9, gt=0.5, le=1)
    """AUC that the mere absence of a column's value may reach."""

    @model_validator(mode="after")
    def _warned_of_first(self) -> Leaks:
        if self.alone_warn > self.alone_refuse:
            above = f"{self.alone_warn:g} is above alone_refuse, {self.alone_refuse:g}"
            raise faults([("alone_warn", above, "at most as much")])
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

    block_rows: int = Field(10, ge=1)
    """Labelled rows from which a block is evidence."""

    reuse: int = Field(28, ge=1)
    """Gates that may look at one block: a loop that looks for ever finds what pleases it."""

    leaks: Leaks = Leaks()

    costs: Costs | None = None
    """Gives the metric `value`: the mean value of a row at the threshold."""

    metrics: dict[str, ImportPath] = Field(default_factory=dict)
    """The user's own metrics by name: functions `(labels, probabilities) -> float`, higher is better."""

    gate: tuple[GateCriterion, ...] = Field((GateCriterion(metric="auc", no_harm=0.02),), min_length=1)
    """All must accept; without a criterion every candidate would meet traffic."""

    @model_validator(mode="after")
    def _known_metrics(self) -> Evaluation:
        known = (*GATE_METRICS, *RATES, *self.metrics)
        problems = [
            (f"metrics.{name}", "is the name of a metric that there is already", "another name")
            for name in self.metrics
            if name in (*GATE_METRICS, *RATES)
        ]
        for number, rule in enumerate(self.gate):
            if rule.metric not in known:
                hint = did_you_mean(rule.metric, known)
                problems.append((f"gate.{number}", f"unknown metric {rule.metric!r}", hint))
            if rule.metric == "value" and self.costs is None:
                problems.append((f"gate.{number}", "value needs costs", "evaluation.costs"))
        if problems:
            raise faults(problems)
        return self
