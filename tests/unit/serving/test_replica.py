import asyncio
import json
import time

import pytest
from starlette.requests import Request

from ctrain.errors import WeightsError
from ctrain.records import LiveDocument, Slot, to_json
from ctrain.serving.counters import Counters
from ctrain.serving.link import ControllerAwayError
from ctrain.serving.prediction_log import read_log
from ctrain.serving.predictor import Limits, Predictor
from ctrain.storage import Root


class FakeModel:
    threshold = 0.5

    def __init__(self, slot):
        self.columns = {"a": {"kind": "number"}}
        self.version, self.sha256 = slot.version, slot.sha256

    def predict(self, rows):
        if "raises" in self.version:
            raise ValueError("challenger broke")
        value = float("nan") if "nan" in self.version else 0.9 if "new" in self.version else 0.1
        return [value for _ in rows]


class FakeLink:
    def __init__(self):
        self.calls, self.document, self.away = [], None, True

    def call(self, method, *arguments, timeout=2.0):
        if self.away:
            raise ControllerAwayError("away")
        self.calls.append((method, arguments))
        if method == "pull":
            return self.document
        return {"ok": True, "status": 202}


def slot(name):
    return Slot(name, f"v-{name}", f"sha-{name}")


def fake_load(root, wanted):
    if "corrupt" in wanted.version:
        raise WeightsError(wanted.version, "is corrupt")
    return FakeModel(wanted)


def document(generation, epoch=1, **changes):
    names = {
        name: slot(changes.pop(name)) for name in ("champion", "challenger", "previous") if name in changes
    }
    return LiveDocument("p", epoch, generation, **names, **changes)


@pytest.fixture
def root(tmp_path):
    return Root(tmp_path)


@pytest.fixture
def build(root, monkeypatch):
    made = []
    monkeypatch.setattr(Predictor, "_publish", lambda self, report: None)

    def make(link=None, **limits):
        made.append(Predictor("p", root, Limits(flush=0.05, **limits), "r1", fake_load, link or FakeLink()))
        return made[-1]

    yield make
    for replica in made:
        replica.close()


def send(replica, method, path, body=b"", headers=()):
    sent = [body] if isinstance(body, bytes) else body
    parts = [{"type": "http.request", "body": one, "more_body": True} for one in sent]
    parts.append({"type": "http.request", "body": b"", "more_body": False})

    async def receive():
        return parts.pop(0)

    scope = {
        "type": "http", "method": method, "path": f"/p{path}", "root_path": "/p", "query_string": b"",
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers],
    }  # fmt: skip
    response = asyncio.run(replica(Request(scope, receive)))
    return response.status_code, json.loads(response.body), response.headers


def predict(replica, key="k"):
    return send(replica, "POST", "/predict", json.dumps({"key": key, "features": {"a": 1}}).encode())


def take(replica, doc):
    report = asyncio.run(replica.reconfigure(to_json(doc)))
    end = time.monotonic() + 3
    while replica.weights._missing() is not None and time.monotonic() < end:
        time.sleep(0.005)
    return report


def test_without_a_champion_predict_says_so(build):
    status, body, headers = predict(build())
    assert (status, body["error"]) == (503, "no champion yet")
    assert "retry-after" in headers


def test_replica_is_right_before_its_first_answer(build, root):
    root.write_live(document(4, champion="old"))
    status, body, _ = predict(build())
    assert (status, body["version"], body["slot"], body["value"]) == (200, "v-old", "champion", 0.1)


def test_highest_epoch_and_generation_wins(build, root):
    root.write_live(document(4, champion="old"))
    replica = build()
    for stale in (
        document(3, champion="new"),
        document(99, epoch=0, champion="new"),
        document(4, champion="new"),
    ):
        take(replica, stale)
    assert predict(replica)[1]["version"] == "v-old"
    take(replica, document(1, epoch=2, champion="new"))
    assert predict(replica)[1]["version"] == "v-new"


def test_operators_document_serves_where_no_controller_ever_ran(build):
    replica = build()
    take(replica, document(1, epoch=0, champion="old"))
    assert predict(replica)[0] == 200


@pytest.mark.parametrize("junk", [None, 5, {}, {"pipeline": "p"}, [], "x", {"pipeline": "p", "epoch": "x"}])
def test_reconfigure_never_raises(build, root, junk):
    root.write_live(document(1, champion="old"))
    replica = build()
    report = asyncio.run(replica.reconfigure(junk))
    assert report["generation"] == 1
    assert predict(replica)[0] == 200


def test_corrupt_champion_is_refused_and_the_old_one_keeps_serving(build, root):
    root.write_live(document(1, champion="old"))
    replica = build()
    doc = document(2, champion="corrupt")
    take(replica, doc)
    report = replica.report()
    assert "corrupt" in report.refused["corrupt"]
    assert not report.serves(doc)
    assert predict(replica)[1]["version"] == "v-old"


def test_promotion_of_resident_weights_is_live_at_once(build, root):
    root.write_live(document(1, champion="old", challenger="new", rollout="r", split=0.0))
    replica = build()
    take(replica, document(2, champion="old", challenger="new", rollout="r", split=0.0))
    promoted = document(3, champion="new", previous="old")
    report = asyncio.run(replica.reconfigure(to_json(promoted)))
    assert report["generation"] == 3
    assert predict(replica)[1]["version"] == "v-new"


def test_challenger_answers_its_share(build, root):
    root.write_live(document(1, champion="old"))
    replica = build()
    take(replica, document(2, champion="old", challenger="new", rollout="r", split=0.25))
    slots = [predict(replica, f"k{n}")[1]["slot"] for n in range(300)]
    assert 40 < slots.count("challenger") < 110
    arms = {arm.arm: arm.requests for arm in replica.report().arms}
    assert arms == {"champion": slots.count("champion"), "challenger": slots.count("challenger")}


@pytest.mark.parametrize("bad", ["raises", "nan"])
def test_champion_answers_for_a_failing_challenger(build, root, bad):
    root.write_live(document(1, champion="old"))
    replica = build()
    take(replica, document(2, champion="old", challenger=bad, rollout="r", split=1.0))
    for client in range(5):
        status, body, _ = predict(replica, key=f"client-{client}")
        assert (status, body["slot"], body["version"]) == (200, "champion", "v-old")
    (arm,) = replica.report().arms
    assert (arm.arm, arm.requests, arm.errors) == ("challenger", 5, 5)


def test_mirrored_requests_are_compared_off_the_path(build, root):
    root.write_live(document(1, champion="old"))
    replica = build()
    take(replica, document(2, champion="old", challenger="new", rollout="r", mirror=True))
    for _ in range(7):
        assert predict(replica)[1]["slot"] == "champion"
    replica.mirror.drain()
    (pair,) = replica.report().pairs
    assert (pair.pairs, pair.flipped, pair.errors, pair.shed) == (7, 7, 0, 0)
    assert pair.distance == pytest.approx(7 * 0.8)


def test_every_answer_is_logged_with_its_version(build, root):
    root.write_live(document(1, champion="old"))
    replica = build()
    ids = [predict(replica)[1]["prediction_id"] for _ in range(3)]
    replica.log.flush()
    table = read_log(root.pipeline("p").log, 0, 9e9)
    assert table["prediction_id"].to_pylist() == ids
    assert set(table["version"].to_pylist()) == {"old"}


def test_body_over_the_limit_is_413_even_without_a_length(build, root):
    root.write_live(document(1, champion="old"))
    replica = build(body_limit=1024)
    assert send(replica, "POST", "/predict", [b"x" * 600, b"x" * 600])[0] == 413
    assert send(replica, "POST", "/predict", b"", [("content-length", "999999")])[0] == 413


def test_unknown_paths_and_methods(build):
    replica = build()
    assert send(replica, "GET", "/nope")[0] == 404
    assert send(replica, "GET", "/predict")[0] == 405
    assert send(replica, "POST", "/health")[0] == 405
    assert send(replica, "POST", "/admin/nope")[0] == 404


def test_busy_replica_says_503(build):
    status, _, headers = send(build(max_in_flight=0), "GET", "/health")
    assert status == 503
    assert headers["retry-after"] == "1"


def test_labels_are_answered_by_what_they_did(build, root):
    root.write_live(document(1, champion="old"))
    replica = build()
    made = predict(replica)[1]["prediction_id"]

    def label(value, prediction_id=made):
        body = json.dumps({"prediction_id": prediction_id, "value": value}).encode()
        status, answer, _ = send(replica, "POST", "/labels", body)
        return status, answer.get("results", [{}])[0].get("result")

    assert [label(1), label(1), label(0)] == [(202, "pending"), (200, "same"), (200, "corrected")]
    assert label(1, "nonsense")[0] == 422


def test_operators_verb_needs_token_key_and_reason(build, root):
    link = FakeLink()
    replica = build(link)
    good = [("Authorization", f"Bearer {root.token()}"), ("Idempotency-Key", "k1")]
    body = b'{"reason":"because"}'
    assert send(replica, "POST", "/admin/pause", body)[0] == 401
    assert send(replica, "POST", "/admin/pause", body, [("Authorization", "Bearer x")])[0] == 403
    assert send(replica, "POST", "/admin/pause", body, good[:1])[0] == 400
    assert send(replica, "POST", "/admin/pause", b"{}", good)[0] == 422
    status, _, headers = send(replica, "POST", "/admin/pause", body, good)
    assert (status, headers["retry-after"]) == (503, "2")
    link.away = False
    assert send(replica, "POST", "/admin/pause", body, good)[0] == 202
    assert ("operate", ("p", "pause", "k1", {"reason": "because"})) in link.calls


def test_pulled_document_is_taken(build, root):
    root.write_live(document(1, champion="old"))
    link = FakeLink()
    link.away, link.document = False, to_json(document(2, champion="new"))
    replica = build(link)
    end = time.monotonic() + 3
    while predict(replica)[1]["version"] != "v-new" and time.monotonic() < end:
        time.sleep(0.01)
    assert predict(replica)[1]["version"] == "v-new"
    assert replica.report().generation == 2


def test_refused_version_is_not_loaded_again_until_a_newer_document(build, root, monkeypatch):
    root.write_live(document(1, champion="old"))
    replica = build()
    loads = []
    monkeypatch.setattr(
        replica.weights,
        "_load",
        lambda root, wanted: (loads.append(wanted.version), fake_load(root, wanted))[1],
    )
    take(replica, document(2, champion="old", challenger="corrupt"))
    take(replica, document(2, champion="old", challenger="corrupt"))
    assert loads == ["corrupt"]
    take(replica, document(3, champion="old", challenger="corrupt"))
    assert loads == ["corrupt", "corrupt"]


def test_one_key_is_one_witness_however_many_requests_it_sends():
    counters = Counters()
    for _ in range(60):
        counters.arm("r", 0.1, "challenger", True, True, "one client")
    for _ in range(3):
        counters.arm("r", 0.1, "challenger", True, False, None)
    keyed, keyless = counters.arms()
    assert (keyed.keyed, keyed.requests, keyed.errors, keyed.slow) == (True, 1, 1, 1)
    assert (keyless.keyed, keyless.requests, keyless.errors, keyless.slow) == (False, 3, 3, 0)
