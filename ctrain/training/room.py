"""The controller's door to training: start, poll and release runs by name."""

from __future__ import annotations

import json
import re
from typing import Any

import ray

from ctrain.records import RunRequest, RunStatus, to_json
from ctrain.training.checkpoint import run_folder
from ctrain.training.run import RunActor, run_environment

PREFIX = "run-"


class RayTraining:
    """Runs as detached actors `run-<run id>` (see `controller.rooms.Training`)."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._requests: dict[str, RunRequest] = {}
        self._pending: dict[str, Any] = {}

    def start(self, request: RunRequest) -> None:
        """Begin the run, or adopt it if it is under way or done."""
        self._requests[request.run_id] = request
        if (run_folder(request) / "result.json").exists():
            return
        actor: Any = (
            ray.remote(RunActor)
            .options(
                name=f"{PREFIX}{request.run_id}",
                namespace=self._namespace,
                lifetime="detached",
                get_if_exists=True,
                num_cpus=0,
                max_restarts=0,
                runtime_env=run_environment(request),
            )
            .remote()
        )
        self._pending[request.run_id] = actor.start.remote(to_json(request))

    def poll(self, run_id: str) -> RunStatus:
        """Where the run stands. One that this process has not started is `failed` unless it lives."""
        death = self._death(run_id)  # looked up before the result, which a run writes before it dies
        if run_id not in self._requests:
            return RunStatus(run_id, "failed" if death else "running", error=death)
        folder = run_folder(self._requests[run_id])
        if (folder / "result.json").exists():
            result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
            return RunStatus(
                run_id,
                "failed" if result["error"] else "finished",
                version=result["version"],
                rows=result["rows"],
                seconds=result["seconds"],
                error=result["error"],
                retryable=result.get("retryable", True),
            )
        if death:
            return RunStatus(run_id, "failed", error=death)
        progress = folder / "progress"
        text = progress.read_text(encoding="utf-8") if progress.exists() else "starting"
        return RunStatus(run_id, "running", progress=text)

    def release(self, run_id: str) -> None:
        """End the run's actor, whoever started it and whether or not it hangs; its results stay."""
        self._requests.pop(run_id, None)
        self._pending.pop(run_id, None)
        try:
            ray.kill(ray.get_actor(f"{PREFIX}{run_id}", namespace=self._namespace))
        except ValueError:
            return

    def running(self, pipeline: str) -> list[str]:
        """Ids of a pipeline's runs that have an actor, sorted: under way, or done and not yet released."""
        # A run's id is <pipeline>-<number>-<attempt>, and a pipeline's name may itself hold hyphens.
        name = re.compile(rf"{PREFIX}({re.escape(pipeline)}-\d+-\d+)")
        actors = ray.util.list_named_actors(all_namespaces=True)
        found = (name.fullmatch(actor["name"]) for actor in actors if actor["namespace"] == self._namespace)
        return sorted(match[1] for match in found if match)

    def _death(self, run_id: str) -> str:
        """Why the run has no actor that lives; empty if it has."""
        died = "the run's actor died without a result"
        pending = self._pending.get(run_id)
        if pending is not None:
            ready, _ = ray.wait([pending], timeout=0)
            if not ready:
                return ""
            try:
                ray.get(ready[0])
            except ray.exceptions.RayError as error:
                return f"{died}: {' '.join(str(error).split())[:300]}"
        try:
            ray.get_actor(f"{PREFIX}{run_id}", namespace=self._namespace)
        except ValueError:
            return died
        return ""
