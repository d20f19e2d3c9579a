"""The actor's class and its hosts as plain objects, over fake rooms."""

import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from factories import spec
from fakes import World
from sqlalchemy.exc import OperationalError

from ctrain.controller import actor as actor_module
from ctrain.controller.actor import ControllerActor
from ctrain.controller.journal import Journal
from ctrain.spec import PipelineSpec
from ctrain.storage import Root


def until(done: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.01)


class Actors:
    """Actors of one root, each a restart of the one before."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = folder / "root"
        self.worlds: dict[str, World] = {}
        self.made: list[ControllerActor] = []
        monkeypatch.setattr(actor_module, "ray_rooms", self.rooms)
        monkeypatch.setattr(actor_module, "STEP_EVERY", 0.01)

    def rooms(self, spec: PipelineSpec, root: Root) -> Any:
        if spec.source.path.startswith("nowhere://"):
            raise ImportError("install nowherefs")
        return self.worlds.setdefault(spec.pipeline, World()).rooms()

    def start(self) -> ControllerActor:
        self.end()
        self.made.append(ControllerActor(str(self.root)))
        return self.made[-1]

    def end(self) -> None:
        for made in self.made:
            for host in made._hosts.values():
                host.end()


@pytest.fixture
def actors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Actors]:
    made = Actors(tmp_path, monkeypatch)
    yield made
    made.end()


def body(**changes: Any) -> dict[str, Any]:
    return spec(**changes).to_json()


def epoch(actor: ControllerActor, pipeline: str = "p") -> int:
    controller = actor._hosts[pipeline].controller
    return controller.epoch if controller is not None else 0


def test_pipelines_of_one_actor_have_their_own_journals_and_come_back_after_a_restart(actors: Actors) -> None:
    actor = actors.start()
    for name in ("p", "q"):
        assert actor.add(body(pipeline=name), str(actors.root), "", f"start-{name}")["ok"]
        actors.worlds[name].land(0, 1, 2)
    until(lambda: all(actor.status(name).get("champion") for name in ("p", "q")))
    again = actors.start()
    assert again.pipelines() == ["p", "q"]
    until(lambda: all(again.status(name).get("champion") for name in ("p", "q")))
    assert (actors.root / "p" / "journal.db").exists()
    assert (actors.root / "q" / "journal.db").exists()


def test_a_start_that_comes_late_changes_nothing_that_came_after_it(actors: Actors) -> None:
    actor = actors.start()
    old, new = body(), body(owner="another team")
    first = actor.add(old, str(actors.root), "", "a")
    assert actor.add(new, str(actors.root), "", "b")["ok"]
    assert actor.add(old, str(actors.root), "", "a")["after"] == first["after"]
    controller = actor._hosts["p"].controller
    assert controller is not None
    assert controller.state.spec["owner"] == "another team"


def test_another_root_a_used_key_and_an_unknown_pipeline_are_refused(actors: Actors) -> None:
    actor = actors.start()
    assert actor.add(body(), "/elsewhere", "", "k")["status"] == 409
    assert actor.add(body(), str(actors.root), "", "k")["ok"]
    assert actor.operate("p", "pause", "k", {"reason": "another request"})["status"] == 422
    assert actor.operate("q", "pause", "k2", {"reason": "x"})["status"] == 404
    assert actor.operate("p", "pause", "k3", {})["status"] == 422


def test_a_source_that_cannot_be_opened_is_refused_and_leaves_no_trace(actors: Actors) -> None:
    actor = actors.start()
    bad = body(source={"type": "files", "path": "nowhere://bucket", "event_time": "t"})
    answer = actor.add(bad, str(actors.root), "", "k")
    assert answer["status"] == 422
    assert "install nowherefs" in answer["error"]
    assert actor.pipelines() == []
    assert actors.start().pipelines() == []


def test_a_pipeline_whose_journal_cannot_be_read_says_so_and_holds_up_no_other(actors: Actors) -> None:
    actor = actors.start()
    for name in ("p", "q"):
        assert actor.add(body(pipeline=name), str(actors.root), "", f"start-{name}")["ok"]
    actors.end()
    table = sqlite3.connect(actors.root / "p" / "journal.db")
    with table:
        table.execute("update event set kind = 'never heard of'")
    table.close()
    again = actors.start()
    actors.worlds["q"].land(0, 1, 2)
    until(lambda: bool(again.status("q").get("champion")))
    assert "never heard of" in again.status("p")["error"]
    assert again.operate("p", "pause", "k", {"reason": "x"})["status"] == 503


def test_a_database_that_fails_for_a_while_ends_nothing(
    actors: Actors, monkeypatch: pytest.MonkeyPatch
) -> None:
    actor = actors.start()
    assert actor.add(body(), str(actors.root), "", "k")["ok"]
    until(lambda: epoch(actor) > 0)
    before, check, left = epoch(actor), Journal.check, [2]

    def away(self: Journal, epoch: int) -> None:
        left[0] -= 1
        if left[0] >= 0:
            raise OperationalError("select", {}, Exception("the database is away"))
        check(self, epoch)

    monkeypatch.setattr(Journal, "check", away)
    until(lambda: epoch(actor) > before)
    actors.worlds["p"].land(0, 1, 2)
    until(lambda: bool(actor.status("p").get("champion")))


def test_stop_can_be_repeated_and_a_start_takes_the_pipeline_up_again(actors: Actors) -> None:
    actor = actors.start()
    assert actor.add(body(), str(actors.root), "", "a")["ok"]
    first = actor.remove("p", "stop", "end of season")
    assert first["ok"]
    assert actor.remove("p", "stop", "end of season")["after"] == first["after"]
    assert actor.pipelines() == []
    assert not actors.worlds["p"].serving.deployed
    assert actor.add(body(), str(actors.root), "", "b", reason="spring")["ok"]
    until(lambda: actors.worlds["p"].serving.deployed)
    assert actor.pipelines() == ["p"]


def test_a_new_spec_gets_rooms_of_its_own(actors: Actors) -> None:
    actor = actors.start()
    assert actor.add(body(), str(actors.root), "", "a")["ok"]
    old = actors.worlds.pop("p")
    old.land(0, 1, 2)
    assert actor.add(body(owner="others"), str(actors.root), "", "b")["ok"]
    actors.worlds["p"].land(5, 6, 7)
    until(lambda: bool(actor.status("p").get("champion")))
    assert actor.status("p")["data"]["last"] == "day-007"
