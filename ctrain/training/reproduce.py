"""Prove a version: run its record again, in a folder of its own, and compare the weights bit for bit."""

from __future__ import annotations

import json
import shutil
import uuid
from dataclasses import dataclass, replace
from typing import Any

from ctrain.errors import MissingArtifactError
from ctrain.records import RunRequest, from_json
from ctrain.registry import read_version
from ctrain.storage import Root
from ctrain.storage.artifacts import file_sha256
from ctrain.training.checkpoint import read_meta, run_folder
from ctrain.training.run import run_environment, train


@dataclass(frozen=True, slots=True)
class Reproduction:
    """A version's weights beside those of its run repeated."""

    version: str
    expected: dict[str, str]
    """sha256 of each set of weights, from the manifest."""
    found: dict[str, str]
    """sha256 of each set of weights that the repeated run gave."""
    changed: dict[str, str]
    """What is not as it was then, e.g. `{"torch": "2.13.0 -> 2.14.0"}`: why weights may differ."""

    @property
    def same(self) -> bool:
        """Whether the weights are the same, bit for bit."""
        return self.found == self.expected


def reproduce(root: Root, version: str) -> Reproduction:
    """Repeat the run of a version, from scratch and with its code; needs a connection to Ray.

    It blocks for as long as a run takes. Nothing is registered, and the scratch folder is removed.

    Args:
        root: Where the version and its run's record lie.
        version: Id of the model version.

    Raises:
        MissingArtifactError: if the version, its code or its run's record is not there.
        CtrainError: as `run.execute`.
    """
    import ray

    manifest = read_version(root, version)
    record = root.pipeline(manifest.pipeline).runs / manifest.run_id / "request.json"
    if not record.exists():
        raise MissingArtifactError(str(record))
    body = json.loads(record.read_text(encoding="utf-8"))
    body.pop("environment", None)
    run_id = f"repeat-{manifest.run_id}-{uuid.uuid4().hex[:8]}"
    # Attempt 1: a repetition goes on from no checkpoint.
    request = replace(from_json(RunRequest, body), run_id=run_id, root=str(root.path), attempt=1)
    task = ray.remote(num_cpus=0, max_retries=0)(_repeat).options(runtime_env=run_environment(request))
    found, ran = _result(task.remote(request))
    return Reproduction(
        version,
        expected={one.name: one.sha256 for one in manifest.weights},
        found=found,
        changed={
            name: f"{was} -> {ran.get(name, 'unknown')}"
            for name, was in manifest.environment.items()
            if ran.get(name) != was
        },
    )


def _repeat(request: RunRequest) -> tuple[dict[str, str], dict[str, str]]:
    """Hash of each set of weights, and the environment."""
    try:
        checkpoint = train(request)
        meta = read_meta(checkpoint)
        found = {name: file_sha256(checkpoint / f"{name}.safetensors") for name in meta["sets"]}
        return found, meta["environment"]
    finally:
        shutil.rmtree(run_folder(request), ignore_errors=True)


def _result(reference: Any) -> Any:
    """The task's result, or the error that it raised, without Ray's wrapping."""
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
