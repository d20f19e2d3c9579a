"""Promotions in place under open-loop load, by the real controller and its real replicas.

Each round: an operator's `retrain` gives a registered version, which is loaded beside the champion and
enters its canary; `promote` and, some seconds later, `rollback` are the decisions that are timed: from the
call until the last replica has said that it serves the new generation. `--by broadcast` sends the same
documents by `RayServing` alone, without journal, canary and settling, to tell delivery from the rest;
`--by unsettled` is the controller that leaves Serve's `user_config` as it is.

`p99_ratio`: p99 of the requests due in the second after each decision, all decisions pooled, against the
p99 of the seconds in which nothing changes (the second before each promotion's and rollback's decision).
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import time
from typing import Any

import common
import numpy as np

KEYS = itertools.count()
Decision = tuple[str, float, float]
"""(what, when it was asked for, seconds until all replicas had it)."""


class ByController:
    """An operator at the real controller's actor."""

    def __init__(self, root: Any, slots: list[Any], replicas: int) -> None:
        import ray
        from remote import start_controller

        self._get, self._replicas, self._root = ray.get, replicas, root
        self.actor = start_controller(root, common.NAMESPACE)
        spec = common.spec(replicas)
        answer = ray.get(self.actor.add.remote(spec, str(root.path), "", "start"), timeout=120)
        assert answer["ok"], answer
        common.until("the first model serves everywhere", self.calm, 120)

    def facts(self) -> dict[str, Any]:
        return self._get(self.actor.facts.remote(common.PIPELINE), timeout=30)

    def calm(self) -> bool:
        f = self.facts()
        known = len(f["reporting"]) == len(f["expected"]) == self._replicas
        return known and f["champion"] and f["settled"] == f["generation"]

    def prepare(self, number: int) -> None:
        self._operate("retrain")
        common.until("the canary", lambda: self.facts()["phase"] == "canary" and self.facts()["since"] > 0)

    def decide(self, verb: str, number: int) -> Decision:
        at = time.monotonic()
        generation = self._operate(verb)["generation"]

        def taken() -> list[float] | None:
            times = self._get(self.actor.times.remote(common.PIPELINE, generation))
            return list(times.values()) if len(times) >= self._replicas else None

        time.sleep(1.2)  # do not look while the second is measured
        last = max(common.until(f"{verb} everywhere", taken, 30, every=0.05))
        return verb, at, last - at

    def settled(self) -> list[float]:
        """When `user_config` was put after a promotion or rollback, as the journal has it."""
        from ctrain.controller.journal import Journal

        journal = Journal(self._root.pipeline(common.PIPELINE).journal_url(), common.PIPELINE)
        offset = time.time() - time.monotonic()
        return [event.at - offset for event in journal.read() if event.kind == "settled"]

    def _operate(self, verb: str) -> Any:
        body = {"reason": "benchmark"}
        call = self.actor.operate.remote(common.PIPELINE, verb, f"key-{next(KEYS)}", body)
        answer = self._get(call, timeout=60)
        assert answer["ok"], answer
        return answer


class ByBroadcast:
    """Live documents sent by `RayServing` in an actor."""

    def __init__(self, root: Any, slots: list[Any], replicas: int) -> None:
        import ray
        from remote import Steerer

        self._ray, self._slots, self._replicas, self._generation = ray, slots, replicas, 0
        variables = {"CTRAIN_NAMESPACE": common.NAMESPACE}
        made: Any = ray.remote(Steerer).options(num_cpus=0, runtime_env={"env_vars": variables})
        self.actor = made.remote(common.spec(replicas), str(root.path), common.NAMESPACE)
        self._champion = 0
        self._send("apply", champion=slots[0])
        self._call("deploy", champion=slots[0])
        port = int(os.environ["CTRAIN_HTTP_PORT"])
        common.until("it answers", lambda: common.answers(port, f"/{common.PIPELINE}/predict"), every=0.2)
        common.until("replicas", lambda: len(ray.get(self.actor.expected.remote())) == replicas)
        self._send("apply", champion=slots[0])

    def calm(self) -> bool:
        return True

    def settled(self) -> list[float]:
        return []

    def prepare(self, number: int) -> None:
        self._send("apply", champion=self._slots[0], challenger=self._slots[number])
        time.sleep(1.5)  # loaded and pulled

    def decide(self, verb: str, number: int) -> Decision:
        new, old = self._slots[number], self._slots[0]
        if verb == "rollback":
            new, old = old, new
        at = self._send("apply", champion=new, previous=old)

        def taken() -> list[float] | None:
            times = self._ray.get(self.actor.times.remote(common.PIPELINE, self._generation))
            return list(times.values()) if len(times) >= self._replicas else None

        time.sleep(1.2)  # do not look while the second is measured
        last = max(common.until(f"{verb} everywhere", taken, 30, every=0.05))
        return verb, at, last - at

    def _send(self, verb: str, **slots: Any) -> float:
        self._generation += 1
        return self._call(verb, **slots)

    def _call(self, verb: str, **slots: Any) -> float:
        from ctrain.records import LiveDocument, to_json

        document = to_json(LiveDocument(common.PIPELINE, 1, self._generation, **slots))
        at = time.monotonic()
        self._ray.get(self.actor.call.remote(verb, document), timeout=60)
        return at


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--promotions", type=int, default=20)
    parser.add_argument("--rate", type=float, default=200)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=128, help="2850 gives 33 MB of weights, 4000 64 MB")
    parser.add_argument("--by", choices=["controller", "unsettled", "broadcast"], default="controller")
    asked = parser.parse_args()
    os.environ["BENCH_UNSETTLED"] = "1" if asked.by == "unsettled" else ""
    with common.cluster() as (root, port):
        slots = common.register(root, asked.promotions + 1, asked.hidden)
        kind = ByBroadcast if asked.by == "broadcast" else ByController
        steering = kind(root, slots, asked.replicas)
        path = f"/{common.PIPELINE}/predict"
        common.until("an answer", lambda: common.answers(port, path), every=0.2)
        common.say("serving; load begins")
        load = common.Load(port, path, asked.rate)
        time.sleep(4)
        decisions: list[Decision] = []
        for number in range(1, asked.promotions + 1):
            steering.prepare(number)
            for verb in ("promote", "rollback"):
                time.sleep(2.2)
                decisions.append(steering.decide(verb, number))
                common.until("calm", steering.calm, 60)
            common.say(
                f"round {number}: " + ", ".join(f"{v} {s * 1000:.0f} ms" for v, _, s in decisions[-2:])
            )
        time.sleep(2)
        rows = load.result()
        settled = steering.settled()
    report(asked, rows, decisions, settled)


def report(asked: argparse.Namespace, rows: Any, decisions: list[Decision], settled: list[float]) -> None:
    after = np.concatenate([common.within(rows, at, at + 1) for _, at, _ in decisions])
    steady = np.concatenate([common.within(rows, at - 1, at) for _, at, _ in decisions])
    first = np.concatenate([common.within(rows, at, at + max(s, 0.05)) for _, at, s in decisions])
    seconds = {verb: [s for v, _, s in decisions if v == verb] for verb in ("promote", "rollback")}
    stale = 0
    for verb, at, took in decisions:
        if verb == "promote":
            answered = common.within(rows, at + took, at + took + 1)[:, 3]
            stale += int((answered[answered >= 0] == 1).sum())  # v1 is the champion of every round
    common.report(
        {
            "failed": common.failed(rows),
            "p99_ratio": round(common.quantile(after, 0.99) / common.quantile(steady, 0.99), 3),
            "decision_to_all_s": round(statistics.median(seconds["promote"]), 4),
            "rollback_s": round(statistics.median(seconds["rollback"]), 4),
            "decision_to_all_max_s": round(max(seconds["promote"]), 4),
            "rollback_max_s": round(max(seconds["rollback"]), 4),
            "answers_of_the_old_champion_after_all_have_it": stale,
            "requests": len(rows),
            "steady_ms": {
                "p50": round(common.quantile(steady, 0.5), 2),
                "p99": round(common.quantile(steady, 0.99), 2),
            },
            "after_ms": {
                "p50": round(common.quantile(after, 0.5), 2),
                "p99": round(common.quantile(after, 0.99), 2),
            },
            "during_delivery_p99_ms": round(common.quantile(first, 0.99), 2),
            "slowest_ms": round(common.quantile(rows, 1.0), 1),
            "p99_ms_by_tenth_of_the_second": [
                round(
                    common.quantile(
                        np.concatenate(
                            [common.within(rows, at + t / 10, at + (t + 1) / 10) for _, at, _ in decisions]
                        ),
                        0.99,
                    ),
                    1,
                )
                for t in range(10)
            ],
            "settling": settling(rows, decisions, settled),
            "promotions": asked.promotions,
            "rate": asked.rate,
            "replicas": asked.replicas,
            "hidden": asked.hidden,
            "by": asked.by,
        }
    )


def settling(rows: Any, decisions: list[Decision], settled: list[float]) -> dict[str, float]:
    """What requests see while Serve takes replicas out of routing for `user_config`."""
    near, far, delays = [], [], []
    for _, at, _ in decisions:
        put = next((when for when in settled if when >= at), None)
        if put is not None:
            delays.append(put - at)
            near.append(common.within(rows, put - 0.1, put + 0.5))
            far.append(common.within(rows, at, at + 1))
    if not delays:
        return {}
    return {
        "decision_to_settled_s": round(statistics.median(delays), 3),
        "p99_ms_around_it": round(common.quantile(np.concatenate(near), 0.99), 2),
        "p99_ms_after_the_decision": round(common.quantile(np.concatenate(far), 0.99), 2),
    }


if __name__ == "__main__":
    main()
