"""Whether a candidate's rows are sound, from landed tables to the gate's words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from deltalake import write_deltalake
from factories import spec
from test_score import steep, version, view

from ctrain.data.ingest import ROWS_TABLE
from ctrain.evaluation.leaks import LeakLimits
from ctrain.evaluation.score import evaluate
from ctrain.evaluation.soundness import leak_limits
from ctrain.features import Column, columns_to_json, feature_view
from ctrain.records import EvaluationRequest, GateDecision, Landing
from ctrain.storage import Root
from tests.datasets import hotel_dates, load, needs_data

__all__ = ["steep", "view"]

DAY = np.timedelta64(1, "D")
WAIT = np.timedelta64(21, "D")


def land(folder: Path, partition: np.ndarray, **columns: np.ndarray) -> tuple[Root, tuple[str, ...]]:
    """Rows as accepted tables, and the names of their partitions."""
    root = Root(folder)
    table = pa.table({"partition": pa.array(partition), **{name: pa.array(v) for name, v in columns.items()}})
    write_deltalake(root.pipeline("p").tables / ROWS_TABLE, table, partition_by=["partition"])
    return root, tuple(sorted(set(partition.tolist())))


def judge(
    root: Root, names: tuple[str, ...], landed: dict[str, Landing] | None = None, leaks=None, **changes
) -> GateDecision:
    label = {"name": "y", "matures_after": "21d", **changes.pop("label", {})}
    gate = [{"metric": "auc", "at_least": 0.0}]
    wanted = spec(label=label, evaluation={"blocks": 2, "gate": gate, "leaks": leaks or {}}).to_json()
    candidate = version(root, 1.0, partitions=names, blocks=names[-20:], **changes)
    request = EvaluationRequest("k", "p", str(root.path), wanted, candidate.id, "", landed=landed or {})
    return evaluate(request)


def cohort(decision: GateDecision) -> tuple[str, str]:
    (found,) = [one for one in decision.criteria if one.metric == "cohort"]
    return found.verdict, found.reason


# --- rows that were chosen by their label ---


def bookings(folder: Path, kept: np.ndarray) -> tuple[Root, tuple[str, ...]]:
    """Some hotel bookings by the day of arrival."""
    hotel, known_at = load("hotel"), hotel_dates()[1]
    arrival = hotel.time[kept]
    return land(
        folder,
        arrival.astype("datetime64[D]").astype(str),
        size=hotel.features["lead_time"].to_numpy()[kept],
        y=hotel.label[kept],
        t=arrival.astype("datetime64[us]"),
        z=known_at[kept].astype("datetime64[us]"),
    )


@needs_data
def test_a_candidate_of_all_bookings_with_a_known_label_is_refused_and_one_of_the_matured_is_not(
    tmp_path: Path,
) -> None:
    arrival, known_at = load("hotel").time, hotel_dates()[1]
    now = np.datetime64("2016-12-01", "s")
    recent = arrival >= now - 60 * DAY
    known = judge(*bookings(tmp_path / "known", recent & (known_at <= now)), label={"known_at": "z"})
    assert known.verdict == "refuse"
    verdict, reason = cohort(known)
    assert (verdict, reason[:27]) == ("refuse", "are chosen by their label: ")
    assert "cohort are chosen by their label: " in known.reason
    mature = bookings(tmp_path / "matured", recent & (arrival + WAIT <= now))
    assert cohort(judge(*mature, label={"known_at": "z"}))[0] == "accept"
    assert not [one for one in judge(*mature).criteria if one.metric == "cohort"]


def stream(folder: Path, taken: np.ndarray) -> tuple[Root, tuple[str, ...]]:
    """Days of rows whose positive labels come within a day or so and the others later.

    Args:
        folder: Of the root.
        taken: Day at whose start each day was taken from the source, with the labels that had come.
    """
    random = np.random.default_rng(0)
    days = np.repeat(np.arange(len(taken)), 60)
    event = days + random.random(len(days))
    labels = (random.random(len(days)) < 0.4).astype(float)
    known = event + np.minimum(random.exponential(np.where(labels == 1, 1.0, 8.0)), 21.0)
    there = known <= taken[days]

    def moments(values: np.ndarray) -> np.ndarray:
        return np.datetime64("2026-01-01", "us") + (values * 86400e6).astype("timedelta64[us]")

    names = np.array([f"day-{day:03d}" for day in days])
    columns = {"size": random.normal(size=len(days)), "y": labels, "t": moments(event), "z": moments(known)}
    return land(folder, names[there], **{name: values[there] for name, values in columns.items()})


def batches(names: tuple[str, ...], first: int) -> dict[str, Landing]:
    """A backfill of the first days, then a batch a day."""
    return {name: Landing(max(1, number - first + 2), 60, 0) for number, name in enumerate(names)}


def test_days_that_landed_with_the_labels_they_had_are_refused_though_all_are_old_by_now(
    tmp_path: Path,
) -> None:
    days = np.arange(80)
    root, names = stream(tmp_path, np.where(days < 50, 50, days + 1))
    decision = judge(root, names, batches(names, 50), label={"known_at": "z"})
    assert cohort(decision)[0] == "refuse"
    assert "known at their age: " in decision.reason


def test_days_that_landed_once_all_their_labels_had_come_are_accepted(tmp_path: Path) -> None:
    days = np.arange(80)
    root, names = stream(tmp_path, np.where(days < 50, 71, days + 22))
    assert cohort(judge(root, names, batches(names, 50), label={"known_at": "z"}))[0] == "accept"


def test_days_that_all_landed_young_cannot_be_judged(tmp_path: Path) -> None:
    root, names = stream(tmp_path, np.arange(60) + 1)
    verdict, reason = cohort(judge(root, names, batches(names, 1), label={"known_at": "z"}))
    assert verdict == "not_enough_evidence"
    assert reason.endswith("are mature, 100 of each needed")


def test_rows_that_landed_before_the_spec_named_the_times_of_labels_are_no_fault(tmp_path: Path) -> None:
    root, names = stream(tmp_path, np.full(40, 99))
    decision = judge(root, names, label={"known_at": "another"})
    assert decision.verdict == "accept"
    assert not [one for one in decision.criteria if one.metric == "cohort"]


def test_rows_that_landed_without_a_label_are_told(tmp_path: Path) -> None:
    root, names = stream(tmp_path, np.full(40, 99))
    landed = {name: Landing(1, 60, 40) for name in names}
    assert judge(root, names, landed).warnings[0].startswith("40.0% of the rows had no label")


# --- leaks ---


@feature_view(size=Column.number(), when=Column.timestamp())
def timed_view(rows):
    return {"size": rows["size"]}


TIMED = {
    "features": f"{__name__}:timed_view",
    "view_hash": timed_view.hash,
    "columns": columns_to_json(timed_view.columns),
}


def timed(folder: Path, late: float) -> tuple[Root, tuple[str, ...]]:
    """Rows with a timestamp beside that of the event, so many hours later."""
    days, size = np.repeat(np.arange(22), 40), np.tile(np.linspace(-1, 1, 40), 22)
    event = np.datetime64("2026-01-01", "us") + days.astype("timedelta64[D]")
    when = event + np.timedelta64(int(late * 3600), "s")
    names = np.array([f"day-{day:03d}" for day in days])
    known = event + np.timedelta64(5, "h")
    return land(folder, names, size=size, y=np.tile([0.0, 1.0], len(days) // 2), t=event, when=when, z=known)


@pytest.mark.parametrize(
    ("late", "label", "words"),
    [(-1.0, {}, ""), (1.0, {}, "the prediction"), (6.0, {"known_at": "z"}, "the label")],
)
def test_a_timestamp_that_is_later_than_its_prediction_refuses(
    tmp_path: Path, late: float, label: dict[str, str], words: str
) -> None:
    decision = judge(*timed(tmp_path, late), label=label, **TIMED)
    leaks = [one.reason for one in decision.criteria if one.metric == "leak"]
    assert leaks == (
        [f"when is later than {words} in 100.00% of its rows; vouch for it if it is a plan"] if words else []
    )


def test_a_plan_that_a_person_vouches_for_is_only_told(tmp_path: Path) -> None:
    decision = judge(*timed(tmp_path, 1.0), leaks={"vouched": ["when"]}, **TIMED)
    assert not [one for one in decision.criteria if one.metric == "leak"]
    assert decision.warnings[0].startswith("when may know the label: when is later than the prediction")


def test_the_specs_limits_are_those_of_the_search() -> None:
    assert leak_limits(spec()) == LeakLimits()
    asked = {"vouched": ["size"], "alone_refuse": 0.98, "missing_refuse": 0.8, "pure_refuse": 0.99}
    limits = leak_limits(spec(evaluation={"blocks": 2, "leaks": asked}))
    assert limits == LeakLimits(
        alone_refuse=0.98, pure_refuse=0.99, missing_refuse=0.8, vouched=frozenset({"size"})
    )


def test_a_column_that_copies_the_label_refuses_and_is_told_where_it_is_vouched_for(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    days = np.repeat(np.arange(22), 100)
    labels = (random.random(len(days)) < 0.4).astype(float)
    times = np.datetime64("2026-01-01", "us") + days.astype("timedelta64[D]")
    names = np.array([f"day-{day:03d}" for day in days])
    rows = land(tmp_path, names, size=2 * labels - 1, y=labels, t=times)
    assert [one.metric for one in judge(*rows).criteria if one.verdict == "refuse"] == ["leak"]
    vouched = judge(*rows, leaks={"vouched": ["size"]})
    assert vouched.verdict == "accept"
    assert "size settles the label" in vouched.warnings[0]
    told = judge(*rows, leaks={"refuse": False})
    assert (told.verdict, told.warnings) == ("accept", vouched.warnings)
