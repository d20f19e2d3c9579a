"""A/A rollouts on real replicas: how often the analysis rolls back a challenger that is the champion.

Two versions with the same network and nearly the same weights are served by Ray Serve under open-loop load
without keys; each replica stalls in a tenth of all quarters of a second, whatever version is asked. Every
rollout is a live document of its own, delivered as the controller does, with the champion's latency of the
minute before as thresholds of slowness; twice a second the replicas' counts are analysed. `--extra-ms` makes
the challenger slower, to see that what is there is found.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from typing import Any

import common

SPLIT = 0.25
LOOK_EVERY = 0.5


class Replicas:
    """Live documents sent by `RayServing` in an actor, whose acknowledgements carry the counts."""

    def __init__(self, root: Any, slots: list[Any], replicas: int) -> None:
        import ray
        from remote import Steerer

        self._get, self._slots, self._generation = ray.get, slots, 0
        variables = {"CTRAIN_NAMESPACE": common.NAMESPACE}
        made: Any = ray.remote(Steerer).options(num_cpus=0, runtime_env={"env_vars": variables})
        self._actor = made.remote(common.spec(replicas), str(root.path), common.NAMESPACE)
        self.send()
        self._get(self._actor.call.remote("deploy", self._document), timeout=60)
        port = int(os.environ["CTRAIN_HTTP_PORT"])
        common.until("it answers", lambda: common.answers(port, f"/{common.PIPELINE}/predict"), every=0.2)
        common.until("replicas", lambda: len(self._get(self._actor.expected.remote())) == replicas)

    def send(self, **changes: Any) -> None:
        """Deliver the next document: the champion alone, or with what `changes` say."""
        from ctrain.records import LiveDocument, to_json

        self._generation += 1
        self._document = to_json(
            LiveDocument(common.PIPELINE, 1, self._generation, champion=self._slots[0], **changes)
        )
        self.again()

    def again(self) -> None:
        """Deliver the same document again: nothing changes, and the replicas report."""
        self._get(self._actor.call.remote("apply", self._document), timeout=60)

    def reports(self) -> list[Any]:
        """Newest reports."""
        from ctrain.records import ReplicaReport, from_json

        return [from_json(ReplicaReport, one) for one in self._get(self._actor.reports.remote())]

    def slow_s(self) -> tuple[float, ...]:
        """Thresholds of slowness for the next rollout."""
        from ctrain.controller.replicas import slow_thresholds
        from ctrain.records import Observed

        return slow_thresholds(Observed(tuple(self.reports()), None))


def roll_out(replicas: Replicas, number: int, slots: list[Any], seconds: float) -> Any:
    """One rollout; gives its last analysis."""
    from ctrain.rollout import analyse
    from ctrain.spec.rollout import Canary

    name, spec = f"aa-{number}", Canary()
    replicas.again()
    common.until("the champion's latency", replicas.slow_s)
    document = {"challenger": slots[1], "mirror": "challenger", "rollout": name, "slow_s": replicas.slow_s()}
    replicas.send(**document)
    time.sleep(1.0)  # loaded
    replicas.send(**document, split=SPLIT)
    end = time.monotonic() + seconds
    while True:
        time.sleep(LOOK_EVERY)
        replicas.again()
        time.sleep(0.05)  # acknowledged
        reports = replicas.reports()
        pairs = [pair for report in reports for pair in report.pairs]
        analysis = analyse(name, "canary", SPLIT, spec, [report.arms for report in reports], pairs)
        if analysis.verdict == "fail" or time.monotonic() > end:
            break
    replicas.send()
    return analysis


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rollouts", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each rollout")
    parser.add_argument("--rate", type=float, default=200)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--extra-ms", type=float, default=0.0, help="what the challenger takes longer")
    asked = parser.parse_args()
    models = [
        {"type": "module", "factory": "network:stalling", "arguments": {"extra_s": extra}}
        for extra in (0.0, asked.extra_ms / 1000)
    ]
    with common.cluster() as (root, port):
        slots = common.register(root, 2, models=models)
        replicas = Replicas(root, slots, asked.replicas)
        load = common.Load(port, f"/{common.PIPELINE}/predict", asked.rate, keyless=True)
        time.sleep(5)
        seen = []
        for number in range(asked.rollouts):
            seen.append(roll_out(replicas, number, slots, asked.seconds))
            common.say(f"rollout {number}: {seen[-1].verdict}, {seen[-1].requests:,} canary requests")
            common.say("  " + "; ".join(f"{one.text} ({one.harm:.2g})" for one in seen[-1].metrics[:2]))
        rows = load.result()
    ended = [analysis for analysis in seen if analysis.verdict == "fail"]
    common.report(
        {
            "rolled_back": len(ended) / len(seen),
            "rollouts": len(seen),
            "why": [analysis.reason for analysis in ended][:10],
            "canary_requests_p50": statistics.median(analysis.requests for analysis in seen),
            "largest_harm": {
                name: round(max(one.harm for a in seen for one in a.metrics if one.metric == name), 2)
                for name in ("errors", "latency", "agreement", "shift")
            },
            "failed": common.failed(rows),
            "requests": len(rows),
            "seconds": asked.seconds,
            "rate": asked.rate,
            "replicas": asked.replicas,
            "extra_ms": asked.extra_ms,
        }
    )


if __name__ == "__main__":
    main()
