"""Error rates of rollouts: the analysis beside what dashboards, Kayenta and Flagger do, on simulated traffic.

Each row of "whole decision" is the project's own evidence on what replicas would count (`tests/rollouts.py`):
one budget over errors, latency, agreement, shift and quality, with a look every 10 to 200 requests, a canary
of 10 % and at most 100,000 requests. Its verdicts are checked against `analyse` itself on a sample. Mirrored
requests of the challenger that fail would end a rollout sooner (three are a hard stop); they are left out, so
that all methods see the same. Quality: labels of a fifth of the requests, 5,000 requests late, blocks of
5,000 requests; "waits" is a spec with `quality.before_promotion`.

Last, the cost of a counted request, of an e-value and of a whole look.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from peers import AUC_PEERS, ERROR_PEERS, LATENCY_PEERS, ErrorSeries, LatencySeries, QualitySeries

from ctrain.records import ArmCounts, Pace, PairCounts
from ctrain.rollout import analyse
from ctrain.rollout.evidence import Counts, e_value, log_harm
from ctrain.serving.counters import Counters
from ctrain.spec.rollout import Canary
from tests.rollouts import (
    ONE_STEP,
    Ends,
    QualityPaths,
    Requests,
    Tally,
    Truth,
    block_pool,
    judge,
    quality_paths,
    recorded_scales,
    records,
    roll_out,
)

SPEC = Canary()
SPLIT = 0.1
STEPS = ((0.01, 0), (0.05, 2_000), (0.25, 10_000))
"""The default steps, by the request at which each begins."""

IDENTICAL = (
    Truth("identical, errors 0.1 %"),
    Truth("identical, errors 1 %", errors=(0.01, 0.01)),
    Truth("identical + shared outage", outage=0.2),
    Truth("identical + stalls", stalls=True),
)
HARMFUL = (
    Truth("errors 0.1 -> 1 %", errors=(0.001, 0.01)),
    Truth("errors 0.1 -> 5 %", errors=(0.001, 0.05)),
    Truth("errors at the margin (+0.5 %)", errors=(0.001, 0.006)),
    Truth("p99 +20 % (tail)", tail=2.48),
    Truth("p99 x2 (tail)", tail=6.0),
    Truth("p99 at the margin (2 x as many)", tail=2.0),
    Truth("all times +20 %", slower=1.2),
)
QUALITY = (Truth("AUC .80 -> .78", auc=0.78), Truth("AUC .80 -> .81", auc=0.81))

Row = dict[str, Any]


def say(text: str) -> None:
    print(text, flush=True)


def of(ends: Ends, name: str) -> Row:
    """Share of rollouts that an end came to, and requests until then (median; 90 % of the challenger's)."""
    canary, whole = getattr(ends, name)
    return summary(canary, whole)


def summary(canary: np.ndarray, whole: np.ndarray) -> Row:
    came = np.isfinite(canary)
    if not came.any():
        return {"share": 0.0, "canary_p50": None, "canary_p90": None, "requests_p50": None}
    return {
        "share": round(float(came.mean()), 4),
        "canary_p50": round(float(np.median(canary[came]))),
        "canary_p90": round(float(np.quantile(canary[came], 0.9))),
        "requests_p50": round(float(np.median(whole[came]))),
    }


def whole(
    truth: Truth,
    rollouts: int,
    seed: int,
    paths: dict[float, QualityPaths],
    steps: tuple[tuple[float, int], ...] = ONE_STEP,
) -> Row:
    """The whole decision under both specs, and what errors and latency alone would have said at alpha."""
    ends = roll_out(truth, rollouts, np.random.default_rng(seed), paths[truth.auc], SPEC, steps)
    row: Row = {"errors_alone": of(ends, "errors"), "latency_alone": of(ends, "latency")}
    for name, end in (("default", ends.promoted), ("waits", ends.promoted_after_quality)):
        promoted = end[1] < ends.harm[1]
        back = np.where(promoted, np.inf, ends.harm)
        row[name] = {"rolled_back": summary(*back), "promoted": summary(*np.where(promoted, end, np.inf))}
    row["harm"] = row["waits"]["rolled_back"]
    return row


def shown(row: Row) -> str:
    if not row["share"]:
        return f"{'0.0 %':>8} {'':>22}"
    return f"{row['share']:>7.2%} {row['requests_p50']:>9,} / {row['canary_p50']:>6,} "


def table_of_wholes(rows: dict[str, Row]) -> None:
    say(f"\n{'whole decision':34}{'rolled back (all / canary)':>30}{'promoted':>27}{'waits: promoted':>27}")
    for name, row in rows.items():
        default, waits = row["default"], row["waits"]
        cells = (row["harm"], default["promoted"], waits["promoted"])
        say(f"{name:34}" + "".join(f"{shown(cell):>28}" for cell in cells))


def table_of_peers(title: str, rows: dict[str, dict[str, Row]]) -> None:
    say(f"\n{title}: share rolled back (median requests / of the canary)")
    for truth, methods in rows.items():
        for method, row in methods.items():
            say(f"  {truth:34}{method:44}{shown(row)}")


def check_against_analyse(rollouts: int, seed: int) -> int:
    """Judge a sample of counts by `analyse` and at once; gives the verdicts that differ."""
    rng, wrong, splits = np.random.default_rng(seed), 0, (0.05, 0.25)
    for truth in (*IDENTICAL, *HARMFUL):
        tally, requests = Tally.of(rollouts, len(splits)), Requests(truth, rollouts, rng)
        for start in range(0, 12_000, 2_000):
            step = int(start >= 4_000)
            requests.draw(tally, start, start + 2_000, splits[step], step)
            judged = judge(tally, splits, SPEC)
            for one in range(rollouts):
                arms, pairs = records(tally, splits, one)
                enough = all(safe[one] >= 1 / SPEC.alpha_promote for safe in judged.safe.values())
                verdict = "fail" if judged.harm[one] >= 1 / SPEC.alpha else "pass" if enough else "continue"
                wrong += analyse("r", "canary", splits[step], SPEC, [arms], pairs).verdict != verdict
    return wrong


def microseconds(work: Callable[[int], object], times: int) -> float:
    """Least of five means."""
    best = np.inf
    for _ in range(5):
        start = time.perf_counter()
        for number in range(times):
            work(number)
        best = min(best, (time.perf_counter() - start) / times)
    return round(best * 1e6, 3)


def costs() -> Row:
    """Microseconds of one counted request, of one e-value, and of one look at a whole canary."""
    counters, keyed = Counters(), Counters()
    keys = [f"client-{number}" for number in range(20_000)]
    events = Counts((0.01, 0.05, 0.25), np.array([1.0, 2, 3]), np.array([40.0, 50, 60]))
    arms = [
        [
            ArmCounts("r", split, arm, 1000, 3, (500, 100, 10), False, 997)
            for split in SPEC.steps
            for arm in ("challenger", "champion")
        ]
        for _ in range(4)
    ]
    pairs = [PairCounts("r", 300, 10.0, 1.0, 9.0) for _ in range(4)]
    return {
        "counter_us": microseconds(lambda _: counters.arm("r", 0.1, "champion", False, 1), 50_000),
        "counter_of_a_key_us": microseconds(
            lambda n: keyed.arm("r", 0.1, "champion", False, 1, keys[n % len(keys)]), 50_000
        ),
        "e_value_us": microseconds(lambda _: e_value(log_harm(events)), 2_000),
        "look_us": microseconds(
            lambda _: analyse("r", "canary", 0.25, SPEC, arms, pairs, pace=Pace(60.0, 1e5)), 200
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rollouts", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    start = time.perf_counter()
    rng = np.random.default_rng(asked.seed)
    scales = recorded_scales(rng)
    pools = {auc: block_pool(rng, auc, min(2_000, 10 * asked.rollouts)) for auc in (0.80, 0.78, 0.81)}
    paths = {auc: quality_paths(rng, pool, scales, SPEC, asked.rollouts) for auc, pool in pools.items()}
    say(f"quality's evidence of {asked.rollouts:,} rollouts: {time.perf_counter() - start:.0f} s")
    rows = {}
    for number, truth in enumerate((*IDENTICAL, *HARMFUL, *QUALITY)):
        rows[truth.name] = whole(truth, asked.rollouts, asked.seed + number, paths)
    for truth in (IDENTICAL[1], HARMFUL[0]):
        name = f"{truth.name}, default steps"
        rows[name] = whole(truth, asked.rollouts, asked.seed + len(rows), paths, STEPS)
    table_of_wholes(rows)
    say(f"({time.perf_counter() - start:.0f} s)")

    peers = max(200, asked.rollouts // 5)
    errors = {
        truth.name: {"split test alone": rows[truth.name]["errors_alone"]}
        | {
            name: summary(*peer(ErrorSeries.draw(truth, peers, SPLIT, rng)))
            for name, peer in ERROR_PEERS.items()
        }
        for truth in (*IDENTICAL[:3], *HARMFUL[:2])
    }
    latency = {
        truth.name: {"split test at p50, p90, p99 alone": rows[truth.name]["latency_alone"]}
        | {
            name: summary(*peer(LatencySeries.draw(truth, peers, SPLIT, rng)))
            for name, peer in LATENCY_PEERS.items()
        }
        for truth in (IDENTICAL[0], IDENTICAL[3], HARMFUL[3], HARMFUL[4], HARMFUL[6])
    }
    quality = {}
    for truth in (IDENTICAL[0], *QUALITY):
        ours = alone(paths[truth.auc].worse, 1 / SPEC.alpha)
        series = QualitySeries.draw(rng, truth.auc, peers)
        quality[truth.name] = {"block evidence alone": ours} | {
            name: summary(*peer(series)) for name, peer in AUC_PEERS.items()
        }
    table_of_peers(f"errors ({peers:,} rollouts for the peers)", errors)
    table_of_peers("latency", latency)
    table_of_peers("quality", quality)
    wrong = check_against_analyse(20, asked.seed)
    spent = costs()
    say("\n" + ", ".join(f"{name} {value}" for name, value in spent.items()))
    say(f"verdicts that differ from analyse: {wrong}; {time.perf_counter() - start:.0f} s in all")
    say(
        json.dumps(
            report(rows, {"errors": errors, "latency": latency, "quality": quality}, spent, wrong, asked)
        )
    )


def alone(worse: np.ndarray, bound: float) -> Row:
    """Requests at which the block evidence alone reaches the bound."""
    reached = worse >= bound
    blocks = np.where(reached.any(axis=1), reached.argmax(axis=1), np.inf)
    requests = 5_000 * (blocks + 1)
    return summary(SPLIT * requests, requests)


def report(rows: dict[str, Row], peers: dict[str, Any], spent: Row, wrong: int, asked: Any) -> Row:
    def back(name: str) -> float:
        return float(rows[name]["harm"]["share"])

    names = [truth.name for truth in IDENTICAL]
    in_steps = "errors 0.1 -> 1 %, default steps"
    return {
        "identical.false_rollback": max(back(name) for name in names[:2]),
        "identical_steps.false_rollback": back("identical, errors 1 %, default steps"),
        "identical_outage.false_rollback": back(names[2]),
        "identical_stalls.false_rollback": back(names[3]),
        "identical.promoted": rows[names[0]]["default"]["promoted"]["share"],
        "errors_01_to_1.detected": back("errors 0.1 -> 1 %"),
        "errors_01_to_1.canary_requests_p50": rows["errors 0.1 -> 1 %"]["harm"]["canary_p50"],
        "errors_01_to_1.canary_requests_p50_alone": rows["errors 0.1 -> 1 %"]["errors_alone"]["canary_p50"],
        "errors_01_to_1_steps.canary_requests_p50": rows[in_steps]["harm"]["canary_p50"],
        "errors_01_to_5.canary_requests_p50": rows["errors 0.1 -> 5 %"]["harm"]["canary_p50"],
        "errors_at_margin.promoted": rows["errors at the margin (+0.5 %)"]["default"]["promoted"]["share"],
        "p99_plus_20.detected": back("p99 +20 % (tail)"),
        "p99_plus_20.canary_requests_p50": rows["p99 +20 % (tail)"]["harm"]["canary_p50"],
        "p99_plus_20.promoted": rows["p99 +20 % (tail)"]["default"]["promoted"]["share"],
        "p99_x2.canary_requests_p50": rows["p99 x2 (tail)"]["harm"]["canary_p50"],
        "p99_at_margin.promoted": rows["p99 at the margin (2 x as many)"]["default"]["promoted"]["share"],
        "auc_80_to_78.promoted": rows["AUC .80 -> .78"]["waits"]["promoted"]["share"],
        "auc_80_to_78.detected": rows["AUC .80 -> .78"]["waits"]["rolled_back"]["share"],
        "auc_80_to_81.promoted": rows["AUC .80 -> .81"]["waits"]["promoted"]["share"],
        "verdicts_unlike_analyse": wrong,
        **spent,
        "rollouts": asked.rollouts,
        "seed": asked.seed,
        "whole": rows,
        "peers": peers,
    }


if __name__ == "__main__":
    main()
