"""What is known of each metric by its name: which way is better, its range, what it needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["binary", "multiclass", "regression"]
Need = Literal["both_classes", "probabilities", "decisions", "costs", "numbers"]


@dataclass(frozen=True, slots=True)
class MetricInfo:
    """One metric."""

    name: str
    higher_is_better: bool
    low: float | None
    """Least value it can take; None if there is none."""
    high: float | None
    needs: tuple[Need, ...]
    kinds: tuple[Kind, ...]


def _info(
    name: str,
    better: Literal["higher", "lower"],
    span: tuple[float | None, float | None],
    needs: tuple[Need, ...],
    *kinds: Kind,
) -> MetricInfo:
    return MetricInfo(name, better == "higher", *span, needs, kinds)


_SHARE, _LOSS = (0.0, 1.0), (0.0, None)

CATALOGUE: dict[str, MetricInfo] = {
    info.name: info
    for info in (
        _info("auc", "higher", _SHARE, ("both_classes",), "binary"),
        _info("average_precision", "higher", _SHARE, ("both_classes",), "binary"),
        _info("f1", "higher", _SHARE, ("decisions",), "binary"),
        _info("log_loss", "lower", _LOSS, ("probabilities",), "binary", "multiclass"),
        _info("brier", "lower", (0.0, 2.0), ("probabilities",), "binary", "multiclass"),
        _info("ece", "lower", _SHARE, ("probabilities",), "binary", "multiclass"),
        _info("value", "higher", (None, None), ("decisions", "costs"), "binary", "multiclass"),
        _info("accuracy", "higher", _SHARE, ("decisions",), "binary", "multiclass"),
        _info("macro_f1", "higher", _SHARE, ("decisions",), "multiclass"),
        _info("auc_one_vs_rest", "higher", _SHARE, ("both_classes", "probabilities"), "multiclass"),
        _info("rmse", "lower", _LOSS, ("numbers",), "regression"),
        _info("mae", "lower", _LOSS, ("numbers",), "regression"),
        _info("quantile_loss", "lower", _LOSS, ("numbers",), "regression"),
    )
}
"""Metrics by name. User metrics are not in it: they say themselves which way is better."""


def higher_is_better(metric: str) -> bool:
    """Whether a higher value of a metric of the catalogue is better."""
    return CATALOGUE[metric].higher_is_better
