"""Landing by hand: copy a day's files beside the source, seal them, wait for the journal's word on them."""

from __future__ import annotations

import json
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ctrain.controller.journal import Event, Journal
from ctrain.errors import DataError
from ctrain.records import Json
from ctrain.spec import PipelineSpec


def landed(spec: PipelineSpec) -> list[str]:
    """Names of the sealed partitions of a source.

    Raises:
        DataError: if the source cannot be read.
    """
    from ctrain.data import FileSource

    sightings = FileSource(spec).look({})
    missing = [one.problem for one in sightings if not one.name]
    if missing:
        raise DataError(missing[0])
    return [one.name for one in sightings if one.partition is not None]


def land(spec: PipelineSpec, folder: Path) -> str:
    """Copy a day's files beside the source, seal them, and move the folder into place; gives its name.

    Raises:
        DataError: if the folder is no day, has no files, or has landed with other content.
    """
    from ctrain.data.land import SEAL, is_day, seal_partition

    name = folder.resolve().name
    if not is_day(name):
        raise DataError(f"{folder}: the folder's name is no day; expected e.g. 2013-03-14")
    if "://" in spec.source.path:
        raise DataError(f"source.path {spec.source.path} is a URL: upload and seal there, then ingest alone")
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    landing = Path(spec.source.path)
    target = landing / name
    if folder.resolve() == target.resolve():
        if not (target / SEAL).exists():
            seal_partition(target)
        return name
    files = [file for file in sorted(folder.iterdir()) if file.suffix in (".parquet", ".csv")]
    if not files:
        raise DataError(f"{folder}: no parquet or CSV file in it")
    if (target / SEAL).exists():
        if _same(files, target):
            return name
        raise DataError(
            f"{folder}: {name} has landed with other content, which stands. "
            "Land corrections as a new partition"
        )
    fresh = landing / f".{name}.{uuid.uuid4().hex}"
    fresh.mkdir(parents=True)
    for file in files:
        shutil.copy2(file, fresh / file.name)
    seal_partition(fresh)
    if target.exists():
        shutil.rmtree(target)
    fresh.rename(target)
    return name


def _same(files: Sequence[Path], sealed: Path) -> bool:
    """Whether a sealed partition holds just these files."""
    from ctrain.data.land import SEAL
    from ctrain.storage import file_sha256

    entries = json.loads((sealed / SEAL).read_text(encoding="utf-8"))["files"]
    return {file.name: file_sha256(file) for file in files} == {
        entry["name"]: entry["sha256"] for entry in entries
    }


def await_landing(
    journal: Journal, names: Sequence[str], wait: float, say: Callable[[str], None]
) -> dict[str, Json]:
    """Wait until the journal has an end for every partition; gives the ends by name.

    Raises:
        DataError: if one was refused, or nothing came of it in time.
    """
    wanted, after, found = set(names), 0, dict[str, Json]()
    end = time.monotonic() + wait
    while wanted - set(found):
        for event in journal.read(after=after):
            after = event.seq
            for name, outcome in _outcomes(event):
                if name in wanted and name not in found:
                    found[name] = outcome
                    refused = f"; refused: {outcome['refused']}" if outcome["refused"] else ""
                    say(f"{name}  {outcome['rows']:,} rows, {outcome['quarantined']} quarantined{refused}")
        if time.monotonic() > end:
            left = ", ".join(sorted(wanted - set(found))[:5])
            raise DataError(f"nothing came of {left} in {wait:g} s. Does the pipeline run? ctrain status")
        time.sleep(0.25)
    bad = [name for name, outcome in found.items() if outcome["refused"]]
    if bad:
        raise DataError(f"{len(bad)} of {len(found)} partitions were refused: {', '.join(bad[:5])}")
    return found


def _outcomes(event: Event) -> Iterator[tuple[str, Json]]:
    if event.kind in ("partition_committed", "partition_refused"):
        item = event.data["partition"]
        report = item["report"]
        outcome = {
            "rows": report["accepted"],
            "quarantined": sum(report["reasons"].values()),
            "refused": item["refused"],
            "dataset_version": item["dataset_version"],
        }
        yield item["name"], outcome
