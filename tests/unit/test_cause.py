import json

import numpy as np
import pytest

from ctrain.features import Column
from ctrain.monitoring.cause import live_rows, why_it_moved
from ctrain.monitoring.rows import Rows
from ctrain.monitoring.samples import Sampled
from ctrain.records import KnownFacts

DAY = 86400.0
KINDS = {"size": Column.number(), "kind": Column.category()}


def day(number: int, rows: int = 600) -> Rows:
    """Rows of a day on which the label follows the answer."""
    random = np.random.default_rng(number)
    size = random.normal(size=rows)
    values = 1 / (1 + np.exp(-size))
    columns = {"size": size, "kind": random.choice(["a", "b", "c"], rows)}
    labels = (random.random(rows) < values).astype(float)
    return Rows(columns, values, labels, number * DAY + np.sort(random.uniform(0, DAY, rows)))


def test_a_day_like_those_before_it_needs_no_action() -> None:
    found = why_it_moved(map(day, range(100, 120)), day(120), DAY, KnownFacts(), 0.0)
    assert (found.verdict, found.action) == ("none", "none")
    assert found.windows > 5


def test_missing_values_of_the_newest_day_are_a_fault_of_the_data() -> None:
    live = day(120)
    live.columns["size"][::3] = np.nan
    found = why_it_moved(map(day, range(100, 120)), live, DAY, KnownFacts(), 0.0)
    assert (found.verdict, found.kind, found.subjects[0], found.action) == (
        "data_quality", "missing", "size", "quarantine",
    )  # fmt: skip


def test_landed_rows_of_the_live_time_are_not_counted_twice() -> None:
    twice = [*map(day, range(100, 120)), day(120)]
    once = why_it_moved(twice[:-1], day(120), DAY, KnownFacts(), 0.0)
    assert why_it_moved(twice, day(120), DAY, KnownFacts(), 0.0) == once


def test_the_newest_piece_is_as_long_as_a_block_wherever_the_day_begins() -> None:
    live = day(120).at(slice(0, 200))  # a third of the day: the rest of the piece is of the day before
    found = why_it_moved(map(day, range(100, 120)), live, DAY, KnownFacts(), 0.0)
    assert found.rows == pytest.approx(600, abs=60)


def test_a_refused_partition_and_few_rows_are_named_without_statistics() -> None:
    facts = KnownFacts(refused_share=0.4, usual_refused_share=0.01)
    assert why_it_moved(map(day, range(100, 120)), day(120), DAY, facts, 0.0).verdict == "data_quality"
    gone = KnownFacts(refused_share=1.0, schema_changes=("size: column is gone",))
    schema = why_it_moved(map(day, range(100, 120)), day(120), DAY, gone, 0.0)
    assert (schema.verdict, schema.action, schema.subjects) == (
        "upstream_schema", "quarantine", ("size: column is gone",),
    )  # fmt: skip
    skewed = why_it_moved(map(day, range(100, 120)), day(120), DAY, KnownFacts(), 0.0, skewed=0.02)
    assert (skewed.verdict, skewed.action) == ("serving_skew", "escalate")
    few = why_it_moved([], day(120).at(slice(0, 3)), DAY, KnownFacts(), None)
    assert (few.verdict, few.would_decide) == ("unknown", "97 more rows")


def test_sampled_answers_come_back_as_columns() -> None:
    sampled = [
        Sampled("p.1", 10.0, 0.3, json.dumps({"size": 1, "kind": "a", "other": 5})),
        Sampled("p.2", 20.0, 0.4, json.dumps({"size": None})),
    ]
    rows = live_rows(sampled, np.array([1.0, np.nan]), KINDS)
    assert rows.columns["kind"].tolist() == ["a", ""]
    assert np.isnan(rows.columns["size"]).tolist() == [False, True]
    assert (rows.values.tolist(), rows.times.tolist()) == ([0.3, 0.4], [10.0, 20.0])


def test_a_version_that_is_worse_than_the_one_before_on_the_same_rows_is_a_bad_version() -> None:
    live = day(120, rows=2000)
    spoiled = Rows(live.columns, 1 - live.values, live.labels, live.times)
    facts = KnownFacts(promoted_ago=3600.0, previous="v6")
    found = why_it_moved(map(day, range(100, 120)), spoiled, DAY, facts, 0.0, previous=live.values)
    assert (found.verdict, found.action) == ("bad_version", "roll_back")
    assert "the version before it" in found.reason
