"""The gate on real bookings: models of one procedure, of shuffled labels, and their opposite."""

import functools

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier

from ctrain.evaluation import decide_gate, output_difference
from ctrain.evaluation.evidence import block_statistics, logit
from ctrain.records import BlockScore, GateEvidence, ModelScore
from ctrain.spec.evaluation import Evaluation, GateCriterion
from tests.datasets import load, needs_data

RULES = Evaluation(gate=(GateCriterion(metric="quality", no_harm="auto"),))
FIRST, TRAINED, BLOCKS, REPLICATES = 400, 40, 14, 2


@functools.cache
def probabilities(kind: str) -> np.ndarray:
    """Of each replicate on the judged rows, shape [R, rows]."""
    data = load("hotel")
    numbers = data.features.select_dtypes("number").to_numpy()
    train, judged = data.rows(FIRST - TRAINED, FIRST), data.rows(FIRST, FIRST + BLOCKS)
    found = []
    for seed in range(REPLICATES):
        rng = np.random.default_rng([seed, len(kind)])
        picked = rng.integers(0, train.stop - train.start, train.stop - train.start)
        label = data.label[train][picked]
        label = rng.permutation(label) if kind == "shuffled" else label
        model = HistGradientBoostingClassifier(max_iter=40, early_stopping=False, random_state=0)
        model.fit(numbers[train][picked], label)
        found.append(model.predict_proba(numbers[judged])[:, 1])
    return np.array(found)


def evidence(candidate: np.ndarray, champion: np.ndarray, blocks: int) -> GateEvidence:
    data = load("hotel")
    rows = data.rows(FIRST, FIRST + BLOCKS)
    label, day = data.label[rows], data.day[rows] - FIRST

    def score(models: np.ndarray) -> ModelScore:
        found = []
        for k in range(blocks):
            each = tuple(block_statistics(label[day == k], model[day == k]) for model in models)
            mean = {name: float(np.mean([one[name] for one in each])) for name in each[0]}
            count, positives = int((day == k).sum()), int(label[day == k].sum())
            found.append(BlockScore(str(k), count, positives, {}, mean, each))
        return ModelScore("m", {}, tuple(found))

    means = logit(candidate).mean(axis=0), logit(champion).mean(axis=0)
    days = [[mean[day == k] for mean in means] for k in range(blocks)]
    found = [output_difference(str(k), *pair, probabilities=False) for k, pair in enumerate(days)]
    outputs = tuple(one for one in found if one is not None)
    return GateEvidence(score(candidate), score(champion), outputs=outputs)


@needs_data
def test_a_model_of_the_same_procedure_is_not_refused_on_real_days() -> None:
    decision = decide_gate(RULES, evidence(probabilities("same"), probabilities("champion"), BLOCKS))
    assert decision.verdict != "refuse"
    assert decision.criteria[-1].reason == "not seen over 14 blocks"


@needs_data
def test_shuffled_labels_and_opposite_answers_are_refused_within_two_real_days() -> None:
    champion = probabilities("champion")
    for candidate in (probabilities("shuffled"), 1 - probabilities("same")):
        decision = decide_gate(RULES, evidence(candidate, champion, 2))
        assert decision.verdict == "refuse"
        assert "gross_harm" in decision.reason
