"""Confusion matrix of the diagnosis on real streams with faults injected (`tests.faults`).

What counts as right is declared here, in `RIGHT`. Flights and hotel are judged on the later half of their
windows; thresholds were chosen on the earlier half. No set is untouched: the rules for ranges, for numbers
that stand still and for versions were mended after looking at failures of all four, with other seeds.

A wrong action is one that acts (quarantine, retrain, recalibrate, roll back) where it does not help: on
broken data, wrong labels, a season, a good version, or nothing at all. To wait, hold or escalate is never
called wrong here, and is right only if the verdict is.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from ctrain.monitoring.diagnosis import diagnose
from ctrain.records import Diagnosis
from tests.datasets import NAMES
from tests.faults import FAULTS, PAST, TRAINED, Case, case, judged

QUALITY = ({"data_quality"}, {"quarantine"})
RIGHT: dict[str, tuple[set[str], set[str]]] = {
    # fault: verdicts that are right, actions that may act
    "none": ({"none"}, set()),
    "missing": QUALITY,
    "unit": QUALITY,
    "scale": QUALITY,
    "new_category": QUALITY,
    "stuck": QUALITY,
    "covariate": ({"covariate_shift"}, {"retrain"}),
    "traffic_mix": ({"traffic_mix"}, set()),
    # a shift that the past shows several times lies inside what is usual: both verdicts change nothing
    "season": ({"season", "none"}, set()),
    # half of a space is often nearly a segment (a hotel, short flights): both verdicts retrain
    "concept": ({"concept", "concept_local"}, {"retrain"}),
    "concept_local": ({"concept_local"}, {"retrain"}),
    # one feature's reversal may touch one of its levels alone
    "concept_drifted": ({"concept", "concept_local"}, {"retrain"}),
    "noise_symmetric": ({"label_noise"}, set()),
    "noise_one_class": ({"label_noise"}, set()),
    # leaving out rows of a class moves the inputs too; a retraining on its sound labels repairs the level
    "prior": ({"needs_recalibration", "covariate_shift"}, {"recalibrate", "retrain"}),
    "label_delay": ({"label_delay"}, set()),
    "good_version": ({"none"}, set()),
    "bad_version": ({"bad_version"}, {"roll_back"}),
    "serving_skew": ({"serving_skew"}, set()),
    "schema": ({"upstream_schema"}, {"quarantine"}),
}
ACTIVE = {"quarantine", "retrain", "recalibrate", "roll_back"}
HELD_OUT = {"flights", "hotel"}


def held_out(name: str) -> list[int]:
    """Numbers of the windows that are judged."""
    numbers = list(judged(name))
    return numbers[len(numbers) // 2 :] if name in HELD_OUT else numbers


def nature_broke(made: Case) -> bool:
    """Whether the stream itself changed with this window, whatever was injected: told before any fault.

    Its mean label lies outside the range of the past windows' by more than half of that range, so that
    "none" is hardly the truth of it.
    """
    means = [float(np.nanmean(frame.labels)) for frame in made.past if frame.labels is not None]
    assert made.window.labels is not None
    now, room = float(np.nanmean(made.window.labels)), (max(means) - min(means)) / 2
    return not min(means) - room <= now <= max(means) + room


def is_right(fault: str, made: Case, found: Diagnosis) -> bool:
    """Whether the verdict is declared right, with the feature or segment where the fault has one."""
    if found.verdict not in RIGHT[fault][0]:
        return False
    subject = made.note.split(" ")[0].split("=")[0]
    if found.verdict == "data_quality":
        return subject in found.subjects
    if fault == "concept_local":
        return _same_rows(made, found.subjects[0])
    return True


def _same_rows(made: Case, segment: str) -> bool:
    """Whether two segments are the same rows, nine in ten."""

    def rows(text: str) -> set[int]:
        feature, _, level = text.partition("=")
        values = made.window.columns[feature]
        wanted = level if values.dtype.kind == "U" else float(level)
        return set((values == wanted).nonzero()[0].tolist())

    one, other = rows(made.note), rows(segment)
    return len(one & other) >= 0.9 * len(one | other)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cases", type=int, default=10, help="of each fault on each set")
    parser.add_argument("--sets", default=",".join(NAMES))
    parser.add_argument("--short", action="store_true", help="2 cases")
    asked = parser.parse_args()
    warnings.filterwarnings("ignore", message="Found unknown categories")
    cases = 2 if asked.short else asked.cases
    matrix: dict[str, dict[str, Counter[str]]] = {}
    outcomes: list[tuple[str, str, bool, bool, bool]] = []
    slowest, spent = 0.0, 0.0
    for name in asked.sets.split(","):
        numbers = held_out(name)
        matrix[name] = {fault: Counter() for fault in FAULTS}
        for turn in range(cases):
            index = numbers[(turn * 7 + asked.seed) % len(numbers)]
            broke = nature_broke(case(name, "none", index, 0))
            for fault in FAULTS:
                made = case(name, fault, index, 1000 * asked.seed + turn)
                start = time.process_time()
                found = diagnose(made.window, made.past, made.events, seed=turn)
                took = time.process_time() - start
                slowest, spent = max(slowest, took), spent + took
                right = is_right(fault, made, found)
                wrong = found.action in ACTIVE and found.action not in RIGHT[fault][1]
                matrix[name][fault][found.verdict + ("" if right else " ✗") + (" !" if wrong else "")] += 1
                outcomes.append((name, fault, right, wrong, broke))
                if not right:
                    reason = f"{found.verdict}/{found.action}: {found.reason}"
                    print(f"  {name} {index} {fault} [{made.note[:50]!r}]: {reason}", flush=True)
    _report(matrix, outcomes, slowest, spent / len(outcomes), cases, asked.seed)


def _report(
    matrix: dict[str, dict[str, Counter[str]]],
    outcomes: list[tuple[str, str, bool, bool, bool]],
    slowest: float,
    mean: float,
    cases: int,
    seed: int,
) -> None:
    print(f"\n{TRAINED}+ windows trained on, {PAST} past windows, {cases} cases a fault and set")
    print("Verdicts by fault and set; ✗ is not what was declared right, ! is a wrong action.")
    for fault in FAULTS:
        for name, faults in matrix.items():
            found = ", ".join(f"{verdict} {count}" for verdict, count in faults[fault].most_common())
            print(f"  {fault:16s} {name:8s} {found}")
    names, faults = sorted(matrix), list(FAULTS)
    by_set = {name: _share([o[2] for o in outcomes if o[0] == name]) for name in names}
    by_fault = {fault: _share([o[2] for o in outcomes if o[1] == fault]) for fault in faults}
    wrong_by_set = {name: _share([o[3] for o in outcomes if o[0] == name]) for name in names}
    print("\nRight by fault: " + ", ".join(f"{fault} {share:.2f}" for fault, share in by_fault.items()))
    summary = {
        "right": _share([o[2] for o in outcomes]),
        "wrong_action": _share([o[3] for o in outcomes]),
        "right_where_nature_held": _share([o[2] for o in outcomes if not o[4]]),
        "wrong_action_where_nature_held": _share([o[3] for o in outcomes if not o[4]]),
        "cases_where_nature_broke": {name: sum(o[4] for o in outcomes if o[0] == name) for name in names},
        "right_by_set": by_set,
        "wrong_action_by_set": wrong_by_set,
        "right_by_fault": by_fault,
        "cases": len(outcomes),
        "seed": seed,
        "cpu_s_mean": round(mean, 2),
        "cpu_s_max": round(slowest, 2),
        "matrix": {name: {fault: dict(found) for fault, found in m.items()} for name, m in matrix.items()},
    }
    print(json.dumps(summary, ensure_ascii=False))


def _share(flags: list[bool]) -> float:
    return round(sum(flags) / max(len(flags), 1), 4)


if __name__ == "__main__":
    main()
