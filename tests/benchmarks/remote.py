"""What runs inside Ray: the real controller with instant rooms, a bare steerer, a bare deployment.

Only what would train is replaced: partitions, runs and verdicts are there at once. Journal, policy,
live documents, broadcasts, replicas and their reports are ctrain's own.
"""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import ray
import torch
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

import ctrain.controller.actor as actor_module
from ctrain.controller.rooms import Rooms
from ctrain.records import (
    ContractReport,
    EvaluationRequest,
    GateDecision,
    IngestedPartition,
    IngestRequest,
    LiveDocument,
    ModelScore,
    Partition,
    ReplicaReport,
    RunRequest,
    RunStatus,
    Sighting,
    WindowReport,
    WindowRequest,
    from_json,
    to_json,
)
from ctrain.registry import Registry
from ctrain.serving import deploy
from ctrain.spec import PipelineSpec, parse_spec
from ctrain.storage import Root

DAYS = ("day-1", "day-2", "day-3")


class Instant:
    """Source, ingest, training, evaluation and monitoring whose work is done at once.

    What run n gives stands in `versions.json` of the root, so a restarted controller finds it again.
    """

    def __init__(self, root: Root) -> None:
        self._versions: list[str] = json.loads((root.path / "versions.json").read_text())

        self._found: list[Sighting] | None = None

    def start(self, known: dict[str, str]) -> None:
        self._found = [
            Sighting(day, Partition(day, f"/{day}", (), f"{at:064d}", 100))
            for at, day in enumerate(DAYS)
            if day not in known
        ]

    def poll(self) -> list[Sighting] | None:
        found, self._found = self._found, None
        return found

    def poll_run(self, run_id: str) -> RunStatus:
        number = int(run_id.split("-")[1])
        return RunStatus(run_id, "finished", version=self._versions[number - 1], rows=100, seconds=1.0)


class Outcomes:
    """A room whose outcomes wait to be polled."""

    def __init__(self, work: Any) -> None:
        self._work, self._done = work, []

    def start(self, request: Any) -> None:
        self._done.append(self._work(request))

    def poll(self) -> list[Any]:
        done, self._done = self._done, []
        return done


class Runs:
    """Door `Training` over versions that are registered already."""

    def __init__(self, instant: Instant) -> None:
        self.poll = instant.poll_run

    def start(self, request: RunRequest) -> None: ...

    def release(self, run_id: str) -> None: ...

    def running(self, pipeline: str) -> list[str]:
        return []


def _landed(request: IngestRequest) -> Any:
    report = ContractReport(100, 100, {})
    return request.key, tuple(
        IngestedPartition(p.name, p.sha256, report, "", 0, at * 86400.0, at * 86400.0 + 1)
        for at, p in enumerate(request.partitions)
    )


def _judged(request: EvaluationRequest) -> Any:
    score = ModelScore(request.candidate, {"auc": 0.7}, ())
    verdict = GateDecision(request.candidate, request.champion, "accept", (), score, None, "benchmark")
    return request.key, verdict


def _window(request: WindowRequest) -> Any:
    return request.key, WindowReport(request.start, request.end, 0, 0, {}, state="not_enough_rows")


def _rooms(spec: PipelineSpec, root: Root) -> Rooms:
    instant = Instant(root)
    serving = deploy.RayServing(spec.pipeline, root, spec, actor_module.namespace())
    doors = [Outcomes(work) for work in (_landed, _judged, _window)]
    return Rooms(instant, doors[0], Runs(instant), Registry(root), doors[1], doors[2], serving)


class TimedServing(deploy.RayServing):
    """Notes when each replica first said that it has a generation, with the champion resident."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self.times: dict[int, dict[str, float]] = {}
        super().__init__(*arguments, **named)

    def heard(self, report: ReplicaReport) -> None:
        super().heard(report)
        at = time.monotonic()
        self.times.setdefault(report.generation, {}).setdefault(report.replica, at)


class UnsettledServing(TimedServing):
    """Leaves `user_config` alone, to tell what putting it costs."""

    def settle(self, document: LiveDocument) -> None: ...


class BenchController(actor_module.ControllerActor):
    """The controller's actor, with instant rooms and a clock on the replicas' reports."""

    def __init__(self, root: str) -> None:
        actor_module.ray_rooms = _rooms
        deploy.RayServing = UnsettledServing if os.environ.get("BENCH_UNSETTLED") else TimedServing  # type: ignore[misc]
        super().__init__(root)

    def times(self, pipeline: str, generation: int) -> dict[str, float]:
        """When each replica took a generation or a newer one."""
        found: dict[str, float] = {}
        for taken, times in dict(self._serving(pipeline).times).items():
            for replica, at in dict(times).items() if taken >= generation else ():
                found[replica] = min(at, found.get(replica, at))
        return found

    def _serving(self, pipeline: str) -> Any:
        built = self._hosts[pipeline]._built
        assert built is not None
        return built[1].serving

    def facts(self, pipeline: str) -> dict[str, Any]:
        """Where the pipeline stands, in numbers."""
        host = self._hosts.get(pipeline)
        if host is None or host.controller is None:
            return {}
        state = host.controller.state
        seen = host.observe()
        expected = set(seen.expected or ())
        return {
            "error": host.error,
            "generation": state.generation,
            "converged": state.converged,
            "settled": state.settled,
            "phase": state.rollout.phase if state.rollout else "",
            "since": state.rollout.since if state.rollout else 0.0,
            "champion": bool(state.champion),
            "expected": sorted(expected),
            "reporting": sorted(
                report.replica
                for report in seen.reports
                if report.generation >= state.generation and time.time() - report.at < 2.5
            ),
        }


class Steerer:
    """`RayServing` in an actor and nothing else: what delivery costs without a controller."""

    def __init__(self, spec: dict[str, Any], root: str, namespace: str) -> None:
        parsed = parse_spec(spec)
        self.serving = TimedServing(parsed.pipeline, Root(Path(root)), parsed, namespace)
        self._seen = threading.Event()

    def call(self, verb: str, document: dict[str, Any]) -> float:
        """Run one of RayServing's verbs; gives the time at which it began."""
        at = time.monotonic()
        getattr(self.serving, verb)(from_json(LiveDocument, document))
        return at

    def times(self, pipeline: str, generation: int) -> dict[str, float]:
        return dict(self.serving.times.get(generation, {}))

    def expected(self) -> list[str]:
        return list(self.serving.observe().expected or ())

    def reports(self) -> list[dict[str, Any]]:
        """What each replica said last."""
        return [to_json(report) for report in self.serving.observe().reports]


def start_controller(root: Root, namespace: str) -> Any:
    """The actor as `get_or_create_controller` makes it, of our class."""
    variables = {"CTRAIN_NAMESPACE": namespace, "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "1"}
    made: Any = ray.remote(BenchController)
    return made.options(
        name=actor_module.ACTOR_NAME,
        namespace=namespace,
        lifetime="detached",
        num_cpus=0,
        max_restarts=-1,
        max_task_retries=0,
        max_concurrency=64,
        runtime_env={"env_vars": variables},
    ).remote(str(root.path))


@serve.deployment(name="bare", max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0.1})
class Bare:
    """The least that serves the same network over HTTP with Ray Serve."""

    def __init__(self, weights: str) -> None:
        import safetensors.torch
        from network import Mlp

        torch.set_num_threads(1)
        self._module = Mlp()
        self._module.load_state_dict(safetensors.torch.load_file(weights))
        self._module.eval()

    async def __call__(self, request: Request) -> Response:
        features = json.loads(await request.body())["features"]
        with torch.inference_mode():
            value = torch.sigmoid(self._module(torch.tensor([list(features.values())]))).item()
        return Response(json.dumps({"value": value}), media_type="application/json")
