from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctrain.monitoring.diagnosis import Events, Frame, diagnose
from ctrain.monitoring.diagnosis.calibration import compare, log_scores
from ctrain.monitoring.diagnosis.case import ACTIONS
from ctrain.monitoring.diagnosis.inputs import MISSING, distances, read_inputs
from ctrain.monitoring.diagnosis.quality import RECENT
from ctrain.monitoring.diagnosis.relation import MINIMUM_LABELS
from ctrain.monitoring.diagnosis.shift import read_shift
from ctrain.monitoring.diagnosis.verdict import CALIBRATION
from ctrain.records import Diagnosis, from_json, to_json
from tests.datasets import needs_data

ROWS, PAST = 600, 12


def chance(columns: dict[str, npt.NDArray[np.generic]]) -> npt.NDArray[np.float64]:
    """Of the label, by the relation that the streams of these tests follow."""
    offset = np.where(columns["city"] == "north", 1.5, -0.5)
    return 1 / (1 + np.exp(-(2 * columns["size"].astype(float) + offset)))


def stream_window(random: np.random.Generator, rows: int = ROWS) -> Frame:
    columns = {
        "size": np.round(random.normal(random.normal(0, 0.05), 1, rows), 2),
        "price": np.round(random.gamma(2, 20, rows), 1),
        "city": random.choice(["north", "south", "west"], rows, p=[0.3, 0.4, 0.3]),
        "hour": random.integers(0, 24, rows).astype(float),
    }
    labels = (random.random(rows) < chance(columns)).astype(float)
    return Frame(columns, labels, chance(columns))


def stream(seed: int, windows: int = PAST + 1) -> list[Frame]:
    random = np.random.default_rng(seed)
    return [stream_window(random) for _ in range(windows)]


def judge(frames: list[Frame], events: Events | None = None) -> Diagnosis:
    return diagnose(frames[-1], frames[:-1], events or Events(), seed=1)


def changed(frame: Frame, **columns: npt.NDArray[np.generic]) -> Frame:
    """The window with other columns, and the champion's answers to them."""
    new = frame.columns | columns
    return replace(frame, columns=new, scores=chance(new))


def test_a_stream_without_fault_is_diagnosed_as_none_and_asks_for_nothing() -> None:
    found = [judge(stream(seed)) for seed in range(5)]
    assert sum(one.verdict == "none" for one in found) >= 4
    assert not {one.action for one in found} & {"quarantine", "retrain", "recalibrate", "roll_back"}


def test_missing_values_are_data_quality_of_that_feature() -> None:
    *past, window = stream(1)
    price = window.columns["price"].copy()
    price[::4] = np.nan
    found = judge([*past, changed(window, price=price)])
    assert (found.verdict, found.kind, found.subjects) == ("data_quality", "missing", ("price",))
    assert found.action == "quarantine"


def test_missing_text_is_data_quality_too() -> None:
    *past, window = stream(1)
    city = window.columns["city"].copy()
    city[::4] = ""
    found = judge([*past, changed(window, city=city)])
    assert (found.verdict, found.kind, found.subjects) == ("data_quality", "missing", ("city",))


def test_another_unit_is_data_quality_of_that_feature() -> None:
    *past, window = stream(2)
    found = judge([*past, changed(window, price=window.columns["price"] * 0.3048)])
    assert (found.verdict, found.kind, found.subjects) == ("data_quality", "range", ("price",))


@pytest.mark.parametrize(("name", "factor"), [("price", 100.0), ("price", 0.01), ("hour", 10.0)])
def test_numbers_that_come_times_a_power_of_ten_are_named_with_it(name: str, factor: float) -> None:
    *past, window = stream(2)
    found = judge([*past, changed(window, **{name: window.columns[name] * factor})])
    assert (found.verdict, found.kind, found.subjects) == ("data_quality", "scale", (name,))
    assert f"times {factor:g}" in found.reason


def test_a_code_far_from_all_others_is_a_fault_even_in_few_rows() -> None:
    *past, window = stream(3)
    hour = np.where(window.columns["hour"] == 7, 99.0, window.columns["hour"])  # one row in 24
    found = judge([*past, changed(window, hour=hour)])
    assert (found.verdict, found.subjects) == ("data_quality", ("hour",))


def test_a_renamed_category_is_a_new_category() -> None:
    *past, window = stream(3)
    city = np.where(window.columns["city"] == "west", "West", window.columns["city"])
    found = judge([*past, changed(window, city=city)])
    assert (found.verdict, found.kind, found.subjects) == ("data_quality", "new_category", ("city",))


def test_labels_flipped_where_a_feature_comes_in_runs_are_a_changed_relation_and_no_noise() -> None:
    def with_day(frame: Frame) -> Frame:
        day = np.arange(frame.rows) * 7 // frame.rows
        return replace(frame, columns=frame.columns | {"day": day.astype(float)})

    *past, window = map(with_day, stream(9))
    assert window.labels is not None
    part = window.columns["day"] >= 4
    flipped = np.where(part, 1 - window.labels, window.labels)
    found = judge([*past, replace(window, labels=flipped)])
    assert (found.verdict, found.action) == ("concept", "retrain")
    random = np.random.default_rng(9)
    anywhere = np.where(random.random(window.rows) < part.mean() / 2, 1 - window.labels, window.labels)
    assert judge([*past, replace(window, labels=anywhere)]).verdict == "label_noise"


@pytest.mark.parametrize("name", ["size", "city", "hour"])
def test_a_value_that_repeats_is_stuck(name: str) -> None:
    *past, window = stream(4)
    values = window.columns[name].copy()
    values[200:] = values[200]
    found = judge([*past, changed(window, **{name: values})])
    assert (found.verdict, found.kind, found.subjects) == ("data_quality", "stuck", (name,))


def test_inputs_that_moved_further_than_ever_are_a_covariate_shift_and_are_not_retrained_for() -> None:
    random = np.random.default_rng(5)
    *past, _ = stream(5)
    large = stream_window(random, 4 * ROWS)
    kept = np.sort(np.argsort(-(large.columns["size"] + random.normal(0, 1, large.rows)))[:ROWS])
    window = Frame(
        {name: values[kept] for name, values in large.columns.items()}, large.labels[kept], large.scores[kept]
    )
    found = judge([*past, window])
    assert (found.verdict, found.subjects[0], found.action) == ("covariate_shift", "size", "wait")
    known = judge([*past, window], Events(traffic_mix=("size",)))
    assert known.verdict == "traffic_mix"


def inverted(frame: Frame, rows: npt.NDArray[np.bool_]) -> Frame:
    return replace(frame, labels=np.where(rows, 1 - frame.labels, frame.labels))


def test_a_relation_inverted_everywhere_is_a_concept_drift() -> None:
    *past, window = stream(6)
    found = judge([*past, inverted(window, window.columns["hour"] >= 0)])
    assert (found.verdict, found.action) == ("concept", "retrain")


def test_a_relation_inverted_in_a_segment_names_it() -> None:
    *past, window = stream(7)
    found = judge([*past, inverted(window, window.columns["city"] == "west")])
    assert (found.verdict, found.subjects, found.action) == ("concept_local", ("city=west",), "retrain")


@pytest.mark.parametrize("kind", ["symmetric", "lost_positive", "lost_negative"])
def test_flipped_labels_hold_training_and_do_not_start_it(kind: str) -> None:
    *past, window = stream(8)
    flipped = np.random.default_rng(8).random(window.rows) < (0.25 if kind == "symmetric" else 0.4)
    if kind != "symmetric":
        flipped &= window.labels == (1.0 if kind == "lost_positive" else 0.0)
    found = judge([*past, inverted(window, flipped)])
    assert (found.verdict, found.kind, found.action) == ("label_noise", kind, "hold_training")


def test_a_moved_level_asks_for_recalibration() -> None:
    random = np.random.default_rng(9)
    *past, window = stream(9)
    odds = window.scores / (1 - window.scores) * np.exp(-1.5)
    labels = (random.random(window.rows) < odds / (1 + odds)).astype(float)
    found = judge([*past, replace(window, labels=labels)])
    assert (found.verdict, found.action) == ("needs_recalibration", "recalibrate")


def test_a_promoted_version_that_is_worse_than_the_one_before_is_rolled_back() -> None:
    *past, window = stream(10)
    random = np.random.default_rng(10)
    bad = replace(window, scores=random.permutation(window.scores), previous=window.scores)
    found = judge([*past, bad], Events(promoted_windows_ago=0))
    assert (found.verdict, found.action) == ("bad_version", "roll_back")
    assert (
        judge([*past, replace(bad, previous=None)], Events(promoted_windows_ago=0)).verdict == "bad_version"
    )


def test_a_good_version_is_not_rolled_back_for_a_world_that_changed() -> None:
    *past, window = stream(11)
    turned = inverted(window, window.columns["hour"] >= 0)
    shadowed = replace(turned, previous=np.clip(turned.scores + 0.01, 0, 1))
    found = judge([*past, shadowed], Events(promoted_windows_ago=0))
    assert (found.verdict, found.action) == ("concept", "retrain")


def test_a_change_that_came_and_went_before_is_no_reason_to_act() -> None:
    random = np.random.default_rng(12)
    frames = [stream_window(random) for _ in range(PAST + 1)]
    for index in (4, 8, 12):
        frames[index] = changed(frames[index], city=random.choice(["north", "south"], ROWS, p=[0.9, 0.1]))
        labels = (random.random(ROWS) < frames[index].scores).astype(float)
        frames[index] = replace(frames[index], labels=labels)
    assert judge(frames).verdict in ("season", "none")


def test_a_champion_that_has_long_been_behind_is_called_aged_without_an_alarm() -> None:
    frames = [replace(frame, scores=np.full(ROWS, 0.5)) for frame in stream(2)]
    found = judge(frames)
    assert (found.verdict, found.kind, found.action) == ("none", "aged", "none")
    assert judge(stream(2)).kind == ""


def test_events_decide_before_statistics() -> None:
    *past, window = stream(13)
    broken = [*past, changed(window, price=np.full(ROWS, np.nan))]
    assert judge(broken, Events(schema_changes=("price: column is gone",))).verdict == "upstream_schema"
    assert judge(broken, Events(skewed_share=0.2)).verdict == "serving_skew"
    refused = judge(broken, Events(refused_share=0.2, usual_refused_share=0.01))
    assert (refused.verdict, refused.kind) == ("data_quality", "refused")


def test_a_fault_that_began_some_windows_ago_is_found_with_a_gap() -> None:
    frames = stream(21, PAST + 5)
    for index in range(-3, 0):
        frames[index] = changed(frames[index], city=np.full(ROWS, "north"))
    found = diagnose(frames[-1], frames[:-1], Events(), seed=1, gap=2)
    assert (found.verdict, found.kind, found.subjects) == ("data_quality", "stuck", ("city",))
    assert found.evidence[0].windows == RECENT


def test_a_range_that_widens_with_the_season_is_no_fault_but_a_scale_below_it_is() -> None:
    random = np.random.default_rng(22)
    frames = []
    for index in range(PAST + 1):
        frame = stream_window(random)
        frames.append(changed(frame, degrees=np.round(random.normal(60 - 1.5 * index, 5, ROWS), 2)))
    inputs = read_inputs(frames)
    column = inputs.names.index("degrees")
    assert inputs.beyond[-1, column] < 0.01
    assert inputs.novel[-1, column] < inputs.novel[4:-1, column].max() + 0.05
    frames[-1] = changed(frames[-1], degrees=frames[-1].columns["degrees"] * 0.1)
    assert judge(frames).subjects == ("degrees",)


def test_the_code_of_the_view_is_asked_before_the_source_is_blamed() -> None:
    *past, window = stream(2)
    other = changed(window, price=window.columns["price"] * 100)
    found = judge([*past, other], Events(code_changed=True))
    assert (found.verdict, found.kind, found.action) == ("serving_skew", "code", "escalate")
    assert judge([*past, window], Events(code_changed=True)).verdict == "none"


def test_labels_that_have_not_come_are_a_delay_and_hold_training() -> None:
    *past, window = stream(14)
    late = np.where(np.arange(ROWS) % 5 > 0, np.nan, window.labels)
    for labels in (late, None):
        found = judge([*past, replace(window, labels=labels)])
        assert (found.verdict, found.action) == ("label_delay", "hold_training")


@pytest.mark.parametrize("labelled", [0, 3])
def test_a_stream_with_hardly_a_label_says_how_many_would_decide(labelled: int) -> None:
    frames = [
        replace(frame, labels=np.where(np.arange(ROWS) < labelled, frame.labels, np.nan))
        for frame in stream(15)
    ]
    found = judge(frames)
    assert found.verdict == "unknown"
    assert found.would_decide == f"{MINIMUM_LABELS - labelled} more labels"


def test_few_past_windows_say_how_many_more_are_needed() -> None:
    frames = stream(16)
    for count in range(4 + CALIBRATION):
        found = diagnose(frames[-1], frames[:count], Events(), seed=1)
        assert (found.verdict, found.action) == ("unknown", "escalate")
        assert found.would_decide == f"{4 + CALIBRATION - count} more windows"


@pytest.mark.parametrize("rows", [0, 3])
def test_a_window_of_few_rows_is_unknown(rows: int) -> None:
    *past, window = stream(17)
    small = Frame(
        {n: v[:rows] for n, v in window.columns.items()}, window.labels[:rows], window.scores[:rows]
    )
    assert judge([*past, small]).verdict == "unknown"
    empty = [small, *past[1:], window]
    assert judge(empty).verdict in ("none", "unknown")


def test_the_same_arguments_give_the_same_diagnosis_and_it_survives_json() -> None:
    frames = stream(18)
    one, other = (diagnose(frames[-1], frames[:-1], Events(), seed=3, rows=300) for _ in range(2))
    assert one == other
    assert from_json(Diagnosis, to_json(one)) == one


def test_the_inputs_are_left_as_they_are() -> None:
    frames = stream(19)
    before = [frame.columns["price"].copy() for frame in frames]
    judge(frames)
    assert all((a == frame.columns["price"]).all() for a, frame in zip(before, frames, strict=True))


def test_every_verdict_has_one_action() -> None:
    assert set(ACTIONS) == set(Diagnosis.__dataclass_fields__ and _verdicts())


def _verdicts() -> tuple[str, ...]:
    from typing import get_args

    from ctrain.records import DiagnosisVerdict

    return get_args(DiagnosisVerdict)


ODD = st.sampled_from(
    ["constant", "missing", "one_class", "no_labels", "no_answers", "infinite", "unseen", "short"]
)


@settings(max_examples=12, deadline=None)
@given(faults=st.lists(ODD, min_size=1, max_size=4), everywhere=st.booleans(), number=st.booleans())
def test_odd_windows_never_crash_and_never_roll_back(
    faults: list[str], everywhere: bool, number: bool
) -> None:
    random = np.random.default_rng(20)
    frames = [stream_window(random, 150) for _ in range(11)]
    for index in range(len(frames)) if everywhere else [len(frames) - 1]:
        for fault in faults:
            frames[index] = odd(frames[index], fault)
    if number:
        frames = [replace(frame, kind="number") for frame in frames]
    found = judge(frames)
    assert found.action != "roll_back"
    assert found.reason


def odd(frame: Frame, fault: str) -> Frame:
    """A window spoiled in one way."""
    columns, labels, scores = dict(frame.columns), frame.labels, frame.scores
    if fault == "constant":
        columns |= {"size": np.zeros(frame.rows), "city": np.full(frame.rows, "north")}
    if fault == "missing":
        columns |= {"price": np.full(frame.rows, np.nan), "city": np.full(frame.rows, "")}
    if fault == "unseen":
        columns |= {"city": np.array([f"id {i}" for i in range(frame.rows)])}
    if fault == "infinite":
        columns |= {"price": np.full(frame.rows, np.inf)}
    if fault == "one_class" and labels is not None:
        labels = np.ones(len(labels))
    if fault == "no_labels":
        labels = None
    if fault == "no_answers":
        scores = np.full(frame.rows, np.nan)
    if fault == "short":
        columns = {name: values[:3] for name, values in columns.items()}
        labels, scores = None if labels is None else labels[:3], scores[:3]
    return Frame(columns, labels, scores, frame.kind)


def test_a_statistic_counts_beyond_the_past_by_its_margin_only() -> None:
    past = [0.0, 0.1, 0.2, 0.1, 0.0]
    assert not compare("x", np.array([*past, 0.24]), 1.5, 0.01).passed
    assert compare("x", np.array([*past, 0.26]), 1.5, 0.01).passed
    assert not compare("x", np.array([*past, 0.26]), 1.5, 0.5).passed
    assert compare("x", -np.array([*past, 0.26]), 1.5, 0.01, side=-1).passed


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.integers(3, 12), st.integers(1, 8))
def test_log_scores_are_those_of_a_new_window_and_a_member_that_never_moved_is_no_alarm(
    seed: int, windows: int, members: int
) -> None:
    values = np.random.default_rng(seed).gamma(2, 1, (windows, members))
    values[:, 0] = 0.0
    scores = log_scores(values, 0.01)
    assert scores.shape == (members,)
    assert np.isfinite(scores).all()
    assert abs(scores[0]) < 1e-9
    raised = values.copy()
    raised[-1] *= 2
    assert (log_scores(raised, 0.01) >= scores).all()


def test_a_feature_that_jumps_every_fourth_window_is_no_news_when_it_jumps_again() -> None:
    random = np.random.default_rng(3)
    frames = [stream_window(random) for _ in range(17)]
    for index in (0, 4, 8, 12, 16):
        frames[index] = changed(frames[index], size=frames[index].columns["size"] + 1.0)
    shift = read_shift(read_inputs(frames), 0)
    assert not shift.moved
    frames[16] = changed(frames[16], size=frames[16].columns["size"] + 2.0)
    shift = read_shift(read_inputs(frames), 0)
    assert [name for name, _ in shift.moved] == ["size"]


def test_a_count_times_ten_is_out_of_range_although_its_values_are_known() -> None:
    *past, window = stream(7)
    random = np.random.default_rng(7)
    frames = [changed(one, nights=random.geometric(0.4, one.rows) * 1.0) for one in (*past, window)]
    frames[0] = changed(frames[0], nights=np.minimum(frames[0].columns["nights"] ** 3, 60.0))
    frames[-1] = changed(frames[-1], nights=np.minimum(frames[-1].columns["nights"] * 10, 60.0))
    found = judge(frames)
    assert (found.verdict, found.subjects) == ("data_quality", ("nights",))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 0.9))
def test_shares_and_distances_agree_with_exact_ones(seed: int, absent: float) -> None:
    from scipy.stats import ks_2samp

    random = np.random.default_rng(seed)
    one, other = (random.integers(0, 20, 200).astype(float) for _ in range(2))
    one[random.random(200) < absent] = np.nan
    one[0] = 1.0
    frames = [Frame({"x": values}, None, np.zeros(200)) for values in (one, other, one)]
    inputs = read_inputs(frames)
    assert np.isclose(inputs.missing[0, 0], np.isnan(one).mean())
    assert np.isclose(inputs.shares[0, 0, MISSING], np.isnan(one).mean())
    exact = ks_2samp(one[~np.isnan(one)], other).statistic
    assert np.isclose(distances(inputs.shares[0], inputs.shares[1], inputs.text)[0], exact)


@needs_data
def test_faults_on_a_real_stream_are_told_apart() -> None:
    from tests.faults import case

    wanted = {
        "missing": "data_quality", "unit": "data_quality", "stuck": "data_quality",
        "concept_local": "concept_local", "noise_symmetric": "label_noise", "bad_version": "bad_version",
        "good_version": "none",
    }  # fmt: skip
    found = {}
    for fault in wanted:
        made = case("hotel", fault, 32, seed=5)
        found[fault] = diagnose(made.window, made.past, made.events, seed=1).verdict
    assert found == wanted
