"""Ingest: check partitions by Ray Data and commit their accepted rows, each partition exactly once.

References move, rows stay: one Ray task a file reads it, checks it, writes what is accepted and what
is refused beside the table, and gives back a summary. The commit then adds the written files to the
Delta table in one step; a transaction id for each partition makes a repeated commit find the first.
"""

from __future__ import annotations

import json
import random
import time
import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from ctrain.data.contract import check, contract_columns, missing_columns, refusal
from ctrain.data.land import read_bytes
from ctrain.errors import DataError, PartitionError
from ctrain.features import load_view
from ctrain.records import (
    ContractReport,
    IngestedPartition,
    IngestRequest,
    Json,
    Partition,
    SourceFile,
    from_json,
    to_json,
)
from ctrain.spec import parse_spec
from ctrain.storage import PipelineRoot

LOG_RETENTION = "interval 3650 days"
ROWS_TABLE, QUARANTINE_TABLE = "accepted", "quarantine"
COMMITS = 5
"""Commits tried where another process commits to the same table at the same time."""


def ingest(request: IngestRequest) -> tuple[IngestedPartition, ...]:
    """Land partitions; runs inside a Ray task that has the user's code.

    Returns:
        One record a partition, in the request's order: committed, or refused with the reason.

    Raises:
        DataError: where Ray is not initialised; Ray Data would start a cluster of its own.
    """
    import ray.data

    if not ray.is_initialized():
        problem = "ingest runs its checks as Ray tasks, and this process is not connected to Ray"
        raise DataError(f"{problem}. Call ray.init() first, or submit a job by ctrain")

    references = [
        {"request": json.dumps(to_json(request)), "partition": index, "file": number}
        for index, partition in enumerate(request.partitions)
        for number in range(len(partition.files))
    ]
    summaries: list[Json] = []
    if references:
        context = ray.data.DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        blocks = min(len(references), 16)
        dataset = ray.data.from_items(references, override_num_blocks=blocks)
        summaries = [json.loads(row["summary"]) for row in dataset.map(_check_row, num_cpus=0.25).take_all()]
    results = []
    for index, partition in enumerate(request.partitions):
        mine = [summary for summary in summaries if summary["partition"] == index]
        results.append(commit(request, partition, mine))
    return tuple(results)


def _check_row(row: dict[str, Any]) -> dict[str, Any]:
    request = from_json(IngestRequest, json.loads(row["request"]))
    partition = request.partitions[int(row["partition"])]
    summary = check_file(request, partition, partition.files[int(row["file"])])
    return {"summary": json.dumps({**summary, "partition": int(row["partition"])})}


def check_file(request: IngestRequest, partition: Partition, file: SourceFile) -> Json:
    """Check one file and write its accepted and refused rows beside the tables.

    Returns:
        `{"problem": why}` if the file cannot be used, else report, written files and event times.
    """
    spec = parse_spec(request.spec)
    columns = contract_columns(spec, load_view(spec.features))
    try:
        table = _read(file.name, read_bytes(partition, file), list(columns))
    except (ValueError, OSError, pa.ArrowException) as error:
        return {"problem": str(error).splitlines()[0]}
    if absent := missing_columns(table, columns):
        have = ", ".join(table.column_names)
        return {"problem": f"{file.name} lacks columns {', '.join(absent)}; it has {have}"}
    if table.num_rows != file.rows:
        return {"problem": f"{file.name} has {table.num_rows} rows, the seal says {file.rows}"}
    try:
        checked = check(table, columns, spec.label.name, spec.source.event_time)
    except ValueError as error:
        return {"problem": str(error)}
    tables = PipelineRoot(Path(request.root) / request.pipeline).tables
    name = f"partition={partition.name}/{partition.sha256[:16]}-{file.sha256[:16]}.parquet"
    times = checked.accepted.column(spec.source.event_time).cast(pa.int64()).to_numpy() / 1e6
    return {
        "problem": "",
        "report": to_json(checked.report),
        "accepted": _write(tables / ROWS_TABLE, name, checked.accepted),
        "refused": _write(tables / QUARANTINE_TABLE, name, checked.refused),
        "first": float(times.min()) if len(times) else None,
        "last": float(times.max()) if len(times) else None,
        "schema": _schema(columns),
    }


def commit(request: IngestRequest, partition: Partition, summaries: list[Json]) -> IngestedPartition:
    """Commit one partition whole, or refuse it whole.

    A name whose rows are committed keeps them: other content under it is refused.
    """
    spec = parse_spec(request.spec)
    problems = [summary["problem"] for summary in summaries if summary["problem"]]
    reports = [from_json(ContractReport, s["report"]) for s in summaries if not s["problem"]]
    reasons: dict[str, int] = {}
    for item in reports:
        for reason, count in item.reasons.items():
            reasons[reason] = reasons.get(reason, 0) + count
    report = ContractReport(sum(r.rows for r in reports), sum(r.accepted for r in reports), reasons)
    refused = problems[0] if problems else refusal(report, spec.contract.max_refused)
    tables = PipelineRoot(Path(request.root) / request.pipeline).tables
    if not refused:
        refused = _other_content(tables / ROWS_TABLE, partition)
    quarantined = [s["refused"] for s in summaries if not s["problem"] and s["refused"]["rows"]]
    if quarantined:
        _add(
            tables / QUARANTINE_TABLE, partition, quarantined, [*summaries[0]["schema"], "reason"], text=True
        )
    if refused:
        return IngestedPartition(partition.name, partition.sha256, report, refused)
    written = [s["accepted"] for s in summaries if s["accepted"]["rows"]]
    try:
        version = _add(tables / ROWS_TABLE, partition, written, summaries[0]["schema"], text=False)
    except PartitionError as error:
        return IngestedPartition(partition.name, partition.sha256, report, error.problem)
    first = min(s["first"] for s in summaries if s["first"] is not None)
    last = max(s["last"] for s in summaries if s["last"] is not None)
    return IngestedPartition(partition.name, partition.sha256, report, "", version, first, last)


def _read(name: str, data: bytes, columns: list[str]) -> pa.Table:
    if name.endswith(".csv"):
        # as text: a type guessed from all of a file's rows would change its good ones ("01" to 1)
        options = pa.csv.ConvertOptions(column_types=dict.fromkeys(columns, pa.string()))
        return pa.csv.read_csv(pa.BufferReader(data), convert_options=options)
    return pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True).read()


def _write(table: Path, name: str, rows: pa.Table) -> Json:
    path = table / name
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{uuid.uuid4().hex}.tmp")  # a repeated task may run beside this one
    pq.write_table(rows, temporary, write_page_checksum=True, compression="zstd")
    temporary.replace(path)
    return {"name": name, "size": path.stat().st_size, "rows": rows.num_rows}


def _schema(columns: Any) -> Json:
    return {name: column.kind for name, column in columns.items()}


def _add(table: Path, partition: Partition, files: list[Json], schema: Any, text: bool) -> int:
    """Add written files to a Delta table, once for each partition's content.

    Returns:
        The table's version that first holds them.

    Raises:
        PartitionError: if the table of rows holds other content under this name.
    """
    from deltalake.exceptions import CommitFailedError

    for left in reversed(range(COMMITS)):
        try:
            return _try_add(table, partition, files, schema, text)
        except CommitFailedError:
            if not left:
                raise
            time.sleep(random.uniform(0.05, 0.5))
    raise AssertionError("unreachable")


def _try_add(table: Path, partition: Partition, files: list[Json], schema: Any, text: bool) -> int:
    from deltalake import CommitProperties, DeltaTable, Transaction
    from deltalake.transaction import AddAction, RemoveAction

    from ctrain.data.contract import TYPES

    fields = [(name, pa.string() if text else TYPES[schema[name]]) for name in schema]
    arrow = pa.schema([*fields, ("partition", pa.string())])
    delta = DeltaTable.create(
        table,
        schema=arrow,
        mode="ignore",
        partition_by=["partition"],
        configuration={
            "delta.logRetentionDuration": LOG_RETENTION,
            "delta.deletedFileRetentionDuration": LOG_RETENTION,
        },
    )
    content = f"partition-{partition.name}-{partition.sha256[:16]}"
    # Of two commits with a transaction in common that run at the same time, Delta refuses the second.
    transactions = [Transaction(content, 1)]
    if not text:  # what was refused whole may land again with other content
        transactions.append(Transaction(f"partition-{partition.name}", 1))
        if problem := _other_content(table, partition):
            raise PartitionError(partition.name, problem)
    if delta.transaction_version(content) is not None:
        return _version_of(table, content)
    actions: list[AddAction | RemoveAction] = [
        AddAction(
            path=item["name"],
            size=item["size"],
            partition_values={"partition": partition.name},
            modification_time=int((table / item["name"]).stat().st_mtime * 1000),
            data_change=True,
            stats=json.dumps({"numRecords": item["rows"]}),
        )
        for item in files
    ]
    delta.create_write_transaction(
        actions,
        mode="append",
        schema=arrow,
        partition_by=["partition"],
        commit_properties=CommitProperties(
            custom_metadata={"ctrain": content},
            app_transactions=transactions,
        ),
    )
    return _version_of(table, content)


def _other_content(table: Path, partition: Partition) -> str:
    """Why a partition may not join the table: its name holds other content; empty if it may."""
    from deltalake import DeltaTable

    if not DeltaTable.is_deltatable(str(table)):
        return ""
    files = DeltaTable(table).file_uris(file_pruning_predicate=[("partition", "=", partition.name)])
    hashes = {Path(file).name.split("-", 1)[0] for file in files} - {partition.sha256[:16]}
    if not hashes:
        return ""
    there, here = min(hashes)[:12], partition.sha256[:12]
    return f"landed again with other content ({here}); {there} stands. Land corrections as a new partition"


def _version_of(table: Path, content: str) -> int:
    """Version whose commit carries this name. The log's files say it; `DeltaTable.history` counts back
    from the newest version, which may be another one while others commit.
    """
    for file in sorted((table / "_delta_log").glob("*.json"), reverse=True):
        for line in file.read_text(encoding="utf-8").splitlines():
            if json.loads(line).get("commitInfo", {}).get("ctrain") == content:
                return int(file.stem)
    raise LookupError(f"{content} is committed but not in the table's log")
