"""False alarms and delays of the drift monitor beside its peers', at equal false alarms.

Three parts. Calm: the monitor on streams without drift, simulated ones and streams of real whole weeks, each
calibrated on weeks that are not replayed; an alarm is a window with which drift begins. Tuning: each peer's
threshold is set on calm seasonal streams to the rate that the monitor's budget allows, one alarm in 1,000
checks, and to the rate that the monitor showed there (at least one alarm in all of them). Delays: checks from
the onset to the first alarm, median over streams (a stream without an alarm counts with the limit).

River runs where it is installed; `--river PATH` adds another environment's site-packages.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "unit" / "monitoring")]

import datasets  # noqa: E402
import numpy as np  # noqa: E402
from drift_peers import Bonferroni, MmdOnline, Quantile, Reference, River, RollingAverage, river_makers  # noqa: E402
from streams import CHANGES, Stream, begun, columns  # noqa: E402

from ctrain.monitoring.drift import DriftMonitor  # noqa: E402
from ctrain.monitoring.summary import Layout, Summary, as_column, summarise  # noqa: E402
from ctrain.spec.monitoring import Drift  # noqa: E402

PAST = 504
"""Windows of calibration of the simulated streams: three weeks of hours."""

BUDGET = 1000.0
LIMIT = 300
"""Checks after which an onset counts as missed."""

BEFORE = 100
"""Calm checks before an onset."""

CALM: dict[str, dict[str, Any]] = {
    "iid": {"season": 0.0, "wander": 0.0},
    "seasonal": {"wander": 0.0},
    "AR 0.5, means wander 0.05 sd": {},
    "AR 0.8, means wander 0.05 sd": {"memory": 0.8},
    "AR 0.5, means wander 0.1 sd": {"wander": 0.1},
    "AR 0.8, means wander 0.1 sd": {"memory": 0.8, "wander": 0.1},
    "growing traffic": {"growth": 3.0, "rows": 200},
    "10 features": {"features": 10, "rows": 200},
    "60 features": {"features": 60, "rows": 100},
    "200 features": {"features": 200, "rows": 100},
}


# --- calm -----------------------------------------------------------------------------------------


def calm(settings: dict[str, Any], seed: int, checks: int) -> int:
    """Alarms of the monitor on one simulated stream without drift."""
    stream = Stream(seed, **settings)
    monitor = begun(stream, PAST, checks=BUDGET)
    alarms = 0
    for _ in range(checks):
        context, values, segments = stream.step()
        alarms += monitor.update(context, summarise(monitor.layout, *columns(values, segments))).alarm
    return alarms


class Weeks:
    """A real set cut into whole weeks of windows: hours of flights, days of the others."""

    def __init__(self, name: str) -> None:
        data = datasets.load(name)
        self.columns = {feature: _column(data.features[feature]) for feature in data.features}
        self.keys = data.segments
        seconds = data.time.astype(np.int64)
        weekday = seconds // 86400 + 3  # 1 January 1970 was a Thursday
        window = seconds // 3600 if name == "flights" else data.day
        first = np.unique(window, return_index=True)[1]
        # The days of calls of `bank` have no dates: five of them are a week.
        week = data.day[first] // 5 if name == "bank" else weekday[first] // 7
        ends = np.append(first[1:], len(window))
        gathered: dict[int, list[tuple[str, int, int]]] = {}
        for row, end, number in zip(first, ends, week, strict=True):
            context = f"weekday={weekday[row] % 7}"
            if name == "flights":
                context = f"hour={seconds[row] // 3600 % 24} weekend={int(weekday[row] % 7 >= 5)}"
            if name == "bank":
                context = str(self.columns["day_of_week"][row])
            gathered.setdefault(int(number), []).append((context, int(row), int(end)))
        full = max(map(len, gathered.values()))
        self.weeks = [windows for windows in gathered.values() if len(windows) >= 0.9 * full]

    def summary(self, layout: Layout, first: int, end: int) -> Summary:
        """Of the rows of one window."""
        rows = {name: values[first:end] for name, values in self.columns.items()}
        return summarise(layout, rows, {name: rows[name] for name in self.keys})

    def calm(self, seed: int, checks: int) -> tuple[int, int]:
        """(alarms, checks) of one stream: calibrated on half of the weeks, then others drawn singly."""
        random = np.random.default_rng(seed)
        order = random.permutation(len(self.weeks))
        past, others = (
            [self.weeks[number] for number in half] for half in np.split(order, [len(order) // 2])
        )
        rows = np.concatenate([np.arange(first, end) for week in past for _, first, end in week])
        sample = random.permutation(rows)[:50_000]
        reference = {name: values[sample] for name, values in self.columns.items()}
        layout = Layout.fit(reference, {name: reference[name] for name in self.keys})
        known = [(context, self.summary(layout, first, end)) for week in past for context, first, end in week]
        monitor = DriftMonitor.begin(layout, Drift(), known, checks=BUDGET)
        kept: dict[int, list[tuple[str, Summary]]] = {}
        alarms = judged = 0
        while judged < checks:
            number = int(random.integers(len(others)))
            if number not in kept:
                kept[number] = [(c, self.summary(layout, first, end)) for c, first, end in others[number]]
            for context, summary in kept[number]:
                report = monitor.update(context, summary)
                judged += report.state != "not_enough_rows"
                alarms += report.alarm
        return alarms, judged


def _column(series: Any) -> Any:
    if str(series.dtype) == "category":
        return as_column(series.astype(object).where(series.notna(), None).tolist())
    return series.to_numpy(float)


# --- peers ----------------------------------------------------------------------------------------


def peers(reference: Reference, windows: list[tuple[str, Any, Any]], features: int) -> dict[str, Any]:
    """Fresh peers by name."""
    made: dict[str, Any] = {
        "KS p-values, Bonferroni": Bonferroni(),
        "Modyn quantile": Quantile(),
        "Modyn rolling average": RollingAverage(),
    }
    made |= {name: River(make, features) for name, make in river_makers().items()}
    rows = np.concatenate([values - reference.means[context] for context, values, _ in windows])
    made["alibi-detect MMD online"] = MmdOnline(rows[np.random.default_rng(0).permutation(len(rows))[:500]])
    return made


def watched(seed: int, settings: dict[str, Any], checks: int, kind: str | None) -> dict[str, Any]:
    """What all peers and the monitor said on one stream; drift begins after `BEFORE` checks."""
    stream = Stream(seed, **settings)
    past = [stream.step() for _ in range(PAST)]
    reference = Reference(past)
    found = peers(reference, past[-60:], stream.features)
    said: dict[str, list[float]] = {name: [] for name in (*found, "ctrain")}
    twin = Stream(seed, **settings)
    monitor = begun(twin, PAST, checks=BUDGET)
    for context, values, _ in past[-120:]:
        means = (values - reference.means[context]).mean(axis=0)
        distances = reference.distances(context, values)
        for peer in found.values():
            peer.look(context, *distances, means, values - reference.means[context])
    onset = PAST + BEFORE
    for number in range(checks):
        changed = kind is not None and number >= BEFORE
        change: Any = (lambda x, g, t: CHANGES[str(kind)](x, g, t - onset)) if changed else None
        context, values, segments = stream.step(change)
        distances = reference.distances(context, values)
        centred = values - reference.means[context]
        for name, peer in found.items():
            said[name].append(peer.look(context, *distances, centred.mean(axis=0), centred))
        report = monitor.update(context, summarise(monitor.layout, *columns(values, segments)))
        said["ctrain"].append(float(report.alarm))
    return {name: np.array(values) for name, values in said.items()}


def begins(flags: Any) -> int:
    """Alarms: flagged checks whose check before was not."""
    return int((flags & ~np.append(False, flags[:-1])).sum())


def tuned(statistics: list[Any], alarms: int) -> float:
    """Lowest threshold above which all these calm streams together have at most so many alarms."""
    values = np.unique(np.concatenate(statistics))
    low, high = 0, len(values) - 1
    while low < high:
        middle = (low + high) // 2
        if sum(begins(one > values[middle]) for one in statistics) <= alarms and not _still(
            statistics, values[middle]
        ):
            high = middle
        else:
            low = middle + 1
    return float(values[low])


def _still(statistics: list[Any], threshold: float) -> bool:
    """Whether a threshold is exceeded so often that alarms merge: few begin since they hardly end."""
    return bool(np.mean([np.mean(one > threshold) for one in statistics]) > 0.02)


def delay(flags: Any) -> float:
    """Checks from the onset to the first alarm after it, the limit if there is none."""
    after = np.flatnonzero(flags[BEFORE:])
    return float(after[0] + 1) if len(after) else float(LIMIT)


# --- tables ---------------------------------------------------------------------------------------


def calm_table(streams: int, checks: int, seed: int) -> dict[str, float]:
    rates: dict[str, float] = {}
    print(f"\nfalse alarms without drift, budget one in {BUDGET:.0f} checks")
    for name, settings in CALM.items():
        wide = settings.get("features", 8) >= 60
        number = max(1, streams // 4) if wide else streams
        alarms = sum(calm(settings, seed + n, checks) for n in range(number))
        rates[name] = _rate(name, alarms, number * checks)
    if not datasets.FOLDER.is_dir():
        print("  real weeks: skipped, the folder of real data sets is absent (CTRAIN_TEST_DATA)")
        return rates
    for name in datasets.NAMES:
        weeks = Weeks(name)
        found = [weeks.calm(seed + n, checks) for n in range(2 * streams)]
        rates[f"real weeks of {name}"] = _rate(
            f"real weeks of {name}", sum(a for a, _ in found), sum(c for _, c in found)
        )
    return rates


def _rate(name: str, alarms: int, checks: int) -> float:
    rate = 1000.0 * alarms / checks
    high = 1000.0 * (alarms + 1.92 + 1.96 * np.sqrt(alarms + 0.96)) / checks
    print(
        f"  {name:32} {alarms:4d} in {checks:7d} checks: {rate:6.3f} per 1000 (95 %: below {high:.2f})",
        flush=True,
    )
    return rate


def delay_table(
    name: str, settings: dict[str, Any], streams: int, checks: int, seed: int
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Ratios to the best peer by kind, and median delays by method and kind, at equal false alarms."""
    quiet = [watched(seed + 1000 + n, settings, checks, None) for n in range(streams)]
    ours = sum(begins(one["ctrain"] > 0) for one in quiet)
    total = streams * checks
    allowed = {"equal": max(ours, 1), "budget": max(round(total / BUDGET), 1)}
    names = [method for method in quiet[0] if method != "ctrain"]
    levels = {
        (method, rule): tuned([one[method] for one in quiet], count)
        for method in names
        for rule, count in allowed.items()
    }
    print(f"\ndelays on '{name}': median checks over {streams} streams, {LIMIT} is never")
    print(
        f"  false alarms of ctrain: {ours} in {total} checks; peers tuned to {allowed['equal']} "
        f"(and, in brackets, to the budget's {allowed['budget']}) on the same streams"
    )
    print(f"  {'':26}" + "".join(f"{kind:>16}" for kind in CHANGES))
    medians: dict[str, dict[str, float]] = {method: {} for method in ("ctrain", *names)}
    loose: dict[str, dict[str, float]] = {method: {} for method in names}
    for kind in CHANGES:
        runs = [watched(seed + 2000 + n, settings, BEFORE + LIMIT, kind) for n in range(streams)]
        medians["ctrain"][kind] = float(np.median([delay(one["ctrain"] > 0) for one in runs]))
        for method in names:
            for rule, into in (("equal", medians), ("budget", loose)):
                level = levels[method, rule]
                into[method][kind] = float(np.median([delay(one[method] > level) for one in runs]))
    for method, by_kind in medians.items():
        cells = [
            f"{value:.1f}" + (f" ({loose[method][kind]:.1f})" if method in loose else "")
            for kind, value in by_kind.items()
        ]
        print(f"  {method:26}" + "".join(f"{cell:>16}" for cell in cells), flush=True)
    best = {kind: min(medians[method][kind] for method in names) for kind in CHANGES}
    return {kind: medians["ctrain"][kind] / best[kind] for kind in CHANGES}, medians


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, default=8, help="simulated streams of each kind")
    parser.add_argument("--checks", type=int, default=1000, help="checks without drift in each stream")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--river", help="site-packages of an environment that has River")
    parser.add_argument("--short", action="store_true", help="two streams of 300 checks")
    parser.add_argument("--only", choices=("calm", "delays"), help="one part")
    asked = parser.parse_args()
    if asked.short:
        asked.streams, asked.checks = 2, 300
    if asked.river:
        sys.path.append(asked.river)
    if not river_makers():
        print("River ADWIN, KSWIN, Page-Hinkley: skipped, River is not installed (--river)")
    begin, result = time.process_time(), {}
    if asked.only != "delays":
        rates = calm_table(asked.streams, asked.checks, asked.seed)
        result |= {"worst_false_alarms_per_1000": max(rates.values()), "false_alarms_per_1000": rates}
    if asked.only != "calm":
        for key, name in (("", "AR 0.5, means wander 0.05 sd"), ("_hard", "AR 0.8, means wander 0.1 sd")):
            ratios, medians = delay_table(name, CALM[name], asked.streams, asked.checks, asked.seed)
            result |= {
                f"delay_ratio_to_best_peer{key}": max(ratios.values()),
                f"delay_ratios{key}": ratios,
                f"delays{key}": medians,
            }
    result["cpu_seconds"] = round(time.process_time() - begin, 1)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
