"""Landed folders: which partitions of a source are sealed and new.

Takes a folder or URL with one sub-folder a partition, gives sightings; refuses unsealed, truncated
and oddly named ones with the reason. A seal is `_SEALED.json`, written last.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from datetime import date
from pathlib import Path
from typing import Any

import fsspec

from ctrain.errors import PartitionError
from ctrain.records import Partition, Sighting, SourceFile, sha256_of
from ctrain.spec import PipelineSpec
from ctrain.storage import file_sha256, write_atomically

SEAL = "_SEALED.json"


class FileSource:
    """Looks at the landing folder; implements the controller's Source."""

    def __init__(self, spec: PipelineSpec) -> None:
        self.path = spec.source.path.rstrip("/")
        self._fs, self._base = fsspec.core.url_to_fs(self.path)

    def look(self, known: dict[str, str]) -> list[Sighting]:
        """Sightings of partitions whose (name, hash) is not known, oldest first."""
        self._fs.invalidate_cache()
        if not self._fs.isdir(self._base):
            return [Sighting("", None, f"source {self.path}: no such folder")]
        sightings = []
        for entry in sorted(self._fs.ls(self._base, detail=True), key=lambda item: str(item["name"])):
            name = str(entry["name"]).rstrip("/").rsplit("/", 1)[-1]
            if entry["type"] != "directory" or name.startswith((".", "_")):
                continue
            sighting = self._sight(name)
            if sighting.partition is not None and name in known:
                if sighting.partition.sha256 == known[name]:
                    continue
                problem = f"landed again with other content ({sighting.partition.sha256[:12]}); "
                problem += f"{known[name][:12]} stands. Land corrections as a new partition"
                sighting = Sighting(name, None, problem)
            sightings.append(sighting)
        return sightings

    def _sight(self, name: str) -> Sighting:
        folder = f"{self._base}/{name}"
        try:
            date.fromisoformat(name)
        except ValueError:
            return Sighting(name, None, "folder name is no day; expected e.g. 2013-03-14")
        try:
            files = _parse_seal(self._fs.cat_file(f"{folder}/{SEAL}"))
            sizes = {
                str(item["name"]).rsplit("/", 1)[-1]: item["size"]
                for item in self._fs.ls(folder, detail=True)
            }
        except FileNotFoundError:
            return Sighting(name, None, f"unsealed: no {SEAL}")
        except (ValueError, KeyError, TypeError) as error:
            return Sighting(name, None, f"unreadable seal: {type(error).__name__}: {error}")
        for file in files:
            if file.name not in sizes:
                return Sighting(name, None, f"file {file.name} is missing")
            if sizes[file.name] != file.size:
                found = f"{sizes[file.name]} bytes, its seal says {file.size}"
                return Sighting(name, None, f"file {file.name} is truncated or grew: {found}")
        rows = sum(file.rows for file in files)
        if not rows:
            return Sighting(name, None, "empty: its seal names no rows")
        content = sha256_of([[file.name, file.sha256] for file in files])
        return Sighting(name, Partition(name, f"{self.path}/{name}", files, content, rows))


def _parse_seal(data: bytes) -> tuple[SourceFile, ...]:
    files = []
    for entry in json.loads(data)["files"]:
        file = SourceFile(entry["name"], int(entry["size"]), entry["sha256"], int(entry["rows"]))
        if not file.name or "/" in file.name or "\\" in file.name or file.name.startswith("."):
            raise ValueError(f"file name {file.name!r} leaves the partition's folder")
        files.append(file)
    if len({file.name for file in files}) != len(files):
        raise ValueError("a file is named twice")
    return tuple(sorted(files, key=lambda file: file.name))


def seal_partition(folder: Path) -> None:
    """Write the seal of a folder of parquet and CSV files; nothing may be added to it afterwards."""
    entries: list[dict[str, Any]] = []
    for file in sorted(folder.iterdir()):
        if file.suffix in (".parquet", ".csv") and not file.name.startswith((".", "_")):
            entries.append(
                {
                    "name": file.name,
                    "size": file.stat().st_size,
                    "sha256": file_sha256(file),
                    "rows": _rows(file),
                }
            )
    write_atomically(folder / SEAL, json.dumps({"files": entries}, indent=1).encode())


def _rows(file: Path) -> int:
    import pyarrow.parquet as pq

    if file.suffix == ".csv":
        import pyarrow.csv

        return int(pyarrow.csv.read_csv(file).num_rows)
    return int(pq.read_metadata(file).num_rows)


def read_bytes(partition: Partition, file: SourceFile) -> bytes:
    """Bytes of one file of a partition, checked against its seal and safe to parse.

    Raises:
        PartitionError: if they are not what the seal says, or carry Arrow extension types.
    """
    path = f"{partition.path}/{file.name}"
    try:
        with fsspec.open(path, "rb") as stream:
            data: bytes = stream.read()
    except OSError as error:
        raise PartitionError(partition.name, f"{file.name} cannot be read: {error}") from None
    found = hashlib.sha256(data).hexdigest()
    if found != file.sha256:
        problem = f"{file.name} has sha256 {found[:12]}, its seal says {file.sha256[:12]}"
        raise PartitionError(partition.name, problem)
    if not file.name.endswith(".csv"):
        _refuse_extensions(partition.name, file.name, data)
    return data


def _refuse_extensions(partition: str, name: str, data: bytes) -> None:
    """Arrow extension types, nested ones too, may unpickle what they hold when values are read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        metadata = pq.read_metadata(io.BytesIO(data)).metadata or {}
    except (pa.ArrowException, OSError) as error:
        raise PartitionError(partition, f"{name} is no readable parquet file: {error}") from None
    if b"ARROW:extension" in base64.b64decode(metadata.get(b"ARROW:schema", b"")):
        raise PartitionError(partition, f"{name} carries an Arrow extension type, which may run code")
