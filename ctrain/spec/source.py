"""Where a pipeline's data comes from, and what its label is."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator

from ctrain.spec.base import ColumnName, Duration, PositiveDuration, Spec, fault


class FileSource(Spec):
    """Folders of parquet or CSV files, one sealed folder a partition."""

    type: Literal["files"] = "files"

    path: str
    """Folder that holds the partitions: a local path or any URL that fsspec opens."""

    partition: Literal["day"] = "day"
    """Time range of one partition; its folder is named by the range's start, e.g. 2013-03-14."""

    event_time: ColumnName
    """Timestamp column that says when a row happened."""

    tolerance: Duration = 86400.0
    """How far an event time may lie before or after its partition's day: clocks and time zones differ."""

    poll: PositiveDuration = 5.0
    """Seconds between two looks for newly sealed partitions."""

    @field_validator("path")
    @classmethod
    def _no_empty_path(cls, path: str) -> str:
        if not path.strip():
            raise fault("is empty", "a folder or a URL")
        return path


class Label(Spec):
    """The column that training learns, and when it can be trusted."""

    name: ColumnName
    """Column of the source with the truth, 0 or 1."""

    matures_after: Duration = 0.0
    """Time after the event until the label is final. Younger rows are neither trained on nor judged."""

    known_at: ColumnName | None = None
    """Timestamp column of the source that says when the label became known. With it the gate can tell whether
    rows were chosen by their label, and which features are later than it; no request holds it."""

    horizon: PositiveDuration = 30 * 86400.0
    """Live labels that arrive later than this after their prediction are counted and dropped."""
