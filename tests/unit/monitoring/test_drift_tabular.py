from typing import Any

import numpy as np
import pytest

from ctrain.monitoring.tabular import MINIMUM, tabular_drift
from ctrain.monitoring.windows import columns_of
from ctrain.records import FeatureDrift
from ctrain.spec.monitoring import Drift

RANDOM = np.random.default_rng(3)


def drift(reference: Any, window: Any, **settings: Any) -> FeatureDrift:
    arrays = [np.asarray(side, dtype=None if len(side) else float) for side in (reference, window)]
    (found,) = tabular_drift({"x": arrays[0]}, {"x": arrays[1]}, Drift(**settings))
    return found


def categories(**shares: int) -> np.ndarray:
    return RANDOM.permutation(np.repeat(list(shares), list(shares.values())))


def test_the_same_distribution_is_no_drift() -> None:
    assert not drift(RANDOM.normal(size=1500), RANDOM.normal(size=700)).drifted
    assert not drift(categories(a=500, b=500), categories(a=255, b=245)).drifted


def test_false_alarms_are_rare() -> None:
    alarms = [drift(RANDOM.normal(size=300), RANDOM.normal(size=300)).drifted for _ in range(100)]
    assert sum(alarms) <= 1


def test_a_shift_is_drift_and_its_size_is_the_effect() -> None:
    found = drift(RANDOM.normal(size=1500), RANDOM.normal(size=700) + 1)
    assert found.drifted
    assert found.effect == pytest.approx(0.38, abs=0.07)  # of two normals one deviation apart


def test_a_small_shift_that_is_certain_is_not_worth_a_warning() -> None:
    found = drift(RANDOM.normal(size=2000), RANDOM.normal(size=2000) + 0.2, p_value=0.1)
    assert found.p_value < 0.01
    assert found.effect < 0.12
    assert not drift(
        RANDOM.normal(size=2000), RANDOM.normal(size=2000) + 0.2, p_value=0.1, minimum_effect=0.2
    ).drifted


def test_a_shift_in_a_narrow_range_of_large_numbers_is_seen() -> None:
    here, there = 1.4e9 + RANDOM.normal(size=500), 1.4e9 + RANDOM.normal(size=500) + 2
    assert drift(here, there).drifted


def test_an_unseen_category_does_not_hide_a_shift_of_the_others() -> None:
    found = drift(categories(a=500, b=500), categories(a=950, b=50, new=1))
    assert found.drifted
    assert found.effect == pytest.approx(0.45, abs=0.02)


def test_a_category_that_only_one_side_has_is_drift_if_it_is_common() -> None:
    assert drift(categories(a=500, b=500), categories(a=250, b=250, new=200)).drifted
    assert drift(categories(a=500, b=500), categories(a=500)).drifted
    assert drift(categories(a=500), categories(b=500)).drifted
    assert not drift(categories(a=500, b=500), categories(a=250, b=250, new=2)).drifted


def test_rare_categories_of_both_sides_are_no_drift() -> None:
    names = np.array([f"id{index}" for index in range(4000)])
    assert not drift(
        np.concatenate([categories(a=500), names[:20]]), np.concatenate([categories(a=500), names[20:40]])
    ).drifted


def test_missing_numbers_are_a_move_of_their_own() -> None:
    here, there = RANDOM.normal(size=500), RANDOM.normal(size=500)
    there[:150] = np.nan
    found = drift(here, there)
    assert found.drifted
    assert found.effect == pytest.approx(0.3)
    here[:150] = np.nan
    assert not drift(here, there).drifted


def test_missing_categories_are_a_move_of_their_own() -> None:
    rows = [{"x": None if index % 3 == 0 else "a"} for index in range(300)]
    window = columns_of(rows, {"x": np.array(["a"])})["x"]
    assert window.tolist()[:3] == ["", "a", "a"]
    found = drift(categories(a=300), window)
    assert found.drifted
    assert found.effect == pytest.approx(1 / 3)
    assert not drift(window, window).drifted


def test_a_feature_that_is_missing_everywhere_is_drift() -> None:
    assert drift(RANDOM.normal(size=500), np.full(500, np.nan)).effect == 1.0
    assert drift(RANDOM.normal(size=500), np.full(500, np.nan)).drifted
    assert not drift(np.full(500, np.nan), np.full(500, np.nan)).drifted


def test_constants_are_no_drift_until_they_change() -> None:
    assert not drift(np.full(500, 3.0), np.full(500, 3.0)).drifted
    assert drift(np.full(500, 3.0), np.full(500, 4.0)).drifted
    assert not drift(categories(a=500), categories(a=500)).drifted


@pytest.mark.parametrize("rows", [0, 3, MINIMUM - 1])
def test_tiny_windows_are_not_tested(rows: int) -> None:
    reference = RANDOM.normal(size=500)
    for window in (np.full(rows, 99.0), np.full(rows, np.nan)):
        assert drift(reference, window) == FeatureDrift("x", 1.0, 0.0, False)
        assert drift(window, reference) == FeatureDrift("x", 1.0, 0.0, False)
    text = np.array(["b"] * rows, dtype=np.str_)
    assert drift(categories(a=500), text) == FeatureDrift("x", 1.0, 0.0, False)


def test_samples_are_bounded_and_the_same_each_time() -> None:
    here, there = RANDOM.normal(size=50_000), RANDOM.normal(size=50_000)
    assert drift(here, there, sample=200) == drift(here, there, sample=200)


def test_the_level_is_shared_by_the_features() -> None:
    window = RANDOM.normal(size=(40, 300))
    reference = RANDOM.normal(size=(40, 300))
    found = tabular_drift(
        {f"x{i}": row for i, row in enumerate(reference)},
        {f"x{i}": row for i, row in enumerate(window)},
        Drift(p_value=0.01, minimum_effect=0.0),
    )
    assert [item.feature for item in found] == [f"x{i}" for i in range(40)]
    assert not any(item.drifted for item in found)


def test_two_tests_of_one_feature_share_its_level() -> None:
    here, there = RANDOM.normal(size=1000), RANDOM.normal(size=1000) + 0.2
    alone = drift(here, there, minimum_effect=0.0).p_value
    with_missing = drift(np.append(here, [np.nan] * 30), np.append(there, [np.nan] * 30)).p_value
    assert with_missing == pytest.approx(alone)  # the smaller of two, doubled, either way
    assert drift(np.full(500, np.nan), np.full(500, np.nan)).p_value == 1.0


def test_the_false_alarms_of_a_feature_with_missing_values_keep_to_the_level() -> None:
    def column() -> Any:
        values = RANDOM.normal(size=300)
        values[RANDOM.random(300) < 0.3] = np.nan
        return values

    alarms = sum(drift(column(), column(), p_value=0.2, minimum_effect=0.0).drifted for _ in range(300))
    assert alarms <= 80  # 60 are expected at the level, 80 is 2.9 standard errors above
