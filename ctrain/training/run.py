"""A run: Ray Train around the loop, some sets of weights, one registered model version.

The judged sets leave the newest blocks out and are what the gate scores; `served` is refitted on everything
and is what answers requests (`sets` names them all). Every epoch is a checkpoint in safetensors; a worker
that dies costs at most one epoch, and the resumed run ends with the same bits.
"""

from __future__ import annotations

import os
import platform
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import ctrain
from ctrain.errors import CtrainError, StorageError, TrainingError, UserCodeError
from ctrain.features import FeatureView, columns_to_json
from ctrain.models.build import build_module
from ctrain.models.encoder import Encoder
from ctrain.models.trial import try_out
from ctrain.records import Json, ModelVersion, RunRequest, canonical, from_json, to_json
from ctrain.registry import TrainedSet, write_version
from ctrain.spec import PipelineSpec, parse_spec
from ctrain.storage import Root, open_root, write_atomically
from ctrain.storage.code import code_uri, load_attribute
from ctrain.training.checkpoint import (
    Done,
    is_last,
    newest_of_earlier_attempts,
    read_checkpoint,
    read_meta,
    run_folder,
    write_checkpoint,
)
from ctrain.training.guard import Guarded
from ctrain.training.loop import Progress, fit, make_deterministic, seed_everything
from ctrain.training.sets import planned_sets
from ctrain.training.window import Window

TRIAL_ROWS = 64

ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",  # at its default, 2 s, reports queue
    "PYTHONHASHSEED": "0",  # the order of a set of strings must not decide what user code computes
}
"""Variables of the processes of a run."""


class RunLostError(TrainingError):
    """Workers kept dying, whatever they were given; another attempt may succeed."""


def run_environment(request: RunRequest) -> Json:
    """Ray runtime environment of a run: its user code, and what makes it repeat."""
    environment: Json = {"env_vars": ENVIRONMENT}
    if request.code:
        environment["working_dir"] = code_uri(open_root(request.root), request.code)
    return environment


def execute(request: RunRequest) -> ModelVersion:
    """Train and register the version; needs a connection to Ray, in a `run_environment`.

    Raises:
        CtrainError: what no attempt would find otherwise (`is_retryable` tells): rows, spec or user code
            that cannot be used. The first worker that finds it ends the run.
        RunLostError: if workers died more than `training.max_failures` times.
        StorageError: if the version cannot be written.
    """
    return _register(request, parse_spec(request.spec), train(request))


def train(request: RunRequest) -> Path:
    """Train all sets of weights by Ray Train; gives the folder of the last checkpoint.

    A run whose worker died goes on from its last checkpoint, `training.max_failures` times; a later
    attempt of a run goes on from the last one of the attempts before it.

    Raises:
        CtrainError: as `execute`.
    """
    import ray.train
    from ray.train.torch import TorchTrainer

    spec = parse_spec(request.spec)
    _write_record(request, {})
    earlier = newest_of_earlier_attempts(request, environment(gpu=False))
    if earlier is not None and is_last(meta := read_meta(earlier), spec.training.epochs):
        _write_record(request, meta["environment"])
        return earlier
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"request": to_json(request), "earlier": str(earlier or "")},
        scaling_config=ray.train.ScalingConfig(
            num_workers=spec.training.workers,
            use_gpu=spec.training.use_gpu,
            resources_per_worker={"CPU": spec.training.cpus_per_worker},
        ),
        run_config=ray.train.RunConfig(
            name=request.run_id,
            storage_path=str(run_folder(request)),
            # Ray Train cannot tell a dead worker from rows that fail each time; `_fit` can.
            failure_config=ray.train.FailureConfig(max_failures=0),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
        ),
    )
    result = _fit(trainer, request.run_id, spec.training.max_failures)
    if result.checkpoint is None:
        raise RunLostError(request.run_id, "Ray Train ended without a checkpoint")
    return Path(result.checkpoint.path)


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
    """What each Ray Train worker runs: all sets of weights, from the last checkpoint if there is one.

    Args:
        config: The `request`, and in `earlier` the checkpoint of an earlier attempt or nothing.
    """
    import ray.train
    from ray.train.torch import get_device, prepare_model

    os.nice(10)  # serving shares the machine and must win
    make_deterministic()  # before CUDA is first used
    request = from_json(RunRequest, config["request"])
    seed_everything(request.seed)
    spec = parse_spec(request.spec)
    model = to_json(spec.model)
    distributed = spec.training.workers > 1 or spec.training.use_gpu
    torch.set_num_threads(max(1, int(spec.training.cpus_per_worker)))
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    device = get_device()
    window = Window(request, spec)
    facts = _facts(spec, window)
    if rank == 0:  # the environment of a worker, not that of the actor that waits for it
        _write_record(request, facts["environment"])
    done = _last_checkpoint(config["earlier"])
    rows_of: tuple[str, ...] | None = None
    for position, planned in enumerate(planned_sets(request, spec)):
        if position < done.position:
            continue
        if planned.left_out != rows_of:  # replicates learn from the same rows
            encoder = window.encoder(planned.left_out)
            inputs, labels = window.tensors(planned.left_out, encoder, rank, world)
            inputs, labels, rows_of = inputs.to(device), labels.to(device), planned.left_out
        if position == done.position and len(inputs):
            _try_out(request, spec, window.view, encoder, inputs[:TRIAL_ROWS], device)
        seed_everything(planned.seed)
        module = build_module(model, encoder.inputs)
        start, done.progress = done.progress, None

        def report(progress: Progress, which: str = planned.name, encoder: Encoder = encoder) -> None:
            metrics = {"epoch": progress.epoch, f"{which}_loss": float(progress.loss)}
            if rank != 0:
                ray.train.report(metrics)
                return
            with tempfile.TemporaryDirectory() as folder:
                write_checkpoint(Path(folder), which, progress, encoder, done, facts)
                checkpoint = ray.train.Checkpoint.from_directory(folder)
                ray.train.report(metrics, checkpoint=checkpoint)
            text = f"{which} {progress.epoch}/{spec.training.epochs} epochs, loss {progress.loss:.4f}"
            write_atomically(run_folder(request) / "progress", text.encode())

        def wrap(module: nn.Module) -> nn.Module:
            guarded = Guarded(module, model.get("factory", "tabular"))
            return prepare_model(guarded) if distributed else guarded

        progress = fit(
            module,
            inputs,
            labels,
            spec.training,
            planned.seed,
            request.run_id,
            rank=rank,
            world=world,
            start=start,
            wrap=wrap,
            add_up=partial(_add_up, device) if world > 1 else lambda values: values,
            after_epoch=report,
        )
        done.finished[planned.name] = (progress, encoder)


def _write_record(request: RunRequest, environment: dict[str, str]) -> None:
    """Write what the run can be repeated from."""
    record = {**to_json(request), "environment": environment}
    write_atomically(run_folder(request) / "request.json", canonical(record).encode())


def _last_checkpoint(earlier: str) -> Done:
    """What this attempt had reached, else an earlier one, else nothing."""
    import ray.train

    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            return read_checkpoint(Path(folder))
    return read_checkpoint(Path(earlier)) if earlier else Done()


def _try_out(
    request: RunRequest,
    spec: PipelineSpec,
    view: FeatureView,
    encoder: Encoder,
    rows_BW: torch.Tensor,
    device: torch.device,
) -> None:
    """See that a replica could serve what this run will give, by its own way to the user's code."""
    root = Root(Path(request.root), open_root(request.root).store)
    load = partial(load_attribute, root, request.code)
    if load(spec.features).hash != view.hash:
        problem = "is another view in the stored code than in the worker's folder"
        raise UserCodeError(spec.features, problem, "Start the pipeline anew, so that its code is stored")
    try_out(to_json(spec.model), encoder.inputs, rows_BW, load, device)


def _add_up(device: torch.device, values: torch.Tensor) -> torch.Tensor:
    """Sum over ranks."""
    total = values.to(device)
    torch.distributed.all_reduce(total)
    return total.cpu()


def _facts(spec: PipelineSpec, window: Window) -> Json:
    """What the version's manifest says of the worker, the view and the rows."""
    return {
        "environment": environment(spec.training.use_gpu),
        "view_hash": window.view.hash,
        "columns": columns_to_json(window.view.columns),
        "rows": window.rows(),
    }


def _register(request: RunRequest, spec: PipelineSpec, checkpoint: Path) -> ModelVersion:
    meta = read_meta(checkpoint)
    fields: Json = {
        "pipeline": request.pipeline,
        "run_id": request.run_id,
        "code": request.code,
        "features": spec.features,
        "view_hash": meta["view_hash"],
        "columns": meta["columns"],
        "model": to_json(spec.model),
        "label": spec.label.name,
        "threshold": spec.evaluation.threshold,
        "dataset_version": request.dataset_version,
        "partitions": list(request.partitions),
        "blocks": list(request.blocks),
        "seed": request.seed,
        "workers": spec.training.workers,
        "parent": request.parent,
        "rows": meta["rows"],
        "spec_sha256": spec.sha256,
        "environment": meta["environment"],
        "metrics": {f"{name}_loss": float(entry["loss"]) for name, entry in meta["sets"].items()},
    }
    trained = [
        TrainedSet(
            one.name,
            (checkpoint / f"{one.name}.safetensors").read_bytes(),
            meta["sets"][one.name]["encoder"],
            one.seed,
            one.left_out,
        )
        for one in planned_sets(request, spec)
    ]
    root = Root(Path(request.root), open_root(request.root).store)
    return write_version(root, fields, trained)


def environment(gpu: bool) -> dict[str, str]:
    """What a repetition of the run needs: versions, and the device as this process sees it."""
    import ray

    return {
        "python": platform.python_version(),
        "ctrain": ctrain.__version__,
        "torch": torch.__version__,
        "ray": ray.__version__,
        "numpy": np.__version__,
        "device": _device(gpu),
    }


def _device(gpu: bool) -> str:
    if gpu and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    # The kernels that are chosen, and so the last bits, follow the processor's vector instructions.
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


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
