"""Landed folders: which partitions of a source are sealed and new.

Takes a folder or URL with one sub-folder a partition, gives sightings; refuses unsealed, truncated
and oddly named ones with the reason. A seal is `_SEALED.json`, written last.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import reprlib
from datetime import date
from pathlib import Path
from typing import Any

import fsspec

from ctrain.errors import PartitionError
from ctrain.records import Partition, Sighting, SourceFile, sha256_of
from ctrain.spec import PipelineSpec
from ctrain.storage import file_sha256, write_atomically

SEAL = "_SEALED.json"
LARGEST_SEAL = 1 << 24
"""Bytes; a seal names about a hundred of them a file."""
_LONGEST_NAME = 255
_SHA256 = re.compile("[0-9a-f]{64}")


class FileSource:
    """Looks at the landing folder; implements the controller's Source.

    What was read of a seal is kept, so that a partition that is known costs one stat of its seal.
    """

    def __init__(self, spec: PipelineSpec) -> None:
        self.path = spec.source.path.rstrip("/")
        self._fs, self._base = fsspec.core.url_to_fs(self.path)
        self._seals: dict[str, tuple[_Stamp, Partition]] = {}

    def look(self, known: dict[str, str]) -> list[Sighting]:
        """Look at every folder of the source.

        Args:
            known: Content hash by name, of the partitions that are dealt with.

        Returns:
            Oldest first: sealed partitions whose (name, hash) is not known, also where the name is known
            with another hash, and folders that cannot be used yet with the reason.
        """
        try:
            self._fs.invalidate_cache()
            if not self._fs.isdir(self._base):
                return [Sighting("", None, _printable(f"source {self.path}: no such folder"))]
            entries = self._fs.ls(self._base, detail=True)
        except OSError as error:
            return [Sighting("", None, _printable(f"source {self.path}: cannot be read: {error}"))]
        folders = [str(item["name"]).rstrip("/") for item in entries if item["type"] == "directory"]
        names = sorted(folder.rsplit("/", 1)[-1] for folder in folders)
        names = [name for name in names if not name.startswith((".", "_"))]
        self._seals = {name: self._seals[name] for name in names if name in self._seals}
        sightings = [self._sight(name, known.get(name)) for name in names]
        return [sighting for sighting in sightings if sighting is not None]

    def _sight(self, name: str, known: str | None) -> Sighting | None:
        """Sighting of one folder; None if it is known. Whatever is wrong with it concerns it alone."""
        try:
            partition = self._sealed(name)
            if partition.sha256 == known:
                return None
            self._check_sizes(partition)
        except PartitionError as error:
            return Sighting(_printable(name), None, _printable(error.problem))
        except Exception as error:  # noqa: BLE001 each file system has errors of its own
            problem = f"cannot be read: {type(error).__name__}: {error}"
            return Sighting(_printable(name), None, _printable(problem))
        return Sighting(name, partition)

    def _sealed(self, name: str) -> Partition:
        """The partition as its seal describes it."""
        if not is_day(name):
            raise PartitionError(name, "folder name is no day; expected e.g. 2013-03-14")
        path = f"{self._base}/{name}/{SEAL}"
        try:
            info = self._fs.info(path)
            stamp = _stamp(info)
            if name in self._seals and stamp is not None and self._seals[name][0] == stamp:
                return self._seals[name][1]
            if (info.get("size") or 0) > LARGEST_SEAL:
                raise PartitionError(name, f"unreadable seal: {info['size']} bytes")
            data = self._fs.cat_file(path)
        except FileNotFoundError:
            raise PartitionError(name, f"unsealed: no {SEAL}") from None
        try:
            files = _parse_seal(data)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise PartitionError(name, f"unreadable seal: {type(error).__name__}: {error}") from None
        rows = sum(file.rows for file in files)
        if not rows:
            raise PartitionError(name, "empty: its seal names no rows")
        content = sha256_of([[file.name, file.sha256] for file in files])
        partition = Partition(name, f"{self.path}/{name}", files, content, rows)
        if stamp is not None:
            self._seals[name] = (stamp, partition)
        return partition

    def _check_sizes(self, partition: Partition) -> None:
        entries = self._fs.ls(f"{self._base}/{partition.name}", detail=True)
        sizes = {str(item["name"]).rsplit("/", 1)[-1]: item["size"] for item in entries}
        for file in partition.files:
            if file.name not in sizes:
                raise PartitionError(partition.name, f"file {file.name} is missing")
            if sizes[file.name] != file.size:
                found = f"{sizes[file.name]} bytes, its seal says {file.size}"
                raise PartitionError(partition.name, f"file {file.name} is truncated or grew: {found}")


_Stamp = tuple[Any, ...]


def _stamp(info: dict[str, Any]) -> _Stamp | None:
    """What changes when a file is replaced; None where the file system tells no more than its size."""
    marks = tuple(info.get(key) for key in ("mtime", "ino", "ETag", "etag", "LastModified", "created"))
    return (info.get("size"), *marks) if any(mark is not None for mark in marks) else None


def is_day(name: str) -> bool:
    """Whether a name is a day in its one spelling, e.g. 2013-03-14."""
    try:
        return date.fromisoformat(name).isoformat() == name
    except ValueError:
        return False


def _printable(text: str) -> str:
    """Text that UTF-8 can hold: names of files may hold any bytes."""
    return text.encode("utf-8", "backslashreplace").decode()[:500]


def _parse_seal(data: bytes) -> tuple[SourceFile, ...]:
    files = [
        SourceFile(
            _file_name(entry["name"]),
            _count("size", entry["size"]),
            _sha256(entry["sha256"]),
            _count("rows", entry["rows"]),
        )
        for entry in json.loads(data)["files"]
    ]
    if len({file.name for file in files}) != len(files):
        raise ValueError("a file is named twice")
    return tuple(sorted(files, key=lambda file: file.name))


def _file_name(name: Any) -> str:
    if not isinstance(name, str) or not name.isprintable() or not 0 < len(name.encode()) <= _LONGEST_NAME:
        raise ValueError(f"{reprlib.repr(name)} is no file name")
    if "/" in name or "\\" in name or name.startswith("."):
        raise ValueError(f"file name {name!r} leaves the partition's folder")
    return name


def _sha256(text: Any) -> str:
    if not isinstance(text, str) or not _SHA256.fullmatch(text):
        raise ValueError(f"sha256 is {reprlib.repr(text)}; expected 64 hex digits")
    return text


def _count(what: str, number: Any) -> int:
    if type(number) is not int or not 0 <= number < 2**63:
        raise ValueError(f"{what} is {reprlib.repr(number)}; expected a whole number from 0 on")
    return number


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
        OSError: if the source does not answer; another time it may.
    """
    folder, base = fsspec.core.url_to_fs(partition.path)  # of the folder: a file's name is no URL
    data: bytes = folder.cat_file(f"{base}/{file.name}")
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
