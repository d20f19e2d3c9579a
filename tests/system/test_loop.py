"""The whole loop by HTTP on a small cluster: landed partitions to promoted champion, kills included."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import numpy as np
import pandas as pd
import psutil
import pyarrow.compute as pc
import pytest
import ray

from ctrain import Client
from ctrain.controller.actor import find_controller, get_or_create_controller
from ctrain.data import seal_partition
from ctrain.errors import ClientError, ConflictError, UnauthorizedError
from ctrain.monitoring.skew import BatchPath, check_skew
from ctrain.serving import read_labels, read_log
from ctrain.spec import parse_spec
from ctrain.storage import Root
from ctrain.storage.code import store_code

VIEW = """
import numpy as np
from ctrain import Column, feature_view

@feature_view(kind=Column.category(), size=Column.number(minimum=-9), at=Column.timestamp())
def view(rows):
    hour = rows["at"].astype("datetime64[h]").astype(int) % 24
    return {"kind": rows["kind"], "size": rows["size"], "hour": hour}
"""
FLUSH = 0.5
ROW = {"kind": "a", "size": 1.5, "at": "2020-01-05T10:00:00"}
BODY = json.dumps({"features": ROW}).encode()


def land(landing: Path, *numbers: int) -> None:
    """Land days of 300 rows whose label follows kind and size."""
    for number in numbers:
        rng = np.random.default_rng(number)
        day = date(2020, 1, 1) + timedelta(days=number)
        size, kind = rng.normal(size=300), rng.choice(list("abc"), 300)
        chance = 1 / (1 + np.exp(-2 * size - (kind == "a")))
        times = pd.Timestamp(day) + pd.to_timedelta(rng.integers(0, 86400, 300), unit="s")
        table = {"kind": kind, "size": size, "at": times, "y": (rng.random(300) < chance).astype(float)}
        folder = landing / str(day)
        folder.mkdir(parents=True)
        pd.DataFrame(table).to_parquet(folder / "rows.parquet")
        seal_partition(folder)


class Answer(NamedTuple):
    """What one request of the traffic came to."""

    started: float
    ended: float
    status: int
    version: str
    prediction_id: str


class Loop:
    """A pipeline under way, and traffic on it that retries nothing."""

    def __init__(self, folder: Path) -> None:
        self.root, self.landing = Root(folder / "root"), folder / "landing"
        (folder / "code").mkdir(parents=True)
        (folder / "code" / "loop_view.py").write_text(VIEW)
        land(self.landing, *range(6))
        spec = parse_spec(
            {
                "pipeline": "loop",
                "owner": "tests",
                "source": {"type": "files", "path": str(self.landing), "event_time": "at", "poll": 0.3},
                "features": "loop_view:view",
                "label": {"name": "y"},
                "training": {"epochs": 2},
                "evaluation": {"blocks": 3, "gate": [{"metric": "auc", "no_harm": 0.2}]},
                "rollout": {
                    "shadow": 20, "steps": [0.3], "hold": 1.0, "error_margin": 0.1, "slow_margin": 50,
                    "disagreement": 0.9,
                },
                "serving": {"replicas": 2, "flush": FLUSH},
            }
        )  # fmt: skip
        code = store_code(self.root, folder / "code")
        self.actor = get_or_create_controller(self.root)
        add = self.actor.add.remote(spec.to_json(), str(self.root.path), code, "start", "tests", "begin")
        assert ray.get(add, timeout=60)["ok"]
        self.url = f"http://127.0.0.1:{os.environ['CTRAIN_HTTP_PORT']}"
        self.client = Client(self.url, "loop", token=self.root.token())
        self.answers: list[Answer] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._traffic, daemon=True)

    def start_traffic(self) -> None:
        self._thread.start()

    def end(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=30)
        ray.get(find_controller().remove.remote("loop", "end", "tests are over"), timeout=60)
        ray.kill(find_controller())

    def begin(self) -> socket.socket:
        """Send the head of a request, on a connection of its own."""
        port = int(os.environ["CTRAIN_HTTP_PORT"])
        connection = socket.create_connection(("127.0.0.1", port), timeout=30)
        lines = ["POST /loop/predict HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
        lines += [f"Content-Length: {len(BODY)}", "Connection: close"]
        connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        return connection

    def finish(self, connection: socket.socket) -> int:
        """Send the body; gives the status, 0 if the connection was closed without one."""
        with connection, connection.makefile("rb") as received:
            try:
                connection.sendall(BODY)
                return int((received.readline().split() or [b"", b"0"])[1])
            except OSError:
                return 0

    def failed(self) -> list[Answer]:
        return [answer for answer in self.answers if answer.status != 200]

    def versions_since(self, moment: float) -> set[str]:
        """Versions that answered what was asked after a moment, once a good number was."""
        deadline = time.monotonic() + 30
        while sum(answer.started > moment for answer in self.answers) < 50:
            assert time.monotonic() < deadline, "the traffic has stopped"
            time.sleep(0.05)
        return {answer.version for answer in self.answers if answer.started > moment}

    def _traffic(self) -> None:
        number = 0
        # A fresh connection each: one that is kept alive may be closed by the proxy as a request sets out,
        # which is the client's to repeat and no failure of the service.
        limits = httpx2.Limits(max_keepalive_connections=0)
        with httpx2.Client(trust_env=False, timeout=30, limits=limits) as http:
            while not self._stop.wait(0.01):
                number += 1
                started = time.time()
                sent = {"key": f"key-{number}", "features": ROW}
                try:
                    response = http.post(f"{self.url}/loop/predict", json=sent)
                    body = response.json() if response.status_code == 200 else {}
                    status = response.status_code
                except httpx2.TransportError:
                    body, status = {}, 0
                name, made_by = body.get("prediction_id", ""), body.get("version", "")
                self.answers.append(Answer(started, time.time(), status, made_by, name))

    def until(self, done: Callable[[Any], bool], seconds: float = 120) -> Any:
        deadline, status = time.monotonic() + seconds, None
        while time.monotonic() < deadline:
            try:
                status = self.client.status()
                if status.generation and done(status):
                    return status
            except ClientError as error:
                status = error
            time.sleep(0.1)
        pytest.fail(f"not within {seconds} s: {status!r}")


@pytest.fixture(scope="module")
def loop(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loop]:
    made = Loop(tmp_path_factory.mktemp("loop"))
    yield made
    made.end()


def processes(name: str) -> list[psutil.Process]:
    """Processes of this test's cluster whose title holds `name`."""
    me = psutil.Process()
    return [child for child in me.children(recursive=True) if name in " ".join(child.cmdline())]


def test_partitions_become_a_champion_that_answers(loop: Loop) -> None:
    status = loop.until(lambda s: s.champion is not None and s.converged == s.generation)
    assert status.champion.label == "v1"
    assert status.data.partitions == 6
    answer = loop.client.predict(ROW, key="first")
    assert 0 < answer.value < 1
    assert (answer.version, answer.slot) == ("v1", "champion")
    loop.start_traffic()


def test_labels_have_each_their_answer(loop: Loop) -> None:
    answer = loop.client.predict(ROW)
    assert loop.client.label(answer.prediction_id, 1) == "pending"
    assert loop.client.label(answer.prediction_id, 1) == "same"
    assert loop.client.label(answer.prediction_id, 0) == "corrected"
    stored = read_labels(loop.root.pipeline("loop").log).to_pylist()
    assert [row["value"] for row in stored if row["prediction_id"] == answer.prediction_id] == [0.0]


def test_operators_verbs_need_the_token_and_a_state_that_allows_them(loop: Loop) -> None:
    with Client(loop.url, "loop", token="wrong") as stranger, pytest.raises(UnauthorizedError):
        stranger.rollback("I want to")
    with pytest.raises(ConflictError):
        loop.client.rollback("there is none yet")
    body = {"reason": "no header"}
    assert httpx2.post(f"{loop.url}/loop/admin/rollback", json=body).status_code == 401


def test_the_fallback_proxy_answers_as_well(loop: Loop) -> None:
    port = os.environ["RAY_SERVE_FALLBACK_PROXY_HTTP_PORT"]
    answer = httpx2.post(f"http://127.0.0.1:{port}/loop/predict", json={"features": ROW})
    assert answer.status_code == 200
    assert answer.json()["version"] == "v1"


def test_a_controller_killed_in_mid_canary_comes_back_to_the_same_step(loop: Loop) -> None:
    land(loop.landing, 6, 7)
    loop.until(lambda s: s.split > 0)
    loop.client.pause("look at it", key="pause-1")
    before = loop.until(lambda s: s.raw["paused"])
    pid = ray.get(find_controller().ping.remote(), timeout=30)["pid"]
    os.kill(pid, signal.SIGKILL)
    after = loop.until(lambda s: s.epoch > before.epoch, 60)
    assert after.raw["paused"]
    assert (after.rollout.id, after.rollout.step, after.split) == (
        before.rollout.id,
        before.rollout.step,
        before.split,
    )
    assert after.generation == before.generation
    assert loop.versions_since(time.time()) == {"v1", "v2"}
    assert not loop.failed()


def test_fresh_data_is_promoted_under_traffic_through_shadow_and_canary(loop: Loop) -> None:
    loop.client.resume("it looks well", key="resume-1")
    status = loop.until(lambda s: s.champion.label == "v2" and s.converged == s.generation)
    assert loop.versions_since(time.time() + 1) == {"v2"}
    assert status.previous.label == "v1"
    kinds = [event["kind"] for event in loop.client.why("v2")]
    assert kinds[0] == "run_started"
    assert kinds.index("gate_decided") < kinds.index("rollout_started") < kinds.index("promoted")
    assert not loop.failed()


def test_rollback_goes_to_the_resident_previous_champion_once_for_a_key(loop: Loop) -> None:
    first = loop.client.rollback("pager", key="pager-1")
    assert loop.versions_since(time.time() + 1) == {"v1"}
    assert loop.client.rollback("pager", key="pager-1")["after"] == first["after"]
    status = loop.until(lambda s: s.champion.label == "v1" and s.converged == s.generation, 10)
    assert status.previous is None


def test_a_killed_replica_loses_at_most_the_answers_of_its_last_flush(loop: Loop) -> None:
    victim = processes("ServeReplica:loop:predictor")[0]
    begun = [loop.begin() for _ in range(16)]
    killed_at = time.time()
    victim.kill()
    assert {loop.finish(request) for request in begun} == {200}, "also one whose body is still under way"
    loop.until(lambda s: len(s.raw["replicas"]) >= 2 and all(r["serves"] for r in s.raw["replicas"]), 90)
    loop.versions_since(killed_at + 3)
    answered = [a for a in loop.answers if a.status == 200 and a.ended < time.time() - 4 * FLUSH]
    logged = set(read_log(loop.root.pipeline("loop").log, 0, time.time()).column("prediction_id").to_pylist())
    lost = [answer for answer in answered if answer.prediction_id not in logged]
    # one flush, and what a busy machine adds to its timer; after the kill the victim answers no more
    assert all(killed_at - 2 * FLUSH <= answer.ended <= killed_at + 0.1 for answer in lost)
    assert not loop.failed(), "the proxy repeats what a killed replica did not answer"


def test_what_the_replicas_answered_is_what_the_batch_path_computes(loop: Loop) -> None:
    answers = read_log(loop.root.pipeline("loop").log, 0, time.time() + 60)
    answers = answers.filter(pc.not_equal(answers.column("slot"), "shadow"))
    report = check_skew(answers.slice(0, 2000), BatchPath(loop.root))
    assert (report.state, report.gone, report.refused) == ("alike", 0, 0)
    assert report.rows == min(answers.num_rows, 2000)
    assert report.largest < 1e-6
    assert len(set(answers.column("version").to_pylist())) > 1


def test_what_it_measures_is_on_ray_s_own_endpoint(loop: Loop) -> None:
    port = ray.nodes()[0]["MetricsExportPort"]
    deadline, found = time.monotonic() + 30, ""
    while "ctrain_requests" not in found:
        assert time.monotonic() < deadline, found[-2000:]
        found = httpx2.get(f"http://127.0.0.1:{port}/metrics", timeout=10).text
        time.sleep(0.5)
    assert 'pipeline="loop"' in found


def test_the_journal_of_it_all_verifies(loop: Loop) -> None:
    from ctrain.driver.verbs import audit

    report = audit("loop", root=str(loop.root.path), say=lambda text: None)
    assert json.dumps(report)
    assert report["events"] > 30
