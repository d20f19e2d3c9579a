import numpy as np

from ctrain.evaluation import watch
from ctrain.evaluation.scales import Scales
from ctrain.evaluation.watch import one_against_one
from ctrain.records import PairedBlock

NAMES = ("capped_log_loss", "auc", "adjusted_log_loss")
SCALES = Scales(dict.fromkeys(NAMES, 0.012), dict.fromkeys(NAMES, 0.002), 20, "record")


def blocks(harm: float, count: int, seed: int = 0, rows: int = 300) -> list[PairedBlock]:
    rng = np.random.default_rng(seed)
    sign = np.array([1.0, -1.0, 1.0])
    found = []
    for k in range(count):
        against = 0.7 + rng.normal(0.0, 0.05) + np.zeros(3)
        judged = against + sign * (harm + rng.normal(0.0, 0.006) + rng.normal(0.0, 0.008, 3))
        sides = (dict(zip(NAMES, map(float, side), strict=True)) for side in (judged, against))
        found.append(PairedBlock(f"day-{k:02d}", rows, 60, *sides))
    return found


def test_a_champion_that_is_no_worse_is_rarely_rolled_back_however_long_it_is_watched() -> None:
    verdicts = [watch(blocks(0.0, 28, seed), SCALES).verdict for seed in range(60)]
    assert verdicts.count("fail") <= 3
    assert verdicts.count("pass") >= 50


def test_a_spoiled_champion_is_rolled_back_and_evidence_once_found_is_not_lost() -> None:
    report = watch(blocks(0.02, 14), SCALES)
    assert report.verdict == "fail"
    assert report.harm >= report.bound > report.safe
    later = watch([*blocks(0.02, 14), *blocks(-0.02, 14, seed=1)], SCALES)
    assert later.verdict == "fail"


def test_a_champion_without_skill_is_rolled_back_after_two_blocks() -> None:
    report = watch(blocks(0.19, 2), SCALES)
    assert report.verdict == "fail"
    assert report.text.startswith("skill is gone: auc 0.5")


def test_before_there_is_evidence_the_watch_goes_on_and_says_how_far_it_is() -> None:
    assert watch([], SCALES).verdict == "continue"
    report = watch(blocks(0.004, 3), SCALES, age=9)
    assert (report.verdict, report.blocks, report.age) == ("continue", 3, 9)
    assert "of the evidence for one" in report.text
    assert "9 blocks old" in report.text


def test_small_blocks_and_blocks_of_one_model_are_no_evidence() -> None:
    small = blocks(0.5, 10, rows=9)
    lone = [PairedBlock("day-99", 300, 60, {"auc": 0.5}, {})]
    assert watch([*small, *lone], SCALES).blocks == 0


def test_without_scales_the_first_blocks_give_them_and_are_not_judged() -> None:
    unknown = Scales({}, {}, 0, "none")
    assert watch(blocks(0.1, 3), unknown).harm == 1.0
    assert watch(blocks(0.06, 40), unknown).verdict == "fail"
    verdicts = [watch(blocks(0.0, 28, seed)).verdict for seed in range(40)]
    assert verdicts.count("fail") <= 4


def test_single_models_scatter_more_than_means_of_replicates() -> None:
    assert one_against_one(SCALES, 4).sigma["auc"] == 2 * SCALES.sigma["auc"]
    assert one_against_one(SCALES, 1) == SCALES
