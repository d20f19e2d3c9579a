"""Only matured cohorts are trained on; a set chosen by its labels is recognised."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier

from ctrain.evaluation.cohorts import check_censoring, matured, taken_at
from ctrain.evaluation.metrics import binary_metrics
from ctrain.evaluation.segments import search_segments
from tests.datasets import hotel_dates, load, needs_data

DAY = 86400.0
WAIT = 21 * DAY


def events(rng, days: int = 120, rows: int = 100, positive_delay: float = 5.0, negative_delay: float = 5.0):
    """Event and label times in seconds, labels; delays are exponential with the given mean in days."""
    event = np.repeat(np.arange(days), rows) * DAY + rng.random(days * rows) * DAY
    labels = (rng.random(days * rows) < 0.3).astype(float)
    delay = rng.exponential(np.where(labels == 1, positive_delay, negative_delay)) * DAY
    return event, event + np.minimum(delay, WAIT), labels


@needs_data
@pytest.mark.parametrize("today", ["2016-03-01", "2016-08-01", "2016-12-01", "2017-05-01"])
def test_every_booking_with_a_known_label_is_a_censored_set_and_the_matured_cohort_is_not(today: str) -> None:
    hotel = load("hotel")
    event, known_at = hotel.time.astype(float), hotel_dates()[1].astype(float)
    now = np.datetime64(today, "s").astype(float)
    known = check_censoring(event, known_at, hotel.label, WAIT, now)
    assert (known.state, known.usable) == ("censored", False)
    assert known.young_positive > known.matured_positive + 0.2
    assert known.low > 0.1
    mature = matured(event, WAIT, now)
    cohort = check_censoring(event, known_at, hotel.label, WAIT, now, selected=mature)
    assert (cohort.state, cohort.usable, cohort.young) == ("matured", True, 0)
    assert cohort.unlabelled < 0.001 * cohort.rows
    everything = check_censoring(event, known_at, hotel.label, WAIT, now, selected=np.ones(len(event), bool))
    assert everything.state == "labels_from_the_future"


@needs_data
@pytest.mark.parametrize("today", ["2016-06-01", "2016-12-01", "2017-03-01"])
def test_a_candidate_of_known_labels_is_refused_and_one_of_the_matured_cohort_is_not(today: str) -> None:
    hotel = load("hotel")
    booked, known_at = (dates.astype(float) for dates in hotel_dates())
    event, now = hotel.time.astype(float), np.datetime64(today, "s").astype(float)
    features = hotel.features.apply(lambda column: column.cat.codes if column.dtype == "category" else column)
    columns = features.to_numpy(float)

    def candidate(rows: np.ndarray) -> HistGradientBoostingClassifier:
        chosen = np.random.default_rng(0).choice(np.flatnonzero(rows), 8000, replace=False)
        model = HistGradientBoostingClassifier(max_iter=30, early_stopping=False, random_state=0)
        return model.fit(columns[chosen], hotel.label[chosen])

    # What the candidates meet next: the bookings of four weeks, judged when all of their labels have come.
    judged = (booked >= now) & (booked < now + 28 * DAY)
    labels, day = hotel.label[judged], (booked[judged] // DAY).astype(int)
    sets = {
        "known": (booked >= now - 150 * DAY) & (known_at <= now),
        "matured": (event >= now - 150 * DAY) & matured(event, WAIT, now),
        "champion": (event >= now - 180 * DAY) & matured(event, WAIT, now - 30 * DAY),
    }
    for name, usable in (("known", False), ("matured", True), ("champion", True)):
        selected = sets[name]
        assert check_censoring(event, known_at, hotel.label, WAIT, now, selected=selected).usable == usable
    scores = {name: candidate(rows).predict_proba(columns[judged])[:, 1] for name, rows in sets.items()}
    metrics = {name: binary_metrics(labels, values, 0.5) for name, values in scores.items()}
    assert metrics["known"]["auc"] < metrics["matured"]["auc"] - 0.04
    assert metrics["known"]["log_loss"] > 1.4 * metrics["matured"]["log_loss"]
    verdicts = {
        name: search_segments(labels, scores[name], scores["champion"], day, []).overall.verdict
        for name in ("known", "matured")
    }
    assert verdicts["known"] == "refuse"
    assert verdicts["matured"] != "refuse"


def test_labels_that_come_alike_are_young_but_fair() -> None:
    event, known_at, labels = events(np.random.default_rng(0))
    found = check_censoring(event, known_at, labels, WAIT, 119 * DAY)
    assert (found.state, found.usable) == ("young_but_fair", True)
    assert found.known_positive == pytest.approx(found.known_negative, abs=0.03)


def test_which_class_is_known_first_does_not_matter() -> None:
    for delays in ((1.0, 10.0), (10.0, 1.0)):
        event, known_at, labels = events(np.random.default_rng(1), 120, 100, *delays)
        found = check_censoring(event, known_at, labels, WAIT, 119 * DAY)
        assert found.state == "censored"
        assert (found.known_positive > found.known_negative) == (delays[0] < delays[1])


def test_fair_sets_are_rarely_called_censored() -> None:
    called = []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        event, known_at, labels = events(rng, days=60, rows=20)
        slow = rng.exponential(2.0, 60)[(event // DAY).astype(int)] * DAY  # labels of a day come together
        found = check_censoring(
            event, np.minimum(known_at + slow, event + WAIT), labels, WAIT, 59 * DAY, unfair=0.0
        )
        called.append(found.state == "censored")
    assert sum(called) <= 4


def test_labels_without_a_time_count_as_not_known() -> None:
    event, known_at, labels = events(np.random.default_rng(2))
    known_at[::50], labels[::50] = np.nan, np.nan
    found = check_censoring(event, known_at, labels, WAIT, 119 * DAY)
    assert found.state == "young_but_fair"
    assert found.unlabelled == pytest.approx(99 * 2, abs=5)


def test_numbers_are_told_apart_at_their_median() -> None:
    event, known_at, labels = events(np.random.default_rng(3), 120, 100, 1.0, 10.0)
    price = np.where(labels == 1, 300.0, 90.0) + np.random.default_rng(4).normal(0, 200, len(labels))
    assert check_censoring(event, known_at, price, WAIT, 119 * DAY).state == "censored"


@pytest.mark.parametrize(
    ("rows", "state"), [(slice(0, 0), "not_enough_rows"), (slice(-300, None), "not_enough_rows")]
)
def test_too_few_rows_have_a_named_state(rows: slice, state: str) -> None:
    event, known_at, labels = (array[rows] for array in events(np.random.default_rng(5)))
    found = check_censoring(event, known_at, labels, WAIT, 121 * DAY)
    assert (found.state, found.usable) == (state, False)


def test_a_partition_was_taken_by_the_newest_label_of_those_that_landed_with_it_or_before() -> None:
    newest = {"a": 5.0, "b": 8.5, "c": 7.0, "d": -np.inf}
    landed = {"a": 1, "b": 1, "c": 2, "d": 3}
    many = dict.fromkeys(newest, 400)
    assert taken_at(newest, many, landed, 1.0) == {"a": 9.0, "b": 9.0, "c": 9.0, "d": 9.0}
    landed = {"a": 3, "b": 2, "c": 1, "d": 1}
    assert taken_at(newest, many, landed, 1.0) == {"a": 9.0, "b": 9.0, "c": 7.0, "d": 7.0}
    assert set(taken_at(newest, many, {}, 1.0).values()) == {9.0}
    few = {"a": 300, "b": 260, "c": 140, "d": 60}
    assert taken_at(newest, few, landed, 1.0) == {"b": 9.0, "c": 9.0, "d": 9.0}  # too few in a
    assert taken_at({}, {}, {}) == {}


@pytest.mark.parametrize("rows", [15, 60])
def test_days_that_were_taken_once_their_labels_had_come_are_rarely_called_censored(rows: int) -> None:
    called = []
    for seed in range(40):
        event, known_at, labels = events(np.random.default_rng(seed), 60, rows, 1.0, 8.0)
        days = (event // DAY).astype(int)
        names = list(map(str, range(60)))
        newest = {name: known_at[days == int(name)].max() for name in names}
        batches = {name: max(1, int(name) - 28) for name in names}
        taken = taken_at(newest, dict.fromkeys(names, rows), batches)
        told = days < len(taken)  # not of the newest, where labels are few
        present = np.array([taken.get(name, np.nan) for name in names])[days]
        rows_told = [array[told] for array in (event, known_at, labels)]
        called.append(check_censoring(*rows_told, WAIT, present[told]).state)
    assert called.count("censored") <= 2


def test_rows_that_were_taken_young_day_after_day_are_censored_though_all_are_old_by_now() -> None:
    event, known_at, labels = events(np.random.default_rng(6), 120, 100, 1.0, 10.0)
    days = (event // DAY).astype(int)
    taken = np.where(days < 60, 60 * DAY, (days + 1) * DAY)  # a backfill, then each day at its end
    there = known_at <= taken
    rows = [array[there] for array in (event, known_at, labels)]
    assert check_censoring(*rows, WAIT, 200 * DAY).state == "matured"  # which nobody would see by now
    found = check_censoring(*rows, WAIT, taken[there])
    assert (found.state, found.usable) == ("censored", False)
    assert found.known_positive > found.known_negative + 0.1
    # each day when all of its labels have come
    whole = np.where(days < 60, 82 * DAY, (days + 22) * DAY)
    there = known_at <= whole
    rows = [array[there] for array in (event, known_at, labels)]
    assert check_censoring(*rows, WAIT, whole[there]).usable


def test_an_event_without_a_time_is_never_mature() -> None:
    assert matured(np.array([0.0, 5.0, np.nan, np.inf, 6.0]), 5.0, 10.0).tolist() == [
        True,
        True,
        False,
        False,
        False,
    ]
