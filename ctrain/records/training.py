"""Records of training: what a run is asked, and the model version that comes of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ctrain.records.base import Json


@dataclass(frozen=True, slots=True)
class RunRequest:
    """Everything a run needs; written beside its results, so that it can be repeated."""

    run_id: str
    pipeline: str
    root: str
    spec: Json
    """The pipeline's whole spec as JSON, overrides of this run applied."""
    code: str
    """sha256 of the user code's zip under root/code; empty when the code is installed."""
    dataset_version: int
    partitions: tuple[str, ...]
    """Partitions of the window, oldest first: what `served` learns from."""
    blocks: tuple[str, ...]
    """The newest matured ones among them, which the judged sets leave out and are judged on."""
    seed: int
    attempt: int = 1
    parent: str = ""
    """Model version that was champion when the run was asked for; lineage only."""


@dataclass(frozen=True, slots=True)
class WeightSet:
    """One set of weights of a version."""

    name: str
    """`served`, or `judged-0`, `refit-0` and so on (`training.sets`)."""
    file: str
    """Name inside the version's folder, e.g. served.safetensors."""
    sha256: str
    size: int
    """Bytes."""
    encoder: Json
    """Fitted encoder that belongs to these weights (`models.encoder.Encoder.to_json`)."""
    seed: int = 0
    left_out: tuple[str, ...] = ()
    """Partitions of the version's window that it has not learned from."""


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """Manifest of an immutable model version; its id is the hash of this record without the id."""

    id: str
    """First 12 hex digits of the manifest's hash."""
    pipeline: str
    run_id: str
    code: str
    features: str
    """Import path of the feature view."""
    view_hash: str
    columns: Json
    """Columns of the feature view, as declared: what a request must hold."""
    model: Json
    """Spec of the network."""
    label: str
    threshold: float
    """Probability at and above which the decision is positive."""
    weights: tuple[WeightSet, ...]
    """In the order of training; `served`, which answers requests, is the last."""
    dataset_version: int
    partitions: tuple[str, ...]
    blocks: tuple[str, ...]
    seed: int
    workers: int
    parent: str
    rows: int
    """Rows that `served` learned from."""
    spec_sha256: str
    environment: dict[str, str]
    """Versions of Python, ctrain, torch, ray, numpy; device."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Training loss and the like, by name."""

    @property
    def served(self) -> WeightSet:
        """The weights that answer requests."""
        return self.weights[-1]

    @property
    def judged(self) -> tuple[WeightSet, ...]:
        """Replicates that have not learned from the judged blocks."""
        return tuple(one for one in self.weights if one.name.startswith("judged-"))

    @property
    def refits(self) -> tuple[WeightSet, ...]:
        """Trained as `served` was, each without one stretch of the judged blocks."""
        return tuple(one for one in self.weights if one.name.startswith("refit-"))


@dataclass(frozen=True, slots=True)
class RunStatus:
    """Where a run stands."""

    run_id: str
    state: Literal["running", "finished", "failed"]
    progress: str = ""
    """One line for people, e.g. `judged-0 3/5 epochs`."""
    version: str = ""
    """Id of the model version, once finished."""
    rows: int = 0
    seconds: float = 0.0
    error: str = ""
    retryable: bool = True
    """Whether another attempt may end otherwise; a failed run of unusable rows fails again."""
