"""Checkpoints of a run: written after each epoch, checked by hash when read, found by the next attempt.

A checkpoint is a folder: weights of the sets trained so far, the optimizer of the one under way, and
`meta.json`, which holds the hash of every other file. One that was cut off while it was copied is none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import safetensors.torch

from ctrain.errors import CorruptArtifactError, MissingArtifactError
from ctrain.models.encoder import Encoder
from ctrain.records import Json, RunRequest, canonical, to_json
from ctrain.storage import Root
from ctrain.storage.artifacts import file_sha256
from ctrain.training.loop import Progress
from ctrain.training.sets import SERVED

META = "meta.json"
OPTIMIZER = "optimizer.safetensors"

_OWN_TO_AN_ATTEMPT = ("run_id", "attempt", "root", "environment")


@dataclass
class Done:
    """What a run has reached."""

    position: int = 0
    """Index in the run's sets of the one under way."""
    progress: Progress | None = None
    """Of the set under way; None before its first epoch."""
    finished: dict[str, tuple[Progress, Encoder]] = field(default_factory=dict)
    """The sets before it."""


def run_folder(request: RunRequest, run_id: str = "") -> Path:
    """Folder of a run's request, progress, checkpoints and result; of another attempt by its id."""
    return Root(Path(request.root)).pipeline(request.pipeline).runs / (run_id or request.run_id)


def write_checkpoint(
    folder: Path, which: str, progress: Progress, encoder: Encoder, done: Done, facts: Json
) -> None:
    """Write a checkpoint into an empty folder.

    Args:
        folder: Where.
        which: Set under way.
        progress: Of it.
        encoder: Fitted for it.
        done: The sets before it.
        facts: What the manifest of the version will say of the worker and its data.
    """
    sets = {}
    for name, (state, fitted) in {**done.finished, which: (progress, encoder)}.items():
        safetensors.torch.save_file(state.weights, folder / f"{name}.safetensors")
        sets[name] = {"epoch": state.epoch, "loss": state.loss, "encoder": fitted.to_json()}
    safetensors.torch.save_file(progress.optimizer, folder / OPTIMIZER)
    files = {file.name: file_sha256(file) for file in sorted(folder.iterdir())}
    meta = {**facts, "which": which, "position": len(done.finished), "sets": sets, "files": files}
    (folder / META).write_text(canonical(meta), encoding="utf-8")


def read_meta(folder: Path) -> Json:
    """What a checkpoint says of itself, once all its files are seen to be whole.

    Raises:
        MissingArtifactError: if a file is not there.
        CorruptArtifactError: if a file is not what its hash says.
    """
    try:
        meta: Json = json.loads((folder / META).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingArtifactError(str(folder / META)) from None
    except ValueError:
        raise CorruptArtifactError(str(folder / META), "whole JSON", "half") from None
    for name, expected in meta["files"].items():
        file = folder / name
        if not file.exists():
            raise MissingArtifactError(str(file))
        found = file_sha256(file)
        if found != expected:
            raise CorruptArtifactError(str(file), expected, found)
    return meta


def read_checkpoint(folder: Path) -> Done:
    """What a run had reached when it wrote the checkpoint.

    Raises:
        StorageError: as `read_meta`.
    """
    done, meta = Done(), read_meta(folder)
    for name, entry in meta["sets"].items():
        weights = safetensors.torch.load_file(folder / f"{name}.safetensors")
        progress = Progress(entry["epoch"], weights, {}, entry["loss"])
        if name == meta["which"]:
            progress.optimizer = safetensors.torch.load_file(folder / OPTIMIZER)
            done.progress, done.position = progress, meta["position"]
        else:
            done.finished[name] = (progress, Encoder.from_json(entry["encoder"]))
    return done


def is_last(meta: Json, epochs: int) -> bool:
    """Whether a checkpoint holds all sets, trained to the last epoch."""
    return bool(meta["which"] == SERVED and meta["sets"][SERVED]["epoch"] == epochs)


def newest_of_earlier_attempts(request: RunRequest, environment: Mapping[str, str]) -> Path | None:
    """The checkpoint from which an attempt goes on with the bits of an undisturbed one.

    It is the furthest whole one of earlier attempts that were asked for the same and ran the same
    libraries; None where there is none.
    """
    return max(_earlier(request, environment), key=_reached, default=None)


def _earlier(request: RunRequest, environment: Mapping[str, str]) -> Iterator[Path]:
    base, _, _ = request.run_id.rpartition("-")
    for attempt in range(1, request.attempt):
        run_id = f"{base}-{attempt}"
        folder = run_folder(request, run_id)
        if _asked_for(folder) != _essence(to_json(request)):
            continue
        for meta in (folder / run_id).glob(f"checkpoint_*/{META}"):  # as Ray Train names them
            checkpoint = meta.parent
            try:
                ran = read_meta(checkpoint)["environment"]
            except (MissingArtifactError, CorruptArtifactError):
                continue
            if all(ran.get(name) == value for name, value in environment.items() if name != "device"):
                yield checkpoint


def _asked_for(folder: Path) -> Json | None:
    try:
        return _essence(json.loads((folder / "request.json").read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


def _essence(request: Json) -> Json:
    return {name: value for name, value in request.items() if name not in _OWN_TO_AN_ATTEMPT}


def _reached(checkpoint: Path) -> tuple[int, int]:
    meta = read_meta(checkpoint)
    return meta["position"], meta["sets"][meta["which"]]["epoch"]
