import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from ctrain.evaluation import binary_metrics, calibration_error, decide_gate, paired_interval
from ctrain.records import BlockScore, ModelScore
from ctrain.spec.evaluation import Evaluation, GateCriterion


def score(name: str, values: list[float], metric: str = "auc") -> ModelScore:
    blocks = tuple(BlockScore(f"day-{n}", 100, 20, {metric: v}) for n, v in enumerate(values))
    return ModelScore(name, {metric: float(np.mean(values))}, blocks)


def gate(*criteria: GateCriterion) -> Evaluation:
    return Evaluation(gate=criteria)


def test_metrics_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    truth, guess = rng.integers(0, 2, 500), rng.random(500)
    found = binary_metrics(truth, guess, 0.5)
    assert found["auc"] == sk.roc_auc_score(truth, guess)
    assert found["f1"] == sk.f1_score(truth, guess >= 0.5)
    assert found["log_loss"] == pytest.approx(sk.log_loss(truth, guess))
    assert found["brier"] == pytest.approx(sk.brier_score_loss(truth, guess))


def test_one_class_has_no_auc_and_no_rows_have_nothing() -> None:
    assert "auc" not in binary_metrics(np.ones(5), np.full(5, 0.9), 0.5)
    assert binary_metrics(np.array([]), np.array([]), 0.5) == {}


def test_calibration_error_is_zero_when_shares_match_and_the_gap_when_they_do_not() -> None:
    labels = np.array([1.0] * 30 + [0.0] * 70)
    assert calibration_error(labels, np.full(100, 0.3)) == pytest.approx(0.0)
    assert calibration_error(labels, np.full(100, 0.9)) == pytest.approx(0.6)


def test_the_paired_interval_is_the_t_interval_of_day_differences() -> None:
    one, other = [0.70, 0.71, 0.69, 0.72], [0.69, 0.69, 0.70, 0.70]
    found = paired_interval(score("a", one), score("b", other), "auc", 0.95)
    assert found is not None
    low, high = stats.ttest_rel(one, other).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((low, high))


def test_lower_is_better_turns_the_sign() -> None:
    better, worse = [0.40, 0.42, 0.41], [0.50, 0.51, 0.53]
    found = paired_interval(score("a", better, "log_loss"), score("b", worse, "log_loss"), "log_loss", 0.95)
    assert found is not None
    assert found.difference > 0


@pytest.mark.parametrize(
    ("candidate", "verdict"),
    [
        ([0.70, 0.71, 0.69, 0.70], "accept"),
        ([0.50, 0.51, 0.49, 0.50], "refuse"),
        ([0.60, 0.80, 0.55, 0.75], "not_enough_evidence"),
    ],
)
def test_no_harm_accepts_refuses_or_asks_for_more(candidate: list[float], verdict: str) -> None:
    champion = score("b", [0.70, 0.70, 0.70, 0.70])
    decision = decide_gate(gate(GateCriterion(metric="auc", no_harm=0.02)), score("a", candidate), champion)
    assert decision.verdict == verdict
    assert decision.criteria[0].blocks == 4


def test_the_first_model_has_absolute_criteria_only() -> None:
    rules = gate(GateCriterion(metric="auc", no_harm=0.02), GateCriterion(metric="auc", at_least=0.65))
    assert decide_gate(rules, score("a", [0.7, 0.7]), None).verdict == "accept"
    assert decide_gate(rules, score("a", [0.6, 0.6]), None).verdict == "refuse"


def test_at_most_keeps_what_is_at_the_bound_and_refuses_what_is_above() -> None:
    rules = gate(GateCriterion(metric="log_loss", at_most=0.5))
    assert decide_gate(rules, score("a", [0.5, 0.5], "log_loss"), None).verdict == "accept"
    refused = decide_gate(rules, score("a", [0.5, 0.7], "log_loss"), None)
    assert refused.verdict == "refuse"
    assert refused.reason == "log_loss 0.6000, expected at most 0.5"


@pytest.mark.parametrize(
    ("losses", "verdict", "words"),
    [
        ([0.40, 0.41, 0.39, 0.40], "accept", "log_loss better by 0.1000 (95% +0.0870 … +0.1130, positive"),
        ([0.60, 0.61, 0.59, 0.60], "refuse", "log_loss worse by 0.1000 (95% -0.1130 … -0.0870, positive"),
        ([0.40, 0.65, 0.45, 0.60], "not_enough_evidence", "log_loss worse by 0.0250 (95% -0.2"),
    ],
)
def test_no_harm_of_a_loss_is_better_where_it_is_lower(losses, verdict: str, words: str) -> None:
    champion = score("b", [0.50, 0.50, 0.50, 0.50], "log_loss")
    rules = gate(GateCriterion(metric="log_loss", no_harm=0.02))
    decision = decide_gate(rules, score("a", losses, "log_loss"), champion)
    assert decision.verdict == verdict
    assert decision.reason.startswith(words)


def test_one_refusal_decides_whatever_else_lacks_evidence() -> None:
    unsure = GateCriterion(metric="auc", no_harm=0.02)
    refused = GateCriterion(metric="auc", at_least=0.9)
    decision = decide_gate(gate(unsure, refused), score("a", [0.8]), score("b", [0.8]))
    assert [result.verdict for result in decision.criteria] == ["not_enough_evidence", "refuse"]
    assert decision.verdict == "refuse"
    assert decision.reason == "auc 0.8000, expected at least 0.9"


def test_fewer_than_two_common_blocks_say_which_the_champion_has_trained_on() -> None:
    candidate, champion = score("a", [0.8, 0.8, 0.8]), score("b", [0.1])
    decision = decide_gate(gate(GateCriterion(metric="auc", no_harm=0.02)), candidate, champion)
    assert decision.verdict == "not_enough_evidence"
    assert decision.reason == (
        "auc has no value for both models on two of the 3 judged blocks; "
        "the champion has trained on day-1, day-2"
    )


def test_the_comparison_is_on_the_blocks_that_both_models_have() -> None:
    candidate = score("a", [0.8, 0.8, 0.1])
    decision = decide_gate(gate(GateCriterion(metric="auc", no_harm=0.02)), candidate, score("b", [0.8, 0.8]))
    assert (decision.verdict, decision.criteria[0].blocks) == ("accept", 2)


def test_a_metric_that_blocks_of_one_class_cannot_give_lacks_evidence() -> None:
    blocks = tuple(BlockScore(f"day-{n}", 10, 10, {"brier": 0.1}) for n in range(3))
    candidate, champion = ModelScore("a", {"brier": 0.1}, blocks), ModelScore("b", {"brier": 0.1}, blocks)
    rules = gate(GateCriterion(metric="auc", at_least=0.6), GateCriterion(metric="auc", no_harm=0.02))
    decision = decide_gate(rules, candidate, champion)
    assert [result.value for result in decision.criteria] == [None, None]
    assert decision.verdict == "not_enough_evidence"
    assert "auc cannot be computed on the judged blocks" in decision.reason
