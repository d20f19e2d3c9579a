"""The search over segments: error rates by simulation, what it finds, and what bounds it."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as sk

from ctrain.evaluation.cells import CELL_METRICS, CellMetric
from ctrain.evaluation.metrics import CostMatrix
from ctrain.evaluation.segment_choice import SearchLimits
from ctrain.evaluation.segment_keys import SegmentKey, segment_key
from ctrain.evaluation.segments import search_segments
from ctrain.evaluation.simultaneous import simultaneous_intervals
from tests.datasets import load, needs_data

COSTS = CostMatrix(true_positive=2.0, false_positive=-1.0, false_negative=-3.0)


def stream(rng, days: int = 14, rows: int = 600, bad: float = 0.0, day_effect: float = 0.3):
    """Labels, two models' probabilities, days and keys; `bad` spoils the judged model where a=a3, b=b1."""
    count = days * rows
    day = np.repeat(np.arange(days), rows)
    a, b = rng.integers(0, 8, count), rng.integers(0, 3, count)
    signal = rng.normal(size=count)
    labels = (rng.random(count) < 1 / (1 + np.exp(-signal))).astype(float)
    luck = rng.normal(0, day_effect, (2, days))
    logits = [signal + rng.normal(0, 0.2, count) + luck[side][day] for side in (0, 1)]
    logits[0] = np.where((a == 3) & (b == 1), logits[0] * (1 - bad), logits[0])
    judged, against = (1 / (1 + np.exp(-logit)) for logit in logits)
    keys = [
        SegmentKey("a", a, tuple(f"a{number}" for number in range(8))),
        SegmentKey("b", b, tuple(f"b{number}" for number in range(3))),
    ]
    return labels, judged, against, day, keys


@pytest.mark.parametrize(("blocks", "design"), [(7, 5), (14, 20), (28, 80)])
def test_of_200_segments_none_is_called_worse_by_the_luck_of_the_days(blocks: int, design: int) -> None:
    rng = np.random.default_rng(blocks)
    rows = np.round(np.exp(rng.uniform(np.log(8), np.log(400), 200)))
    spread, wrong, covered = np.sqrt((design - 1) / 200), 0, 0
    for run in range(100):
        count = np.maximum(rng.poisson(rows[:, None] * np.exp(rng.normal(0, 0.3, blocks))), 1).astype(float)
        day = rng.standard_t(4, blocks) * np.sqrt(0.5)
        noise = rng.normal(size=(200, blocks)) / np.sqrt(count)
        difference = noise + spread * (day + rng.normal(size=(200, blocks)))
        found = simultaneous_intervals(count, count * difference, 0.95, 400, run)
        wrong += bool((found.high < 0).any())
        covered += bool(((found.low <= 0) & (found.high >= 0)).all())
    assert wrong <= 7  # 2.5 expected at most
    assert covered >= 88


def test_one_spoiled_segment_is_found_and_named_among_all() -> None:
    found_at = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        labels, judged, against, day, keys = stream(rng, bad=1.6)
        found = search_segments(labels, judged, against, day, keys)
        assert found.searched == 8 + 3 + 24
        assert found.segments[0].verdict == "refuse"
        found_at.append(found.segments[0].segment)
    assert found_at == ["a=a3 & b=b1"] * 5


def test_a_segment_of_equal_models_is_refused_in_no_search() -> None:
    refused = 0
    for seed in range(20):
        labels, judged, against, day, keys = stream(np.random.default_rng(seed))
        found = search_segments(labels, judged, against, day, keys, limits=SearchLimits(resamples=300))
        refused += any(score.verdict == "refuse" for score in found.segments)
    assert refused <= 2


def test_a_score_holds_both_models_values_and_the_rows_that_they_come_from() -> None:
    labels, judged, against, day, keys = stream(np.random.default_rng(3), bad=1.6)
    found = search_segments(labels, judged, against, day, keys, metric="auc")
    score = next(each for each in found.segments if each.segment == "a=a3")
    mine = keys[0].codes == 3
    assert score.rows == mine.sum()
    assert score.value == pytest.approx(sk.roc_auc_score(labels[mine], judged[mine]), rel=1e-12)
    assert score.champion == pytest.approx(sk.roc_auc_score(labels[mine], against[mine]), rel=1e-12)
    assert score.low < score.difference < score.high
    assert found.overall.segment == "rows=all"
    assert found.overall.blocks == 14


def test_a_tolerated_harm_is_accepted_and_the_same_models_differ_nowhere() -> None:
    labels, judged, against, day, keys = stream(np.random.default_rng(4), day_effect=0.05)
    kept = search_segments(labels, judged, against, day, keys, margin=0.2)
    assert {score.verdict for score in kept.segments} == {"accept"}
    same = search_segments(labels, judged, judged, day, keys)
    assert {(score.low, score.high, score.verdict) for score in same.segments} == {(0.0, 0.0, "accept")}


def test_without_a_second_model_each_segment_is_compared_with_all_rows() -> None:
    labels, judged, _, day, keys = stream(np.random.default_rng(5), bad=2.0)
    found = search_segments(labels, judged, None, day, keys)
    assert found.segments[0].segment == "a=a3 & b=b1"
    assert found.segments[0].champion is None
    assert found.segments[0].verdict == "refuse"
    assert found.overall.difference == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("metric", CELL_METRICS)
def test_cells_hold_what_scikit_learn_finds_in_each(metric: str) -> None:
    rng = np.random.default_rng(6)
    labels, scores = rng.integers(0, 2, 400).astype(float), np.round(rng.random(400), 1)
    cells = rng.integers(0, 30, 400)
    found, weight = CellMetric(metric, labels, scores, 0.5, COSTS).means(cells, 31)
    assert weight[30] == 0
    floored = np.clip(scores, 1e-7, 1 - 1e-7)
    expected = {
        "log_loss": lambda rows: -sk.log_loss(labels[rows], floored[rows], labels=[0, 1]),
        "brier": lambda rows: -np.mean((labels[rows] - scores[rows]) ** 2),
        "squared_error": lambda rows: -sk.mean_squared_error(labels[rows], scores[rows]),
        "absolute_error": lambda rows: -sk.mean_absolute_error(labels[rows], scores[rows]),
        "accuracy": lambda rows: sk.accuracy_score(labels[rows], scores[rows] >= 0.5),
        "auc": lambda rows: sk.roc_auc_score(labels[rows], scores[rows]),
        "value": lambda rows: COSTS.values(labels[rows], (scores[rows] >= 0.5).astype(float)).mean(),
    }[metric]
    for cell in np.flatnonzero(weight):
        assert found[cell] == pytest.approx(expected(cells == cell), rel=1e-10), cell


def test_a_key_with_a_million_values_becomes_a_few_and_the_rest_is_named() -> None:
    rows = 200_000
    values = np.char.add("user-", np.arange(rows).astype(str))
    values[: rows // 2] = "bot"
    key = segment_key("user", values, most=20)
    assert (len(key.values), key.values[-1], key.merged) == (21, "other", rows // 2 + 1 - 20)
    rng = np.random.default_rng(7)
    labels, scores, day = rng.integers(0, 2, rows), rng.random(rows), np.arange(rows) % 10
    found = search_segments(labels, scores, rng.random(rows), day, [key])
    assert found.merged == {"user": rows // 2 + 1 - 20}
    assert {score.segment for score in found.segments[:2]} == {"user=bot", "user=other"}
    assert found.searched == 2
    assert len(found.segments) == 21


def test_numbers_are_cut_at_quantiles_and_missing_values_are_a_segment() -> None:
    numbers = np.append(np.arange(100.0), [np.nan] * 3)
    key = segment_key("age", numbers)
    assert key.values == ("below 24.75", "24.75..49.5", "49.5..74.25", "74.25 and above", "missing")
    assert np.bincount(key.codes).tolist() == [25, 25, 25, 25, 3]
    few = segment_key("hour", np.array([1.0, 2.0, np.nan, 1.0]))
    assert (few.values, few.codes.tolist()) == (("1", "2", "missing"), [0, 1, 2, 0])
    text = segment_key("carrier", np.array(["UA", "", "AA"]))
    assert (text.values, text.codes.tolist()) == (("missing", "AA", "UA"), [2, 0, 1])
    assert segment_key("empty", np.full(3, np.nan)).values == ("missing",)


def test_the_largest_segments_are_kept_where_there_are_too_many() -> None:
    labels, judged, against, day, keys = stream(np.random.default_rng(8))
    found = search_segments(labels, judged, against, day, keys, limits=SearchLimits(most_segments=12))
    assert found.searched == 12
    assert found.left_out == {"over_the_limit": 23}
    assert sum("&" in score.segment for score in found.segments) == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"judged": np.nan}, "predictions_not_finite"),
        ({"against": np.inf}, "predictions_not_finite"),
        ({"labels": 7.0}, "labels_unusable"),
        ({"day": 0}, "1 blocks, 7 needed"),
    ],
)
def test_rows_that_cannot_be_searched_have_a_named_reason(change, reason: str) -> None:
    labels, judged, against, day, keys = stream(np.random.default_rng(9))
    rows = {"labels": labels, "judged": judged, "against": against, "day": day}
    for name, value in change.items():
        rows[name][...] = value
    found = search_segments(rows["labels"], rows["judged"], rows["against"], rows["day"], keys)
    assert (found.state, found.reason, found.segments) == ("not_searched", reason, ())


def test_no_rows_and_too_many_blocks_have_a_named_reason_too() -> None:
    none = np.empty(0)
    assert search_segments(none, none, none, none.astype(int), []).reason == "no_rows"
    many = np.arange(3000)
    found = search_segments(many % 2, many / 3000, many / 3000, many, [])
    assert found.reason == "3000 blocks, at most 1000"


def test_a_segment_of_one_heavy_day_proves_nothing() -> None:
    labels, judged, against, day, _ = stream(np.random.default_rng(10))
    heavy = ((day == 3) | (np.arange(len(day)) % 600 == 0)).astype(int)
    key = SegmentKey("heavy", heavy, ("no", "yes"))
    found = search_segments(labels, 1 - judged, against, day, [key])
    scores = {score.segment: score for score in found.segments}
    assert scores["heavy=yes"].verdict == "not_enough_evidence"
    assert scores["heavy=yes"].reason == "a few blocks hold nearly all of its rows"
    assert scores["heavy=no"].verdict == "refuse"


def test_numbers_to_predict_are_searched_by_their_errors() -> None:
    rng = np.random.default_rng(11)
    labels, day = rng.normal(50, 20, 4000), np.arange(4000) % 10
    key = SegmentKey("half", np.arange(4000) // 2000, ("one", "two"))
    judged = labels + rng.normal(size=4000) * np.where(key.codes == 1, 3.0, 1.0)
    found = search_segments(
        labels, judged, labels + rng.normal(size=4000), day, [key], metric="absolute_error"
    )
    assert [score.verdict for score in found.segments] == ["refuse", "not_enough_evidence"]
    assert found.segments[0].value == pytest.approx(np.abs(judged - labels)[2000:].mean())


@needs_data
def test_a_carrier_whose_scores_are_spoiled_is_found_in_real_flights() -> None:
    flights = load("flights")
    rows = flights.rows(200, 221)
    labels, day = flights.label[rows], flights.day[rows]
    frame = flights.features.iloc[rows]
    keys = [segment_key(name, frame[name].astype(str).to_numpy("U")) for name in ("carrier", "origin")]
    rng = np.random.default_rng(0)
    rate = np.clip(0.1 + 0.02 * frame["hour"].to_numpy(), 0.02, 0.9)
    judged, against = (np.clip(rate * np.exp(rng.normal(0, 0.1, len(rate))), 0.01, 0.95) for _ in range(2))
    spoiled = np.where(frame["carrier"] == "US", 0.9 - judged * 0.5, judged)
    found = search_segments(labels, spoiled, against, day, keys)
    worse = {score.segment for score in found.segments if score.verdict == "refuse"}
    assert "carrier=US" in worse
    assert all("US" in name or name.startswith("origin=") for name in worse)
    clean = search_segments(labels, judged, against, day, keys)
    assert not [score for score in clean.segments if score.verdict == "refuse"]
