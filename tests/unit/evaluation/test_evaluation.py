import numpy as np
import pytest
from sklearn import metrics as sk

from ctrain.evaluation import binary_metrics, calibration_error


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
