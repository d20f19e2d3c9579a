import datetime as dt
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import spec
from landed import GOOD, NOON, Landing

from ctrain.data import Dataset
from ctrain.errors import PartitionError
from ctrain.features import Column, PartitionStatistics, RowReader, feature_view
from ctrain.models.encoder import Encoder

DAY = "2013-03-14"
COLUMNS = {
    "kind": Column.category(nullable=True),
    "size": Column.number(),
    "weight": Column.number(nullable=True),
    "vip": Column.flag(nullable=True),
    "t": Column.timestamp(),
}


@feature_view(**COLUMNS)
def view(rows):
    with np.errstate(divide="ignore"):
        logarithm = np.log(rows["size"])
    hour = rows["t"].astype("datetime64[h]").astype(int) % 24
    return {
        "kind": rows["kind"],
        "pair": np.char.add(rows["kind"], rows["kind"]),
        "log": logarithm,
        "weight": rows["weight"] * 1e-3,
        "vip": rows["vip"],
        "hour": hour,
    }


def feature_of(**columns: Column) -> Any:
    """A view of these columns that gives each number as it is."""
    return feature_view(**columns)(lambda rows: {name: rows[name] for name in columns})


def test_a_request_gives_the_bits_of_contract_table_cache_and_encoder(tmp_path: Path) -> None:
    landing = Landing(tmp_path)
    landing.spec = spec(
        source=landing.spec.source.model_dump(), features=f"{__name__}:view",
        contract={"columns": {"kind": {"dtype": "category", "nullable": True}}},
    )  # fmt: skip
    random = np.random.default_rng(0)
    rows: list[dict[str, Any]] = [
        {
            "kind": [None, "a", "é", "rare \0", "UA"][number % 5],
            "size": [0.0, 1e30, 1e-300, 0.1 + 0.2, float(random.gamma(2.0))][number % 5],
            "weight": [None, 3.3, -1e30, float(random.normal()), 0.0][number % 5],
            "vip": [None, 1.0, 0.0][number % 3],
            "t": NOON + dt.timedelta(microseconds=int(random.integers(0, 10**10))),
            "y": float(number % 2),
        }
        for number in range(60)
    ]
    first = landing.ingest(landing.land(DAY, rows))
    assert first.report.reasons == {}
    for _ in ("computed", "from the cache"):
        dataset = Dataset(landing.root, "p", first.dataset_version)
        features = dataset.features(DAY, view, "y")
        statistics = dataset.statistics(DAY, view, "y")
        encoder = Encoder.fit(PartitionStatistics.merge([statistics]), bins=8, minimum_count=2)
        batch = encoder.encode(features.arrays)
        assert np.isnan(batch).any()
        assert not np.isinf(batch).any()
        read = RowReader(view.columns)
        for number, row in enumerate(rows):
            request = {name: row[name] for name in COLUMNS} | {"t": row["t"].isoformat()}
            arrays = read([request])
            wanted = batch[number : number + 1].tobytes()
            assert encoder.encode(view(arrays)).tobytes() == wanted
            one = encoder.encode_one(view.function(arrays))
            assert (one is None) == (row["size"] == 0.0)
            assert one is None or one.tobytes() == wanted
        assert features.label.tolist() == [row["y"] for row in rows]


def test_a_view_that_gains_a_nullable_column_reads_old_partitions_as_null(tmp_path: Path) -> None:
    landing = Landing(tmp_path)
    first = landing.ingest(landing.land(DAY, [GOOD]))
    columns = {
        "size": Column.number(), "height": Column.number(nullable=True),
        "town": Column.category(nullable=True), "seen": Column.timestamp(nullable=True),
    }  # fmt: skip
    dataset = Dataset(landing.root, "p", first.dataset_version)
    arrays = dataset.arrays(DAY, columns)
    assert arrays["size"].tolist() == [1.0]
    assert math.isnan(arrays["height"][0])
    assert arrays["town"].tolist() == [""]
    assert np.isnat(arrays["seen"][0])
    wider = feature_of(size=columns["size"], height=columns["height"])
    assert math.isnan(dataset.features(DAY, wider, "y").arrays["height"][0])


def test_a_view_that_gains_a_column_that_is_never_null_names_column_partition_and_remedy(
    tmp_path: Path,
) -> None:
    landing = Landing(tmp_path)
    first = landing.ingest(landing.land(DAY, [GOOD]))
    dataset = Dataset(landing.root, "p", first.dataset_version)
    with pytest.raises(
        PartitionError, match=rf"partition {DAY}: .* lacks column 'height'.*Declare it nullable"
    ):
        dataset.features(DAY, feature_of(height=Column.number()), "y")
    with pytest.raises(PartitionError, match=r"column 'size' landed as double, .* wants a category"):
        dataset.features(DAY, feature_of(size=Column.category()), "y")


def test_a_view_that_drops_a_column_leaves_the_older_view_what_the_data_has(tmp_path: Path) -> None:
    landing = Landing(tmp_path)
    older = feature_of(size=Column.number(), weight=Column.number(nullable=True))
    landing.ingest(landing.land(DAY, [GOOD]))
    landing.spec = spec(source=landing.spec.source.model_dump(), features=f"{__name__}:narrow")
    later = landing.ingest(landing.land("2013-03-15", [GOOD]))
    dataset = Dataset(landing.root, "p", later.dataset_version)
    assert "weight" not in dataset.table("2013-03-15").column_names
    assert dataset.features(DAY, older, "y").arrays["weight"].tolist() == [2.0]
    assert math.isnan(dataset.features("2013-03-15", older, "y").arrays["weight"][0])


narrow = feature_of(size=Column.number())


def test_features_are_kept_for_the_code_that_computed_them(tmp_path: Path) -> None:
    landing = Landing(tmp_path)
    first = landing.ingest(landing.land(DAY, [GOOD]))
    factor, calls = [1.0], []

    @feature_view(size=Column.number())
    def scaled(rows):
        calls.append(1)
        return {"size": rows["size"] * factor[0]}

    def size(code: str) -> float:
        dataset = Dataset(landing.root, "p", first.dataset_version, code)
        return float(dataset.features(DAY, scaled, "y").arrays["size"][0])

    assert (size("a"), size("a"), len(calls)) == (1.0, 1.0, 1)
    factor[0] = 3.0  # what another module of the code holds
    assert (size("b"), size("a"), len(calls)) == (3.0, 1.0, 2)
