import random
from pathlib import Path
from typing import Any

import pytest

from ctrain.errors import CorruptArtifactError, MissingArtifactError
from ctrain.records import ModelVersion
from ctrain.registry import Registry, TrainedSet, read_version, read_weights, write_version
from ctrain.storage import Root

FIELDS: dict[str, Any] = {
    "pipeline": "p", "run_id": "r", "code": "", "features": "m:view", "view_hash": "h", "columns": {},
    "model": {"type": "tabular"}, "label": "y", "threshold": 0.5, "dataset_version": 3,
    "partitions": ["2013-03-01"], "blocks": [], "seed": 7, "workers": 1, "parent": "", "rows": 100,
    "spec_sha256": "s", "environment": {"torch": "2"}, "metrics": {"served_loss": 0.1 + 0.2},
}  # fmt: skip
ENCODER = {"vocabularies": {"kind": ["a", "é"]}, "scales": {"size": [0.1, 1e-300]}}
WEIGHTS = bytes(range(256)) * 4


def sets(served: bytes) -> list[TrainedSet]:
    return [
        TrainedSet("judged-0", b"judged", ENCODER, 7, ("2013-03-01",)),
        TrainedSet("served", served, ENCODER),
    ]


def write(root: Root, served: bytes = WEIGHTS, **changes: Any) -> ModelVersion:
    return write_version(root, {**FIELDS, **changes}, sets(served))


def folder(root: Root, version: ModelVersion) -> Path:
    return root.path / "models" / version.id


def test_a_version_comes_back_as_it_was_written(tmp_path: Path) -> None:
    root = Root(tmp_path)
    version = write(root)
    assert read_version(root, version.id) == version
    assert Registry(root).read(version.id) == version
    assert read_weights(root, version, version.judged[0]) == b"judged"
    assert read_weights(root, version, version.served) == WEIGHTS
    assert version.served.encoder == ENCODER


def test_the_same_content_is_the_same_version_and_changes_nothing(tmp_path: Path) -> None:
    root = Root(tmp_path)
    version = write(root)
    before = {file.name: file.read_bytes() for file in folder(root, version).iterdir()}
    assert write(root) == version
    assert {file.name: file.read_bytes() for file in folder(root, version).iterdir()} == before
    assert root.models.names() == [version.id]


def test_ids_do_not_depend_on_the_order_of_fields(tmp_path: Path) -> None:
    one = write(Root(tmp_path / "a"))
    turned = dict(reversed(FIELDS.items()))
    other = write_version(Root(tmp_path / "b"), turned, sets(WEIGHTS))
    assert one.id == other.id


@pytest.mark.parametrize(
    "change", [{"served": WEIGHTS + b"\0"}, {"seed": 8}, {"threshold": 0.5 + 1e-15}, {"parent": "x"}], ids=str
)
def test_other_content_is_another_version(tmp_path: Path, change: dict[str, Any]) -> None:
    root = Root(tmp_path)
    assert write(root).id != write(root, **change).id


def test_any_flipped_bit_of_the_weights_is_refused(tmp_path: Path) -> None:
    root = Root(tmp_path)
    version = write(root)
    file = folder(root, version) / "served.safetensors"
    choice = random.Random(0)
    for _ in range(50):
        data = bytearray(WEIGHTS)
        data[choice.randrange(len(data))] ^= 1 << choice.randrange(8)
        file.write_bytes(data)
        with pytest.raises(CorruptArtifactError):
            read_weights(root, version, version.served)
    assert read_weights(root, version, version.judged[0]) == b"judged"


def test_any_flipped_bit_of_the_manifest_is_refused(tmp_path: Path) -> None:
    root = Root(tmp_path)
    version = write(root)
    file = folder(root, version) / "manifest.json"
    whole = file.read_bytes()
    choice = random.Random(0)
    for _ in range(300):
        data = bytearray(whole)
        data[choice.randrange(len(data))] ^= 1 << choice.randrange(8)
        file.write_bytes(data)
        with pytest.raises(CorruptArtifactError):
            read_version(root, version.id)
    file.write_bytes(whole)
    assert read_version(root, version.id) == version


@pytest.mark.parametrize("damage", [lambda d: d[:-1], lambda d: b"", lambda d: d + b"{}", lambda d: b"[1]"])
def test_a_torn_manifest_is_refused(tmp_path: Path, damage: Any) -> None:
    root = Root(tmp_path)
    version = write(root)
    file = folder(root, version) / "manifest.json"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(CorruptArtifactError):
        read_version(root, version.id)


def test_a_folder_without_a_manifest_is_no_version(tmp_path: Path) -> None:
    root = Root(tmp_path)
    version = write(root)
    (folder(root, version) / "manifest.json").unlink()
    with pytest.raises(MissingArtifactError):
        read_version(root, version.id)
    with pytest.raises(MissingArtifactError):
        read_version(root, "0" * 12)


def test_missing_weights_are_named(tmp_path: Path) -> None:
    root = Root(tmp_path)
    version = write(root)
    (folder(root, version) / "served.safetensors").unlink()
    with pytest.raises(MissingArtifactError, match=r"served\.safetensors"):
        read_weights(root, version, version.served)


def test_a_manifest_under_another_id_is_refused(tmp_path: Path) -> None:
    root = Root(tmp_path)
    one, other = write(root), write(root, seed=8)
    (folder(root, one) / "manifest.json").write_bytes((folder(root, other) / "manifest.json").read_bytes())
    with pytest.raises(CorruptArtifactError):
        read_version(root, one.id)
