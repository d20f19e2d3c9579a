"""Score versions on judged blocks. The one part of this room that loads weights (torch)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ctrain.data.read import Dataset
from ctrain.errors import DataError
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

    Both must be out of sample there: the candidate left its blocks out, and the champion, which is
    older, left out its own newest ones.

    Raises:
        DataError: if the champion's judged weights have trained on one of the blocks.
    """
    spec = parse_spec(request.spec)
    root = Root(Path(request.root), open_root(request.root).store)
    candidate = read_version(root, request.candidate)
    score = score_version(root, candidate, candidate, spec.source.event_time)
    champion_score = None
    if request.champion:
        champion = read_version(root, request.champion)
        seen = set(candidate.blocks) & (set(champion.partitions) - set(champion.blocks))
        if seen:
            problem = f"champion {champion.id} has trained on judged blocks {', '.join(sorted(seen))}"
            raise DataError(f"{problem}; a comparison there would favour it. Judge fewer blocks.")
        champion_score = score_version(root, champion, candidate, spec.source.event_time)
    return decide_gate(spec.evaluation, score, champion_score)


def score_version(root: Root, version: ModelVersion, on: ModelVersion, event_time: str) -> ModelScore:
    """Score a version's judged weights on the judged blocks of `on`, block by block and pooled."""
    network = load_network(root, version, "judged")
    dataset = Dataset(root, on.pipeline, on.dataset_version)
    blocks, labels, scores = [], [], []
    for block in on.blocks:
        features = dataset.features(block, network.view, version.label, event_time)
        probabilities = network.probabilities(network.encoder.encode(features.arrays))
        metrics = binary_metrics(features.label, probabilities, on.threshold)
        blocks.append(BlockScore(block, len(features.label), int(features.label.sum()), metrics))
        labels.append(features.label)
        scores.append(probabilities)
    overall = binary_metrics(np.concatenate(labels), np.concatenate(scores), on.threshold)
    return ModelScore(version.id, overall, tuple(blocks))
