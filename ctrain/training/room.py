"""The controller's door to training: start, poll and release runs by name."""

from __future__ import annotations

import json
from typing import Any

import ray

from ctrain.records import RunRequest, RunStatus, to_json
from ctrain.storage import open_root
from ctrain.storage.code import code_uri
from ctrain.training.run import RunActor, run_folder


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
        root = open_root(request.root)
        environment: dict[str, Any] = {"env_vars": {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1"}}
        if request.code:
            environment["working_dir"] = code_uri(root, request.code)
        actor: Any = (
            ray.remote(RunActor)
            .options(
                name=f"run-{request.run_id}",
                namespace=self._namespace,
                lifetime="detached",
                get_if_exists=True,
                num_cpus=0,
                max_restarts=0,
                runtime_env=environment,
            )
            .remote()
        )
        self._pending[request.run_id] = actor.start.remote(to_json(request))

    def poll(self, run_id: str) -> RunStatus:
        """Where the run stands."""
        folder = run_folder(self._requests[run_id])
        alive = self._alive(run_id)
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
        if not alive:
            return RunStatus(run_id, "failed", error="the run's actor died without a result")
        progress = folder / "progress"
        text = progress.read_text(encoding="utf-8") if progress.exists() else "starting"
        return RunStatus(run_id, "running", progress=text)

    def release(self, run_id: str) -> None:
        """End the run's actor; its results stay."""
        self._requests.pop(run_id, None)
        self._pending.pop(run_id, None)
        try:
            ray.kill(ray.get_actor(f"run-{run_id}", namespace=self._namespace))
        except ValueError:
            return

    def _alive(self, run_id: str) -> bool:
        """Whether the actor still exists; looked up before its result is, which it writes first."""
        pending = self._pending.get(run_id)
        if pending is not None:
            ready, _ = ray.wait([pending], timeout=0)
            if not ready:
                return True
            try:
                ray.get(ready[0])
            except ray.exceptions.RayError:
                return False
        try:
            ray.get_actor(f"run-{run_id}", namespace=self._namespace)
        except ValueError:
            return False
        return True
