"""Short forms of the simulations of `tests/benchmarks/analysis.py`: the error rates of whole rollouts."""

import numpy as np
import pytest
from rollouts import (
    QualityPaths,
    Requests,
    Tally,
    Truth,
    block_pool,
    judge,
    paired_scores,
    quality_paths,
    recorded_scales,
    records,
    roll_out,
)

from ctrain.evaluation.evidence import block_statistics
from ctrain.records import PairedBlock
from ctrain.rollout import analyse
from ctrain.spec.rollout import Canary, Quality

SPEC = Canary()
ROLLOUTS = 200


def share(ends: np.ndarray) -> float:
    return float(np.isfinite(ends[0]).mean())


def at_most(share: float) -> float:
    """A bound that a true share passes in all but one of some thousand tests."""
    return share + 3.1 * (share * (1 - share) / ROLLOUTS) ** 0.5


@pytest.fixture(scope="module")
def quality() -> dict[float, QualityPaths]:
    rng = np.random.default_rng(5)
    scales = recorded_scales(rng, pairs=8)
    return {
        auc: quality_paths(rng, block_pool(rng, auc, 120), scales, SPEC, ROLLOUTS) for auc in (0.78, 0.80)
    }


@pytest.mark.parametrize(
    "truth",
    [
        Truth("identical 0.1 %"),
        Truth("identical 1 %", errors=(0.01, 0.01)),
        Truth("shared outage", outage=0.2),
        Truth("stalls", stalls=True),
    ],
    ids=lambda truth: truth.name,
)
def test_an_identical_model_is_rarely_rolled_back_whatever_storms_hit_both(
    truth: Truth, quality: dict[float, QualityPaths]
) -> None:
    ends = roll_out(truth, ROLLOUTS, np.random.default_rng(1), quality[0.80])
    assert share(ends.harm) <= at_most(SPEC.alpha)
    assert share(ends.errors) <= at_most(SPEC.alpha)
    assert share(ends.latency) <= at_most(SPEC.alpha)
    assert share(ends.promoted) >= 0.85


@pytest.mark.parametrize(
    ("truth", "canary_requests"),
    [
        (Truth("errors .1 to 1 %", errors=(0.001, 0.01)), 450),
        (Truth("errors .1 to 5 %", errors=(0.001, 0.05)), 70),
        (Truth("p99 +20 %", tail=2.48), 1000),
        (Truth("p99 x2", tail=6.0), 130),
        (Truth("all 20 % slower", slower=1.2), 270),
    ],
    ids=lambda given: given.name if isinstance(given, Truth) else "",
)
def test_harm_is_found_and_not_promoted(truth: Truth, canary_requests: int) -> None:
    ends = roll_out(truth, ROLLOUTS, np.random.default_rng(2))
    assert share(ends.harm) >= 0.97
    assert np.median(ends.harm[0]) <= canary_requests
    assert share(ends.promoted) <= 0.03


@pytest.mark.parametrize(
    "truth",
    [Truth("excess at the margin", errors=(0.001, 0.006)), Truth("slow at the margin", tail=2.0)],
    ids=lambda truth: truth.name,
)
def test_harm_at_the_margin_is_rarely_promoted(truth: Truth) -> None:
    ends = roll_out(truth, ROLLOUTS, np.random.default_rng(3))
    assert share(ends.promoted) <= at_most(SPEC.alpha_promote)


def test_a_loss_of_auc_at_the_margin_is_rarely_promoted_where_promotion_waits_for_quality(
    quality: dict[float, QualityPaths],
) -> None:
    worse = roll_out(Truth("auc .78", auc=0.78), ROLLOUTS, np.random.default_rng(4), quality[0.78])
    alike = roll_out(Truth("auc .80"), ROLLOUTS, np.random.default_rng(4), quality[0.80])
    assert share(worse.promoted_after_quality) <= at_most(SPEC.alpha_promote)
    assert share(worse.harm) >= 0.6
    assert share(alike.promoted_after_quality) >= 0.6


def test_many_rollouts_at_once_are_judged_as_analyse_judges_each() -> None:
    rng = np.random.default_rng(6)
    for truth in (Truth("alike", errors=(0.02, 0.02)), Truth("worse", errors=(0.01, 0.03), slower=1.2)):
        tally, requests, splits = Tally.of(20, 2), Requests(truth, 20, rng), (0.1, 0.2)
        for step, split in enumerate(splits):
            requests.draw(tally, 2000 * step, 2000 * (step + 1), split, step)
        judged = judge(tally, splits, SPEC)
        for one in range(20):
            arms, pairs = records(tally, splits, one)
            metrics = {one.metric: one for one in analyse("r", "canary", 0.2, SPEC, [arms], pairs).metrics}
            for name, harm in judged.harms.items():
                assert metrics[name].harm == pytest.approx(harm[one], rel=1e-9)
            for name, safe in judged.safe.items():
                assert metrics[name].safe == pytest.approx(safe[one], rel=1e-9)


def test_block_evidence_of_many_rollouts_is_that_which_analyse_finds() -> None:
    rng = np.random.default_rng(7)
    scales = recorded_scales(rng, pairs=6)
    spec = Canary(quality=Quality(before_promotion=True))
    blocks = []
    for number in range(5):
        labels, challenger, champion = paired_scores(rng, 0.78, 900)
        statistics = block_statistics(labels, challenger), block_statistics(labels, champion)
        blocks.append(PairedBlock(f"day-{number}", 900, int(labels.sum()), *statistics))
    pool = [
        {name: (-1 if name == "auc" else 1) * (one.judged[name] - one.against[name]) for name in one.judged}
        for one in blocks[:1]
    ]
    paths = quality_paths(rng, pool, scales, spec, 1, horizon=10_000)
    (found,) = (
        one
        for one in analyse("r", "canary", 0.2, spec, [], [], blocks[:1], scales).metrics
        if one.metric == "quality"
    )
    assert found.harm == pytest.approx(paths.worse[0, 1])
    assert found.safe == pytest.approx(paths.safe[0, 1])
