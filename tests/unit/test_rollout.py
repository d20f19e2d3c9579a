import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from ctrain.records import Analysis, ArmCounts, PairCounts, from_json
from ctrain.rollout import RolloutState, advance, analyse
from ctrain.rollout.analysis import log_disagreement
from ctrain.serving.counters import Counters
from ctrain.serving.split import challenger_answers
from ctrain.spec.rollout import Canary

SPEC = Canary()

Counts = tuple[int, int, int]


def arms(split: float, challenger: Counts, champion: Counts, keyed: bool = False) -> list[ArmCounts]:
    """Requests, errors and slow answers of both arms, of one replica."""
    return [
        ArmCounts("r", split, "challenger", *challenger, keyed),
        ArmCounts("r", split, "champion", *champion, keyed),
    ]


def rolled_back(rng: np.random.Generator, champion: float, challenger: float, split: float) -> bool:
    """Whether a rollout of 20,000 requests, looked at every 200, fails on errors."""
    chosen = rng.random(20_000) < split
    failed = rng.random(20_000) < np.where(chosen, challenger, champion)
    sums = [np.cumsum(mask) for mask in (chosen, failed & chosen, ~chosen, failed & ~chosen)]
    for at in range(199, 20_000, 200):
        sent, bad, others, others_bad = (int(series[at]) for series in sums)
        counts = arms(split, (sent, bad, 0), (others, others_bad, 0))
        if analyse("r", "canary", split, SPEC, [counts], []).verdict == "fail":
            return True
    return False


def test_an_identical_challenger_is_rarely_rolled_back_however_often_one_looks() -> None:
    rng = np.random.default_rng(0)
    assert sum(rolled_back(rng, 0.01, 0.01, 0.1) for _ in range(60)) <= 60 * SPEC.alpha + 3


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
        pairs = ([PairCounts("r", at, float(flipped[at - 1]))] for at in range(5, 501, 5))
        return any(analyse("r", "shadow", 0.0, SPEC, [], one).verdict == "fail" for one in pairs)

    rng = np.random.default_rng(3)
    for rows in (1, 8):
        assert sum(found(rng, rows, SPEC.disagreement) for _ in range(60)) <= 60 * SPEC.alpha
        assert all(found(rng, rows, 0.5) for _ in range(10))


def keys_roll_back(seed: int, replicas: int, given: Callable[[list[ArmCounts]], list[ArmCounts]]) -> bool:
    """Whether identical models and 150 clients that are always slow and always fail end a rollout."""
    rng = random.Random(seed)
    counters = [Counters() for _ in range(replicas)]
    for split in SPEC.steps:
        for at in range(1, 1201):
            key = f"client-{rng.randrange(150)}"
            arm = "challenger" if challenger_answers(f"r{seed}", key, split) else "champion"
            rng.choice(counters).arm("r", split, arm, True, True, key)  # type: ignore[arg-type]
            if at % 100 == 0:
                counts = [given(list(one.arms())) for one in counters]
                if analyse("r", "canary", split, SPEC, counts, []).verdict == "fail":
                    return True
    return False


def as_keyless(counts: list[ArmCounts]) -> list[ArmCounts]:
    return [replace(count, keyed=False) for count in counts]


def test_clients_that_always_fail_are_no_evidence_however_many_replicas_they_reach() -> None:
    for replicas in (2, 4):
        found = sum(keys_roll_back(seed, replicas, lambda counts: counts) for seed in range(40))
        assert found <= 40 * SPEC.alpha


def test_keys_that_were_added_up_over_replicas_would_be_false_evidence() -> None:
    assert sum(keys_roll_back(seed, 4, as_keyless) for seed in range(40)) > 40 * SPEC.alpha


def test_keyed_evidence_of_each_replica_is_averaged_and_multiplied_with_keyless_evidence() -> None:
    def harm(*counts: list[ArmCounts]) -> float:
        return analyse("r", "canary", 0.25, SPEC, counts, []).metrics[0].harm

    one, other = (arms(0.25, (50, bad, 0), (150, rest, 0), keyed=True) for bad, rest in ((6, 1), (2, 5)))
    keyless = arms(0.25, (50, 4, 0), (150, 3, 0))
    mean = (harm(one) + harm(other)) / 2
    assert harm(one, other) == pytest.approx(mean)
    assert harm(one + keyless, other) == pytest.approx(mean * harm(keyless))
    assert harm(one + one) != pytest.approx(harm(one, one))


def test_promotion_needs_evidence_of_its_own() -> None:
    few = analyse("r", "canary", 0.25, SPEC, [arms(0.25, (100, 0, 10), (300, 0, 30))], [])
    assert few.verdict == "continue"
    assert "needed" in few.reason
    pairs = [PairCounts("r", 300, 10)]
    many = analyse("r", "canary", 0.25, SPEC, [arms(0.25, (2000, 0, 200), (6000, 0, 600))], pairs)
    assert many.verdict == "pass"


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
    assert log_disagreement(float(shares.sum()), 50, 0.2) <= exact


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


def test_counts_that_were_journaled_before_keys_were_told_apart_are_read() -> None:
    old = {"rollout": "r", "split": 0.25, "arm": "champion", "requests": 3, "errors": 1, "slow": 0}
    assert not from_json(ArmCounts, old).keyed
    assert from_json(PairCounts, {"rollout": "r", "pairs": 3, "flipped": 1}).flipped == 1.0


def look(verdict: str) -> Analysis:
    return Analysis("r", "canary", 0.05, verdict, (), 0, "so it is")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("phase", "step", "verdict", "now", "kind"),
    [
        ("shadow", 0, "fail", 1.0, "abort"),
        ("shadow", 0, "pass", 10.0, "wait"),
        ("shadow", 0, "pass", 61.0, "step"),
        ("shadow", 0, "continue", 61.0, "wait"),
        ("canary", 0, "continue", 61.0, "step"),
        ("canary", 2, "continue", 61.0, "wait"),
        ("canary", 2, "pass", 61.0, "promote"),
        ("canary", 2, "continue", 8 * 86400.0, "abort"),
    ],
)
def test_each_verdict_leads_to_its_move(phase: str, step: int, verdict: str, now: float, kind: str) -> None:
    state = RolloutState("r", phase, step, started=0.0, since=0.5)  # type: ignore[arg-type]
    assert advance(state, SPEC, look(verdict), now).kind == kind
