"""What a window is compared with: the champion's training data as they landed, bounded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Protocol

import numpy as np

from ctrain.features import Column
from ctrain.monitoring.rows import Landed, Rows, watched_columns
from ctrain.records import ModelVersion, WindowRequest
from ctrain.registry import read_version
from ctrain.spec import PipelineSpec
from ctrain.storage import Root

REFERENCE_ROWS = 200_000
"""Landed rows at most that the monitors begin with, spread over the partitions."""

REFERENCE_PARTITIONS = 60
"""Newest partitions of the champion's training data that they are drawn from."""


class Reference(Protocol):
    """What the champion was trained on."""

    @property
    def columns(self) -> Mapping[str, Column]:
        """Raw columns of its requests that are compared."""
        ...

    def landed(self) -> Iterable[Rows]:
        """Rows of its landed partitions, oldest first, bounded."""
        ...


class LandedReference:
    """The reference as it lies in the tables; nothing is read before it is asked for."""

    def __init__(self, request: WindowRequest, root: Root, spec: PipelineSpec) -> None:
        self._request, self._root, self._spec = request, root, spec

    @cached_property
    def _version(self) -> ModelVersion:
        return read_version(self._root, self._request.champion)

    @property
    def columns(self) -> Mapping[str, Column]:
        """Raw columns of its requests that are compared."""
        return watched_columns(self._version)

    def landed(self) -> Iterable[Rows]:
        """Rows of its landed partitions, oldest first, bounded."""
        version, event_time = self._version, self._spec.source.event_time
        newest = version.partitions[-REFERENCE_PARTITIONS:]
        size = REFERENCE_ROWS // len(newest)
        random = np.random.default_rng(0)
        for rows in Landed(self._root, version, version.dataset_version, event_time).read_all(newest):
            if len(rows) > size:
                yield rows.at(np.sort(random.choice(len(rows), size, replace=False)))
            else:
                yield rows
