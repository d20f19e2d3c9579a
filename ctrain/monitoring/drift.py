"""Drift of inputs: alibi-detect's univariate tests on bounded samples, window against reference.

What the library gets wrong by itself is met here: missing values are counted apart and taken out
(it calls NaN "no drift"), categories that either side lacks are merged into one, tiny windows are not
tested, and a small p-value alone is no drift: the effect must be worth a warning too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ctrain.records import FeatureDrift
from ctrain.spec.monitoring import Drift

MINIMUM = 30
"""Values on either side below which a feature is not tested."""

OTHER = "other"
RARE = 5


def tabular_drift(
    reference: dict[str, npt.NDArray[Any]], window: dict[str, npt.NDArray[Any]], spec: Drift
) -> tuple[FeatureDrift, ...]:
    """Test each feature.

    Args:
        reference: Raw columns, text ("" is missing) or float64 (NaN is missing).
        window: The same columns of live traffic.
        spec: Level (Bonferroni over the features), least effect, sample size.
    """
    level = spec.p_value / max(len(reference), 1)
    found = []
    for name, values in reference.items():
        p_value, effect = _test(_sample(values, spec.sample), _sample(window[name], spec.sample), level)
        drifted = p_value < level and effect >= spec.minimum_effect
        found.append(FeatureDrift(name, p_value, effect, drifted))
    return tuple(found)


def _sample(values: npt.NDArray[Any], size: int) -> npt.NDArray[Any]:
    if len(values) <= size:
        return values
    chosen: npt.NDArray[Any] = values[np.random.default_rng(0).choice(len(values), size, replace=False)]
    return chosen


def _test(reference: npt.NDArray[Any], window: npt.NDArray[Any], level: float) -> tuple[float, float]:
    """(p-value, effect) of one feature; missing values count as a move of their own."""
    missing = _missing(reference), _missing(window)
    gap = abs(float(missing[0].mean()) - float(missing[1].mean())) if len(window) and len(reference) else 0.0
    p_missing = _two_shares(missing[0], missing[1]) if gap else 1.0
    here, there = reference[~missing[0]], window[~missing[1]]
    if min(len(here), len(there)) < MINIMUM:
        return p_missing, gap
    if reference.dtype.kind == "U":
        p_value, effect = _categories(here, there)
    else:
        p_value, effect = _numbers(here, there)
    # Two tests of one feature: the one with the larger effect that is significant speaks for it.
    significant = [pair for pair in ((p_value, effect), (p_missing, gap)) if pair[0] < level / 2]
    if significant:
        return max(significant, key=lambda pair: pair[1])
    return min((p_value, effect), (p_missing, gap))


def _numbers(here: npt.NDArray[Any], there: npt.NDArray[Any]) -> tuple[float, float]:
    from alibi_detect.cd import KSDrift

    column = here.astype(np.float32).reshape(-1, 1)
    result = KSDrift(column, p_val=0.05).predict(there.astype(np.float32).reshape(-1, 1))["data"]
    return float(result["p_val"][0]), float(result["distance"][0])


def _categories(here: npt.NDArray[Any], there: npt.NDArray[Any]) -> tuple[float, float]:
    from alibi_detect.cd import ChiSquareDrift

    names, counts = np.unique(np.concatenate([here, there]), return_counts=True)
    both = set(np.unique(here)) & set(np.unique(there))
    kept = {str(n) for n, c in zip(names, counts, strict=True) if n in both and c >= RARE}
    first = np.array([value if value in kept else OTHER for value in here.tolist()])
    second = np.array([value if value in kept else OTHER for value in there.tolist()])
    labels = np.unique(np.concatenate([first, second]))
    shares = [np.array([np.mean(side == label) for label in labels]) for side in (first, second)]
    effect = float(np.abs(shares[0] - shares[1]).sum() / 2)
    if len(labels) < 2:
        return 1.0, 0.0
    # alibi-detect refuses a category that the reference lacks: those are tested by the same
    # chi-square on the union of both sides, so that one new value hides no shift of the others.
    if OTHER in labels and OTHER not in first:
        from scipy.stats import chi2_contingency

        table = [[int(np.sum(side == label)) for label in labels] for side in (first, second)]
        return float(chi2_contingency(table).pvalue), effect
    codes = {label: index for index, label in enumerate(labels)}
    coded = [np.array([[codes[value]] for value in side.tolist()]) for side in (first, second)]
    result = ChiSquareDrift(coded[0], p_val=0.05).predict(coded[1])["data"]
    return float(result["p_val"][0]), effect


def _missing(values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    absent: npt.NDArray[np.bool_] = values == "" if values.dtype.kind == "U" else np.isnan(values)
    return absent


def _two_shares(one: npt.NDArray[np.bool_], other: npt.NDArray[np.bool_]) -> float:
    """p-value of Fisher's exact test for two shares."""
    from scipy.stats import fisher_exact

    table = [[int(one.sum()), int((~one).sum())], [int(other.sum()), int((~other).sum())]]
    return float(fisher_exact(table)[1])
