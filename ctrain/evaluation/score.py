"""Score versions on judged blocks and gather the gate's evidence: the part of this room that loads weights.

All models are scored out of sample. The candidate's replicates left the judged blocks out; a champion, or
the pipeline's first model, is scored on those of them that it has not learned from; each refit on the stretch
that it left out.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ctrain.data.read import Dataset
from ctrain.errors import PartitionError
from ctrain.evaluation.blocks import block_statistics, logit
from ctrain.evaluation.gate import decide_gate
from ctrain.evaluation.gross import output_difference
from ctrain.evaluation.influence import influence
from ctrain.evaluation.metrics import CostMatrix, score_binary
from ctrain.evaluation.segment_keys import segment_key
from ctrain.evaluation.segments import SegmentSearch, search_segments
from ctrain.evaluation.soundness import CandidateRows, censoring, leaks, unlabelled
from ctrain.evaluation.user_metrics import UserMetric, load_user_metric, score_user_metrics
from ctrain.features import columns_from_json
from ctrain.models.loading import load_network
from ctrain.records import (
    BlockScore,
    EvaluationRequest,
    GateDecision,
    GateEvidence,
    ModelScore,
    ModelVersion,
    OutputDifference,
    SegmentScore,
    WeightSet,
)
from ctrain.registry import read_version
from ctrain.spec import PipelineSpec, parse_spec
from ctrain.spec.evaluation import RATES
from ctrain.storage import open_root
from ctrain.storage.root import Root

Floats = npt.NDArray[np.float64]

SEGMENT_METRIC = "log_loss"
"""What the search for the worst segments compares, beside what criteria name."""

TIMED_REQUESTS = 200


def evaluate(request: EvaluationRequest) -> GateDecision:
    """Gather the evidence on a candidate and decide the gate.

    Raises:
        DataError: if a judged block cannot be read.
        StorageError: if a version or its weights cannot.
    """
    spec = parse_spec(request.spec)
    root = Root(Path(request.root), open_root(request.root).store)
    candidate = read_version(root, request.candidate)
    return decide_gate(spec.evaluation, gather(request, spec, root, candidate))


def gather(
    request: EvaluationRequest, spec: PipelineSpec, root: Root, candidate: ModelVersion
) -> GateEvidence:
    """Everything that the gate decides on."""
    judge = Judge(root, candidate)
    mine = judge.score(candidate, candidate.judged, candidate.blocks)
    champion = first = None
    if request.champion:
        version = read_version(root, request.champion)
        champion = judge.score(version, version.judged, blocks_unseen_by(version, candidate.blocks))
    if request.static not in ("", request.champion, request.candidate):
        version = read_version(root, request.static)
        first = judge.score(version, version.judged, blocks_unseen_by(version, candidate.blocks))
    refits = [part for one in candidate.refits for part in judge.score(candidate, [one], one.left_out)]
    measures = Measures.of(spec, candidate.threshold)
    raw = judge.raw(mine)
    known, doubted = leaks(spec, judge.rows, raw, [(one.block, one.labels) for one in mine])
    return GateEvidence(
        candidate=model_score(candidate.id, mine, measures),
        champion=model_score(request.champion, champion, measures) if champion is not None else None,
        static=model_score("the first champion", first, measures) if first is not None else None,
        baselines=(model_score("the base rate", judge.base_rate(mine), measures),) if mine else (),
        refit=model_score(candidate.id, refits, measures) if refits else None,
        record=request.record,
        uses=request.uses,
        outputs=tuple(_outputs(mine, champion or [])),
        segments=tuple(_segments(spec, raw, mine, champion)),
        groups=_groups(spec, raw, mine, measures),
        leaks=known,
        doubts=doubted,
        censoring=censoring(spec, judge.rows, request.landed),
        unlabelled=unlabelled(candidate, request.landed),
        latency=judge.latency() if _asks_latency(spec) else {},
        size=candidate.served.size,
        missing=measures.missing(mine),
    )


def blocks_unseen_by(version: ModelVersion, blocks: Iterable[str]) -> tuple[str, ...]:
    """Those of the blocks that a version's judged weights have not trained on."""
    seen = set(version.partitions) - set(version.blocks)
    return tuple(block for block in blocks if block not in seen)


@dataclass(frozen=True, slots=True)
class Scored:
    """One block as R replicates of a model score it."""

    block: str
    labels: Floats
    """0 or 1, shape [B]; empty where the model's view cannot read the block."""
    outputs_RB: Floats
    """Probabilities."""

    @property
    def mean(self) -> Floats:
        """Probability of the replicates' mean logit, shape [B]."""
        found: Floats = 1 / (1 + np.exp(-logit(self.outputs_RB).mean(axis=0)))
        return found

    def at(self, chosen: npt.NDArray[np.bool_]) -> Scored:
        """Some of the rows."""
        return Scored(self.block, self.labels[chosen], self.outputs_RB[:, chosen])


class Judge:
    """Scores versions on the candidate's rows.

    Args:
        root: Where versions and rows lie.
        candidate: Whose dataset version and label are judged on.
    """

    def __init__(self, root: Root, candidate: ModelVersion) -> None:
        self._root, self._candidate = root, candidate

    def score(self, version: ModelVersion, sets: Sequence[WeightSet], blocks: Iterable[str]) -> list[Scored]:
        """Score blocks by some of a version's sets of weights.

        Raises:
            DataError: if the candidate itself cannot read a block; another version has no row there.
        """
        dataset = self._dataset(version)
        networks = [load_network(self._root, version, one) for one in sets]
        found = []
        for block in blocks:
            try:
                features = dataset.features(block, networks[0].view, self._candidate.label)
            except PartitionError:
                if version.id == self._candidate.id:
                    raise
                found.append(Scored(block, np.empty(0), np.empty((len(sets), 0))))
                continue
            outputs = []
            for number, network in enumerate(networks):
                if number == 0 or network.encoder != networks[number - 1].encoder:
                    matrix = network.encoder.encode(features.arrays)
                outputs.append(network.probabilities(matrix))
            found.append(Scored(block, features.label.astype(np.float64), np.array(outputs)))
        return found

    def base_rate(self, scored: Sequence[Scored]) -> list[Scored]:
        """The trivial model that answers the share of positives among the rows that were learned from."""
        version = self._candidate
        dataset, view = self._dataset(version), load_network(self._root, version, version.judged[0]).view
        learned = [name for name in version.partitions if name not in version.blocks]
        counts = [dataset.labels(name, view, version.label) for name in learned]
        rows = sum(map(len, counts))
        rate = float(sum(labels.sum() for labels in counts)) / rows if rows else 0.5
        return [Scored(one.block, one.labels, np.full((1, len(one.labels)), rate)) for one in scored]

    def raw(self, scored: Sequence[Scored]) -> dict[str, npt.NDArray[Any]]:
        """Raw columns of all judged rows, but for timestamps."""
        columns = columns_from_json(self._candidate.columns)
        kept = {name: column for name, column in columns.items() if column.kind != "timestamp"}
        return self.rows.columns([one.block for one in scored], kept)

    @property
    def rows(self) -> CandidateRows:
        """The candidate's rows as they landed."""
        return CandidateRows(self._candidate, self._dataset(self._candidate))

    def latency(self) -> dict[str, float]:
        """Seconds for one request inside the served model, as a replica runs it: p50, p99."""
        from ctrain.serving.weights import TorchModel, example_row

        version = self._candidate
        network = load_network(self._root, version, version.served)
        model, row = TorchModel(network, version.served.sha256), example_row(version.columns)
        seconds = []
        for _ in range(TIMED_REQUESTS):
            start = time.perf_counter()
            model.predict([row])
            seconds.append(time.perf_counter() - start)
        return {"p50": float(np.quantile(seconds, 0.5)), "p99": float(np.quantile(seconds, 0.99))}

    def _dataset(self, version: ModelVersion) -> Dataset:
        on = self._candidate
        return Dataset(self._root, on.pipeline, on.dataset_version, version.code)


@dataclass(frozen=True, slots=True)
class Measures:
    """The metrics of a pipeline."""

    threshold: float
    """Probability at and above which the decision is positive."""
    costs: CostMatrix | None = None
    own: Mapping[str, UserMetric] = field(default_factory=dict)
    """The user's."""
    rates: tuple[str, ...] = ()
    """Rates of decisions."""

    @classmethod
    def of(cls, spec: PipelineSpec, threshold: float) -> Measures:
        """Those of a spec. Raises UserCodeError if a metric of the user's cannot be imported."""
        wanted = spec.evaluation
        costs = CostMatrix(**wanted.costs.model_dump()) if wanted.costs is not None else None
        return cls(threshold, costs, {name: load_user_metric(path) for name, path in wanted.metrics.items()})

    def values(self, labels: Floats, outputs: Floats) -> dict[str, float]:
        """Metrics of some rows by name; one that has no value there is absent."""
        found = score_binary(labels, outputs, self.threshold, costs=self.costs).values
        rates = {name: influence(name, labels, outputs, self.threshold) for name in self.rates}
        known = {name: rate[0] for name, rate in rates.items() if rate is not None}
        return {**found, **known, **score_user_metrics(self.own, labels, outputs).values}

    def missing(self, scored: Sequence[Scored]) -> dict[str, str]:
        """Why the user's metrics have no value on all rows of the first replicate."""
        if not scored or not self.own:
            return {}
        labels = np.concatenate([one.labels for one in scored])
        return dict(score_user_metrics(self.own, labels, _together(scored)[0]).missing)


def _together(scored: Sequence[Scored]) -> Floats:
    """Outputs of all blocks, shape [R, B]."""
    found: Floats = np.concatenate([one.outputs_RB for one in scored], axis=1)
    return found


def model_score(name: str, scored: Sequence[Scored], measures: Measures) -> ModelScore:
    """Metrics of all rows together and block by block: means over the replicates.

    Args:
        name: Id of the version, or words for a trivial model.
        scored: Its blocks in the order of time.
        measures: Which metrics.
    """
    blocks = []
    for one in scored:
        statistics = [block_statistics(one.labels, outputs) for outputs in one.outputs_RB]
        metrics = [measures.values(one.labels, outputs) for outputs in one.outputs_RB]
        blocks.append(
            BlockScore(
                block=one.block,
                rows=len(one.labels),
                positives=int(one.labels.sum()),
                metrics=_mean(metrics),
                statistics=_mean(statistics),
                replicates=tuple(statistics),
            )
        )
    if not scored:
        return ModelScore(name, {}, ())
    labels = np.concatenate([one.labels for one in scored])
    overall = _mean([measures.values(labels, outputs) for outputs in _together(scored)])
    return ModelScore(name, overall, tuple(blocks))


def _mean(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each value that all have."""
    names = [name for name in found[0] if all(name in one for one in found)] if found else []
    return {name: float(np.mean([one[name] for one in found])) for name in names}


def _outputs(mine: Sequence[Scored], champion: Sequence[Scored]) -> Iterable[OutputDifference]:
    other = {one.block: one for one in champion}
    for one in mine:
        if one.block in other and len(other[one.block].labels) == len(one.labels):
            found = output_difference(one.block, one.mean, other[one.block].mean)
            if found is not None:
                yield found


def _segments(
    spec: PipelineSpec,
    raw: Mapping[str, npt.NDArray[Any]],
    mine: Sequence[Scored],
    champion: Sequence[Scored] | None,
) -> Iterable[SegmentScore]:
    """What criteria ask by segment, and a search for the worst segments of all categories."""
    if not raw:
        return
    for rule in spec.evaluation.gate:
        if rule.segments:
            margin = rule.no_harm if isinstance(rule.no_harm, float) else 0.0
            wanted = {name: raw[name] for name in rule.segments if name in raw}
            yield from _search(wanted, mine, champion, rule.metric, margin, spec).segments
    categories = {name: values for name, values in raw.items() if values.dtype.kind == "U"}
    yield from _search(categories, mine, champion, SEGMENT_METRIC, 0.0, spec).segments


def _search(
    columns: Mapping[str, npt.NDArray[Any]],
    mine: Sequence[Scored],
    champion: Sequence[Scored] | None,
    metric: str,
    margin: float,
    spec: PipelineSpec,
) -> SegmentSearch:
    """Search the blocks that both models could be scored on."""
    other = {one.block: one for one in champion or () if len(one.labels)}
    sizes = [len(one.labels) for one in mine]
    kept = [champion is None or one.block in other for one in mine]
    rows = np.repeat(kept, sizes)
    numbers = np.repeat(np.arange(len(mine)), sizes)[rows]
    both = [one for one, there in zip(mine, kept, strict=True) if there]

    def together(parts: Sequence[Floats]) -> Floats:
        return np.concatenate(parts) if parts else np.empty(0)

    return search_segments(
        together([one.labels for one in both]),
        together([one.mean for one in both]),
        None if champion is None else together([other[one.block].mean for one in both]),
        numbers,
        [segment_key(name, values[rows]) for name, values in columns.items()],
        metric=metric,
        threshold=spec.evaluation.threshold,
        margin=margin,
        costs=CostMatrix(**spec.evaluation.costs.model_dump()) if spec.evaluation.costs else None,
        confidence=spec.evaluation.confidence,
    )


def _groups(
    spec: PipelineSpec, raw: Mapping[str, npt.NDArray[Any]], mine: Sequence[Scored], measures: Measures
) -> dict[str, ModelScore]:
    """The candidate on the rows of each group that a criterion names."""
    found = {}
    measures = replace(measures, rates=RATES)
    starts = np.cumsum([0, *(len(one.labels) for one in mine)])
    for group in {group for rule in spec.evaluation.gate for group in rule.between}:
        name, value = group.split("=", 1)
        if name not in raw:
            continue
        key = segment_key(name, raw[name])
        inside = np.array([key.segment(int(code)) == f"{name}={value}" for code in key.codes], bool)
        parts = [
            one.at(inside[start : start + len(one.labels)]) for one, start in zip(mine, starts, strict=False)
        ]
        found[group] = model_score(group, parts, measures)
    return found


def _asks_latency(spec: PipelineSpec) -> bool:
    return any(rule.metric.startswith("latency") for rule in spec.evaluation.gate)
