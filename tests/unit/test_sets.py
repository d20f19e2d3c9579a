import pytest
from factories import spec

from ctrain.records import RunRequest
from ctrain.training.sets import PlannedSet, planned_sets

DAYS = tuple("abcdefg")


def planned(blocks: tuple[str, ...], **evaluation: int) -> tuple[PlannedSet, ...]:
    asked = spec(evaluation={"blocks": 2, **evaluation})
    request = RunRequest("r-1", "p", "/root", asked.to_json(), "", 0, DAYS, blocks, seed=7)
    return planned_sets(request, asked)


def test_replicates_differ_by_their_seed_alone_and_leave_all_judged_blocks_out() -> None:
    sets = planned(("e", "f", "g"), replicates=3, refit_folds=0)
    assert [(one.name, one.seed) for one in sets] == [
        ("judged-0", 7), ("judged-1", 8), ("judged-2", 9), ("served", 7),
    ]  # fmt: skip
    assert all(one.left_out == ("e", "f", "g") for one in sets[:3])
    assert sets[-1].left_out == ()


@pytest.mark.parametrize("folds", [2, 3, 5, 9])
def test_each_judged_block_is_left_out_by_one_refit(folds: int) -> None:
    blocks = DAYS[2:]
    refits = [one for one in planned(blocks, refit_folds=folds) if one.name.startswith("refit-")]
    assert len(refits) == min(folds, len(blocks))
    assert tuple(block for one in refits for block in one.left_out) == blocks
    assert {one.seed for one in refits} == {7}


def test_a_refit_without_all_judged_blocks_is_left_out_since_it_is_a_judged_model() -> None:
    for blocks, folds in ((DAYS[2:], 1), (("g",), 2), ((), 2)):
        assert [one.name for one in planned(blocks, replicates=1, refit_folds=folds)] == [
            "judged-0",
            "served",
        ]
