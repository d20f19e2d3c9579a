"""One window of a million rows and 100 columns: ctrain's summary and tests, alibi-detect, and Evidently.

All compare the window with a reference of 100,000 rows that they have taken in before where they can: ctrain
has its layout and profile, alibi-detect its fitted `TabularDrift`; Evidently has no such step and gets both
tables in memory. All give a statistic for each column: ctrain Kolmogorov-Smirnov, population stability and
Jensen-Shannon from bins, moments and missing rates, and the monitor's verdict; alibi-detect
Kolmogorov-Smirnov and chi-square; Evidently its preset. alibi-detect gets float32 and categories already
coded, which is not counted; ctrain gets text.

Evidently may need an environment of its own: `--evidently-python` is its interpreter. Seconds of CPU are
those of all threads and children; they are what the ratios are taken of, beside wall time.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ctrain.monitoring.drift import DriftMonitor
from ctrain.monitoring.profile import jensen_shannon, population_stability, smirnov
from ctrain.monitoring.summary import Layout, summarise
from ctrain.spec.monitoring import Drift

CATEGORIES = 10
"""Of the columns; the others are numbers, a tenth of them with missing values."""

EVIDENTLY = """
import json, resource, sys, time
import numpy as np, pandas as pd
from evidently import DataDefinition, Dataset, Report
from evidently.presets import DataDriftPreset

def table(path):
    stored = np.load(path, allow_pickle=False)
    return pd.DataFrame({name: stored[name] for name in stored.files})

reference, window = table(sys.argv[1]), table(sys.argv[2])
texts = [name for name in reference if name.startswith("c")]
numbers = [name for name in reference if name not in texts]
definition = DataDefinition(numerical_columns=numbers, categorical_columns=texts)
sides = [Dataset.from_pandas(side, data_definition=definition) for side in (window, reference)]
usage = resource.getrusage(resource.RUSAGE_SELF)
wall, cpu = time.perf_counter(), usage.ru_utime + usage.ru_stime
Report([DataDriftPreset()]).run(*sides).dict()
usage = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps([time.perf_counter() - wall, usage.ru_utime + usage.ru_stime - cpu]))
"""


def table(rows: int, columns: int, seed: int) -> dict[str, Any]:
    """Normal, lognormal and counted numbers, and categories as text."""
    random = np.random.default_rng(seed)
    names = np.array([f"value{number}" for number in range(30)])
    made: dict[str, Any] = {}
    for number in range(columns - CATEGORIES):
        kind = number % 3
        values = random.normal(size=rows)
        if kind == 1:
            values = np.exp(values)
        if kind == 2:
            values = random.poisson(20, rows).astype(np.float64)
        if number % 10 == 0:
            values[random.random(rows) < 0.05] = np.nan
        made[f"x{number}"] = values
    shares = random.dirichlet(np.full(len(names), 2.0))
    return made | {f"c{number}": names[random.choice(30, rows, p=shares)] for number in range(CATEGORIES)}


def cpu_now() -> float:
    """CPU seconds of this process, its threads and its children that ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """(wall, CPU) seconds."""
    wall, cpu = time.perf_counter(), cpu_now()
    work()
    return time.perf_counter() - wall, cpu_now() - cpu


def ours(reference: dict[str, Any], window: dict[str, Any]) -> tuple[float, float]:
    layout = Layout.fit(reference)
    counts = summarise(layout, reference).parts().bins_FB
    size = len(next(iter(reference.values()))) // 60
    pieces = [{name: v[n * size : (n + 1) * size] for name, v in reference.items()} for n in range(60)]
    past = [("all", summarise(layout, piece)) for piece in pieces]
    monitor = DriftMonitor.begin(layout, Drift(calibration_windows=60), past)

    def work() -> None:
        summary = summarise(layout, window)
        for p, q in zip(summary.parts().bins_FB, counts, strict=True):
            smirnov(p, q), population_stability(p, q), jensen_shannon(p, q)
        monitor.update("all", summary)

    return timed(work)


def alibi_detect(reference: dict[str, Any], window: dict[str, Any]) -> tuple[float, float]:
    from alibi_detect.cd import TabularDrift

    known = {name: np.unique(values) for name, values in reference.items() if values.dtype.kind == "U"}

    def matrix(side: dict[str, Any]) -> Any:
        found = [np.searchsorted(known[name], v) if name in known else v for name, v in side.items()]
        return np.stack([one.astype(np.float32) for one in found], axis=1)

    places = {list(reference).index(name): None for name in known}
    detector = TabularDrift(matrix(reference), p_val=0.05, categories_per_feature=places)
    rows = matrix(window)
    detector.predict(rows[:1000])  # what it imports and compiles is not counted
    return timed(lambda: detector.predict(rows))


def evidently(python: str, reference: dict[str, Any], window: dict[str, Any]) -> tuple[float, float]:
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder) / name) for name in ("reference.npz", "window.npz")]
        for path, side in zip(paths, (reference, window), strict=True):
            np.savez(path, **side)
        command = [python, "-W", "ignore", "-c", EVIDENTLY, *paths]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    wall, cpu = json.loads(done.stdout.splitlines()[-1])
    return wall, cpu


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--reference", type=int, default=100_000)
    parser.add_argument("--columns", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3, help="of ctrain's part; the median counts")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--evidently-python", default=sys.executable)
    asked = parser.parse_args()
    reference = table(asked.reference, asked.columns, asked.seed)
    window = table(asked.rows, asked.columns, asked.seed + 1)
    runs = sorted((ours(reference, window) for _ in range(asked.repeats)), key=lambda run: run[1])
    found = {"ctrain": runs[len(runs) // 2], "alibi-detect": alibi_detect(reference, window)}
    probe = [asked.evidently_python, "-W", "ignore", "-c", "import evidently"]
    if shutil.which(probe[0]) and subprocess.run(probe, capture_output=True).returncode == 0:
        found["Evidently"] = evidently(asked.evidently_python, reference, window)
    else:
        print("Evidently: skipped, it is not installed for this interpreter (--evidently-python)")
    print(f"{asked.rows} rows x {asked.columns} columns against {asked.reference} rows")
    print(f"  {'':14}{'wall s':>10}{'CPU s':>10}{'rows a CPU s':>16}{'ratio':>8}")
    base = found["ctrain"][1]
    for name, (wall, cpu) in found.items():
        print(f"  {name:14}{wall:10.2f}{cpu:10.2f}{asked.rows / cpu:16,.0f}{cpu / base:8.1f}")
    ratios: dict[str, float | None] = {
        "ratio_to_alibi_detect": found["alibi-detect"][1] / base,
        "ratio_to_evidently": found["Evidently"][1] / base if "Evidently" in found else None,
    }
    seconds = {
        f"{name}_{kind}": one[n] for name, one in found.items() for n, kind in enumerate(("wall", "cpu"))
    }
    print(json.dumps(ratios | {"rows": asked.rows, "columns": asked.columns} | seconds))


if __name__ == "__main__":
    main()
