import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate
from sklearn import metrics as sk

from ctrain.evaluation.evidence import (
    CLASSIFIER_STATISTICS,
    EFFECTS,
    LOOKS,
    REGRESSION_STATISTICS,
    WEIGHTS,
    BlockEvidence,
    BlockTest,
    Scales,
    block_statistics,
    first_crossing,
    harm,
    replicate_scatter,
    scales_from,
    value_statistics,
)
from ctrain.records import RecordedPair, from_json, to_json

NAMES = CLASSIFIER_STATISTICS


def pair(mean: float, variance: float = 1.0, blocks: int = 14, replicates: int = 3) -> RecordedPair:
    return RecordedPair("a", "b", replicates, blocks, {"auc": mean}, {"auc": variance})


# Statistics of a block


def test_statistics_of_a_block_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    truth, guess = rng.integers(0, 2, 400), rng.uniform(0.05, 0.95, 400)
    found = block_statistics(truth, guess)
    assert tuple(found) == NAMES
    assert found["capped_log_loss"] == pytest.approx(sk.log_loss(truth, guess))
    assert found["auc"] == pytest.approx(sk.roc_auc_score(truth, guess))


def test_one_sure_mistake_counts_no_more_than_the_cap() -> None:
    found = block_statistics(np.array([1, 0, 0, 1]), np.array([1e-9, 0.0, 0.0, 1.0]))
    assert found["capped_log_loss"] == pytest.approx(1.0, abs=1e-5)


def test_the_adjusted_loss_forgives_a_day_its_level_but_not_a_wrong_order() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(size=3000)
    truth = rng.random(3000) < 1 / (1 + np.exp(-logits - 1))  # the day is busier than the model thinks
    told = block_statistics(truth, 1 / (1 + np.exp(-logits - 1)))
    shifted = block_statistics(truth, 1 / (1 + np.exp(-logits)))
    mixed = block_statistics(truth, 1 / (1 + np.exp(-rng.permutation(logits))))
    assert shifted["capped_log_loss"] > told["capped_log_loss"] + 0.05
    assert shifted["adjusted_log_loss"] == pytest.approx(told["adjusted_log_loss"], abs=1e-3)
    assert mixed["adjusted_log_loss"] > told["adjusted_log_loss"] + 0.05


def test_a_block_of_one_class_has_only_the_loss_and_bad_scores_have_nothing() -> None:
    assert set(block_statistics(np.ones(5), np.full(5, 0.9))) == {"capped_log_loss"}
    assert block_statistics(np.array([]), np.array([])) == {}
    assert block_statistics(np.array([0, 1]), np.array([0.1, math.nan])) == {}


def test_statistics_of_a_regression() -> None:
    truth, guess = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 2.0, 4.0, 3.0])
    found = value_statistics(truth, guess)
    assert tuple(found) == REGRESSION_STATISTICS
    assert found["root_squared_error"] == pytest.approx(math.sqrt(0.5))
    assert (found["absolute_error"], found["rank_correlation"]) == pytest.approx((0.5, 0.8))
    assert "rank_correlation" not in value_statistics(truth, np.ones(4))
    assert value_statistics(truth, truth * math.inf) == {}


def test_harm_is_positive_where_the_judged_model_is_worse() -> None:
    found = harm({"auc": 0.6, "capped_log_loss": 0.5, "other": 1}, {"auc": 0.7, "capped_log_loss": 0.4})
    assert found == {"auc": pytest.approx(0.1), "capped_log_loss": pytest.approx(0.1)}


# Scales


def test_scales_of_a_long_record_are_its_scatter_and_the_spread_of_its_means() -> None:
    rng = np.random.default_rng(2)
    record = []
    for _ in range(400):
        days = rng.normal(rng.normal(5.0, 0.3), 1.0, 14)  # the mean of the record must not matter
        record.append(pair(float(days.mean()), float(days.var(ddof=1))))
    found = scales_from(record)
    assert (found.source, found.pairs) == ("record", 400)
    assert found.sigma["auc"] == pytest.approx(1.2, rel=0.05)
    assert found.tau["auc"] == pytest.approx(0.3, rel=0.15)
    assert found.margins()["auc"] == found.tau["auc"] / 2


def test_a_short_record_is_replaced_by_the_replicates_with_more_caution() -> None:
    found = scales_from([pair(0.0, 0.01)], replicates=[{"auc": 1.0}, {"auc": 2.0}])
    assert found.source == "replicates"
    assert found.sigma["auc"] == pytest.approx(3.0)
    assert found.tau["auc"] == pytest.approx(0.4 * 3.0)


def test_without_record_and_replicates_the_pairs_own_blocks_give_the_scale() -> None:
    found = scales_from([], blocks=[{"auc": 1.0}, {"auc": 3.0}, {}])
    assert (found.source, found.sigma["auc"]) == ("blocks", pytest.approx(1.5 * math.sqrt(2)))
    assert scales_from([]) == Scales({}, {}, 0, "none")


def test_the_scatter_of_replicates_is_that_of_a_difference_of_two_of_their_means() -> None:
    rng = np.random.default_rng(3)
    luck, level = rng.normal(size=(3, 4000)), rng.normal(size=(3, 1)) + rng.normal(size=4000)
    blocks = [[{"auc": value} for value in one] for one in luck + level]
    assert replicate_scatter(blocks)["auc"] == pytest.approx(math.sqrt(2 / 3), rel=0.03)
    assert replicate_scatter(blocks[:1]) == {}


# Tests


@given(st.lists(st.floats(-5, 5), min_size=3, max_size=30), st.integers(1, 29), st.integers(0, 2))
def test_evidence_is_the_same_however_the_blocks_are_batched(values, cut: int, absent: int) -> None:
    table = np.array([values, values[::-1], [math.nan] * absent + values[absent:]])
    new = BlockTest.new([1.0, 2.0, 0.5], [0.1, 0.0, 0.2])
    whole = new.add(table)
    assert new.add(table[:, :cut]).add(table[:, cut:]) == whole
    kept = from_json(BlockTest, json.loads(json.dumps(to_json(new.add(table[:, :cut])))))
    assert kept.add(table[:, cut:]) == whole


def test_the_e_value_is_the_mixture_of_scale_free_likelihood_ratios() -> None:
    test = BlockTest.new([1.0] * 3, [0.0] * 3).add(np.random.default_rng(4).normal(0.4, 1, (3, 9)))
    spread = test.sum_squares + test.prior

    def likelihood(effect: float) -> float:
        def density(u: float) -> float:
            exponent = -0.5 * u * u * spread + u * effect * test.sum - 0.5 * test.blocks * effect**2
            return u ** (test.blocks + 2) * math.exp(exponent)

        return integrate.quad(density, 0, 20, epsabs=0)[0]

    wanted = sum(w * likelihood(effect) for w, effect in zip(WEIGHTS, EFFECTS, strict=True)) / likelihood(0.0)
    assert math.exp(test.log_e_value) == pytest.approx(wanted, rel=1e-6)


def test_the_combined_statistic_is_the_documented_one() -> None:
    test = BlockTest.new([1.0], [0.5]).add(np.array([[1.5, 2.5]]))
    first, second = 1.0, 2.0 / math.sqrt((3 + 1) / 4)
    assert test.sum == pytest.approx(first + second)
    assert test.z == pytest.approx((first + second) / math.sqrt(2 * (first**2 + second**2 + 2) / 5))


def test_a_block_without_any_statistic_is_no_evidence() -> None:
    test = BlockTest.new([1.0, 1.0], [0.0, 0.0])
    assert test.add(np.full((2, 3), math.nan)) == test
    assert test.z == test.log_e_value == 0.0


@pytest.mark.parametrize("looks", list(LOOKS))
def test_planned_looks_err_as_rarely_as_they_say(looks: tuple[int, ...]) -> None:
    rng, found = np.random.default_rng(5), 0
    for _ in range(400):
        common = rng.normal(size=28)
        table = 0.8 * common + 0.6 * rng.normal(size=(3, 28))  # no harm beyond the margin of 0
        found += first_crossing(BlockTest.new([1.2] * 3, [0.0] * 3), table, looks) is not None
    assert found / 400 <= 0.05 + 3 * 0.011


def test_looking_after_every_block_errs_as_rarely_as_it_says_and_finds_harm() -> None:
    rng, false, missed = np.random.default_rng(6), 0, 0
    for _ in range(200):
        table = 0.8 * rng.normal(size=28) + 0.6 * rng.normal(size=(3, 28))
        test = BlockTest.new([1.2] * 3, [0.0] * 3)
        false += test.add(table).exceeds()
        missed += not test.add(table + 1.0).exceeds()
    assert false / 200 <= 0.05 + 3 * 0.016
    assert missed <= 3


def test_the_three_questions_have_each_their_answer() -> None:
    scales = Scales({"auc": 0.01}, {"auc": 0.002}, 9, "record")
    rng = np.random.default_rng(7)

    def judged(mean: float) -> tuple[bool, bool, bool]:
        evidence = BlockEvidence.new(scales, {"auc": 0.01})
        evidence = evidence.add([{"auc": value} for value in rng.normal(mean, 0.008, 28)])
        return evidence.worse.exceeds(), evidence.safe.exceeds(), evidence.better.exceeds()

    assert judged(0.03) == (True, False, False)
    assert judged(0.0) == (False, True, False)
    assert judged(-0.03) == (False, True, True)


def test_a_margin_below_half_of_tau_is_raised_to_it() -> None:
    scales = Scales(
        {"auc": 0.01, "capped_log_loss": 0.02}, {"auc": 0.004, "capped_log_loss": 0.004}, 9, "record"
    )
    assert BlockEvidence.new(scales, {"auc": 0.0}).worse.margins == (0.002,)
    assert BlockEvidence.new(scales).names == ("auc", "capped_log_loss")
