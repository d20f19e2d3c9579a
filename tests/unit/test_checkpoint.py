import dataclasses
import json
from pathlib import Path

import pytest
import torch
from factories import spec

from ctrain.errors import CorruptArtifactError, MissingArtifactError
from ctrain.models.encoder import Encoder
from ctrain.records import RunRequest, to_json
from ctrain.training.checkpoint import (
    Done,
    is_last,
    newest_of_earlier_attempts,
    read_checkpoint,
    read_meta,
    run_folder,
    write_checkpoint,
)
from ctrain.training.loop import Progress

ENCODER = Encoder({"kind": ("a", "b")}, {"size": (0.0, 1.0)}, {"size": (-1.0, 1.0)})
ENVIRONMENT = {"torch": "2.13.0", "device": "x86_64 AVX2"}


def progress(epoch: int) -> Progress:
    return Progress(epoch, {"w": torch.full((3,), epoch + 0.1)}, {"0.step": torch.tensor(epoch)}, 0.5)


def write(folder: Path, which: str, epoch: int, **environment: str) -> Path:
    folder.mkdir(parents=True)
    done = Done(finished={"judged-0": (progress(9), ENCODER)} if which == "served" else {})
    facts = {"environment": {**ENVIRONMENT, **environment}}
    write_checkpoint(folder, which, progress(epoch), ENCODER, done, facts)
    return folder


def request(root: Path, attempt: int, **changes: object) -> RunRequest:
    wanted = spec().to_json()
    asked = RunRequest(f"p-00001-{attempt}", "p", str(root), wanted, "c", 3, ("a", "b"), ("b",), 7, attempt)
    return dataclasses.replace(asked, **changes)


def ran(asked: RunRequest, *reached: tuple[str, int], **environment: str) -> list[Path]:
    """Leave what a run leaves: its record and checkpoints."""
    folder = run_folder(asked)
    folder.mkdir(parents=True)
    (folder / "request.json").write_text(json.dumps({**to_json(asked), "environment": {}}))
    checkpoints = folder / asked.run_id
    checkpoints.mkdir()
    (checkpoints / "checkpoint_manager_snapshot.json").write_text("{}")  # Ray Train's own
    return [
        write(checkpoints / f"checkpoint_{which}_{epoch}", which, epoch, **environment)
        for which, epoch in reached
    ]


def test_a_checkpoint_comes_back_as_it_was_written(tmp_path: Path) -> None:
    done = read_checkpoint(write(tmp_path / "c", "served", 4))
    assert done.position == 1
    assert done.progress is not None
    assert (done.progress.epoch, done.progress.loss) == (4, 0.5)
    assert done.progress.weights["w"].equal(progress(4).weights["w"])
    assert done.progress.optimizer["0.step"] == 4
    judged, encoder = done.finished["judged-0"]
    assert judged.epoch == 9
    assert encoder == ENCODER


@pytest.mark.parametrize("name", ["judged-0.safetensors", "served.safetensors", "optimizer.safetensors"])
def test_a_checkpoint_that_was_cut_off_is_refused(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "c", "served", 4)
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[:-1])
    with pytest.raises(CorruptArtifactError, match=name):
        read_checkpoint(folder)
    (folder / name).unlink()
    with pytest.raises(MissingArtifactError, match=name):
        read_meta(folder)


def test_half_a_meta_file_and_none_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "c", "judged-0", 4)
    (folder / "meta.json").write_text((folder / "meta.json").read_text()[:-1])
    with pytest.raises(CorruptArtifactError):
        read_meta(folder)
    with pytest.raises(MissingArtifactError):
        read_meta(tmp_path / "nowhere")


def test_only_the_last_epoch_of_the_last_set_ends_a_run(tmp_path: Path) -> None:
    metas = [
        read_meta(write(tmp_path / f"{which}{epoch}", which, epoch))
        for which, epoch in (("judged-0", 5), ("served", 4), ("served", 5))
    ]
    assert [is_last(meta, 5) for meta in metas] == [False, False, True]


def test_an_attempt_goes_on_from_the_furthest_checkpoint_of_those_before_it(tmp_path: Path) -> None:
    assert newest_of_earlier_attempts(request(tmp_path, 3), ENVIRONMENT) is None
    ran(request(tmp_path, 1), ("judged-0", 4), ("judged-0", 5))
    _, furthest = ran(request(tmp_path, 2), ("served", 1), ("served", 2))
    ran(request(tmp_path, 3), ("served", 5))  # its own, which Ray Train looks after
    assert newest_of_earlier_attempts(request(tmp_path, 3), ENVIRONMENT) == furthest
    assert newest_of_earlier_attempts(request(tmp_path, 1), ENVIRONMENT) is None


def test_a_checkpoint_that_is_not_whole_is_passed_over(tmp_path: Path) -> None:
    whole, torn = ran(request(tmp_path, 1), ("judged-0", 4), ("judged-0", 5))
    (torn / "optimizer.safetensors").write_bytes(b"")
    assert newest_of_earlier_attempts(request(tmp_path, 2), ENVIRONMENT) == whole


@pytest.mark.parametrize(
    "change", [{"code": "d"}, {"seed": 8}, {"dataset_version": 4}, {"partitions": ("b",)}, {"blocks": ()}]
)
def test_attempts_that_were_asked_for_something_else_are_passed_over(tmp_path: Path, change) -> None:
    ran(request(tmp_path, 1), ("judged-0", 4))
    assert newest_of_earlier_attempts(request(tmp_path, 2, **change), ENVIRONMENT) is None
    other = spec(training={"epochs": 9}).to_json()
    assert newest_of_earlier_attempts(request(tmp_path, 2, spec=other), ENVIRONMENT) is None


def test_a_checkpoint_of_other_libraries_is_passed_over_and_one_of_another_device_is_not(
    tmp_path: Path,
) -> None:
    ran(request(tmp_path, 1), ("judged-0", 4))
    assert newest_of_earlier_attempts(request(tmp_path, 2), {**ENVIRONMENT, "torch": "2.14.0"}) is None
    # The actor that looks has no GPU where workers have one.
    assert newest_of_earlier_attempts(request(tmp_path, 2), {**ENVIRONMENT, "device": "H100"}) is not None
