"""Model versions: safetensors and a JSON manifest in a folder named by the manifest's hash.

Written once, never changed. Whatever is read is checked against its hash first; nothing is unpickled.
Which version is champion is not known here: that is the journal's to say.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ctrain.errors import CorruptArtifactError
from ctrain.records import Json, ModelVersion, WeightSet, canonical, from_json, sha256_of, to_json
from ctrain.storage import Root

MANIFEST = "manifest.json"
ID_DIGITS = 12


@dataclass(frozen=True, slots=True)
class TrainedSet:
    """One set of weights as a run gives it."""

    name: str
    data: bytes
    """Weights as safetensors."""
    encoder: Json
    seed: int = 0
    left_out: tuple[str, ...] = ()


def write_version(root: Root, fields: Json, trained: Sequence[TrainedSet]) -> ModelVersion:
    """Register a version. The same content gives the same id and changes nothing.

    Args:
        root: Where versions lie.
        fields: The manifest without id and weights (`records.ModelVersion`).
        trained: Its sets of weights; the last one is what will serve.
    """
    weights = [
        WeightSet(
            one.name,
            f"{one.name}.safetensors",
            hashlib.sha256(one.data).hexdigest(),
            len(one.data),
            one.encoder,
            one.seed,
            one.left_out,
        )
        for one in trained
    ]
    body = {**fields, "weights": [to_json(one) for one in weights]}
    version = from_json(ModelVersion, {**body, "id": ""})
    version_id = _id_of(version)
    version = from_json(ModelVersion, {**body, "id": version_id})
    for one in trained:
        root.models.write(f"{version_id}/{one.name}.safetensors", one.data)
    # The manifest comes last: a folder without one is no version.
    root.models.write(f"{version_id}/{MANIFEST}", canonical(to_json(version)).encode())
    return version


def read_version(root: Root, version: str) -> ModelVersion:
    """The manifest of a version.

    Raises:
        MissingArtifactError: if there is none.
        CorruptArtifactError: if it is not what its id says.
    """
    name = f"{version}/{MANIFEST}"
    data = root.models.read(name)
    try:
        body = json.loads(data)
        named = body.pop("id")
        digest = sha256_of(body)[:ID_DIGITS]
        if named != version or canonical({**body, "id": named}).encode() != data:
            digest = hashlib.sha256(data).hexdigest()
    except (ValueError, TypeError, LookupError, AttributeError):
        digest = hashlib.sha256(data).hexdigest()
    if digest != version:
        raise CorruptArtifactError(root.models.path(name), version, digest)
    return from_json(ModelVersion, {**body, "id": named})


def read_weights(root: Root, version: ModelVersion, weights: WeightSet) -> bytes:
    """One of a version's sets of weights as safetensors, checked against the manifest's hash."""
    return root.models.read(f"{version.id}/{weights.file}", sha256=weights.sha256)


def _id_of(version: ModelVersion) -> str:
    body: dict[str, Any] = to_json(version)
    del body["id"]
    return sha256_of(body)[:ID_DIGITS]


@dataclass(frozen=True)
class Registry:
    """Door for the controller."""

    root: Root

    def read(self, version: str) -> ModelVersion:
        """The manifest of a version."""
        return read_version(self.root, version)
