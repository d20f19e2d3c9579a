"""What the replica says over HTTP besides predictions: labels, operators' verbs, status, description.

Every error is {"error", "problems": [{"field", "problem"}]} and never repeats what was sent.
"""

from __future__ import annotations

import asyncio
import hmac
import sqlite3
from collections.abc import Mapping
from typing import Any

from pydantic_core import to_json as json_bytes
from starlette.requests import Request
from starlette.responses import Response

from ctrain.errors import StorageError
from ctrain.serving.ids import pipeline_of
from ctrain.serving.labels import LabelStore
from ctrain.serving.link import Calls, ControllerAwayError, ControllerBusyError
from ctrain.serving.schemas import (
    Problem,
    RefusedRequest,
    RequestSchema,
    admin_schema,
    labels_schema,
    read_admin_request,
    read_label_request,
)
from ctrain.storage import Root

VERBS = ("retrain", "promote", "abort", "rollback", "pause", "resume")
_LONGEST_KEY = 200
_MOST_EVENTS = 10_000
"""Events that one answer of `/why` holds."""


def answer(status: int, body: dict[str, Any]) -> Response:
    """A JSON response."""
    return Response(json_bytes(body), status, media_type="application/json")


def unavailable(error: str, retry_after: int = 1) -> Response:
    """503 with the seconds after which to send the request again."""
    body = json_bytes({"error": error, "problems": []})
    return Response(body, 503, {"Retry-After": str(retry_after)}, "application/json")


async def read_body(request: Request, limit: int) -> bytes:
    """Read a body of at most `limit` bytes.

    Raises:
        RefusedRequest: 413 for a longer one.
    """
    declared = next((value for name, value in request.scope["headers"] if name == b"content-length"), b"")
    if declared.isdigit():
        if len(declared) > 18 or int(declared) > limit:
            raise _too_long(limit)
        return await request.body()  # the server reads no more than was declared
    pieces, size = [], 0
    async for piece in request.stream():
        size += len(piece)
        if size > limit:
            raise _too_long(limit)
        pieces.append(piece)
    return b"".join(pieces)


def _too_long(limit: int) -> RefusedRequest:
    problem = Problem("", f"expected at most {limit} bytes")
    return RefusedRequest(413, "the body is too long", (problem,))


class LabelRoutes:
    """`POST /labels`."""

    def __init__(self, pipeline: str, store: LabelStore) -> None:
        self._pipeline, self._store = pipeline, store

    async def store(self, body: bytes) -> Response:
        """Store the labels of a body: 202 if one is new, 200 otherwise."""
        labels = read_label_request(body)
        problems = tuple(
            Problem(f"labels.{at}.prediction_id" if len(labels) > 1 else "prediction_id", problem)
            for at, (prediction_id, _) in enumerate(labels)
            if (problem := self._problem(prediction_id))
        )
        if problems:
            raise RefusedRequest(422, "the request has wrong fields", problems[:20])
        try:
            results = await asyncio.shield(asyncio.to_thread(self._store.put, labels))
        except sqlite3.Error:
            return unavailable("labels cannot be stored now")
        listed = [
            {"prediction_id": prediction_id, "result": result}
            for (prediction_id, _), result in zip(labels, results, strict=True)
        ]
        return answer(202 if "pending" in results else 200, {"results": listed})

    def _problem(self, prediction_id: str) -> str:
        named = pipeline_of(prediction_id)
        if named is None:
            return "is not a prediction id"
        return "" if named == self._pipeline else "belongs to another pipeline"


class Operator:
    """`POST /admin/<verb>`, and what the controller says of the pipeline."""

    def __init__(self, pipeline: str, root: Root, link: Any) -> None:
        self._pipeline, self._root = pipeline, root
        # apart, so that anybody's questions keep no operator's verb waiting
        self._verbs, self._questions = Calls(link), Calls(link)

    def close(self) -> None:
        """Make no more calls."""
        self._verbs.close()
        self._questions.close()

    async def verb(self, verb: str, request: Request, limit: int) -> Response:
        """Check the operator, then forward the verb; it is idempotent by its key."""
        if verb not in VERBS:
            return answer(404, {"error": f"no such verb; expected one of {', '.join(VERBS)}", "problems": []})
        if request.method != "POST":
            raise RefusedRequest(405, "expected POST")
        refusal = await asyncio.to_thread(self._refusal, request.headers.get("authorization"))
        if refusal is not None:
            return refusal
        key = request.headers.get("idempotency-key", "").strip()
        if not 0 < len(key) <= _LONGEST_KEY:
            problem = Problem("Idempotency-Key", f"expected a header of 1 to {_LONGEST_KEY} characters")
            raise RefusedRequest(400, "the request has no usable idempotency key", (problem,))
        body = read_admin_request(await read_body(request, limit))
        try:
            # a client that goes away does not stop a verb half way
            result = await self._verbs.call("operate", self._pipeline, verb, key, body, timeout=5.0)
        except ControllerAwayError:
            return unavailable("the controller does not answer now", 2)
        return answer(int(result.get("status", 200)), result)

    async def status(self) -> dict[str, Any]:
        """The controller's status of the pipeline, or that it does not answer.

        Raises:
            ControllerBusyError: if too many ask at once.
        """
        try:
            status: dict[str, Any] = await self._questions.call("status", self._pipeline, timeout=1.0)
        except ControllerBusyError:
            raise
        except ControllerAwayError:
            return {"pipeline": self._pipeline, "controller": "does not answer"}
        return {"controller": "answers", **status}

    async def why(self, asked: Mapping[str, str]) -> Response:
        """History of a version, or of the whole pipeline, from the controller's journal.

        Args:
            asked: Parameters of the query: `version`, `limit` (of the newest events), `after` (a number of an
                event: only those that came later).
        """
        try:
            events = await self._questions.call("why", self._pipeline, *_why(asked), timeout=5.0)
        except ControllerAwayError:
            return unavailable("the controller does not answer")
        return answer(200, {"events": events})

    def _refusal(self, header: str | None) -> Response | None:
        scheme, _, sent = (header or "").partition(" ")
        if scheme.lower() != "bearer" or not sent.strip():
            body = json_bytes({"error": "an operator's verb needs a bearer token", "problems": []})
            return Response(body, 401, {"WWW-Authenticate": "Bearer"}, "application/json")
        try:
            expected = self._root.token()
        except (StorageError, OSError):
            return unavailable("the operator's token cannot be read")
        if not hmac.compare_digest(sent.strip().encode(), expected.encode()):
            return answer(403, {"error": "the bearer token is not valid", "problems": []})
        return None


def _why(asked: Mapping[str, str]) -> tuple[str, int, int]:
    """Version, limit and number of the event to come after, from a query."""
    problems, numbers = [], []
    for name, default, least, most in (("limit", "200", 1, _MOST_EVENTS), ("after", "0", 0, 2**53)):
        text = asked.get(name, default)
        number = int(text) if text.isascii() and text.isdigit() and len(text) < 17 else -1
        if not least <= number <= most:
            problems.append(Problem(name, f"expected a whole number from {least} to {most}"))
        numbers.append(number)
    if problems:
        raise RefusedRequest(422, "the request has wrong fields", tuple(problems))
    return asked.get("version", "")[:_LONGEST_KEY], numbers[0], numbers[1]


def openapi(pipeline: str, schema: RequestSchema | None) -> dict[str, Any]:
    """Description of the routes below `/<pipeline>`, in OpenAPI 3.1."""
    problem = {"description": "refused; `problems` names each field"}
    away = {"description": "not now; send it again after Retry-After seconds"}

    def post(summary: str, body: dict[str, Any], good: str = "200") -> dict[str, Any]:
        content = {"application/json": {"schema": body}}
        answers = {good: {"description": "done"}, "422": problem, "503": away}
        return {"post": {"summary": summary, "requestBody": {"content": content}, "responses": answers}}

    def get(summary: str, *parameters: str) -> dict[str, Any]:
        named = [{"name": name, "in": "query", "schema": {"type": "string"}} for name in parameters]
        responses = {"200": {"description": "done"}}
        return {"get": {"summary": summary, "parameters": named, "responses": responses}}

    paths: dict[str, Any] = {
        "/predict": post("Predict one row or many", schema.json_schema() if schema else {"type": "object"}),
        "/labels": post("Deliver the truth", labels_schema(), "202"),
        "/health": get("Whether it answers"),
        "/status": get("Where the pipeline stands"),
        "/why": get("What happened, and why", "version", "limit", "after"),
    }
    for verb in VERBS:
        route = post(f"Operator: {verb}", admin_schema())
        route["post"]["security"] = [{"token": []}]
        header = {"name": "Idempotency-Key", "in": "header", "required": True, "schema": {"type": "string"}}
        route["post"]["parameters"] = [header]
        paths[f"/admin/{verb}"] = route
    return {
        "openapi": "3.1.0",
        "info": {"title": pipeline, "version": "1"},
        "servers": [{"url": f"/{pipeline}"}],
        "paths": paths,
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
    }
