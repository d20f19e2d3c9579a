import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.stats import ks_2samp

from ctrain.monitoring.profile import jensen_shannon, population_stability, smirnov
from ctrain.monitoring.summary import (
    BINS,
    SEGMENTS,
    Layout,
    Summary,
    as_column,
    as_text,
    merge,
    summarise,
)

RANDOM = np.random.default_rng(5)
SEEDS = st.integers(0, 2**32 - 1)


def table(rows: int, seed: int = 0) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    price = random.lognormal(size=rows)
    price[random.random(rows) < 0.1] = np.nan
    kind = random.choice(["a", "bb", "ccc", ""], rows, p=[0.5, 0.3, 0.1, 0.1])
    return {"price": price, "age": random.integers(0, 9, rows).astype(float), "kind": kind}


def keys(rows: int, seed: int = 0) -> dict[str, Any]:
    return {"region": np.random.default_rng(seed + 1).choice(["north", "south", "west"], rows)}


LAYOUT = Layout.fit(table(4000), keys(4000))


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.lists(st.integers(0, 300), min_size=1, max_size=4))
def test_merging_windows_is_summarising_all_their_rows(seed: int, sizes: list[int]) -> None:
    total = sum(sizes)
    columns, segments = table(total, seed), keys(total, seed)
    ends = np.cumsum(sizes)
    pieces = [
        summarise(
            LAYOUT,
            {name: values[end - size : end] for name, values in columns.items()},
            {name: values[end - size : end] for name, values in segments.items()},
        )
        for size, end in zip(sizes, ends, strict=True)
    ]
    whole = summarise(LAYOUT, columns, segments)
    np.testing.assert_allclose(merge(pieces).values, whole.values, rtol=1e-9, atol=1e-9)


def test_counts_are_those_of_the_rows() -> None:
    columns, segments = table(500, 3), keys(500, 3)
    parts = summarise(LAYOUT, columns, segments).parts()
    assert parts.rows == 500
    assert parts.missing_F.tolist() == [
        np.isnan(columns["price"]).sum(),
        0,
        (columns["kind"] == "").sum(),
    ]
    assert parts.bins_FB[2, :4].tolist() == [
        (columns["kind"] == name).sum() for name in ("a", "bb", "ccc")
    ] + [0]
    north = LAYOUT.segment_names.index("region=north")
    inside = columns["age"][segments["region"] == "north"]
    feature = LAYOUT.features[1]
    assert parts.rows_S[north] == len(inside)
    assert parts.sums_SF[north, 1] == pytest.approx(((inside - feature.center) / feature.scale).sum())


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.floats(-1.5, 1.5), st.floats(0.3, 3.0))
def test_the_distance_from_bins_is_within_a_bin_of_the_exact_one(
    seed: int, shift: float, scale: float
) -> None:
    random = np.random.default_rng(seed)
    here, there = random.normal(size=2000), shift + scale * random.standard_t(4, size=500)
    layout = Layout.fit({"x": here})
    p, q = (summarise(layout, {"x": side}).parts().bins_FB[0] for side in (there, here))
    exact = ks_2samp(here, there).statistic
    # Between two edges the reference's distribution function rises by at most 1/24, and the window's is
    # between its values at the edges: so the bins lose at most the larger of the two rises.
    lost = max(1 / BINS + 1e-3, float((p / p.sum()).max()))
    assert exact - lost <= smirnov(p, q) <= exact + 1e-9


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(2, 20))
def test_indices_from_summaries_of_categories_are_the_exact_ones(seed: int, size: int) -> None:
    random = np.random.default_rng(seed)
    names = np.array([f"c{number}" for number in range(size)])
    shares = random.dirichlet(np.ones(size), 2)
    here, there = (random.choice(names, 3000, p=p) for p in shares)
    layout = Layout.fit({"x": here})
    q, p = (summarise(layout, {"x": side}).parts().bins_FB[0] for side in (here, there))
    counts = [np.array([(side == name).sum() for name in names], float) for side in (here, there)]
    assert jensen_shannon(p, q) == pytest.approx(jensenshannon(*counts, base=2), abs=1e-6)
    smoothed = [(count + 0.5) / (3000 + 0.5 * size) for count in counts]
    exact = float(((smoothed[1] - smoothed[0]) * np.log(smoothed[1] / smoothed[0])).sum())
    known = int((counts[0] > 0).sum())
    used = slice(0, known + (known < size))
    if known == size:
        assert population_stability(p[used], q[used]) == pytest.approx(exact, abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.floats(0.0, 1.0))
def test_jensen_shannon_from_bins_is_at_most_that_of_finer_bins(seed: int, shift: float) -> None:
    random = np.random.default_rng(seed)
    here, there = random.normal(size=20_000), shift + random.normal(size=20_000)
    layout = Layout.fit({"x": here})
    p, q = (summarise(layout, {"x": side}).parts().bins_FB[0] for side in (there, here))
    edges = np.sort(np.concatenate([layout.features[0].edges, np.linspace(-4, 5, 60)]))
    fine = [np.bincount(np.searchsorted(edges, side), minlength=84) for side in (there, here)]
    exact = jensenshannon(*fine, base=2)  # data processing: merging bins loses divergence, never adds
    assert exact - 0.05 <= jensen_shannon(p, q) <= exact + 1e-9


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.sampled_from(["normal", "heavy", "integers", "constant", "narrow"]))
def test_bins_are_those_of_a_search_among_the_edges(seed: int, kind: str) -> None:
    random = np.random.default_rng(seed)
    draws = {
        "normal": lambda size: random.normal(size=size),
        "heavy": lambda size: random.standard_cauchy(size) ** 3,
        "integers": lambda size: random.poisson(3, size).astype(float),
        "constant": lambda size: np.full(size, 7.0),
        "narrow": lambda size: 1.4e9 + random.normal(size=size),
    }
    layout = Layout.fit({"x": draws[kind](500)})
    edges = np.array(layout.features[0].edges)
    window = np.concatenate([draws[kind](300), edges, np.nextafter(edges, np.inf), [-1e308, 1e308, 0.0]])
    counts = summarise(layout, {"x": window}).parts().bins_FB[0]
    assert counts.tolist() == np.bincount(np.searchsorted(edges, window), minlength=BINS).tolist()


def test_a_layout_and_a_summary_come_back_from_json() -> None:
    layout = Layout.from_json(json.loads(json.dumps(LAYOUT.to_json())))
    assert layout == LAYOUT
    summary = summarise(LAYOUT, table(50), keys(50))
    again = Summary.from_json(layout, json.loads(json.dumps(summary.to_json())))
    assert (again.values == summary.values).all()


def test_a_key_with_a_million_values_is_counted_in_few_segments() -> None:
    users = np.char.add("u", np.arange(1_000_000).astype(str))
    first = users[:50_000]
    layout = Layout.fit({"x": np.arange(50_000.0), "user": first}, {"user": first})
    assert len(layout.segment_names) <= SEGMENTS
    summary = summarise(layout, {"x": np.arange(1e6), "user": users}, {"user": users})
    assert summary.parts().rows_S.sum() == 1_000_000
    assert summary.values.nbytes < 10_000


def test_many_keys_together_stay_within_the_bound() -> None:
    segments = {f"k{n}": RANDOM.integers(0, 500, 2000).astype(float) for n in range(30)}
    assert len(Layout.fit({"x": RANDOM.normal(size=2000)}, segments).segment_names) <= SEGMENTS


def test_what_the_reference_does_not_know_is_other() -> None:
    window = table(100)
    window["kind"] = np.array(["a new and rather long value"] * 60 + ["a"] * 40)
    parts = summarise(LAYOUT, window, {"region": np.array(["moon"] * 100)}).parts()
    assert parts.bins_FB[2, :4].tolist() == [40, 0, 0, 60]
    assert parts.rows_S[LAYOUT.segment_names.index("region=other")] == 100


def test_columns_of_python_values_take_none_among_text_and_numbers() -> None:
    assert as_column(["a", None, "b"]).tolist() == ["a", "", "b"]
    assert as_column([None, "b"]).dtype.kind == "U"
    numbers = as_column([1, None, 2.5])
    assert numbers.dtype == np.float64
    assert np.isnan(numbers[1])
    assert as_column([]).dtype == np.float64
    assert as_text(np.array([1.0, np.nan, 2.5])).tolist() == ["1", "", "2.5"]


def test_the_width_of_a_text_column_does_not_matter() -> None:
    narrow = {"kind": np.array(["a", "bb"])}
    wide = {"kind": np.array(["a", "bb"], dtype="<U90")}
    layout = Layout.fit(narrow)
    assert (summarise(layout, narrow).values == summarise(layout, wide).values).all()


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_tiny_windows_are_summarised_without_a_crash(rows: int) -> None:
    summary = summarise(LAYOUT, table(rows), keys(rows))
    assert summary.rows == rows
    assert np.isfinite(summary.values).all()


def test_missing_infinite_constant_and_absent_columns_have_counts() -> None:
    layout = Layout.fit({"empty": np.full(50, np.nan), "same": np.full(50, 3.0), "text": np.array([""] * 50)})
    window = {"empty": np.array([1.0, np.inf, np.nan]), "same": np.array([3.0, 3.0, 1e300])}
    parts = summarise(layout, window).parts()
    assert parts.missing_F.tolist() == [2, 0, 0]
    assert np.isfinite(parts.sums_F2).all()
    assert parts.bins_FB[2].sum() == 0
    assert parts.rows == 3
