import json
from typing import Any

import httpx2
import pytest

from ctrain.client import Client
from ctrain.client.status import parse_status
from ctrain.errors import ClientError, ConflictError, RequestError, UnauthorizedError, UnavailableError

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


def test_an_error_of_the_replica_itself_is_not_sent_again() -> None:
    server = FakeServer((500, {"error": "the model could not score"}, {"x-request-id": "1"}))
    with pytest.raises(ClientError, match="could not score"):
        server.client().predict({})
    assert len(server.requests) == 1


def test_a_verb_keeps_its_key_through_repetitions() -> None:
    server = FakeServer(httpx2.ReadError("reset"), (503, {}), (200, {"generation": 5}))
    assert server.client().rollback(reason="pager 4711")["generation"] == 5
    assert len({request.headers["idempotency-key"] for request in server.requests}) == 1
    assert server.slept > 0.0
    assert server.requests[0].headers["authorization"] == "Bearer secret"
    assert json.loads(server.requests[0].content) == {"reason": "pager 4711"}


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
    assert dict(server.requests[0].url.params) == {"version": "v8"}


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
