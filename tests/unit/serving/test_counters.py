import random
import threading
import time

import numpy as np
import pytest

from ctrain.records import LiveDocument
from ctrain.serving.counters import Counters, Keys, Mirror, Mirrored
from ctrain.serving.split import challenger_answers
from ctrain.serving.weights import Live


class Model:
    """Answers 0.9, or what `values` says; `gate` holds it up."""

    threshold = 0.5

    def __init__(self, values=None, gate=None):
        self.values, self.gate = values, gate

    def predict(self, rows):
        if self.gate is not None:
            assert self.gate.wait(10)
        if self.values is None:
            return [0.9 for _ in rows]
        return self.values


class BrokenModel:
    """Does not even have a threshold to compare by."""

    def predict(self, rows):
        return [0.9 for _ in rows]


def live(challenger, **changes):
    return Live(LiveDocument("p", 1, 1, rollout="r", mirror="challenger"), Model(), challenger, **changes)


@pytest.fixture
def counters():
    return Counters()


@pytest.fixture
def mirror(counters):
    made = Mirror(counters, capacity=3)
    yield made
    made.close()


def arm_of(key, split):
    return "challenger" if challenger_answers("r", key, split) else "champion"


def test_a_key_that_changes_its_arm_at_a_later_step_counts_in_the_new_one(counters):
    key = next(
        f"k{n}"
        for n in range(999)
        if (arm_of(f"k{n}", 0.05), arm_of(f"k{n}", 0.25)) == ("champion", "challenger")
    )
    counters.arm("r", 0.05, "champion", True, 0, key)
    counters.arm("r", 0.25, "challenger", True, 0, key)
    counters.arm("r", 0.25, "challenger", True, 0, key)
    first, second = counters.arms()
    assert (first.arm, first.split, first.errors) == ("champion", 0.05, 1)
    assert (second.arm, second.errors) == ("challenger", 1)
    assert second.split == pytest.approx((0.25 - 0.05) / (1 - 0.05))


def test_a_key_that_the_challenger_answered_has_nothing_left_to_tell(counters):
    for split in (0.05, 0.25, 0.5):
        counters.arm("r", split, "challenger", True, 3, "k")
    (counts,) = counters.arms()
    assert (counts.split, counts.requests, counts.errors, counts.slow) == (0.05, 1, 1, (1, 1, 1))


def test_slowness_is_that_of_the_first_answer_of_a_key_under_each_throw_of_its_coin(counters):
    key = next(
        f"k{n}"
        for n in range(999)
        if (arm_of(f"k{n}", 0.05), arm_of(f"k{n}", 0.25)) == ("champion", "champion")
    )
    for split, levels in ((0.05, (1, 3, 3)), (0.25, (2, 3))):
        for level in levels:
            counters.arm("r", split, "champion", False, level, key)
    first, second = counters.arms()
    assert (first.requests, first.slow) == (1, (1, 0, 0))
    assert (second.requests, second.slow) == (1, (1, 1, 0))


def test_an_error_after_the_first_answer_counts_as_one_and_leaves_the_first_answer_what_it_was(counters):
    for error in (False, True, True):
        counters.arm("r", 0.05, "champion", error, 0, "k")
    counters.arm("r", 0.05, "champion", True, 0, "other")
    (counts,) = counters.arms()
    assert (counts.requests, counts.answered, counts.errors) == (2, 1, 2)


def test_keyless_requests_count_at_every_threshold_that_they_reached(counters):
    for level in (0, 1, 1, 2, 3):
        counters.arm("r", 0.25, "challenger", level == 3, level)
    (counts,) = counters.arms()
    assert (counts.requests, counts.answered, counts.errors, counts.slow) == (5, 4, 1, (4, 2, 1))


def test_draws_of_keys_over_steps_are_fair_coins_at_the_split_they_are_counted_under(counters):
    for split in (0.05, 0.25, 0.5):
        for number in range(20_000):
            key = f"key-{number}"
            counters.arm("r", split, arm_of(key, split), True, 0, key)
    draws = {}
    for counts in counters.arms():
        pair = draws.setdefault(counts.split, [0, 0])
        pair[counts.arm == "champion"] += counts.errors
    assert len(draws) == 3
    for split, (challenger, champion) in draws.items():
        trials = challenger + champion
        assert abs(challenger - split * trials) < 4 * np.sqrt(split * (1 - split) * trials)


def test_full_memory_of_keys_stays_bounded_and_still_finds_new_keys_once_each():
    keys = Keys(capacity=1000)
    sent = [hash(f"client-{number}") for number in range(20_000)]
    first = [keys.draw(key, 0.1, "champion") > 0 for key in sent]
    assert len(keys) <= 1000
    assert sum(first[-4000:]) > 50
    assert not any(keys.draw(key, 0.1, "champion") for key in sent)


def test_errors_of_new_keys_count_after_a_flood_of_requests_without_any(counters):
    for number in range(120_000):
        counters.arm("r", 0.5, "champion", False, 0, f"fine-{number}")
    for number in range(100):
        counters.arm("r", 0.5, "challenger", True, 0, f"broken-{number}")
    counts = next(counts for counts in counters.arms() if counts.arm == "challenger")
    assert counts.errors == 100


def test_counts_of_the_newest_rollouts_are_kept_whether_they_reached_a_canary_or_not(counters):
    for number in range(10):
        counters.pair(f"r{number}").pairs += 1
        if number % 2:
            counters.arm(f"r{number}", 0.1, "champion", False, 0, "k")
    assert [counts.rollout for counts in counters.pairs()] == ["r6", "r7", "r8", "r9"]
    assert [counts.rollout for counts in counters.arms()] == ["r7", "r9"]


def test_a_mirrored_request_is_one_witness_however_many_rows_it_has(counters, mirror):
    mirror.offer(Mirrored(live(Model([0.9, 0.9, 0.9, 0.1])), [{}] * 4, [0.8, 0.8, 0.1, 0.1]))
    mirror.drain()
    (counts,) = counters.pairs()
    assert (counts.pairs, counts.flipped) == (1, 0.25)
    assert counts.shift == pytest.approx(0.25)
    assert counts.distance == pytest.approx(0.25)


def test_a_full_mirror_sheds_and_counts_what_it_sheds(counters, mirror):
    gate = threading.Event()
    held = live(Model(gate=gate))
    for _ in range(20):
        mirror.offer(Mirrored(held, [{}], [0.8]))
    gate.set()
    mirror.drain()
    (counts,) = counters.pairs()
    assert 16 <= counts.shed <= 17
    assert counts.pairs == 20 - counts.shed


@pytest.mark.parametrize("values", [[float("nan")], [0.5, 0.5], []])
def test_a_mirrored_answer_that_is_none_is_an_error_of_the_challenger(counters, mirror, values):
    mirror.offer(Mirrored(live(Model(values)), [{}], [0.8]))
    mirror.drain()
    (counts,) = counters.pairs()
    assert (counts.pairs, counts.errors) == (0, 1)


def test_a_mirrored_request_that_lacks_what_the_challenger_requires_is_its_error(counters, mirror):
    both = live(Model(), unasked=("new",))
    mirror.offer(Mirrored(both, [{"new": 1.0}, {"new": None}], [0.8, 0.8]))
    mirror.offer(Mirrored(both, [{"new": 1.0}, {}], [0.8, 0.8]))
    mirror.offer(Mirrored(both, [{"new": 1.0}], [0.8]))
    mirror.drain()
    (counts,) = counters.pairs()
    assert (counts.pairs, counts.errors) == (1, 2)


def test_the_mirror_outlives_a_comparison_that_nobody_foresaw(counters, mirror):
    mirror.offer(Mirrored(live(BrokenModel()), [{}], [0.8]))
    mirror.offer(Mirrored(live(Model()), [{}], [0.8]))
    mirror.drain()
    assert mirror.alive
    assert counters.pairs()[0].pairs == 1


def test_latency_is_that_of_the_last_minute(counters, monkeypatch):
    assert counters.latency() == {}
    clock = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: clock)
    times = [number / 100 for number in range(101)]
    random.Random(0).shuffle(times)
    for seconds in times:
        counters.took(seconds)
    assert counters.latency() == {"p50": 0.5, "p90": 0.9, "p99": 0.99}
    clock += 61
    assert counters.latency() == {}
