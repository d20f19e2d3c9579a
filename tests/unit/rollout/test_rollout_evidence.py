import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctrain.rollout.evidence import (
    SLOW,
    WEIGHTS,
    Counts,
    log_above,
    log_excess_wealth,
    log_harm,
    log_mean_exp,
    log_ratio_wealth,
    log_safe_ratio,
    safe_ratios,
    slow_harm,
    total_harm,
)

splits = st.floats(0.01, 0.6)


def one(split: float, challenger: float, champion: float) -> Counts:
    return Counts((split,), np.array([challenger]), np.array([champion]))


@given(splits, st.floats(0.0, 0.3), st.floats(0.0, 0.3), st.floats(0.001, 0.2))
def test_bets_against_an_excess_lose_on_average_where_there_is_one(
    split: float, champion: float, more: float, margin: float
) -> None:
    rates = champion + margin + more, champion
    expected = 0.0
    for arm, failed in itertools.product((0, 1), (0.0, 1.0)):
        chance = (split if arm == 0 else 1 - split) * (rates[arm] if failed else 1 - rates[arm])
        seen = one(split, failed * (arm == 0), failed * (arm == 1))
        answered = one(split, (1 - failed) * (arm == 0), (1 - failed) * (arm == 1))
        expected += chance * np.exp(log_excess_wealth(seen, answered, margin))
    assert np.all(expected <= 1 + 1e-9)


@given(splits, st.floats(1.0, 8.0), st.floats(1.5, 8.0))
def test_bets_against_a_ratio_lose_on_average_where_it_is_reached(
    split: float, more: float, margin: float
) -> None:
    coin = split * margin * more / (split * margin * more + 1 - split)
    won = np.exp(log_ratio_wealth(one(split, 1, 0), safe_ratios(margin), margin))
    lost = np.exp(log_ratio_wealth(one(split, 0, 1), safe_ratios(margin), margin))
    assert np.all(coin * won + (1 - coin) * lost <= 1 + 1e-9)


@given(splits, st.floats(0.05, 1.0))
def test_bets_on_harm_lose_on_average_where_the_challenger_fails_no_more(split: float, ratio: float) -> None:
    coin = split * ratio / (split * ratio + 1 - split)
    for ratios in (SLOW[0].ratios, SLOW[2].ratios):
        won = np.exp(log_ratio_wealth(one(split, 1, 0), ratios))
        lost = np.exp(log_ratio_wealth(one(split, 0, 1), ratios))
        assert np.all(coin * won + (1 - coin) * lost <= 1 + 1e-9)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.floats(0.01, 0.9))
def test_a_sum_is_never_stronger_evidence_than_the_bets_on_each_of_its_numbers(
    numbers: list[float], tolerated: float
) -> None:
    stakes = np.geomspace(0.02, 0.95, 16) / tolerated
    each = np.log1p(np.outer(stakes, np.array(numbers) - tolerated)).sum(axis=1)
    assert log_above(sum(numbers), len(numbers), tolerated) <= log_mean_exp(each) + 1e-9


@settings(max_examples=50)
@given(st.integers(0, 30), st.integers(0, 30), splits)
def test_many_rollouts_at_once_have_the_evidence_of_each(
    challenger: int, champion: int, split: float
) -> None:
    many = Counts((split,), np.array([[challenger], [3.0]]), np.array([[champion], [1.0]]))
    assert log_harm(many)[0] == pytest.approx(float(log_harm(one(split, challenger, champion))), abs=1e-9)
    safe = float(log_safe_ratio(one(split, challenger, champion), 2.0))
    assert log_safe_ratio(many, 2.0)[0] == pytest.approx(safe, abs=1e-9)


def test_counts_at_several_splits_multiply() -> None:
    both = Counts((0.1, 0.5), np.array([3.0, 4.0]), np.array([1.0, 2.0]))
    each = log_ratio_wealth(one(0.1, 3, 1), (2.0,)) + log_ratio_wealth(one(0.5, 4, 2), (2.0,))
    assert log_ratio_wealth(both, (2.0,)) == pytest.approx(each)


def test_no_counts_are_no_evidence() -> None:
    empty = Counts((), np.zeros(0), np.zeros(0))
    assert log_harm(empty) == 0.0
    assert log_safe_ratio(empty, 2.0) == 0.0
    assert log_above(0.0, 0, 0.2) == 0.0
    assert log_above(5.0, 5, 1.0) == 0.0


def test_a_tolerance_of_nothing_is_bet_against_soundly() -> None:
    assert log_above(0.0, 10, 0.0) == 0.0
    assert log_above(1.0, 10, 0.0) > 0


def test_the_weights_share_out_one_budget() -> None:
    assert sum(WEIGHTS.values()) == pytest.approx(1.0)
    assert sum(threshold.weight for threshold in SLOW) == pytest.approx(1.0)
    assert total_harm({}) == pytest.approx(1.0)
    assert total_harm({"errors": 51.0}) == pytest.approx(1 + 50 * WEIGHTS["errors"])
    assert slow_harm([1.0, 1.0, 5.0]) == pytest.approx(1 + 4 * SLOW[2].weight)


def test_a_champion_that_fails_as_often_does_not_keep_the_challenger_from_being_cleared() -> None:
    failed, answered = one(0.25, 75, 225), one(0.25, 7425, 22275)
    assert log_mean_exp(log_excess_wealth(failed, answered, 0.005)) > math.log(20)


def test_errors_of_the_challenger_alone_keep_it_from_being_cleared() -> None:
    failed, answered = one(0.25, 75, 0), one(0.25, 7425, 22500)
    assert log_mean_exp(log_excess_wealth(failed, answered, 0.005)) < 0
