"""Tables of the gate's benchmark: every comparison of a set under every kind of looking."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gate_models import JUDGED, PAIRS
from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ctrain.evaluation.compare import compare, recorded_pair
from ctrain.evaluation.evidence import (
    LOOKS,
    BlockTest,
    Scales,
    fixed_look_bound,
    scales_from,
)
from ctrain.evaluation.gate import decide_gate
from ctrain.records import BlockScore, GateEvidence, ModelScore, OutputDifference, RecordedPair
from ctrain.spec.base import LOWER_IS_BETTER
from ctrain.spec.evaluation import Evaluation, GateCriterion

CHOSEN_ON = ("flights", "hotel")
"""Sets on which the method's constants were chosen."""

ONCE, NAIVE, PAST = "once, at that block", "t on one loss, no margin", "7, 28, record of the past"
AT = (3, 7, 14, 28, 40)
Tables = Mapping[str, npt.NDArray[np.float64]]

EARLIER = {
    "same": "0-2 / 2-4",
    "flipped": "13 61 88 98 (looks 3..28), - 75 - 98 (4 x 6) / 31 78 95 100, - 83 - 100",
    "older": "18 39 58 67, - 33 - 60 / 27 66 79 82, - 67 - 83",
}
"""What the method was measured at before (flights / hotel, at 3, 7, 14, 28 blocks)."""


@dataclass(frozen=True)
class SetResult:
    """All rates of one set; `rates` by (kind, question, looking), cumulative at the blocks of `AT`."""

    name: str
    windows: int
    span: int
    """Blocks from the first judged one to the last."""
    rates: dict[tuple[str, str, str], list[float]]
    gross: dict[str, float]
    verdicts: dict[tuple[str, int], dict[str, float]]
    sigma_tau: str
    oracle: dict[tuple[str, str], float]

    def share(self, kind: str, question: str, blocks: int, looking: str = "7, 28") -> float:
        """Share of windows with that answer by so many blocks, under looks at 7 and 28."""
        return self.rates[kind, question, looking][AT.index(blocks)]

    @property
    def worst_same(self) -> float:
        """Same procedure called worse by 40 blocks, under the worst of all promised lookings.

        The one look is that at 14 or at 28 blocks, not one at each column.
        """
        mine = {key[2]: found for key, found in self.rates.items() if key[:2] == ("same", "worse")}
        running = [found[-1] for looking, found in mine.items() if looking not in (ONCE, NAIVE)]
        return max(*running, mine[ONCE][AT.index(14)], mine[ONCE][AT.index(28)])

    def error(self, share: float, blocks: int) -> float:
        """Standard error of a share, from as many windows as there are disjoint spans of those blocks."""
        count = min(self.windows, max(1, self.span // blocks))
        return math.sqrt(max(share * (1 - share), 1e-9) / count)

    def figures(self) -> dict[str, Any]:
        """For the JSON."""
        found: dict[str, Any] = {"windows": self.windows, "disjoint_spans": self.span // JUDGED}
        for kind, what in (("flipped", "worse"), ("fresher", "better"), ("older", "worse")):
            found[f"{kind}.{what}"] = {at: round(self.share(kind, what, at), 3) for at in (7, 28)}
        found["same.called_worse"], found["gross"] = self.worst_same, self.gross
        found["fresher.called_worse"] = self.share("fresher", "worse", JUDGED)
        found["oracle"] = {" ".join(key): round(x, 3) for key, x in self.oracle.items()}
        return found


def judge_set(name: str, names: tuple[str, ...], tables: Mapping[int, Tables], span: int) -> SetResult:
    """Judge every window of a set against every kind of candidate."""
    record = {first: _recorded(first, table, names) for first, table in tables.items()}
    hits: dict[tuple[str, str, str], list[list[bool]]] = {}
    gross: dict[str, list[bool]] = {kind: [] for kind in PAIRS}
    verdicts: dict[tuple[str, int], list[str]] = {}
    means = {(kind, question): list[Any]() for kind in PAIRS for question in ("worse", "better")}
    told: list[Scales] = []
    for first, table in tables.items():
        known = [pair for other, pair in record.items() if abs(other - first) >= JUDGED]
        scales = scales_from(known)
        told.append(scales)
        for kind, (one, two) in PAIRS.items():
            harms = _harms(table, one, two, names)
            for question, signed in (("worse", harms), ("better", -harms)):
                means[kind, question].append(_beyond(signed, scales, names))
            answers = _answers(harms, scales, names)
            # What a young pipeline has: only pairs that were judged before, and its replicates.
            sides = (_score(table, side, names, JUDGED) for side in (one, two))
            past = [pair for other, pair in record.items() if first - other >= JUDGED]
            young = _answers(harms, compare(*sides, past).scales, names)
            answers |= {(asked, PAST): young[asked, "7, 28"] for asked in ("worse", "better")}
            for key, found in answers.items():
                hits.setdefault((kind, *key), []).append(found)
            for blocks in (2, 14, 28):
                decision = decide_gate(RULES, _evidence(table, one, two, names, known, blocks))
                if blocks == 2:
                    called = {x.verdict for x in decision.criteria if x.metric == "gross_harm"}
                    gross[kind].append("refuse" in called)
                else:
                    verdicts.setdefault((kind, blocks), []).append(decision.verdict)
    sigma_tau = ", ".join(
        f"{statistic} sigma {np.mean([s.sigma[statistic] for s in told]):.4f}, "
        f"tau/sigma {np.mean([s.tau[statistic] / s.sigma[statistic] for s in told]):.2f}"
        for statistic in names
    )
    return SetResult(
        name,
        len(tables),
        span,
        {key: [float(x) for x in np.mean(found, axis=0)] for key, found in hits.items()},
        {kind: float(np.mean(found)) for kind, found in gross.items()},
        {
            key: {v: found.count(v) / len(found) for v in ("accept", "refuse", "not_enough_evidence")}
            for key, found in verdicts.items()
        },
        sigma_tau,
        {key: _oracle(np.array(rows)) for key, rows in means.items()},
    )


RULES = Evaluation(gate=(GateCriterion(metric="quality", no_harm="auto"),), block_rows=1)


def _harms(
    table: Tables, one: str, two: str, names: tuple[str, ...], models: slice = slice(None)
) -> npt.NDArray[np.float64]:
    """Harm of a candidate, shape [S, K]."""
    sign = np.array([1.0 if name in LOWER_IS_BETTER else -1.0 for name in names])
    difference = table[one][models].mean(axis=0) - table[two][models].mean(axis=0)
    return np.asarray(sign[:, None] * difference)


def _answers(
    harms: npt.NDArray[np.float64], scales: Scales, names: tuple[str, ...]
) -> dict[tuple[str, str], list[bool]]:
    """Whether it is called worse or better by each of `AT`, by question and looking."""
    sigma = [scales.sigma[name] for name in names]
    margin = [scales.margins()[name] for name in names]
    found: dict[tuple[str, str], list[bool]] = {}
    for question, table in (("worse", harms), ("better", -harms)):
        test, z, peaks = BlockTest.new(sigma, margin), [0.0], [0.0]
        for column in table.T:
            test = test.add(column[:, None])
            z.append(test.z)
            peaks.append(test.peak)
        for looks, bounds in LOOKS.items():
            crossed = [look for look, bound in zip(looks, bounds, strict=True) if z[look] > bound]
            found[question, ", ".join(map(str, looks))] = [any(look <= at for look in crossed) for at in AT]
        found[question, ONCE] = [z[at] > fixed_look_bound(at) for at in AT]
        found[question, "always"] = [peaks[at] >= -math.log(0.05) for at in AT]
        loss = table[0]
        found[question, NAIVE] = [_t(loss[:at]) for at in AT]
    return found


def _t(differences: npt.NDArray[np.float64]) -> bool:
    kept = differences[np.isfinite(differences)]
    if len(kept) < 2 or not kept.std():
        return False
    return bool(kept.mean() > stats.t.ppf(0.95, len(kept) - 1) * kept.std(ddof=1) / math.sqrt(len(kept)))


def _beyond(
    harms: npt.NDArray[np.float64], scales: Scales, names: tuple[str, ...]
) -> npt.NDArray[np.float64]:
    """Harm beyond the margin by block, in units of scatter, all statistics together, shape [K]."""
    sigma = np.array([[scales.sigma[name]] for name in names])
    margin = np.array([[scales.margins()[name]] for name in names])
    return np.asarray(np.nan_to_num((harms - margin) / sigma).sum(axis=0))


def _oracle(rows: npt.NDArray[np.float64]) -> float:
    """Share of windows in which the mean over all 40 blocks exceeds the margin.

    Who knew the days' own effects would be left with the true mean of the window's pair, and would call no
    more windows worse than these: a bound on any test of fewer blocks that is not wrong.
    """
    return float(np.mean(rows.mean(axis=1) > 0))


def _score(table: Tables, kind: str, names: tuple[str, ...], blocks: int) -> ModelScore:
    models = table[kind]
    found = []
    for k in range(blocks):
        each = tuple(
            {name: float(x) for name, x in zip(names, model[:, k], strict=True) if np.isfinite(x)}
            for model in models
        )
        values = models[:, :, k].mean(axis=0)
        mean = {name: float(x) for name, x in zip(names, values, strict=True) if np.isfinite(x)}
        found.append(BlockScore(f"{k:03d}", int(table["rows"][k]), 0, {}, mean, each))
    return ModelScore(kind, {}, tuple(found))


def _outputs(table: Tables, one: str, two: str, blocks: int) -> tuple[OutputDifference, ...]:
    rows = table[f"{one}/{two}"][:blocks]
    sizes = table["rows"]
    return tuple(
        OutputDifference(f"{k:03d}", int(sizes[k]), *map(float, row))
        for k, row in enumerate(rows)
        if np.isfinite(row).all()
    )


def _recorded(first: int, table: Tables, names: tuple[str, ...]) -> RecordedPair:
    """What a pipeline that retrains every week would have recorded in this window."""
    one, two = PAIRS["a week fresher"]
    scores = _score(table, one, names, JUDGED), _score(table, two, names, JUDGED)
    pair = recorded_pair(*scores, _outputs(table, one, two, JUDGED))
    assert pair is not None
    return replace(pair, candidate=f"{one}-{first}", champion=f"{two}-{first}")


def _evidence(
    table: Tables, one: str, two: str, names: tuple[str, ...], known: list[RecordedPair], blocks: int
) -> GateEvidence:
    return GateEvidence(
        _score(table, one, names, blocks),
        _score(table, two, names, blocks),
        record=tuple(known),
        outputs=_outputs(table, one, two, blocks),
    )


def print_set(result: SetResult) -> None:
    """Print all rates of a set in percent, with standard errors."""
    chosen = "" if result.name in CHOSEN_ON else ", nothing was chosen on it"
    spans = result.span // JUDGED
    print(f"\n{result.name}: {result.windows} windows of {JUDGED} blocks, {spans} disjoint{chosen}")
    print(f"  {result.sigma_tau}")
    print(f"  {'candidate':<16}{'question':<9}{'looking':<32}" + "".join(f"{at:>11}" for at in AT))
    for (kind, question, looking), found in result.rates.items():
        if question != ("better" if "fresher" in kind else "worse") and kind not in ("same", "fresher"):
            continue
        cells = "".join(
            f"{100 * x:>7.0f} ±{100 * result.error(x, at):<2.0f}" for x, at in zip(found, AT, strict=True)
        )
        print(f"  {kind:<16}{question:<9}{looking:<32}{cells}")
    for kind, words in EARLIER.items():
        print(f"  measured before, {kind} worse at 3, 7, 14, 28 (flights / hotel): {words}")
    print("  by more than the margin over the window's 40 blocks (a bound: what knowing the days would say):")
    for question in ("worse", "better"):
        shares = [
            f"{kind} {100 * x:.0f} %" for (kind, asked), x in result.oracle.items() if asked == question
        ]
        print(f"    {question}: {', '.join(shares)}")
    print("  refused at 2 blocks for gross harm:")
    print("    " + ", ".join(f"{kind} {100 * found:.0f} %" for kind, found in result.gross.items()))
    print("  the gate's verdict with {metric: quality, no_harm: auto}, in one look (accept / refuse / more):")
    for (kind, blocks), shares in result.verdicts.items():
        numbers = " / ".join(f"{100 * share:.0f}" for share in shares.values())
        print(f"    {kind:<16} {blocks:>2} blocks   {numbers}")
