import itertools
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from factories import spec

from ctrain.errors import MissingArtifactError
from ctrain.features import Column
from ctrain.monitoring.monitors import Monitors
from ctrain.monitoring.rows import Rows, columns_of
from ctrain.monitoring.sample import Sample
from ctrain.monitoring.windows import forget, judge_window
from ctrain.records import WindowReport, WindowRequest
from ctrain.serving.ids import PredictionIds
from ctrain.serving.labels import LabelStore, read_labels
from ctrain.serving.prediction_log import Answer, PredictionLog, read_log

DAY, HOUR = 86400.0, 3600.0
END = 100 * DAY
START = END - HOUR
HORIZON = 30 * DAY
MATURES = 600.0
IDS = PredictionIds("p", "replica")
NUMBERS = itertools.count()


class Logs:
    """Hand-made logs of a pipeline, judged window by window."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.champion = folder, "v7"
        self.labels = LabelStore(folder, HORIZON)
        self.spec = spec(
            label={"name": "y", "matures_after": MATURES, "horizon": HORIZON},
            monitoring={"minimum_rows": 10},
        )

    def log(self, *answers: Answer, replica: str = "r1") -> None:
        """Write answers as a replica does."""
        if answers:
            clock = answers[0].time
            log = PredictionLog(self.folder, f"{replica}{next(NUMBERS)}", flush=60, clock=lambda: clock)
            for one in answers:
                log.append(one)
            log.close()
            self.age(answers[-1].time)

    def age(self, at: float) -> None:
        newest = max((self.folder / "predictions").iterdir(), key=lambda file: file.stat().st_ctime_ns)
        os.utime(newest, (at, at))

    def label(self, *answers: Answer, value: float = 1.0, came: float = END - 1) -> None:
        self.labels.put([(one.prediction_id, value) for one in answers], now=came)

    def judge(
        self,
        start: float = START,
        end: float = END,
        watermark: float = END,
        reference: Any = None,
    ) -> WindowReport:
        """Summarise one window."""
        request = WindowRequest("k", "p", "/root", self.spec.to_json(), self.champion, start, end, watermark)
        return judge_window(request, self.spec, self.folder, reference or Days(), no_version)


def no_version(version: str) -> Any:
    """A batch path for logs that are hand-made: nothing of their versions is stored."""
    raise MissingArtifactError(version)


@pytest.fixture
def logs(tmp_path: Path) -> Logs:
    return Logs(tmp_path)


def answer(at: float, value: float = 0.9, slot: str = "champion", **features: Any) -> Answer:
    return Answer(IDS.new(at), at, None, "v7", "v7", slot, "", 0.0, value, 0.5, 0.01, features)


def test_a_window_without_answers_has_no_numbers(logs: Logs) -> None:
    report = logs.judge()
    assert (report.state, report.rows, report.labelled) == ("not_enough_rows", 0, 0)
    assert (report.metrics, report.latency, report.drift) == ({}, {}, ())
    assert (report.pending_labels, report.orphan_labels) == (0, 0)
    assert report.skew is None


def test_rows_are_of_the_window_and_metrics_of_what_became_ready_in_it(logs: Logs) -> None:
    old = [answer(START - DAY, value) for value in (0.9, 0.1)]
    logs.log(*old)
    logs.judge(START - DAY - HOUR, START)
    logs.log(*(answer(START + 1 + i) for i in range(12)))
    logs.label(old[0], value=1.0)
    logs.label(old[1], value=0.0)
    report = logs.judge()
    assert (report.state, report.rows, report.labelled) == ("judged", 12, 2)
    assert report.metrics["auc"] == 1.0
    assert report.latency == pytest.approx({"p50": 0.01, "p90": 0.01, "p99": 0.01})


def test_metrics_do_not_pool_the_windows_before(logs: Logs) -> None:
    good = [answer(START - HOUR + i, 0.9) for i in range(20)]
    bad = [answer(START + i, 0.1) for i in range(20)]
    logs.log(*good, *bad)
    logs.label(*good, came=START - 1)
    assert logs.judge(START - HOUR, START).metrics["brier"] == pytest.approx(0.01)
    logs.label(*bad, came=END - 1)
    report = logs.judge()
    assert report.labelled == 20
    assert report.metrics["brier"] == pytest.approx(0.81)


def test_only_mature_answers_of_the_champion_are_scored(logs: Logs) -> None:
    ripe, other = answer(END - MATURES - 1), answer(END - MATURES - 1, slot="challenger")
    young = answer(END - MATURES + 1)
    logs.log(ripe, other, young)
    logs.label(ripe, other, young)
    report = logs.judge()
    assert (report.labelled, report.pending_labels, report.orphan_labels) == (1, 0, 0)
    assert logs.judge(END, END + HOUR).labelled == 1  # the young one, with the label that came before


def test_answers_of_a_champion_that_was_replaced_before_their_labels_came_count(logs: Logs) -> None:
    earlier = answer(START - DAY)._replace(version="v6", label="v6")
    logs.log(earlier)
    logs.judge(START - HOUR, START)
    logs.label(earlier)
    assert logs.judge().labelled == 1


def test_answers_that_carry_the_event_time_mature_by_the_watermark_and_not_by_the_clock(logs: Logs) -> None:
    landed = answer(END - DAY, t="1970-04-10T12:00:00")  # END is day 100 after 1970
    ahead = answer(END - DAY, t="1970-04-12T12:00:00+00:00")
    logs.log(landed, ahead)
    logs.label(landed, ahead)
    assert logs.judge().labelled == 1
    assert logs.judge(END, END + HOUR, watermark=END).labelled == 0
    assert logs.judge(END + HOUR, END + 2 * HOUR, watermark=END + 3 * DAY).labelled == 1


def test_a_label_that_came_long_after_its_answer_matured_counts_when_it_comes(logs: Logs) -> None:
    old = answer(START - 20 * DAY)
    logs.log(old)
    report = logs.judge(START - HOUR, START)
    assert (report.labelled, report.pending_labels) == (0, 1)
    logs.label(old)
    report = logs.judge()
    assert (report.labelled, report.pending_labels) == (1, 0)


def test_a_label_that_came_after_the_windows_end_waits_for_the_next_window(logs: Logs) -> None:
    one = answer(START + 1)
    logs.log(one)
    logs.label(one, came=END)
    assert logs.judge().labelled == 0
    assert logs.judge(END, END + HOUR).labelled == 1


def test_every_labelled_answer_counts_in_exactly_one_window_whatever_fails_in_between(logs: Logs) -> None:
    random, counted, failed = np.random.default_rng(5), 0, {3, 7}
    answers = []
    for number in range(12):
        start = START + number * HOUR
        for at in np.sort(start + random.uniform(0, HOUR, size=40)):
            moment = datetime.fromtimestamp(float(at), UTC).isoformat()
            answers.append(answer(float(at), **({"t": moment} if random.random() < 0.5 else {})))
        logs.log(*answers[-40:])
    for one in answers:
        logs.label(one, came=one.time + float(random.uniform(0, 4 * HOUR)))
    for number in range(20):
        start, end = START + number * HOUR, START + (number + 1) * HOUR
        if number in failed:
            continue
        report = logs.judge(start - HOUR * (number - 1 in failed), end, watermark=end - 2 * HOUR)
        again = logs.judge(start - HOUR * (number - 1 in failed), end, watermark=end - 2 * HOUR)
        assert again == report
        counted += report.labelled
    assert counted == len(answers)


def test_a_window_that_fails_at_its_end_leaves_its_answers_to_the_next_one(logs: Logs) -> None:
    class Broken(Days):
        def landed(self) -> Iterator[Rows]:
            raise OSError("the reference cannot be read")

    answers = [answer(START + i) for i in range(12)]
    logs.log(*answers)
    logs.label(*answers)
    request = WindowRequest("k", "p", "/root", logs.spec.to_json(), "v7", START, END, END)
    with pytest.raises(OSError, match="reference"):
        judge_window(request, logs.spec, logs.folder, Broken(), no_version)
    assert logs.judge(END, END + HOUR).labelled == 12


def test_what_was_scored_is_not_scored_again_when_the_spec_waits_longer(logs: Logs) -> None:
    one = answer(END - MATURES - 1)
    logs.log(one)
    logs.label(one)
    assert logs.judge().labelled == 1
    logs.spec = spec(label={"name": "y", "matures_after": 2 * HOUR, "horizon": HORIZON})
    assert [logs.judge(END + n * HOUR, END + (n + 1) * HOUR).labelled for n in range(4)] == [0, 0, 0, 0]


def test_a_mature_answer_without_a_label_is_pending_in_the_window_it_matured_in(logs: Logs) -> None:
    answers = [answer(END - DAY), answer(END - 5)]
    logs.log(*answers)
    assert logs.judge().pending_labels == 1
    assert logs.judge(END, END + HOUR).pending_labels == 1
    assert logs.judge(END + HOUR, END + 2 * HOUR).pending_labels == 0


def test_a_label_whose_answer_was_lost_is_an_orphan_of_the_window_it_came_in(logs: Logs) -> None:
    logs.log(answer(END - 5))
    logs.label(answer(END - 10), answer(END - DAY))
    assert logs.judge().orphan_labels == 2
    assert logs.judge(END, END + HOUR).orphan_labels == 0


def test_rows_of_one_request_count_once_in_the_latency(logs: Logs) -> None:
    single = [answer(START + i) for i in range(30)]
    slow = [answer(START + 100)._replace(latency=1.0) for _ in range(3000)]
    logs.log(*single, *slow)
    report = logs.judge()
    assert report.rows == 3030
    assert report.latency["p50"] == pytest.approx(0.01)
    assert report.latency["p90"] == pytest.approx(0.01)


def test_the_log_of_earlier_windows_is_not_read_again(logs: Logs) -> None:
    logs.log(*(answer(START - HOUR + i) for i in range(20)))
    logs.judge(START - HOUR, START)
    (file,) = (logs.folder / "predictions").iterdir()
    file.write_bytes(b"no longer readable")
    later = [answer(START + i) for i in range(12)]
    logs.log(*later)
    logs.label(*later)
    assert logs.judge().labelled == 12


def test_what_no_label_reaches_any_more_is_deleted_and_the_rest_stays(logs: Logs) -> None:
    old, kept = answer(END - 40 * DAY), answer(END - 20 * DAY)
    for one in (old, kept):
        logs.log(one)
        logs.label(one, came=one.time + 60)
        logs.judge(one.time - 1, one.time + HOUR)
    forget(logs.folder, END, HORIZON)
    assert read_log(logs.folder, 0, 9e9)["prediction_id"].to_pylist() == [kept.prediction_id]
    assert read_labels(logs.folder)["prediction_id"].to_pylist() == [kept.prediction_id]
    with closing(sqlite3.connect(logs.folder / "scores.db")) as scores:
        assert scores.execute("select prediction_id from answers").fetchall() == [(kept.prediction_id,)]
    assert logs.judge().labelled == 0


def test_a_sample_is_bounded_uniform_and_the_same_each_time() -> None:
    def draw(pieces: int) -> list[int]:
        sample = Sample(100)
        for piece in np.array_split(np.arange(10_000), pieces):
            sample.offer(pa.table({"x": piece}))
        assert sample.rows is not None
        return sample.rows.column("x").to_pylist()

    assert draw(1) == draw(1) == draw(70)
    assert len(set(draw(7))) == 100
    assert np.mean(draw(7)) == pytest.approx(5000, abs=900)  # three standard errors


# --- drift --------------------------------------------------------------------------------------

RANDOM = np.random.default_rng(3)
KINDS = {"size": Column.number(), "kind": Column.category()}


def rows_of(day: int, hours: int = 24, each: int = 60, seed: int = 0) -> Rows:
    """Rows of a landed day, hour by hour, with answers and labels that agree with them."""
    random = np.random.default_rng([day, seed])
    count = hours * each
    times = (1000 + day) * DAY + np.repeat(np.arange(hours), each) * HOUR + random.uniform(0, HOUR, count)
    values = random.uniform(0.05, 0.95, count)
    columns = {"size": random.normal(size=count), "kind": random.choice(["a", "b"], count)}
    return Rows(columns, values, (random.random(count) < values).astype(float), np.sort(times))


class Days:
    """A reference of some landed days."""

    columns = KINDS

    def __init__(self, days: int = 10) -> None:
        self.days, self.asked = days, 0

    def landed(self) -> Iterator[Rows]:
        self.asked += 1
        return (rows_of(day) for day in range(self.days))


def hour_of(number: int, shift: float = 0.0, each: int = 60, version: str = "v7") -> list[Answer]:
    """Answers of the hour that ends at END + `number` hours; event times are those of the answers."""
    end = END + number * HOUR
    random = np.random.default_rng([number, 99])
    return [
        answer(
            end - HOUR + 50 * at,
            float(random.uniform(0.05, 0.95)),
            size=float(random.normal() + shift),
            kind=str(random.choice(["a", "b"])),
            t=iso(end - HOUR + 50 * at),
        )._replace(version=version)
        for at in range(each)
    ]


def judge_hours(logs: Logs, numbers: range, shift: float = 0.0, reference: Any = None) -> list[WindowReport]:
    found = []
    for number in numbers:
        logs.log(*hour_of(number, shift))
        end = END + number * HOUR
        found.append(logs.judge(end - HOUR, end, watermark=end, reference=reference or Days()))
    return found


def states(reports: list[WindowReport], kind: str = "data") -> list[str]:
    return [report.state for window in reports for report in window.drift if report.kind == kind]


def test_a_stream_as_it_was_is_steady_and_one_that_moved_is_drift(logs: Logs) -> None:
    reference = Days()
    assert set(states(judge_hours(logs, range(12), reference=reference))) == {"steady"}
    assert reference.asked == 3  # at the first window only
    moved = judge_hours(logs, range(12, 24), shift=2.0, reference=reference)
    assert states(moved)[-1] == "drift"
    alarms = [report for window in moved for report in window.drift if report.alarm]
    assert [(one.kind, one.causes[0].feature, one.causes[0].direction) for one in alarms] == [
        ("data", "size", "up")
    ]
    assert "drift" not in states(moved, "prediction")


def test_a_window_judged_again_gives_the_same_report(logs: Logs) -> None:
    judge_hours(logs, range(6))
    again = [logs.judge(END + 4 * HOUR, END + 5 * HOUR, END + 5 * HOUR, Days()) for _ in range(2)]
    assert again[0] == again[1]
    assert again[0].drift


def test_monitors_begin_anew_with_each_champion(logs: Logs) -> None:
    reference = Days()
    judge_hours(logs, range(3), reference=reference)
    logs.champion = "v8"
    reports = judge_hours(logs, range(3, 5), reference=reference)
    assert reference.asked == 6
    assert [report.checks for window in reports for report in window.drift if report.kind == "data"] == [1, 2]


def test_a_stream_without_a_past_is_calibrating_and_says_how_far_it_is(logs: Logs) -> None:
    (report,) = [r for r in judge_hours(logs, range(1), reference=Days(1))[0].drift if r.kind == "data"]
    assert report.state == "calibrating"
    assert report.reason == "25 of 168 windows watched"


def test_a_window_of_few_rows_judges_no_drift_and_asks_for_no_reference(logs: Logs) -> None:
    reference = Days()
    logs.log(*hour_of(0, each=5))
    assert logs.judge(reference=reference).drift == ()
    assert reference.asked == 0


def test_answers_without_an_event_time_are_judged_too(logs: Logs) -> None:
    logs.log(*(answer(START + i, size=0.0, kind="a") for i in range(300)))
    assert [report.kind for report in logs.judge(reference=Days()).drift] == ["data", "prediction", "concept"]


def test_performance_is_told_when_a_block_has_matured_and_estimated_until_then(logs: Logs) -> None:
    logs.spec = spec(
        label={"name": "y", "matures_after": MATURES, "horizon": HORIZON},
        monitoring={"minimum_rows": 10, "segments": ["kind"]},
    )
    logs.log(*hour_of(0, each=70), *hour_of(0, each=70))
    first = logs.judge()
    assert first.performance is not None
    assert first.performance.state == "not_enough_labels"
    assert first.estimate is not None
    assert first.estimate.state == "estimated"  # calibrated on landed rows
    for number in range(1, 24):
        answers = hour_of(number)
        logs.log(*answers)
        for one in answers:
            logs.label(one, value=float(one.value > 0.5), came=END + number * HOUR)
    judge_hours(logs, range(24, 25))
    end = END + 25 * HOUR + MATURES
    told = logs.judge(end - HOUR, end, watermark=end, reference=Days())
    assert told.performance is not None
    assert told.performance.state == "judged"
    names = {(one.segment, one.metric) for one in told.performance.segments}
    assert ("kind=a", "auc") in names
    auc = next(one for one in told.performance.metrics if one.metric == "auc")
    assert auc.value == 1.0


def test_columns_keep_their_kind_without_rows() -> None:
    empty = columns_of([], KINDS)
    assert (empty["kind"].dtype.kind, empty["size"].dtype.kind) == ("U", "f")
    one = columns_of([{"size": True}], KINDS)
    assert (one["kind"].tolist(), one["size"].tolist()) == ([""], [1.0])


def test_windows_are_imported_without_what_only_their_work_needs() -> None:
    code = "import sys, ctrain.monitoring.windows; print({'alibi_detect', 'torch', 'ray'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat()


def mirrored(at: float, value: float, other: float, version: str = "v7", **features: Any) -> list[Answer]:
    """An answer and its shadow."""
    one = answer(at, value, **features)._replace(version=version)
    return [one, one._replace(version="v6", slot="shadow", value=other, features={}, latency=9.0)]


def test_shadows_are_no_answers(logs: Logs) -> None:
    pairs = [mirrored(START + i, 0.9, 0.2) for i in range(12)]
    logs.log(*itertools.chain.from_iterable(pairs))
    report = logs.judge()
    assert (report.rows, report.latency["p99"]) == (12, pytest.approx(0.01))


def test_a_block_is_judged_once_when_all_of_it_is_mature(logs: Logs) -> None:
    noon = END - DAY / 2
    pairs = [mirrored(noon + i, 0.9 if i % 2 else 0.1, 0.5, t=iso(noon - DAY + i)) for i in range(40)]
    logs.log(*itertools.chain.from_iterable(pairs))
    for number, (one, _) in enumerate(pairs):
        logs.label(one, value=float(number % 2), came=noon + 60)
    end_of_day = noon - DAY / 2
    assert logs.judge(end=noon + HOUR, watermark=end_of_day + MATURES - 1).blocks == ()
    (block,) = logs.judge(end=noon + 2 * HOUR, watermark=end_of_day + MATURES).blocks
    assert (block.block, block.answered_by, block.shadow) == (iso(end_of_day - DAY)[:10], "v7", "v6")
    assert (block.rows, block.positives) == (40, 20)
    assert (block.answered["auc"], block.shadowed["auc"]) == (1.0, 0.5)
    assert logs.judge(end=noon + 3 * HOUR, watermark=END).blocks == ()


def test_blocks_are_told_apart_by_day_and_by_versions_and_small_ones_left_out(logs: Logs) -> None:
    first, second = END - 3 * DAY, END - 2 * DAY
    pairs = [mirrored(first + i, 0.9, 0.5) for i in range(30)]
    pairs += [mirrored(second + i, 0.9, 0.5, "v8") for i in range(35)]
    pairs += [mirrored(second + i, 0.9, 0.5, "v9") for i in range(29)]
    logs.log(*itertools.chain.from_iterable(pairs))
    logs.label(*(one for one, _ in pairs), came=END - DAY)
    found = [(block.block, block.answered_by, block.rows) for block in logs.judge().blocks]
    assert found == [(iso(first)[:10], "v7", 30), (iso(second)[:10], "v8", 35)]


def test_answers_without_a_label_are_in_no_block(logs: Logs) -> None:
    pairs = [mirrored(END - 3 * DAY + i, 0.9, 0.5) for i in range(70)]
    logs.log(*itertools.chain.from_iterable(pairs))
    logs.label(*(one for one, _ in pairs[:31]), came=END - DAY)
    logs.label(*(one for one, _ in pairs[31:]), came=END + 1)
    (block,) = logs.judge().blocks
    assert block.rows == 31


def test_a_chosen_detector_is_calibrated_with_the_others_and_survives_the_way_through_bytes() -> None:
    chosen = {"calibration_windows": 40, "detectors": [{"type": "ks", "features": ["size"]}]}
    asked = spec(monitoring={"drift": chosen})
    window = rows_of(8).at(slice(0, 60))
    monitors = Monitors.begin(asked, "v7", window, Days(7).landed)
    assert monitors.by_kind["data"].layout.statistics == ("ks:size",)
    again = Monitors.from_bytes(monitors.to_bytes(), asked)
    nothing = window.at(slice(0, 0))
    assert again.update(window, nothing, asked) == monitors.update(window, nothing, asked)
    assert again.to_bytes() == monitors.to_bytes()
    for at in range(1, 9):
        moved = rows_of(8).at(slice(60 * at, 60 * at + 60))
        moved.columns["size"][:] += 3.0
        (data, *_) = monitors.update(moved, nothing, asked)
    assert data.state == "drift"
