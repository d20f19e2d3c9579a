"""A synchronous client of one pipeline over HTTP. Needs no Ray and no torch.

Every call is idempotent: a verb carries its `Idempotency-Key` through all tries, a prediction may be
repeated, a label that is sent twice counts once. So the client retries by itself when a connection
breaks or a server says "later", until its deadline.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import httpx2

from ctrain.client.status import Status, parse_status
from ctrain.errors import ConflictError, RequestError, UnauthorizedError, UnavailableError
from ctrain.records import Json

LATER = frozenset({502, 503, 504})


@dataclass(frozen=True, slots=True)
class Prediction:
    """One answer."""

    value: float
    """Probability of the positive class."""
    prediction_id: str
    """What a label is sent for."""
    version: str
    """Model version that answered, e.g. v7."""
    slot: str
    """`champion` or `challenger`."""


class Client:
    """Talk to a pipeline.

    Args:
        url: Of Serve's HTTP endpoint, e.g. `http://127.0.0.1:8000`.
        pipeline: Its name.
        token: Operator's bearer token; CTRAIN_TOKEN by default. Only operator verbs need it.
        timeout: Seconds that a call may take, all tries together.
        transport: httpx transport, for tests.
        sleep: Waits between tries, for tests.
    """

    def __init__(
        self,
        url: str,
        pipeline: str,
        token: str | None = None,
        timeout: float = 30.0,
        transport: httpx2.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.pipeline = pipeline
        self._url = f"{url.rstrip('/')}/{pipeline}"
        self._token = token or os.environ.get("CTRAIN_TOKEN", "")
        self._timeout, self._sleep = timeout, sleep
        self._http = httpx2.Client(transport=transport, timeout=timeout)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the connections back."""
        self._http.close()

    def predict(self, features: Mapping[str, Any], key: str | None = None) -> Prediction:
        """Score one row.

        Args:
            features: The feature view's columns.
            key: Whose request this is; the same key meets the same version during a rollout.

        Raises:
            RequestError: names each wrong field.
            UnavailableError: if nothing answered in time.
        """
        body: Json = {"features": dict(features)}
        if key is not None:
            body["key"] = key
        answer = self._send("POST", "/predict", body)
        return Prediction(answer["value"], answer["prediction_id"], answer["version"], answer["slot"])

    def predict_many(self, rows: Sequence[Mapping[str, Any]], key: str | None = None) -> list[Prediction]:
        """Score rows in one request; one version answers all of them."""
        body: Json = {"rows": [dict(row) for row in rows]}
        if key is not None:
            body["key"] = key
        answer = self._send("POST", "/predict", body)
        version, slot = answer["version"], answer["slot"]
        return [
            Prediction(item["value"], item["prediction_id"], version, slot) for item in answer["predictions"]
        ]

    def label(self, prediction_id: str, value: float) -> str:
        """Tell the truth about a prediction.

        Returns:
            `pending` (new, joined by the next window), `same` or `corrected`.
        """
        result: str = self.label_many({prediction_id: value})[prediction_id]
        return result

    def label_many(self, labels: Mapping[str, float]) -> dict[str, str]:
        """Tell the truth about many predictions: result by prediction id."""
        body = {"labels": [{"prediction_id": name, "value": value} for name, value in labels.items()]}
        answer = self._send("POST", "/labels", body)
        return {item["prediction_id"]: item["result"] for item in answer["results"]}

    def status(self) -> Status:
        """Where the pipeline stands."""
        return parse_status(self._send("GET", "/status"))

    def why(self, version: str = "") -> list[Json]:
        """History of a version (`v8` or its id), or of the whole pipeline, oldest first."""
        answer = self._send("GET", f"/why?version={version}")
        events: list[Json] = answer["events"]
        return events

    def healthy(self) -> bool:
        """Whether a champion answers."""
        return self._http.get(f"{self._url}/health").status_code == 200

    def retrain(self, reason: str, overrides: Json | None = None, key: str | None = None) -> Json:
        """Start a run now; `overrides` change the spec for this run, e.g. {"training": {"seed": 11}}."""
        return self._operate("retrain", reason, key, {"overrides": overrides or {}})

    def promote(self, reason: str, key: str | None = None) -> Json:
        """Promote the challenger without waiting for more evidence."""
        return self._operate("promote", reason, key)

    def abort(self, reason: str, key: str | None = None) -> Json:
        """Withdraw the challenger."""
        return self._operate("abort", reason, key)

    def rollback(self, reason: str, key: str | None = None) -> Json:
        """Withdraw a challenger, and go back to the previous champion."""
        return self._operate("rollback", reason, key)

    def pause(self, reason: str, key: str | None = None) -> Json:
        """Freeze the split of the rollout."""
        return self._operate("pause", reason, key)

    def resume(self, reason: str, key: str | None = None) -> Json:
        """Let a paused rollout go on."""
        return self._operate("resume", reason, key)

    def _operate(self, verb: str, reason: str, key: str | None, body: Json | None = None) -> Json:
        headers = {"Authorization": f"Bearer {self._token}", "Idempotency-Key": key or uuid.uuid4().hex}
        return self._send("POST", f"/admin/{verb}", {"reason": reason, **(body or {})}, headers)

    def _send(
        self, method: str, path: str, body: Json | None = None, headers: Mapping[str, str] | None = None
    ) -> Json:
        url, deadline, wait = f"{self._url}{path}", time.monotonic() + self._timeout, 0.05
        while True:
            problem = ""
            try:
                response = self._http.request(method, url, json=body, headers=dict(headers or {}))
                if not _later(response):
                    return _read(response)
                problem = f"answered {response.status_code}: {response.text[:200]}"
            except httpx2.TransportError as error:
                problem = f"{type(error).__name__}: {error}"
            if time.monotonic() + wait > deadline:
                raise UnavailableError(url, problem)
            self._sleep(wait)
            wait = min(2 * wait, 1.0)


def _later(response: httpx2.Response) -> bool:
    """Whether the same call may succeed in a moment; a proxy without servers says 500 by itself."""
    by_proxy = response.status_code == 500 and "x-request-id" not in response.headers
    return response.status_code in LATER or by_proxy


def _read(response: httpx2.Response) -> Json:
    status = response.status_code
    try:
        data = response.json()
    except ValueError:
        data = {"error": response.text[:200]}
    if status < 400:
        result: Json = data
        return result
    error = str(data.get("error", "")) if isinstance(data, dict) else str(data)
    if status in (401, 403):
        raise UnauthorizedError(status, error or "not authorised")
    if status == 409:
        raise ConflictError(error, int(data.get("generation", -1)))
    problems = data.get("problems", []) if isinstance(data, dict) else []
    named = tuple(f"{item.get('field', '')}: {item.get('problem', '')}" for item in problems)
    raise RequestError(status, named or (error,))
