"""Performance with labels: matured cohorts, intervals by blocks, and every odd label counted."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as sk

from ctrain.evaluation.cohorts import matured
from ctrain.evaluation.metrics import CostMatrix
from ctrain.evaluation.segment_keys import segment_key
from ctrain.monitoring.joined import join_labels
from ctrain.monitoring.performance import performance
from ctrain.records import PerformanceReport, from_json, to_json
from tests.datasets import load, needs_data

DAY = 86400.0


def answers(rng, days: int = 14, rows: int = 200, day_effect: float = 0.5):
    """Labels, probabilities, days; a day has a luck of its own."""
    day = np.repeat(np.arange(days), rows)
    signal = rng.normal(size=days * rows)
    chance = 1 / (1 + np.exp(1 - signal - rng.normal(0, day_effect, days)[day]))
    labels = (rng.random(days * rows) < chance).astype(float)
    return labels, 1 / (1 + np.exp(1 - signal)), day


def found(report: PerformanceReport, metric: str, segment: str = ""):
    return next(
        each
        for each in (*report.metrics, *report.segments)
        if (each.metric, each.segment) == (metric, segment)
    )


def everything(labels) -> np.ndarray:
    return np.ones(len(labels), bool)


def test_metrics_are_those_of_the_matured_labelled_answers_alone() -> None:
    labels, scores, day = answers(np.random.default_rng(0))
    labels[::7] = np.nan
    event = day * DAY + 3600
    mature = matured(event, 3 * DAY, 13 * DAY)
    report = performance(labels, scores, day, mature)
    used = mature & np.isfinite(labels)
    assert (report.state, report.rows, report.blocks) == ("judged", used.sum(), 10)
    assert found(report, "auc").value == pytest.approx(
        sk.roc_auc_score(labels[used], scores[used]), rel=1e-12
    )
    assert found(report, "brier").value == pytest.approx(
        sk.brier_score_loss(labels[used], scores[used]), rel=1e-12
    )
    assert found(report, "auc").low < found(report, "auc").value < found(report, "auc").high


def test_young_answers_do_not_count_even_if_they_are_labelled() -> None:
    labels, scores, day = answers(np.random.default_rng(1))
    young = day >= 10
    changed = np.where(young, 1.0, labels)  # only one class is known early
    assert (
        performance(changed, scores, day, ~young).metrics == performance(labels, scores, day, ~young).metrics
    )


@pytest.mark.parametrize("metric", ["auc", "log_loss", "accuracy"])
def test_intervals_cover_the_long_run_where_days_differ(metric: str) -> None:
    rng = np.random.default_rng(2)
    labels, scores, day = answers(rng, days=3000, rows=100)
    truth = found(performance(labels, scores, day, everything(labels)), metric).value
    covered = 0
    for _ in range(200):
        labels, scores, day = answers(rng, rows=100)
        one = found(performance(labels, scores, day, everything(labels), metrics=(metric,)), metric)
        covered += one.low <= truth <= one.high
    assert 0.89 <= covered / 200 <= 0.985


def test_segments_have_intervals_of_their_own_and_small_ones_say_why_not() -> None:
    labels, scores, day = answers(np.random.default_rng(3))
    place = np.arange(len(labels)) % 100
    values = np.where(place < 60, "big", np.where(place < 98, "middle", "tiny"))
    report = performance(
        labels, scores, day, everything(labels), keys=[segment_key("size", values)], metrics=("auc",)
    )
    big = found(report, "auc", "size=big")
    mine = values == "big"
    assert (big.rows, big.blocks) == (mine.sum(), 14)
    assert big.value == pytest.approx(sk.roc_auc_score(labels[mine], scores[mine]), rel=1e-12)
    assert found(report, "auc", "size=tiny").reason == "56 labels, 100 needed"
    assert found(report, "auc", "size=tiny").value is None


def test_value_and_numbers_are_measured_too() -> None:
    labels, scores, day = answers(np.random.default_rng(4))
    costs = CostMatrix(true_positive=3.0, false_positive=-1.0)
    report = performance(labels, scores, day, everything(labels), metrics=("value",), costs=costs)
    decided = scores >= 0.5
    assert found(report, "value").value == pytest.approx(np.mean(decided * np.where(labels == 1, 3.0, -1.0)))
    amounts = labels * 50 + scores
    numbers = performance(amounts, scores, day, everything(labels), metrics=("rmse", "auc"))
    assert found(numbers, "rmse").value == pytest.approx(
        sk.root_mean_squared_error(amounts, scores), rel=1e-12
    )
    assert found(numbers, "auc").reason == "labels_unusable"


def test_few_labels_one_class_one_block_and_bad_predictions_are_named() -> None:
    labels, scores, day = answers(np.random.default_rng(5))
    none = performance(labels * np.nan, scores, day, everything(labels))
    assert (none.state, none.reason) == ("not_enough_labels", "0 matured answers have a label, 100 needed")
    empty = performance(labels[:0], scores[:0], day[:0], everything(labels[:0]))
    assert (empty.state, empty.blocks) == ("not_enough_labels", 0)
    one_class = performance(labels * 0, scores, day, everything(labels))
    assert found(one_class, "auc").reason == "one_class"
    assert found(one_class, "brier").value is not None
    one_block = performance(labels, scores, day * 0, everything(labels))
    assert (found(one_block, "auc").low, found(one_block, "auc").reason) == (
        None,
        "1 block, 2 needed for an interval",
    )
    broken = performance(labels, np.where(day == 3, np.nan, scores), day, everything(labels))
    assert {each.reason for each in broken.metrics} == {"predictions_not_finite"}
    assert (
        found(performance(labels, scores, day, everything(labels), metrics=("value",)), "value").reason
        == "no_costs"
    )


def test_every_odd_label_is_counted_and_the_last_one_in_time_counts() -> None:
    ids = np.array(["a", "b", "c", "d", "e", "f", "a"])
    asked = np.array([0.0, 10.0, 20.0, 30.0, 90.0, 0.0, 95.0])
    labels = [
        ("a", 1, 5.0),  # then said again, then corrected
        ("a", 1, 6.0),
        ("a", 0, 7.0),
        ("b", 1, 200.0),  # beyond the horizon
        ("c", 1, 15.0),  # before its answer
        ("d", 2, 40.0),  # no label
        ("d", 0, np.nan),  # no time
        ("x", 1, 50.0),  # no answer
        ("e", 1, 400.0),  # not known yet
    ]
    names, values, times = (np.array(column) for column in zip(*labels, strict=True))
    joined = join_labels(ids, asked, names, values.astype(float), times, horizon=100.0, now=110.0)
    assert joined.labels.tolist()[:3] == [0.0, pytest.approx(np.nan, nan_ok=True), 1.0]
    assert np.isnan(joined.labels[[1, 3, 4, 5, 6]]).all()
    assert joined.labelled_at[0] == 7.0
    counts = to_json(joined.counts)
    assert counts == {
        "answers": 6, "labelled": 2, "pending": 2, "unlabelled": 2, "repeated": 1, "foreign": 1,
        "unusable": 2, "late": 0, "early": 1, "duplicated": 1, "corrected": 1,
    }  # fmt: skip
    later = join_labels(ids, asked, names, values.astype(float), times, horizon=100.0, now=500.0)
    assert (later.counts.late, later.counts.pending, later.counts.unlabelled) == (2, 0, 4)


def test_the_order_of_labels_does_not_matter() -> None:
    rng = np.random.default_rng(6)
    ids, asked = np.arange(200), rng.random(200)
    names, values, times = (
        rng.integers(0, 260, 900),
        rng.integers(0, 2, 900).astype(float),
        rng.random(900) * 40,
    )
    joined = join_labels(ids, asked, names, values, times, horizon=30.0, now=35.0)
    order = rng.permutation(900)
    again = join_labels(ids, asked, names[order], values[order], times[order], horizon=30.0, now=35.0)
    assert again.counts == joined.counts
    np.testing.assert_array_equal(again.labels, joined.labels)
    newest = {}
    for at in np.argsort(times):
        if names[at] < 200 and times[at] <= min(35.0, asked[names[at]] + 30.0):
            newest[names[at]] = values[at]
    expected = [newest.get(name, np.nan) for name in ids]
    np.testing.assert_array_equal(joined.labels, expected)


def test_no_answers_and_no_labels_are_no_error() -> None:
    none = np.empty(0)
    joined = join_labels(
        none.astype("U1"), none, np.array(["x"]), np.ones(1), np.ones(1), horizon=1.0, now=2.0
    )
    assert (joined.counts.foreign, len(joined.labels)) == (1, 0)
    joined = join_labels(np.array(["x"]), np.ones(1), none.astype("U1"), none, none, horizon=1.0, now=5.0)
    assert (joined.counts.unlabelled, joined.counts.labelled) == (1, 0)


def test_a_report_comes_back_from_its_json() -> None:
    labels, scores, day = answers(np.random.default_rng(7))
    report = performance(labels, scores, day, everything(labels), keys=[segment_key("day", day % 3)])
    assert from_json(PerformanceReport, to_json(report)) == report


@needs_data
def test_a_year_of_flights_is_measured_day_by_day_and_by_carrier() -> None:
    flights = load("flights")
    scores = np.clip(0.08 + 0.012 * flights.features["hour"].to_numpy(), 0.01, 0.9)
    key = segment_key("carrier", flights.features["carrier"].astype(str).to_numpy("U"))
    report = performance(flights.label, scores, flights.day, everything(scores), keys=[key], metrics=("auc",))
    whole = found(report, "auc")
    assert whole.blocks == 365
    assert whole.high - whole.low < 0.03
    assert len(report.segments) == 16
    row_error = 1.0 / np.sqrt(12 * flights.label.sum())
    assert whole.high - whole.low > 2 * 1.96 * row_error  # days are what varies
