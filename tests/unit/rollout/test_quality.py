import numpy as np
import pytest
from rollouts import paired_scores, recorded_scales

from ctrain.evaluation.evidence import Scales, block_statistics
from ctrain.records import Analysis, MetricAnalysis, PairedBlock
from ctrain.rollout import analyse
from ctrain.spec.rollout import Canary, Quality

SPEC = Canary()
WAITING = Canary(quality=Quality(before_promotion=True, no_harm=0.03))


@pytest.fixture(scope="module")
def scales() -> Scales:
    return recorded_scales(np.random.default_rng(0), pairs=6)


def blocks(count: int, auc: float, seed: int = 1) -> list[PairedBlock]:
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        labels, challenger, champion = paired_scores(rng, auc, 900)
        judged, against = block_statistics(labels, challenger), block_statistics(labels, champion)
        made.append(PairedBlock(f"day-{number:02}", 900, int(labels.sum()), judged, against))
    return made


def look(spec: Canary, quality: list[PairedBlock], scales: Scales | None) -> Analysis:
    return analyse("r", "canary", 0.25, spec, [], [], quality, scales)


def judged(analysis: Analysis) -> MetricAnalysis:
    return analysis.metrics[-1]


def test_a_canary_of_hours_says_that_it_saw_no_gross_harm_and_watches(scales: Scales) -> None:
    found = judged(look(SPEC, blocks(2, 0.80), scales))
    assert (found.metric, found.state, found.unit) == ("quality", "watching", "blocks")
    assert "no gross harm seen on 2 matured blocks" in found.text
    assert found.needed is not None


def test_without_a_matured_label_nothing_is_claimed(scales: Scales) -> None:
    found = judged(look(WAITING, [], scales))
    assert (found.harm, found.safe, found.verdict, found.state) == (1.0, 1.0, "continue", "gathering")
    assert "no matured block yet" in found.text


def test_a_worse_model_ends_the_rollout_within_days_and_an_alike_one_is_cleared(scales: Scales) -> None:
    worse = look(SPEC, blocks(14, 0.74), scales)
    assert worse.verdict == "fail"
    assert "quality" in worse.reason
    alike = look(WAITING, blocks(14, 0.80), scales)
    assert judged(alike).verdict == "pass"
    assert judged(alike).needed == 0


def test_a_skill_that_is_gone_ends_a_rollout_after_two_blocks_whatever_its_evidence(scales: Scales) -> None:
    assert look(SPEC, blocks(1, 0.52), scales).verdict == "continue"
    gone = look(SPEC, blocks(2, 0.52), scales)
    assert gone.verdict == "fail"
    assert gone.state == "harm"
    assert "gross harm: auc" in gone.reason


def test_a_weak_champion_is_no_reason_to_call_a_skill_gone(scales: Scales) -> None:
    weak = [
        PairedBlock(f"day-{n}", 900, 90, {"auc": 0.500 + n / 200}, {"auc": 0.515 - n / 300}) for n in range(2)
    ]
    assert look(SPEC, weak, scales).verdict == "continue"


def test_a_handful_of_labels_a_block_is_no_proof_that_a_skill_is_gone(scales: Scales) -> None:
    few = [PairedBlock(f"day-{n}", 20, 3, {"auc": 0.5}, {"auc": 0.8}) for n in range(2)]
    assert look(SPEC, few, scales).verdict == "continue"


def test_promotion_waits_for_quality_only_where_the_spec_asks(scales: Scales) -> None:
    few = blocks(2, 0.80)
    assert not any(metric.verdict == "pass" for metric in look(WAITING, few, scales).metrics[-1:])
    waiting, free = look(WAITING, few, scales), look(SPEC, few, scales)
    assert "matured blocks" in waiting.reason
    assert "matured blocks" not in free.reason


@pytest.mark.parametrize(
    "odd",
    [
        PairedBlock("d", 0, 0, {}, {}),
        PairedBlock("d", 3, 0, {"capped_log_loss": 0.1}, {"capped_log_loss": 0.2}),
        PairedBlock("d", 9, 4, {"auc": 0.7}, {}),
        PairedBlock("d", 9, 4, {"auc": 0.7}, {"auc": 0.7}),
    ],
)
def test_blocks_that_say_little_are_little_evidence(odd: PairedBlock, scales: Scales) -> None:
    for known in (scales, None):
        found = judged(look(WAITING, [odd, odd], known))
        assert found.verdict == "continue"
        assert found.harm < 3
        assert found.safe < 20


def test_without_a_record_the_blocks_own_scatter_stands_in() -> None:
    assert judged(look(SPEC, blocks(10, 0.80), None)).harm < 5
    assert judged(look(SPEC, blocks(20, 0.70, seed=3), None)).verdict == "fail"
