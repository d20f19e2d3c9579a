"""A synchronous client of one pipeline over HTTP. Needs no Ray and no torch.

Every call is idempotent: a verb carries its `Idempotency-Key` through all tries, a prediction may be
repeated, a label that is sent twice counts once. So the client retries by itself when a connection
breaks or a server says "later", until its deadline; one try gets a third of it, so that a server that
hangs once does not use it up. What JSON cannot hold is refused before it is sent.
"""

from __future__ import annotations

import getpass
import json
import math
import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from types import TracebackType
from typing import Any
from urllib.parse import quote

import httpx2

from ctrain.client.status import Status, parse_status
from ctrain.errors import ConflictError, RequestError, UnauthorizedError, UnavailableError
from ctrain.records import Json

ROUTES_WITHIN = 6.0
"""Seconds in which a proxy that was started anew knows its routes again; until then it answers 404."""

SHORTEST_TRY = 1.0
"""Seconds that one try gets at least, as long as the call has them."""


def acting_user() -> str:
    """Who this process acts for: the name under which an operator's verb stands in the journal."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


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
        timeout: Seconds that a call may take, all tries together; a try that takes a third of it, and at
            least a second, is given up and sent again. Proxies of the environment are not used.
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
        self._url = f"{url.rstrip('/')}/{quote(pipeline, safe='')}"
        self._token = (token or os.environ.get("CTRAIN_TOKEN", "")).strip()
        self._timeout, self._sleep = timeout, sleep
        self._http = httpx2.Client(transport=transport, timeout=timeout, trust_env=False)

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
            features: The feature view's columns: text, numbers, flags, and times as `datetime`,
                `date`, `numpy.datetime64` or ISO text.
            key: Whose request this is; the same key meets the same version during a rollout.

        Raises:
            RequestError: names each wrong field.
            UnavailableError: if nothing answered in time.
        """
        body: Json = {"features": _row("features", features)}
        if key is not None:
            body["key"] = key
        answer = self._send("POST", "/predict", body)
        return Prediction(answer["value"], answer["prediction_id"], answer["version"], answer["slot"])

    def predict_many(self, rows: Sequence[Mapping[str, Any]], key: str | None = None) -> list[Prediction]:
        """Score rows in one request; one version answers all of them."""
        body: Json = {"rows": [_row(f"rows.{at}", row) for at, row in enumerate(rows)]}
        if key is not None:
            body["key"] = key
        answer = self._send("POST", "/predict", body)
        version, slot = answer["version"], answer["slot"]
        return [
            Prediction(item["value"], item["prediction_id"], version, slot) for item in answer["predictions"]
        ]

    def label(self, prediction_id: str, value: float) -> str:
        """Tell the truth about a prediction: 0 or 1.

        Returns:
            `pending` (new, joined by the next window), `same` (known already), `corrected` (it replaces
            the one before) or `late` (after the pipeline's label horizon: counted, not kept).
        """
        result: str = self.label_many({prediction_id: value})[prediction_id]
        return result

    def label_many(self, labels: Mapping[str, float]) -> dict[str, str]:
        """Tell the truth about many predictions: result by prediction id."""
        sent = _row("labels", labels)
        body = {"labels": [{"prediction_id": name, "value": value} for name, value in sent.items()]}
        answer = self._send("POST", "/labels", body)
        return {item["prediction_id"]: item["result"] for item in answer["results"]}

    def status(self) -> Status:
        """Where the pipeline stands."""
        return parse_status(self._send("GET", "/status"))

    def why(self, version: str = "", limit: int = 200) -> list[Json]:
        """The newest `limit` events of a version (`v8` or its id), or of the whole pipeline, oldest first."""
        answer = self._send("GET", f"/why?version={quote(version, safe='')}&limit={limit}")
        events: list[Json] = answer["events"]
        return events[-limit:]

    def healthy(self) -> bool:
        """Whether a champion answers, asked once; False as well where nobody answers."""
        try:
            response = self._http.get(f"{self._url}/health")
            return response.status_code == 200 and response.json().get("ready") is True
        except (httpx2.TransportError, ValueError, AttributeError):
            return False

    # Operator's verbs. `by` is who acts, this machine's user by default; `version` (label or id) names the
    # challenger that is meant, and a verb that would meet another one is refused.

    def retrain(
        self, reason: str, overrides: Json | None = None, key: str | None = None, *, by: str = ""
    ) -> Json:
        """Start a run now; `overrides` change the spec for this run, e.g. {"training": {"seed": 11}}."""
        return self._operate("retrain", reason, key, by, {"overrides": overrides or {}})

    def promote(self, reason: str, key: str | None = None, *, by: str = "", version: str = "") -> Json:
        """Promote the challenger without waiting for more evidence."""
        return self._operate("promote", reason, key, by, _meant(version))

    def abort(self, reason: str, key: str | None = None, *, by: str = "", version: str = "") -> Json:
        """Withdraw the challenger."""
        return self._operate("abort", reason, key, by, _meant(version))

    def rollback(self, reason: str, key: str | None = None, *, by: str = "", version: str = "") -> Json:
        """Withdraw a challenger, and go back to the previous champion."""
        return self._operate("rollback", reason, key, by, _meant(version))

    def pause(self, reason: str, key: str | None = None, *, by: str = "", version: str = "") -> Json:
        """Freeze the split of the rollout."""
        return self._operate("pause", reason, key, by, _meant(version))

    def resume(self, reason: str, key: str | None = None, *, by: str = "", version: str = "") -> Json:
        """Let a paused rollout go on."""
        return self._operate("resume", reason, key, by, _meant(version))

    def _operate(self, verb: str, reason: str, key: str | None, by: str, body: Json) -> Json:
        headers = {"Authorization": f"Bearer {self._token}", "Idempotency-Key": key or uuid.uuid4().hex}
        return self._send(
            "POST", f"/admin/{verb}", {"reason": reason, "by": by or acting_user(), **body}, headers
        )

    def _send(
        self, method: str, path: str, body: Json | None = None, headers: Mapping[str, str] | None = None
    ) -> Json:
        url, began, wait = f"{self._url}{path}", time.monotonic(), 0.05
        content = None if body is None else _encode(body)
        sent = {**(headers or {}), **({"Content-Type": "application/json"} if content else {})}
        while True:
            pause = wait
            try:
                response = self._try(method, url, content, sent, self._try_until(began + self._timeout))
                if not _later(response, time.monotonic() - began):
                    return _read(response)
                problem = f"answered {response.status_code}: {response.text[:200]}"
                pause = max(wait, _retry_after(response))
            except httpx2.TransportError as error:
                problem = f"{type(error).__name__}: {error}".rstrip(": ")
            if time.monotonic() + pause >= began + self._timeout:
                raise UnavailableError(url, problem)
            self._sleep(pause)
            wait = min(2 * wait, 1.0)

    def _try_until(self, deadline: float) -> float:
        return min(deadline, time.monotonic() + max(self._timeout / 3, SHORTEST_TRY))

    def _try(
        self, method: str, url: str, content: bytes | None, headers: Mapping[str, str], deadline: float
    ) -> httpx2.Response:
        """One try, until its deadline, however slowly the answer trickles in."""
        left = max(deadline - time.monotonic(), 0.001)
        request = self._http.build_request(method, url, content=content, headers=headers, timeout=left)
        response = self._http.send(request, stream=True)
        try:
            pieces = []
            for piece in response.iter_bytes():
                pieces.append(piece)
                if time.monotonic() > deadline:
                    raise httpx2.ReadTimeout("the answer was not complete in time", request=request)
        finally:
            response.close()
        plain = {name: text for name, text in response.headers.items() if name != "content-encoding"}
        return httpx2.Response(response.status_code, headers=plain, content=b"".join(pieces))


def _meant(version: str) -> Json:
    return {"version": version} if version else {}


def _row(where: str, row: Mapping[str, Any]) -> Json:
    """A row as JSON has it.

    Raises:
        RequestError: names each field that JSON cannot hold.
    """
    plain, problems = {}, []
    for name, value in row.items():
        try:
            plain[name] = _plain(value)
        except ValueError as error:
            problems.append(f"{where}.{name}: {error}")
    if problems:
        raise RequestError(422, tuple(problems))
    return plain


def _plain(value: Any) -> Any:
    """Times as ISO text, numpy's scalars as Python's; anything else unchanged."""
    if type(value).__module__ == "numpy" and hasattr(value, "dtype") and not getattr(value, "shape", ()):
        if value.dtype.kind == "M":
            value = value.astype("datetime64[us]")
            if value != value:
                raise ValueError("is not a time")
        value = value.item()
    if isinstance(value, date):  # a datetime is one, and pandas' Timestamp and NaT are datetimes
        if value != value:
            raise ValueError("is not a time")
        return value.isoformat()
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("is not a finite number")
    if value is not None and not isinstance(value, str | int | float):
        raise ValueError(f"expected text, a number, a flag or a time, found {type(value).__name__}")
    return value


def _encode(body: Json) -> bytes:
    """Raises RequestError for what JSON cannot hold."""
    try:
        return json.dumps(body, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestError(422, (f"the body cannot be sent as JSON: {error}",)) from None


def _later(response: httpx2.Response, seconds: float) -> bool:
    """Whether the same call may succeed in a moment."""
    if response.status_code == 404 and seconds < ROUTES_WITHIN:
        return "json" not in response.headers.get("content-type", "")  # a proxy's, not a replica's
    return response.status_code >= 500


def _retry_after(response: httpx2.Response) -> float:
    text = response.headers.get("retry-after", "")
    return min(float(text), 60.0) if text.isascii() and text.isdigit() else 0.0


def _read(response: httpx2.Response) -> Json:
    status = response.status_code
    try:
        data = response.json()
    except ValueError:
        data = None
    if status < 300 and isinstance(data, dict):
        result: Json = data
        return result
    if not isinstance(data, dict):
        data = {"error": f"no pipeline answers there. Check name and address: {response.text[:200]}"}
    error = str(data.get("error", ""))
    if status in (401, 403):
        raise UnauthorizedError(status, error or "not authorised")
    if status == 409:
        raise ConflictError(error, int(data.get("generation", -1)))
    named = tuple(f"{item.get('field', '')}: {item.get('problem', '')}" for item in data.get("problems", []))
    raise RequestError(status, named or (error,))
