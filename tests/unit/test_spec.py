from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from ctrain.errors import SpecError
from ctrain.spec import PipelineSpec, load_spec, parse_spec
from ctrain.spec.base import seconds, values_of

SMALLEST = """
pipeline: flights-late
owner: flights-team
source: {type: files, path: landing/flights, partition: day, event_time: sched_dep}
features: flights:view                 # module:attribute, user code
label: {name: late, matures_after: 1d}
model: {type: tabular}                 # or {type: module, factory: "my_models:build"}
training: {window: 60d}
evaluation:
  blocks: 14                           # days judged: rows of one day are not independent evidence
  gate:
    - {metric: auc, at_least: 0.62}
    - {metric: auc, no_harm: 0.02}     # against the champion: lower bound above -0.02
rollout: {type: canary, shadow: 200, steps: [0.01, 0.05, 0.25]}
goals: {latency_p99: 50ms, freshness: 1d, rollback: previous}
triggers:
  - {type: new_data, partitions: 1}
  - {type: drift}
"""
DAY = 86400.0


def raw(**changes: Any) -> dict[str, Any]:
    required = {
        "pipeline": "p",
        "owner": "team",
        "source": {"path": "/landing", "event_time": "t"},
        "features": "m:view",
        "label": {"name": "y"},
    }
    return required | changes


def faults(given: Any) -> list[tuple[str, str, str]]:
    with pytest.raises(SpecError) as caught:
        parse_spec(given)
    return [tuple(fault) for fault in caught.value.faults]


def load(folder: Path, text: str | bytes) -> PipelineSpec:
    file = folder / "pipeline.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_spec(file)


# What loads


def test_the_smallest_useful_pipeline_has_under_thirty_lines_and_loads(tmp_path: Path) -> None:
    assert len(SMALLEST.strip().splitlines()) < 30
    spec = load(tmp_path, SMALLEST)
    assert (spec.pipeline, spec.owner, spec.features) == ("flights-late", "flights-team", "flights:view")
    assert (spec.training.window, spec.label.matures_after, spec.goals.latency_p99) == (60 * DAY, DAY, 0.05)
    assert [(rule.metric, rule.at_least, rule.no_harm) for rule in spec.evaluation.gate] == [
        ("auc", 0.62, None),
        ("auc", None, 0.02),
    ]
    assert spec.rollout.steps == (0.01, 0.05, 0.25)
    assert [trigger.type for trigger in spec.triggers] == ["new_data", "drift"]


def test_what_is_left_out_has_a_default_that_runs_on_a_laptop() -> None:
    spec = parse_spec(raw())
    assert (spec.training.workers, spec.training.use_gpu) == (1, False)
    assert (spec.model.type, spec.rollout.type, spec.source.type) == ("tabular", "canary", "files")
    assert [trigger.type for trigger in spec.triggers] == ["new_data"]
    assert spec.evaluation.gate[0].no_harm == 0.02


def test_a_spec_is_frozen_in_all_its_parts() -> None:
    spec = parse_spec(raw())
    with pytest.raises(ValidationError):
        spec.owner = "other"  # type: ignore[misc]
    with pytest.raises(ValidationError):
        spec.training.epochs = 1  # type: ignore[misc]


def test_a_relative_source_path_counts_from_the_file_and_becomes_absolute(tmp_path: Path) -> None:
    assert load(tmp_path, SMALLEST).source.path == str(tmp_path.resolve() / "landing/flights")
    above = SMALLEST.replace("landing/flights", "../shared")
    assert load(tmp_path, above).source.path == str(tmp_path.resolve().parent / "shared")


def test_a_source_path_of_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    spec = load(tmp_path, SMALLEST.replace("landing/flights", "~/flights"))
    assert spec.source.path == str(tmp_path.resolve() / "flights")


@pytest.mark.parametrize("path", ["/landing/flights", "s3://bucket/flights", "memory://flights"])
def test_an_absolute_source_path_or_url_stays(tmp_path: Path, path: str) -> None:
    assert load(tmp_path, SMALLEST.replace("landing/flights", path)).source.path == path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("50ms", 0.05),
        ("30s", 30),
        ("1.5 s", 1.5),
        ("5min", 300),
        ("5m", 300),
        ("12h", 43200),
        ("60d", 60 * DAY),
        ("2w", 14 * DAY),
        (" 0d ", 0),
        (7, 7),
        (0.5, 0.5),
    ],
)
def test_durations_are_seconds_or_text_with_a_unit(text: Any, expected: float) -> None:
    assert seconds(text) == pytest.approx(expected)
    assert parse_spec(raw(label={"name": "y", "matures_after": text})).label.matures_after == seconds(text)


@pytest.mark.parametrize("text", ["soon", "5", "-5s", "5 years", "", True, None, [5], "1e3s"])
def test_what_is_no_duration_is_refused_with_examples(text: Any) -> None:
    hint = "e.g. 50ms, 30s, 5min, 12h, 60d"
    assert faults(raw(training={"window": text})) == [
        ("training.window", f"{text!r} is not a duration", hint)
    ]


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf")])
def test_a_duration_is_finite_and_not_negative(value: float) -> None:
    assert [where for where, _, _ in faults(raw(rollout={"hold": value}))] == ["rollout.hold"]


def test_a_goal_on_the_business_value_may_be_any_number() -> None:
    goals = {"value": -12.5, "average_precision": 0.3}
    assert parse_spec(raw(goals={"metrics": goals})).goals.metrics == goals
    assert values_of("value") == "any number"


# Hash and JSON


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model": {"type": "module", "factory": "m:f", "arguments": {"width": [1, 2], "deep": {"a": None}}}},
        {"contract": {"columns": {"x": {"dtype": "category", "allowed": ["a", "b"], "nullable": True}}}},
        {"goals": {"latency_p99": "50ms", "metrics": {"f1": 0.5, "auc": 0.62}}},
        {
            "triggers": [
                {"type": "schedule", "cron": "0 6 * * *"},
                {"type": "performance", "metric": "ece", "worse_than": 0.1},
            ]
        },
        {"triggers": []},
    ],
)
def test_a_spec_comes_back_from_its_json(changes: dict[str, Any]) -> None:
    spec = parse_spec(raw(**changes))
    again = parse_spec(spec.to_json())
    assert again == spec
    assert again.sha256 == spec.sha256


def test_the_hash_is_of_the_meaning_and_not_of_the_text() -> None:
    spec = parse_spec(raw())
    backwards = dict(reversed(list(raw(training={"window": "60d"}).items())))
    assert parse_spec(backwards).sha256 == spec.sha256
    assert parse_spec(raw(training={"window": "61d"})).sha256 != spec.sha256
    assert len(spec.sha256) == 64


# What is refused


def test_all_faults_are_listed_at_once_each_with_its_path(tmp_path: Path) -> None:
    text = SMALLEST.replace("[0.01, 0.05, 0.25]", "[0.01, 0.25, 0.05]").replace("auc, at", "acu, at")
    with pytest.raises(SpecError) as caught:
        load(tmp_path, text.replace("owner: flights-team\n", ""))
    assert str(caught.value).splitlines() == [
        f"{tmp_path}/pipeline.yaml: 3 faults",
        "  owner              is required",
        "  evaluation.gate.0  unknown metric 'acu'                        did you mean 'auc'?",
        "  rollout.steps.2    0.05 comes after 0.25: steps must increase  e.g. [0.01, 0.05, 0.25]",
    ]


@pytest.mark.parametrize(
    ("changes", "where", "hint"),
    [
        ({"ownr": "x"}, "ownr", "did you mean 'owner'?"),
        ({"training": {"epoch": 3}}, "training.epoch", "did you mean 'epochs'?"),
        (
            {"monitoring": {"drift": {"min_efect": 0.1}}},
            "monitoring.drift.min_efect",
            "did you mean 'min_effect'?",
        ),
        ({"model": {"type": "tabular", "hiden": [8]}}, "model.hiden", "did you mean 'hidden'?"),
        (
            {"model": {"type": "module", "factory": "m:f", "hidden": [8]}},
            "model.hidden",
            "one of type, factory, arguments, bins, minimum_count",
        ),
        (
            {"triggers": [{"type": "schedule", "cron": "* * * * *", "x": 1}]},
            "triggers.0.x",
            "one of type, cron",
        ),
        (
            {"evaluation": {"gate": [{"metric": "auc", "at_least": 1, "no_harms": 1}]}},
            "evaluation.gate.0.no_harms",
            "did you mean 'no_harm'?",
        ),
        (
            {"contract": {"columns": {"x": {"dtype": "number", "between": [1, 2]}}}},
            "contract.columns.x.between",
            "one of dtype, nullable, minimum, maximum, allowed",
        ),
    ],
)
def test_an_unknown_field_is_refused_with_the_fields_of_its_own_part(
    changes: dict[str, Any], where: str, hint: str
) -> None:
    assert (where, "unknown field", hint) in faults(raw(**changes))


@pytest.mark.parametrize(
    ("changes", "where", "message", "hint"),
    [
        ({"model": {"type": "gbdt"}}, "model", "unknown type 'gbdt'", "one of tabular, module"),
        ({"rollout": {"type": "canry"}}, "rollout", "unknown type 'canry'", "did you mean 'canary'?"),
        ({"source": raw()["source"] | {"partition": "hour"}}, "source", "unknown partition 'hour'", "day"),
        ({"goals": {"metrics": {"acu": 1}}}, "goals.metrics", "unknown key 'acu'", "did you mean 'auc'?"),
        (
            {"triggers": [{"type": "new_dat"}]},
            "triggers.0",
            "unknown type 'new_dat'",
            "did you mean 'new_data'?",
        ),
        (
            {"triggers": [{"type": "drift"}, {"partitions": 1}]},
            "triggers.1",
            "type is required",
            "one of new_data, schedule, performance, drift",
        ),
        ({"triggers": [7]}, "triggers.0", "expected a mapping, found 7", ""),
        (
            {"label": "late"},
            "label",
            "expected a mapping, found 'late'",
            "name, matures_after, known_at, horizon",
        ),
        ({"label": {}}, "label.name", "is required", ""),
        ({"owner": ""}, "owner", "is empty", ""),
        ({"owner": 3}, "owner", "3 is not text", ""),
        (
            {"features": "flights.view"},
            "features",
            "'flights.view' is not an import path",
            "module:attribute",
        ),
        ({"source": {"path": " ", "event_time": "t"}}, "source.path", "is empty", "a folder or a URL"),
        ({"training": {"epochs": 0}}, "training.epochs", "0 is below 1", ""),
        ({"training": {"epochs": "many"}}, "training.epochs", "'many' is not a whole number", ""),
        ({"training": {"learning_rate": 0}}, "training.learning_rate", "0 is not above 0", ""),
        ({"evaluation": {"threshold": 2}}, "evaluation.threshold", "2 is above 1", ""),
        ({"model": {"type": "tabular", "hidden": []}}, "model.hidden", "is empty", ""),
        ({"model": {"type": "tabular", "hidden": ["a"]}}, "model.hidden.0", "'a' is not a whole number", ""),
        ({"rollout": {"steps": [0.1, 1]}}, "rollout.steps.1", "1 is not below 1", ""),
        ({"rollout": {"steps": []}}, "rollout.steps", "is empty", ""),
        ({"rollout": {"shift": 1.5}}, "rollout.shift", "1.5 is above 1", ""),
        ({"rollout": {"quality": {"no_harm": 0}}}, "rollout.quality.no_harm", "0 is not above 0", ""),
        (
            {"rollout": {"steps": [0.1, 0.1]}},
            "rollout.steps.1",
            "0.1 comes after 0.1: steps must increase",
            "e.g. [0.01, 0.05, 0.25]",
        ),
        (
            {"evaluation": {"gate": [{"metric": "auc"}]}},
            "evaluation.gate.0",
            "no bound",
            "exactly one of at_least, at_most, no_harm, better",
        ),
        (
            {"evaluation": {"gate": [{"metric": "auc", "at_least": 0.6, "no_harm": 0.1}]}},
            "evaluation.gate.0",
            "at_least and no_harm together",
            "exactly one of at_least, at_most, no_harm, better",
        ),
        ({"evaluation": {"gate": []}}, "evaluation.gate", "is empty", ""),
        (
            {"evaluation": {"gate": [{"metric": "log_loss", "at_least": 0.5}]}},
            "evaluation.gate.0",
            "at_least asks for a bad log_loss: lower is better",
            "at_most",
        ),
        (
            {"evaluation": {"gate": [{"metric": "auc", "at_most": 0.6}]}},
            "evaluation.gate.0",
            "at_most asks for a bad auc: higher is better",
            "at_least",
        ),
        (
            {"evaluation": {"gate": [{"metric": "auc", "at_least": 62}]}},
            "evaluation.gate.0.at_least",
            "62 is no value of auc",
            "0 to 1",
        ),
        (
            {"evaluation": {"gate": [{"metric": "log_loss", "at_most": -1}]}},
            "evaluation.gate.0.at_most",
            "-1 is no value of log_loss",
            "0 and above",
        ),
        ({"goals": {"metrics": {"f1": 2}}}, "goals.metrics.f1", "2 is no value of f1", "0 to 1"),
        (
            {"goals": {"metrics": {"average_precision": -0.1}}},
            "goals.metrics.average_precision",
            "-0.1 is no value of average_precision",
            "0 to 1",
        ),
        (
            {"triggers": [{"type": "performance", "metric": "auc", "worse_than": 55}]},
            "triggers.0.worse_than",
            "55 is no value of auc",
            "0 to 1",
        ),
        (
            {"evaluation": {"blocks": 14}, "training": {"window": "7d"}},
            "evaluation.blocks",
            "14 days are longer than training.window, 7 days",
            "fewer blocks or a longer window",
        ),
        ({"label": {"name": " "}}, "label.name", "is empty", "a column of the source"),
        (
            {"source": {"path": "/landing", "event_time": ""}},
            "source.event_time",
            "is empty",
            "a column of the source",
        ),
        (
            {"pipeline": "models"},
            "pipeline",
            "'models' is a name that every root uses",
            "any name but models, code, live, cache, token",
        ),
        (
            {"contract": {"columns": {"x": {"dtype": "flag", "maximum": 1}}}},
            "contract.columns.x",
            "minimum and maximum do not fit dtype flag",
            "they need dtype number",
        ),
        (
            {"contract": {"columns": {"x": {"dtype": "number", "allowed": ["a"]}}}},
            "contract.columns.x",
            "allowed does not fit dtype number",
            "it needs dtype category",
        ),
        (
            {"contract": {"columns": {"x": {"dtype": "number", "minimum": 2, "maximum": 1}}}},
            "contract.columns.x",
            "minimum 2.0 is above maximum 1.0",
            "",
        ),
        (
            {"triggers": [{"type": "schedule", "cron": "daily"}]},
            "triggers.0.cron",
            "'daily' is not a cron line: Wrong number of fields",
            "e.g. '0 6 * * *'",
        ),
        (
            {"label": {"name": "t"}},
            "",
            "label.name and source.event_time are the same column 't'",
            "",
        ),
        (
            {"model": {"type": "module", "factory": "m:f", "arguments": {"x": {"y": float("nan")}}}},
            "model.arguments.x",
            "nan is not a finite number",
            "",
        ),
    ],
)
def test_a_fault_says_where_what_was_found_and_what_is_right(
    changes: dict[str, Any], where: str, message: str, hint: str
) -> None:
    assert faults(raw(**changes)) == [(where, message, hint)]


def test_rules_of_one_part_are_all_listed() -> None:
    found = faults(
        raw(
            rollout={"steps": [0.5, 0.1, 0.1, 0.2]},
            evaluation={"gate": [{"metric": "auc", "at_most": 7}]},
        )
    )
    assert [where for where, _, _ in found] == [
        "evaluation.gate.0", "evaluation.gate.0.at_most", "rollout.steps.1", "rollout.steps.2",
    ]  # fmt: skip


def test_log_loss_may_be_above_one_and_a_window_as_long_as_the_blocks() -> None:
    gate = [{"metric": "log_loss", "at_most": 1.5}]
    spec = parse_spec(raw(evaluation={"gate": gate, "blocks": 7}, training={"window": "7d"}))
    assert spec.evaluation.gate[0].at_most == 1.5


def test_keys_given_twice_are_refused_with_their_path_beside_all_other_faults(tmp_path: Path) -> None:
    text = SMALLEST.replace("owner: flights-team", "owner: ''").replace(
        "{metric: auc, at_least: 0.62}", "{metric: auc, at_least: 0.62, at_least: 0.1}"
    )
    with pytest.raises(SpecError) as caught:
        load(tmp_path, text + "pipeline: other\n")
    assert [tuple(fault) for fault in caught.value.faults] == [
        ("pipeline", "is given twice, in lines 2 and 19", ""),
        ("evaluation.gate.0.at_least", "is given twice, in lines 12 and 12", ""),
        ("owner", "is empty", ""),
    ]
    with pytest.raises(SpecError, match=r"label\.name +is given twice, in lines 6 and 6"):
        load(tmp_path, SMALLEST.replace("{name: late,", "{name: late, name: later,"))


def test_an_anchor_may_be_used_many_times(tmp_path: Path) -> None:
    text = SMALLEST.replace("{metric: auc, at_least: 0.62}", "&rule {metric: auc, at_least: 0.62}")
    assert (
        len(
            load(
                tmp_path,
                text.replace("    - {metric: auc, no_harm", "    - *rule\n    - {metric: auc, no_harm"),
            ).evaluation.gate
        )
        == 3
    )
    with pytest.raises(SpecError):
        load(tmp_path, "pipeline: &loop [*loop]")


@pytest.mark.parametrize("name", ["Flights", "1st", "a_b", "a" * 64, "", "a/b", "a\n"])
def test_a_name_that_is_no_route_is_refused(name: str) -> None:
    assert [where for where, _, _ in faults(raw(pipeline=name))] == ["pipeline"]


@pytest.mark.parametrize("given", [None, [], "text", 3])
def test_what_is_no_mapping_is_one_fault(given: Any) -> None:
    ((where, message, _),) = faults(given)
    assert where == ""
    assert message.startswith("expected a mapping of fields, found ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a mapping of fields, found nothing"),
        ("# nothing yet\n", "expected a mapping of fields, found nothing"),
        ("- pipeline", "expected a mapping of fields, found list"),
        (b"pipeline: \xff\xfe", "is not UTF-8 text"),
        ("pipeline: [a\nowner: b", "is not YAML"),
        ("a: \x00", "is not YAML"),
        ("a: !!python/object/apply:os.getcwd []", "is not YAML"),
    ],
)
def test_a_file_that_is_no_spec_is_one_fault_in_one_line(
    tmp_path: Path, text: str | bytes, message: str
) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        load(tmp_path, text)
    assert len(str(caught.value).splitlines()) == 2
    assert caught.value.origin == str(tmp_path / "pipeline.yaml")


def test_a_file_that_is_not_there_or_a_folder_is_one_fault(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot be read: No such file or directory"):
        load_spec(tmp_path / "none.yaml")
    with pytest.raises(SpecError, match="cannot be read: Is a directory"):
        load_spec(tmp_path)


def test_a_fault_of_yaml_names_its_line(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        load(tmp_path, "pipeline: p\nowner: [a\nlabel: b\n")
    assert caught.value.faults[0].where == "line 3"


@pytest.mark.parametrize(
    ("evaluation", "where", "problem"),
    [
        ({"gate": [{"metric": "value", "at_least": 1}]}, "evaluation.gate.0", "value needs costs"),
        ({"gate": [{"metric": "profit", "at_least": 1}]}, "evaluation.gate.0", "unknown metric 'profit'"),
        (
            {"metrics": {"auc": "m:f"}},
            "evaluation.metrics.auc",
            "is the name of a metric that there is already",
        ),
        (
            {"metrics": {"profit": "m:f"}, "gate": [{"metric": "profit", "at_most": 1}]},
            "evaluation.gate.0",
            "at_most asks for a bad profit: higher is better",
        ),
    ],
)
def test_costs_and_the_users_metrics_must_fit_the_gate(
    evaluation: dict[str, Any], where: str, problem: str
) -> None:
    found = [(where, problem) for where, problem, _ in faults(raw(evaluation=evaluation))]
    assert (where, problem) in found


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        (
            {"evaluation": {"leaks": {"alone_warn": 0.995}}},
            ("evaluation.leaks.alone_warn", "0.995 is above alone_refuse, 0.99", "at most as much"),
        ),
        (
            {"evaluation": {"leaks": {"alone_refuse": 0.4}}},
            ("evaluation.leaks.alone_refuse", "0.4 is not above 0.5", ""),
        ),
        (
            {"evaluation": {"leaks": {"refuses": False}}},
            ("evaluation.leaks.refuses", "unknown field", "did you mean 'refuse'?"),
        ),
        (
            {"evaluation": {"leaks": {"vouched": [" "]}}},
            ("evaluation.leaks.vouched.0", "is empty", "a column of the source"),
        ),
        (
            {"label": {"name": "y", "known_at": "t"}},
            ("label.known_at", "is the same column as source.event_time, 't'", ""),
        ),
        (
            {"label": {"name": "y", "known_at": "y"}},
            ("label.known_at", "is the same column as label.name, 'y'", ""),
        ),
    ],
)
def test_limits_of_leaks_and_the_time_of_a_label_must_make_sense(
    changes: dict[str, Any], fault: tuple[str, str, str]
) -> None:
    assert faults(raw(**changes)) == [fault]


def test_a_users_metric_may_be_named_by_the_gate() -> None:
    evaluation = {"metrics": {"profit": "m:f"}, "gate": [{"metric": "profit", "no_harm": 0.1}]}
    assert parse_spec(raw(evaluation=evaluation)).evaluation.gate[0].metric == "profit"
