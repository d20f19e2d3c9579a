"""The replica: answers predictions, takes documents, labels and operators' verbs.

`Predictor` is the deployment class (`app.py` wraps it). The predict path is a plain method without a web
framework; one request reads one reference to what is live and answers with one version. What it refuses: a
request that breaks the champion's columns (4xx), work beyond its own limit (503), and everything that would
keep the event loop waiting.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
import uuid
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from ctrain.errors import ServingError
from ctrain.records import LiveDocument, ReplicaReport, Slot, from_json, to_json
from ctrain.serving.counters import ArmName, Counters, Mirror, Mirrored, finite
from ctrain.serving.http import LabelRoutes, Operator, answer, openapi, read_body, unavailable
from ctrain.serving.ids import PredictionIds
from ctrain.serving.labels import LabelStore
from ctrain.serving.link import ControllerBusyError, ControllerLink, Puller
from ctrain.serving.prediction_log import Answer, PredictionLog
from ctrain.serving.schemas import MOST_PROBLEMS, PredictRequest, Problem, RefusedRequest, RequestSchema
from ctrain.serving.split import challenger_answers
from ctrain.serving.weights import FAILURES, Live, Model, Weights
from ctrain.storage import Root
from ctrain.telemetry import metrics
from ctrain.telemetry.log import logger

_log = logger("serving")
_ROWS_ON_LOOP = 64
"""Requests with more rows are scored in a thread, so that they do not hold up small ones."""

_VERSIONS_REMEMBERED = 8
"""Versions that were resident lately and whose columns a request may still hold."""

_STARTED_AGAIN = 0.5
"""Seconds between two tries to read the live document at start."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one replica, from the spec's `serving`."""

    max_in_flight: int = 200
    body_limit: int = 1_048_576
    flush: float = 1.0
    start_timeout: float = 60.0
    """Seconds that a start waits for the live document and its champion."""
    horizon: float = 30 * 86400.0
    """Seconds after which a label is dropped as late."""


class Predictor:
    """One replica of a pipeline's application.

    Args:
        pipeline: Name of the pipeline.
        root: The root's absolute path.
        store: URL for models, code and live documents; empty means the root.
        limits: As `Limits`.
        replica: Id of the replica; Serve's own by default.
        load: Loads a slot; the real loader by default.
        link: Line to the controller; the named actor by default.

    Raises:
        ServingError: if there is a live document whose champion is neither resident nor refused in time, so
            that Serve counts a failed start and sends no requests here.
    """

    def __init__(
        self,
        pipeline: str,
        root: Root,
        limits: Limits | None = None,
        replica: str = "",
        load: Callable[[Root, Slot], Model] | None = None,
        link: Any = None,
    ) -> None:
        _one_thread()
        self.pipeline, self.root, self.limits = pipeline, root, limits or Limits()
        self.replica = replica or _replica_id()
        self.incarnation = uuid.uuid4().hex[:12]
        self.counters = Counters()
        self._ids = PredictionIds(pipeline, self.replica)
        folder = root.pipeline(pipeline).log
        self.log = PredictionLog(folder, f"{self.replica}-{self.incarnation}", self.limits.flush)
        self.mirror = Mirror(self.counters, self.log)
        self._labels = LabelRoutes(pipeline, LabelStore(folder, self.limits.horizon))
        self._schema: tuple[dict[str, Any], dict[str, Any], RequestSchema] | None = None
        """The newest schema, and the columns that it was made of: making one takes milliseconds."""
        self._lately: dict[str, dict[str, Any]] = {}
        self._in_flight = 0
        self._published: dict[str, int] = {}
        self._link = link or ControllerLink()
        self._operator = Operator(pipeline, root, self._link)
        self.weights = Weights(pipeline, root, load, self._schema_of)
        self._puller: Puller | None = None
        try:
            self._start_from_storage()
        except ServingError:
            self.close()
            raise
        self._puller = Puller(self._exchange, self._take)

    # --- documents ---------------------------------------------------------------------------

    async def reconfigure(self, document: Any) -> Any:
        """Take a live document, from Serve's `user_config` or the controller's broadcast.

        Never raises and never awaits: while Serve runs it, the replica is out of routing.

        Returns:
            This replica's report as JSON.
        """
        self._take(document)
        return to_json(self.report())

    def report(self) -> ReplicaReport:
        """What this replica says of itself."""
        wanted = self.weights.wanted
        return ReplicaReport(
            replica=self.replica,
            incarnation=self.incarnation,
            epoch=wanted.epoch,
            generation=wanted.generation,
            resident=self.weights.resident,
            refused=self.weights.refused,
            arms=self.counters.arms(),
            pairs=self.counters.pairs(),
            answered=self.counters.answered,
            failed=self.counters.failed,
            latency=self.counters.latency(),
            dropped=self.log.dropped,
            at=time.time(),
        )

    async def check_health(self) -> None:
        """Serve's health check: all threads must live."""
        alive = {
            "loader": self.weights.alive,
            "mirror": self.mirror.alive,
            "pull": self._puller is not None and self._puller.alive,
            "log": self.log.alive,
        }
        ended = [name for name, lives in alive.items() if not lives]
        if ended:
            raise ServingError(f"ended threads: {', '.join(ended)}; the replica must be replaced")

    def close(self) -> None:
        """End all threads and flush the log."""
        if self._puller is not None:
            self._puller.close()
        self._operator.close()
        self.mirror.close()
        self.weights.close()
        self.log.close()

    def _start_from_storage(self) -> None:
        """Take the live document of storage, and wait for its champion."""
        end = time.monotonic() + self.limits.start_timeout
        document = self._stored(end)
        if document is None or not self.weights.offer(document):
            return
        if not self.weights.wait(end - time.monotonic()):
            assert document.champion is not None
            raise ServingError(
                f"pipeline {self.pipeline}: the weights of {document.champion.label} are not resident after "
                f"{self.limits.start_timeout:.0f} s; the log says why. Check the root's storage"
            )

    def _stored(self, end: float) -> LiveDocument | None:
        """The live document; storage that is away is asked again, a document nobody can read is none."""
        while True:
            try:
                return self.root.read_live(self.pipeline)
            except ValueError as error:
                problem = type(error).__name__
                _log.warning("live document is unreadable: %s", problem, extra={"pipeline": self.pipeline})
                return None
            except FAILURES as error:
                if time.monotonic() >= end:
                    problem = f"pipeline {self.pipeline}: the live document cannot be read: {error}"
                    raise ServingError(problem) from error
                _log.warning("live document not read yet: %s", error, extra={"pipeline": self.pipeline})
            time.sleep(max(0.0, min(_STARTED_AGAIN, end - time.monotonic())))

    def _take(self, document: Any) -> None:
        try:
            self.weights.offer(from_json(LiveDocument, document))
        except (ValidationError, *FAILURES) as error:
            _log.warning("document ignored: %s", type(error).__name__, extra={"pipeline": self.pipeline})

    def _schema_of(self, live: Live) -> RequestSchema | None:
        """The request schema of a champion, made before it answers.

        Columns of versions that are or lately were resident stay allowed: a client that sends old and new
        fields is not refused because a rollout ended.
        """
        if live.champion is None:
            return None
        lately = dict(self._lately)
        for model in (live.previous, live.challenger, live.champion):
            if model is not None:
                lately.pop(model.version, None)
                lately[model.version] = model.columns
        lately = dict(list(lately.items())[-_VERSIONS_REMEMBERED:])
        also = {name: column for columns in lately.values() for name, column in columns.items()}
        also = {name: column for name, column in also.items() if name not in live.champion.columns}
        if self._schema is None or self._schema[:2] != (live.champion.columns, also):
            self._schema = (live.champion.columns, also, RequestSchema(live.champion.columns, also))
        self._lately = lately
        return self._schema[2]

    def _exchange(self) -> Any:
        report = self.report()
        self._publish(report)
        return self._link.call("pull", self.pipeline, to_json(report))

    def _publish(self, report: ReplicaReport) -> None:
        for name, value in (("ok", report.answered), ("failed", report.failed), ("dropped", report.dropped)):
            grown = value - self._published.get(name, 0)
            self._published[name] = value
            if name == "dropped":
                metrics.LOG_DROPPED.add(grown, pipeline=self.pipeline)
            else:
                metrics.REQUESTS.add(grown, pipeline=self.pipeline, result=name)
        tags = {"pipeline": self.pipeline, "replica": self.replica}
        metrics.GENERATION.put(report.generation, **tags)
        metrics.REFUSED.put(len(report.refused), **tags)
        for quantile, seconds in report.latency.items():
            metrics.MODEL_SECONDS.put(seconds, quantile=quantile, **tags)

    # --- requests ----------------------------------------------------------------------------

    async def __call__(self, request: Request) -> Response:
        """Answer one HTTP request below the pipeline's prefix."""
        scope = request.scope
        path = scope["path"][len(scope.get("root_path", "")) :].rstrip("/") or "/"
        if self._in_flight >= self.limits.max_in_flight:
            self.counters.failed += 1
            return unavailable("the replica is busy")
        self._in_flight += 1
        try:
            response = await self._route(path, request)
        except RefusedRequest as refused:
            return answer(refused.status, refused.body())
        except ClientDisconnect:
            return answer(400, {"error": "the client went away", "problems": []})
        except FAILURES as error:  # nobody foresaw it; its words may hold what was sent
            _log.error("request failed: %s", type(error).__name__, extra={"pipeline": self.pipeline})
            response = answer(500, {"error": "the replica failed on this request", "problems": []})
        finally:
            self._in_flight -= 1
        if response.status_code >= 500:
            self.counters.failed += 1
        return response

    async def _route(self, path: str, request: Request) -> Response:
        if path == "/predict":
            if request.method != "POST":
                return _wrong_method("POST")
            return await self._predict(await read_body(request, self.limits.body_limit))
        if path == "/labels":
            if request.method != "POST":
                return _wrong_method("POST")
            return await self._labels.store(await read_body(request, self.limits.body_limit))
        if path.startswith("/admin/"):
            return await self._operator.verb(path.removeprefix("/admin/"), request, self.limits.body_limit)
        if path == "/why" and request.method == "GET":
            return await self._operator.why(request.query_params)
        page = {"/health": self._health, "/status": self._status, "/openapi.json": self._openapi}.get(path)
        if page is None:
            return answer(404, {"error": f"{self.pipeline} has no such path", "problems": []})
        if request.method not in ("GET", "HEAD"):
            return _wrong_method("GET")
        return await page()

    async def _predict(self, body: bytes) -> Response:
        live = self.weights.now
        schema: RequestSchema | None = live.schema
        if live.champion is None or schema is None:
            return unavailable("no champion yet")
        asked = schema.read(body)
        document, split = live.document, live.document.split
        arm: ArmName = "champion"
        values: list[float] | None = None
        seconds = 0.0
        model = live.champion
        in_rollout = live.challenger is not None and bool(document.rollout)
        fell_back = False
        if in_rollout and challenger_answers(document.rollout, asked.key, split):
            assert live.challenger is not None
            if live.challenger_can_score(asked.rows):
                values, seconds = await _score(live.challenger, asked.rows)
            fell_back = not _good(values, asked)
            self._count(document, "challenger", fell_back, seconds, asked.key)
            if not fell_back:
                arm, model = "challenger", live.challenger
        if arm == "champion":
            values, seconds = await _score(live.champion, asked.rows)
            good = _good(values, asked)
            # An answer in the challenger's place is no draw of the champion's arm, and where every request
            # is the champion's no coin was thrown.
            if in_rollout and split > 0.0 and not fell_back:
                self._count(document, "champion", not good, seconds, asked.key)
            if not good:
                return _no_answer(values, asked)
            self.counters.took(seconds)
            assert values is not None
        assert values is not None
        self.counters.answered += 1
        now = time.time()
        ids = [self._ids.new(now) for _ in asked.rows]
        if arm == "champion" and live.shadow is not None and not fell_back:
            self.mirror.offer(Mirrored(live, asked.rows, values, ids, now))
        return self._answer(live, asked, model, arm, values, seconds, ids, now)

    def _count(
        self, document: LiveDocument, arm: ArmName, failed: bool, seconds: float, client: str | None
    ) -> None:
        slow = bisect_right(document.slow_s, seconds)
        self.counters.arm(document.rollout, document.split, arm, failed, slow, client or None)

    def _answer(
        self,
        live: Live,
        asked: PredictRequest,
        model: Model,
        arm: ArmName,
        values: list[float],
        seconds: float,
        ids: list[str],
        now: float,
    ) -> Response:
        document = live.document
        label = live.labels.get(model.version, model.version)
        predictions = []
        for row, value, prediction_id in zip(asked.rows, values, ids, strict=True):
            predictions.append({"value": value, "prediction_id": prediction_id})
            self.log.append(
                Answer(
                    prediction_id,
                    now,
                    asked.key,
                    model.version,
                    label,
                    arm,
                    document.rollout,
                    document.split,
                    value,
                    model.threshold,
                    seconds,
                    row,
                )
            )
        named = {"version": label, "slot": arm}
        if asked.many:
            return answer(200, {"predictions": predictions, **named})
        return answer(200, predictions[0] | named)

    async def _health(self) -> Response:
        live = self.weights.now
        body = {"status": "ok" if live.champion else "no champion yet", "ready": live.champion is not None}
        if live.document.champion is not None:
            body["version"] = live.document.champion.label
        return answer(200, {"pipeline": self.pipeline, **body, "replica": self.replica})

    async def _status(self) -> Response:
        own = {"live": to_json(self.weights.now.document), "replica": to_json(self.report())}
        try:
            status = await self._operator.status()
        except ControllerBusyError:
            return unavailable("too many ask for the status at once")
        return answer(200, {**status, **own})

    async def _openapi(self) -> Response:
        return answer(200, openapi(self.pipeline, self.weights.now.schema))


async def _score(model: Model, rows: list[dict[str, Any]]) -> tuple[list[float] | None, float]:
    """What the model gave, None if it raised; and the seconds inside the model."""
    start = time.perf_counter()
    try:
        if len(rows) <= _ROWS_ON_LOOP:
            values = model.predict(rows)
        else:
            values = await asyncio.to_thread(model.predict, rows)
    except FAILURES as error:
        _log.warning("model raised %s", type(error).__name__, extra={"version": model.version})
        return None, time.perf_counter() - start
    return values, time.perf_counter() - start


def _good(values: list[float] | None, asked: PredictRequest) -> bool:
    return values is not None and finite(values, len(asked.rows))


def _no_answer(values: list[float] | None, asked: PredictRequest) -> Response:
    """Say why the champion's values are no answer.

    Weights are finite and warmed up, so a number that is not comes from the values that were sent: sending
    them again would not help.
    """
    if values is None or len(values) != len(asked.rows):
        return answer(500, {"error": "the model could not score this request", "problems": []})
    problems = tuple(
        Problem(
            f"rows.{at}" if asked.many else "features", "the model gives no finite number for these values"
        )
        for at, value in enumerate(values)
        if not math.isfinite(value)
    )
    raise RefusedRequest(422, "the request has wrong fields", problems[:MOST_PROBLEMS])


def _wrong_method(right: str) -> Response:
    body = json.dumps({"error": f"expected {right}", "problems": []})
    return Response(body, 405, {"Allow": right}, "application/json")


def _replica_id() -> str:
    from ray import serve

    return str(serve.get_replica_context().replica_id.unique_id)


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)
