"""Which sets of weights a run trains, in which order. Pure.

`judged-0` to `judged-<R-1>` leave all judged blocks out and differ by their seed alone: the gate averages
them, since the luck of one training is most of a day's noise. `refit-<i>` leave one stretch of the judged
blocks out each: what they say there, out of sample, is what can be known of a refit before it serves.
`served` learns from everything and is what answers requests.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from ctrain.records import RunRequest
from ctrain.spec import PipelineSpec

SERVED = "served"


@dataclass(frozen=True, slots=True)
class PlannedSet:
    """One set of weights to be trained."""

    name: str
    seed: int
    left_out: tuple[str, ...] = ()
    """Partitions of the window that it does not learn from."""


def planned_sets(request: RunRequest, spec: PipelineSpec) -> tuple[PlannedSet, ...]:
    """The sets of a run in the order of training, `served` last."""
    blocks, seed = request.blocks, request.seed
    replicates = range(spec.evaluation.replicates)
    folds = spec.evaluation.refit_folds
    bounds = [round(fold * len(blocks) / folds) for fold in range(folds + 1)] if folds else []
    stretches = [blocks[start:end] for start, end in pairwise(bounds) if start < end]
    if len(stretches) < 2:
        stretches = []  # without all blocks it is judged-0 again
    return (
        *(PlannedSet(f"judged-{number}", seed + number, blocks) for number in replicates),
        *(PlannedSet(f"refit-{number}", seed, left_out) for number, left_out in enumerate(stretches)),
        PlannedSet(SERVED, seed),
    )
