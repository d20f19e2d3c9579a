"""Drift of inputs: alibi-detect's univariate tests on bounded samples, window against reference.

What the library gets wrong by itself is met here: missing values are counted apart and taken out
(it calls NaN "no drift"), rare categories are merged into one, categories that the reference lacks are
tested with the others, tiny windows are not tested, and a small p-value alone is no drift: the effect
must be worth a warning too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ctrain.records import FeatureDrift
from ctrain.spec.monitoring import Drift

MINIMUM = 30
"""Rows, and values among them, on either side below which a feature is not tested."""

OTHER = "other"
RARE = 5
"""Rows of both sides together below which a category is merged into `OTHER`."""


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
    if min(len(reference), len(window)) < MINIMUM:
        return 1.0, 0.0
    missing = _missing(reference), _missing(window)
    gap = abs(float(missing[0].mean()) - float(missing[1].mean()))
    p_missing = _two_shares(missing[0], missing[1]) if gap else 1.0
    here, there = reference[~missing[0]], window[~missing[1]]
    if min(len(here), len(there)) < MINIMUM:
        return p_missing, gap  # the only test
    if reference.dtype.kind == "U":
        p_value, effect = _categories(here, there)
    else:
        p_value, effect = _numbers(here, there)
    # Two tests of one feature, each at half the level (Bonferroni); of those that are significant, the
    # one with the larger effect speaks for the feature.
    tests = [(min(1.0, 2 * p_value), effect), (min(1.0, 2 * p_missing), gap)]
    significant = [test for test in tests if test[0] < level]
    return max(significant, key=lambda test: test[1]) if significant else min(tests)


def _numbers(here: npt.NDArray[Any], there: npt.NDArray[Any]) -> tuple[float, float]:
    from alibi_detect.cd import KSDrift

    # Both sides shifted and scaled alike, which the test does not see, so that float32 can tell
    # the values of a narrow range apart.
    middle, scale = float(np.median(here)), float(np.std(here)) or 1.0
    columns = [((side - middle) / scale).astype(np.float32).reshape(-1, 1) for side in (here, there)]
    result = KSDrift(columns[0], p_val=0.05).predict(columns[1])["data"]
    return float(result["p_val"][0]), float(result["distance"][0])


def _categories(here: npt.NDArray[Any], there: npt.NDArray[Any]) -> tuple[float, float]:
    from alibi_detect.cd import ChiSquareDrift

    names, counts = np.unique(np.concatenate([here, there]), return_counts=True)
    kept = {str(name) for name, count in zip(names, counts, strict=True) if count >= RARE}
    first = np.array([value if value in kept else OTHER for value in here.tolist()])
    second = np.array([value if value in kept else OTHER for value in there.tolist()])
    labels = np.unique(np.concatenate([first, second]))
    shares = [np.array([np.mean(side == label) for label in labels]) for side in (first, second)]
    effect = float(np.abs(shares[0] - shares[1]).sum() / 2)
    if len(labels) < 2:
        return 1.0, 0.0
    # alibi-detect refuses a category that the reference lacks: the same chi-square on the union of
    # both sides takes it.
    if not np.isin(second, first).all():
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
