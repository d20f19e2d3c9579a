import numpy as np
import pytest

from ctrain.records import Analysis, ArmCounts, PairCounts
from ctrain.rollout import RolloutState, advance, analyse
from ctrain.spec.rollout import Canary

SPEC = Canary()


def arms(split: float, challenger: tuple[int, int, int], champion: tuple[int, int, int]) -> list[ArmCounts]:
    return [ArmCounts("r", split, "challenger", *challenger), ArmCounts("r", split, "champion", *champion)]


def rolled_back(rng: np.random.Generator, champion: float, challenger: float, split: float) -> bool:
    """Whether a rollout of 20,000 requests, looked at every 200, fails on errors."""
    chosen = rng.random(20_000) < split
    failed = rng.random(20_000) < np.where(chosen, challenger, champion)
    sums = [np.cumsum(mask) for mask in (chosen, failed & chosen, ~chosen, failed & ~chosen)]
    for at in range(199, 20_000, 200):
        sent, bad, others, others_bad = (int(series[at]) for series in sums)
        counts = arms(split, (sent, bad, 0), (others, others_bad, 0))
        if analyse("r", "canary", split, SPEC, counts, []).verdict == "fail":
            return True
    return False


def test_an_identical_challenger_is_rarely_rolled_back_however_often_one_looks() -> None:
    rng = np.random.default_rng(0)
    assert sum(rolled_back(rng, 0.01, 0.01, 0.1) for _ in range(60)) <= 60 * SPEC.alpha + 3


def test_a_challenger_with_fifty_times_the_errors_is_found() -> None:
    rng = np.random.default_rng(1)
    assert all(rolled_back(rng, 0.001, 0.05, 0.1) for _ in range(20))


def test_promotion_needs_evidence_of_its_own() -> None:
    few = analyse("r", "canary", 0.25, SPEC, arms(0.25, (100, 0, 10), (300, 0, 30)), [])
    assert few.verdict == "continue"
    assert "needed" in few.reason
    pairs = [PairCounts("r", 300, 10)]
    many = analyse("r", "canary", 0.25, SPEC, arms(0.25, (2000, 0, 200), (6000, 0, 600)), pairs)
    assert many.verdict == "pass"


def test_counts_of_several_replicas_add_up() -> None:
    whole = arms(0.25, (800, 4, 80), (2400, 6, 240))
    parts = arms(0.25, (300, 1, 30), (1000, 2, 100)) + arms(0.25, (500, 3, 50), (1400, 4, 140))
    assert analyse("r", "canary", 0.25, SPEC, whole, []) == analyse("r", "canary", 0.25, SPEC, parts, [])


def test_gross_disagreement_fails_in_the_shadow() -> None:
    analysis = analyse("r", "shadow", 0.0, SPEC, [], [PairCounts("r", 400, 200)])
    assert analysis.verdict == "fail"
    assert "agreement" in analysis.reason


def test_a_challenger_that_fails_three_mirrored_requests_is_stopped_at_once() -> None:
    analysis = analyse("r", "shadow", 0.0, SPEC, [], [PairCounts("r", 5, 0, errors=3)])
    assert analysis.verdict == "fail"


def test_counts_of_another_rollout_do_not_matter() -> None:
    other = [ArmCounts("old", 0.25, "challenger", 100, 100, 0)]
    assert analyse("r", "canary", 0.25, SPEC, other, []).requests == 0


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
