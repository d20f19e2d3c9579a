import asyncio
import json
import threading
import time

import pytest
from starlette.requests import Request

from ctrain.errors import ServingError, WeightsError
from ctrain.records import LiveDocument, Slot, to_json
from ctrain.serving.counters import Counters
from ctrain.serving.link import ControllerAwayError
from ctrain.serving.prediction_log import read_log
from ctrain.serving.predictor import Limits, Predictor
from ctrain.serving.split import challenger_answers
from ctrain.storage import Root


class FakeModel:
    """Its version's name says how it behaves, and after a dash which further columns it has."""

    threshold = 0.5

    def __init__(self, slot):
        more = slot.version.split("-")[1:]
        self.columns = {name: {"kind": "number"} for name in ("a", *more)}
        self.version, self.sha256 = slot.version, slot.sha256

    def predict(self, rows):
        if "raises" in self.version:
            raise ValueError("challenger broke")
        value = float("nan") if "nan" in self.version else 0.9 if "new" in self.version else 0.1
        return [float("inf") if row["a"] > 1e300 else value for row in rows]


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
    if "away" in wanted.version:
        raise OSError("storage is away")
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

    path, _, query = path.partition("?")
    scope = {
        "type": "http", "method": method, "path": f"/p{path}", "root_path": "/p",
        "query_string": query.encode(),
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers],
    }  # fmt: skip
    response = asyncio.run(replica(Request(scope, receive)))
    return response.status_code, json.loads(response.body), response.headers


def predict(replica, key="k", **more):
    return send(replica, "POST", "/predict", json.dumps({"key": key, "features": {"a": 1} | more}).encode())


def predict_rows(replica, *values):
    body = {"key": "k", "rows": [{"a": value} for value in values]}
    return send(replica, "POST", "/predict", json.dumps(body).encode())


def take(replica, doc):
    report = asyncio.run(replica.reconfigure(to_json(doc)))
    end = time.monotonic() + 3
    while replica.weights._missing() is not None and time.monotonic() < end:
        time.sleep(0.005)
    return report


def until(done):
    """Wait, within a bound, for what a replica's threads do."""
    end = time.monotonic() + 5
    while not done():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.005)


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
    take(replica, document(2, champion="old", challenger=bad, rollout="r", split=0.9))
    keys = [key for key in map(str, range(10)) if challenger_answers("r", key, 0.9)]
    for key in keys:
        status, body, _ = predict(replica, key=key)
        assert (status, body["slot"], body["version"]) == (200, "champion", "v-old")
    (arm,) = replica.report().arms
    assert (arm.arm, arm.requests, arm.errors) == ("challenger", len(keys), len(keys))


def test_mirrored_requests_are_compared_off_the_path(build, root):
    root.write_live(document(1, champion="old"))
    replica = build()
    take(replica, document(2, champion="old", challenger="new", rollout="r", mirror="challenger"))
    for _ in range(7):
        assert predict(replica)[1]["slot"] == "champion"
    replica.mirror.drain()
    (pair,) = replica.report().pairs
    assert (pair.pairs, pair.flipped, pair.errors, pair.shed) == (7, 7, 0, 0)
    assert pair.distance == pytest.approx(7 * 0.8)


def logged(root):
    return read_log(root.pipeline("p").log, 0, 9e9).to_pylist()


def test_what_a_challenger_would_have_answered_is_logged_under_the_ids_of_the_answers(build, root):
    root.write_live(document(1, champion="old"))
    replica = build()
    take(replica, document(2, champion="old", challenger="new", rollout="r", mirror="challenger"))
    ids = [predict(replica)[1]["prediction_id"] for _ in range(3)]
    replica.mirror.drain()
    replica.log.flush()
    answers, shadows = (
        [row for row in logged(root) if (row["slot"] == "shadow") == is_one] for is_one in (0, 1)
    )
    assert [row["prediction_id"] for row in answers] == [row["prediction_id"] for row in shadows] == ids
    assert {(row["version"], row["rollout"], row["features"]) for row in shadows} == {("new", "r", "{}")}
    assert [row["time"] for row in answers] == [row["time"] for row in shadows]
    assert all(abs(row["value"] - other["value"]) > 0.5 for row, other in zip(answers, shadows, strict=True))


def test_a_dethroned_champion_in_shadow_answers_nobody_and_counts_for_no_rollout(build, root):
    root.write_live(document(1, champion="new", previous="old", mirror="previous"))
    replica = build()
    until(lambda: replica.weights.now.shadow is not None)
    assert predict(replica)[1]["version"] == "v-new"
    replica.mirror.drain()
    replica.log.flush()
    assert [(row["slot"], row["version"]) for row in logged(root)] == [("champion", "new"), ("shadow", "old")]
    assert replica.report().pairs == ()


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


@pytest.mark.parametrize("changes", [{}, {"mirror": "challenger"}])
def test_nothing_is_counted_while_no_coin_is_thrown(build, root, changes):
    root.write_live(document(1, champion="old", challenger="new", rollout="r", **changes))
    replica = build()
    until(lambda: "new" in replica.weights.resident)
    for key in ("k1", "k2", "", None):
        assert predict(replica, key=key)[1]["slot"] == "champion"
    assert replica.report().arms == ()


def test_champion_is_no_arm_before_the_challenger_is_resident(build, root):
    root.write_live(document(1, champion="old", challenger="away", rollout="r", split=0.5))
    replica = build()
    for key in ("k1", "k2", "", None):
        assert predict(replica, key=key)[1]["slot"] == "champion"
    assert replica.report().arms == ()
    assert replica.report().refused == {}


def test_replica_without_its_champion_in_time_does_not_start(build, root):
    root.write_live(document(1, champion="away"))
    before = set(threading.enumerate())
    with pytest.raises(ServingError, match="v-away"):
        build(start_timeout=0.05)
    assert {one.name for one in threading.enumerate() if one not in before} == set()


def test_replica_whose_champion_is_refused_starts_and_says_so(build, root):
    root.write_live(document(1, champion="corrupt"))
    replica = build()
    assert predict(replica)[0] == 503
    assert "is corrupt" in replica.report().refused["corrupt"]
    asyncio.run(replica.check_health())


def test_live_document_is_asked_for_again_until_the_time_is_over(build, root, monkeypatch):
    root.write_live(document(1, champion="old"))
    monkeypatch.setattr("ctrain.serving.predictor._STARTED_AGAIN", 0.005)
    faults, read = [OSError(), OSError()], Root.read_live

    def read_live(self, pipeline):
        if faults:
            raise faults.pop()
        return read(self, pipeline)

    monkeypatch.setattr(Root, "read_live", read_live)
    assert predict(build())[0] == 200
    faults += [OSError()] * 1000
    with pytest.raises(ServingError, match="cannot be read"):
        build(start_timeout=0.02)


def test_live_document_that_nobody_can_read_is_none(build, root):
    root.live.write("p.json", b'{"pipeline": "p"')
    replica = build()
    assert predict(replica)[0] == 503
    take(replica, document(1, champion="old"))
    assert predict(replica)[0] == 200


@pytest.mark.parametrize("thread", ["mirror", "weights", "_puller", "log"])
def test_health_check_fails_when_a_thread_has_ended(build, thread):
    replica = build()
    asyncio.run(replica.check_health())
    one = getattr(replica, thread)
    one.close()
    one._thread.join(5)
    with pytest.raises(ServingError, match="ended threads"):
        asyncio.run(replica.check_health())


def test_what_nobody_foresaw_is_a_json_500_that_counts_as_failed(build, root, monkeypatch):
    root.write_live(document(1, champion="old"))
    replica = build()
    monkeypatch.setattr(replica._ids, "new", lambda now: 1 / 0)
    status, body, _ = predict(replica)
    assert (status, body["problems"]) == (500, [])
    assert replica.report().failed == 1
    assert replica._in_flight == 0


def test_numbers_that_the_model_cannot_use_are_422_and_name_their_row(build, root):
    root.write_live(document(1, champion="old"))
    replica = build()
    status, body, _ = predict_rows(replica, 1.0, 1e308)
    assert (status, [problem["field"] for problem in body["problems"]]) == (422, ["rows.1"])
    assert predict(replica, a=1e308)[1]["problems"][0]["field"] == "features"
    assert replica.report().failed == 0


def test_champion_that_raises_is_500_and_counts_as_failed(build, root):
    root.write_live(document(1, champion="raises"))
    replica = build()
    assert predict(replica)[0] == 500
    assert replica.report().failed == 1


@pytest.mark.parametrize("count", [1, 3, 200])
def test_rows_are_answered_and_logged_one_by_one(build, root, count):
    root.write_live(document(1, champion="old"))
    replica = build()
    status, body, _ = predict_rows(replica, *range(count))
    assert (status, body["version"], body["slot"]) == (200, "v-old", "champion")
    ids = [one["prediction_id"] for one in body["predictions"]]
    assert len(set(ids)) == count
    replica.log.flush()
    table = read_log(root.pipeline("p").log, 0, 9e9)
    assert table["prediction_id"].to_pylist() == ids
    assert table["features"].to_pylist() == [
        json.dumps({"a": float(n)}, separators=(",", ":")) for n in range(count)
    ]


def test_many_rows_are_scored_off_the_event_loop(build, root, monkeypatch):
    root.write_live(document(1, champion="old"))
    replica = build()
    threads = []
    monkeypatch.setattr(
        FakeModel,
        "predict",
        lambda self, rows: threads.append(threading.current_thread()) or [0.5] * len(rows),
    )
    predict_rows(replica, *range(64))
    predict_rows(replica, *range(65))
    assert threads[0] is threading.main_thread()
    assert threads[1] is not threading.main_thread()


@pytest.mark.parametrize("end", [{"champion": "old"}, {"champion": "new-b", "previous": "old"}])
def test_columns_of_both_versions_stay_allowed_after_a_rollout_ended(build, root, end):
    root.write_live(document(1, champion="old", challenger="new-b", rollout="r"))
    replica = build()
    until(lambda: predict(replica, b=1)[0] == 200)
    take(replica, document(2, **end))
    assert predict(replica, b=1)[0] == 200
    assert predict(replica, c=1)[0] == 422


def test_columns_of_versions_long_gone_are_forgotten(build, root):
    root.write_live(document(1, champion="old-b"))
    replica = build()
    for number in range(2, 12):
        take(replica, document(number, champion=f"old{number}"))
        until(lambda number=number: replica.weights.now.champion.version == f"old{number}")
    assert predict(replica, b=1)[0] == 422


@pytest.mark.parametrize("changes", [{"mirror": "challenger"}, {"mirror": "challenger", "split": 0.999999}])
def test_requests_that_lack_what_the_challenger_requires_are_its_errors(build, root, changes):
    root.write_live(document(1, champion="old", challenger="new-b", rollout="r", **changes))
    replica = build()
    until(lambda: "new-b" in replica.weights.resident)
    for number in range(3):
        assert predict(replica, key=f"k{number}")[1]["slot"] == "champion"
    replica.mirror.drain()
    report = replica.report()
    assert sum(counts.errors for counts in (*report.pairs, *report.arms)) == 3


def test_openapi_describes_the_champions_columns(build, root):
    assert send(build(), "GET", "/openapi.json")[1]["paths"]["/why"]["get"]
    root.write_live(document(1, champion="old-b"))
    status, body, _ = send(build(), "GET", "/openapi.json")
    assert status == 200
    assert '"b"' in json.dumps(body["paths"]["/predict"])


def test_history_is_asked_of_the_controller(build):
    link = FakeLink()
    replica = build(link)
    assert send(replica, "GET", "/why")[0] == 503
    link.away = False
    assert send(replica, "GET", "/why?version=v7&limit=1000&after=5")[0] == 200
    assert ("why", ("p", "v7", 1000, 5)) in link.calls
    for query in ("limit=0", "limit=x", "limit=99999999", "after=-1", "limit=%C2%B2"):
        status, body, _ = send(replica, "GET", f"/why?{query}")
        assert (status, body["problems"][0]["field"]) == (422, query.split("=")[0])


def test_hung_controller_holds_up_questions_and_neither_scoring_nor_labels_nor_verbs(build, root):
    root.write_live(document(1, champion="old"))
    gate, link = threading.Event(), FakeLink()
    link.away = False
    replica = build(link)
    call = link.call
    link.call = lambda method, *given, timeout=2.0: (
        gate.wait(10) if method == "status" else True,
        call(method, *given, timeout=timeout),
    )[1]

    async def ask():
        get = {"type": "http", "method": "GET", "path": "/p/status", "root_path": "/p", "headers": []}
        waiting = [asyncio.ensure_future(replica(Request(get))) for _ in range(8)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        ninth = await replica(Request(get))
        body = json.dumps({"features": {"a": 1}}).encode()
        scored = await replica._predict(body)
        verb = await replica._operator._verbs.call("operate", "p", timeout=5.0)
        gate.set()
        return ninth, scored, verb, await asyncio.gather(*waiting)

    ninth, scored, verb, others = asyncio.run(ask())
    assert (ninth.status_code, ninth.headers["retry-after"]) == (503, "1")
    assert (scored.status_code, verb["ok"]) == (200, True)
    assert {one.status_code for one in others} == {200}


def test_one_key_is_one_witness_however_many_requests_it_sends():
    counters = Counters()
    for _ in range(60):
        counters.arm("r", 0.1, "challenger", True, 2, "one client")
    for _ in range(3):
        counters.arm("r", 0.1, "challenger", True, 0, None)
    keyed, keyless = counters.arms()
    assert (keyed.keyed, keyed.requests, keyed.errors, keyed.slow) == (True, 1, 1, (1, 1, 0))
    assert (keyless.keyed, keyless.requests, keyless.errors, keyless.slow) == (False, 3, 3, (0, 0, 0))
