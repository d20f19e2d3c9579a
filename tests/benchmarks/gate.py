"""Error rates and power of the gate: sliding windows over the real sets, and a simulation with day effects.

Pairs of gradient-boosted models, three a side, are judged on 40 blocks that neither has seen. `same` has
learned from the same rows (another bootstrap sample), `flipped` from labels of which 20 % were flipped
(exchanged, for a regression), `older` and `fresher` from rows 60 blocks apart, `shuffled` from labels in
random order; `inverted` answers the opposite. The record of retrains, which gives scales, holds pairs one
week apart from windows whose judged blocks do not overlap with the window's own.

Windows overlap, so a standard error counts at most as many of them as there are disjoint spans of the blocks
looked at. `bank` and `bike` are sets on which no constant was chosen. Fits and statistics are kept in
`--folder`: a second run is quick. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from gate_models import JUDGED, STRIDES, TRAINED, blocks_of, names_of, score_window, starts
from gate_simulation import simulate
from gate_tables import CHOSEN_ON, SetResult, judge_set, print_set

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.datasets import load


def worst_of(results: Sequence[SetResult]) -> dict[str, float]:
    """The figures, each the worst over the sets; under looks at 7 and 28 where nothing else is said."""
    if not results:
        return {}
    found = {
        "same.called_worse": max(r.worst_same for r in results),
        "flipped.worse_at_7": min(r.share("flipped", "worse", 7) for r in results),
        "flipped.worse_at_28": min(r.share("flipped", "worse", 28) for r in results),
        "gross.refused_at_2": min(min(r.gross["shuffled"], r.gross["inverted"]) for r in results),
        "gross.false": max(r.gross[kind] for r in results for kind in ("same", "a week fresher")),
        "fresher.called_worse": max(r.share("fresher", "worse", JUDGED) for r in results),
        "fresher.better_at_28": min(r.share("fresher", "better", 28) for r in results),
    }
    return {name: round(value, 4) for name, value in found.items()}


def main() -> None:
    """Print the tables, then the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/ctrain-gate"), help="scratch for fits")
    parser.add_argument("--sets", nargs="*", default=list(STRIDES))
    parser.add_argument("--runs", type=int, default=2000, help="simulated comparisons a design effect")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--short", action="store_true", help="two sets, few windows, few runs")
    asked = parser.parse_args()
    if asked.short:
        asked.sets, asked.runs = ["hotel", "bike"], 200
    begun = time.monotonic()
    results: list[SetResult] = []
    for name in asked.sets:
        data = load(name)
        firsts = starts(data)
        if asked.short:
            firsts = firsts[:: max(1, len(firsts) // 8)]
        tables = {first: score_window(data, first, asked.folder) for first in firsts}
        span = int(blocks_of(data)[-1]) + 1 - (firsts[0])
        result = judge_set(name, names_of(data), tables, span)
        print_set(result)
        results.append(result)
    simulated = simulate(asked.runs, asked.seed)
    figures = worst_of(results)
    goals = worst_of([r for r in results if r.name in CHOSEN_ON])
    sets = {r.name: r.figures() for r in results}
    extra = {"worst_of_" + "_and_".join(CHOSEN_ON): goals, "sets": sets, "trained_blocks": TRAINED}
    extra["seconds"] = round(time.monotonic() - begun)
    print(json.dumps(figures | simulated | extra, default=float))


if __name__ == "__main__":
    np.seterr(all="raise", under="ignore")
    main()
