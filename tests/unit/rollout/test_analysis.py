from typing import Literal

import numpy as np
import pytest

from ctrain.records import ArmCounts, PairCounts
from ctrain.rollout import analyse
from ctrain.rollout.evidence import log_above
from ctrain.spec.rollout import Canary

SPEC = Canary()

Counts = tuple[int, int, int]
Arm = Literal["challenger", "champion"]


def arms(split: float, challenger: Counts, champion: Counts, keyed: bool = False) -> list[ArmCounts]:
    """Requests, errors and answers slower than the p90 of both arms, of one replica."""
    names: tuple[Arm, Arm] = ("challenger", "champion")
    return [
        ArmCounts("r", split, arm, sent, bad, (sent // 2, slow, slow // 10), keyed, sent - bad)
        for arm, (sent, bad, slow) in zip(names, (challenger, champion), strict=True)
    ]


def rolled_back(rng: np.random.Generator, champion: float, challenger: float, split: float) -> bool:
    """Whether a rollout of 20,000 requests, looked at every 400, fails on errors."""
    chosen = rng.random(20_000) < split
    failed = rng.random(20_000) < np.where(chosen, challenger, champion)
    sums = [np.cumsum(mask) for mask in (chosen, failed & chosen, ~chosen, failed & ~chosen)]
    for at in range(399, 20_000, 400):
        sent, bad, others, others_bad = (int(series[at]) for series in sums)
        counts = arms(split, (sent, bad, 0), (others, others_bad, 0))
        if analyse("r", "canary", split, SPEC, [counts], []).verdict == "fail":
            return True
    return False


def test_an_identical_challenger_is_rarely_rolled_back_however_often_one_looks() -> None:
    rng = np.random.default_rng(0)
    assert sum(rolled_back(rng, 0.01, 0.01, 0.1) for _ in range(40)) <= 40 * SPEC.alpha + 3


def test_a_challenger_with_fifty_times_the_errors_is_found() -> None:
    rng = np.random.default_rng(1)
    assert all(rolled_back(rng, 0.001, 0.05, 0.1) for _ in range(20))


def test_slowness_of_identical_models_rarely_rolls_back_and_of_a_slower_one_does() -> None:
    def found(rng: np.random.Generator, challenger: float) -> bool:
        chosen = rng.random(4000) < 0.25
        slow = rng.random(4000) < np.where(chosen, challenger, 0.1)
        for at in range(100, 4001, 100):
            counts = arms(
                0.25,
                (int(chosen[:at].sum()), 0, int((slow & chosen)[:at].sum())),
                (int((~chosen)[:at].sum()), 0, int((slow & ~chosen)[:at].sum())),
            )
            if analyse("r", "canary", 0.25, SPEC, [counts], []).verdict == "fail":
                return True
        return False

    rng = np.random.default_rng(2)
    assert sum(found(rng, 0.1) for _ in range(60)) <= 60 * SPEC.alpha
    assert all(found(rng, 0.3) for _ in range(20))


def test_disagreement_at_the_tolerated_share_rarely_ends_a_rollout_and_gross_disagreement_does() -> None:
    def found(rng: np.random.Generator, rows: int, share: float) -> bool:
        flipped = np.cumsum(rng.binomial(rows, share, 500) / rows)
        pairs = ([PairCounts("r", at, float(flipped[at - 1]))] for at in range(10, 501, 10))
        return any(analyse("r", "shadow", 0.0, SPEC, [], one).verdict == "fail" for one in pairs)

    rng = np.random.default_rng(3)
    for rows in (1, 8):
        assert sum(found(rng, rows, SPEC.disagreement) for _ in range(60)) <= 60 * SPEC.alpha
        assert all(found(rng, rows, 0.5) for _ in range(10))


def test_promotion_needs_evidence_of_its_own() -> None:
    few = analyse("r", "canary", 0.25, SPEC, [arms(0.25, (100, 0, 10), (300, 0, 30))], [])
    assert few.verdict == "continue"
    assert "needed" in few.reason
    pairs = [PairCounts("r", 300, 10)]
    many = analyse("r", "canary", 0.25, SPEC, [arms(0.25, (4000, 0, 400), (12000, 0, 1200))], pairs)
    assert many.verdict == "pass"


def test_thresholds_of_a_slower_minute_do_not_keep_a_rollout_from_its_end() -> None:
    names: tuple[Arm, Arm] = ("challenger", "champion")
    counts = [
        ArmCounts("r", 0.25, arm, sent, 0, (sent // 50, 0, 0), answered=sent)
        for arm, sent in zip(names, (2500, 7500), strict=True)
    ]
    analysis = analyse("r", "canary", 0.25, SPEC, [counts], [PairCounts("r", 300, 10)])
    assert analysis.verdict == "pass"


def test_a_busier_hour_in_which_all_are_slow_is_judged_by_the_ratio() -> None:
    names: tuple[Arm, Arm] = ("challenger", "champion")
    for factor, passes in ((1.0, True), (2.0, False)):
        counts = [
            ArmCounts("r", 0.25, arm, sent, 0, (sent, sent // 2, round(sent * share)), answered=sent)
            for arm, sent, share in zip(names, (2500, 7500), (0.05 * factor, 0.05), strict=True)
        ]
        analysis = analyse("r", "canary", 0.25, SPEC, [counts], [PairCounts("r", 300, 10)])
        latency = next(metric for metric in analysis.metrics if metric.metric == "latency")
        assert (latency.verdict == "pass") == passes


def test_keyless_counts_of_several_replicas_add_up() -> None:
    whole = arms(0.25, (800, 4, 80), (2400, 6, 240))
    parts = arms(0.25, (300, 1, 30), (1000, 2, 100)), arms(0.25, (500, 3, 50), (1400, 4, 140))
    assert analyse("r", "canary", 0.25, SPEC, [whole], []) == analyse("r", "canary", 0.25, SPEC, parts, [])


def test_gross_disagreement_fails_in_the_shadow() -> None:
    analysis = analyse("r", "shadow", 0.0, SPEC, [], [PairCounts("r", 400, 200)])
    assert analysis.verdict == "fail"
    assert "agreement" in analysis.reason


def test_shares_of_flipped_rows_are_never_stronger_evidence_than_the_bets_on_each_request() -> None:
    shares = np.random.default_rng(4).random(50)
    stakes = np.geomspace(0.02, 0.95, 16) / 0.2
    each = np.log1p(np.outer(stakes, shares - 0.2)).sum(axis=1)
    exact = float(np.log(np.mean(np.exp(each - each.max()))) + each.max())
    assert log_above(float(shares.sum()), 50, 0.2) <= exact


def test_a_metric_says_fail_only_where_it_ends_the_rollout() -> None:
    for bad in range(60):
        counts = arms(0.05, (200, bad, 0), (3800, 20, 0))
        analysis = analyse("r", "canary", 0.05, SPEC, [counts], [PairCounts("r", 300, 10)])
        if any(metric.verdict == "fail" for metric in analysis.metrics):
            assert analysis.verdict == "fail"
            break
    else:
        pytest.fail("the errors never sufficed")
    assert analysis.metrics[0].harm >= analysis.metrics[0].harm_bound


def test_a_challenger_that_fails_three_mirrored_requests_is_stopped_at_once() -> None:
    analysis = analyse("r", "shadow", 0.0, SPEC, [], [PairCounts("r", 5, 0, errors=3)])
    assert analysis.verdict == "fail"


def test_counts_of_another_rollout_do_not_matter() -> None:
    other = [ArmCounts("old", 0.25, "challenger", 100, 100, 0)]
    assert analyse("r", "canary", 0.25, SPEC, [other], []).requests == 0
