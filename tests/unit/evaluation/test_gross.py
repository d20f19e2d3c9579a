import math

import numpy as np
import pytest

from ctrain.evaluation import output_difference
from ctrain.evaluation.gross import unlike_outputs
from ctrain.records import OutputDifference, RecordedPair


def outputs(log_sd_ratio: float = 0.0, shift: float = 0.0, correlation: float = 0.95):
    return [OutputDifference(f"day-{k}", 100, log_sd_ratio, shift, correlation) for k in range(2)]


def record(count: int, **departures: float) -> list[RecordedPair]:
    found = {"log_sd_ratio": 0.1, "shift": 0.1, "correlation": 0.95, **departures}
    return [RecordedPair(str(k), "b", 3, 14, {}, {}, found) for k in range(count)]


def test_outputs_are_compared_as_logits() -> None:
    logits = np.random.default_rng(0).normal(size=500)
    one, two = 1 / (1 + np.exp(-0.5 * logits - 1)), 1 / (1 + np.exp(-logits))
    found = output_difference("d", one, two)
    assert found is not None
    assert found.log_sd_ratio == pytest.approx(math.log(0.5))
    assert found.correlation == pytest.approx(1.0)
    assert found.shift == pytest.approx((1 - 0.5 * logits.mean()) / logits.std())
    swapped = output_difference("d", 1 - two, two)
    assert swapped is not None
    assert swapped.correlation == pytest.approx(-1.0)


def test_constant_few_or_broken_outputs_have_each_their_outcome() -> None:
    some = np.linspace(0.1, 0.9, 50)
    assert output_difference("d", some, np.full(50, 0.5)) is None
    assert output_difference("d", some[:2], some[:2]) is None
    assert output_difference("d", np.where(some > 0.5, math.nan, some), some) is None
    flat = output_difference("d", np.full(50, 0.5), some)
    assert flat is not None
    assert flat.correlation == 0.0
    assert unlike_outputs([flat, flat], record(6)).startswith(
        "outputs are unlike any retrain's: their spread"
    )


@pytest.mark.parametrize(
    ("found", "word"),
    [
        (outputs(log_sd_ratio=-1.0), "spread is 0.37 times"),
        (outputs(shift=5.5), "mean lies +5.50"),
        (outputs(correlation=0.05), "correlation with the champion's is 0.05"),
        (outputs(log_sd_ratio=-0.9, shift=4.5, correlation=0.15), ""),
    ],
)
def test_outputs_unlike_any_recorded_retrain_are_named(found, word: str) -> None:
    told = unlike_outputs(found, record(6))
    assert word in told
    assert bool(told) == bool(word)


def test_a_pipeline_whose_retrains_vary_tolerates_more_and_a_short_record_as_well() -> None:
    found = outputs(log_sd_ratio=-1.0)
    assert unlike_outputs(found, record(6, log_sd_ratio=0.4)) == ""
    assert unlike_outputs(found, record(4)) == ""
    assert unlike_outputs(found[:1], record(6)) == ""
    assert unlike_outputs(outputs(correlation=-0.5), []) != ""
