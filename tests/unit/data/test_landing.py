import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from factories import spec

from ctrain.data.land import FileSource, read_bytes, seal_partition
from ctrain.errors import PartitionError
from ctrain.records import Sighting


def land(root: Path, name: str = "2013-03-14", rows: int = 3) -> Path:
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"x": np.arange(float(rows))}), folder / "a.parquet")
    seal_partition(folder)
    return folder


def source(root: Path) -> FileSource:
    return FileSource(spec(source={"type": "files", "path": str(root), "event_time": "t"}))


def test_a_missing_source_is_one_sighting_without_a_name(tmp_path: Path) -> None:
    (sighting,) = source(tmp_path / "absent").look({})
    assert sighting.name == ""
    assert "no such folder" in sighting.problem


def test_a_sealed_partition_is_seen_until_it_is_known(tmp_path: Path) -> None:
    land(tmp_path)
    (sighting,) = source(tmp_path).look({})
    assert sighting.partition is not None
    assert sighting.partition.rows == 3
    assert source(tmp_path).look({sighting.name: sighting.partition.sha256}) == []


def test_a_known_name_with_another_hash_is_seen_with_its_partition(tmp_path: Path) -> None:
    land(tmp_path)
    (sighting,) = source(tmp_path).look({"2013-03-14": "0" * 64})
    assert sighting.partition is not None
    assert sighting.problem == ""


class Watched(FileSource):
    """A source that counts how often it reads, lists and stats; `away` makes paths fail."""

    def __init__(self, root: Path) -> None:
        super().__init__(spec(source={"type": "files", "path": str(root), "event_time": "t"}))
        self.calls: list[tuple[str, str]] = []
        self.away: dict[str, Exception] = {}
        self._real, self._fs = self._fs, self

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            if args:
                self.calls.append((name, Path(str(args[0])).name))
                for part, error in self.away.items():
                    if part in str(args[0]):
                        raise error
            return getattr(self._real, name)(*args, **options)

        return call


def test_a_known_partition_costs_one_stat_of_its_seal(tmp_path: Path) -> None:
    land(tmp_path, "2013-03-14")
    land(tmp_path, "2013-03-15")
    watched = Watched(tmp_path)
    known = {s.name: s.partition.sha256 for s in watched.look({}) if s.partition is not None}
    watched.calls.clear()
    assert watched.look(known) == []
    assert watched.calls[2:] == [("info", "_SEALED.json")] * 2
    land(tmp_path, "2013-03-15", rows=5)
    (again,) = watched.look(known)
    assert again.partition is not None
    assert again.partition.rows == 5


def test_what_was_read_of_a_seal_goes_with_its_folder(tmp_path: Path) -> None:
    land(tmp_path)
    watched = Watched(tmp_path)
    watched.look({})
    assert set(watched._seals) == {"2013-03-14"}
    shutil.rmtree(tmp_path / "2013-03-14")
    assert watched.look({}) == []
    assert watched._seals == {}


@pytest.mark.parametrize("error", [PermissionError(13, "denied"), TimeoutError("slow"), RuntimeError("odd")])
def test_what_is_wrong_with_one_folder_concerns_it_alone(tmp_path: Path, error: Exception) -> None:
    land(tmp_path, "2013-03-14")
    land(tmp_path, "2013-03-15")
    watched = Watched(tmp_path)
    watched.away["2013-03-14"] = error
    bad, good = watched.look({})
    assert bad == Sighting("2013-03-14", None, f"cannot be read: {type(error).__name__}: {error}")
    assert good.partition is not None
    watched.away.clear()
    assert [sighting.problem for sighting in watched.look({})] == ["", ""]


def test_a_source_that_is_away_is_one_sighting_without_a_name(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    watched.away[tmp_path.name] = OSError("no route to host")
    assert watched.look({}) == [Sighting("", None, f"source {tmp_path}: cannot be read: no route to host")]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sha256", "A" * 64),
        ("sha256", "0" * 63),
        ("sha256", None),
        ("size", True),
        ("size", -1),
        ("size", "3"),
        ("size", 3.0),
        ("rows", False),
        ("rows", -3),
        ("rows", 2**63),
        ("name", 7),
        ("name", ""),
        ("name", "a" * 256),
        ("name", "\ud800"),
        ("name", "a\nb"),
        ("name", "../a"),
        ("name", ".a"),
    ],
)
def test_a_seal_is_checked_for_types(tmp_path: Path, field: str, value: Any) -> None:
    seal = land(tmp_path) / "_SEALED.json"
    (entry,) = json.loads(seal.read_text())["files"]
    seal.write_text(json.dumps({"files": [{**entry, field: value}]}))
    (sighting,) = source(tmp_path).look({})
    assert sighting.partition is None
    assert sighting.problem.startswith("unreadable seal: ValueError: ")
    json.dumps(sighting.problem, ensure_ascii=False).encode()


@pytest.mark.parametrize("data", [b"\xff\xfe", b"[" * 100_000, b"[]", b"7", b'{"files": {"a": 1}}', b""])
def test_a_seal_of_odd_bytes_is_a_problem_of_its_folder(tmp_path: Path, data: bytes) -> None:
    (land(tmp_path, "2013-03-14") / "_SEALED.json").write_bytes(data)
    folder = tmp_path / "2013-03-15" / "_SEALED.json"
    folder.mkdir(parents=True)
    land(tmp_path, "2013-03-16")
    odd, directory, good = source(tmp_path).look({})
    assert odd.problem.startswith("unreadable seal: ")
    assert directory.problem.startswith("cannot be read: IsADirectoryError")
    assert good.partition is not None


@pytest.mark.parametrize("name", ["20130314", "2013-W11-4", "2013-3-14", "2013-03-14 ", "2013-02-30"])
def test_a_day_has_one_spelling(tmp_path: Path, name: str) -> None:
    land(tmp_path, name)
    (sighting,) = source(tmp_path).look({})
    assert sighting.problem == "folder name is no day; expected e.g. 2013-03-14"


def test_names_of_any_bytes_give_problems_that_json_can_hold(tmp_path: Path) -> None:
    os.mkdir(os.fsencode(tmp_path) + b"/march-\xff")  # noqa: PTH102
    (sighting,) = source(tmp_path).look({})
    assert json.dumps([sighting.name, sighting.problem], ensure_ascii=False).encode()


def test_unsealed_truncated_empty_and_badly_sealed_folders_say_why(tmp_path: Path) -> None:
    (tmp_path / "2013-03-01").mkdir()
    truncated = land(tmp_path, "2013-03-02") / "a.parquet"
    truncated.write_bytes(truncated.read_bytes()[:-1])
    land(tmp_path, "2013-03-03", rows=0)
    (land(tmp_path, "2013-03-04") / "_SEALED.json").write_text("{")
    (tmp_path / "march").mkdir()
    problems = [sighting.problem.split(":")[0] for sighting in source(tmp_path).look({})]
    words = ["unsealed", "file a.parquet is truncated or grew", "empty", "unreadable seal"]
    assert problems == [*words, "folder name is no day; expected e.g. 2013-03-14"]


def test_a_flipped_bit_is_refused(tmp_path: Path) -> None:
    folder = land(tmp_path)
    (sighting,) = source(tmp_path).look({})
    assert sighting.partition is not None
    data = bytearray((folder / "a.parquet").read_bytes())
    data[10] ^= 1
    (folder / "a.parquet").write_bytes(bytes(data))
    with pytest.raises(PartitionError, match="its seal says"):
        read_bytes(sighting.partition, sighting.partition.files[0])


def test_a_source_that_does_not_answer_is_no_fault_of_the_partition(tmp_path: Path) -> None:
    folder = land(tmp_path)
    (sighting,) = source(tmp_path).look({})
    assert sighting.partition is not None
    (folder / "a.parquet").unlink()
    with pytest.raises(FileNotFoundError):
        read_bytes(sighting.partition, sighting.partition.files[0])


def test_nested_extension_types_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "2013-03-14"
    folder.mkdir()
    field = pa.field("x", pa.int64(), metadata={"ARROW:extension:name": "evil"})
    table = pa.table({"s": pa.array([{"x": 1}], pa.struct([field]))})
    pq.write_table(table, folder / "a.parquet")
    seal_partition(folder)
    (sighting,) = source(tmp_path).look({})
    assert sighting.partition is not None
    with pytest.raises(PartitionError, match="extension"):
        read_bytes(sighting.partition, sighting.partition.files[0])
