"""Ingest: check partitions by Ray Data and commit their accepted rows, each partition exactly once.

References move, rows stay: one Ray task a file reads it, checks it, writes what is accepted and what
is refused beside the tables, and gives back a summary. The commit then adds the written files to the
Delta tables in one step. What is wrong with one partition refuses that partition; storage that does not
answer leaves it for the next look; neither holds up the others.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from ctrain.data.commit import QUARANTINE_TABLE, ROWS_TABLE, commit_refused, commit_rows, standing
from ctrain.data.contract import (
    ambiguous_columns,
    check,
    check_contract,
    contract_columns,
    missing_columns,
    other_kinds,
    refusal,
)
from ctrain.data.land import read_bytes
from ctrain.errors import DataError, PartitionError, SchemaError
from ctrain.features import Column, columns_to_json, load_view
from ctrain.records import (
    ContractReport,
    IngestedPartition,
    IngestRequest,
    Json,
    Partition,
    SourceFile,
    from_json,
    sha256_of,
    to_json,
)
from ctrain.spec import PipelineSpec, parse_spec
from ctrain.storage import PipelineRoot, write_atomically

DAY = 86400
Work = Sequence[tuple[Partition, SourceFile]]


def ingest(request: IngestRequest) -> tuple[IngestedPartition, ...]:
    """Land partitions; runs inside a Ray task that has the user's code.

    Returns:
        One record a partition, in the request's order: committed, or refused with the reason. A
        partition whose storage did not answer is left out; it lands when it is asked for again.

    Raises:
        DataError: where Ray is not initialised (Ray Data would start a cluster of its own), and if spec
            and view cannot go together.
        OSError: if storage answered for none of them.
    """
    import ray

    if not ray.is_initialized():
        problem = "ingest runs its checks as Ray tasks, and this process is not connected to Ray"
        raise DataError(f"{problem}. Call ray.init() first, or submit a job by ctrain")
    return land_all(request, lambda work: _check_in_tasks(request, work))


def land_all(
    request: IngestRequest, check_all: Callable[[Work], list[Json]]
) -> tuple[IngestedPartition, ...]:
    """Land partitions; what an earlier ingest has committed is neither read nor written again.

    Args:
        request: What is asked for.
        check_all: Gives the summary of `check_file` for each file.
    """
    spec = parse_spec(request.spec)
    check_contract(spec, load_view(spec.features))
    settled = [standing(_tables(request), partition) for partition in request.partitions]
    work = [
        (partition, file)
        for partition, found in zip(request.partitions, settled, strict=True)
        if found is None
        for file in partition.files
    ]
    summaries = iter(check_all(work) if work else [])
    results, away = list[IngestedPartition](), list[str]()
    for partition, found in zip(request.partitions, settled, strict=True):
        mine = [] if found is not None else list(islice(summaries, len(partition.files)))
        try:
            results.append(found if found is not None else commit(request, partition, mine))
        except OSError as error:
            away.append(f"{partition.name}: {error}")
    if away and not results:
        raise OSError("; ".join(away))
    return tuple(results)


def _check_in_tasks(request: IngestRequest, work: Work) -> list[Json]:
    import ray.data

    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    rows = [{"partition": json.dumps(to_json(replace(one, files=(file,))))} for one, file in work]
    dataset = ray.data.from_items(rows, override_num_blocks=min(len(rows), 16))
    # What all files share travels once a task, not once a row.
    head = json.dumps(to_json(replace(request, partitions=())))
    checked = dataset.map(partial(_check_row, head), num_cpus=0.25).take_all()
    return [json.loads(row["summary"]) for row in checked]


def _check_row(head: str, row: dict[str, Any]) -> dict[str, Any]:
    request = from_json(IngestRequest, json.loads(head))
    partition = from_json(Partition, json.loads(row["partition"]))
    return {"summary": json.dumps(check_file(request, partition, partition.files[0]))}


def check_file(request: IngestRequest, partition: Partition, file: SourceFile) -> Json:
    """Check one file and write its accepted and refused rows beside the tables.

    Returns:
        `{"problem": why}` if the file cannot be used, with `schema` if its columns are others;
        `{"away": why}` if storage did not answer; else report, written files and event times in seconds
        since 1970.
    """
    spec = parse_spec(request.spec)
    columns = contract_columns(spec, load_view(spec.features))
    try:
        return _check_file(_tables(request), spec, columns, partition, file)
    except SchemaError as error:
        return {"problem": error.problem, "schema": error.changes}
    except PartitionError as error:
        return {"problem": error.problem}
    except (OSError, MemoryError) as error:
        return {"away": f"{file.name}: {type(error).__name__}: {error}"}
    except Exception as error:  # noqa: BLE001 whatever a file holds concerns its partition alone
        return {"problem": _words(f"{file.name} cannot be read", error)}


def _check_file(
    tables: Path, spec: PipelineSpec, columns: dict[str, Column], partition: Partition, file: SourceFile
) -> Json:
    table = _read(partition, file, columns)
    label, event_time, tolerance = spec.label.name, spec.source.event_time, spec.source.tolerance
    day = int(datetime.fromisoformat(partition.name).replace(tzinfo=UTC).timestamp())
    span = (int((day - tolerance) * 1e6), int((day + DAY + tolerance) * 1e6))
    checked = check(table, columns, label, event_time, span)
    # Under another contract the same file gives other rows, which must not replace the committed ones.
    rules = [columns_to_json(columns), label, event_time, tolerance]
    content = sha256_of([file.name, file.sha256, rules])
    name = f"partition={partition.name}/{partition.sha256[:16]}-{content[:16]}.parquet"
    times = checked.accepted.column(event_time).cast(pa.int64()).to_numpy() / 1e6
    return {
        "report": to_json(checked.report),
        "accepted": _write(tables / ROWS_TABLE, name, checked.accepted),
        "refused": _write(tables / QUARANTINE_TABLE, name, checked.refused),
        "first": float(times.min()) if len(times) else None,
        "last": float(times.max()) if len(times) else None,
    }


def commit(request: IngestRequest, partition: Partition, summaries: list[Json]) -> IngestedPartition:
    """Commit one partition whole, or refuse it whole.

    Raises:
        OSError: if storage did not answer; a repeated commit does its work once.
    """
    try:
        return _commit(request, partition, summaries)
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001 one partition must not hold up the others
        report = ContractReport(0, 0, {})
        problem = _words("it cannot be committed", error)
        return IngestedPartition(partition.name, partition.sha256, report, problem)


def _commit(request: IngestRequest, partition: Partition, summaries: list[Json]) -> IngestedPartition:
    spec, tables = parse_spec(request.spec), _tables(request)
    columns = contract_columns(spec, load_view(spec.features))
    if away := [summary["away"] for summary in summaries if "away" in summary]:
        raise OSError(away[0])
    problems = [summary["problem"] for summary in summaries if "problem" in summary]
    good = [summary for summary in summaries if "problem" not in summary]
    report = _sum([from_json(ContractReport, summary["report"]) for summary in good])
    if quarantined := [summary["refused"] for summary in good if summary["refused"]["rows"]]:
        commit_refused(tables, partition, quarantined, columns)
    refused = problems[0] if problems else refusal(report, spec.contract.max_refused)
    if refused:
        changes = [change for summary in summaries for change in summary.get("schema", ())]
        schema = tuple(dict.fromkeys([*changes, *other_kinds(report, columns)]))
        return IngestedPartition(partition.name, partition.sha256, report, refused, schema_changes=schema)
    first = min(summary["first"] for summary in good if summary["first"] is not None)
    last = max(summary["last"] for summary in good if summary["last"] is not None)
    outcome = IngestedPartition(partition.name, partition.sha256, report, "", -1, first, last)
    written = [summary["accepted"] for summary in good if summary["accepted"]["rows"]]
    return commit_rows(tables, partition, outcome, written, columns)


def _sum(reports: Sequence[ContractReport]) -> ContractReport:
    reasons = Counter[str]()
    for report in reports:
        reasons.update(report.reasons)
    return ContractReport(sum(r.rows for r in reports), sum(r.accepted for r in reports), dict(reasons))


def _read(partition: Partition, file: SourceFile, columns: Mapping[str, Column]) -> pa.Table:
    """Rows of a file, with every column that the contract needs, once.

    Raises:
        PartitionError: if they are not what the seal or the contract says.
        OSError: if the source does not answer.
    """
    data = read_bytes(partition, file)
    try:
        table = _parsed(file.name, data, list(columns))
    except OSError as error:  # so Arrow calls damage; the bytes themselves are here
        raise PartitionError(partition.name, _words(f"{file.name} cannot be read", error)) from None
    if absent := missing_columns(table, columns):
        have = ", ".join(table.column_names)
        problem = f"{file.name} lacks columns {', '.join(absent)}; it has {have}"
        raise SchemaError(partition.name, problem, tuple(f"{name}: column is gone" for name in absent))
    if twice := ambiguous_columns(table, columns):
        problem = f"{file.name} has columns {', '.join(twice)} more than once, or in another case too"
        raise SchemaError(partition.name, problem, tuple(f"{name}: column is there twice" for name in twice))
    if table.num_rows != file.rows:
        problem = f"{file.name} has {table.num_rows} rows, the seal says {file.rows}"
        raise PartitionError(partition.name, problem)
    return table


def _parsed(name: str, data: bytes, columns: list[str]) -> pa.Table:
    if name.endswith(".csv"):
        # as text: a type guessed from all of a file's rows would change its good ones ("01" to 1)
        options = pa.csv.ConvertOptions(column_types=dict.fromkeys(columns, pa.string()))
        return pa.csv.read_csv(pa.BufferReader(data), convert_options=options)
    return pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True).read()


def _write(table: Path, name: str, rows: pa.Table) -> Json:
    """Write a file, on disk when this returns: a commit must not name what a loss of power takes away."""
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, write_page_checksum=True, compression="zstd")
    data = sink.getvalue().to_pybytes()
    write_atomically(table / name, data)  # whole: a repeated task may run beside this one
    return {"name": name, "size": len(data), "rows": rows.num_rows}


def _words(what: str, error: BaseException) -> str:
    """One line that UTF-8 can hold."""
    line = f"{what}: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    return line.encode("utf-8", "backslashreplace").decode()[:500]


def _tables(request: IngestRequest) -> Path:
    return PipelineRoot(Path(request.root) / request.pipeline).tables
