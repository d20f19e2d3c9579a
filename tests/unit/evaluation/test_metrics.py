"""Metrics agree with scikit-learn, and each bad input has its named outcome."""

from __future__ import annotations

import sys
import types
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve as sk_calibration_curve
from sklearn.utils import check_random_state

from ctrain.errors import UserCodeError
from ctrain.evaluation.catalogue import CATALOGUE, higher_is_better
from ctrain.evaluation.influence import INFLUENCES, NUMBERS, block_interval, influence
from ctrain.evaluation.metrics import (
    BINARY,
    CostMatrix,
    binary_metrics,
    calibration_curve,
    calibration_error,
    score_binary,
)
from ctrain.evaluation.multiclass import score_multiclass
from ctrain.evaluation.regression import score_regression
from ctrain.evaluation.user_metrics import load_user_metric, score_user_metrics
from ctrain.spec.base import LOWER_IS_BETTER

COSTS = CostMatrix(true_positive=5.0, false_positive=-1.0, false_negative=-8.0, true_negative=0.25)


@st.composite
def binary_rows(draw):
    """Labels with both classes, probabilities with many ties, weights with zeros."""
    size = draw(st.integers(2, 60))
    labels = np.array([*draw(st.lists(st.integers(0, 1), min_size=size - 2, max_size=size - 2)), 0, 1])
    coarse = draw(st.sampled_from([1, 4, 15, 1000]))
    steps = draw(st.lists(st.integers(0, coarse), min_size=size, max_size=size))
    weights = draw(st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.25]), min_size=size - 2, max_size=size - 2))
    return labels, np.array(steps) / coarse, np.array([*weights, 1.0, 1.0])


@settings(max_examples=60, deadline=None)
@given(binary_rows(), st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.booleans())
def test_binary_metrics_are_those_of_scikit_learn(rows, threshold: float, weighted: bool) -> None:
    labels, scores, weights = rows
    used = weights if weighted else None
    found = score_binary(labels, scores, threshold, weights=used, costs=COSTS)
    assert not found.missing
    decided = (scores >= threshold).astype(int)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        floored = np.clip(scores, 1e-7, 1 - 1e-7)
        expected = {
            "auc": sk.roc_auc_score(labels, scores, sample_weight=used),
            "average_precision": sk.average_precision_score(labels, scores, sample_weight=used),
            "f1": sk.f1_score(labels, decided, sample_weight=used, zero_division=0.0),
            "log_loss": sk.log_loss(labels, floored, sample_weight=used, labels=[0, 1]),
            "brier": sk.brier_score_loss(labels, scores, sample_weight=used, labels=[0, 1]),
            "accuracy": sk.accuracy_score(labels, decided, sample_weight=used),
        }
        table = sk.confusion_matrix(labels, decided, sample_weight=used, labels=[0, 1])
    worth = np.array(
        [[COSTS.true_negative, COSTS.false_positive], [COSTS.false_negative, COSTS.true_positive]]
    )
    expected["value"] = (table * worth).sum() / table.sum()
    for name, value in expected.items():
        assert found.values[name] == pytest.approx(value, rel=1e-12, abs=1e-12), name


def test_a_million_rows_agree_with_scikit_learn_too() -> None:
    rng = np.random.default_rng(0)
    scores = rng.random(300_000).astype(np.float32)
    labels = (rng.random(300_000) < scores * 0.4).astype(np.int8)
    found = binary_metrics(labels, scores, 0.5)
    exact = scores.astype(np.float64)
    assert found["auc"] == pytest.approx(sk.roc_auc_score(labels, exact), rel=1e-12)
    assert found["average_precision"] == pytest.approx(sk.average_precision_score(labels, exact), rel=1e-12)
    assert found["log_loss"] == pytest.approx(sk.log_loss(labels, np.clip(exact, 1e-7, 1 - 1e-7)), rel=1e-12)


def test_the_calibration_curve_is_that_of_scikit_learn_and_gives_the_calibration_error() -> None:
    rng = np.random.default_rng(1)
    scores = rng.random(2000) ** 2
    labels = (rng.random(2000) < scores**0.7).astype(int)
    curve = calibration_curve(labels, scores)
    positive, predicted = sk_calibration_curve(labels, scores, n_bins=15)
    assert [bin.positive for bin in curve] == pytest.approx(positive, rel=1e-12)
    assert [bin.predicted for bin in curve] == pytest.approx(predicted, rel=1e-12)
    gaps = sum(bin.rows * abs(bin.positive - bin.predicted) for bin in curve) / 2000
    assert calibration_error(labels, scores) == pytest.approx(gaps, rel=1e-12)
    doubled = calibration_error(labels, scores, np.full(2000, 2.0))
    assert doubled == pytest.approx(gaps, rel=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 5), st.integers(5, 40), st.integers(0, 10**6), st.booleans())
def test_multi_class_metrics_are_those_of_scikit_learn(
    classes: int, size: int, seed: int, weighted: bool
) -> None:
    rng = check_random_state(seed)
    labels = np.concatenate([np.arange(classes), rng.randint(0, classes, size)])
    scores = rng.dirichlet(np.ones(classes), len(labels))
    weights = rng.randint(1, 4, len(labels)).astype(float) if weighted else None
    found = score_multiclass(labels, scores, weights=weights).values
    decided, floored = scores.argmax(axis=1), np.clip(scores, 1e-7, 1.0)
    picked = -np.log(floored[np.arange(len(labels)), labels])
    worth = {"sample_weight": weights}
    assert found["log_loss"] == pytest.approx(np.average(picked, weights=weights), rel=1e-12)
    assert found["log_loss"] == pytest.approx(sk.log_loss(labels, scores, **worth), rel=1e-5)
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(labels, decided, **worth), rel=1e-12)
    macro = sk.f1_score(labels, decided, average="macro", zero_division=0.0, **worth)
    assert found["macro_f1"] == pytest.approx(macro, rel=1e-12)
    per_class = [sk.roc_auc_score(labels == number, scores[:, number], **worth) for number in range(classes)]
    assert found["auc_one_vs_rest"] == pytest.approx(np.mean(per_class), rel=1e-12)
    brier = sk.brier_score_loss(labels, scores, scale_by_half=False, labels=range(classes), **worth)
    assert found["brier"] == pytest.approx(brier, rel=1e-12)


def test_multi_class_value_is_the_mean_of_the_cost_matrix() -> None:
    costs = np.array([[1.0, -2.0], [-4.0, 3.0]])
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]])
    found = score_multiclass(np.array([0, 0, 1]), scores, costs_CC=costs)
    assert found.values["value"] == pytest.approx((1.0 - 2.0 - 4.0) / 3)


@settings(max_examples=100, deadline=None)
@given(
    arrays.arrays(float, st.integers(1, 50), elements=st.floats(-1e3, 1e3)),
    st.integers(0, 10**6),
    st.sampled_from([0.1, 0.5, 0.9]),
)
def test_regression_metrics_are_those_of_scikit_learn(labels, seed: int, quantile: float) -> None:
    rng = np.random.default_rng(seed)
    guess, weights = labels + rng.normal(size=len(labels)), rng.integers(1, 5, len(labels)).astype(float)
    found = score_regression(labels, guess, weights=weights, quantile=quantile).values
    worth = {"sample_weight": weights}
    assert found["rmse"] == pytest.approx(sk.root_mean_squared_error(labels, guess, **worth), rel=1e-12)
    assert found["mae"] == pytest.approx(sk.mean_absolute_error(labels, guess, **worth), rel=1e-12)
    pinball = sk.mean_pinball_loss(labels, guess, alpha=quantile, **worth)
    assert found["quantile_loss"] == pytest.approx(pinball, rel=1e-12)


@pytest.mark.parametrize(
    ("labels", "scores", "reason"),
    [
        ([], [], "no_rows"),
        ([0, 1, 1], [0.1, np.nan, 0.3], "predictions_not_finite"),
        ([0, 1, 1], [0.1, np.inf, 0.3], "predictions_not_finite"),
        ([0, 1, np.nan], [0.1, 0.2, 0.3], "labels_unusable"),
        ([0, 1, 2], [0.1, 0.2, 0.3], "labels_unusable"),
    ],
)
def test_rows_that_cannot_be_scored_have_a_named_reason(labels, scores, reason: str) -> None:
    found = score_binary(np.array(labels, float), np.array(scores), 0.5)
    assert found.values == {}
    assert found.missing == dict.fromkeys(BINARY, reason)
    assert binary_metrics(np.array(labels, float), np.array(scores), 0.5) == {}


def test_one_class_and_predictions_outside_0_to_1_lose_only_what_they_must() -> None:
    one = score_binary(np.ones(4), np.full(4, 0.75), 0.5)
    assert one.missing == {"auc": "one_class", "average_precision": "one_class", "value": "no_costs"}
    assert one.values["brier"] == 0.0625
    logits = score_binary(np.array([0, 1]), np.array([-3.0, 2.0]), 0.0, costs=COSTS)
    assert logits.values == {"auc": 1.0, "average_precision": 1.0, "f1": 1.0, "accuracy": 1.0, "value": 2.625}
    assert set(logits.missing.values()) == {"predictions_outside_0_1"}


@pytest.mark.parametrize("weights", [[0.0, 0.0], [-1.0, 2.0], [np.nan, 1.0]])
def test_weights_that_weigh_nothing_have_a_named_reason(weights) -> None:
    found = score_binary(np.array([0, 1]), np.array([0.1, 0.2]), 0.5, weights=np.array(weights))
    assert set(found.missing.values()) == {"weights_unusable"}


@pytest.mark.parametrize(
    ("labels", "scores", "reason"),
    [
        ([0, 3], [[0.5, 0.5], [0.5, 0.5]], "labels_unusable"),
        ([0, 1], [[0.5, np.nan], [0.5, 0.5]], "predictions_not_finite"),
        ([], np.empty((0, 2)), "no_rows"),
    ],
)
def test_multi_class_rows_that_cannot_be_scored_have_a_named_reason(labels, scores, reason: str) -> None:
    found = score_multiclass(np.array(labels), np.array(scores))
    assert found.values == {}
    assert set(found.missing.values()) == {reason}


def test_multi_class_rows_without_a_class_or_a_sum_of_one_lose_only_what_they_must() -> None:
    scores = np.array([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1]])
    absent = score_multiclass(np.array([0, 1]), scores)
    assert absent.missing == {"auc_one_vs_rest": "a_class_has_no_rows", "value": "no_costs"}
    loose = score_multiclass(np.array([0, 1]), scores * 0.5)
    assert loose.values == {"accuracy": 1.0, "macro_f1": 1.0}
    assert loose.missing["log_loss"] == "probabilities_do_not_sum_to_1"


def test_a_regression_with_an_infinite_prediction_has_no_metric() -> None:
    found = score_regression(np.array([1.0, 2.0]), np.array([1.0, np.inf]))
    assert found.missing == dict.fromkeys(("rmse", "mae", "quantile_loss"), "predictions_not_finite")


def test_a_user_metric_that_fails_is_named_and_loses_no_other() -> None:
    def writes(labels, predictions) -> float:
        labels[0] = 1
        return 0.0

    labels, scores = np.array([0, 1, 1]), np.array([0.2, 0.9, 0.4])
    found = score_user_metrics(
        {
            "lift": lambda labels, scores: labels[scores > 0.5].mean(),
            "broken": lambda labels, scores: 1 / 0,
            "endless": lambda labels, scores: np.inf,
            "many": lambda labels, scores: scores,
            "words": lambda labels, scores: "0.5",
            "writes": writes,
        },
        labels,
        scores,
    )
    assert found.values == {"lift": 1.0}
    assert found.missing["broken"] == "broken: failed on 3 rows: ZeroDivisionError: division by zero"
    assert found.missing["endless"] == "endless: gave inf; expected a finite number"
    assert set(found.missing) == {"broken", "endless", "many", "words", "writes"}
    assert labels.flags.writeable
    assert score_user_metrics({"lift": lambda labels, scores: 1.0}, labels[:0], scores[:0]).values == {}


def test_a_user_metric_is_imported_by_its_path(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("their_metrics")
    module.share = lambda labels, scores: float(labels.mean())  # type: ignore[attr-defined]
    module.number = 3  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "their_metrics", module)
    metric = load_user_metric("their_metrics:share")
    assert score_user_metrics({"share": metric}, np.array([0, 1]), np.zeros(2)).values == {"share": 0.5}
    with pytest.raises(UserCodeError, match="is a int; a metric is a function"):
        load_user_metric("their_metrics:number")
    with pytest.raises(UserCodeError, match="no_such"):
        load_user_metric("their_metrics:no_such")


def test_the_catalogue_agrees_with_the_spec_on_which_way_is_better() -> None:
    assert {name for name in BINARY if not higher_is_better(name)} == LOWER_IS_BETTER & set(BINARY)
    assert CATALOGUE["value"].needs == ("decisions", "costs")


@pytest.mark.parametrize("metric", INFLUENCES)
def test_an_influence_is_the_derivative_of_its_metric(metric: str) -> None:
    rng = np.random.default_rng(3)
    scores = np.round(rng.random(60), 1)  # with ties
    labels = (rng.random(60) < scores).astype(float)
    if metric in NUMBERS:
        labels = scores + rng.normal(size=60)
    value, influences = influence(metric, labels, scores, 0.5, COSTS)
    assert influences.sum() == pytest.approx(0.0, abs=1e-12)
    # A row that counts 1 + 1/n times moves the metric by its influence / n, up to second order.
    copies = 2000
    for row in (0, 7, 23):
        rows = np.concatenate([np.tile(np.arange(60), copies), [row]])
        moved, _ = influence(metric, labels[rows], scores[rows], 0.5, COSTS)
        assert (moved - value) * copies == pytest.approx(influences[row], abs=2e-4), row


@pytest.mark.parametrize("metric", ["auc", "average_precision", "f1", "log_loss"])
def test_an_interval_by_blocks_covers_where_days_have_effects_of_their_own(metric: str) -> None:
    rng = np.random.default_rng(5)
    days = 14

    def stream(days: int):
        rows = rng.lognormal(np.log(60), 0.5, days).astype(int) + 5  # days are not alike
        day = np.repeat(np.arange(days), rows)
        signal = rng.normal(size=len(day))
        logit = signal * (1 + rng.normal(0, 0.4, days)[day]) - 1 + rng.normal(0, 0.7, days)[day]
        labels = (rng.random(len(day)) < 1 / (1 + np.exp(-logit))).astype(float)
        return day, labels, 1 / (1 + np.exp(1 - signal))

    _, labels, scores = stream(4000)
    truth, _ = influence(metric, labels, scores)
    covered = 0
    for _ in range(300):
        day, labels, scores = stream(days)
        found = block_interval(*influence(metric, labels, scores), day)
        covered += found.low <= truth <= found.high
    assert 0.915 <= covered / 300 <= 0.985


def test_one_block_bounds_nothing_and_one_class_has_no_influence() -> None:
    value, influences = influence("brier", np.array([0, 1]), np.array([0.2, 0.9]))
    found = block_interval(value, influences, np.array([3, 3]))
    assert (found.low, found.high, found.blocks) == (None, None, 1)
    assert influence("auc", np.ones(3), np.full(3, 0.5)) is None
    assert influence("true_positive_rate", np.zeros(3), np.full(3, 0.5)) is None
