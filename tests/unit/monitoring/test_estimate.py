"""Performance without labels: right where inputs moved, honest about misses, refuted by a moved concept."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as sk
from sklearn.isotonic import IsotonicRegression

from ctrain.monitoring.calibration import fit_curve
from ctrain.monitoring.estimate import (
    Calibration,
    calibrate,
    check_estimate,
    estimate_performance,
    trust_in,
)
from ctrain.monitoring.expected import ESTIMATES, expected_metrics, true_metrics
from ctrain.records import EstimateCheck, EstimateReport, from_json, to_json
from tests.datasets import load, needs_data

THRESHOLD = 0.4


def stream(rng, days: int, rows: int = 300, *, shift=0.0, skew=1.0, turned=0.0, day_effect=0.1):
    """Scores, labels and days. `skew` makes the scores too sure, `turned` is a share of turned labels."""
    day = np.repeat(np.arange(days), rows)
    logits = rng.normal(shift - 1, 1.3, days * rows)
    chance = 1 / (1 + np.exp(-(logits + rng.normal(0, day_effect, days)[day])))
    labels = (rng.random(days * rows) < chance).astype(float)
    labels = np.where(rng.random(len(labels)) < turned, 1 - labels, labels)
    return 1 / (1 + np.exp(-skew * logits)), labels, day


def follow(rng, calibration, windows: int, **change) -> list[EstimateCheck]:
    """Estimate window after window, each meeting its truth before the next."""
    past: list[EstimateCheck] = []
    for _ in range(windows):
        scores, labels, _ = stream(rng, 1, **change)
        report = estimate_performance(scores, THRESHOLD, calibration, past=past)
        past += check_estimate(report, true_metrics(scores, labels, THRESHOLD))
    return past


def test_expectations_are_the_means_over_labels_drawn_from_the_scores() -> None:
    rng = np.random.default_rng(0)
    scores = np.round(rng.beta(1, 2, 400), 2).clip(0.01, 0.99)
    said = np.round(scores**0.8, 2)  # what the model says is not what it should
    expected = expected_metrics(said, scores, THRESHOLD)
    drawn: dict[str, list[float]] = {name: [] for name in ESTIMATES}
    for _ in range(3000):
        labels = (rng.random(400) < scores).astype(float)
        for name, value in true_metrics(said, labels, THRESHOLD).items():
            drawn[name].append(value)
    for name, (value, variance) in expected.items():
        error = np.std(drawn[name]) / 3000**0.5
        assert value == pytest.approx(np.mean(drawn[name]), abs=5 * error + 2e-4), name
        assert variance**0.5 == pytest.approx(np.std(drawn[name]), rel=0.08), name


def test_true_metrics_are_those_of_scikit_learn() -> None:
    scores, labels, _ = stream(np.random.default_rng(1), 2)
    found = true_metrics(scores, labels, THRESHOLD)
    assert found["auc"] == pytest.approx(sk.roc_auc_score(labels, scores), rel=1e-12)
    assert found["f1"] == pytest.approx(sk.f1_score(labels, scores >= THRESHOLD), rel=1e-12)
    assert found["prevalence"] == labels.mean()
    assert "auc" not in true_metrics(scores, np.zeros(len(labels)), THRESHOLD)


def test_an_estimate_follows_moved_inputs_and_is_marked_as_one() -> None:
    rng = np.random.default_rng(2)
    calibration = calibrate(*stream(rng, 28), THRESHOLD)
    scores, labels, _ = stream(rng, 20, shift=1.0)
    report = estimate_performance(scores, THRESHOLD, calibration, blocks=20)
    assert (report.state, report.blind_to, report.trust) == ("estimated", "concept_drift", "untested")
    assert report.reason.startswith("estimated from scores alone")
    before = true_metrics(*stream(rng, 20)[:2], THRESHOLD)
    for check in check_estimate(report, true_metrics(scores, labels, THRESHOLD)):
        assert check.within, check
        assert check.estimate == pytest.approx(check.truth, abs=0.025)
    moved = {each.metric: each.value for each in report.metrics}
    assert abs(moved["prevalence"] - before["prevalence"]) > 0.1


def test_intervals_cover_the_truth_of_windows_to_come() -> None:
    within: dict[str, list[bool]] = {name: [] for name in ESTIMATES}
    for seed in range(40):
        rng = np.random.default_rng(seed)
        calibration = calibrate(*stream(rng, 21, day_effect=0.4), THRESHOLD)
        for _ in range(5):
            scores, labels, _ = stream(rng, 1, day_effect=0.4)
            report = estimate_performance(scores, THRESHOLD, calibration)
            for check in check_estimate(report, true_metrics(scores, labels, THRESHOLD)):
                within[check.metric].append(check.within)
    for name, found in within.items():
        assert 0.89 <= np.mean(found) <= 0.99, name


@pytest.mark.parametrize("skew", [2.5, 0.4])
def test_scores_that_are_too_sure_or_too_shy_are_calibrated_from_matured_labels(skew: float) -> None:
    rng = np.random.default_rng(3)
    calibration = calibrate(*stream(rng, 28, skew=skew), THRESHOLD)
    assert calibration.curve.kind != "none"
    scores, labels, _ = stream(rng, 28, skew=skew)
    found = {each.metric: each.value for each in estimate_performance(scores, THRESHOLD, calibration).metrics}
    truth = true_metrics(scores, labels, THRESHOLD)
    naive = expected_metrics(scores, scores, THRESHOLD)
    assert abs(found["log_loss"] - truth["log_loss"]) < 0.2 * abs(naive["log_loss"][0] - truth["log_loss"])


def test_calibrated_scores_stay_as_they_are() -> None:
    kinds = [calibrate(*stream(np.random.default_rng(seed), 14), THRESHOLD).curve.kind for seed in range(20)]
    assert kinds.count("none") >= 17


def test_isotonic_curves_are_scikit_learns_and_serve_where_no_line_fits() -> None:
    rng = np.random.default_rng(4)
    day = np.repeat(np.arange(20), 500)
    scores = rng.random(10_000)
    labels = (rng.random(10_000) < np.where(scores < 0.5, 0.1, 0.12 + 0.8 * (scores > 0.8))).astype(float)
    curve = fit_curve("isotonic", scores, labels)
    theirs = IsotonicRegression(out_of_bounds="clip").fit(scores, labels).predict(scores)
    assert np.mean((curve.probabilities(scores) - theirs) ** 2) ** 0.5 < 0.02
    assert (np.diff(curve.probabilities(np.linspace(0, 1, 200))) >= 0).all()
    assert calibrate(scores, labels, day, THRESHOLD).curve.kind == "isotonic"


def test_a_moved_concept_is_not_seen_and_then_refutes_the_estimates() -> None:
    rng = np.random.default_rng(5)
    calibration = calibrate(*stream(rng, 28), THRESHOLD)
    quiet = follow(rng, calibration, 20)
    assert trust_in(quiet)[0] == "trusted"
    scores, labels, _ = stream(rng, 1, turned=0.4)
    blind = estimate_performance(scores, THRESHOLD, calibration, past=quiet)
    checks = {check.metric: check for check in check_estimate(blind, true_metrics(scores, labels, THRESHOLD))}
    assert checks["accuracy"].estimate > checks["accuracy"].truth + 0.1
    assert not checks["accuracy"].within
    past = quiet + follow(rng, calibration, 8, turned=0.4)
    report = estimate_performance(scores, THRESHOLD, calibration, past=past)
    assert report.trust == "refuted"
    assert report.hits < report.scored
    assert report.reason.endswith("do not rely on it")


def test_intervals_grow_after_misses_and_a_wide_one_earns_no_trust() -> None:
    rng = np.random.default_rng(6)
    calibration = calibrate(*stream(rng, 28), THRESHOLD)
    past = follow(rng, calibration, 20, turned=0.4)
    accuracy = [check for check in past if check.metric == "accuracy"]
    assert accuracy[-1].growth > 2
    assert accuracy[-1].within
    assert trust_in(past)[0] == "refuted"


def test_honest_estimates_are_rarely_refuted() -> None:
    found = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        calibration = calibrate(*stream(rng, 28, rows=150), THRESHOLD, methods=("none",))
        found.append(trust_in(follow(rng, calibration, 20, rows=150))[0])
    assert found.count("refuted") <= 1
    assert found.count("trusted") >= 16


@pytest.mark.parametrize(
    ("scores", "state"),
    [
        (np.empty(0), "not_enough_rows"),
        (np.full(3, 0.5), "not_enough_rows"),
        (np.full(200, np.nan), "unusable_scores"),
        (np.full(200, 1.5), "unusable_scores"),
    ],
)
def test_scores_that_cannot_be_used_have_a_named_state(scores, state: str) -> None:
    calibration = calibrate(*stream(np.random.default_rng(7), 14), THRESHOLD)
    assert estimate_performance(scores, THRESHOLD, calibration).state == state


def test_without_enough_matured_labels_nothing_is_estimated() -> None:
    scores, labels, day = stream(np.random.default_rng(8), 14)
    few = calibrate(scores[:900], labels[:900], day[:900], THRESHOLD)
    assert (few.state, few.reason) == ("not_enough_labels", "900 labels of 3 blocks, 500 of 7 needed")
    report = estimate_performance(scores, THRESHOLD, few)
    assert (report.state, report.metrics) == ("not_calibrated", ())
    assert calibrate(scores, labels * np.nan, day, THRESHOLD).reason == "labels_unusable"
    assert calibrate(scores * np.inf, labels, day, THRESHOLD).reason == "predictions_not_finite"


def test_constant_scores_and_one_class_are_estimated_without_a_crash() -> None:
    day = np.repeat(np.arange(10), 100)
    calibration = calibrate(np.full(1000, 0.3), np.zeros(1000), day, THRESHOLD)
    report = estimate_performance(np.full(200, 0.3), THRESHOLD, calibration)
    assert report.state == "estimated"
    auc = next(each for each in report.metrics if each.metric == "auc")
    assert (auc.low, auc.reason) == (None, "no earlier block could be compared")
    assert check_estimate(report, {"auc": 0.5, "unknown": 1.0}) == ()


def test_reports_and_checks_come_back_from_their_json() -> None:
    rng = np.random.default_rng(9)
    calibration = calibrate(*stream(rng, 14), THRESHOLD)
    past = follow(rng, calibration, 6)
    report = estimate_performance(stream(rng, 1)[0], THRESHOLD, calibration, past=past)
    assert from_json(Calibration, to_json(calibration)) == calibration
    assert from_json(EstimateReport, to_json(report)) == report
    assert from_json(EstimateCheck, to_json(past[0])) == past[0]


@needs_data
def test_on_real_flights_the_next_day_lies_in_nine_intervals_of_ten() -> None:
    flights = load("flights")
    hour = flights.features["hour"].to_numpy()
    first = flights.rows(0, 60)
    rates = np.bincount(hour[first].astype(int), flights.label[first], 24)
    counts = np.bincount(hour[first].astype(int), minlength=24)
    scores = ((rates + 5) / (counts + 20))[hour.astype(int)]
    past: list[EstimateCheck] = []
    for day in range(81, 360, 7):
        recent, today = flights.rows(day - 21, day), flights.rows(day, day + 1)
        calibration = calibrate(
            scores[recent], flights.label[recent], flights.day[recent], 0.3, most_rows=4000
        )
        report = estimate_performance(scores[today], 0.3, calibration, past=past)
        past += check_estimate(report, true_metrics(scores[today], flights.label[today], 0.3))
    for name in ("accuracy", "auc", "brier"):
        within = [check.within for check in past if check.metric == name]
        assert np.mean(within) >= 0.85, name
