import json
from collections.abc import Callable
from datetime import datetime
from typing import Any

import httpx2
import numpy as np
import pytest

from ctrain.client import Client, Status
from ctrain.errors import ConflictError, RequestError, UnauthorizedError, UnavailableError

PREDICTION = {"value": 0.25, "prediction_id": "p-1", "version": "v7", "slot": "champion"}


class FakeServer:
    """Plays back answers; an exception is raised. Remembers the requests and the time slept."""

    def __init__(self, *answers: Any) -> None:
        self.answers, self.requests, self.now = list(answers), [], 0.0

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        status, body, *headers = answer
        return httpx2.Response(status, json=body, headers=headers[0] if headers else {})

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def client(self, token: str | None = "secret") -> Client:
        transport = httpx2.MockTransport(self)
        clock: Callable[[], float] = lambda: self.now  # noqa: E731
        return Client("http://x:8000/", "p", token, transport, 10.0, clock, self.sleep)


def test_predict_sends_features_and_key_and_gives_a_record() -> None:
    server = FakeServer((200, PREDICTION))
    features = {"n": np.float64(1.5), "at": datetime(2013, 3, 1, 5)}
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


def test_an_error_of_the_replica_itself_is_not_sent_again() -> None:
    server = FakeServer((500, {"error": "the model could not score"}, {"x-request-id": "1"}))
    with pytest.raises(UnavailableError, match="could not score"):
        server.client().predict({})
    assert len(server.requests) == 1


def test_a_verb_keeps_its_key_through_repetitions() -> None:
    server = FakeServer(httpx2.ReadError("reset"), (503, {}, {"Retry-After": "2"}), (200, {"generation": 5}))
    done = server.client().rollback(reason="pager 4711")
    keys = {request.headers["idempotency-key"] for request in server.requests}
    assert keys == {done.key}
    assert done.generation == 5
    assert server.now > 2.0  # Retry-After is waited for
    assert server.requests[0].headers["authorization"] == "Bearer secret"
    assert json.loads(server.requests[0].content) == {"reason": "pager 4711"}


def test_two_calls_have_two_keys() -> None:
    server = FakeServer((200, {"generation": 1}))
    client = server.client()
    assert client.pause("a").key != client.pause("a").key


def test_a_call_is_given_up_at_its_deadline() -> None:
    server = FakeServer((503, {"error": "no champion yet"}))
    with pytest.raises(UnavailableError, match=r"no champion yet.*given up after 10 s"):
        server.client().predict({})
    assert server.now < 10
    assert 5 < len(server.requests) < 30


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


def test_numbers_that_are_not_finite_are_not_sent() -> None:
    server = FakeServer((200, PREDICTION))
    with pytest.raises(RequestError, match="send null"):
        server.client().predict({"x": float("nan")})
    assert server.requests == []


def test_an_address_that_is_none_is_not_retried() -> None:
    with pytest.raises(UnavailableError, match="no address"):
        Client("ftp://x", "p").status()


def test_why_gives_events_in_words() -> None:
    event = {"seq": 3, "at": "2013-03-15T06:02:00+00:00", "kind": "gate_decided", "text": "accept"}
    server = FakeServer((200, {"events": [event]}))
    told = server.client().why("v8")
    assert (told[0].kind, told[0].text) == ("gate_decided", "accept")
    assert dict(server.requests[0].url.params) == {"version": "v8", "limit": "200"}


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
    assert status.champion.label == "v7"
    assert status.champion.age_s == 5.0
    assert status.rollout.metrics[0].verdict == "pass"
    assert status.data.problems == {"2013-03-16": "unsealed"}
    assert status.alerts[0].text == "late"


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"champion": None, "rollout": None},
        {"champion": 3, "alerts": "x", "split": "high", "runs": True},
        {"alerts": [1]},
    ],
)
def test_status_of_any_shape_has_every_field(body: dict[str, Any]) -> None:
    status = Status.from_json(body)
    assert status.rollout.verdict == ""
    assert not status.rollout
    assert not status.champion
    assert status.alerts == ()
    assert status.split == 0.0
