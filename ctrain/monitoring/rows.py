"""Rows of traffic as plain columns, landed or live: what drift and diagnosis compare.

Watched are the raw columns that requests hold, but for timestamps: time moves by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ctrain.data.read import Dataset
from ctrain.errors import PartitionError
from ctrain.features import Column, columns_from_json
from ctrain.records import ModelVersion
from ctrain.storage import Root

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Rows:
    """B rows, in the order of their events."""

    columns: dict[str, npt.NDArray[Any]]
    """Text (`<U`, "" is missing) or float64 (NaN is missing), shape [B] each."""
    values: Floats
    """What the champion answered, or would have answered without having learned from the row; NaN if nobody
    can tell."""
    labels: Floats
    """0 or 1; NaN where it is not known."""
    times: Floats
    """Event time in seconds since 1970; NaN where it is not known."""

    def __len__(self) -> int:
        return len(self.values)

    def at(self, chosen: Any) -> Rows:
        """The rows of an index, a mask or a slice."""
        columns = {name: values[chosen] for name, values in self.columns.items()}
        return Rows(columns, self.values[chosen], self.labels[chosen], self.times[chosen])


def joined(parts: Sequence[Rows]) -> Rows:
    """Rows of several parts, one after the other."""
    names = parts[0].columns
    return Rows(
        {name: np.concatenate([part.columns[name] for part in parts]) for name in names},
        np.concatenate([part.values for part in parts]),
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.times for part in parts]),
    )


def watched_columns(version: ModelVersion) -> dict[str, Column]:
    """Raw columns of a version's requests that are compared."""
    columns = columns_from_json(version.columns)
    return {name: column for name, column in columns.items() if column.kind != "timestamp"}


def columns_of(rows: list[dict[str, Any]], like: Mapping[str, Column]) -> dict[str, Any]:
    """Columns of logged rows, in the kinds of the reference: text, or float64 with NaN."""
    columns: dict[str, Any] = {}
    for name, column in like.items():
        found = [row.get(name) for row in rows]
        if column.kind == "category":
            columns[name] = np.array(["" if value is None else str(value) for value in found], np.str_)
        else:
            columns[name] = np.array([np.nan if value is None else float(value) for value in found], float)
    return columns


class Landed:
    """Landed partitions as the champion meets them.

    Args:
        root: Where versions and rows lie.
        version: The champion.
        dataset_version: The newest; it holds all partitions that are asked for.
        event_time: Timestamp column of the source.
    """

    def __init__(self, root: Root, version: ModelVersion, dataset_version: int, event_time: str) -> None:
        self._root, self._version, self._event_time = root, version, event_time
        self._dataset = Dataset(root, version.pipeline, dataset_version, version.code)
        self._watched = watched_columns(version)
        self._networks: dict[str, Any] = {}

    def read(self, partition: str) -> Rows:
        """Rows of a partition, in the order of their events.

        Raises:
            PartitionError: if it is not there, or lacks what the champion's view needs.
        """
        watched = self._dataset.arrays(partition, self._watched)
        needed = {self._event_time: Column.timestamp(), self._version.label: Column.flag(nullable=True)}
        known = self._dataset.arrays(partition, needed)
        times = known[self._event_time].astype("datetime64[us]").astype(np.int64) / 1e6
        rows = Rows(watched, self._answers(partition, len(times)), known[self._version.label], times)
        return rows.at(np.argsort(times, kind="stable"))

    def read_all(self, partitions: Sequence[str]) -> Iterator[Rows]:
        """Rows of each partition that can be read; one that lacks a column is passed over."""
        for partition in partitions:
            try:
                yield self.read(partition)
            except PartitionError:
                continue

    def _answers(self, partition: str, rows: int) -> Floats:
        """What the champion answers on a partition, by weights that have not learned from it."""
        version = self._version
        weights = version.served
        if partition in version.partitions:
            unseen = [one for one in (*version.judged, *version.refits) if partition in one.left_out]
            if not unseen:
                return np.full(rows, np.nan)
            weights = unseen[0]
        from ctrain.models.loading import load_network

        if weights.name not in self._networks:
            self._networks[weights.name] = load_network(self._root, version, weights)
        network = self._networks[weights.name]
        features = self._dataset.features(partition, network.view, version.label)
        answers: Floats = network.probabilities(network.encoder.encode(features.arrays))
        return answers
