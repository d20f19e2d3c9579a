import getpass
import json
import math
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import httpx2
import numpy as np
import pytest

from ctrain.client import Client
from ctrain.client.status import parse_status
from ctrain.errors import ConflictError, RequestError, UnauthorizedError, UnavailableError

PREDICTION = {"value": 0.25, "prediction_id": "p-1", "version": "v7", "slot": "champion"}


class FakeServer:
    """Plays back answers, the last one for ever; an exception is raised. Remembers requests and sleep."""

    def __init__(self, *answers: Any) -> None:
        self.answers, self.slept = list(answers), 0.0
        self.requests: list[httpx2.Request] = []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        status, body, *headers = answer
        return httpx2.Response(status, json=body, headers=headers[0] if headers else {})

    def sleep(self, seconds: float) -> None:
        self.slept += seconds

    def client(self, timeout: float = 10.0) -> Client:
        return Client("http://x:8000/", "p", "secret", timeout, httpx2.MockTransport(self), self.sleep)


def test_predict_sends_features_and_key_and_gives_a_record() -> None:
    server = FakeServer((200, PREDICTION))
    features = {"n": 1.5, "at": "2013-03-01T05:00:00"}
    answer = server.client().predict(features, key="UA1")
    assert (answer.value, answer.prediction_id, answer.version, answer.slot) == (
        0.25,
        "p-1",
        "v7",
        "champion",
    )
    request = server.requests[0]
    assert str(request.url) == "http://x:8000/p/predict"
    assert json.loads(request.content) == {
        "features": {"n": 1.5, "at": "2013-03-01T05:00:00"},
        "key": "UA1",
    }
    assert "authorization" not in request.headers


def test_many_rows_share_version_and_slot() -> None:
    items = [{"value": 0.1, "prediction_id": "a"}, {"value": 0.2, "prediction_id": "b"}]
    server = FakeServer((200, {"predictions": items, "version": "v7", "slot": "champion"}))
    answers = server.client().predict_many([{"x": 1}, {"x": 2}])
    assert [(one.value, one.version) for one in answers] == [(0.1, "v7"), (0.2, "v7")]


def test_label_gives_what_became_of_it() -> None:
    server = FakeServer((202, {"results": [{"prediction_id": "p-1", "result": "pending"}]}))
    assert server.client().label("p-1", 1) == "pending"


@pytest.mark.parametrize(
    "broken",
    [
        httpx2.ConnectError("refused"),
        httpx2.RemoteProtocolError("closed"),
        httpx2.ReadTimeout("slow"),
        (502, {}),
        (503, {"error": "no champion yet"}),
        (500, {}),
    ],
)
def test_calls_that_nobody_answered_are_sent_again(broken: Any) -> None:
    server = FakeServer(broken, broken, (200, PREDICTION))
    assert server.client().predict({}).version == "v7"
    assert len(server.requests) == 3


def test_an_error_of_the_replica_itself_is_unavailable_at_the_deadline() -> None:
    server = FakeServer((500, {"error": "the model could not score"}, {"x-request-id": "1"}))
    with pytest.raises(UnavailableError, match="could not score"):
        server.client(timeout=0.1).predict({})
    assert len(server.requests) > 1


def test_the_tries_of_a_call_share_one_deadline() -> None:
    server = FakeServer((503, {}))
    server.sleep = time.sleep  # type: ignore[method-assign]
    began = time.monotonic()
    with pytest.raises(UnavailableError):
        server.client(timeout=0.5).predict({})
    assert time.monotonic() - began < 0.6
    left = [request.extensions["timeout"]["read"] for request in server.requests]
    assert left == sorted(left, reverse=True)
    assert left[-1] < 0.3


def test_an_answer_that_trickles_in_is_given_up_at_the_deadline() -> None:
    def trickle() -> Iterator[bytes]:
        while True:
            time.sleep(0.02)
            yield b" "

    transport = httpx2.MockTransport(lambda request: httpx2.Response(200, content=trickle()))
    with pytest.raises(UnavailableError, match="not complete in time"):
        Client("http://x", "p", timeout=0.2, transport=transport).predict({})


def test_a_server_that_says_when_is_asked_then() -> None:
    server = FakeServer((503, {}, {"Retry-After": "2"}), (200, PREDICTION))
    server.client().predict({})
    assert server.slept == 2.0


def test_a_proxy_that_does_not_know_its_routes_yet_is_asked_again() -> None:
    page = httpx2.Response(404, text="Path '/p' not found", headers={"content-type": "text/plain"})
    answers = [page, httpx2.Response(200, json=PREDICTION)]
    transport = httpx2.MockTransport(lambda request: answers.pop(0))
    assert Client("http://x", "p", transport=transport).predict({}).version == "v7"


def test_times_and_numpy_s_scalars_are_sent_as_json_has_them() -> None:
    server = FakeServer((200, PREDICTION))
    at = datetime(2013, 3, 1, 5, 0, 1)
    features = {
        "a": at, "b": at.date(), "c": np.datetime64(at, "h"), "d": np.datetime64(at, "ns"),
        "e": np.float32(0.5), "f": np.int64(3), "g": np.bool_(True), "h": np.str_("UA"), "i": None,
    }  # fmt: skip
    server.client().predict(features)
    assert json.loads(server.requests[0].content)["features"] == {
        "a": "2013-03-01T05:00:01", "b": "2013-03-01", "c": "2013-03-01T05:00:00", "d": "2013-03-01T05:00:01",
        "e": 0.5, "f": 3, "g": True, "h": "UA", "i": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (math.nan, "features.x: is not a finite number"),
        (np.float64("inf"), "features.x: is not a finite number"),
        (np.datetime64("NaT"), "features.x: is not a time"),
        (b"UA", "features.x: expected text, a number, a flag or a time, found bytes"),
        ([1.0], "found list"),
        (np.zeros(2), "found ndarray"),
    ],
)
def test_what_json_cannot_hold_is_named_before_it_is_sent(value: Any, words: str) -> None:
    server = FakeServer((200, PREDICTION))
    with pytest.raises(RequestError, match=words):
        server.client().predict({"x": value, "y": 1})
    with pytest.raises(RequestError, match=words.replace("features.x", "rows.1.x")):
        server.client().predict_many([{"x": 1}, {"x": value}])
    assert not server.requests


def test_labels_that_are_not_finite_are_refused() -> None:
    server = FakeServer((200, {}))
    with pytest.raises(RequestError, match=r"labels\.p-1: is not a finite number"):
        server.client().label("p-1", math.nan)


def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    assert not Client("http://x", "p")._http._mounts


@pytest.mark.parametrize(
    ("answer", "healthy"),
    [
        ((200, {"ready": True}), True),
        ((200, {"ready": False}), False),
        ((200, []), False),
        ((503, {"ready": True}), False),
        (httpx2.ConnectError("refused"), False),
    ],
)
def test_healthy_means_that_a_champion_answers(answer: Any, healthy: bool) -> None:
    assert FakeServer(answer).client().healthy() is healthy


def test_a_verb_keeps_its_key_through_repetitions() -> None:
    server = FakeServer(httpx2.ReadError("reset"), (503, {}), (200, {"generation": 5}))
    assert server.client().rollback(reason="pager 4711")["generation"] == 5
    assert len({request.headers["idempotency-key"] for request in server.requests}) == 1
    assert server.slept > 0.0
    assert server.requests[0].headers["authorization"] == "Bearer secret"
    assert json.loads(server.requests[0].content)["reason"] == "pager 4711"


@pytest.mark.parametrize("verb", ["retrain", "promote", "abort", "rollback", "pause", "resume"])
def test_every_verb_says_who_acts(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(getpass, "getuser", lambda: "ada")
    server = FakeServer((200, {"generation": 5}))
    getattr(server.client(), verb)("r")
    getattr(server.client(), verb)("r", by="grace")
    assert [json.loads(request.content)["by"] for request in server.requests] == ["ada", "grace"]


@pytest.mark.parametrize("verb", ["promote", "abort", "rollback", "pause", "resume"])
def test_a_verb_may_name_the_challenger_it_means(verb: str) -> None:
    server = FakeServer((200, {"generation": 5}))
    getattr(server.client(), verb)("r", version="v8")
    getattr(server.client(), verb)("r")
    bodies = [json.loads(request.content) for request in server.requests]
    assert bodies[0]["version"] == "v8"
    assert "version" not in bodies[1]


def test_a_server_that_hangs_once_does_not_use_up_the_deadline() -> None:
    server = FakeServer(httpx2.ReadTimeout("hangs"), (200, PREDICTION))
    server.client(timeout=30.0).predict({})
    server.client(timeout=1.5).predict({})
    granted = [request.extensions["timeout"]["read"] for request in server.requests]
    assert granted == pytest.approx([10.0, 10.0, 1.0], abs=0.1)


def test_two_calls_have_two_keys() -> None:
    server = FakeServer((200, {"generation": 1}))
    client = server.client()
    client.pause("a")
    client.pause("a")
    assert len({request.headers["idempotency-key"] for request in server.requests}) == 2


def test_a_call_is_given_up_at_its_deadline() -> None:
    server = FakeServer((503, {"error": "no champion yet"}))
    with pytest.raises(UnavailableError, match="no champion yet"):
        server.client(timeout=0.06).predict({})
    assert len(server.requests) < 10


def test_refusals_become_typed_errors() -> None:
    problems = [{"field": "features.origin", "problem": "is required"}]
    cases = [
        (422, {"error": "wrong", "problems": problems}, RequestError, "features.origin: is required"),
        (404, {"error": "no such path", "problems": []}, RequestError, "no such path"),
        (401, {"error": "needs a token"}, UnauthorizedError, "needs a token"),
        (403, {"error": "not valid"}, UnauthorizedError, "not valid"),
        (409, {"error": "no challenger", "generation": 9}, ConflictError, "present generation 9"),
    ]
    for status, body, kind, words in cases:
        with pytest.raises(kind, match=words):
            FakeServer((status, body)).client().promote("r")


def test_why_gives_events_in_words() -> None:
    event = {"seq": 3, "at": "2013-03-15T06:02:00+00:00", "kind": "gate_decided", "text": "accept"}
    server = FakeServer((200, {"events": [event]}))
    assert server.client().why("v8") == [event]
    assert dict(server.requests[0].url.params) == {"version": "v8", "limit": "200"}
    server.client().why("v8&x=#1 2", limit=1000)
    assert dict(server.requests[1].url.params) == {"version": "v8&x=#1 2", "limit": "1000"}


def test_status_reads_nested_records() -> None:
    body = {
        "pipeline": "p",
        "champion": {"label": "v7", "version": "abc", "age_s": 5, "trained_to": "2013-03-13"},
        "rollout": {
            "id": "r",
            "phase": "canary",
            "step": 2,
            "steps": 3,
            "verdict": "continue",
            "metrics": [{"metric": "errors", "verdict": "pass", "text": "fine"}],
        },
        "data": {"problems": {"2013-03-16": "unsealed"}},
        "alerts": [{"at": 1, "alert": "goal", "text": "late"}],
        "added_later": 1,
    }
    status = FakeServer((200, body)).client().status()
    assert status.champion is not None
    assert status.rollout is not None
    assert status.champion.label == "v7"
    assert status.champion.age_s == 5.0
    assert status.rollout.metrics[0].verdict == "pass"
    assert status.data.problems == {"2013-03-16": "unsealed"}
    assert status.alerts[0].text == "late"


@pytest.mark.parametrize("body", [{}, {"champion": None, "rollout": None}])
def test_status_without_parts_keeps_defaults(body: dict[str, Any]) -> None:
    status = parse_status(body)
    assert status.rollout is None
    assert status.champion is None
    assert status.alerts == ()
    assert status.raw == body
