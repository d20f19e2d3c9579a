import io
import json
from typing import Any

import numpy as np
import pytest
from streams import CHANGES, Stream, begun, columns, next_summary

from ctrain.monitoring.drift import QUARANTINE, DriftMonitor
from ctrain.monitoring.profile import CONTEXTS, Entry, context_of, extended, shifts
from ctrain.monitoring.summary import Layout, Summary, summarise
from ctrain.records import DriftReport
from ctrain.spec.monitoring import Drift, Monitoring

HOUR, DAY = 3600.0, 86400.0


def follow(stream: Stream, monitor: DriftMonitor, windows: int, change: Any = None) -> list[DriftReport]:
    """Reports of the next windows; hours of the change count from the first one."""
    begin = stream.hour
    later = None if change is None else lambda x, g, t: change(x, g, t - begin)
    return [monitor.update(*next_summary(stream, monitor.layout, later)) for _ in range(windows)]


def first_alarm(reports: list[DriftReport]) -> int | None:
    return next((number for number, report in enumerate(reports, 1) if report.alarm), None)


@pytest.mark.parametrize(
    "stream",
    [
        Stream(1, rows=200, season=0.0, wander=0.0),
        Stream(2, rows=200),
        Stream(3, rows=200, memory=0.8, wander=0.1),
        Stream(4, growth=3.0, rows=200),
        Stream(5, features=40, rows=60),
    ],
    ids=["iid", "seasonal", "autocorrelated", "growing", "many_features"],
)
def test_a_stream_without_drift_is_calm(stream: Stream) -> None:
    alarms = sum(report.alarm for report in follow(stream, begun(stream), 150))
    assert alarms <= 1  # the budget expects 0.15; two or more come by chance once in a hundred streams


@pytest.mark.parametrize(("kind", "latest"), [("sudden", 10), ("local", 8), ("scale", 8), ("gradual", 130)])
def test_drift_is_found_soon_and_named(kind: str, latest: int) -> None:
    stream = Stream(11)
    monitor = begun(stream)
    assert not any(report.alarm for report in follow(stream, monitor, 20))
    reports = follow(stream, monitor, latest, CHANGES[kind])
    alarm = first_alarm(reports)
    assert alarm is not None
    report = reports[alarm - 1]
    assert report.state == "drift"
    assert report.evidence >= report.threshold
    wanted = ("scale" if kind == "scale" else "mean", "g=g1" if kind == "local" else "", "up")
    named = [cause for cause in report.causes if (cause.what, cause.segment, cause.direction) == wanted]
    assert {cause.feature for cause in named} <= {"x0", "x1", "x2"}
    assert max(cause.effect or 0.0 for cause in named) > 0.1
    assert sum(cause.share for cause in report.causes) <= 1 + 1e-9


def test_evidence_warns_before_it_alarms_and_recovery_is_said_once() -> None:
    stream = Stream(12)
    monitor = begun(stream)
    states = [report.state for report in follow(stream, monitor, 130, CHANGES["gradual"])]
    assert states[-1] == "drift"
    began = len(states) - states[::-1].index("warning")
    assert set(states[began:]) == {"drift"}
    after = follow(stream, monitor, 80)
    assert [report.state for report in after].count("recovered") == 1
    assert after[-1].state == "steady"
    assert not any(report.alarm for report in after)


def test_a_drift_that_goes_on_is_one_alarm() -> None:
    stream = Stream(13)
    reports = follow(stream, begun(stream), 40, CHANGES["sudden"])
    assert sum(report.alarm for report in reports) == 1


def test_a_shift_that_is_certain_but_tiny_is_no_alarm() -> None:
    def slightly(x: Any, g: Any, t: int) -> Any:
        return x + 0.05

    def quiet() -> Stream:
        return Stream(14, rows=6000, wander=0.002, features=3, season=0.0)

    stream = quiet()
    monitor = begun(stream, past=170)
    assert not any(report.alarm for report in follow(stream, monitor, 20, slightly))
    stream = quiet()
    strict = begun(stream, past=170, spec=Drift(min_effect=0.02))
    assert first_alarm(follow(stream, strict, 20, slightly)) is not None


def test_a_restart_changes_no_bit_of_the_evidence() -> None:
    stream = Stream(15)
    monitor = begun(stream, past=200)
    follow(stream, monitor, 60)
    about, arrays = monitor.to_state()
    file = io.BytesIO()
    np.savez(file, **arrays)
    file.seek(0)
    loaded = dict(np.load(file, allow_pickle=False))
    again = DriftMonitor.from_state(Drift(), json.loads(json.dumps(about)), loaded)
    windows = [next_summary(stream, monitor.layout, CHANGES["sudden"]) for _ in range(60)]
    assert [monitor.update(*one) for one in windows] == [again.update(*one) for one in windows]


def test_a_restart_while_calibrating_goes_on_where_it_was() -> None:
    stream, spec = Stream(16, hour=96), Drift(calibration_windows=60)
    reference = columns(*stream.step()[1:])
    monitor = DriftMonitor.begin(Layout.fit(*reference), spec)
    states = [report.state for report in follow(stream, monitor, 30)]
    monitor = DriftMonitor.from_state(spec, *monitor.to_state())
    states += [report.state for report in follow(stream, monitor, 40)]
    assert states[:60] == ["calibrating"] * 60
    assert monitor.checks > 0


def test_state_is_bounded_whatever_the_streams_length() -> None:
    features, segments = 200, 99
    random = np.random.default_rng(1)
    reference = {f"x{number}": random.normal(size=2000) for number in range(features)}
    key = {"k": np.array([f"s{number % segments}" for number in range(2000)])}
    layout = Layout.fit(reference, key, segment_values=segments)
    assert len(layout.segment_names) == 100
    monitor = DriftMonitor.begin(layout, Drift(calibration_windows=100))
    base = summarise(layout, reference, key)
    for number in range(400):
        jitter = base.values * (1 + 0.01 * random.random(len(base.values)))
        monitor.update(context_of(number * HOUR, (number + 1) * HOUR), Summary(layout, jitter))
    calibration = monitor._calibration
    assert calibration is not None
    for _ in range(1200 - len(calibration.residuals_NC)):  # as a year would fill it
        calibration = calibration.add(layout, calibration.residuals_NC[0].astype(float))
    monitor._calibration = calibration
    _, arrays = monitor.to_state()
    assert len(arrays["waiting_values"]) == QUARANTINE
    assert len(monitor._profile.entries) == 48
    assert sum(array.nbytes for array in arrays.values()) <= 50e6


def test_contexts_are_bounded() -> None:
    stream = Stream(17, rows=60, features=2)
    monitor = begun(stream, past=200)
    for number in range(3 * CONTEXTS):
        monitor.update(f"context {number}", next_summary(stream, monitor.layout)[1])
    assert len(monitor._profile.entries) <= CONTEXTS


@pytest.mark.parametrize("rows", [0, 3])
def test_tiny_windows_are_named_and_change_nothing(rows: int) -> None:
    stream = Stream(18)
    monitor = begun(stream, past=200)
    before = monitor.to_state()
    values, segments = np.full((rows, 8), 1e9), np.zeros(rows, dtype=int)
    report = monitor.update("hour=0 weekend=0", summarise(monitor.layout, *columns(values, segments)))
    assert (report.state, report.alarm, report.rows) == ("not_enough_rows", False, rows)
    assert before[0] == monitor.to_state()[0]


def test_all_missing_and_constant_columns_are_no_alarm_until_they_change() -> None:
    random = np.random.default_rng(2)

    def window(missing: float = np.nan, constant: float = 7.0) -> dict[str, Any]:
        x = random.normal(size=100)
        return {"x": x, "missing": np.full(100, missing), "constant": np.full(100, constant)}

    layout = Layout.fit(window())
    past = [("all", summarise(layout, window())) for _ in range(200)]
    monitor = DriftMonitor.begin(layout, Drift(), past)
    calm = [monitor.update("all", summarise(layout, window())) for _ in range(60)]
    assert {report.state for report in calm} == {"steady"}
    moved = [monitor.update("all", summarise(layout, window(constant=7.1))) for _ in range(8)]
    assert any(report.alarm for report in moved)
    monitor = DriftMonitor.begin(layout, Drift(), past)
    filled = [monitor.update("all", summarise(layout, window(missing=1.0))) for _ in range(8)]
    assert any(report.alarm for report in filled)
    alarm = filled[(first_alarm(filled) or 1) - 1]
    assert (alarm.causes[0].feature, alarm.causes[0].what, alarm.causes[0].direction) == (
        "missing",
        "missing",
        "down",
    )


def test_a_feature_that_is_lost_is_found_by_its_missing_values() -> None:
    stream = Stream(19)
    monitor = begun(stream, past=200)

    def lost(x: Any, g: Any, t: int) -> Any:
        x[:, 2] = np.nan
        return x

    reports = follow(stream, monitor, 8, lost)
    alarm = first_alarm(reports)
    assert alarm is not None
    assert (reports[alarm - 1].causes[0].feature, reports[alarm - 1].causes[0].what) == ("x2", "missing")


def test_a_window_of_drift_does_not_become_its_own_reference() -> None:
    stream = Stream(20, features=3)
    monitor = begun(stream, past=200)
    before = {name: entry.visits for name, entry in monitor._profile.entries.items()}
    follow(stream, monitor, 5, CHANGES["sudden"])
    follow(stream, monitor, QUARANTINE - 5, CHANGES["sudden"])
    assert {name: entry.visits for name, entry in monitor._profile.entries.items()} == before
    drifted = sum(one.drift for one in monitor._waiting)
    assert drifted > 30
    follow(stream, monitor, QUARANTINE)
    after = sum(entry.visits for entry in monitor._profile.entries.values())
    assert after == sum(before.values()) + QUARANTINE - drifted


def test_a_gradual_drift_is_judged_against_the_profile_before_it() -> None:
    stream = Stream(21, features=3)
    monitor = begun(stream, past=200)
    name = context_of(stream.hour * HOUR, (stream.hour + 1) * HOUR)
    before = monitor._profile.entries[name].visits
    follow(stream, monitor, QUARANTINE, CHANGES["gradual"])
    assert monitor._profile.entries[name].visits == before


def test_a_promotion_keeps_what_is_known_of_the_noise_and_drops_the_evidence() -> None:
    stream = Stream(22)
    monitor = begun(stream, past=200)
    follow(stream, monitor, 12, CHANGES["sudden"])
    assert monitor.state == "drift"
    renewed = DriftMonitor.begin(monitor.layout, Drift(), previous=monitor)
    assert (renewed.state, renewed.checks) == ("steady", 0)
    assert follow(stream, renewed, 1)[0].state == "steady"
    other = Layout.fit(*columns(*stream.step()[1:]))
    fresh = DriftMonitor.begin(other, Drift(), previous=monitor)
    assert follow(stream, fresh, 1)[0].state == "calibrating"


def test_losses_are_watched_by_the_same_mechanism() -> None:
    random = np.random.default_rng(3)
    layout = Layout.fit({"loss": random.exponential(size=3000)}, kind="concept")
    past = [("all", summarise(layout, {"loss": random.exponential(size=200)})) for _ in range(200)]
    monitor = DriftMonitor.begin(layout, Drift(), past)
    calm = [
        monitor.update("all", summarise(layout, {"loss": random.exponential(size=200)})) for _ in range(50)
    ]
    worse = [
        monitor.update("all", summarise(layout, {"loss": 1.5 * random.exponential(size=200)}))
        for _ in range(8)
    ]
    assert not any(report.alarm for report in calm)
    alarm = first_alarm(worse)
    assert alarm is not None
    assert (worse[alarm - 1].kind, worse[alarm - 1].causes[0].feature) == ("concept", "loss")


def test_a_chosen_statistic_is_calibrated_on_the_stream() -> None:
    random = np.random.default_rng(4)
    layout = Layout.fit({"x": random.normal(size=500)}, statistics=("mmd",))

    def window(statistic: float) -> Summary:
        return summarise(layout, {"x": random.normal(size=100)}, statistics={"mmd": statistic})

    past = [("all", window(5.0 + random.normal())) for _ in range(200)]
    monitor = DriftMonitor.begin(layout, Drift(), past)
    assert not any(monitor.update("all", window(5.0 + random.normal())).alarm for _ in range(60))
    assert not any(monitor.update("all", window(float("nan"))).alarm for _ in range(5))
    moved = [monitor.update("all", window(9.0 + random.normal())) for _ in range(8)]
    alarm = first_alarm(moved)
    assert alarm is not None
    assert (moved[alarm - 1].causes[0].feature, moved[alarm - 1].causes[0].effect) == ("mmd", None)


def test_a_gross_error_is_found_soon_even_where_windows_depend_on_each_other() -> None:
    stream = Stream(23, memory=0.99, wander=0.5)
    monitor = begun(stream, past=300)
    assert max(monitor._calibration.spans_K) > 1 if monitor._calibration else False

    def thousandfold(x: Any, g: Any, t: int) -> Any:
        x[:, 0] = x[:, 0] * 1000 + 5000
        return x

    alarm = first_alarm(follow(stream, monitor, 6, thousandfold))
    assert alarm is not None


def test_contexts_name_hours_weekdays_or_nothing() -> None:
    saturday = 2 * DAY  # 3 January 1970
    assert context_of(saturday + 5 * HOUR, saturday + 6 * HOUR) == "hour=5 weekend=1"
    assert context_of(5 * HOUR, 6 * HOUR) == "hour=5 weekend=0"
    assert context_of(6 * HOUR, 12 * HOUR) == "hour=6 weekend=0"
    assert context_of(saturday, saturday + DAY) == "weekday=5"
    assert context_of(0.0, 7 * DAY) == "all"


def test_a_clock_that_jumped_back_has_a_context_and_is_no_alarm() -> None:
    stream = Stream(24)
    monitor = begun(stream, past=400)
    for jump in (5, 30, 100):
        stream.hour -= jump
        assert not any(report.alarm for report in follow(stream, monitor, 15))
    assert context_of(10 * HOUR, 2 * HOUR) == "hour=10 weekend=0"


def test_a_context_that_was_never_seen_is_learned_and_not_judged() -> None:
    stream = Stream(25)
    monitor = begun(stream, past=200)
    report = monitor.update("a holiday", next_summary(stream, monitor.layout)[1])
    assert report.state == "calibrating"
    assert "a holiday" in report.reason


def test_the_budget_is_written_in_checks_or_in_days() -> None:
    assert Drift().checks(3600) == 1000
    assert Drift.model_validate({"one_false_alarm_in": 500}).checks(3600) == 500
    assert Drift.model_validate({"one_false_alarm_in": "60d"}).checks(3600) == 1440
    with pytest.raises(ValueError, match="holds 10 windows"):
        Monitoring.model_validate({"window": "1h", "drift": {"one_false_alarm_in": "10h"}})
    with pytest.raises(ValueError, match="named twice"):
        Drift.model_validate({"detectors": [{"type": "ks"}, {"type": "ks"}]})
    assert (
        Drift.model_validate(Drift.model_validate({"one_false_alarm_in": "60d"}).model_dump()).checks(3600)
        == 1440
    )


def test_names_of_categories_are_judged_by_their_shares_and_by_no_mean() -> None:
    random = np.random.default_rng(6)
    names, flags = np.array(list("abcdef")), np.array(["no", "yes"])

    def window(chances: Any, flagged: float) -> Summary:
        drawn = {"name": names[random.choice(6, 300, p=chances)]}
        drawn["flag"] = flags[(random.random(300) < flagged).astype(int)]
        return summarise(layout, drawn | {"number": random.normal(size=300)}, {"name": drawn["name"]})

    usual = np.array([0.4, 0.25, 0.15, 0.1, 0.06, 0.04])
    layout = Layout.fit(
        {
            "name": np.repeat(names, [400, 250, 150, 100, 60, 40]),
            "flag": np.repeat(flags, [800, 200]),
            "number": random.normal(size=1000),
        },
        {"name": np.repeat(names, [400, 250, 150, 100, 60, 40])},
    )
    past = [("all", window(usual, 0.2)) for _ in range(100)]
    entry = Entry(np.sum([extended(layout, one.values) for _, one in past], axis=0), 100.0)
    found = shifts(layout, extended(layout, window(usual, 0.2).values), entry).sizes_D.reshape(-1)
    mean, scale, shape = ~np.isnan(found[:9].reshape(3, 3))  # of name, flag, number
    assert mean.tolist() == [False, True, True]
    assert scale.tolist() == [False, False, True]
    assert shape.tolist() == [True, False, True]
    monitor = DriftMonitor.begin(layout, Drift(calibration_windows=100), past)
    assert not any(monitor.update("all", window(usual, 0.2)).alarm for _ in range(30))
    for change in ((usual[[1, 0, 2, 3, 4, 5]], 0.2), (usual, 0.4)):
        fresh = DriftMonitor.begin(layout, Drift(calibration_windows=100), past)
        reports = [fresh.update("all", window(*change)) for _ in range(10)]
        named = reports[(first_alarm(reports) or 0) - 1].causes[0]
        assert first_alarm(reports) is not None
        assert (named.feature, named.what) in {("name", "shape"), ("", "share"), ("flag", "mean")}


def test_a_longer_budget_asks_for_more_evidence() -> None:
    stream = Stream(26)
    reports = follow(stream, begun(stream, past=200, checks=5000), 1)
    assert (reports[0].threshold, reports[0].budget) == (5000, "at most one false alarm in 5000 checks")
