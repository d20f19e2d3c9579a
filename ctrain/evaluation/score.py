"""Score versions on judged blocks. The one part of this room that loads weights (torch)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ctrain.data.read import Dataset
from ctrain.errors import PartitionError
from ctrain.evaluation.gate import decide_gate
from ctrain.evaluation.metrics import binary_metrics
from ctrain.models.loading import load_network
from ctrain.records import BlockScore, EvaluationRequest, GateDecision, ModelScore, ModelVersion
from ctrain.registry import read_version
from ctrain.spec import parse_spec
from ctrain.storage import open_root
from ctrain.storage.root import Root


def evaluate(request: EvaluationRequest) -> GateDecision:
    """Score the candidate's and the champion's judged weights on the candidate's blocks; decide the gate.

    Both must be out of sample there. The candidate left its blocks out; a champion that has trained on
    some of them is scored on the others, and with fewer than two of those a comparison lacks evidence;
    so it does where the champion's older view cannot read rows that landed later.

    Raises:
        DataError: if a judged block cannot be read.
        StorageError: if a version or its weights cannot.
    """
    spec = parse_spec(request.spec)
    root = Root(Path(request.root), open_root(request.root).store)
    candidate = read_version(root, request.candidate)
    score = score_version(root, candidate, candidate, candidate.blocks)
    champion_score = None
    if request.champion:
        champion = read_version(root, request.champion)
        unseen = blocks_unseen_by(champion, candidate.blocks)
        champion_score = score_version(root, champion, candidate, unseen)
    return decide_gate(spec.evaluation, score, champion_score)


def blocks_unseen_by(version: ModelVersion, blocks: Iterable[str]) -> tuple[str, ...]:
    """Those of the blocks that a version's judged weights have not trained on."""
    seen = set(version.partitions) - set(version.blocks)
    return tuple(block for block in blocks if block not in seen)


def score_version(root: Root, version: ModelVersion, on: ModelVersion, judged: Iterable[str]) -> ModelScore:
    """Score a version's judged weights block by block and pooled.

    Args:
        root: Where versions and rows lie.
        version: Whose weights.
        on: Whose dataset version, label and threshold.
        judged: Blocks (partitions); none of them gives a score without metrics.

    Raises:
        DataError: if `version` is `on` and cannot read a block; another version has no row there.
    """
    network = load_network(root, version, version.judged[0])
    dataset = Dataset(root, on.pipeline, on.dataset_version, version.code)
    blocks: list[BlockScore] = []
    labels: list[npt.NDArray[Any]] = [np.empty(0)]
    scores: list[npt.NDArray[Any]] = [np.empty(0)]
    for block in judged:
        try:
            features = dataset.features(block, network.view, on.label)
        except PartitionError:
            if version.id == on.id:
                raise
            blocks.append(BlockScore(block, 0, 0, {}))
            continue
        probabilities = network.probabilities(network.encoder.encode(features.arrays))
        metrics = binary_metrics(features.label, probabilities, on.threshold)
        blocks.append(BlockScore(block, len(features.label), int(features.label.sum()), metrics))
        labels.append(features.label)
        scores.append(probabilities)
    overall = binary_metrics(np.concatenate(labels), np.concatenate(scores), on.threshold)
    return ModelScore(version.id, overall, tuple(blocks))
