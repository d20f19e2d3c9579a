import os
import signal
import subprocess
import sys
import time

import pytest

from ctrain.serving import labels
from ctrain.serving.ids import PredictionIds, pipeline_of, time_of
from ctrain.serving.labels import LabelStore, read_labels
from ctrain.serving.prediction_log import Answer, PredictionLog, forget_log, read_log


def entry(number, at=None):
    at = time.time() if at is None else at
    return Answer(f"p.{number}", at, None, "abc", "v1", "champion", "", 0.0, 0.5, 0.5, 0.001, {"a": number})


def test_answers_are_read_back_in_order(tmp_path):
    log = PredictionLog(tmp_path, "r1", flush=60)
    for number in range(5):
        log.append(entry(number, at=1000.0 + number))
    log.close()
    os.utime(next((tmp_path / "predictions").iterdir()), (2000, 2000))
    file = next((tmp_path / "predictions").iterdir())
    file.rename(file.with_name("0000001000000-r1.arrows"))
    table = read_log(tmp_path, 1001.0, 1004.0)
    assert table["prediction_id"].to_pylist() == ["p.1", "p.2", "p.3"]
    assert table["features"][0].as_py() == '{"a":1}'


def test_full_log_drops_and_counts(tmp_path):
    log = PredictionLog(tmp_path, "r1", flush=60, capacity=3)
    for number in range(10):
        log.append(entry(number))
    assert log.dropped == 7
    log.close()
    assert read_log(tmp_path, 0, 9e9).num_rows == 3


def test_large_log_rotates(tmp_path):
    log = PredictionLog(tmp_path, "r1", flush=60, rotate=1)
    for number in range(3):
        log.append(entry(number))
        log.flush()
        time.sleep(0.003)
    log.close()
    assert len(list((tmp_path / "predictions").iterdir())) == 3
    assert read_log(tmp_path, 0, 9e9).num_rows == 3


def test_torn_batch_is_left_out(tmp_path):
    log = PredictionLog(tmp_path, "r1", flush=60)
    for number in range(2):
        log.append(entry(number))
        log.flush()
    file = next((tmp_path / "predictions").iterdir())
    whole = file.read_bytes()
    log.close()
    for cut in range(1, 700, 37):
        file.write_bytes(whole[:-cut])
        assert read_log(tmp_path, 0, 9e9).num_rows in (0, 1)
    file.write_bytes(whole)
    assert read_log(tmp_path, 0, 9e9).num_rows == 2


_WRITER = """
import sys, time
from pathlib import Path
from ctrain.serving.prediction_log import Answer, PredictionLog
log = PredictionLog(Path(sys.argv[1]), "r1", flush=0.2)
number = 0
while True:
    log.append(Answer(f"p.{number}", time.time(), None, "a", "v1", "champion", "", 0.0, 0.5, 0.5, 0.0, {}))
    number += 1
    print(number, flush=True)
    time.sleep(0.002)
"""


def test_killed_writer_loses_at_most_the_last_flush(tmp_path):
    command = [sys.executable, "-c", _WRITER, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if int(line) >= 500:
            break
    process.send_signal(signal.SIGKILL)
    killed = time.time()
    written = 500 + sum(1 for _ in process.stdout)
    process.wait()
    table = read_log(tmp_path, 0, 9e9)
    ids = table["prediction_id"].to_pylist()
    assert ids == [f"p.{number}" for number in range(len(ids))]
    assert table["time"].to_pylist()[-1] > killed - 1.0
    assert 0 < len(ids) <= written + 1


def test_ids_name_pipeline_and_time_and_differ():
    ids = PredictionIds("flights-late", "r1")
    first, second = ids.new(1234.5), ids.new(1234.5)
    assert first != second
    assert pipeline_of(first) == "flights-late"
    assert time_of(first) == 1234.5
    assert pipeline_of("nonsense") is None


def test_labels_come_late_twice_and_corrected(tmp_path):
    store = LabelStore(tmp_path, horizon=100.0)
    one = PredictionIds("p", "r1").new(1000.0)
    assert store.put([(one, 1.0)], now=1010.0) == ["pending"]
    assert store.put([(one, 1.0)], now=1011.0) == ["same"]
    assert store.put([(one, 0.0)], now=1012.0) == ["corrected"]
    assert store.put([(one, 1.0)], now=1200.0) == ["late"]
    rows = read_labels(tmp_path).to_pylist()
    assert rows == [{"prediction_id": one, "value": 0.0, "first_at": 1010.0, "at": 1012.0, "corrections": 1}]


def test_late_labels_are_dropped_and_counted_by_the_hour(tmp_path):
    store = LabelStore(tmp_path, horizon=100.0)
    names = [PredictionIds("p", "r1").new(1000.0 + n) for n in range(3)]
    assert store.put([(name, 1.0) for name in names], now=2000.0) == ["late"] * 3
    store.put([(names[0], 1.0)], now=9000.0)
    assert (store.late(0, 3600), store.late(3600, 9e9), store.late(0, 9e9)) == (3, 1, 4)
    assert read_labels(tmp_path).num_rows == 0


@pytest.mark.parametrize("value", [0.5, 2, -1, float("nan")])
def test_a_label_is_zero_or_one(tmp_path, value):
    ids = PredictionIds("p", "r1")
    store = LabelStore(tmp_path)
    with pytest.raises(ValueError, match="expected 0 or 1"):
        store.put([(ids.new(), 1), (ids.new(), value)])
    assert read_labels(tmp_path).num_rows == 0


def test_old_labels_are_deleted_beside_a_writer(tmp_path, monkeypatch):
    monkeypatch.setattr(labels, "_DELETED_AT_ONCE", 10)
    store, other = LabelStore(tmp_path), LabelStore(tmp_path)
    ids = PredictionIds("p", "r1")
    for at in range(45):
        store.put([(ids.new(1000.0 + at), 1)], now=1000.0 + at)
    assert other.forget(1030.0) == 30
    store.put([(ids.new(2000.0), 1)], now=2000.0)
    assert min(read_labels(tmp_path)["first_at"].to_pylist()) == 1030.0


def test_a_file_without_answers_ends_after_an_hour_so_that_no_old_file_is_open(tmp_path):
    now = [1000.0]
    log = PredictionLog(tmp_path, "r1", flush=60, clock=lambda: now[0])
    log.append(entry(1))
    log.flush()
    now[0] += 3700.0
    log.flush()
    log.append(entry(2))
    log.close()
    assert len(list((tmp_path / "predictions").iterdir())) == 2


def test_old_files_are_deleted_and_those_that_may_be_open_stay(tmp_path):
    for name, at in (("0", 1000.0), ("1", 5000.0)):
        log = PredictionLog(tmp_path, name, flush=60, clock=lambda at=at: at)
        log.append(entry(1, at=at))
        log.close()
        file = max((tmp_path / "predictions").iterdir())
        os.utime(file, (at, at))
    assert forget_log(tmp_path, before=4000.0, now=5000.0) == 0  # a writer may have it open
    assert forget_log(tmp_path, before=4000.0, now=9e9) == 1
    assert read_log(tmp_path, 0, 9e9)["time"].to_pylist() == [5000.0]


def test_no_labels_are_an_empty_table(tmp_path):
    assert read_labels(tmp_path).num_rows == 0
    assert read_log(tmp_path, 0, 9e9).num_rows == 0
