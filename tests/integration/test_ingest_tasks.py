import datetime as dt
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from factories import spec

from ctrain.controller.rooms import IngestRequest
from ctrain.data import Dataset, FileSource, ingest, seal_partition

VIEW = """
from ctrain.features import Column, feature_view
@feature_view(x=Column.number(minimum=0))
def view(rows): return {"x": rows["x"]}
"""


@pytest.mark.usefixtures("ray_session")
def test_rows_land_once_and_bad_ones_are_quarantined(tmp_path: Path, monkeypatch) -> None:
    landing, code = tmp_path / "landing", tmp_path / "code"
    code.mkdir()
    (code / "ingest_view.py").write_text(VIEW)
    monkeypatch.syspath_prepend(str(code))
    monkeypatch.setenv("PYTHONPATH", str(code))
    import ingest_view
    import ray.cloudpickle

    ray.cloudpickle.register_pickle_by_value(sys.modules[ingest_view.__name__])
    folder = landing / "2013-03-14"
    folder.mkdir(parents=True)
    times = [dt.datetime(2013, 3, 14, hour) for hour in range(5)]
    xs, labels = [1.0, -1.0, float("inf"), 2.0, 3.0], [1, 0, 1, None, 0]
    pq.write_table(pa.table({"x": xs, "t": times, "y": labels}), folder / "a.parquet")
    seal_partition(folder)
    raw = {"type": "files", "path": str(landing), "event_time": "t"}
    pipeline = spec(source=raw, features="ingest_view:view", contract={"max_refused": 0.5})
    (sighting,) = FileSource(pipeline).look({})
    assert sighting.partition is not None
    request = IngestRequest("k", "p", str(tmp_path / "root"), pipeline.to_json(), "", (sighting.partition,))
    task = ray.remote(num_cpus=0)(ingest).options(runtime_env={"env_vars": {"PYTHONPATH": str(code)}})
    (first,) = ray.get(task.remote(request))
    (again,) = ray.get(task.remote(request))
    assert first == again
    assert first.refused == ""
    assert first.report.reasons == {"x: below 0": 1, "x: not finite": 1, "label is null": 1}
    from ctrain.storage import Root

    found = Dataset(Root(tmp_path / "root"), "p", first.dataset_version).table("2013-03-14")
    assert found.column("x").to_pylist() == [1.0, 3.0]
