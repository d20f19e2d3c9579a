import datetime as dt
import json
import os
import signal
import time
from dataclasses import dataclass, replace

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from factories import spec

from ctrain.data.ingest import check_file, commit
from ctrain.data.land import FileSource, seal_partition
from ctrain.models.loading import load_network
from ctrain.records import IngestRequest, ModelVersion, RunRequest, RunStatus
from ctrain.registry import read_version
from ctrain.storage import Root
from ctrain.storage.code import code_uri, store_code
from ctrain.training import RayTraining, execute
from ctrain.training.checkpoint import run_folder

CODE = """
import time
from pathlib import Path
from ctrain.features import Column, feature_view
from ctrain.models.tabular import TabularNet

@feature_view(kind=Column.category(), size=Column.number(nullable=True))
def view(rows):
    return {"kind": rows["kind"], "size": rows["size"]}

class Slow(TabularNet):
    pause = 0.0
    def forward(self, inputs):
        time.sleep(self.pause)
        return super().forward(inputs)

def net(inputs, pause=0.0):
    network = Slow(inputs, (8,), 0.1)
    network.pause = pause
    return network
"""
DAYS = ("2013-03-01", "2013-03-02", "2013-03-03")
ROWS = 101
NAMESPACE = "ctrain-test"


@dataclass(frozen=True)
class Shop:
    """A root with three landed days, the last of one class only, and the code that trains on them."""

    root: Root
    code: str
    source: dict

    def request(
        self, run_id: str, days: tuple[str, ...] = DAYS[:2], workers: int = 1, pause: float = 0.0
    ) -> RunRequest:
        """Two epochs; `pause` seconds a step make them slow and change no weight."""
        model = {"type": "module", "factory": "shop:net", "minimum_count": 1, "arguments": {"pause": pause}}
        settings = {"epochs": 2, "batch_size": 32, "workers": workers}
        wanted = spec(source=self.source, features="shop:view", model=model, training=settings)
        blocks = days[-1:] if len(days) > 1 else ()
        root = str(self.root.path)
        return RunRequest(run_id, "p", root, wanted.to_json(), self.code, 3, days, blocks, seed=3)

    def run(self, request: RunRequest) -> ModelVersion:
        environment = {"working_dir": code_uri(self.root, self.code)}
        task = ray.remote(num_cpus=0, max_retries=0)(execute).options(runtime_env=environment)
        return ray.get(task.remote(request), timeout=60)


@pytest.fixture(scope="module")
def shop(ray_session, tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    (folder / "code").mkdir()
    (folder / "code" / "shop.py").write_text(CODE)
    root = Root(folder / "root")
    code = store_code(root, folder / "code")
    random = np.random.default_rng(0)
    for day in DAYS:
        landed = folder / "landing" / day
        landed.mkdir(parents=True)
        sizes = random.normal(size=ROWS)
        labels = (sizes + random.normal(size=ROWS) > 0).astype(int) if day != DAYS[-1] else np.ones(ROWS)
        midnight = dt.datetime.fromisoformat(day)
        times = [midnight + dt.timedelta(seconds=second) for second in range(ROWS)]
        rows = {"kind": random.choice(["a", "b"], ROWS), "size": sizes, "t": times, "y": labels}
        pq.write_table(pa.table(rows), landed / "a.parquet")
        seal_partition(landed)
    source = {"type": "files", "path": str(folder / "landing"), "event_time": "t"}
    wanted = spec(source=source, features="shop:view")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder / "code"))
        for sighting in FileSource(wanted).look({}):
            found = sighting.partition
            request = IngestRequest("k", "p", str(root.path), wanted.to_json(), "", (found,))
            summaries = [check_file(request, found, file) for file in found.files]
            assert commit(request, found, summaries).refused == ""
    return Shop(root, code, source)


def until(done, seconds=40.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if result := done():
            return result
        time.sleep(0.05)
    pytest.fail(f"not within {seconds} s")


def test_a_run_gives_a_version_that_scores(shop: Shop) -> None:
    request = shop.request("one")
    version = shop.run(request)
    assert version == read_version(shop.root, version.id)
    assert version.rows == 2 * ROWS
    assert version.judged.sha256 != version.served.sha256
    record = json.loads((run_folder(request) / "request.json").read_text())
    assert record["environment"] == version.environment
    assert record["seed"] == 3
    rows = {"kind": np.array(["a", "never seen"]), "size": np.array([1.0, np.nan])}
    assert np.isfinite(load_network(shop.root, version, "served").predict(rows)).all()


def test_a_run_of_two_workers_repeated_under_kill_9_gives_the_same_version(shop: Shop) -> None:
    version = shop.run(shop.request("calm", workers=2))
    request = shop.request("killed", workers=2, pause=0.2)
    training = RayTraining(NAMESPACE)
    training.start(request)
    until(lambda: (s := training.poll("killed")).progress.startswith("judged") or s.state == "failed")
    victims = [p for p in psutil.Process().children(recursive=True) if is_train_worker(p)]
    assert len(victims) == 2
    os.kill(victims[-1].pid, signal.SIGKILL)
    status = wait(training, "killed")
    training.release("killed")
    assert status.state == "finished", status.error
    again = read_version(shop.root, status.version)
    named = {"id": "", "run_id": "", "model": {}, "spec_sha256": ""}  # the pause is part of the spec
    assert replace(again, **named) == replace(version, **named)


def is_train_worker(process: psutil.Process) -> bool:
    try:
        return any("RayTrainWorker" in part for part in process.cmdline())
    except psutil.Error:
        return False


def wait(training: RayTraining, run_id: str) -> RunStatus:
    return until(lambda: (s := training.poll(run_id)).state != "running" and s)


def test_a_run_outlives_its_door_and_ends_without_a_result_when_its_actor_is_killed(shop: Shop) -> None:
    request = shop.request("orphan", pause=0.3)
    RayTraining(NAMESPACE).start(request)
    training = RayTraining(NAMESPACE)  # another controller adopts the run
    training.start(request)
    until((run_folder(request) / "request.json").exists)
    assert training.poll("orphan").state == "running"
    ray.kill(ray.get_actor("run-orphan", namespace=NAMESPACE))
    status = wait(training, "orphan")
    assert (status.state, status.retryable) == ("failed", True)
    assert "died without a result" in status.error
    training.release("orphan")
    training.release("orphan")


def test_rows_of_one_class_end_the_run_at_once(shop: Shop) -> None:
    request = shop.request("one-class", days=DAYS[-1:])
    training = RayTraining(NAMESPACE)
    training.start(request)
    status = wait(training, "one-class")
    training.release("one-class")
    assert (status.state, status.retryable) == ("failed", False)
    assert status.error == (
        "TrainingError: run one-class: all 101 rows of the window have one label; two classes are needed"
    )
