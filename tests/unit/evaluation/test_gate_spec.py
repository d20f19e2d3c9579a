import pytest
from pydantic import ValidationError

from ctrain.evaluation.groups import margin_of
from ctrain.spec.evaluation import Evaluation, GateCriterion


def said(**rule: object) -> str:
    with pytest.raises(ValidationError) as caught:
        GateCriterion.model_validate(rule)
    (error,) = caught.value.errors()
    return " ".join(" ".join(fault) for fault in error["ctx"]["faults"]).strip()


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"metric": "auc", "no_harm": "some"}, "'some' is not a number e.g. 0.02, or auto"),
        ({"metric": "auc", "no_harm": -1}, "-1 is below 0 e.g. 0.02, or auto"),
        ({"metric": "quality", "no_harm": 0.02}, "no_harm of quality has no unit no_harm: "
         "auto, or better: true"),
        ({"metric": "latency_p99", "no_harm": 0.1}, "no_harm is no bound on latency_p99 at_most"),
        ({"metric": "size", "at_most": 1, "segments": ["carrier"]}, "no segment has a size at_most"),
        ({"metric": "latency_p99", "at_most": "fast"}, "'fast' is not a duration e.g. 50ms, 30s, 5min, "
         "12h, 60d"),
        ({"metric": "auc", "at_least": 0.6, "better": True}, "at_least and better together exactly one of "
         "at_least, at_most, no_harm, better"),
        ({"metric": "auc", "at_most": 0.1, "between": ["UA", "AA"]}, "'UA' is not a group column=value, "
         "e.g. carrier=UA"),
        ({"metric": "auc", "at_most": 0.1, "between": ["a=1"]}, "is not two groups or more, each once e.g. "
         "[carrier=UA, carrier=AA]"),
        ({"metric": "auc", "no_harm": 0.1, "between": ["a=1", "a=2"]}, "between no_harm does not bound a "
         "difference at_most"),
        ({"metric": "positive_rate", "at_most": 0.1}, "positive_rate is neither good nor bad by itself "
         "between: [column=a, column=b]"),
        ({"metric": "latency_p99", "at_most": -1}, "at_most -1 is no value of latency_p99 0 and above"),
    ],
)  # fmt: skip
def test_a_criterion_that_can_decide_nothing_is_refused(rule, words: str) -> None:
    assert said(**rule) == words


def test_amounts_are_read_with_their_unit() -> None:
    assert GateCriterion(metric="latency_p99", at_most="50ms").at_most == 0.05
    assert GateCriterion(metric="size", at_most="1.5MB").at_most == 1_500_000


def test_a_spec_travels_as_json() -> None:
    rules = (
        GateCriterion(metric="quality", no_harm="auto"),
        GateCriterion(metric="auc", no_harm=0.02, segments=("carrier",)),
        GateCriterion(metric="auc", better=True),
    )
    asked = Evaluation(gate=rules)
    assert Evaluation.model_validate_json(asked.model_dump_json()) == asked
    assert [margin_of(rule) for rule in rules] == [0.0, 0.02, 0.0]
