from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ctrain.evaluation import decide_gate, recorded_pair, with_pair
from ctrain.evaluation.compare import RECORDED, compare, interval_of
from ctrain.records import (
    BlockScore,
    Censoring,
    GateDecision,
    GateEvidence,
    LeakFinding,
    ModelScore,
    OutputDifference,
    RecordedPair,
    SegmentScore,
    from_json,
    to_json,
)
from ctrain.spec.evaluation import Evaluation, GateCriterion, Leaks


def score(name: str, values: list[float], metric: str = "auc") -> ModelScore:
    blocks = tuple(BlockScore(f"day-{n}", 100, 20, {metric: v}) for n, v in enumerate(values))
    return ModelScore(name, {metric: float(np.mean(values))}, blocks)


def gate(*criteria: GateCriterion) -> Evaluation:
    return Evaluation(gate=criteria)


def decide(rules: Evaluation, candidate: ModelScore, champion: ModelScore | None = None, **more):
    return decide_gate(rules, GateEvidence(candidate, champion, **more))


def test_the_paired_interval_is_the_t_interval_of_day_differences() -> None:
    one, other = [0.70, 0.71, 0.69, 0.72], [0.69, 0.69, 0.70, 0.70]
    found = interval_of(compare(score("a", one), score("b", other)), "auc", 0.95)
    assert found is not None
    low, high = stats.ttest_rel(one, other).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((low, high))


def test_lower_is_better_turns_the_sign() -> None:
    better, worse = [0.40, 0.42, 0.41], [0.50, 0.51, 0.53]
    models = score("a", better, "log_loss"), score("b", worse, "log_loss")
    found = interval_of(compare(*models), "log_loss", 0.95)
    assert found is not None
    assert found.difference > 0


@pytest.mark.parametrize(
    ("candidate", "verdict"),
    [
        ([0.70, 0.71, 0.69, 0.70], "accept"),
        ([0.50, 0.51, 0.49, 0.50], "refuse"),
        ([0.60, 0.80, 0.55, 0.75], "not_enough_evidence"),
    ],
)
def test_no_harm_accepts_refuses_or_asks_for_more(candidate: list[float], verdict: str) -> None:
    champion = score("b", [0.70, 0.70, 0.70, 0.70])
    decision = decide(gate(GateCriterion(metric="auc", no_harm=0.02)), score("a", candidate), champion)
    assert decision.verdict == verdict
    assert decision.criteria[0].blocks == 4


def test_the_first_model_has_absolute_criteria_only() -> None:
    rules = gate(GateCriterion(metric="auc", no_harm=0.02), GateCriterion(metric="auc", at_least=0.65))
    assert decide(rules, score("a", [0.7, 0.7]), None).verdict == "accept"
    assert decide(rules, score("a", [0.6, 0.6]), None).verdict == "refuse"


def test_at_most_keeps_what_is_at_the_bound_and_refuses_what_is_above() -> None:
    rules = gate(GateCriterion(metric="log_loss", at_most=0.5))
    assert decide(rules, score("a", [0.5, 0.5], "log_loss"), None).verdict == "accept"
    refused = decide(rules, score("a", [0.5, 0.7], "log_loss"), None)
    assert refused.verdict == "refuse"
    assert refused.reason == "log_loss 0.6000, expected at most 0.5"


@pytest.mark.parametrize(
    ("losses", "verdict", "words"),
    [
        ([0.40, 0.41, 0.39, 0.40], "accept", "log_loss better by 0.1000 (95% +0.0870 … +0.1130, positive"),
        ([0.60, 0.61, 0.59, 0.60], "refuse", "log_loss worse by 0.1000 (95% -0.1130 … -0.0870, positive"),
        ([0.40, 0.65, 0.45, 0.60], "not_enough_evidence", "log_loss worse by 0.0250 (95% -0.2"),
    ],
)
def test_no_harm_of_a_loss_is_better_where_it_is_lower(losses, verdict: str, words: str) -> None:
    champion = score("b", [0.50, 0.50, 0.50, 0.50], "log_loss")
    rules = gate(GateCriterion(metric="log_loss", no_harm=0.02))
    decision = decide(rules, score("a", losses, "log_loss"), champion)
    assert decision.verdict == verdict
    assert decision.reason.startswith(words)


def test_one_refusal_decides_whatever_else_lacks_evidence() -> None:
    unsure = GateCriterion(metric="auc", no_harm=0.02)
    refused = GateCriterion(metric="auc", at_least=0.9)
    decision = decide(gate(unsure, refused), score("a", [0.8]), score("b", [0.8]))
    assert [result.verdict for result in decision.criteria] == ["not_enough_evidence", "refuse"]
    assert decision.verdict == "refuse"
    assert decision.reason == "auc 0.8000, expected at least 0.9"


def test_fewer_than_two_common_blocks_say_which_the_champion_has_trained_on() -> None:
    candidate, champion = score("a", [0.8, 0.8, 0.8]), score("b", [0.1])
    decision = decide(gate(GateCriterion(metric="auc", no_harm=0.02)), candidate, champion)
    assert decision.verdict == "not_enough_evidence"
    assert decision.reason == (
        "auc has no value for both models on two of the judged blocks; "
        "the champion has trained on day-1, day-2"
    )


def test_the_comparison_is_on_the_blocks_that_both_models_have() -> None:
    candidate = score("a", [0.8, 0.8, 0.1])
    decision = decide(gate(GateCriterion(metric="auc", no_harm=0.02)), candidate, score("b", [0.8, 0.8]))
    assert (decision.verdict, decision.criteria[0].blocks) == ("accept", 2)


def test_a_metric_that_blocks_of_one_class_cannot_give_lacks_evidence() -> None:
    blocks = tuple(BlockScore(f"day-{n}", 10, 10, {"brier": 0.1}) for n in range(3))
    candidate, champion = ModelScore("a", {"brier": 0.1}, blocks), ModelScore("b", {"brier": 0.1}, blocks)
    rules = gate(GateCriterion(metric="auc", at_least=0.6), GateCriterion(metric="auc", no_harm=0.02))
    decision = decide(rules, candidate, champion)
    assert [result.value for result in decision.criteria] == [None, None]
    assert decision.verdict == "not_enough_evidence"
    assert "auc cannot be computed on the judged blocks" in decision.reason


# Combined evidence, and what stands beside the spec's criteria

NAMES = ("capped_log_loss", "auc", "adjusted_log_loss")
QUALITY = gate(GateCriterion(metric="quality", no_harm="auto"))


def judged(name: str, seed: int, harm: float = 0.0, blocks: int = 14, replicates: int = 3) -> ModelScore:
    """Three statistics a block: the day's own level, which all models share, and each model's luck."""
    rng = np.random.default_rng(seed)
    day = np.random.default_rng(99).normal(0.0, 0.05, blocks)
    luck = rng.normal(0.0, 0.01, (replicates, blocks, 3)) + np.array([harm, -harm, harm])
    found = []
    for k in range(blocks):
        each = tuple(
            {n: 0.7 + day[k] + x for n, x in zip(NAMES, luck[r, k], strict=True)} for r in range(replicates)
        )
        mean = {n: float(np.mean([one[n] for one in each])) for n in NAMES}
        found.append(BlockScore(f"day-{k:02d}", 200, 60, {"auc": mean["auc"]}, mean, each))
    return ModelScore(name, {"auc": 0.7}, tuple(found))


def recorded(count: int = 12) -> tuple[RecordedPair, ...]:
    pairs = [recorded_pair(judged("a", 2 * n + 100), judged("b", 2 * n + 101)) for n in range(count)]
    return tuple(pair for pair in pairs if pair is not None)


RECORD = recorded()


def test_a_candidate_of_the_same_procedure_is_accepted_and_a_spoiled_one_refused() -> None:
    champion = judged("b", 1)
    assert decide(QUALITY, judged("a", 2), champion, record=RECORD).verdict == "accept"
    spoiled = decide(QUALITY, judged("a", 2, harm=0.01), champion, record=RECORD)
    assert spoiled.verdict == "refuse"
    result = spoiled.criteria[0]
    assert (result.metric, result.blocks) == ("quality", 14)
    assert result.high is not None
    assert result.high < 0
    assert "12 recorded pairs" in result.reason


def test_few_blocks_lack_evidence_and_say_how_many_would_do() -> None:
    two = decide(QUALITY, judged("a", 2, blocks=2), judged("b", 1, blocks=2), record=RECORD).criteria[0]
    assert (two.verdict, two.needed) == ("not_enough_evidence", 3)
    four = decide(QUALITY, judged("a", 2, 0.003, 4), judged("b", 1, blocks=4), record=RECORD).criteria[0]
    assert four.verdict == "not_enough_evidence"
    assert four.needed is not None
    assert 4 < four.needed < 60
    assert f"about {four.needed} blocks would be enough" in four.reason


def test_better_asks_for_proof() -> None:
    rules, champion = gate(GateCriterion(metric="quality", better=True)), judged("b", 1)
    assert decide(rules, judged("a", 2, -0.01), champion, record=RECORD).verdict == "accept"
    assert decide(rules, judged("a", 2), champion, record=RECORD).verdict == "not_enough_evidence"
    assert decide(rules, judged("a", 2, 0.01), champion, record=RECORD).verdict == "refuse"


def test_a_margin_below_what_retrains_differ_by_is_raised_and_said() -> None:
    wide = tuple(replace(pair, mean=dict.fromkeys(NAMES, 0.05 * (-1) ** k)) for k, pair in enumerate(RECORD))
    rules = gate(GateCriterion(metric="auc", no_harm=0.001))
    result = decide(rules, judged("a", 2, 0.004), judged("b", 1), record=wide).criteria[0]
    assert result.threshold == pytest.approx(0.5 * 0.05, rel=0.3)
    assert result.verdict == "accept"
    assert "raised to" in result.reason


def test_pairs_of_another_number_of_replicates_do_not_count() -> None:
    single = tuple(replace(pair, replicates=1) for pair in RECORD)
    reason = decide(QUALITY, judged("a", 2), judged("b", 1), record=single).criteria[0].reason
    assert "0 recorded pairs, so the replicates" in reason


def test_gross_harm_is_refused_within_two_blocks() -> None:
    gone = decide(QUALITY, judged("a", 2, harm=0.15, blocks=2), judged("b", 1, blocks=2), record=RECORD)
    assert gone.verdict == "refuse"
    assert gone.reason.startswith("gross_harm auc 0.5")
    assert gone.pair is None
    outputs = tuple(OutputDifference(f"day-{k}", 200, 0.0, 0.0, -0.9) for k in range(2))
    other = decide(
        QUALITY, judged("a", 2, blocks=2), judged("b", 1, blocks=2), record=RECORD, outputs=outputs
    )
    assert other.verdict == "refuse"
    assert "correlation with the champion's is -0.90" in other.reason


def test_a_refit_outside_the_replicates_band_is_refused() -> None:
    candidate, champion = judged("a", 2), judged("b", 1)
    fine, broken = judged("a", 5, replicates=1), judged("a", 5, harm=0.03, replicates=1)
    assert decide(QUALITY, candidate, champion, record=RECORD, refit=fine).verdict == "accept"
    found = decide(QUALITY, candidate, champion, record=RECORD, refit=broken)
    assert found.verdict == "refuse"
    assert found.reason.startswith("refit worse")
    two = judged("a", 5, blocks=2, replicates=1)
    few = decide(QUALITY, candidate, champion, record=RECORD, refit=two)
    assert (few.verdict, few.criteria[-1].reason) == ("accept", "not shown outside the band over 2 blocks")


def test_a_fault_of_the_newest_blocks_alone_that_takes_the_refits_skill_is_refused() -> None:
    candidate = judged("a", 2)
    broken = judged("a", 5, harm=0.2, replicates=1)
    found = decide(QUALITY, candidate, None, refit=broken)
    assert found.verdict == "refuse"
    assert found.reason.startswith("refit auc")


def test_a_candidate_worse_than_a_trivial_or_the_first_model_is_refused() -> None:
    better = judged("base rate", 3, harm=-0.03)
    for more in ({"baselines": (better,)}, {"static": better}):
        found = decide(QUALITY, judged("a", 2), judged("b", 1), record=RECORD, **more)
        assert found.verdict == "refuse"
        assert "worse than base rate" in found.reason
    worse = judged("base rate", 3, harm=0.03)
    found = decide(QUALITY, judged("a", 2), judged("b", 1), record=RECORD, baselines=(worse,))
    assert found.verdict == "accept"
    assert found.criteria[-1].rule == "not worse than base rate"


def test_a_block_that_was_looked_at_too_often_does_not_count_again() -> None:
    candidate, champion = judged("a", 2), judged("b", 1)
    uses = {block.block: 28 for block in candidate.blocks[:12]}
    found = decide(QUALITY, candidate, champion, record=RECORD, uses=uses)
    assert found.verdict == "not_enough_evidence"
    assert "28 gates have looked at day-00" in found.reason
    assert found.used == ("day-12", "day-13")


def test_small_blocks_do_not_count_and_are_named() -> None:
    rules = Evaluation(gate=QUALITY.gate, block_rows=201)
    found = decide(rules, judged("a", 2), judged("b", 1), record=RECORD)
    assert found.verdict == "not_enough_evidence"
    assert "fewer than 201 labelled rows in day-00" in found.reason


def test_the_decision_carries_the_pair_for_the_record() -> None:
    found = decide(QUALITY, judged("a", 2), judged("b", 1))
    assert found.pair is not None
    assert (found.pair.candidate, found.pair.blocks, found.pair.replicates) == ("a", 14, 3)
    assert set(found.pair.mean) == set(NAMES)
    assert with_pair(with_pair((), found.pair), found.pair) == (found.pair,)
    many: tuple[RecordedPair, ...] = ()
    for number in range(100):
        many = with_pair(many, replace(found.pair, candidate=str(number)))
    assert (len(many), many[-1].candidate) == (RECORDED, "99")
    assert from_json(GateDecision, to_json(found)) == found


def test_a_feature_that_knows_the_label_refuses_unless_it_is_only_told() -> None:
    leak = LeakFinding("late_minutes", "predicts_too_well", 0.999, 0.99, "alone has AUC 0.999")
    rules = gate(GateCriterion(metric="auc", at_least=0.6))
    found = decide(rules, judged("a", 2), leaks=(leak,))
    assert (found.verdict, found.reason) == ("refuse", "leak alone has AUC 0.999")
    told = Evaluation(gate=rules.gate, leaks=Leaks(refuse=False))
    found = decide(told, judged("a", 2), leaks=(leak,))
    assert (found.verdict, found.warnings) == (
        "accept",
        ("late_minutes may know the label: alone has AUC 0.999",),
    )


def test_what_may_be_a_leak_is_told_and_decides_nothing() -> None:
    doubt = LeakFinding("deposit", "value_tells_label", 0.99, 0.985, "deposit=yes: 99 % positive")
    found = decide(gate(GateCriterion(metric="auc", at_least=0.6)), judged("a", 2), doubts=(doubt,))
    assert (found.verdict, found.warnings) == (
        "accept",
        ("deposit may know the label: deposit=yes: 99 % positive",),
    )
    assert "deposit" not in found.reason
    assert from_json(GateDecision, to_json(found)) == found
    older = {name: value for name, value in to_json(found).items() if name != "warnings"}
    assert from_json(GateDecision, older).warnings == ()


@pytest.mark.parametrize(
    ("state", "verdict"),
    [
        ("matured", "accept"),
        ("young_but_fair", "accept"),
        ("censored", "refuse"),
        ("labels_from_the_future", "refuse"),
        ("not_enough_rows", "not_enough_evidence"),
        ("not_enough_evidence", "not_enough_evidence"),
    ],
)
def test_rows_that_were_chosen_by_their_label_refuse(state: str, verdict: str) -> None:
    rows = Censoring(state, 1000, 300, 0, low=0.1, high=0.2, reason="why")
    found = decide(gate(GateCriterion(metric="auc", at_least=0.6)), judged("a", 2), censoring=rows)
    assert found.verdict == verdict
    (cohort,) = [result for result in found.criteria if result.metric == "cohort"]
    assert (cohort.value, cohort.low, cohort.high) == (0.3, 0.1, 0.2)
    assert cohort.reason.endswith(": why")


def test_rows_that_landed_without_a_label_are_told_where_no_label_has_a_time() -> None:
    rules = gate(GateCriterion(metric="auc", at_least=0.6))
    found = decide(rules, judged("a", 2), unlabelled=0.125)
    assert found.verdict == "accept"
    assert found.warnings[0].startswith("12.5% of the rows had no label when they landed")
    fair = Censoring("matured", 1000, 0, 0)
    assert decide(rules, judged("a", 2), unlabelled=0.125, censoring=fair).warnings == ()
    assert decide(rules, judged("a", 2), unlabelled=0.005).warnings == ()


def test_latency_and_size_of_the_version() -> None:
    rules = gate(
        GateCriterion(metric="latency_p99", at_most="20ms"), GateCriterion(metric="size", at_most="2MB")
    )
    fine = decide(rules, judged("a", 2), latency={"p99": 0.01}, size=1_000_000)
    assert (fine.verdict, fine.reason) == (
        "accept",
        "latency_p99 10 ms, expected at most 20 ms; size 1 MB, expected at most 2 MB",
    )
    assert decide(rules, judged("a", 2), latency={"p99": 0.03}, size=1).verdict == "refuse"
    assert decide(rules, judged("a", 2), size=1).reason == "latency_p99 was not measured"


def test_every_segment_must_keep_a_rule_of_segments() -> None:
    rules = gate(GateCriterion(metric="auc", no_harm=0.02, segments=("carrier",)))

    def segment(name: str, high: float | None, rows: int = 900) -> SegmentScore:
        difference = None if high is None else high - 0.01
        return SegmentScore(name, "auc", rows, 14, 0.7, 0.7, difference, None, high)

    kept = (segment("carrier=UA", 0.01), segment("carrier=OO", None, 3), segment("origin=JFK", -0.5))
    found = decide(rules, judged("a", 2), judged("b", 1), segments=kept)
    assert found.criteria[0].verdict == "accept"
    assert "1 are too small to judge" in found.criteria[0].reason
    broken = (*kept, segment("carrier=AA", -0.03))
    found = decide(rules, judged("a", 2), judged("b", 1), segments=broken)
    assert found.verdict == "refuse"
    assert "carrier=AA (-0.0400, at best -0.0300, 14 blocks)" in found.reason
    assert decide(rules, judged("a", 2), judged("b", 1)).verdict == "not_enough_evidence"
    floor = gate(GateCriterion(metric="auc", at_least=0.71, segments=("carrier",)))
    assert decide(floor, judged("a", 2), segments=kept).verdict == "refuse"


@pytest.mark.parametrize(
    ("gap", "bound", "verdict"),
    [(0.0, 0.05, "accept"), (0.2, 0.05, "refuse"), (0.05, 0.05, "not_enough_evidence")],
)
def test_a_difference_between_groups_is_bounded_by_its_interval(
    gap: float, bound: float, verdict: str
) -> None:
    rules = gate(GateCriterion(metric="auc", at_most=bound, between=("sex=F", "sex=M")))
    rng = np.random.default_rng(0)
    groups = {
        "sex=F": score("a", list(0.7 + rng.normal(0, 0.02, 14))),
        "sex=M": score("a", list(0.7 - gap + rng.normal(0, 0.02, 14))),
    }
    found = decide(rules, judged("a", 2), groups=groups).criteria[0]
    assert found.verdict == verdict
    assert found.value == pytest.approx(gap, abs=0.02)
    parity = gate(GateCriterion(metric="positive_rate", at_most=bound, between=("sex=F", "sex=M")))
    rates = {
        name: score("a", [block.metrics["auc"] for block in one.blocks], metric="positive_rate")
        for name, one in groups.items()
    }
    assert decide(parity, judged("a", 2), groups=rates).criteria[0].verdict == verdict
    absent = decide(rules, judged("a", 2), groups={"sex=F": groups["sex=F"]})
    assert absent.reason == "auc cannot be computed for sex=M"


VALUES = st.floats(0, 1) | st.none()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(VALUES, VALUES, VALUES, st.integers(0, 50)), max_size=8), st.integers(0, 8))
def test_whatever_blocks_lack_the_gate_has_a_verdict_and_a_reason(rows, shared: int) -> None:
    def partial(name: str, shift: float, count: int) -> ModelScore:
        found = []
        for k, (*values, size) in enumerate(rows[:count]):
            given_ = {n: x * shift for n, x in zip(NAMES, values, strict=True) if x is not None and size}
            found.append(BlockScore(f"day-{k}", size, 0, {}, given_, (given_, given_)))
        return ModelScore(name, {}, tuple(found))

    candidate, champion = partial("a", 1.0, len(rows)), partial("b", 0.9, shared)
    found = decide(QUALITY, candidate, champion, refit=partial("a", 0.8, shared), record=RECORD)
    assert found.reason
    assert all(result.reason for result in found.criteria)
    assert (found.verdict == "accept") == all(result.verdict == "accept" for result in found.criteria)
    assert from_json(GateDecision, to_json(found)) == found
