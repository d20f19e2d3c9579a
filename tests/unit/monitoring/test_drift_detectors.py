import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ctrain.monitoring.detectors import Detector, Shape, chosen, sample_rows, statistics_of
from ctrain.spec.monitoring import ChosenDetector

RANDOM = np.random.default_rng(6)


def table(rows: int, shift: float = 0.0, seed: int = 0) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    share = 0.5 + 0.3 * bool(shift)
    return {
        "x": random.normal(size=rows) + shift,
        "large": 1.4e9 + random.normal(size=rows) + shift,
        "kind": random.choice(["a", "b", "c"], rows, p=[share, 0.8 - share, 0.2]),
        "flag": (random.random(rows) < share).astype(float),
    }


def alibi(kind: str, rows: int = 200) -> Callable[[], Detector]:
    from ctrain.monitoring.alibi import AlibiDetector

    return lambda: AlibiDetector(ChosenDetector(type=kind, sample=rows))  # type: ignore[arg-type]


UNIVARIATE = ("ks", "cvm", "chi_square", "fet", "fet_online")
JOINT = ("mmd", "lsdd", "classifier", "mmd_online", "lsdd_online", "cvm_online")


@pytest.fixture(scope="module", params=("shape", *UNIVARIATE, *JOINT))
def detector(request: pytest.FixtureRequest) -> Detector:
    online = request.param in ("mmd_online", "lsdd_online")  # its making costs seconds with many rows
    made: Detector = Shape() if request.param == "shape" else alibi(request.param, 100 if online else 200)()
    made.fit(table(400))
    return made


def test_the_same_window_gives_the_same_statistics_whatever_came_between(detector: Detector) -> None:
    first = detector.score(table(200, seed=1))
    detector.score(table(200, shift=3.0, seed=2))
    assert first
    assert detector.score(table(200, seed=1)) == first


def test_statistics_grow_with_drift(detector: Detector) -> None:
    calm = [detector.score(table(200, seed=seed)) for seed in (3, 4)]
    moved = detector.score(table(200, shift=2.0, seed=5))
    for name, value in moved.items():
        assert value > max(one[name] for one in calm), name


def test_missing_values_and_new_categories_give_finite_statistics(detector: Detector) -> None:
    window = table(200, seed=6)
    window["x"][::3] = np.nan
    window["x"][1::3] = np.inf
    window["kind"] = np.where(np.arange(200) % 4 == 0, "never seen before", window["kind"])
    window["kind"][::7] = ""
    found = detector.score(window)
    assert found
    assert np.isfinite(list(found.values())).all()


def test_missing_values_alone_are_no_drift(detector: Detector) -> None:
    full = detector.score(table(200, seed=7))
    window = table(200, seed=7)
    window["x"][::5] = np.nan
    moved = detector.score(table(200, shift=2.0, seed=7))
    for name, value in detector.score(window).items():
        assert value < (full[name] + moved[name]) / 2, name


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_windows_that_are_too_small_say_nothing(detector: Detector, rows: int) -> None:
    assert detector.score(table(rows)) == {}


def test_constant_and_empty_columns_give_no_nan(detector: Detector) -> None:
    window = table(200, seed=8)
    for name in ("x", "large", "flag"):
        window[name] = np.zeros(200)
    window["kind"] = np.array(["a"] * 200)
    assert np.isfinite(list(detector.score(window).values())).all()
    gone = table(200) | {"x": np.full(200, np.nan), "kind": np.array([""] * 200)}
    assert np.isfinite(list(detector.score(gone).values())).all()


def test_a_window_without_a_column_says_nothing_of_it(detector: Detector) -> None:
    assert all(":x" not in name for name in detector.score({"kind": table(200)["kind"]}))


def test_a_detector_made_anew_gives_the_same_statistics(request: pytest.FixtureRequest) -> None:
    for kind in ("lsdd_online", "classifier"):
        pair = [alibi(kind, 80)() for _ in range(2)]
        for one in pair:
            one.fit(table(400))
        assert pair[0].score(table(100, seed=9)) == pair[1].score(table(100, seed=9))


def test_histories_of_online_detectors_do_not_grow() -> None:
    made: Any = alibi("cvm_online")()
    made.fit(table(400))
    for seed in range(3):
        made.score(table(150, seed=seed))
    inner = made._joint.__closure__[0].cell_contents
    assert len(inner.test_stats) <= 151


def test_statistics_are_alibi_detects_own() -> None:
    from alibi_detect.cd import ChiSquareDrift, CVMDrift, KSDrift, MMDDrift

    here, there = table(200), table(150, shift=0.3, seed=1)
    columns = [side["x"].reshape(-1, 1) for side in (here, there)]
    for kind, own in (("ks", KSDrift), ("cvm", CVMDrift)):
        found = alibi(kind)()
        found.fit(here)
        exact = own(columns[0]).predict(columns[1])["data"]["distance"][0]
        assert found.score(there)[f"{kind}:x"] == pytest.approx(exact, abs=1e-6)
    codes = [np.searchsorted(["a", "b", "c"], side["kind"]).reshape(-1, 1) for side in (here, there)]
    chi = alibi("chi_square")()
    chi.fit(here)
    exact = ChiSquareDrift(codes[0]).predict(codes[1])["data"]["distance"][0]
    assert chi.score(there)["chi_square:kind"] == pytest.approx(exact, rel=1e-6)
    mmd = alibi("mmd")()
    mmd.fit({"x": here["x"]})
    scale, center = here["x"].std(), here["x"].mean()
    standard = [((side - center) / scale).astype(np.float32) for side in columns]
    exact = MMDDrift(standard[0], backend="pytorch", n_permutations=1).predict(standard[1])["data"][
        "distance"
    ]
    assert mmd.score({"x": there["x"]})["mmd"] == pytest.approx(exact, abs=2e-3)


def test_the_processes_own_randomness_is_left_alone() -> None:
    made = alibi("mmd")()
    np.random.seed(3)
    before = np.random.get_state()[1].tolist()
    made.fit(table(200))
    made.score(table(100))
    assert np.random.get_state()[1].tolist() == before


def test_samples_are_bounded_and_the_same_each_time() -> None:
    big = table(50_000)
    kept = sample_rows(big, 500)
    assert {len(values) for values in kept.values()} == {500}
    assert (kept["x"] == sample_rows(big, 500)["x"]).all()


def test_a_specs_detectors_name_their_statistics() -> None:
    made = chosen([ChosenDetector(type="ks", features=("x",)), ChosenDetector(type="mmd")], table(300))
    assert set(statistics_of(made, table(300, seed=1))) == {"ks:x", "mmd"}
    assert chosen([], table(300)) == []


def test_the_monitor_loads_alibi_detect_only_for_chosen_detectors() -> None:
    code = (
        "import sys, ctrain.monitoring.drift, ctrain.monitoring.detectors; "
        "print({'alibi_detect', 'torch', 'ray'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
