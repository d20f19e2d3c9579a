"""Commit: add a partition's written files to the Delta tables, each content once.

The commit that adds a partition's rows carries its outcome: a repeated ingest, under whatever contract,
finds the first one and gives it back. A name whose rows are committed keeps them. What was refused whole
may land again with other content.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pyarrow as pa

from ctrain.data.convert import TYPES
from ctrain.features import Column
from ctrain.records import ContractReport, IngestedPartition, Json, Partition, canonical, from_json, to_json
from ctrain.storage.artifacts import to_disk

if TYPE_CHECKING:
    from deltalake import DeltaTable

ROWS_TABLE, QUARANTINE_TABLE = "accepted", "quarantine"
LOG_RETENTION = "interval 3650 days"
COMMITS = 5
"""Commits tried where another process commits to the same table at the same time."""

T = TypeVar("T")


def standing(tables: Path, partition: Partition) -> IngestedPartition | None:
    """What an earlier ingest settled: this content's first outcome, or that other content stands."""
    from deltalake import DeltaTable

    table = tables / ROWS_TABLE
    if not DeltaTable.is_deltatable(str(table)):
        return None
    delta, content = DeltaTable(table), _content(partition)
    if delta.transaction_version(content) is not None:
        return _first_outcome(table, content)
    files = delta.file_uris(file_pruning_predicate=[("partition", "=", partition.name)])
    if not files:
        return None
    there, here = min(Path(file).name for file in files)[:12], partition.sha256[:12]
    problem = f"landed again with other content ({here}); {there} stands. Land corrections as a new partition"
    return IngestedPartition(partition.name, partition.sha256, ContractReport(0, 0, {}), problem)


def commit_rows(
    tables: Path,
    partition: Partition,
    outcome: IngestedPartition,
    files: list[Json],
    columns: Mapping[str, Column],
) -> IngestedPartition:
    """Add a partition's accepted rows.

    Args:
        tables: Folder of the tables.
        partition: The partition.
        outcome: What is to be said of it; its dataset version is not known yet.
        files: Written files: name below the table, size in bytes, rows.
        columns: Columns of the files.

    Returns:
        The outcome with its dataset version, or what stands already.

    Raises:
        OSError: if the table cannot be written; so do all functions here.
    """
    table, content = tables / ROWS_TABLE, _content(partition)
    # Of two commits with a transaction in common that run at the same time, Delta refuses the second.
    transactions = [content, f"partition-{partition.name}"]
    schema = pa.schema([(name, TYPES[column.kind]) for name, column in columns.items()])
    notes = {"ctrain": content, "ctrain.outcome": canonical(to_json(outcome))}

    def step() -> IngestedPartition:
        delta = _open(table, schema)  # before the look: what is committed after it counts as at the same time
        if (found := standing(tables, partition)) is not None:
            return found
        _append(delta, table, partition.name, files, transactions, notes)
        return _first_outcome(table, content)

    return _tried(step)


def commit_refused(
    tables: Path, partition: Partition, files: list[Json], columns: Mapping[str, Column]
) -> None:
    """Add a partition's refused rows to the quarantine, once for its content."""
    table, content = tables / QUARANTINE_TABLE, _content(partition)
    schema = pa.schema([(name, pa.string()) for name in (*columns, "reason")])

    def step() -> None:
        delta = _open(table, schema)
        if delta.transaction_version(content) is None:
            _append(delta, table, partition.name, files, [content], {"ctrain": content})

    _tried(step)


def _content(partition: Partition) -> str:
    return f"partition-{partition.name}-{partition.sha256[:16]}"


def _tried(step: Callable[[], T]) -> T:
    from deltalake.exceptions import CommitFailedError, DeltaError

    for left in reversed(range(COMMITS)):
        try:
            return step()
        except DeltaError as error:
            if not left or not isinstance(error, CommitFailedError):
                raise OSError(f"table not written: {error}") from error
            time.sleep(random.uniform(0.05, 0.5))
    raise AssertionError("unreachable")


def _open(table: Path, schema: pa.Schema) -> DeltaTable:
    """The table, made where it is not there; columns that are new to it are added."""
    from deltalake import DeltaTable, Schema

    delta = DeltaTable.create(
        table,
        schema=schema.append(pa.field("partition", pa.string())),
        mode="ignore",
        partition_by=["partition"],
        configuration={
            "delta.logRetentionDuration": LOG_RETENTION,
            "delta.deletedFileRetentionDuration": LOG_RETENTION,
        },
    )
    names = {field.name.lower() for field in delta.schema().fields}
    if fresh := [field for field in Schema.from_arrow(schema).fields if field.name.lower() not in names]:
        delta.alter.add_columns(fresh)
    return delta


def _append(
    delta: DeltaTable,
    table: Path,
    name: str,
    files: list[Json],
    transactions: list[str],
    notes: dict[str, str],
) -> None:
    from deltalake import CommitProperties, Transaction
    from deltalake.transaction import AddAction, RemoveAction

    actions: list[AddAction | RemoveAction] = [
        AddAction(
            path=item["name"],
            size=item["size"],
            partition_values={"partition": name},
            modification_time=int((table / item["name"]).stat().st_mtime * 1000),
            data_change=True,
            stats=json.dumps({"numRecords": item["rows"]}),
        )
        for item in files
    ]
    delta.create_write_transaction(
        actions,
        mode="append",
        schema=delta.schema(),
        partition_by=["partition"],
        commit_properties=CommitProperties(
            custom_metadata=notes,
            app_transactions=[Transaction(transaction, 1) for transaction in transactions],
        ),
    )


def _first_outcome(table: Path, content: str) -> IngestedPartition:
    """Outcome as its commit says it. The log's files tell the commit's version; `DeltaTable.history`
    counts back from the newest one, which may be another while others commit.
    """
    for file in sorted((table / "_delta_log").glob("*.json"), reverse=True):
        for line in file.read_text(encoding="utf-8").splitlines():
            info = json.loads(line).get("commitInfo", {})
            if info.get("ctrain") == content:
                to_disk(file)  # Delta does not wait for the disk, and the journal will rely on this
                to_disk(file.parent)
                outcome = from_json(IngestedPartition, json.loads(info["ctrain.outcome"]))
                return replace(outcome, dataset_version=int(file.stem))
    raise LookupError(f"{content} is committed but not in the table's log")
