"""A feature view, rows of its contract, and a landing folder that is ingested without Ray."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from factories import spec
from hypothesis import strategies as st

from ctrain.data import Dataset, seal_partition
from ctrain.data.ingest import check_file, land_all
from ctrain.data.land import FileSource
from ctrain.features import Column, feature_view
from ctrain.records import IngestedPartition, IngestRequest, Partition
from ctrain.storage import Root

NOON = dt.datetime(2013, 3, 14, 12)


@feature_view(
    kind=Column.category(allowed=("a", "b")),
    size=Column.number(minimum=0, maximum=10),
    weight=Column.number(nullable=True),
    vip=Column.flag(nullable=True),
)
def view(rows):
    return {"kind": rows["kind"], "size": rows["size"]}


GOOD = {"kind": "a", "size": 1.0, "weight": 2.0, "vip": True, "t": NOON, "y": 1}


VALUES = {
    "kind": st.sampled_from(["a", "b", "c", "", None]),
    "size": st.one_of(st.none(), st.floats(-2, 12), st.sampled_from([float("nan"), float("inf")])),
    "weight": st.one_of(st.none(), st.floats()),
    "vip": st.sampled_from([0.0, 1.0, 0.5, None]),
    "t": st.one_of(st.none(), st.datetimes(dt.datetime(1900, 1, 1), dt.datetime(2200, 1, 1))),
    "y": st.sampled_from([0.0, 1.0, 2.0, None]),
}
SCHEMA = pa.schema(
    [
        ("kind", pa.string()), ("size", pa.float64()), ("weight", pa.float64()), ("vip", pa.float64()),
        ("t", pa.timestamp("us")), ("y", pa.float64()),
    ]
)  # fmt: skip
TABLES = st.lists(st.fixed_dictionaries(VALUES), max_size=12)


class Landing:
    """A landing folder and the root that it is ingested into, without Ray."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.root = folder / "landing", Root(folder / "root")
        source = {"type": "files", "path": str(self.folder), "event_time": "t", "tolerance": "100000d"}
        self.spec = spec(source=source, features="landed:view", contract={"max_refused": 0.5})

    def land(self, name: str, rows: list[dict[str, Any]] | str, files: int = 1) -> Partition:
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        if isinstance(rows, str):
            (folder / "a.csv").write_text(rows)
        else:
            for number in range(files):
                part = pa.Table.from_pylist(rows[number::files], SCHEMA)
                pq.write_table(part, folder / f"{number}.parquet")
        seal_partition(folder)
        (found,) = [s.partition for s in FileSource(self.spec).look({}) if s.name == name]
        assert found is not None
        return found

    def request(self, *partitions: Partition) -> IngestRequest:
        return IngestRequest("k", "p", str(self.root.path), self.spec.to_json(), "", partitions)

    def ingest_all(self, *partitions: Partition) -> tuple[IngestedPartition, ...]:
        request = self.request(*partitions)
        return land_all(request, lambda work: [check_file(request, *item) for item in work])

    def ingest(self, partition: Partition) -> IngestedPartition:
        (result,) = self.ingest_all(partition)
        return result

    def rows(self, name: str, version: int) -> list[str]:
        return sorted(str(row) for row in Dataset(self.root, "p", version).table(name).to_pylist())
