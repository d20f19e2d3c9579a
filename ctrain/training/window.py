"""The window of a run: its partitions as one matrix a rank, and the encoders fitted on them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from ctrain.data.read import Dataset, Features
from ctrain.errors import TrainingError
from ctrain.features import FeatureView, PartitionStatistics, load_view
from ctrain.models.encoder import Encoder
from ctrain.records import RunRequest
from ctrain.spec import PipelineSpec
from ctrain.storage import Root, open_root
from ctrain.training.guard import user_code


class Window:
    """The window's partitions, read by the feature view.

    Raises:
        UserCodeError: at once or by any method, if the view cannot be imported or fails.
    """

    def __init__(self, request: RunRequest, spec: PipelineSpec) -> None:
        self._request, self._spec = request, spec
        root = Root(Path(request.root), open_root(request.root).store)
        with user_code(spec.features, "while it was imported"):
            self.view: FeatureView = load_view(spec.features)
        self._dataset = Dataset(root, request.pipeline, request.dataset_version, request.code)

    def rows(self) -> int:
        """Rows of the whole window."""
        return sum(part.rows for part in self._statistics(()))

    def encoder(self, left_out: Sequence[str]) -> Encoder:
        """Vocabularies and scales of a set of weights that learns from all partitions but some.

        Raises:
            TrainingError: if no partition is left for it.
        """
        parts = self._statistics(left_out)
        if not parts:
            raise TrainingError(self._request.run_id, "no partition is left beside the judged blocks")
        model = self._spec.model
        return Encoder.fit(PartitionStatistics.merge(parts), model.bins, model.minimum_count)

    def tensors(
        self, left_out: Sequence[str], encoder: Encoder, rank: int, world: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Matrix and labels of one rank, as `encode_share`."""
        parts = (self._features(name) for name in self._partitions(left_out))
        return encode_share(self._request.run_id, parts, encoder, rank, world)

    def _features(self, partition: str) -> Features:
        label = self._spec.label.name
        with user_code(self._spec.features, f"on partition {partition}"):
            return self._dataset.features(partition, self.view, label)

    def _partitions(self, left_out: Sequence[str]) -> list[str]:
        return [name for name in self._request.partitions if name not in set(left_out)]

    def _statistics(self, left_out: Sequence[str]) -> list[PartitionStatistics]:
        label = self._spec.label.name
        parts = []
        for name in self._partitions(left_out):
            with user_code(self._spec.features, f"on partition {name}"):
                parts.append(self._dataset.statistics(name, self.view, label))
        return parts


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
