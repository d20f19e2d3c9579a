import sqlite3

import numpy as np
import pytest

from ctrain.monitoring.samples import SCHEMA, BlockSamples, Sampled

DAY = 86400.0


@pytest.fixture
def db() -> sqlite3.Connection:
    made = sqlite3.connect(":memory:")
    made.executescript(SCHEMA)
    return made


def answers(count: int, day: int = 0, start: int = 0) -> list[Sampled]:
    step = DAY / count
    return [Sampled(f"p.{day}.r.{start + i:x}", day * DAY + i * step, 0.5, "{}") for i in range(count)]


def test_few_answers_are_all_kept(db) -> None:
    samples = BlockSamples(db, DAY, kept=100)
    samples.offer(answers(150))
    assert len(list(samples.between(0, DAY))) == 150


def test_many_answers_leave_a_uniform_sample_of_bounded_size_however_they_come(db) -> None:
    made, found = answers(20_000), []
    for pieces in (1, 40):
        other = sqlite3.connect(":memory:")
        other.executescript(SCHEMA)
        for piece in np.array_split(np.arange(len(made)), pieces):
            BlockSamples(other, DAY, kept=500).offer(made[i] for i in piece)
        found.append([one.prediction_id for one in BlockSamples(other, DAY).between(0, DAY)])
    assert found[0] == found[1]
    assert 500 <= len(found[0]) <= 1000
    times = [one.time for one in made if one.prediction_id in set(found[0])]
    assert np.mean(times) == pytest.approx(DAY / 2, abs=3 * DAY / np.sqrt(12 * len(times)))


def test_a_quiet_block_is_not_thinned_by_a_busy_one(db) -> None:
    samples = BlockSamples(db, DAY, kept=100)
    samples.offer([*answers(5000), *answers(50, day=1)])
    assert len(list(samples.between(DAY, 2 * DAY))) == 50
    assert samples.span() == (pytest.approx(0, abs=DAY / 20), pytest.approx(2 * DAY, abs=DAY / 40))


def test_the_same_answer_again_changes_nothing_and_old_blocks_are_forgotten(db) -> None:
    samples = BlockSamples(db, DAY)
    for _ in range(2):
        samples.offer([*answers(10), *answers(10, day=5)])
    assert len(list(samples.between(0, 9 * DAY))) == 20
    samples.forget(3 * DAY)
    assert len(list(samples.between(0, 9 * DAY))) == 10
    assert BlockSamples(db, DAY).span() is not None
    samples.forget(99 * DAY)
    assert samples.span() is None
