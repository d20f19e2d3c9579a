"""A run: Ray Train around the loop, two sets of weights, one registered model version.

`judged` leaves the newest blocks out and is what the gate scores; `served` is refitted on everything
and is what answers requests. Every epoch is a checkpoint in safetensors; a worker that dies costs at
most one epoch, and the resumed run ends with the same bits.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

import ctrain
from ctrain.data.read import Dataset, Features
from ctrain.errors import CtrainError, StorageError, TrainingError
from ctrain.features import FeatureView, PartitionStatistics, columns_to_json, load_view
from ctrain.models.build import build_module
from ctrain.models.encoder import Encoder
from ctrain.records import Json, ModelVersion, RunRequest, canonical, from_json, to_json
from ctrain.registry import write_version
from ctrain.spec import PipelineSpec, parse_spec
from ctrain.storage import Root, open_root, write_atomically
from ctrain.training.loop import Progress, fit

SETS = ("judged", "served")


class RunLostError(TrainingError):
    """Workers kept dying, whatever they were given; another attempt may succeed."""


def run_folder(request: RunRequest) -> Path:
    """Folder of a run's request, progress and result."""
    return Root(Path(request.root)).pipeline(request.pipeline).runs / request.run_id


def execute(request: RunRequest) -> ModelVersion:
    """Train by Ray Train and register the version; needs a connection to Ray.

    A run whose worker died goes on from its last checkpoint, `training.max_failures` times. A worker
    that found rows, spec or user code unusable would find the same again: that ends the run.

    Raises:
        CtrainError: what a worker found unusable.
        RunLostError: if the workers died too often.
    """
    # The controller of Ray Train polls its workers this often; at its default, 2 s, reports queue.
    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.1"
    import ray.train
    from ray.train.torch import TorchTrainer

    spec = parse_spec(request.spec)
    folder = run_folder(request)
    record = {**to_json(request), "environment": environment(spec.training.use_gpu)}
    write_atomically(folder / "request.json", canonical(record).encode())
    trainer = TorchTrainer(
        train_worker,
        train_loop_config=to_json(request),
        scaling_config=ray.train.ScalingConfig(
            num_workers=spec.training.workers,
            use_gpu=spec.training.use_gpu,
            resources_per_worker={"CPU": spec.training.cpus_per_worker},
        ),
        run_config=ray.train.RunConfig(
            name=request.run_id,
            storage_path=str(folder),
            # Ray Train cannot tell a dead worker from rows that fail each time; `_fit` can.
            failure_config=ray.train.FailureConfig(max_failures=0),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
        ),
    )
    result = _fit(trainer, request.run_id, spec.training.max_failures)
    if result.checkpoint is None:
        raise RunLostError(request.run_id, "Ray Train ended without a checkpoint")
    with result.checkpoint.as_directory() as checkpoint:
        return _register(request, spec, Path(checkpoint))


def _fit(trainer: Any, run_id: str, max_failures: int) -> Any:
    """Fit, and again from the last checkpoint if a worker or Ray Train's own actor died."""
    import ray.train

    for failures in range(max_failures + 1):
        try:
            return trainer.fit()
        except (ray.train.TrainingFailedError, ray.exceptions.RayActorError) as error:
            causes = list(getattr(error, "worker_failures", {}).values()) or [error]
            for cause in causes:
                if not is_retryable(cause):
                    raise cause from error
            if failures == max_failures:
                text = str(causes[0]).strip().splitlines()[-1]
                raise RunLostError(run_id, f"{text} ({failures + 1} failures)") from error
    raise AssertionError("unreachable")


def is_retryable(error: Exception) -> bool:
    """Whether the same run may succeed: storage and the machine may recover, a refusal stands."""
    return not isinstance(error, CtrainError) or isinstance(error, (StorageError, RunLostError))


def train_worker(config: Json) -> None:
    """What each Ray Train worker runs: both sets of weights, from the last checkpoint if there is one."""
    import ray.train
    from ray.train.torch import get_device, prepare_model

    os.nice(10)  # serving shares the machine and must win
    request = from_json(RunRequest, config)
    spec = parse_spec(request.spec)
    torch.set_num_threads(max(1, int(spec.training.cpus_per_worker)))
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    device = get_device()
    data = _Window(request, spec)
    done = _read_checkpoint(ray.train.get_checkpoint())
    for which in SETS[done.position :]:
        encoder = data.encoder(which)
        inputs, labels = data.tensors(which, encoder, rank, world)
        torch.manual_seed(request.seed)
        module = build_module(to_json(spec.model), encoder.inputs)
        start = done.progress if done.position == SETS.index(which) else None

        def report(progress: Progress, which: str = which, encoder: Encoder = encoder) -> None:
            metrics = {"epoch": progress.epoch, f"{which}_loss": float(progress.loss)}
            if rank != 0:
                ray.train.report(metrics)
                return
            with tempfile.TemporaryDirectory() as folder:
                _write_checkpoint(Path(folder), which, progress, encoder, data, done)
                checkpoint = ray.train.Checkpoint.from_directory(folder)
                ray.train.report(metrics, checkpoint=checkpoint)
            text = f"{which} {progress.epoch}/{spec.training.epochs} epochs, loss {progress.loss:.4f}"
            write_atomically(run_folder(request) / "progress", text.encode())

        progress = fit(
            module,
            inputs.to(device),
            labels.to(device),
            spec.training,
            request.seed,
            request.run_id,
            rank=rank,
            world=world,
            start=start,
            wrap=lambda module: prepare_model(module) if world > 1 or spec.training.use_gpu else module,
            after_epoch=report,
        )
        done.finished[which] = (progress, encoder)
        done.position, done.progress = SETS.index(which) + 1, None


class _Window:
    """The window's partitions, as tensors."""

    def __init__(self, request: RunRequest, spec: PipelineSpec) -> None:
        self._request, self._spec = request, spec
        root = Root(Path(request.root), open_root(request.root).store)
        self.view: FeatureView = load_view(spec.features)
        self.environment = environment(spec.training.use_gpu)
        self._dataset = Dataset(root, request.pipeline, request.dataset_version)

    def partitions(self, which: str) -> list[str]:
        left_out = set(self._request.blocks) if which == "judged" else set()
        return [name for name in self._request.partitions if name not in left_out]

    def encoder(self, which: str) -> Encoder:
        names = self.partitions(which)
        if not names:
            raise TrainingError(self._request.run_id, "no partition is left beside the judged blocks")
        source, label = self._spec.source, self._spec.label
        parts = [self._dataset.statistics(name, self.view, label.name, source.event_time) for name in names]
        model = self._spec.model
        return Encoder.fit(PartitionStatistics.merge(parts), model.bins, model.minimum_count)

    def tensors(
        self, which: str, encoder: Encoder, rank: int, world: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        source, label = self._spec.source, self._spec.label
        parts = (
            self._dataset.features(name, self.view, label.name, source.event_time)
            for name in self.partitions(which)
        )
        return encode_share(self._request.run_id, parts, encoder, rank, world)


def encode_share(
    run_id: str, parts: Iterable[Features], encoder: Encoder, rank: int, world: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Matrix and labels of one rank: of all rows, every `world`-th from `rank` on.

    Raises:
        TrainingError: if all rows, this rank's and the others', have one label.
    """
    matrices, labels = [], []
    rows = positives = 0
    for part in parts:
        mine = slice((rank - rows) % world, None, world)
        matrices.append(encoder.encode({name: values[mine] for name, values in part.arrays.items()}))
        labels.append(part.label[mine])
        rows += len(part.label)
        positives += int(part.label.sum())
    if positives in (0, rows):
        problem = f"all {rows} rows of the window have one label; two classes are needed"
        raise TrainingError(run_id, problem)
    equal = rows // world  # every rank takes the same number of steps
    inputs = torch.from_numpy(np.concatenate(matrices)[:equal])
    return inputs, torch.from_numpy(np.concatenate(labels)[:equal])


class _Done:
    """What an earlier attempt of the run has reached."""

    def __init__(self) -> None:
        self.position = 0
        self.progress: Progress | None = None
        self.finished: dict[str, tuple[Progress, Encoder]] = {}


def _write_checkpoint(
    folder: Path, which: str, progress: Progress, encoder: Encoder, data: _Window, done: _Done
) -> None:
    finished = {**done.finished, which: (progress, encoder)}
    meta: Json = {"which": which, "sets": {}, "environment": data.environment}
    for name, (state, fitted) in finished.items():
        safetensors.torch.save_file(state.weights, folder / f"{name}.safetensors")
        meta["sets"][name] = {"epoch": state.epoch, "loss": state.loss, "encoder": fitted.to_json()}
    safetensors.torch.save_file(progress.optimizer, folder / "optimizer.safetensors")
    (folder / "meta.json").write_text(canonical(meta), encoding="utf-8")


def _read_checkpoint(checkpoint: Any) -> _Done:
    done = _Done()
    if checkpoint is None:
        return done
    with checkpoint.as_directory() as path:
        folder = Path(path)
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        for name, entry in meta["sets"].items():
            weights = safetensors.torch.load_file(folder / f"{name}.safetensors")
            progress = Progress(entry["epoch"], weights, {}, entry["loss"])
            if name == meta["which"]:
                progress.optimizer = safetensors.torch.load_file(folder / "optimizer.safetensors")
                done.progress, done.position = progress, SETS.index(name)
            else:
                done.finished[name] = (progress, Encoder.from_json(entry["encoder"]))
    return done


def _register(request: RunRequest, spec: PipelineSpec, checkpoint: Path) -> ModelVersion:
    meta = json.loads((checkpoint / "meta.json").read_text(encoding="utf-8"))
    root = Root(Path(request.root), open_root(request.root).store)
    view = load_view(spec.features)
    dataset = Dataset(root, request.pipeline, request.dataset_version)
    rows = sum(
        dataset.statistics(name, view, spec.label.name, spec.source.event_time).rows
        for name in request.partitions
    )
    fields: Json = {
        "pipeline": request.pipeline,
        "run_id": request.run_id,
        "code": request.code,
        "features": spec.features,
        "view_hash": view.hash,
        "columns": columns_to_json(view.columns),
        "model": to_json(spec.model),
        "label": spec.label.name,
        "threshold": spec.evaluation.threshold,
        "dataset_version": request.dataset_version,
        "partitions": list(request.partitions),
        "blocks": list(request.blocks),
        "seed": request.seed,
        "workers": spec.training.workers,
        "parent": request.parent,
        "rows": rows,
        "spec_sha256": spec.sha256,
        "environment": meta["environment"],
        "metrics": {f"{name}_loss": float(meta["sets"][name]["loss"]) for name in SETS},
    }
    judged, served = (
        ((checkpoint / f"{name}.safetensors").read_bytes(), meta["sets"][name]["encoder"]) for name in SETS
    )
    return write_version(root, fields, judged, served)


def environment(gpu: bool) -> dict[str, str]:
    """What a repetition of the run needs: versions, and the device as this process sees it."""
    import ray

    return {
        "python": platform.python_version(),
        "ctrain": ctrain.__version__,
        "torch": torch.__version__,
        "ray": ray.__version__,
        "numpy": np.__version__,
        "device": torch.cuda.get_device_name() if gpu and torch.cuda.is_available() else platform.machine(),
    }


class RunActor:
    """Hosts one run in a detached actor, which outlives the controller that asked for it."""

    def start(self, request_json: Json) -> None:
        """Begin in a thread; a second call changes nothing."""
        import threading

        if getattr(self, "_thread", None) is None:
            request = from_json(RunRequest, request_json)
            self._thread = threading.Thread(target=self._run, args=(request,), daemon=True)
            self._thread.start()

    def _run(self, request: RunRequest) -> None:
        began = time.monotonic()
        result: Json
        try:
            version = execute(request)
            result = {"version": version.id, "rows": version.rows, "error": ""}
        except Exception as error:  # noqa: BLE001 - whatever ended the run is its result
            text = f"{type(error).__name__}: {error}"
            result = {"version": "", "rows": 0, "error": text, "retryable": is_retryable(error)}
        result["seconds"] = time.monotonic() - began
        write_atomically(run_folder(request) / "result.json", canonical(result).encode())
