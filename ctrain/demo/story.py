"""The demo's story: what is done to the loop, and what must come of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import yaml

from ctrain.client import Client, Status
from ctrain.demo.child import SWITCHES, Child, ray_side
from ctrain.demo.data import days, land_day
from ctrain.demo.picture import Figures, decisions, draw, figures
from ctrain.demo.screen import Screen
from ctrain.demo.traffic import Traffic
from ctrain.errors import ClientError
from ctrain.models.loading import load_network
from ctrain.registry import read_version
from ctrain.storage import Root

SPEC = Path(__file__).with_name("pipeline.yaml")
FIRST_DAYS, NEW_DAYS = 24, 3

ENVIRONMENT = SWITCHES
"""What the benchmarks start their Ray with as well."""

ANSWERS_BEFORE_THE_FAULT = 60
"""Users that the faulty challenger answers well before its fault is switched on."""


class Story:
    """Tells the story once.

    Args:
        folder: Empty folder for landing, root and picture.
        screen: Where it is shown.
    """

    def __init__(self, folder: Path, screen: Screen) -> None:
        self._folder, self._screen = folder, screen
        self._root = Root(folder / "root")
        self._pipeline: str = yaml.safe_load(SPEC.read_text(encoding="utf-8"))["pipeline"]
        self._days = [str(day) for day in days()]
        self._landed = 0
        self._traffic: Traffic | None = None
        self.done: dict[str, bool] = {}

    def tell(self) -> bool:
        """Run it to its end.

        Returns:
            Whether everything happened and no request failed.

        Raises:
            TimeoutError: if something did not happen in time.
            CtrainError: if the Ray process died, with the end of its log.
        """
        say = self._screen.say
        say("this demo asks less evidence than the defaults, so that a rollout fits into a minute:")
        say(
            "7 judged days, no harm beyond .1 AUC, steps of 20 and 50 %, errors below 5 %, slow ratio below 4"
        )
        self._land(FIRST_DAYS)
        say("starting Ray")
        child, url = ray_side(self._folder, SPEC)
        try:
            token = child.answer()["token"]
            say(f"pipeline {self._pipeline} at {url}/{self._pipeline}")
            with Client(url, self._pipeline, token=token) as client:
                found, picture = self._chapters(client, url, child)
        finally:
            child.end()
        assert self._traffic is not None
        self._screen.__exit__(None, None, None)
        self._screen.end(self.done, self._traffic, found, picture)
        return all(self.done.values())

    def _chapters(self, client: Client, url: str, child: Child) -> tuple[Figures, str]:
        until, say = self._until, self._screen.say
        first = until(
            client,
            "the first model serves on every replica",
            lambda s: s.champion is not None and s.converged == s.generation,
        )
        assert first.champion is not None
        version = read_version(self._root, first.champion.version)
        static = load_network(self._root, version, version.served)
        traffic = Traffic(url, self._pipeline, static, self._days[self._landed])
        self._traffic = traffic
        traffic.start()
        try:
            self._land(NEW_DAYS)
            until(client, "first promotion under traffic", lambda s: _ends(s, "promoted") >= 2)
            changed = time.time()
            self._land(NEW_DAYS)
            before = until(client, "the next challenger is in its canary", lambda s: s.split > 0)
            killed = child.ask("kill-controller")["pid"]
            say(f"controller, process {killed}, killed with -9 in the middle of the rollout")
            name = "another process of the controller came back, with a higher epoch"
            until(client, name, lambda s: s.epoch > before.epoch)
            self.done[name] = child.ask("controller")["pid"] != killed
            until(client, "second promotion, by it", lambda s: _ends(s, "promoted") >= 3)
            say("a candidate trained on shuffled labels, to be refused")
            self._retrain(client, "shuffled labels", {"model": {"arguments": {"shuffled": True}}})
            until(client, "shuffled labels refused by the gate", lambda s: _ends(s, "refused") >= 1)
            say("a challenger that fails once it answers users, to be rolled back")
            fault = self._folder / "fault"
            self._retrain(
                client, "faulty in the canary", {"model": {"arguments": {"fault_file": str(fault)}}}
            )
            until(client, "the faulty challenger answers users", _answers(traffic, ANSWERS_BEFORE_THE_FAULT))
            fault.touch()
            name = "it is rolled back in the canary, since it fails"
            until(client, name, lambda s: _ends(s, "aborted") >= 1)
            self.done[name] = " failed " in _withdrawn(client)["reason"]
            say("a version whose weights file is damaged on disk, to be refused")
            known = self._versions()
            self._retrain(client, "its weights will be damaged", {"training": {"seed": 11}})
            damaged = self._damage(known)
            name = "damaged weights refused by the replicas"
            until(client, name, lambda s: _ends(s, "aborted") >= 2)
            withdrawn = _withdrawn(client)
            refused = "refused the weights: CorruptArtifactError" in withdrawn["reason"]
            self.done[name] = refused and withdrawn["version"] == damaged
        finally:
            traffic.stop()
        self.done["no request failed"] = not traffic.failed
        moves = decisions(client.why(limit=1000))
        picture = self._folder / "demo.png"
        draw(traffic.answers, moves, picture)
        return figures(traffic.answers, moves, changed), str(picture)

    def _retrain(self, client: Client, reason: str, overrides: dict[str, object]) -> None:
        client.retrain(f"demo: {reason}", overrides)

    def _land(self, count: int) -> None:
        for day in self._days[self._landed : self._landed + count]:
            land_day(self._folder / "landing", day)
        self._landed += count
        self._screen.landed = self._landed
        if self._traffic is not None:
            self._traffic.day = self._days[self._landed]
        self._screen.say(f"{self._landed} days landed, to {self._days[self._landed - 1]}")

    def _versions(self) -> set[str]:
        return {
            name for name in self._root.models.names() if self._root.models.exists(f"{name}/manifest.json")
        }

    def _damage(self, known: set[str], seconds: float = 120) -> str:
        """Flip one bit of the next version's served weights as soon as it is registered; gives its id.

        Raises:
            TimeoutError: if none is registered in time.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for name in self._versions() - known:
                data = bytearray(self._root.models.read(f"{name}/served.safetensors"))
                data[-1] ^= 1
                self._root.models.write(f"{name}/served.safetensors", bytes(data))
                self._screen.say(f"one bit of {name}'s served weights flipped on disk")
                return name
            time.sleep(0.02)
        raise TimeoutError(f"no version to damage was registered within {seconds:.0f} s")

    def _until(
        self, client: Client, what: str, condition: Callable[[Status], bool], seconds: float = 180
    ) -> Status:
        """Wait for something to happen.

        Raises:
            TimeoutError: with what the status said last.
        """
        deadline, shown, status = time.monotonic() + seconds, "", Status()
        self.done[what] = False
        while time.monotonic() < deadline:
            with suppress(ClientError):
                status = client.status()
            self._screen.show(status, self._traffic)
            label = status.champion.label if status.champion is not None else "no champion"
            line = f"{label}; {status.next or 'the controller is away'}; split {status.split:.0%}"
            if line != shown:
                shown = line
                self._screen.say(line)
            if status.generation and condition(status):
                self.done[what] = True
                self._screen.say(f"=> {what}")
                return status
            time.sleep(0.2)
        raise TimeoutError(f"{what}: not within {seconds:.0f} s; alerts: {status.alerts[-3:]}; {status.next}")


def _ends(status: Status, end: str) -> int:
    return sum(version.get("end") == end for version in status.versions)


def _answers(traffic: Traffic, count: int) -> Callable[[Status], bool]:
    """Whether the challenger of a status has answered so many users."""

    def enough(status: Status) -> bool:
        label = status.challenger.label if status.challenger is not None else ""
        return status.split > 0 and sum(one.version == label for one in traffic.answers[-2000:]) >= count

    return enough


def _withdrawn(client: Client) -> dict[str, str]:
    """Version and reason of the newest rollout that was withdrawn."""
    newest: dict[str, str] = [event for event in client.why() if event["kind"] == "aborted"][-1]["data"]
    return newest
