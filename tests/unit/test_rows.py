"""Landed rows as the champion meets them: out of sample wherever that can be."""

import numpy as np
import pytest
from test_score import DAYS, ROWS, root, trained, version

from ctrain.monitoring.logged import text_of
from ctrain.monitoring.rows import Landed, Rows, joined, watched_columns
from ctrain.storage import Root

__all__ = ["root"]


def test_a_judged_block_is_answered_by_weights_that_have_not_learned_from_it(root: Root) -> None:
    sets = [
        trained(2.0, "judged-0", DAYS[-2:]), trained(3.0, "refit-0", DAYS[1:2]), trained(-4.0, "served"),
    ]  # fmt: skip
    champion = version(root, 0.0, partitions=DAYS[:3], blocks=DAYS[-2:], trained=sets)
    landed = Landed(root, champion, 0, "t")

    def slope(day: str) -> float:
        rows = landed.read(day)
        logits = np.log(rows.values / (1 - rows.values))
        return float(np.median(logits / rows.columns["size"]))

    assert np.isnan(landed.read("day-1").values).all()  # all weights have learned from it
    assert slope("day-2") == pytest.approx(3.0, rel=1e-4)
    assert slope("day-3") == pytest.approx(2.0, rel=1e-4)
    assert slope("day-4") == pytest.approx(-4.0, rel=1e-4)  # landed after the run


def test_rows_come_with_labels_and_event_times_in_order(root: Root) -> None:
    rows = Landed(root, version(root, 5.0), 0, "t").read("day-2")
    assert len(rows) == ROWS
    assert np.array_equal(rows.labels, (rows.columns["size"] > 0).astype(float))
    assert (np.diff(rows.times) > 0).all()
    assert rows.times[0] == np.datetime64("2026-01-01", "s").astype(float) + ROWS * 1e-6


def test_a_partition_that_cannot_be_read_is_passed_over(root: Root) -> None:
    landed = Landed(root, version(root, 5.0), 0, "t")
    assert [len(rows) for rows in landed.read_all(["day-1", "day-9", "day-2"])] == [ROWS, ROWS]


def test_rows_are_joined_and_picked(root: Root) -> None:
    landed = Landed(root, version(root, 5.0), 0, "t")
    both = joined([landed.read("day-1"), landed.read("day-2")])
    assert len(both) == 2 * ROWS
    assert both.at(both.labels == 1).labels.all()
    assert isinstance(both.at(slice(0, 3)), Rows)
    assert list(watched_columns(version(root, 5.0))) == ["size"]


def test_values_of_segments_have_one_spelling() -> None:
    assert [text_of(value) for value in (None, 3.0, 2.5, "UA", True)] == ["", "3", "2.5", "UA", "True"]
