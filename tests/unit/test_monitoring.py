import json
import subprocess
import sys
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from factories import spec

from ctrain.monitoring.drift import MINIMUM, tabular_drift
from ctrain.monitoring.windows import columns_of, count_unmatched, judge_window
from ctrain.records import FeatureDrift, WindowRequest
from ctrain.serving.ids import PredictionIds
from ctrain.serving.labels import LABELS
from ctrain.serving.prediction_log import SCHEMA
from ctrain.spec.monitoring import Drift

DAY = 86400.0
END = 100 * DAY
START = END - 3600.0
HORIZON = 30 * DAY
MATURES = 600.0
IDS = PredictionIds("p", "replica")


def answer(at: float, value: float = 0.9, version: str = "champion", **features: Any) -> dict[str, Any]:
    return {
        "prediction_id": IDS.new(at), "time": at, "replica": "replica", "key": None, "version": version,
        "label": "v1", "slot": "champion", "rollout": "", "split": 0.0, "value": value, "threshold": 0.5,
        "latency": 0.01, "features": json.dumps(features),
    }  # fmt: skip


def log(answers: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(answers, schema=SCHEMA)


def labels(pairs: list[tuple[str, float]], came: float = END) -> pa.Table:
    rows = [
        {"prediction_id": name, "value": value, "first_at": came, "at": came, "corrections": 0}
        for name, value in pairs
    ]
    return pa.Table.from_pylist(rows, schema=LABELS)


def judge(answers: list[dict[str, Any]], truth: pa.Table, reference: dict[str, Any] | None = None):
    wanted = spec(
        label={"name": "y", "matures_after": MATURES, "horizon": HORIZON}, monitoring={"minimum_rows": 10}
    )
    request = WindowRequest("k", "p", "/root", wanted.to_json(), "champion", START, END, END)
    return judge_window(request, wanted, log(answers), truth, reference or {})


def test_a_window_without_answers_has_no_numbers() -> None:
    report = judge([], labels([]))
    assert (report.state, report.rows, report.labelled) == ("not_enough_rows", 0, 0)
    assert (report.metrics, report.latency, report.drift) == ({}, {}, ())
    assert (report.pending_labels, report.orphan_labels) == (0, 0)


def test_rows_are_of_the_window_and_metrics_of_the_horizon() -> None:
    old = [answer(START - DAY, value) for value in (0.9, 0.1)]
    new = [answer(START + 1 + i) for i in range(12)]
    report = judge([*old, *new], labels([(old[0]["prediction_id"], 1.0), (old[1]["prediction_id"], 0.0)]))
    assert (report.state, report.rows, report.labelled) == ("judged", 12, 2)
    assert report.metrics["auc"] == 1.0
    assert report.latency == pytest.approx({"p50": 0.01, "p90": 0.01, "p99": 0.01})


def test_only_mature_answers_of_the_champion_are_scored() -> None:
    ripe, other = answer(END - MATURES - 1), answer(END - MATURES - 1, version="challenger")
    young = answer(END - MATURES + 1)
    truth = labels([(item["prediction_id"], 1.0) for item in (ripe, other, young)])
    report = judge([ripe, other, young], truth)
    assert report.labelled == 1
    assert report.pending_labels == 0  # a label that came early is no longer waited for
    assert report.orphan_labels == 0


def test_answers_that_carry_the_event_time_mature_by_the_watermark_and_not_by_the_clock() -> None:
    # The watermark of `judge` is END: day 100 after 1970.
    landed = answer(END - DAY, t="1970-04-10T12:00:00")
    ahead = answer(END - DAY, t="1970-04-12T12:00:00+00:00")
    truth = labels([(item["prediction_id"], 1.0) for item in (landed, ahead)])
    assert judge([landed, ahead], truth).labelled == 1


def test_an_answer_without_a_label_is_pending() -> None:
    answers = [answer(END - DAY), answer(END - 5)]
    assert judge(answers, labels([])).pending_labels == 2
    assert judge(answers, labels([(answers[0]["prediction_id"], 1.0)])).pending_labels == 1


def test_a_label_whose_answer_was_lost_is_an_orphan_for_a_horizon() -> None:
    def orphans(at: float, came: float = END - 1) -> int:
        return judge([answer(END - 5)], labels([(IDS.new(at), 1.0)], came)).orphan_labels

    assert orphans(END - 10) == 1
    assert orphans(END - HORIZON + 1) == 1
    assert orphans(END - HORIZON - 1) == 0  # however late it came
    assert orphans(END + 1) == 0  # a later window's


def test_a_label_under_no_prediction_id_counts_by_the_time_it_came() -> None:
    assert judge([], labels([("nonsense", 1.0)], came=END - 5)).orphan_labels == 1
    assert judge([], labels([("nonsense", 1.0)], came=END - HORIZON - 5)).orphan_labels == 0


def test_an_answer_at_the_windows_end_leaves_no_orphan() -> None:
    late = answer(END + 0.0004)  # its id says END
    early = answer(END - HORIZON + 0.0004)
    truth = labels([(late["prediction_id"], 1.0), (early["prediction_id"], 1.0)])
    assert count_unmatched(log([early]), truth, END - HORIZON, END) == (0, 0)


# --- drift --------------------------------------------------------------------------------------

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


def test_drift_is_judged_on_the_windows_rows_alone() -> None:
    reference = {"size": RANDOM.normal(size=500), "kind": categories(a=250, b=250)}
    old = [answer(START - 60, size=99.0, kind="z") for _ in range(300)]
    sizes, kinds = RANDOM.normal(size=200), categories(a=100, b=100)
    new = [answer(START + 60, size=float(s), kind=str(k)) for s, k in zip(sizes, kinds, strict=True)]
    assert [item.drifted for item in judge([*old, *new], labels([]), reference).drift] == [False, False]
    moved = [answer(START + 60, size=float(size) + 2, kind=None) for size in sizes]
    assert [item.drifted for item in judge([*old, *moved], labels([]), reference).drift] == [True, True]


def test_columns_keep_their_kind_without_rows() -> None:
    like = {"kind": np.array(["a"]), "size": np.array([1.0])}
    empty = columns_of([], like)
    assert (empty["kind"].dtype.kind, empty["size"].dtype.kind) == ("U", "f")
    one = columns_of([{"size": True}], like)
    assert (one["kind"].tolist(), one["size"].tolist()) == ([""], [1.0])


def test_alibi_detect_is_loaded_only_when_drift_is_tested() -> None:
    code = "import sys, ctrain.monitoring.windows; print({'alibi_detect', 'torch', 'ray'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
