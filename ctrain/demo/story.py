"""The demo's story: what is done to the loop, and what must come of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import yaml

from ctrain.client import Client, Status
from ctrain.demo.data import days, land_day
from ctrain.demo.picture import Figures, decisions, draw, figures
from ctrain.demo.screen import Screen
from ctrain.demo.traffic import Traffic
from ctrain.errors import ClientError
from ctrain.models.loading import load_network
from ctrain.registry import read_version
from ctrain.storage import Root

URL = "http://127.0.0.1:8000"
SPEC = Path(__file__).with_name("pipeline.yaml")
FIRST_DAYS, NEW_DAYS = 24, 3

ENVIRONMENT = {
    "RAY_worker_niceness": "0",
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
}
"""Ray reads these at its start: its own workers at normal priority, HAProxy in front, retries."""


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
        """
        say = self._screen.say
        say("this demo asks less evidence than the defaults, so that a rollout fits into a minute:")
        say(
            "7 judged days, no harm beyond .1 AUC, steps of 20 and 50 %, errors below 5 %, slow ratio below 4"
        )
        self._land(FIRST_DAYS)
        say("starting Ray")
        command = [sys.executable, "-m", "ctrain.demo.cluster", str(self._folder), str(SPEC)]
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **ENVIRONMENT},
        )
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            token = json.loads(child.stdout.readline())["token"]
            with Client(URL, self._pipeline, token=token) as client:
                found, picture = self._chapters(client, child)
        finally:
            _tell(child, "stop")
            with suppress(subprocess.TimeoutExpired):
                child.wait(timeout=60)
            child.kill()
        assert self._traffic is not None
        self._screen.__exit__(None, None, None)
        self._screen.end(self.done, self._traffic, found, picture)
        return all(self.done.values())

    def _chapters(self, client: Client, child: subprocess.Popen[str]) -> tuple[Figures, str]:
        until, say = self._until, self._screen.say
        first = until(
            client,
            "the first model serves on every replica",
            lambda s: s.champion is not None and s.converged == s.generation,
        )
        assert first.champion is not None
        static = load_network(self._root, read_version(self._root, first.champion.version), "served")
        traffic = Traffic(URL, self._pipeline, static, self._days[self._landed])
        self._traffic = traffic
        traffic.start()
        try:
            self._land(NEW_DAYS)
            until(client, "first promotion under traffic", lambda s: _ends(s, "promoted") >= 2)
            changed = time.time()
            self._land(NEW_DAYS)
            until(client, "the next challenger is in its canary", lambda s: s.split > 0)
            _tell(child, "kill-controller")
            say("controller killed with -9 in the middle of the rollout")
            name = "second promotion, by the controller that came back"
            until(client, name, lambda s: _ends(s, "promoted") >= 3)
            say("a candidate trained on shuffled labels, to be refused")
            self._retrain(client, "shuffled labels", {"model": {"arguments": {"shuffled": True}}})
            until(client, "shuffled labels refused by the gate", lambda s: _ends(s, "refused") >= 1)
            say("a challenger that fails once it answers users, to be rolled back")
            fault = self._folder / "fault"
            self._retrain(
                client, "faulty in the canary", {"model": {"arguments": {"fault_file": str(fault)}}}
            )
            until(client, "the faulty challenger answers users", lambda s: s.split > 0)
            fault.touch()
            until(client, "it is rolled back in the canary", lambda s: _ends(s, "aborted") >= 1)
            say("a version whose weights file is damaged on disk, to be refused")
            known = self._versions()
            self._retrain(client, "its weights will be damaged", {"training": {"seed": 11}})
            self._damage(known)
            until(client, "damaged weights refused by the replicas", lambda s: _ends(s, "aborted") >= 2)
        finally:
            traffic.stop()
        self.done["no request failed"] = not traffic.failed
        moves = decisions(client.why())
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

    def _damage(self, known: set[str], seconds: float = 120) -> None:
        """Flip one bit of the next version's served weights as soon as it is registered."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for name in self._versions() - known:
                data = bytearray(self._root.models.read(f"{name}/served.safetensors"))
                data[-1] ^= 1
                self._root.models.write(f"{name}/served.safetensors", bytes(data))
                self._screen.say(f"one bit of {name}'s served weights flipped on disk")
                return
            time.sleep(0.02)

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


def _tell(child: subprocess.Popen[str], line: str) -> None:
    if child.stdin is not None and child.poll() is None:
        with suppress(BrokenPipeError):
            child.stdin.write(line + "\n")
            child.stdin.flush()
