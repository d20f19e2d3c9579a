"""The main job on real data: the whole loop on flights out of New York in 2013, under live traffic.

Ends with 0 only if every event of the story happened and not one request failed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

import ctrain.demo
import ctrain.errors
from ctrain.client import Client
from ctrain.client.status import Status
from ctrain.demo.data import days, land_day
from ctrain.demo.traffic import Traffic

ENVIRONMENT = {
    "RAY_worker_niceness": "0",
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
}
URL, FIRST_DAYS, NEW_DAYS = "http://127.0.0.1:8000", 24, 3


class Demo:
    """The story, told to the terminal as it happens."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.landing = folder, folder / "landing"
        self.spec_path = Path(ctrain.demo.__file__).with_name("pipeline.yaml")
        self.pipeline: str = yaml.safe_load(self.spec_path.read_text())["pipeline"]
        self.days = [str(day) for day in days()]
        self.landed = 0
        self.began = time.monotonic()
        self.done: dict[str, bool] = {}

    def run(self) -> int:
        """Tell it. Returns the exit code."""
        self.say("asks less evidence than the defaults: 7 judged days, steps of 20 and 50 %, harm up to .1")
        self.land(FIRST_DAYS)
        command = [sys.executable, "-m", "ctrain.demo.cluster", str(self.folder), str(self.spec_path)]
        pipe = subprocess.PIPE
        child = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, text=True, env={**os.environ, **ENVIRONMENT}
        )
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            token = json.loads(child.stdout.readline())["token"]
            with Client(URL, self.pipeline, token=token) as client:
                self.story(client, lambda line: _tell(child, line))
        finally:
            _tell(child, "stop")
            try:
                child.wait(timeout=60)
            except subprocess.TimeoutExpired:
                child.kill()
        for name, happened in self.done.items():
            print(f"  {'yes' if happened else 'NO '}  {name}")
        return 0 if all(self.done.values()) else 1

    def story(self, client: Client, tell: Callable[[str], None]) -> None:
        """Promotions, refusals, a rollback, a killed controller; traffic all the while."""
        serving = "first model serves on every replica"
        first = self.until(client, serving, lambda s: s.champion is not None and s.converged == s.generation)
        assert first.champion is not None
        traffic = Traffic(URL, self.pipeline, self.days[FIRST_DAYS : FIRST_DAYS + 14])
        traffic.start()
        self.land(NEW_DAYS)
        self.until(client, "first promotion under traffic", lambda s: _label(s) not in ("", "v1"))
        self.land(NEW_DAYS)
        self.until(client, "the next challenger is in its canary", lambda s: s.split > 0)
        tell("kill-controller")
        self.say("controller killed with -9 in the middle of the rollout")
        self.until(client, "second promotion, by the controller that came back", lambda s: _ended(s, 2))
        reason = "demo: labels shuffled in training, to be refused"
        client.retrain(reason, {"model": {"arguments": {"shuffled": True}}})
        self.until(client, "candidate of shuffled labels refused by the gate", lambda s: _has(s, "refused"))
        fault = self.folder / "fault"
        reason = "demo: fails once it answers users, to be rolled back"
        client.retrain(reason, {"model": {"arguments": {"fault_file": str(fault)}}})
        self.until(client, "the faulty challenger answers users", lambda s: s.split > 0)
        fault.touch()
        self.until(client, "faulty challenger rolled back in the canary", lambda s: _has(s, "aborted"))
        client.retrain("demo: its weights file will be damaged", {"training": {"seed": 11}})
        self.until(client, "a run for the damaged file", lambda s: s.run != "")
        known = {path.parent.name for path in (self.folder / "root" / "models").glob("*/manifest.json")}
        self.damage(known)
        self.until(client, "damaged weights refused by the replicas", lambda s: _count(s, "aborted") >= 2)
        traffic.stop()
        print(f"  {traffic.sent:,} requests, {len(traffic.failed)} failed, {traffic.labelled:,} labels")
        for problem in traffic.failed[:5]:
            print(f"    {problem}")
        self.done["no request failed"] = not traffic.failed

    def land(self, count: int) -> None:
        """Land the next days."""
        for day in self.days[self.landed : self.landed + count]:
            land_day(self.landing, day)
        self.landed += count
        self.say(f"{self.landed} days landed, to {self.days[self.landed - 1]}")

    def damage(self, known: set[str]) -> None:
        """Flip a bit of the next version's served weights as soon as it is registered."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            for manifest in (self.folder / "root" / "models").glob("*/manifest.json"):
                if manifest.parent.name not in known:
                    weights = manifest.with_name("served.safetensors")
                    data = bytearray(weights.read_bytes())
                    data[-1] ^= 1
                    weights.write_bytes(bytes(data))
                    self.say(f"one bit of {manifest.parent.name}'s weights flipped on disk")
                    return
            time.sleep(0.02)

    def until(
        self, client: Client, what: str, condition: Callable[[Status], bool], seconds: float = 150
    ) -> Status:
        """Wait for something to happen.

        Raises:
            TimeoutError: with the last status.
        """
        deadline, shown = time.monotonic() + seconds, ""
        status = Status()
        while time.monotonic() < deadline:
            try:
                status = client.status()
            except ctrain.errors.ClientError:
                time.sleep(0.5)
                continue
            line = f"{_label(status) or '-'} {status.next} split {status.split:.0%}"
            if line != shown:
                shown = line
                self.say(line)
            if condition(status):
                self.done[what] = True
                self.say(f"== {what}")
                return status
            time.sleep(0.2)
        self.done[what] = False
        raise TimeoutError(f"{what}: not within {seconds:.0f} s; {status.raw}")

    def say(self, text: str) -> None:
        """One line with the time since the start."""
        print(f"{time.monotonic() - self.began:6.1f} s  {text}", flush=True)


def _tell(child: subprocess.Popen[str], line: str) -> None:
    if child.stdin is not None and child.poll() is None:
        child.stdin.write(line + "\n")
        child.stdin.flush()


def _label(status: Status) -> str:
    return status.champion.label if status.champion is not None else ""


def _ends(status: Status) -> list[Any]:
    return [version.get("end") for version in status.versions]


def _ended(status: Status, promotions: int) -> bool:
    return _ends(status).count("promoted") >= promotions + 1  # the first model counts as well


def _has(status: Status, end: str) -> bool:
    return end in _ends(status)


def _count(status: Status, end: str) -> int:
    return _ends(status).count(end)


def main() -> int:
    """Parse, run, clean up."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", action="store_true", help="keep the demo's folder")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="ctrain-demo-"))
    try:
        return Demo(folder).run()
    finally:
        if arguments.keep:
            print(f"kept {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
