"""Read a dataset version back: raw rows, and features computed once for each partition and view."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ctrain.data.commit import ROWS_TABLE
from ctrain.data.convert import TYPES
from ctrain.errors import PartitionError
from ctrain.features import Arrays, Column, FeatureView, PartitionStatistics, arrays_from_table
from ctrain.records import canonical, sha256_of
from ctrain.storage import Root, write_atomically


@dataclass(frozen=True)
class Features:
    """Features and labels of one partition."""

    arrays: Arrays
    label: npt.NDArray[np.float32]


class Dataset:
    """One version of a pipeline's accepted rows.

    Args:
        root: Where the pipeline keeps everything.
        pipeline: Its name.
        version: The dataset version.
        code: sha256 of the user code's zip that the feature views come from; empty where it is installed.
    """

    def __init__(self, root: Root, pipeline: str, version: int, code: str = "") -> None:
        from deltalake import DeltaTable

        self._folder = root.pipeline(pipeline).tables
        self._delta = DeltaTable(self._folder / ROWS_TABLE, version=version)
        self.version, self._code = version, code

    def files(self, partition: str) -> list[str]:
        """Files of a partition, sorted."""
        found = sorted(self._delta.file_uris(file_pruning_predicate=[("partition", "=", partition)]))
        if not found:
            raise PartitionError(partition, f"is not in dataset version {self.version}")
        return found

    def table(self, partition: str, columns: list[str] | None = None) -> pa.Table:
        """Accepted rows of a partition, in the columns that its contract had; those of `columns` that are
        there, or all. Every page is checked against its checksum.
        """
        parts = [
            pq.ParquetFile(file, page_checksum_verification=True).read(columns)
            for file in self.files(partition)
        ]
        return pa.concat_tables(parts)

    def arrays(self, partition: str, columns: Mapping[str, Column]) -> Arrays:
        """Raw columns of a partition, as a feature view takes them.

        A view may have gained columns since the partition landed: one that it lacks is null in every row.

        Raises:
            PartitionError: if the partition lacks a column that must not be null, or has it as another kind.
        """
        table = self.table(partition, list(columns))
        for name, column in columns.items():
            kind = TYPES[column.kind]
            if name not in table.column_names:
                if not column.nullable:
                    problem = f"in dataset version {self.version} it lacks column {name!r}: it landed before "
                    problem += "that was declared. Declare it nullable, or let training.window begin later"
                    raise PartitionError(partition, problem)
                table = table.append_column(name, pa.nulls(table.num_rows, kind))
            elif table.schema.field(name).type != kind:
                problem = f"column {name!r} landed as {table.schema.field(name).type}, and the feature view "
                problem += f"wants a {column.kind}. Give the new kind a new name"
                raise PartitionError(partition, problem)
        return arrays_from_table(columns, table)

    def features(self, partition: str, view: FeatureView, label: str) -> Features:
        """Features of a partition, from the cache where they are already there."""
        path = self._cache(partition, view, label).with_suffix(".arrow")
        if not path.exists():
            self._compute(partition, view, label)
        with pa.memory_map(str(path)) as source:
            table = pa.ipc.open_file(source).read_all()
        arrays: Arrays = {}
        for name in table.column_names[:-1]:
            column = table.column(name).combine_chunks()
            if pa.types.is_string(column.type):
                arrays[name] = np.array(column.to_pylist(), dtype=np.str_)
            else:
                arrays[name] = column.to_numpy(zero_copy_only=False)
        return Features(arrays, table.column("\0label").to_numpy())

    def labels(self, partition: str, view: FeatureView, label: str) -> npt.NDArray[np.float32]:
        """Labels of a partition alone, from the cache of its features."""
        path = self._cache(partition, view, label).with_suffix(".arrow")
        if not path.exists():
            self._compute(partition, view, label)
        with pa.memory_map(str(path)) as source:
            labels: npt.NDArray[np.float32] = pa.ipc.open_file(source).read_all().column("\0label").to_numpy()
            return labels

    def statistics(self, partition: str, view: FeatureView, label: str) -> PartitionStatistics:
        """Statistics of a partition's features, computed with them."""
        path = self._cache(partition, view, label).with_suffix(".json")
        if not path.exists():
            self._compute(partition, view, label)
        return PartitionStatistics.from_json(json.loads(path.read_text(encoding="utf-8")))

    def _compute(self, partition: str, view: FeatureView, label: str) -> None:
        needed = {**view.columns, label: Column.flag()}
        raw = self.arrays(partition, needed)
        arrays = view({name: raw[name] for name in view.columns})
        fields: dict[str, Any] = {name: pa.array(values) for name, values in arrays.items()}
        fields["\0label"] = pa.array(raw[label].astype(np.float32))
        sink = pa.BufferOutputStream()
        cached = pa.table(fields)
        with pa.ipc.new_file(sink, cached.schema) as writer:
            writer.write_table(cached)
        cache = self._cache(partition, view, label)
        statistics = PartitionStatistics.of(arrays)
        write_atomically(cache.with_suffix(".json"), canonical(statistics.to_json()).encode())
        write_atomically(cache.with_suffix(".arrow"), sink.getvalue().to_pybytes())

    def _cache(self, partition: str, view: FeatureView, label: str) -> Path:
        """Keyed by everything that the cached file depends on: rows, view, code, label."""
        files = [Path(file).name for file in self.files(partition)]
        content = sha256_of([view.hash, self._code, files, label])
        return self._folder / "features" / view.hash[:16] / f"{partition}_{content[:24]}"
