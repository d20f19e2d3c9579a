from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import safetensors.torch
import torch
from deltalake import write_deltalake
from factories import spec

from ctrain.data.ingest import ROWS_TABLE
from ctrain.errors import PartitionError
from ctrain.evaluation.score import Measures, evaluate, gather
from ctrain.features import Column, columns_to_json, feature_view
from ctrain.models.encoder import Encoder
from ctrain.records import EvaluationRequest, GateDecision, GateEvidence, ModelVersion
from ctrain.registry import TrainedSet, write_version
from ctrain.spec.evaluation import RATES
from ctrain.storage import Root
from ctrain.storage.code import load_attribute, store_code

DAYS = ("day-1", "day-2", "day-3", "day-4")
ENCODER = Encoder({}, {"size": (0.0, 1.0)}, {"size": (-1.0, 1.0)})
ROWS = 40


@feature_view(size=Column.number())
def view(rows):
    return {"size": rows["size"]}


class Steep(torch.nn.Module):
    """Logit: `slope` times the size."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = torch.nn.Parameter(torch.zeros(()))

    def forward(self, inputs):
        return self.slope * inputs[:, 0]


def steep(inputs):
    return Steep()


@pytest.fixture
def root(tmp_path: Path) -> Root:
    """Four days on which a row is positive if its size is."""
    root = Root(tmp_path)
    sizes = np.tile(np.linspace(-1, 1, ROWS), len(DAYS))
    times = np.datetime64("2026-01-01", "us") + np.arange(len(sizes))
    columns = {"partition": np.repeat(DAYS, ROWS), "size": sizes, "y": 1.0 * (sizes > 0), "t": times}
    table = pa.table({name: pa.array(values) for name, values in columns.items()})
    write_deltalake(root.pipeline("p").tables / ROWS_TABLE, table, partition_by=["partition"])
    return root


def version(
    root: Root, slope: float, partitions=DAYS, blocks=DAYS[-2:], trained=(), **changes
) -> ModelVersion:
    data = safetensors.torch.save({"slope": torch.tensor(slope)})
    fields = {
        "pipeline": "p", "run_id": "r", "code": "", "features": f"{__name__}:view", "view_hash": view.hash,
        "columns": columns_to_json(view.columns),
        "model": {"type": "module", "factory": f"{__name__}:steep", "arguments": {}}, "label": "y",
        "threshold": 0.5, "dataset_version": 0, "partitions": partitions, "blocks": blocks, "seed": 0,
        "workers": 1, "parent": "", "rows": 0, "spec_sha256": "", "environment": {}, **changes,
    }  # fmt: skip
    both = [TrainedSet(name, data, ENCODER.to_json()) for name in ("judged-0", "served")]
    return write_version(root, fields, trained or both)


def judge(root: Root, candidate: ModelVersion, champion: ModelVersion | None = None) -> GateDecision:
    rules = [{"metric": "auc", "at_least": 0.9}, {"metric": "brier", "no_harm": 0.01}]
    wanted = spec(evaluation={"blocks": 2, "gate": rules}).to_json()
    other = champion.id if champion else ""
    return evaluate(EvaluationRequest("k", "p", str(root.path), wanted, candidate.id, other))


def test_both_models_are_scored_block_by_block_on_the_candidates_blocks(root: Root) -> None:
    candidate, champion = version(root, 5.0), version(root, 0.0)
    decision = judge(root, candidate, champion)
    assert decision.verdict == "accept"
    assert [score.block for score in decision.candidate_score.blocks] == list(DAYS[-2:])
    assert [(score.rows, score.positives) for score in decision.candidate_score.blocks] == [(ROWS, 20)] * 2
    assert decision.candidate_score.overall["auc"] == 1.0
    assert decision.champion_score is not None
    assert decision.champion_score.overall["brier"] == pytest.approx(0.25)
    assert decision.criteria[1].difference == pytest.approx(0.25 - decision.criteria[1].value)


def test_a_champion_is_compared_on_the_blocks_that_it_has_not_trained_on(root: Root) -> None:
    candidate = version(root, 5.0, blocks=DAYS[1:])
    champion = version(root, 6.0, partitions=DAYS[:3], blocks=DAYS[2:3])  # has trained on day-2
    decision = judge(root, candidate, champion)
    assert decision.champion_score is not None
    assert [score.block for score in decision.champion_score.blocks] == ["day-3", "day-4"]
    assert decision.criteria[1].blocks == 2
    assert len(decision.candidate_score.blocks) == 3
    assert decision.criteria[0].blocks == 3


def test_a_champion_that_has_trained_on_nearly_all_blocks_leaves_too_little_evidence(root: Root) -> None:
    candidate = version(root, 5.0)
    for blocks in (DAYS[-1:], ()):
        decision = judge(root, candidate, version(root, 6.0, blocks=blocks))
        assert decision.verdict == "not_enough_evidence"
        assert [result.verdict for result in decision.criteria][:2] == ["accept", "not_enough_evidence"]
        assert "the champion has trained on day-3" in decision.reason


def test_a_candidate_without_judged_blocks_lacks_evidence(root: Root) -> None:
    assert judge(root, version(root, 5.0, blocks=())).verdict == "not_enough_evidence"


def test_a_judged_block_that_the_dataset_lacks_is_named(root: Root) -> None:
    candidate = version(root, 5.0, blocks=("day-4", "day-9"))
    with pytest.raises(PartitionError, match="partition day-9: is not in dataset version 0"):
        judge(root, candidate)


def test_the_truth_is_the_candidates_label(root: Root) -> None:
    candidate, champion = version(root, 5.0), version(root, 5.0, label="renamed")
    assert judge(root, candidate, champion).criteria[1].difference == 0.0


@feature_view(size=Column.number(), weight=Column.number())
def wider_view(rows):
    return {"size": rows["size"] + rows["weight"]}


def test_a_champion_whose_view_wants_a_column_that_is_gone_leaves_too_little_evidence(root: Root) -> None:
    older = {"features": f"{__name__}:wider_view", "view_hash": wider_view.hash}
    candidate, champion = version(root, 5.0), version(root, 6.0, **older)
    decision = judge(root, candidate, champion)
    assert [result.verdict for result in decision.criteria][:2] == ["accept", "not_enough_evidence"]
    assert decision.reason.endswith("the champion's feature view cannot read day-3, day-4")
    with pytest.raises(PartitionError, match="lacks column 'weight'"):
        judge(root, champion, candidate)


def test_each_version_is_scored_with_the_features_of_its_own_code(root: Root, tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "scored_view.py").write_text(
        "from ctrain.features import Column, feature_view\n"
        "@feature_view(size=Column.number())\n"
        "def view(rows):\n"
        "    from scored_helper import SIGN\n"
        "    return {'size': SIGN * rows['size']}\n"
    )
    versions = []
    for sign in (1, -1):  # the view's own source, and so its hash, stays the same
        (tmp_path / "code" / "scored_helper.py").write_text(f"SIGN = {sign}")
        code = store_code(root, tmp_path / "code")
        view_hash = load_attribute(root, code, "scored_view:view").hash
        changes = {"code": code, "features": "scored_view:view", "view_hash": view_hash}
        versions.append(version(root, 5.0, **changes))
    decision = judge(root, *versions)
    assert decision.candidate_score.overall["auc"] == 1.0
    assert decision.champion_score is not None
    assert decision.champion_score.overall["auc"] == 0.0


def trained(slope: float, name: str, left_out: tuple[str, ...] = (), seed: int = 0) -> TrainedSet:
    data = safetensors.torch.save({"slope": torch.tensor(slope)})
    return TrainedSet(name, data, ENCODER.to_json(), seed, left_out)


def gathered(root: Root, candidate: ModelVersion, champion: str = "", **changes) -> GateEvidence:
    gate = changes.pop("gate", [{"metric": "auc", "at_least": 0.9}])
    asked = spec(evaluation={"blocks": 2, "gate": gate})
    request = EvaluationRequest("k", "p", str(root.path), asked.to_json(), candidate.id, champion, **changes)
    return gather(request, asked, root, candidate)


def test_replicates_are_averaged_and_kept_apart(root: Root) -> None:
    sets = [trained(2.0, "judged-0"), trained(-2.0, "judged-1"), trained(1.0, "served")]
    score = gathered(root, version(root, 0.0, trained=sets)).candidate
    assert [[one["auc"] for one in block.replicates] for block in score.blocks] == [[1.0, 0.0]] * 2
    assert [block.statistics["auc"] for block in score.blocks] == [0.5, 0.5]
    assert score.overall["auc"] == 0.5


def test_each_refit_is_scored_on_the_stretch_that_it_left_out(root: Root) -> None:
    sets = [
        trained(2.0, "judged-0", DAYS[-2:]), trained(2.0, "refit-0", DAYS[-2:-1]),
        trained(-2.0, "refit-1", DAYS[-1:]), trained(1.0, "served"),
    ]  # fmt: skip
    refit = gathered(root, version(root, 0.0, trained=sets)).refit
    assert refit is not None
    assert [(block.block, block.statistics["auc"]) for block in refit.blocks] == [
        ("day-3", 1.0),
        ("day-4", 0.0),
    ]


def test_the_base_rate_is_that_of_the_rows_learned_from(root: Root) -> None:
    (baseline,) = gathered(root, version(root, 5.0)).baselines
    assert baseline.overall["brier"] == pytest.approx(0.25)
    assert baseline.overall["auc"] == 0.5


def test_the_first_champion_is_shown_beside_unless_it_is_one_of_the_two(root: Root) -> None:
    candidate, champion, first = version(root, 5.0), version(root, 4.0), version(root, -1.0)
    static = gathered(root, candidate, champion.id, static=first.id).static
    assert static is not None
    assert (static.version, static.overall["auc"]) == ("the first champion", 0.0)
    assert gathered(root, candidate, champion.id, static=champion.id).static is None


def test_outputs_are_compared_block_by_block(root: Root) -> None:
    outputs = gathered(root, version(root, 4.0), version(root, 2.0).id).outputs
    assert [one.block for one in outputs] == list(DAYS[-2:])
    assert outputs[0].log_sd_ratio == pytest.approx(np.log(2), rel=1e-4)
    assert outputs[0].correlation == pytest.approx(1.0)


def test_latency_is_timed_where_a_criterion_asks_for_it(root: Root) -> None:
    candidate = version(root, 5.0)
    assert gathered(root, candidate).latency == {}
    found = gathered(root, candidate, gate=[{"metric": "latency_p99", "at_most": "1s"}])
    assert 0 < found.latency["p50"] <= found.latency["p99"]
    assert found.size == candidate.served.size


def profit(labels, probabilities):
    return float(labels[probabilities >= 0.5].sum())


def broken(labels, probabilities):
    raise RuntimeError("no price list")


def test_a_cost_matrix_and_the_users_metrics_are_scored_like_the_others(root: Root) -> None:
    asked = spec(
        evaluation={
            "blocks": 2,
            "costs": {"true_positive": 5, "false_positive": -1},
            "metrics": {"profit": f"{__name__}:profit", "broken": f"{__name__}:broken"},
            "gate": [
                {"metric": "value", "at_least": 2.0},
                {"metric": "profit", "at_least": 30},
                {"metric": "broken", "at_least": 0},
            ],
        }
    )
    candidate = version(root, 5.0)
    request = EvaluationRequest("k", "p", str(root.path), asked.to_json(), candidate.id, "")
    value, own, failed, *_ = evaluate(request).criteria
    assert (value.value, value.verdict) == (2.5, "accept")  # half of the rows are positive
    assert (own.value, own.verdict) == (40.0, "accept")
    assert failed.verdict == "not_enough_evidence"
    assert "no price list" in failed.reason


def test_rates_of_decisions_are_those_of_a_plain_count_and_absent_where_nothing_is_counted() -> None:
    rng = np.random.default_rng(4)
    labels, outputs = (rng.random(300) < 0.3).astype(float), rng.random(300)
    found = Measures(0.6, rates=RATES).values(labels, outputs)
    decided = outputs >= 0.6
    assert found["positive_rate"] == pytest.approx(decided.mean())
    assert found["true_positive_rate"] == pytest.approx(decided[labels == 1].mean())
    assert found["false_positive_rate"] == pytest.approx(decided[labels == 0].mean())
    assert "true_positive_rate" not in Measures(0.6, rates=RATES).values(np.zeros(5), np.full(5, 0.9))
