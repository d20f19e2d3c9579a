from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from factories import spec

from ctrain.data.land import FileSource, read_bytes, seal_partition
from ctrain.errors import PartitionError


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


def test_a_partition_that_lands_again_with_other_content_is_a_problem(tmp_path: Path) -> None:
    land(tmp_path)
    (sighting,) = source(tmp_path).look({"2013-03-14": "0" * 64})
    assert sighting.partition is None
    assert "other content" in sighting.problem


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
