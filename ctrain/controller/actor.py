"""The actor that hosts the controllers of a namespace's pipelines, each with its own journal and loop.

Detached and named, restarted for ever (`max_restarts=-1`), but never calling a method again by itself
(`max_task_retries=0`: a transparent retry would run a promotion twice; callers retry with the same
idempotency key instead). It imports installed ctrain only: user code runs in tasks and replicas.
Which pipelines it hosts stands in a table of the root; everything else a restart reads in their journals.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import ray
from sqlalchemy.exc import SQLAlchemyError

import ctrain
from ctrain.controller.clock import SteadyClock
from ctrain.controller.controller import Controller, recover
from ctrain.controller.journal import Event, Journal
from ctrain.controller.rooms import Rooms
from ctrain.controller.status import status_of
from ctrain.errors import CtrainError, FencedError, KeyReusedError, StorageError
from ctrain.records import Json, Observed, ReplicaReport, from_json, to_json
from ctrain.spec import PipelineSpec, parse_spec
from ctrain.storage import Root
from ctrain.telemetry import metrics

log = logging.getLogger("ctrain.controller")

ACTOR_NAME = "ctrain-controller"
STEP_EVERY = 0.25
"""Seconds between two steps when nothing wakes the loop."""
STEP_STOPPED = 5.0
"""The same for a pipeline that is stopped."""


class UnreadyError(CtrainError):
    """A pipeline's controller could not be made yet."""


def namespace() -> str:
    """Ray namespace of ctrain's actors: CTRAIN_NAMESPACE, or `ctrain`."""
    return os.environ.get("CTRAIN_NAMESPACE", "ctrain")


class Host:
    """One pipeline's controller, and the loop in a thread that steps it.

    The loop is the only one that makes a controller: at its start, and anew after whatever went wrong in
    the one before, so a database that is away for a while ends nothing.
    """

    def __init__(self, pipeline: str, root: Root, rooms: Callable[[PipelineSpec], Rooms]) -> None:
        self.pipeline, self.root = pipeline, root
        self.lock = threading.RLock()
        """Held while the controller is used: it knows one caller at a time."""
        self.wake = threading.Event()
        self.ended = threading.Event()
        self.error = "its controller is starting"
        self.controller: Controller | None = None
        self.journal: Journal | None = None
        self._rooms = rooms
        self._built: tuple[PipelineSpec, Rooms] | None = None
        self.thread = threading.Thread(target=self._loop, name=f"loop-{pipeline}", daemon=True)

    def wait(self, seconds: float) -> Controller:
        """The controller, once there is one.

        Raises:
            UnreadyError: says what keeps it from being there.
        """
        end = time.monotonic() + seconds
        while self.controller is None:
            if time.monotonic() > end or self.ended.is_set():
                raise UnreadyError(f"{self.pipeline}: {self.error}")
            time.sleep(0.01)
        return self.controller

    def build(self, spec: PipelineSpec) -> Rooms:
        """The rooms of a spec, made once for it; raises what a source or library raises."""
        if self._built is None or self._built[0] != spec:
            self._built = (spec, self._rooms(spec))
        return self._built[1]

    def operate(self, verb: str, key: str, by: str, reason: str, body: Json) -> Json:
        """Do what a person asks, once for each key; rooms follow the spec that is journaled."""
        with self.lock:
            controller = self.wait(0)
            answer = controller.operate(verb, key, by, reason, body)
            if verb == "start":
                controller.replace_rooms(self.build(controller.state.pipeline_spec()))
        self.wake.set()
        return answer

    def observe(self) -> Observed:
        """What the replicas say."""
        return self._built[1].serving.observe() if self._built else Observed((), None)

    def heard(self, report: ReplicaReport) -> None:
        """Note what a replica says of itself."""
        if self._built is not None:
            serving: Any = self._built[1].serving
            serving.heard(report)

    def end(self) -> None:
        """End the loop and wait for the step under way."""
        self.ended.set()
        self.wake.set()
        self.thread.join(timeout=30)

    def _loop(self) -> None:
        while not self.ended.is_set():
            try:
                self._take_over()
                while not self.ended.is_set():
                    self._step()
            except FencedError as error:
                self.error = str(error)
                log.warning("%s", error)
                return
            except Exception as error:
                self.error = f"{type(error).__name__}: {error}"
                log.exception("the controller of %s failed; another one takes over", self.pipeline)
                self.ended.wait(1.0)
            finally:
                with self.lock:
                    self.controller = None
                    if self.journal is not None:
                        self.journal.close()

    def _take_over(self) -> None:
        journal = Journal(self.root.pipeline(self.pipeline).journal_url(), self.pipeline)
        self.journal = journal
        clock = SteadyClock(not_before=journal.newest())
        owner = f"pid {os.getpid()} {uuid.uuid4().hex[:8]}"
        state = recover(journal)
        if state.spec:
            self.build(state.pipeline_spec())
        if self._built is None:
            raise UnreadyError(f"{self.pipeline} was never started")
        told = partial(count, self.pipeline)
        self.controller = Controller(journal, self._built[1], str(self.root.path), clock, owner, told)
        self.error = ""

    def _step(self) -> None:
        assert self.controller is not None
        with self.lock:
            began = time.monotonic()
            self.controller.step()
            self.error = "; ".join(f"{door}: {fault}" for door, fault in self.controller.faults.items())
            split, gone = self.controller.document.split, self.controller.gone
        metrics.STEP_SECONDS.put(time.monotonic() - began, pipeline=self.pipeline)
        metrics.SPLIT.put(split, pipeline=self.pipeline)
        self.wake.wait(STEP_EVERY if not gone else STEP_STOPPED)
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
        case "window_closed" if (event.data.get("report") or {}).get("skew"):
            metrics.SKEWED.put(event.data["report"]["skew"]["share"], pipeline=pipeline)


def ray_rooms(spec: PipelineSpec, root: Root) -> Rooms:
    """The real rooms of a pipeline, on Ray."""
    from ctrain.controller.tasks import LookRoom, TaskRoom
    from ctrain.data import FileSource, ingest
    from ctrain.evaluation.score import evaluate
    from ctrain.monitoring.windows import summarise
    from ctrain.registry import Registry
    from ctrain.serving.deploy import RayServing
    from ctrain.storage.code import code_uri
    from ctrain.training import RayTraining

    def environment(request: Any) -> dict[str, Any]:
        return {"working_dir": code_uri(root, request.code)} if request.code else {}

    return Rooms(
        source=LookRoom(FileSource(spec).look),
        ingest=TaskRoom("ingest", ingest, environment),
        training=RayTraining(namespace()),
        registry=Registry(root),
        evaluation=TaskRoom("evaluate", evaluate, environment),
        monitoring=TaskRoom("monitor", summarise, environment),
        serving=RayServing(spec.pipeline, root, spec, namespace()),
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
        for name in self._registered():
            self._host(name).thread.start()

    def ping(self) -> Json:
        """Who answers: ctrain's version, process id, root."""
        return {"ctrain": ctrain.__version__, "pid": os.getpid(), "root": str(self._root.path)}

    def add(self, spec: Json, root: str, code: str, key: str, by: str = "job", reason: str = "") -> Json:
        """Host a pipeline, or give it a new spec or new code. Repeating changes nothing."""
        if Path(root) != self._root.path:
            problem = f"this namespace's controller keeps its pipelines in {self._root.path}, not in {root}"
            return {"ok": False, "status": 409, "error": problem}
        parsed = parse_spec(spec)
        try:
            ray_rooms(parsed, self._root)  # what cannot be opened must not be journaled
        except Exception as error:
            log.exception("%s cannot be started", parsed.pipeline)
            problem = f"{parsed.pipeline} cannot be started: {type(error).__name__}: {error}"
            return {"ok": False, "status": 422, "error": problem}
        with self._lock:
            host = self._hosts.get(parsed.pipeline)
            if host is None or not host.thread.is_alive():  # never hosted here, or fenced
                host = self._host(parsed.pipeline)
                host.build(parsed)
                host.thread.start()
        try:
            host.wait(20.0)
        except UnreadyError as error:
            return {"ok": False, "status": 503, "error": str(error)}
        answer = self._operate(
            host, "start", key, by, reason or "start", {"spec": parsed.to_json(), "code": code}
        )
        if answer["ok"]:
            self._register(parsed.pipeline)
        return answer

    def remove(self, pipeline: str, key: str, reason: str, by: str = "job") -> Json:
        """Stop a pipeline: its application goes, its root stays, and a start takes it up again."""
        return self.operate(pipeline, "stop", key, {"reason": reason, "by": by})

    def pipelines(self) -> list[str]:
        """Names of the pipelines that run here."""
        return sorted(name for name, host in self._hosts.items() if not _stopped(host))

    def pull(self, pipeline: str, report: Json) -> Json | None:
        """A replica reports and is told what to serve; None where the pipeline is not hosted."""
        host = self._hosts.get(pipeline)
        if host is None:
            return None
        host.heard(from_json(ReplicaReport, report))
        controller = host.controller
        document: Json | None = to_json(controller.document) if controller is not None else None
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
        if controller is None:
            return {"pipeline": pipeline, "error": host.error}
        return status_of(
            controller.state,
            controller.document,
            host.observe(),
            time.time(),
            host.error,
            controller.progress,
        )

    def why(self, pipeline: str, version: str = "", limit: int = 200, after: int = 0) -> list[Json]:
        """Events of the journal, newest last; with a version, those that mention it or its run.

        Args:
            pipeline: Its name.
            version: Id or label; empty for everything.
            limit: Events at most, the newest ones.
            after: Sequence number that they come after.
        """
        host = self._hosts.get(pipeline)
        if host is None or host.controller is None or host.journal is None:
            return []
        from ctrain.controller.status import why

        return why(host.journal, host.controller.state, version, limit, after)

    def _operate(self, host: Host, verb: str, key: str, by: str, reason: str, body: Json) -> Json:
        try:
            return host.operate(verb, key, by, reason, body)
        except KeyReusedError as error:
            return {"ok": False, "status": 422, "error": str(error)}
        except (CtrainError, SQLAlchemyError) as error:
            return {"ok": False, "status": 503, "error": str(error)}

    def _host(self, pipeline: str) -> Host:
        host = Host(pipeline, self._root, partial(ray_rooms, root=self._root))
        self._hosts[pipeline] = host
        return host

    # --- the table of pipelines ---

    def _table(self) -> sqlite3.Connection:
        self._root.path.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(self._root.path / "pipelines.db", timeout=30)
        connection.execute("create table if not exists pipeline (name text primary key)")
        return connection

    def _registered(self) -> list[str]:
        with closing(self._table()) as table:
            return [row[0] for row in table.execute("select name from pipeline order by name")]

    def _register(self, pipeline: str) -> None:
        with closing(self._table()) as table, table:
            table.execute("insert or ignore into pipeline values (?)", (pipeline,))


def _stopped(host: Host) -> bool:
    return host.controller is not None and host.controller.state.stopped


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
