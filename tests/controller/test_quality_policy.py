"""Quality after a promotion: what the controller makes of matured blocks, stepped by hand."""

from pathlib import Path

import pytest
from test_controller import Bench, window

from ctrain.controller.fold import paired_blocks
from ctrain.controller.quality import known_facts, scales_of_one
from ctrain.controller.state import PartitionFact, State
from ctrain.controller.status import status_of, why
from ctrain.records import (
    Diagnosis,
    DriftReport,
    RecordedPair,
    ShadowBlock,
    SkewReport,
    from_json,
    to_json,
)

GOOD = {"auc": 0.72, "capped_log_loss": 0.50, "adjusted_log_loss": 0.49}
BAD = {"auc": 0.60, "capped_log_loss": 0.58, "adjusted_log_loss": 0.57}


def block(
    day: int, answered_by: str, shadow: str, answered: dict, shadowed: dict, rows: int = 900
) -> ShadowBlock:
    """Both sides wobble from day to day, each by its own."""
    wobbles = 0.004 * ((day * 7) % 5 - 2), 0.004 * ((day * 3) % 5 - 2)
    sides = zip((answered, shadowed), wobbles, strict=True)
    moved = [{name: value + wobble for name, value in side.items()} for side, wobble in sides]
    return ShadowBlock(f"2013-03-{day + 1:02d}", answered_by, shadow, rows, rows // 4, *moved)


def promoted(folder: Path, **changes: object) -> tuple[Bench, str, str]:
    """A second champion that has just been promoted; the first one is in shadow."""
    bench = Bench(folder, monitoring={"window": 60}, **changes)
    first = bench.serve_first()
    bench.world.land(3)
    bench.until(lambda: bench.controller.state.champion not in ("", first))
    return bench, first, bench.controller.state.champion


def see(bench: Bench, *blocks: ShadowBlock) -> None:
    """Let a window close that found these blocks."""
    closed = bench.kinds().count("window_closed")
    bench.world.monitoring.report = window(blocks=blocks)
    bench.until(lambda: bench.kinds().count("window_closed") > closed, requests=0)
    bench.world.monitoring.report = window()


def test_a_dethroned_champion_is_mirrored_to_until_the_watch_ends(tmp_path: Path) -> None:
    bench, first, second = promoted(
        tmp_path, rollout={"shadow": 0, "steps": [0.5], "hold": 1.0, "watch": 120.0}
    )
    document = bench.controller.document
    assert (document.mirror, document.previous.version, document.champion.version) == (
        "previous",
        first,
        second,
    )
    bench.run(130)
    assert bench.controller.document.mirror == ""
    ended = next(e for e in bench.controller._journal.read() if e.kind == "watch_ended")
    assert ended.data["reason"] == "no block matured"


def test_harm_that_blocks_show_after_a_promotion_is_rolled_back(tmp_path: Path) -> None:
    bench, first, second = promoted(tmp_path)
    for day in range(12):
        see(bench, block(day, second, first, BAD, GOOD))
        if bench.controller.state.champion == first:
            break
    assert bench.controller.state.champion == first
    events = list(bench.controller._journal.read())
    back = next(e for e in events if e.kind == "rolled_back")
    assert back.data["by"] == "watch"
    assert "v2 against v1 in shadow" in back.data["reason"]
    watched = [e.data["report"]["blocks"] for e in events if e.kind == "watched"]
    assert watched == list(range(1, len(watched) + 1))
    assert bench.controller.document.mirror == ""


def test_blocks_of_alike_models_roll_nothing_back(tmp_path: Path) -> None:
    bench, first, second = promoted(tmp_path)
    for day in range(20):
        see(bench, block(day, second, first, GOOD, GOOD))
    assert bench.controller.state.champion == second
    assert bench.controller.state.watch is not None
    assert len(bench.controller.state.watch.blocks) == 20


def test_blocks_of_other_versions_are_no_evidence(tmp_path: Path) -> None:
    bench, first, _ = promoted(tmp_path)
    for day in range(8):
        see(bench, block(day, "older", first, BAD, GOOD))
    assert "watched" not in bench.kinds()


def test_a_pair_of_blocks_of_one_day_counts_once_the_larger_one(tmp_path: Path) -> None:
    bench, first, second = promoted(tmp_path)
    before = block(0, first, second, GOOD, BAD, rows=100)  # mirrored while the canary went on
    see(bench, before, block(0, second, first, BAD, GOOD))
    watch = bench.controller.state.watch
    assert watch is not None
    (kept,) = watch.blocks
    assert (kept.rows, kept.judged["auc"], kept.against["auc"]) == (
        900, block(0, "", "", BAD, GOOD).answered["auc"], block(0, "", "", BAD, GOOD).shadowed["auc"],
    )  # fmt: skip


def test_whoever_answered_the_judged_side_is_the_version_in_question() -> None:
    one, other = block(1, "new", "old", GOOD, BAD), block(2, "old", "new", BAD, GOOD)
    sides = [(pair.judged, pair.against) for pair in paired_blocks((one, other), "new", "old")]
    assert sides == [(one.answered, one.shadowed), (other.shadowed, other.answered)]
    assert paired_blocks((block(3, "new", "third", GOOD, BAD),), "new", "old") == ()


def test_a_rollout_gathers_its_blocks_and_hands_them_to_the_watch(tmp_path: Path) -> None:
    plan = {"type": "canary", "shadow": 20, "steps": [0.1], "hold": "200s"}
    bench = Bench(tmp_path, monitoring={"window": 60}, rollout=plan)
    first = bench.serve_first()
    bench.world.land(3)
    bench.until(lambda: bench.controller.document.split == 0.1)
    assert bench.controller.state.rollout is not None
    challenger = bench.controller.state.rollout.version
    see(bench, block(0, first, challenger, GOOD, GOOD))
    assert [pair.block for pair in bench.controller.state.rollout.blocks] == ["2013-03-01"]
    bench.until(lambda: bench.controller.state.champion == challenger)
    assert bench.controller.state.watch is not None
    assert [pair.block for pair in bench.controller.state.watch.blocks] == ["2013-03-01"]


def test_the_record_and_the_uses_of_blocks_come_from_the_gates(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    pair = RecordedPair("m-p-00002-1", "m-p-00001-1", 3, 2, {"auc": 0.01}, {"auc": 1e-4}, {})
    bench.world.evaluation.pairs["m-p-00002-1"] = pair
    bench.world.evaluation.used = ("day-001", "day-002")
    bench.serve_first()
    bench.world.land(3)
    bench.until(lambda: bench.kinds().count("gate_decided") == 2)
    state = bench.controller.state
    assert state.record == (pair,)
    assert state.uses == {"day-001": 2, "day-002": 2}
    assert state.first == "m-p-00001-1"
    assert scales_of_one(state) is not None
    bench.world.land(4)
    bench.until(lambda: len(bench.world.evaluation.requests) == 3)
    asked = bench.world.evaluation.requests[-1]
    assert (asked.record, asked.uses, asked.static) == (state.record, state.uses, state.first)


def test_a_state_with_a_watch_survives_its_json(tmp_path: Path) -> None:
    bench, first, second = promoted(tmp_path)
    see(bench, block(0, second, first, GOOD, GOOD))
    state = bench.controller.state
    assert from_json(State, to_json(state)) == state


# --- drift and its diagnosis ---


def diagnosed(verdict: str, action: str, **changes: object) -> Diagnosis:
    return Diagnosis(verdict, action, reason=f"{verdict} was found", **changes)


def close_window(bench: Bench, diagnosis: Diagnosis | None, state: str = "drift") -> None:
    closed = bench.kinds().count("window_closed")
    report = DriftReport("data", state, state == "drift", 2000.0, 1000.0, (), 500, 9, "budget", "it moved")
    bench.world.monitoring.report = window(drift=(report,), diagnosis=diagnosis)
    bench.until(lambda: bench.kinds().count("window_closed") > closed, requests=0)
    bench.world.monitoring.report = None


def watching(folder: Path) -> Bench:
    triggers = [{"type": "new_data", "partitions": 3}, {"type": "drift", "cooldown": 0}]
    bench = Bench(folder, monitoring={"window": 60}, triggers=triggers)
    bench.serve_first()
    return bench


def test_drift_that_training_helps_starts_a_run_and_says_why(tmp_path: Path) -> None:
    bench = watching(tmp_path)
    close_window(bench, diagnosed("concept", "retrain"))
    bench.until(lambda: bench.kinds().count("run_started") == 2)
    wanted = [e.data for e in bench.controller._journal.read() if e.kind == "retrain_wanted"]
    assert (wanted[-1]["trigger"], wanted[-1]["reason"]) == ("drift", "concept: concept was found; retrain")


def test_a_champion_that_has_aged_is_trained_anew_though_nothing_is_wrong(tmp_path: Path) -> None:
    bench = watching(tmp_path)
    close_window(bench, diagnosed("none", "none", kind="aged"))
    bench.until(lambda: bench.kinds().count("run_started") == 2)


@pytest.mark.parametrize(
    ("verdict", "action"),
    [("season", "wait"), ("unknown", "escalate"), ("none", "none"), ("serving_skew", "escalate")],
)
def test_drift_that_training_does_not_help_starts_none(tmp_path: Path, verdict: str, action: str) -> None:
    bench = watching(tmp_path)
    close_window(bench, diagnosed(verdict, action))
    bench.run(30)
    assert bench.kinds().count("run_started") == 1
    assert bench.controller.state.alerts[-1][1] == "diagnosis"


def test_broken_data_hold_all_runs_but_a_persons_until_the_stream_is_steady(tmp_path: Path) -> None:
    bench = watching(tmp_path)
    close_window(bench, diagnosed("data_quality", "quarantine"))
    bench.world.land(3, 4, 5)
    bench.run(30)
    assert bench.kinds().count("run_started") == 1
    assert bench.controller.state.waiting.startswith("data_quality was found")
    close_window(bench, None, state="steady")
    bench.until(lambda: bench.kinds().count("run_started") == 2)


def test_a_person_can_train_on_data_that_are_held(tmp_path: Path) -> None:
    bench = watching(tmp_path)
    close_window(bench, diagnosed("label_noise", "hold_training"))
    assert bench.controller.operate("retrain", "k", "ann", "they are fine")["ok"]
    bench.until(lambda: bench.kinds().count("run_started") == 2)


def test_a_bad_version_is_rolled_back_by_its_diagnosis_and_the_first_model_never(tmp_path: Path) -> None:
    bench = watching(tmp_path)
    close_window(bench, diagnosed("bad_version", "roll_back"))
    assert "rolled_back" not in bench.kinds()
    (tmp_path / "other").mkdir()
    bench, first, _ = promoted(tmp_path / "other")
    close_window(bench, diagnosed("bad_version", "roll_back"))
    assert bench.controller.state.champion == first


def test_answers_that_batch_computes_otherwise_are_told_once_and_the_next_window_knows(
    tmp_path: Path,
) -> None:
    bench = watching(tmp_path)
    skewed = SkewReport("skewed", 500, 12, 0.024, 0.3, reason="12 of 500 answers differ")
    bench.world.monitoring.report = window(skew=skewed)
    bench.until(lambda: bench.kinds().count("window_closed") >= 3, requests=0)
    alerts = [e.data for e in bench.controller._journal.read() if e.kind == "alert"]
    assert alerts == [{"alert": "skew", "text": "12 of 500 answers differ"}]
    assert [one.facts.skewed for one in bench.world.monitoring.requests][-2:] == [True, True]
    assert bench.kinds().count("run_started") == 1
    controller = bench.controller
    status = status_of(controller.state, controller.document, bench.world.serving.observe(), bench.clock.now)
    assert status["skew"] == {"state": "skewed", "text": "12 of 500 answers differ"}


def test_skew_that_a_diagnosis_names_is_told_by_it_alone(tmp_path: Path) -> None:
    bench = watching(tmp_path)
    skewed = SkewReport("skewed", 500, 12, 0.024, 0.3, reason="12 of 500 answers differ")
    closed = bench.kinds().count("window_closed")
    bench.world.monitoring.report = window(skew=skewed, diagnosis=diagnosed("serving_skew", "escalate"))
    bench.until(lambda: bench.kinds().count("window_closed") > closed, requests=0)
    alerts = [e.data["alert"] for e in bench.controller._journal.read() if e.kind == "alert"]
    assert alerts == ["diagnosis"]


def test_what_a_gate_warned_of_is_told_by_status_and_history(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.world.evaluation.warnings = ("deposit may know the label: deposit=yes: 99 % positive",)
    first = bench.serve_first()
    controller = bench.controller
    status = status_of(controller.state, controller.document, bench.world.serving.observe(), bench.clock.now)
    assert status["champion"]["warnings"] == ["deposit may know the label: deposit=yes: 99 % positive"]
    (line,) = [
        one["text"]
        for one in why(controller._journal, controller.state, first, 100)
        if one["kind"] == "gate_decided"
    ]
    assert line.endswith("; warning: deposit may know the label: deposit=yes: 99 % positive")


def test_blocks_and_diagnosis_of_one_window_roll_back_once(tmp_path: Path) -> None:
    bench, first, second = promoted(tmp_path)
    closed = bench.kinds().count("window_closed")
    blocks = tuple(block(day, second, first, BAD, GOOD) for day in range(12))
    bench.world.monitoring.report = window(blocks=blocks, diagnosis=diagnosed("bad_version", "roll_back"))
    bench.until(lambda: bench.kinds().count("window_closed") > closed, requests=0)
    assert bench.controller.state.champion == first
    back = [e.data["by"] for e in bench.controller._journal.read() if e.kind == "rolled_back"]
    assert back == ["watch"]


def test_a_window_is_told_what_is_known_of_promotions_and_refusals(tmp_path: Path) -> None:
    bench, _, _ = promoted(tmp_path)
    asked = len(bench.world.monitoring.requests)
    bench.until(lambda: len(bench.world.monitoring.requests) > asked, requests=0)
    facts = bench.world.monitoring.requests[-1].facts
    assert facts.promoted_ago is not None
    assert facts.promoted_ago < 120
    assert (facts.refused_share, facts.usual_refused_share) == (0.0, 0.0)


def test_the_status_says_quality_drift_and_hold_in_words(tmp_path: Path) -> None:
    bench, _, _ = promoted(tmp_path)
    close_window(bench, diagnosed("data_quality", "quarantine", way="quarantine 2013-03-08"))
    controller = bench.controller
    status = status_of(controller.state, controller.document, bench.world.serving.observe(), bench.clock.now)
    assert status["quality"] == ["v1 stays in shadow of v2: no block has matured yet"]
    assert status["drift"] == {
        "state": "drift",
        "lines": ["inputs drift: it moved"],
        "diagnosis": "data quality: data_quality was found; quarantine (quarantine 2013-03-08)",
        "hold": "data_quality was found",
    }


def landed(
    rows: int, broken: int, *, unlabelled: int = 0, refused: str = "", schema: tuple = ()
) -> PartitionFact:
    return PartitionFact("", rows, broken + unlabelled, refused, 1, 0.0, 0.0, unlabelled, 0, schema)


def test_rows_without_a_label_break_no_contract_and_a_partition_refused_whole_breaks_all_of_it() -> None:
    before = {"2013-03-01": landed(90, 2, unlabelled=8), "2013-03-02": landed(0, 50, refused="bad rows")}

    def shares(newest: PartitionFact) -> tuple[float, float]:
        facts = known_facts(State(partitions={**before, "2013-03-03": newest}), 0.0)
        return facts.refused_share, facts.usual_refused_share

    assert shares(landed(20, 0, unlabelled=80)) == (0.0, 0.02)  # labels are late, data are sound
    assert shares(landed(0, 0, unlabelled=100, refused="no row has a label")) == (0.0, 0.02)
    assert shares(landed(70, 30)) == (0.3, 0.02)
    assert shares(landed(60, 40, refused="40.0% of rows break the contract")) == (1.0, 0.02)
    assert shares(landed(0, 0, refused="a.csv lacks columns size")) == (1.0, 0.02)
    gone = landed(0, 0, refused="a.csv lacks columns size", schema=("size: column is gone",))
    facts = known_facts(State(partitions={"2013-03-03": gone}), 0.0)
    assert (facts.schema_changes, facts.usual_refused_share) == (("size: column is gone",), 0.0)
    assert known_facts(State(), 0.0).refused_share == 0.0
