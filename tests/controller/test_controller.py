from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from factories import spec
from fakes import FakeClock, FakeReplica, World, partition
from sqlalchemy.exc import OperationalError

from ctrain.controller.controller import Controller, recover, verify
from ctrain.controller.journal import Journal
from ctrain.errors import FencedError, MissingArtifactError, TamperedError
from ctrain.records import DriftCause, DriftReport, RunRequest, RunStatus, Sighting, WindowReport


class Bench:
    """A controller with fake rooms and a clock, stepped by hand."""

    def __init__(self, folder: Path, **changes: object) -> None:
        self.url = f"sqlite:///{folder / 'journal.db'}"
        self.world, self.clock, self.spec = World(), FakeClock(), spec(**changes)
        self.controller = self.fresh()
        body = {"spec": self.spec.to_json(), "code": ""}
        self.controller.operate("start", "start", "test", "begin", body)

    def fresh(self) -> Controller:
        return Controller(Journal(self.url, "p"), self.world.rooms(), "/root", self.clock, "test")

    def run(self, steps: int = 1, requests: int = 0) -> None:
        for _ in range(steps):
            self.clock.now += 1.0
            for replica in self.world.serving.replicas:
                replica.serve(requests)
            self.controller.step()

    def until(self, condition: Callable[[], bool], requests: int = 400) -> None:
        for _ in range(400):
            if condition():
                return
            self.run(requests=requests)
        raise AssertionError([event.kind for event in self.controller._journal.read()][-20:])

    def kinds(self) -> list[str]:
        return [event.kind for event in self.controller._journal.read()]

    def serve_first(self) -> str:
        self.world.land(0, 1, 2)
        self.until(lambda: bool(self.controller.state.champion))
        return self.controller.state.champion


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_first_model_serves_without_a_rollout(bench: Bench) -> None:
    champion = bench.serve_first()
    bench.run(12)
    assert "rollout_started" not in bench.kinds()
    for replica in bench.world.serving.replicas:
        assert replica.document is not None
        assert replica.document.champion is not None
        assert replica.document.champion.version == champion
    assert bench.world.serving.settled == [bench.controller.state.generation]


def test_too_few_matured_partitions_wait_and_say_so(bench: Bench) -> None:
    bench.world.land(0, 1)
    bench.run(10)
    assert bench.controller.state.waiting.startswith("2 matured partitions")
    assert bench.kinds().count("retrain_waits") == 1


def test_a_run_takes_matured_partitions_alone_and_a_gate_is_told_how_they_landed(tmp_path: Path) -> None:
    bench = Bench(tmp_path, label={"name": "y", "matures_after": "1d"})
    bench.world.land(0, 1, 2, 3)
    bench.until(lambda: bool(bench.world.evaluation.requests))
    state = bench.controller.state
    (request,) = [e.data["request"] for e in bench.controller._journal.read() if e.kind == "run_started"]
    assert request["partitions"] == ["day-000", "day-001", "day-002"]
    assert all(state.partitions[name].last_event + 86400 <= state.watermark for name in request["partitions"])
    assert set(request["blocks"]) < set(request["partitions"])
    landed = bench.world.evaluation.requests[0].landed
    assert set(landed) == set(state.partitions)
    assert {one.batch for one in landed.values()} == {1}
    bench.world.land(4)
    bench.until(lambda: "day-004" in bench.controller.state.partitions)
    assert bench.controller.state.partitions["day-004"].batch == 2


def test_a_better_candidate_walks_through_shadow_and_canary_to_promotion(bench: Bench) -> None:
    first = bench.serve_first()
    bench.world.land(3)
    bench.until(lambda: bench.controller.state.champion not in ("", first))
    splits = [d.split for d in bench.world.serving.replicas[0].history if d.rollout]
    assert splits == [0.0, 0.0, 0.1, 0.5]
    assert bench.controller.state.previous == first


def test_a_refused_candidate_changes_nothing(bench: Bench) -> None:
    first = bench.serve_first()
    bench.world.evaluation.verdicts["m-p-00002-1"] = "refuse"
    bench.world.land(3)
    generation = bench.controller.state.generation
    bench.until(lambda: bench.kinds().count("gate_decided") == 2)
    bench.run(20)
    assert (bench.controller.state.champion, bench.controller.state.generation) == (first, generation)


def test_a_challenger_that_fails_in_the_canary_is_withdrawn(bench: Bench) -> None:
    first = bench.serve_first()
    for replica in bench.world.serving.replicas:
        replica.errors.add("m-p-00002-1")
    bench.world.land(3)
    bench.until(lambda: "aborted" in bench.kinds())
    aborted = next(e for e in bench.controller._journal.read() if e.kind == "aborted")
    assert "errors" in aborted.data["reason"]
    assert bench.controller.document.split == 0.0
    assert bench.controller.state.champion == first


def test_weights_that_a_replica_refuses_end_the_rollout(bench: Bench) -> None:
    first = bench.serve_first()
    bench.world.serving.replicas[1].refuses.add("m-p-00002-1")
    bench.world.land(3)
    bench.until(lambda: "aborted" in bench.kinds())
    assert bench.controller.state.champion == first
    assert "sha256 differs" in bench.controller.state.alerts[-1][2]


def test_rollback_is_immediate_and_runs_once_for_each_key(bench: Bench) -> None:
    first = bench.serve_first()
    bench.world.land(3)
    bench.until(lambda: bench.controller.state.champion not in ("", first))
    answer = bench.controller.operate("rollback", "pager", "ann", "pager 4711")
    assert answer["ok"]
    again = bench.controller.operate("rollback", "pager", "ann", "pager 4711")
    assert again["after"] == answer["after"]
    assert bench.kinds().count("rolled_back") == 1
    document = bench.world.serving.replicas[0].document
    assert document is not None
    assert document.champion is not None
    assert document.champion.version == first
    assert bench.controller.operate("rollback", "other", "ann", "again")["status"] == 409


def test_pause_freezes_the_split_and_resume_begins_the_hold_again(bench: Bench) -> None:
    bench.serve_first()
    bench.world.land(3)
    bench.until(lambda: bench.controller.document.split == 0.1)
    assert bench.controller.operate("pause", "k1", "ann", "look")["ok"]
    bench.run(50, requests=400)
    assert bench.controller.document.split == 0.1
    assert bench.controller.operate("resume", "k2", "ann", "fine")["ok"]
    bench.until(lambda: bench.controller.document.split == 0.5)


def test_a_restarted_controller_goes_on_where_the_journal_stands(bench: Bench) -> None:
    first = bench.serve_first()
    bench.world.land(3)
    bench.until(lambda: bench.controller.document.split == 0.1)
    state = bench.controller.state
    bench.controller = bench.fresh()
    assert bench.controller.state == state
    bench.until(lambda: bench.controller.state.champion not in ("", first))
    assert bench.world.training.starts.count("p-00002-1") == 1


def test_a_fenced_controller_can_neither_write_nor_steer(bench: Bench) -> None:
    bench.serve_first()
    old = bench.controller
    bench.controller = bench.fresh()
    bench.run(3)
    document = bench.world.serving.replicas[0].document
    with pytest.raises(FencedError):
        old.operate("retrain", "late", "ann", "late")
    bench.world.serving.apply(old.document)
    assert bench.world.serving.replicas[0].document == document


def test_a_failed_run_is_tried_again_and_then_given_up(bench: Bench) -> None:
    bench.world.training.bad |= {"p-00001-1", "p-00001-2"}
    bench.world.land(0, 1, 2)
    bench.until(lambda: "run_given_up" in bench.kinds())
    assert bench.world.training.starts == ["p-00001-1", "p-00001-2"]
    assert bench.controller.state.alerts[-1][1] == "run"


def test_a_problem_of_the_source_is_said_once_and_the_loop_goes_on(bench: Bench) -> None:
    bench.world.source.landed.append(Sighting("day-009", None, "unsealed"))
    bench.serve_first()
    bench.run(30)
    assert bench.kinds().count("source_looked") == 1
    assert bench.controller.state.problems == {"day-009": "unsealed"}


def test_a_schedule_starts_a_run_without_new_data(tmp_path: Path) -> None:
    bench = Bench(tmp_path, triggers=[{"type": "schedule", "cron": "* * * * *"}])
    bench.world.land(0, 1, 2)
    bench.until(lambda: "run_started" in bench.kinds())
    wanted = [event for event in bench.controller._journal.read() if event.kind == "retrain_wanted"]
    assert wanted[0].data["trigger"] == "schedule"


def test_retrain_by_an_operator_carries_its_overrides(bench: Bench) -> None:
    bench.serve_first()
    bench.controller.operate("retrain", "k", "ann", "try", {"overrides": {"training": {"seed": 11}}})
    bench.until(lambda: len(bench.world.training.runs) == 2)
    request = bench.world.training.runs["p-00002-1"]
    assert (request.seed, request.spec["training"]["seed"]) == (11, 11)
    assert request.spec["training"]["epochs"] == 5


def test_snapshots_shorten_the_restart_and_change_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ctrain.controller.controller.SNAPSHOT_EVERY", 5)
    bench.serve_first()
    bench.run(20)
    journal = Journal(bench.url, "p")
    snapshot = journal.snapshot()
    assert snapshot is not None
    assert snapshot.seq > 5
    assert recover(journal) == bench.controller.state


def test_a_champion_that_falls_behind_the_freshness_goal_is_alerted_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path, goals={"freshness": "1d"})
    bench.serve_first()
    bench.world.training.bad |= {"p-00002-1", "p-00002-2"}
    bench.world.land(3, 4)
    bench.until(lambda: "run_given_up" in bench.kinds())
    bench.run(10)
    goals = [text for _, kind, text in bench.controller.state.alerts if kind == "goal"]
    assert goals == ["v1, trained to day-002, misses the freshness of 86400 s"]


def test_every_journaled_event_is_told_once(bench: Bench) -> None:
    told: list[int] = []
    bench.controller = Controller(
        Journal(bench.url, "p"),
        bench.world.rooms(),
        "/root",
        bench.clock,
        "test",
        lambda e: told.append(e.seq),
    )
    bench.serve_first()
    assert told == list(range(told[0], bench.controller.state.seq + 1))


def test_an_operators_deploy_is_reported_and_put_right_and_changes_nothing_live(bench: Bench) -> None:
    champion = bench.serve_first()
    bench.run(12)
    bench.world.serving.configured = 0
    bench.run(3)
    assert bench.world.serving.configured == bench.controller.state.generation
    assert bench.kinds().count("overwritten") == 1
    assert bench.controller.state.champion == champion


def test_a_deleted_application_is_created_again(bench: Bench) -> None:
    bench.serve_first()
    bench.run(5)
    bench.world.serving.deployed = False
    bench.run(2)
    assert bench.world.serving.deployed


def test_a_failure_that_would_come_again_is_not_tried_again(bench: Bench) -> None:
    bench.world.training.bad.add("p-00001-1")
    bench.world.training.hopeless = True
    bench.world.land(0, 1, 2)
    bench.until(lambda: "run_given_up" in bench.kinds())
    assert bench.world.training.starts == ["p-00001-1"]


def test_a_room_that_raises_is_asked_again_and_holds_up_nobody_else(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, calls = bench.world.training.start, []

    def flaky(request: RunRequest) -> None:
        calls.append(request.run_id)
        if len(calls) == 1:
            raise ConnectionError("no cluster for a moment")
        start(request)

    monkeypatch.setattr(bench.world.training, "start", flaky)
    bench.world.land(0, 1, 2)
    bench.until(lambda: bool(bench.controller.faults))
    assert bench.controller.faults == {"p-00001-1": "ConnectionError: no cluster for a moment"}
    bench.until(lambda: bool(bench.controller.state.champion))
    assert calls == ["p-00001-1", "p-00001-1"]
    assert not bench.controller.faults


def test_a_source_that_is_away_does_not_hold_up_what_is_under_way(bench: Bench) -> None:
    bench.world.land(0, 1, 2)
    bench.until(lambda: bench.controller.state.run is not None or "run_finished" in bench.kinds())
    bench.world.source.away = "token expired"
    bench.until(lambda: bool(bench.controller.state.champion))
    bench.run(10)
    assert bench.controller.state.problems == {"": "cannot be read: token expired"}


def test_while_serve_is_away_the_loop_lands_and_trains(bench: Bench) -> None:
    bench.world.serving.fault = ConnectionError("Serve restarts")
    bench.world.serving.deployed = False
    bench.world.land(0, 1, 2)
    bench.until(lambda: bool(bench.controller.state.champion))
    assert "Serve restarts" in bench.controller.faults["serving"]
    bench.world.serving.fault = None
    bench.until(lambda: bench.controller.state.converged == bench.controller.state.generation)


def test_overrides_that_are_no_spec_are_refused_with_their_faults(bench: Bench) -> None:
    bench.serve_first()
    answer = bench.controller.operate(
        "retrain", "k", "ann", "try", {"overrides": {"training": {"epochs": -1}}}
    )
    assert answer["status"] == 422
    assert "training.epochs" in answer["error"]
    assert "retrain_wanted" not in bench.kinds()[-3:]


# --- the life of a pipeline ---


def in_canary(bench: Bench) -> str:
    """Walk to the first canary step; gives the champion."""
    first = bench.serve_first()
    bench.world.land(3)
    bench.until(lambda: bench.controller.document.split == 0.1)
    return first


def test_a_new_spec_in_mid_canary_is_for_the_next_rollout(bench: Bench) -> None:
    first = in_canary(bench)
    changed = spec(rollout={"type": "canary", "shadow": 20, "steps": [0.3], "hold": 5.0})
    body = {"spec": changed.to_json(), "code": ""}
    assert bench.controller.operate("start", "again", "ann", "fewer steps", body)["ok"]
    bench.until(lambda: bench.controller.document.split == 0.5)
    assert recover(Journal(bench.url, "p")) == bench.controller.state
    bench.until(lambda: bench.controller.state.champion != first)
    bench.world.land(4)
    bench.until(lambda: bench.controller.document.split == 0.3)


def test_stop_withdraws_the_challenger_ends_the_run_and_removes_the_application(bench: Bench) -> None:
    in_canary(bench)
    assert bench.controller.operate("stop", "stop", "ann", "end of season")["ok"]
    assert bench.controller.gone
    assert bench.kinds()[-2:] == ["aborted", "pipeline_stopped"]
    assert not bench.world.serving.deployed


def test_a_stop_is_carried_out_however_often_serve_or_the_controller_fail(bench: Bench) -> None:
    bench.serve_first()
    bench.world.serving.fault = ConnectionError("Serve restarts")
    assert bench.controller.operate("stop", "stop", "ann", "end")["ok"]
    bench.run(3)
    assert bench.world.serving.deployed
    bench.controller = bench.fresh()
    bench.world.serving.fault = None
    bench.run(1)
    assert not bench.world.serving.deployed
    assert bench.controller.gone


def test_a_run_that_was_stopped_begins_again_with_the_pipeline(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        bench.world.training, "poll", lambda run_id: RunStatus(run_id, "running", progress="1/5")
    )
    bench.world.land(0, 1, 2)
    bench.until(lambda: bench.controller.state.run is not None)
    bench.run(2)
    bench.controller.operate("stop", "stop", "ann", "pause over the weekend")
    bench.run(1)
    assert bench.world.training.actors == set()
    monkeypatch.undo()
    body = {"spec": bench.spec.to_json(), "code": ""}
    bench.controller.operate("start", "monday", "ann", "go on", body)
    bench.until(lambda: bool(bench.controller.state.champion))
    assert bench.world.training.starts == ["p-00001-1", "p-00002-1"]


def test_every_attempt_of_a_run_and_every_stranger_is_released(bench: Bench) -> None:
    bench.world.training.actors.add("p-00000-1")
    bench.controller = bench.fresh()
    bench.world.training.bad.add("p-00001-1")
    bench.serve_first()
    bench.run(2)
    assert bench.world.training.starts == ["p-00001-1", "p-00001-2"]
    assert bench.world.training.actors == set()


def test_a_run_whose_release_failed_is_ended_by_the_next_sweep(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.serve_first()

    def away(run_id: str) -> None:
        raise ConnectionError("Ray's head is away")

    with monkeypatch.context() as patched:
        patched.setattr(bench.world.training, "release", away)
        bench.world.evaluation.verdicts["m-p-00002-1"] = "refuse"
        bench.world.land(3)
        bench.until(lambda: "m-p-00002-1" in bench.controller.state.versions)
        bench.world.land(4)
        bench.until(lambda: len(bench.world.training.runs) == 3)
    assert "p-00002-1" in bench.world.training.actors
    bench.run(130)
    assert bench.world.training.actors == set()


# --- what replicas say ---


def test_harm_ends_a_rollout_that_is_paused(bench: Bench) -> None:
    first = in_canary(bench)
    bench.controller.operate("pause", "p", "ann", "look")
    for replica in bench.world.serving.replicas:
        replica.errors.add("m-p-00002-1")
    bench.until(lambda: "aborted" in bench.kinds())
    assert (bench.controller.state.champion, bench.controller.document.split) == (first, 0.0)


def test_resume_waits_until_every_replica_serves_the_step(bench: Bench) -> None:
    in_canary(bench)
    bench.world.serving.deliver = lambda replica: replica.name == "a"
    assert bench.controller.operate("pause", "p", "ann", "look")["ok"]
    assert bench.controller.operate("resume", "r", "ann", "fine")["ok"]
    bench.until(lambda: bench.controller.document.split == 0.5)  # both had taken the first step
    bench.run(40, requests=400)
    assert bench.controller.document.split == 0.5
    assert bench.controller.state.rollout is not None
    assert bench.controller.state.rollout.since == 0.0
    bench.world.serving.deliver = lambda replica: True
    bench.until(lambda: bench.controller.state.rollout is None)


def test_a_step_waits_for_a_replica_that_was_started_meanwhile(bench: Bench) -> None:
    in_canary(bench)
    bench.run(1, requests=400)
    late = FakeReplica("c")
    bench.world.serving.replicas.append(late)
    bench.world.serving.deliver = lambda replica: replica is not late
    bench.run(40, requests=400)
    assert bench.controller.document.split == 0.1
    late.take(bench.controller.document)
    bench.until(lambda: bench.controller.document.split == 0.5)


def test_a_first_model_that_no_replica_can_load_is_withdrawn_and_the_next_one_serves(bench: Bench) -> None:
    for replica in bench.world.serving.replicas:
        replica.refuses.add("m-p-00001-1")
    bench.world.land(0, 1, 2)
    bench.until(lambda: "rolled_back" in bench.kinds())
    assert bench.controller.state.champion == ""
    assert any("refuses champion v1" in text for _, _, text in bench.controller.state.alerts)
    bench.world.land(3)
    bench.until(lambda: bench.controller.state.champion == "m-p-00002-1")


def test_a_champion_that_one_replica_refuses_keeps_serving_with_an_alert(bench: Bench) -> None:
    first = bench.serve_first()
    bench.run(2)
    bench.world.serving.replicas[1].refuses.add(first)
    bench.run(5)
    assert bench.controller.state.champion == first
    assert [kind for _, kind, text in bench.controller.state.alerts if "refuses champion" in text] == [
        "serving"
    ]


def test_a_canary_without_traffic_sets_its_threshold_once_the_champion_has_answered(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.serve_first()
    quiet = [True]
    report = FakeReplica.report
    latency = {"p50": 0.01, "p90": 0.02, "p99": 0.03}
    monkeypatch.setattr(
        FakeReplica, "report", lambda self: replace(report(self), latency={} if quiet[0] else latency)
    )
    bench.world.land(3)
    bench.until(lambda: bench.controller.document.split == 0.1)
    assert bench.controller.document.slow_s == ()
    quiet[0] = False
    bench.until(lambda: bench.controller.document.slow_s == (0.01, 0.02, 0.03))


# --- outcomes that are hard to take ---


def test_a_partition_that_was_refused_may_land_anew_and_a_committed_one_may_not(bench: Bench) -> None:
    first = partition(1)
    bench.world.ingest.refused.add(first.sha256)
    bench.world.land(0, 1, 2)
    bench.until(lambda: "partition_refused" in bench.kinds())
    assert bench.controller.state.committed == ["day-000", "day-002"]
    again = replace(first, sha256="f" * 64)
    other = replace(partition(0), sha256="e" * 64)
    bench.world.source.landed = [Sighting(p.name, p) for p in (other, again, partition(2))]
    bench.until(lambda: len(bench.controller.state.committed) == 3)
    bench.run(10)
    assert bench.controller.state.partitions["day-001"].sha256 == "f" * 64
    assert bench.controller.state.partitions["day-000"].sha256 == partition(0).sha256
    assert "landed again with other content" in bench.controller.state.problems["day-000"]


def test_an_ingest_that_keeps_failing_is_tried_ever_more_rarely_and_keeps_nobody_out(bench: Bench) -> None:
    bench.world.ingest.bad.add("day-000")
    bench.world.land(0, 1, 2, 3)
    bench.run(600)
    assert bench.controller.state.committed == ["day-001", "day-002", "day-003"]
    assert len(bench.world.ingest.starts) < 30
    bench.world.ingest.bad.clear()
    bench.run(4000)
    assert len(bench.controller.state.committed) == 4


def test_an_outcome_that_no_event_can_hold_counts_as_a_failure(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.serve_first()
    poll = bench.world.evaluation.poll

    def broken() -> list[Any]:
        outcomes: list[Any] = []
        for key, decision in poll():  # type: ignore[misc]
            score = replace(decision.candidate_score, overall={"auc": float("nan")})
            outcomes.append((key, replace(decision, candidate_score=score)))
        return outcomes

    monkeypatch.setattr(bench.world.evaluation, "poll", broken)
    bench.world.land(3)
    bench.until(lambda: "evaluation_failed" in bench.kinds())
    assert not bench.controller.state.busy
    assert bench.controller._journal.verify() > 0


def test_an_outcome_whose_commit_failed_is_worked_for_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = Journal.append

    def full(self: Journal, epoch: int, entries: Any, *rest: Any, **named: Any) -> Any:
        if any(entry.kind == "partition_committed" for entry in entries):
            raise OperationalError("insert", {}, Exception("disk full"))
        return append(self, epoch, entries, *rest, **named)

    monkeypatch.setattr(Journal, "append", full)
    bench.world.land(0, 1, 2)
    with pytest.raises(OperationalError):
        bench.run(10)
    monkeypatch.undo()
    bench.controller = bench.fresh()  # as the host does after whatever the journal raised
    bench.until(lambda: bool(bench.controller.state.champion))


def test_a_version_that_cannot_be_read_ends_its_run_with_an_alert(bench: Bench) -> None:
    bench.world.registry.fault = MissingArtifactError("/root/models/m/manifest.json")
    bench.world.land(0, 1, 2)
    bench.until(lambda: "run_given_up" in bench.kinds())
    assert bench.controller.state.alerts[-1][1] == "run"


def test_a_candidate_that_cannot_be_scored_is_put_aside_with_an_alert(bench: Bench) -> None:
    first = bench.serve_first()
    bench.world.evaluation.bad.add("m-p-00002-1")
    bench.world.land(3)
    bench.until(lambda: "evaluation_failed" in bench.kinds())
    bench.world.land(4)
    bench.until(lambda: bench.controller.state.champion not in ("", first))
    assert bench.controller.state.versions["m-p-00002-1"].end == "not evaluated"


# --- windows ---


def window(**changes: Any) -> WindowReport:
    return replace(WindowReport(0.0, 0.0, 500, 400, {"auc": 0.7}), **changes)


def test_a_window_opens_once_its_last_answers_are_written(tmp_path: Path) -> None:
    bench = Bench(tmp_path, monitoring={"window": 60}, serving={"flush": 10.0})
    bench.serve_first()
    bench.run(130)
    requests = bench.world.monitoring.requests
    assert [(r.end - r.start) for r in requests] == [60.0]
    begun = next(e for e in bench.controller._journal.read() if e.kind == "window_started")
    assert begun.at - begun.data["end"] >= 20.0


def test_a_window_that_failed_is_told_and_the_next_one_opens(tmp_path: Path) -> None:
    bench = Bench(tmp_path, monitoring={"window": 60})
    bench.serve_first()
    bench.world.monitoring.fails = True
    bench.run(70)
    assert bench.controller.state.alerts[-1][2] == "window not summarised: the log is torn"
    bench.world.monitoring.fails = False
    bench.world.monitoring.report = window()
    bench.run(60)
    first, second = bench.world.monitoring.requests
    assert second.start == first.end
    assert bench.controller.state.window is not None


def test_goals_that_a_window_misses_and_moved_inputs_are_alerted(tmp_path: Path) -> None:
    goals = {"latency_p99": "50ms", "metrics": {"auc": 0.75}}
    bench = Bench(tmp_path, monitoring={"window": 60}, goals=goals)
    cause = DriftCause("dest", "mean", "up", "", 0.3, 0.7)
    calm = DriftReport("prediction", "steady", False, 1.0, 1000.0, (), 500, 9, "b", "no evidence of drift")
    drift = (replace(calm, kind="data", state="drift", alarm=True, causes=(cause,)), calm)
    bench.world.monitoring.report = window(latency={"p99": 0.08}, drift=drift)
    bench.serve_first()
    bench.run(70)
    texts = [text for _, _, text in bench.controller.state.alerts]
    assert texts == [
        "inputs drift: dest mean up 0.30 sd (70% of the evidence)",
        "live auc 0.7000 misses the goal 0.75",
        "latency p99 80.0 ms misses 50 ms",
    ]


def test_bad_performance_retrains_once_a_cooldown_also_where_the_runs_fail(tmp_path: Path) -> None:
    triggers = [
        {"type": "new_data", "partitions": 3},
        {"type": "performance", "metric": "auc", "worse_than": 0.8, "cooldown": 600},
    ]
    bench = Bench(tmp_path, monitoring={"window": 60}, triggers=triggers)
    bench.world.monitoring.report = window()
    bench.serve_first()
    bench.world.training.bad |= {f"p-{n:05d}-{a}" for n in range(2, 9) for a in (1, 2)}
    bench.run(1500)
    wanted = [e.data["trigger"] for e in bench.controller._journal.read() if e.kind == "retrain_wanted"]
    assert wanted == ["new_data", "performance", "performance"]


# --- what people ask for ---


def test_a_schedule_does_not_overwrite_what_an_operator_asked_for(tmp_path: Path) -> None:
    bench = Bench(tmp_path, triggers=[{"type": "schedule", "cron": "* * * * *"}])
    bench.world.land(0, 1)  # too few for a run: it waits
    bench.run(5)
    asked = {"overrides": {"training": {"seed": 11}}}
    assert bench.controller.operate("retrain", "k", "ann", "try seed 11", asked)["ok"]
    bench.run(130)
    assert bench.controller.operate("retrain", "k2", "bob", "mine too")["status"] == 409
    bench.world.land(2)
    bench.until(lambda: bool(bench.world.training.runs))
    assert bench.world.training.runs["p-00001-1"].seed == 11


def test_overrides_of_window_and_blocks_choose_the_partitions(bench: Bench) -> None:
    bench.world.land(*range(10))
    bench.until(lambda: bool(bench.controller.state.champion))
    asked = {"overrides": {"training": {"window": "5d"}, "evaluation": {"blocks": 4}}}
    bench.controller.operate("retrain", "k", "ann", "a short one", asked)
    bench.until(lambda: len(bench.world.training.runs) == 2)
    request = bench.world.training.runs["p-00002-1"]
    assert (len(request.partitions), len(request.blocks)) == (5, 4)


@pytest.mark.parametrize(
    "overrides",
    [{"pipeline": "other"}, {"source": {"path": "/etc"}}, [], {"training": {"learning_rate": float("nan")}}],
)
def test_overrides_beyond_a_run_are_refused(bench: Bench, overrides: object) -> None:
    bench.serve_first()
    answer = bench.controller.operate("retrain", "k", "ann", "try", {"overrides": overrides or ["x"]})
    assert (answer["ok"], answer["status"]) == (False, 422)


def test_rollback_in_the_first_canary_withdraws_the_challenger(bench: Bench) -> None:
    first = in_canary(bench)
    assert bench.controller.operate("rollback", "k", "ann", "pager")["ok"]
    assert (bench.controller.state.champion, bench.controller.document.split) == (first, 0.0)
    assert bench.controller.operate("rollback", "k2", "ann", "pager")["status"] == 409


def test_promote_and_abort_do_what_they_say_for_the_version_that_is_meant(bench: Bench) -> None:
    first = in_canary(bench)
    assert bench.controller.operate("promote", "k1", "ann", "go", {"version": "v9"})["status"] == 409
    assert bench.controller.operate("promote", "k2", "ann", "go", {"version": "v2"})["ok"]
    second = bench.controller.state.champion
    assert second not in ("", first)
    bench.world.land(4)
    bench.until(lambda: bench.controller.document.split == 0.1)
    assert bench.controller.operate("abort", "k3", "ann", "no")["ok"]
    assert bench.controller.state.champion == second
    assert bench.controller.operate("abort", "k4", "ann", "no")["status"] == 409


def test_a_rollout_without_evidence_ends_at_its_time_out(tmp_path: Path) -> None:
    plan = {"type": "canary", "shadow": 20, "steps": [0.1], "hold": 5.0, "timeout": 300}
    bench = Bench(tmp_path, rollout=plan)
    first = bench.serve_first()
    bench.world.land(3)
    bench.run(400)
    assert bench.controller.state.champion == first
    aborted = next(e for e in bench.controller._journal.read() if e.kind == "aborted")
    assert "not enough evidence within 300 s" in aborted.data["reason"]
    assert "low traffic, not before the time-out" in aborted.data["reason"]


def test_analyses_that_say_the_same_are_journaled_ever_more_rarely(tmp_path: Path) -> None:
    plan = {"type": "canary", "shadow": 20, "steps": [0.1], "hold": 5.0, "timeout": "1d"}
    bench = Bench(tmp_path, rollout=plan)
    bench.serve_first()
    bench.world.land(3)
    bench.run(8000)
    assert bench.kinds().count("analysed") < 60


def test_an_edited_snapshot_is_named(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctrain.controller.controller.SNAPSHOT_EVERY", 5)
    bench.serve_first()
    bench.run(5)
    journal = Journal(bench.url, "p")
    assert verify(journal) == bench.controller.state.seq
    snapshot = journal.snapshot()
    assert snapshot is not None
    journal.save_snapshot(bench.controller.epoch, snapshot.seq, {**snapshot.state, "champion": "evil"})
    with pytest.raises(TamperedError, match="snapshot"):
        verify(journal)
