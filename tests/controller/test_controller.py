from collections.abc import Callable
from pathlib import Path

import pytest
from factories import spec
from fakes import FakeClock, World

from ctrain.controller.controller import Controller, recover
from ctrain.controller.journal import Journal
from ctrain.errors import FencedError
from ctrain.records import RunRequest, Sighting


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
    bench.run(10)
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
    bench.run(10)
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


def test_a_room_that_raises_is_asked_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    start, calls = bench.world.training.start, []

    def flaky(request: RunRequest) -> None:
        calls.append(request.run_id)
        if len(calls) == 1:
            raise ConnectionError("no cluster for a moment")
        start(request)

    monkeypatch.setattr(bench.world.training, "start", flaky)
    bench.world.land(0, 1, 2)
    with pytest.raises(ConnectionError):
        bench.until(lambda: False)
    bench.controller.reload()
    bench.until(lambda: bool(bench.controller.state.champion))
    assert calls == ["p-00001-1", "p-00001-1"]


def test_a_source_that_is_away_does_not_hold_up_what_is_under_way(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.world.land(0, 1, 2)
    bench.until(lambda: bench.controller.state.run is not None or "run_finished" in bench.kinds())

    def away(known: dict[str, str]) -> list[Sighting]:
        raise PermissionError("token expired")

    monkeypatch.setattr(bench.world.source, "look", away)
    bench.until(lambda: bool(bench.controller.state.champion))
    bench.run(10)
    assert bench.controller.state.problems == {"": "cannot be read: token expired"}


def test_overrides_that_are_no_spec_are_refused_with_their_faults(bench: Bench) -> None:
    bench.serve_first()
    answer = bench.controller.operate(
        "retrain", "k", "ann", "try", {"overrides": {"training": {"epochs": -1}}}
    )
    assert answer["status"] == 409
    assert "training.epochs" in answer["error"]
    assert "retrain_wanted" not in bench.kinds()[-3:]
