"""The actor that hosts the controllers of a namespace's pipelines, each with its own journal and loop.

Detached and named, restarted for ever (`max_restarts=-1`), but never calling a method again by itself
(`max_task_retries=0`: a transparent retry would run a promotion twice; callers retry with the same
idempotency key instead). It imports installed ctrain only: user code runs in tasks and replicas.
Which pipelines it hosts stands in a table of the root, which a restart replays.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
import uuid
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import ray

import ctrain
from ctrain.controller.clock import SteadyClock
from ctrain.controller.controller import Controller, recover
from ctrain.controller.journal import Event, Journal
from ctrain.controller.rooms import Rooms
from ctrain.controller.status import status_of
from ctrain.errors import CtrainError, FencedError, KeyReusedError, StorageError
from ctrain.records import Json, LiveDocument, ReplicaReport, from_json, to_json
from ctrain.spec import PipelineSpec, parse_spec
from ctrain.storage import Root
from ctrain.telemetry import metrics

log = logging.getLogger("ctrain.controller")

ACTOR_NAME = "ctrain-controller"
STEP_EVERY = 0.25
"""Seconds between two steps when nothing wakes the loop."""


def namespace() -> str:
    """Ray namespace of ctrain's actors: CTRAIN_NAMESPACE, or `ctrain`."""
    return os.environ.get("CTRAIN_NAMESPACE", "ctrain")


class Host:
    """One pipeline's controller and its loop in a thread."""

    def __init__(self, spec: PipelineSpec, root: Root) -> None:
        from ctrain.serving.deploy import RayServing

        self.spec, self.root = spec, root
        self.lock = threading.Lock()
        self.wake = threading.Event()
        self.ended = threading.Event()
        self.error = ""
        self.serving = RayServing(spec.pipeline, root, spec, namespace())
        journal = Journal(root.pipeline(spec.pipeline).journal_url(), spec.pipeline)
        self.journal = journal
        clock = SteadyClock(not_before=journal.newest())
        owner = f"pid {os.getpid()} {uuid.uuid4().hex[:8]}"
        rooms = ray_rooms(spec, root, self.serving)
        told = partial(count, spec.pipeline)
        self.controller = Controller(journal, rooms, str(root.path), clock, owner, told)
        self.document: LiveDocument = self.controller.document
        self.thread = threading.Thread(target=self._loop, name=f"loop-{spec.pipeline}", daemon=True)

    def end(self) -> None:
        """End the loop and wait for the step under way."""
        self.ended.set()
        self.wake.set()
        self.thread.join(timeout=30)
        self.journal.close()

    def _loop(self) -> None:
        while not self.ended.is_set():
            try:
                with self.lock:
                    began = time.monotonic()
                    self.controller.step()
                    self.document = self.controller.document
                metrics.STEP_SECONDS.put(time.monotonic() - began, pipeline=self.spec.pipeline)
                metrics.SPLIT.put(self.document.split, pipeline=self.spec.pipeline)
                self.error = ""
            except FencedError as error:
                log.warning("%s", error)
                self.error = str(error)
                return
            except Exception as error:
                self.error = f"{type(error).__name__}: {error}"
                log.exception("step of %s failed; trying again", self.spec.pipeline)
                self.ended.wait(1.0)
                with self.lock:
                    self.controller.reload()
            self.wake.wait(STEP_EVERY)
            self.wake.clear()


def count(pipeline: str, event: Event) -> None:
    """Turn an event into metrics on Ray's endpoint."""
    match event.kind:
        case "run_finished" | "run_failed":
            metrics.RUNS.add(1, pipeline=pipeline, result=event.kind.removeprefix("run_"))
        case "partition_committed" | "partition_refused":
            metrics.PARTITIONS.add(1, pipeline=pipeline, result=event.kind.removeprefix("partition_"))
        case "promoted" | "rolled_back":
            metrics.PROMOTIONS.add(1, pipeline=pipeline, kind=event.kind)


def ray_rooms(spec: PipelineSpec, root: Root, serving: Any) -> Rooms:
    """The real rooms of a pipeline, on Ray."""
    from ctrain.controller.tasks import TaskRoom
    from ctrain.data import FileSource, ingest
    from ctrain.evaluation.score import evaluate
    from ctrain.monitoring.windows import summarise
    from ctrain.registry import Registry
    from ctrain.storage.code import code_uri
    from ctrain.training import RayTraining

    def environment(request: Any) -> dict[str, Any]:
        code = request.code if hasattr(request, "code") else current_code()
        return {"working_dir": code_uri(root, code)} if code else {}

    def current_code() -> str:
        journal = Journal(root.pipeline(spec.pipeline).journal_url(), spec.pipeline)
        with closing(journal):
            return recover(journal).code

    return Rooms(
        source=FileSource(spec),
        ingest=TaskRoom("ingest", ingest, environment),
        training=RayTraining(namespace()),
        registry=Registry(root),
        evaluation=TaskRoom("evaluate", evaluate, environment),
        monitoring=TaskRoom("monitor", summarise, environment),
        serving=serving,
    )


class ControllerActor:
    """Messages that jobs, replicas and the command line send. Every mutating one carries a key.

    Args:
        root: Absolute path of the root that all its pipelines share.
    """

    def __init__(self, root: str) -> None:
        logging.basicConfig(level=logging.INFO)
        self._root = Root(Path(root), os.environ.get("CTRAIN_STORE", ""))
        self._hosts: dict[str, Host] = {}
        self._lock = threading.Lock()
        for text in self._registered():
            self._host(parse_spec(text))

    def ping(self) -> Json:
        """Who answers: ctrain's version, process id, root."""
        return {"ctrain": ctrain.__version__, "pid": os.getpid(), "root": str(self._root.path)}

    def add(self, spec: Json, root: str, code: str, key: str, by: str = "job", reason: str = "") -> Json:
        """Host a pipeline, or give it a new spec or new code. Repeating changes nothing."""
        if Path(root) != self._root.path:
            problem = f"this namespace's controller keeps its pipelines in {self._root.path}, not in {root}"
            return {"ok": False, "status": 409, "error": problem}
        parsed = parse_spec(spec)
        with self._lock:
            self._register(parsed)
            host = self._hosts.get(parsed.pipeline)
            if host is not None and host.spec != parsed:
                # Rooms are built from the spec; a fresh host takes over by its higher epoch.
                host.end()
                host = None
            host = host or self._host(parsed)
        body = {"spec": parsed.to_json(), "code": code}
        return self._operate(host, "start", key, by, reason or "start", body)

    def remove(self, pipeline: str, key: str, reason: str, by: str = "job") -> Json:
        """Stop a pipeline: its application goes, its root stays."""
        answer = self.operate(pipeline, "stop", key, {"reason": reason, "by": by})
        if answer["ok"]:
            with self._lock:
                host = self._hosts.pop(pipeline, None)
                self._unregister(pipeline)
            if host is not None:
                host.end()
        return answer

    def pipelines(self) -> list[str]:
        """Names of the pipelines hosted here."""
        return sorted(self._hosts)

    def pull(self, pipeline: str, report: Json) -> Json | None:
        """A replica reports and is told what to serve; None where the pipeline is not hosted."""
        host = self._hosts.get(pipeline)
        if host is None:
            return None
        host.serving.heard(from_json(ReplicaReport, report))
        document: Json = to_json(host.document)
        return document

    def operate(self, pipeline: str, verb: str, key: str, body: Json) -> Json:
        """Run an operator's verb once for each key; the answer says its HTTP status."""
        host = self._hosts.get(pipeline)
        if host is None:
            return {"ok": False, "status": 404, "error": f"no pipeline {pipeline!r} is hosted here"}
        by, reason = str(body.get("by") or "operator"), str(body.get("reason") or "")
        if not reason:
            return {"ok": False, "status": 422, "error": "reason: required, says why"}
        rest = {name: value for name, value in body.items() if name not in ("by", "reason")}
        return self._operate(host, verb, key, by, reason, rest)

    def status(self, pipeline: str) -> Json:
        """What `ctrain status --json` prints."""
        host = self._hosts.get(pipeline)
        if host is None:
            return {"pipeline": pipeline, "error": f"no pipeline {pipeline!r} is hosted here"}
        controller = host.controller
        return status_of(
            controller.state,
            controller.document,
            host.serving.observe(),
            time.time(),
            host.error,
            controller.progress,
        )

    def why(self, pipeline: str, version: str = "", limit: int = 200) -> list[Json]:
        """Events of the journal, newest last; with a version, those that mention it or its run."""
        host = self._hosts.get(pipeline)
        if host is None:
            return []
        from ctrain.controller.status import why

        return why(host.journal, host.controller.state, version, limit)

    def _operate(self, host: Host, verb: str, key: str, by: str, reason: str, body: Json) -> Json:
        try:
            with host.lock:
                answer = host.controller.operate(verb, key, by, reason, body)
                host.document = host.controller.document
        except KeyReusedError as error:
            return {"ok": False, "status": 422, "error": str(error)}
        except CtrainError as error:
            return {"ok": False, "status": 503, "error": str(error)}
        host.wake.set()
        return answer

    def _host(self, spec: PipelineSpec) -> Host:
        host = Host(spec, self._root)
        self._hosts[spec.pipeline] = host
        host.thread.start()
        return host

    # --- the table of pipelines ---

    def _table(self) -> sqlite3.Connection:
        self._root.path.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(self._root.path / "pipelines.db", timeout=30)
        connection.execute("create table if not exists pipeline (name text primary key, spec text not null)")
        return connection

    def _registered(self) -> list[Json]:
        import json

        with closing(self._table()) as table:
            return [json.loads(row[0]) for row in table.execute("select spec from pipeline order by name")]

    def _register(self, spec: PipelineSpec) -> None:
        import json

        with closing(self._table()) as table, table:
            row = (spec.pipeline, json.dumps(spec.to_json()))
            table.execute("insert or replace into pipeline values (?, ?)", row)

    def _unregister(self, pipeline: str) -> None:
        with closing(self._table()) as table, table:
            table.execute("delete from pipeline where name = ?", (pipeline,))


def get_or_create_controller(root: Root) -> Any:
    """The namespace's controller actor, made at the first call; replaced if its ctrain is another.

    Raises:
        StorageError: if the actor keeps another root.
    """
    actor: Any = (
        ray.remote(ControllerActor)
        .options(
            name=ACTOR_NAME,
            namespace=namespace(),
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            max_restarts=-1,
            max_task_retries=0,
            max_concurrency=64,
            runtime_env={
                "env_vars": {
                    "CTRAIN_NAMESPACE": namespace(),
                    "CTRAIN_STORE": root.store,
                    "CTRAIN_JOURNAL": os.environ.get("CTRAIN_JOURNAL", ""),
                    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "1",
                    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
                }
            },
        )
        .remote(str(root.path))
    )
    who = ray.get(actor.ping.remote(), timeout=60)
    if who["root"] != str(root.path):
        raise StorageError(
            f"the controller of namespace {namespace()} keeps root {who['root']}, not {root.path}. "
            "Set CTRAIN_ROOT to that, or CTRAIN_NAMESPACE to another namespace."
        )
    if who["ctrain"] != ctrain.__version__:
        ray.kill(actor)
        return get_or_create_controller(root)
    return actor


def find_controller() -> Any:
    """The namespace's controller actor. Raises ValueError where none was started."""
    return ray.get_actor(ACTOR_NAME, namespace=namespace())
