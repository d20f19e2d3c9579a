import json
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctrain.errors import FeatureError, UserCodeError
from ctrain.features import (
    Column,
    PartitionStatistics,
    arrays_from_rows,
    arrays_from_table,
    columns_from_json,
    columns_to_json,
    feature_view,
    load_view,
)
from ctrain.models.encoder import Encoder
from ctrain.records import canonical


@feature_view(
    carrier=Column.category(nullable=True),
    distance=Column.number(unit="miles", minimum=0, nullable=True),
    at=Column.timestamp(),
    late=Column.flag(nullable=True),
)
def view(rows):
    hour = rows["at"].astype("datetime64[h]").astype(int) % 24
    return {
        "carrier": rows["carrier"],
        "distance": np.log1p(rows["distance"]),
        "hour": hour,
        "late": rows["late"],
    }


ROWS = [
    {"carrier": "UA", "distance": 100.5, "at": "2013-03-01T05:15:00", "late": True},
    {"carrier": None, "distance": None, "at": "2013-03-01T07:15:00+02:00", "late": None},
    {"carrier": "é", "distance": 3.0, "at": "2013-03-01T23:59:59", "late": False},
]


def test_a_request_and_a_table_give_the_same_bits() -> None:
    table = pa.table(
        {
            "carrier": ["UA", None, "é"],
            "distance": [100.5, None, 3.0],
            "at": pa.array(["2013-03-01T05:15:00", "2013-03-01T05:15:00", "2013-03-01T23:59:59"]).cast(
                pa.timestamp("ns")
            ),
            "late": [True, None, False],
        }
    )
    batch = view(arrays_from_table(view.columns, table))
    for index, row in enumerate(ROWS):
        one = view(arrays_from_rows(view.columns, [row]))
        for name in batch:
            np.testing.assert_array_equal(one[name], batch[name][index : index + 1])


def test_a_view_that_changes_the_number_of_rows_is_refused() -> None:
    @feature_view(x=Column.number())
    def short(rows):
        return {"x": rows["x"][:1]}

    with pytest.raises(FeatureError, match="shape"):
        short({"x": np.array([1.0, 2.0])})


def test_columns_survive_json() -> None:
    assert columns_from_json(columns_to_json(view.columns)) == view.columns


def test_a_missing_view_is_named_with_what_the_module_has() -> None:
    with pytest.raises(UserCodeError, match="it has: view"):
        load_view(f"{__name__}:vew")


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.one_of(st.floats(-1e6, 1e6), st.just(math.nan)), min_size=1, max_size=300),
    st.integers(1, 299),
)
def test_merged_statistics_are_those_of_the_whole(values: list[float], cut: int) -> None:
    array = np.array(values)
    names = np.array([str(int(v) % 7) if np.isfinite(v) else "" for v in array])
    whole = PartitionStatistics.of({"x": array, "c": names})
    cut = min(cut, len(values))
    halves = [(array[:cut], names[:cut]), (array[cut:], names[cut:])]
    parts = [PartitionStatistics.of({"x": x, "c": c}) for x, c in halves if len(x)]
    merged = PartitionStatistics.merge(parts)
    assert merged.categories == whole.categories
    one, other = merged.numbers["x"], whole.numbers["x"]
    assert (one.rows, one.missing) == (other.rows, other.missing)
    assert one.mean == pytest.approx(other.mean, abs=1e-6)
    assert one.deviation == pytest.approx(other.deviation, rel=1e-6, abs=1e-6)
    assert PartitionStatistics.from_json(merged.to_json()) == merged


def test_quantiles_of_merged_parts_stay_within_a_rank_of_one_percent() -> None:
    rng = np.random.default_rng(0)
    parts = [rng.gamma(2.0, size=3000) for _ in range(10)]
    merged = PartitionStatistics.merge([PartitionStatistics.of({"x": part}) for part in parts])
    shares = np.linspace(0.05, 0.95, 19)
    found = merged.numbers["x"].quantiles(shares)
    ranks = np.searchsorted(np.sort(np.concatenate(parts)), found) / 30000
    assert np.abs(ranks - shares).max() < 0.01


def test_the_encoder_gives_one_row_the_bits_of_the_batch() -> None:
    rng = np.random.default_rng(1)
    features = {
        "c": rng.choice(["a", "b", "ü", "rare", ""], size=500, p=[0.4, 0.3, 0.2, 0.01, 0.09]),
        "x": np.where(rng.random(500) < 0.1, np.nan, rng.normal(size=500) * 1e3),
    }
    encoder = Encoder.fit(PartitionStatistics.of(features), bins=8, minimum_count=20)
    assert encoder.vocabularies["c"] == ("a", "b", "ü")
    again = Encoder.from_json(encoder.to_json())
    batch = encoder.encode(features)
    for index in range(500):
        row = again.encode({name: values[index : index + 1] for name, values in features.items()})
        assert row.tobytes() == batch[index : index + 1].tobytes()
        one = again.encode_one({name: values[index : index + 1] for name, values in features.items()})
        assert one is not None
        assert one.tobytes() == row.tobytes()


def test_a_constant_or_absent_number_still_encodes() -> None:
    features = {"x": np.full(50, 3.0), "y": np.full(50, np.nan)}
    encoder = Encoder.fit(PartitionStatistics.of(features), bins=8, minimum_count=1)
    matrix = encoder.encode(features)
    assert np.all(matrix[:, 0] == 0)
    assert np.all(np.isnan(matrix[:, 1]))


def test_one_row_that_is_unusual_is_left_to_the_way_with_checks() -> None:
    features = {"c": np.array(["a", "b"] * 10), "x": np.arange(20.0), "y": np.arange(20.0)}
    encoder = Encoder.fit(PartitionStatistics.of(features), bins=4, minimum_count=1)
    good = {"c": np.array(["a"]), "x": np.array([1.0]), "y": np.array([2])}
    assert encoder.encode_one(good) is not None
    for bad in (
        {"x": np.array([1.0, 2.0])},
        {"x": np.array(["1"])},
        {"x": 1.0},
        {"c": np.array(["a", "b"])},
        {"c": np.array([b"a"])},
        {"c": np.array(["a"], dtype=object)},
        {"c": np.array([1.0])},
        {"x": np.array([1.0, 2.0]), "y": np.array([])},
    ):
        assert encoder.encode_one({**good, **bad}) is None
    assert encoder.encode_one({"c": good["c"], "x": good["x"]}) is None


def test_values_that_are_not_finite_are_missing_and_far_ones_are_cut_in_a_batch_and_in_a_row() -> None:
    values = [math.inf, -math.inf, math.nan, 1e300, -1e300, 5.0, 1e39, 3e6, 2e7, 0.0]
    features = {"x": np.array(values), "y": np.arange(10.0), "z": np.full(10, -1e308)}
    encoder = Encoder(
        {}, {"x": (1.0, 2.0), "y": (0.0, 1.0), "z": (1e308, 1e-3)}, dict.fromkeys("xyz", (0.0, 1.0))
    )
    batch = encoder.encode(features)
    x = batch[:, 0].tolist()
    assert all(map(math.isnan, x[:3]))
    assert x[3:] == [1e6, -1e6, 2.0, 1e6, 1e6, 1e6, -0.5]
    assert batch[:, 2].tolist() == [-1e6] * 10
    near = {name: encoder.scales[name] for name in "xy"}
    encoder = Encoder({}, near, dict.fromkeys("xy", (0.0, 1.0)))
    for index in range(10):
        row = {name: features[name][index : index + 1] for name in "xy"}
        assert encoder.encode(row).tobytes() == batch[index, :2].tobytes()
        one = encoder.encode_one(row)
        assert (one is None) == (index in (0, 1, 3, 4, 6, 7, 8))
        assert one is None or one.tobytes() == batch[index, :2].tobytes()


def test_statistics_of_huge_features_stay_finite() -> None:
    found = PartitionStatistics.of({"x": np.array([1e300, -1e300, 1.0])})
    merged = PartitionStatistics.merge([found, found])
    assert PartitionStatistics.from_json(json.loads(canonical(merged.to_json()))) == merged


VIEW = """
from ctrain.features import Column, feature_view
SCALE = {scale}
def helper(x): return x {helper}
@feature_view(x=Column.number())
def {name}(rows): return {{"x": helper(rows["x"]) * SCALE}}
"""


def test_the_hash_of_a_view_sees_helpers_and_constants_of_its_module(tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))

    def hash_of(module: str, scale: int, helper: str, name: str = "view") -> str:
        (tmp_path / f"{module}.py").write_text(VIEW.format(scale=scale, helper=helper, name=name))
        return load_view(f"{module}:{name}").hash

    first = hash_of("view_a", 1, "+ 1")
    assert hash_of("view_b", 1, "+ 1") == first
    others = {hash_of("view_c", 2, "+ 1"), hash_of("view_d", 1, "+ 2"), hash_of("view_e", 1, "+ 1", "other")}
    assert len({first, *others}) == 4


def test_a_view_without_a_file_has_a_hash_of_its_code() -> None:
    def hash_of(scale: int) -> str:
        names: dict[str, Any] = {}
        exec(VIEW.format(scale=1, helper="", name="view").replace("* SCALE", f"* {scale}"), names)
        return names["view"].hash

    assert hash_of(1) == hash_of(1) != hash_of(2)
