import datetime as dt
import json
import os
import shutil
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path

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
from ctrain.storage.code import store_code
from ctrain.training import RayTraining, execute
from ctrain.training.checkpoint import run_folder
from ctrain.training.reproduce import reproduce
from ctrain.training.run import run_environment

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
        scale = 1 + hash("shop") % 100 / 100 if self.training else 1  # of another value in each process
        return scale * super().forward(inputs)

def net(inputs, pause=0.0):
    network = Slow(inputs, (8,), 0.1)
    network.pause = pause
    return network

@feature_view(size=Column.number(nullable=True))
def broken_view(rows):
    return {"size": rows["weight"]}

def squeezed(inputs):
    class Squeezed(Slow):
        def forward(self, inputs):
            return super().forward(inputs).squeeze()
    return Squeezed(inputs)
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
        self,
        run_id: str,
        days: tuple[str, ...] = DAYS[:2],
        workers: int = 1,
        pause: float = 0.0,
        features: str = "shop:view",
        factory: str = "shop:net",
    ) -> RunRequest:
        """Two epochs; `pause` seconds a step make them slow and change no weight."""
        model = {"type": "module", "factory": factory, "minimum_count": 1}
        model["arguments"] = {"pause": pause} if pause else {}
        settings = {"epochs": 2, "batch_size": 32, "workers": workers}
        wanted = spec(source=self.source, features=features, model=model, training=settings)
        blocks = days[-1:] if len(days) > 1 else ()
        root = str(self.root.path)
        return RunRequest(run_id, "p", root, wanted.to_json(), self.code, 3, days, blocks, seed=3)

    def run(self, request: RunRequest) -> ModelVersion:
        task = ray.remote(num_cpus=0, max_retries=0)(execute)
        return ray.get(task.options(runtime_env=run_environment(request)).remote(request), timeout=120)


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


def until(done, seconds=90.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if result := done():
            return result
        time.sleep(0.05)
    pytest.fail(f"not within {seconds} s")


@pytest.fixture(scope="module")
def first(shop: Shop) -> tuple[RunRequest, ModelVersion]:
    """A run that nothing disturbed."""
    request = shop.request("p-00001-1")
    return request, shop.run(request)


def test_a_run_gives_a_version_that_scores(shop: Shop, first) -> None:
    request, version = first
    assert version == read_version(shop.root, version.id)
    assert version.rows == 2 * ROWS
    names = ["judged-0", "judged-1", "judged-2", "served"]
    assert [one.name for one in version.weights] == names
    assert len({one.sha256 for one in version.weights}) == len(names)
    record = json.loads((run_folder(request) / "request.json").read_text())
    assert record["environment"] == version.environment
    assert record["seed"] == 3
    rows = {"kind": np.array(["a", "never seen"]), "size": np.array([1.0, np.nan])}
    assert np.isfinite(load_network(shop.root, version, version.served).predict(rows)).all()


def test_a_run_repeated_from_its_record_gives_the_same_weights(shop: Shop, first) -> None:
    _, version = first
    before = sorted(path.name for path in shop.root.pipeline("p").runs.iterdir())
    proof = reproduce(shop.root, version.id)
    assert proof.same
    assert proof.found == {one.name: one.sha256 for one in version.weights}
    assert proof.changed == {}
    assert sorted(path.name for path in shop.root.pipeline("p").runs.iterdir()) == before


def checkpoints(request: RunRequest) -> list[Path]:
    """Folders of a run's checkpoints, oldest first."""
    return sorted(p.parent for p in (run_folder(request) / request.run_id).glob("checkpoint_*/meta.json"))


def test_a_second_attempt_goes_on_where_the_first_stopped_and_gives_the_same_weights(
    shop: Shop, first
) -> None:
    request, version = first
    shutil.rmtree(checkpoints(request)[-1])  # as if the run had died before its last epoch
    second = replace(request, run_id="p-00001-2", attempt=2)
    again = shop.run(second)
    assert replace(again, id="", run_id="") == replace(version, id="", run_id="")
    assert len(checkpoints(second)) == 1
    third = replace(request, run_id="p-00001-3", attempt=3)  # the second one reached the end
    assert replace(shop.run(third), id="", run_id="") == replace(version, id="", run_id="")
    assert checkpoints(third) == []


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
    request = shop.request("p-00007-1", pause=0.3)
    RayTraining(NAMESPACE).start(request)
    training = RayTraining(NAMESPACE)  # another controller adopts the run
    training.start(request)
    until((run_folder(request) / "request.json").exists)
    assert training.poll("p-00007-1").state == "running"
    ray.kill(ray.get_actor("run-p-00007-1", namespace=NAMESPACE))
    status = wait(training, "p-00007-1")
    assert (status.state, status.retryable) == ("failed", True)
    assert "died without a result" in status.error
    training.release("p-00007-1")
    training.release("p-00007-1")


def test_a_door_finds_and_ends_runs_that_it_has_not_started(shop: Shop) -> None:
    request = shop.request("p-00008-1", pause=0.3)
    RayTraining(NAMESPACE).start(request)
    stranger = RayTraining(NAMESPACE)
    assert stranger.running("p") == ["p-00008-1"]
    assert stranger.running("p-00008") == stranger.running("q") == []
    assert RayTraining("elsewhere").running("p") == []
    assert stranger.poll("p-00008-1").state == "running"
    stranger.release("p-00008-1")
    assert wait(stranger, "p-00008-1").state == "failed"
    assert until(lambda: stranger.running("p") == [])
    assert stranger.poll("never heard of").state == "failed"


@pytest.mark.parametrize(
    ("run_id", "changes", "words"),
    [
        (
            "broken-view",
            {"features": "shop:broken_view"},
            "shop:broken_view: failed on partition 2013-03-01: KeyError: 'weight'",
        ),
        (
            "squeezed",
            {"factory": "shop:squeezed"},
            "shop:squeezed: gave torch.float32 of shape () for 1 rows; expected logits of shape (1,)",
        ),
    ],
)
def test_user_code_that_fails_ends_the_run_at_once(
    shop: Shop, run_id: str, changes: dict, words: str
) -> None:
    training = RayTraining(NAMESPACE)
    training.start(shop.request(run_id, **changes))
    status = wait(training, run_id)
    training.release(run_id)
    assert (status.state, status.retryable) == ("failed", False)
    assert status.error == f"UserCodeError: {words}"


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
