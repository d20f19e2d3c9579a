"""kill -9 under open-loop load: a replica, the controller, the Serve controller, a training worker, in turn.

All of it is the real loop: landed days, runs by Ray Train, the gate, a canary. What counts as recovered:
replica: Serve's target set is full again and each replica in it has told the controller that it serves the
newest generation; controller, killed in the middle of a canary step: another process of a higher epoch
answers, has heard from every replica, and stands at the same step, split and generation; Serve controller:
it gives its details again, from another process; training worker: the run's progress moves again, and
`finished` counts the runs that came to their end at the same attempt. Requests are never retried by the
generator, so what does not fail was saved by HAProxy.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import common
import numpy as np
import psutil

LATE = 0.5
"""Seconds from which an answer counts as delayed."""

DAYS, ROWS = 5, 20_000
EPOCHS, LONG_EPOCHS = 2, 40
"""Of a run, and of one that is long enough to be hit in its middle."""

KEYS = count()


def pids(role: str) -> set[int]:
    """Processes below this one whose title has this in it."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if role in (process.cmdline() or [""])[0]:
                found.add(process.pid)
    return found


def kill(victims: set[int]) -> float:
    """Gives the time at which it began, by the monotonic clock."""
    at = time.monotonic()
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    return at


def land(folder: Path) -> None:
    """Days that the benchmark's network can learn from."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from network import NAMES

    from ctrain.data.land import seal_partition

    random = np.random.default_rng(0)
    for number in range(DAYS):
        day = datetime(2020, 1, 1) + timedelta(days=number)
        values = random.standard_normal((ROWS, len(NAMES)))
        rows: dict[str, Any] = {name: values[:, at] for at, name in enumerate(NAMES)}
        rows["t"] = [day + timedelta(seconds=second) for second in range(ROWS)]
        rows["y"] = (values[:, 0] + random.standard_normal(ROWS) > 0).astype(int)
        (folder / f"{day:%Y-%m-%d}").mkdir(parents=True)
        pq.write_table(pa.table(rows), folder / f"{day:%Y-%m-%d}" / "rows.parquet")
        seal_partition(folder / f"{day:%Y-%m-%d}")


def spec(replicas: int, landing: Path) -> dict[str, Any]:
    """The benchmarks' pipeline with days to train on; its rollouts stay at their first step."""
    return {
        **common.spec(replicas),
        "source": {"type": "files", "path": str(landing), "event_time": "t", "poll": 1},
        "training": {"epochs": EPOCHS, "batch_size": 256},
        "evaluation": {"blocks": 2, "gate": [{"metric": "auc", "at_least": 0.6}]},
        "triggers": [{"type": "new_data", "partitions": DAYS}],
    }


Killed = tuple[float, Callable[[], bool]]
"""When, and whether it is back."""


class Victims:
    """How each is found, killed, and seen to be back; what else must hold is counted in `kept`."""

    def __init__(self, root: Any, replicas: int) -> None:
        import ray

        from ctrain.controller.actor import get_or_create_controller

        self._ray, self._replicas = ray, replicas
        self._before: dict[str, Any] = {}
        """Status before the kill."""
        self.kept: dict[str, dict[str, int]] = {
            "controller": {"same_step": 0},
            "train_worker": {"finished": 0},
        }
        landing = root.path.parent / "landing"
        land(landing)
        self._actor = get_or_create_controller(root)
        call = self._actor.add.remote(
            spec(replicas, landing), str(root.path), "", "start", "benchmark", "start"
        )
        answer = ray.get(call, timeout=120)
        assert answer["ok"], answer
        common.until("the first model serves everywhere", self.whole, 180, every=0.2)

    def status(self) -> dict[str, Any]:
        """The controller's word; empty while it is away."""
        from ray.exceptions import RayError

        with suppress(RayError):
            found: dict[str, Any] = self._ray.get(self._actor.status.remote(common.PIPELINE), timeout=2)
            return found if "generation" in found else {}
        return {}

    def whole(self) -> bool:
        """Whether every replica that Serve means to run serves what the controller wants."""
        told, wanted = self.status(), self._serving()
        if not told or told["error"] or not told["champion"]:
            return False
        serves = {one["replica"] for one in told["replicas"] if one["serves"]}
        return len(wanted) == self._replicas and wanted <= serves

    def replica(self, number: int) -> Killed:
        before = self._serving()
        at = kill({min(pids("ray::ServeReplica"))})
        return at, lambda: self.whole() and self._serving() != before

    def controller(self, number: int) -> Killed:
        self._before = self._in_canary()
        pid = self._ray.get(self._actor.ping.remote(), timeout=30)["pid"]
        at = kill({pid})

        def back() -> bool:
            from ray.exceptions import RayError

            with suppress(RayError):
                return self._ray.get(self._actor.ping.remote(), timeout=2)["pid"] != pid and self.whole()
            return False

        return at, back

    def serve_controller(self, number: int) -> Killed:
        before = pids("ray::ServeController")
        at = kill(before)
        return at, lambda: bool(pids("ray::ServeController") - before) and bool(self._serving())

    def train_worker(self, number: int) -> Killed:
        self._withdraw()
        self._operate("retrain", {"training": {"seed": 1000 + number, "epochs": LONG_EPOCHS}})
        common.until("the run trains", lambda: self._progress().startswith("judged"), 120)
        self._before, before = self.status(), pids("RayTrainWorker")
        at, stood = kill(before), self._progress()
        return at, lambda: bool(pids("RayTrainWorker") - before) and self._progress() not in ("", stood)

    def after(self, name: str) -> None:
        """Look whether all was kept, and bring to its end what a kill was about, before the next one."""
        if name == "controller":
            self.kept[name]["same_step"] += self._same(self._before)
        if name == "train_worker":
            told = common.until("the run is over", self._run_end, 300, every=0.2)
            self.kept[name]["finished"] += told["kind"] == "run_finished"
            common.until("its rollout has begun", lambda: self.status().get("rollout"), 60)
        common.until("all is well", self.whole, 120, every=0.2)

    def _run_end(self) -> Any:
        kinds = ("run_finished", "run_failed", "run_given_up")
        told = self._ray.get(self._actor.why.remote(common.PIPELINE, "", 1000), timeout=10)
        ends = [
            line for line in told if line["kind"] in kinds and line["data"]["run_id"] == self._before["run"]
        ]
        return ends[0] if ends else None

    def _in_canary(self) -> dict[str, Any]:
        """A status in the middle of a canary step that is live everywhere, in a rollout begun if need be."""
        if not self.status()["rollout"]:
            self._operate("retrain", {"training": {"seed": 1 + next(KEYS)}})

        def ready() -> dict[str, Any] | None:
            told = self.status()
            inside = told and told["split"] > 0 and told["converged"] == told["generation"]
            return told if inside and self.whole() else None

        found: dict[str, Any] = common.until("the canary", ready, 120, every=0.2)
        return found

    def _same(self, before: dict[str, Any]) -> bool:
        now = self.status()

        def place(told: dict[str, Any]) -> tuple[Any, ...]:
            rollout = told["rollout"] or {}
            where = (rollout.get("id"), rollout.get("phase"), rollout.get("step"))
            return (*where, told["split"], told["generation"])

        return bool(now) and now["epoch"] > before["epoch"] and place(now) == place(before)

    def _withdraw(self) -> None:
        if self.status()["rollout"]:
            self._operate("abort", None)
            common.until("the rollout has gone", lambda: not self.status()["rollout"], 30)

    def _progress(self) -> str:
        return str(self.status().get("progress", ""))

    def _operate(self, verb: str, overrides: dict[str, Any] | None) -> None:
        body = {"reason": "benchmark", "by": "benchmark", **({"overrides": overrides} if overrides else {})}
        call = self._actor.operate.remote(common.PIPELINE, verb, f"key-{next(KEYS)}", body)
        answer = self._ray.get(call, timeout=60)
        assert answer["ok"], answer

    def _serving(self) -> set[str]:
        """Ids of the replicas that Serve means to run; none while Serve's controller is away."""
        from ray.exceptions import RayError
        from ray.serve.context import _get_global_client
        from ray.serve.exceptions import RayServeException

        with suppress(RayError, RayServeException, RuntimeError, TimeoutError, KeyError):
            app = _get_global_client().get_serve_details()["applications"][common.PIPELINE]
            replicas = [one for item in app["deployments"].values() for one in item["replicas"]]
            return {one["replica_id"] for one in replicas if one["state"] in ("STARTING", "RUNNING")}
        return set()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--rate", type=float, default=200)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--victims", default="replica,controller,serve_controller,train_worker")
    asked = parser.parse_args()
    kills: dict[str, list[tuple[float, float]]] = {}
    with common.cluster() as (root, port):
        victims = Victims(root, asked.replicas)
        path = f"/{common.PIPELINE}/predict"
        common.until("an answer", lambda: common.answers(port, path), every=0.2)
        load = common.Load(port, path, asked.rate, apart=True)  # as many clients send; harder to repeat
        time.sleep(3)
        for name in asked.victims.split(","):
            for number in range(asked.kills):
                at, back = getattr(victims, name)(number)
                common.until(f"{name} is back", back, 120, every=0.1)
                kills.setdefault(name, []).append((at, time.monotonic() - at))
                common.say(f"{name} {number + 1}: back after {kills[name][-1][1]:.1f} s")
                time.sleep(3)
                victims.after(name)
        rows = load.result()
    report(asked, rows, kills, victims.kept)


def report(
    asked: argparse.Namespace,
    rows: Any,
    kills: dict[str, list[tuple[float, float]]],
    kept: dict[str, dict[str, int]],
) -> None:
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
            **kept.get(name, {}),
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
