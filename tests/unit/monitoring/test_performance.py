"""Performance with labels: matured cohorts and intervals by blocks."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as sk

from ctrain.evaluation.cohorts import matured
from ctrain.evaluation.metrics import CostMatrix
from ctrain.evaluation.segment_keys import segment_key
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
