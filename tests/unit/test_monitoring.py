import itertools
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from factories import spec

from ctrain.monitoring.sample import Sample
from ctrain.monitoring.windows import columns_of, forget, judge_window
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
        self.folder = folder
        self.labels = LabelStore(folder, HORIZON)
        self.spec = spec(
            label={"name": "y", "matures_after": MATURES, "horizon": HORIZON},
            monitoring={"minimum_rows": 10, "drift": {"sample": 500}},
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
        reference: dict[str, Any] | None = None,
    ) -> WindowReport:
        """Summarise one window."""
        request = WindowRequest("k", "p", "/root", self.spec.to_json(), "v7", start, end, watermark)
        return judge_window(request, self.spec, self.folder, lambda: reference or {})


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
    def broken() -> dict[str, Any]:
        raise OSError("the reference cannot be read")

    answers = [answer(START + i) for i in range(12)]
    logs.log(*answers)
    logs.label(*answers)
    request = WindowRequest("k", "p", "/root", logs.spec.to_json(), "v7", START, END, END)
    with pytest.raises(OSError, match="reference"):
        judge_window(request, logs.spec, logs.folder, broken)
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


# --- drift ---

RANDOM = np.random.default_rng(3)


def categories(**shares: int) -> np.ndarray:
    return RANDOM.permutation(np.repeat(list(shares), list(shares.values())))


def test_drift_is_judged_on_a_sample_of_the_windows_rows_alone(logs: Logs) -> None:
    reference = {"size": RANDOM.normal(size=500), "kind": categories(a=250, b=250)}
    logs.log(*(answer(START - 60, size=99.0, kind="z") for _ in range(300)))
    sizes, kinds = RANDOM.normal(size=2000), categories(a=1000, b=1000)
    logs.log(*(answer(START + 60, size=float(s), kind=str(k)) for s, k in zip(sizes, kinds, strict=True)))
    assert [item.drifted for item in logs.judge(reference=reference).drift] == [False, False]
    logs.log(*(answer(END + 60, size=float(size) + 2, kind=None) for size in sizes))
    moved = logs.judge(END, END + HOUR, reference=reference)
    assert [item.drifted for item in moved.drift] == [True, True]


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
