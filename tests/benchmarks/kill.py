"""kill -9 under open-loop load: a replica, the ctrain controller, the Serve controller, in turn.

What counts as recovered: replica: Serve's target set is full again and each replica in it has told the
controller that it serves the newest generation; controller: another process of the actor answers with the
pipeline's state and has heard from every replica; Serve controller: it gives its details again, from
another process. Requests are never retried by the generator, so what does not fail was saved by HAProxy.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import common
import numpy as np
import psutil

LATE = 0.5
"""Seconds from which an answer counts as delayed."""


def pids(role: str) -> set[int]:
    """Processes below this one whose title begins so."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if (process.cmdline() or [""])[0].startswith(role):
                found.add(process.pid)
    return found


class Victims:
    """How each is found, killed, and seen to be back."""

    def __init__(self, root: Any, replicas: int) -> None:
        import ray
        from remote import start_controller

        self._ray, self._replicas = ray, replicas
        self._actor = start_controller(root, common.NAMESPACE)
        spec = common.spec(replicas)
        answer = ray.get(self._actor.add.remote(spec, str(root.path), "", "start"), timeout=120)
        assert answer["ok"], answer
        common.until("the first model serves everywhere", self.whole, 120, every=0.2)

    def facts(self) -> dict[str, Any]:
        """The controller's word; empty while it is away."""
        from ray.exceptions import RayError

        with suppress(RayError):
            return self._ray.get(self._actor.facts.remote(common.PIPELINE), timeout=2)
        return {}

    def whole(self) -> bool:
        f = self.facts()
        if not f or f["error"] or not f["champion"]:
            return False
        every = len(f["expected"]) == len(f["reporting"]) == self._replicas
        return every and f["reporting"] == f["expected"]

    def replica(self) -> Callable[[], bool]:
        before = self.facts()["expected"]
        os.kill(sorted(pids("ray::ServeReplica"))[0], signal.SIGKILL)
        return lambda: self.whole() and self.facts()["expected"] != before

    def controller(self) -> Callable[[], bool]:
        before = self._ray.get(self._actor.ping.remote())["pid"]
        os.kill(before, signal.SIGKILL)

        def back() -> bool:
            from ray.exceptions import RayError

            with suppress(RayError):
                return self._ray.get(self._actor.ping.remote(), timeout=2)["pid"] != before and self.whole()
            return False

        return back

    def serve_controller(self) -> Callable[[], bool]:
        from ray.exceptions import RayError
        from ray.serve.context import _get_global_client

        before = pids("ray::ServeController")
        for pid in before:
            os.kill(pid, signal.SIGKILL)

        def back() -> bool:
            if not pids("ray::ServeController") - before:
                return False
            with suppress(RayError, RuntimeError, TimeoutError):
                details = _get_global_client().get_serve_details()
                return details["applications"][common.PIPELINE]["status"] == "RUNNING"
            return False

        from ctrain.serving.deploy import _client

        _client()
        return back


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--rate", type=float, default=200)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--victims", default="replica,controller,serve_controller")
    asked = parser.parse_args()
    kills: dict[str, list[tuple[float, float]]] = {}
    with common.cluster() as (root, port):
        common.register(root, 1)
        victims = Victims(root, asked.replicas)
        path = f"/{common.PIPELINE}/predict"
        common.until("an answer", lambda: common.answers(port, path), every=0.2)
        load = common.Load(port, path, asked.rate)
        time.sleep(3)
        for name in asked.victims.split(","):
            for number in range(asked.kills):
                at = time.monotonic()
                back = getattr(victims, name)()
                common.until(f"{name} is back", back, 120, every=0.1)
                kills.setdefault(name, []).append((at, time.monotonic() - at))
                common.say(f"{name} {number + 1}: back after {kills[name][-1][1]:.1f} s")
                time.sleep(3)
                common.until("all is well", victims.whole, 120, every=0.2)
        rows = load.result()
    # a kill's window runs to the next kill, so that nothing is left out
    marks = sorted((at, name) for name, times in kills.items() for at, _ in times)
    ends = [at for at, _ in marks[1:]] + [float("inf")]
    figures: dict[str, Any] = {}
    for name, times in kills.items():
        windows = [(at, end) for (at, who), end in zip(marks, ends, strict=True) if who == name]
        seen = np.concatenate([common.within(rows, at, end) for at, end in windows])
        seconds = [took for _, took in times]
        figures[name] = {
            "failed": common.failed(seen),
            "statuses": {
                str(int(status)): int((seen[:, 2] == status).sum()) for status in np.unique(seen[:, 2])
            },
            "requests": len(seen),
            "kills": len(times),
            "recovery_s": {"median": round(statistics.median(seconds), 2), "max": round(max(seconds), 2)},
            "p99_ms": round(common.quantile(seen, 0.99), 2),
            "slowest_ms": round(common.quantile(seen, 1.0), 1),
            f"slower_than_{LATE}_s": int((seen[:, 1] > LATE).sum()),
        }
    before = rows[rows[:, 0] < marks[0][0]]
    common.report(
        {
            **figures,
            "before": {"failed": common.failed(before), "p99_ms": round(common.quantile(before, 0.99), 2)},
            "failed_in_all": common.failed(rows),
            "rate": asked.rate,
            "replicas": asked.replicas,
        }
    )


if __name__ == "__main__":
    main()
