"""How events change what the controller knows: one function an event kind.

`fold(state, event)` is total and pure; a restart folds the snapshot and the events after it. The live
document's generation rises with each event that changes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from ctrain.controller.journal import Event
from ctrain.controller.state import (
    Evidence,
    IngestFact,
    PartitionFact,
    RolloutFact,
    RunFact,
    State,
    VersionFact,
    Wanted,
    WatchFact,
)
from ctrain.evaluation.compare import with_pair
from ctrain.records import (
    IngestedPartition,
    Json,
    LiveDocument,
    PairedBlock,
    Partition,
    RecordedPair,
    RunRequest,
    ShadowBlock,
    WindowReport,
    from_json,
)

ALERTS_KEPT = 20
VERSIONS_KEPT = 50
HOLDS = ("quarantine", "hold_training")
"""Actions of a diagnosis after which training would learn from what is broken."""
BLOCKS_COUNTED = 400
"""Newest blocks whose gates are counted."""
BLOCKS_KEPT = 60
"""Newest blocks of evidence on quality of a rollout or a watch."""


def fold(state: State, event: Event) -> State:
    """The state after one more event. Raises KeyError on an event kind that it does not know."""
    before = _shape(state)
    state = _FOLDS[event.kind](state, event.data, event.at)
    if _shape(state) != before:
        # Nobody serves the new document yet, so no hold of a rollout has begun.
        state = replace(state, generation=state.generation + 1, rollout=_unseen(state.rollout))
    return replace(state, seq=event.seq, epoch=event.epoch, at=event.at)


def _shape(state: State) -> LiveDocument | None:
    """What the live document says apart from its epoch and generation."""
    return replace(state.document(0), generation=0) if state.spec else None


# --- one function an event kind ---


def _started(state: State, data: Json, at: float) -> State:
    return replace(
        state,
        spec=data["spec"],
        code=data["code"],
        stopped=False,
        # A pipeline that was stopped owes no windows and no schedules of that time.
        window_end=at if state.stopped or not state.window_end else state.window_end,
        scheduled=at if state.stopped or not state.scheduled else state.scheduled,
        rollout=_unseen(state.rollout),
    )


def _stopped(state: State, data: Json, at: float) -> State:
    run, wanted = state.run, state.wanted
    if run is not None and wanted is None:
        # Its actor goes with the pipeline; a start begins it again.
        wanted = Wanted(run.trigger, run.reason, run.overrides)
    return replace(state, stopped=True, run=None, wanted=wanted)


def _sighted(state: State, data: Json, at: float) -> State:
    return replace(state, problems=dict(data["problems"]))


def _ingest_started(state: State, data: Json, at: float) -> State:
    partitions = tuple(from_json(Partition, item) for item in data["partitions"])
    fact = IngestFact(data["key"], partitions, data.get("attempt", 1))
    return replace(state, ingest=fact, ingests=state.ingests + 1)


def _partition(state: State, data: Json, at: float) -> State:
    item = from_json(IngestedPartition, data["partition"])
    fact = PartitionFact(
        sha256=item.sha256,
        rows=item.report.accepted,
        refused_rows=item.report.refused,
        refused=item.refused,
        dataset_version=item.dataset_version,
        first_event=item.first_event,
        last_event=item.last_event,
        unlabelled=item.report.unlabelled,
        batch=state.ingests,
        schema_changes=item.schema_changes,
    )
    fresh = state.fresh + (0 if item.refused else 1)
    return replace(state, partitions={**state.partitions, item.name: fact}, fresh=fresh)


def _ingest_ended(state: State, data: Json, at: float) -> State:
    if data.get("given_up"):
        return replace(state, ingest=None, ingest_failures=state.ingest_failures + 1, ingest_failed=at)
    return replace(state, ingest=None, ingest_failures=0)


def _retrain_wanted(state: State, data: Json, at: float) -> State:
    wanted = Wanted(data["trigger"], data["reason"], data.get("overrides", {}))
    if state.wanted is not None and data["trigger"] != "operator":
        wanted = state.wanted  # one run serves both, and a person's wish is not overwritten
    scheduled = at if data["trigger"] == "schedule" else state.scheduled
    return replace(state, wanted=wanted, scheduled=scheduled, waiting="")


def _waiting(state: State, data: Json, at: float) -> State:
    return replace(state, waiting=data["why"])


def _run_started(state: State, data: Json, at: float) -> State:
    request = from_json(RunRequest, data["request"])
    fact = RunFact(request, data["trigger"], at, data["reason"], data.get("overrides", {}))
    if request.attempt > 1:
        return replace(state, run=fact, last_run=request.run_id, run_at=at)
    return replace(
        state,
        run=fact,
        runs=state.runs + 1,
        last_run=request.run_id,
        run_at=at,
        wanted=None,
        waiting="",
        fresh=0,
    )


def _run_finished(state: State, data: Json, at: float) -> State:
    fact = VersionFact(
        id=data["version"],
        label=data["label"],
        sha256=data["sha256"],
        run_id=data["run_id"],
        trained_to=data["trained_to"],
        rows=data["rows"],
        at=at,
    )
    versions = _kept({**state.versions, fact.id: fact}, state)
    return replace(
        state,
        run=None,
        versions=versions,
        labels=state.labels + 1,
        evaluating=fact.id,
        evaluations=state.evaluations + 1,
    )


def _run_given_up(state: State, data: Json, at: float) -> State:
    return replace(state, run=None)


def _run_failed(state: State, data: Json, at: float) -> State:
    return state


def _gate_decided(state: State, data: Json, at: float) -> State:
    version = data["decision"]["version"]
    verdict = data["decision"]["verdict"]
    warnings = tuple(data["decision"].get("warnings", ()))
    end = "" if verdict == "accept" else "held"
    fact = replace(state.versions[version], verdict=verdict, end=end, warnings=warnings)
    if verdict == "refuse":
        fact = replace(fact, end="refused")
    record, pair = state.record, data["decision"].get("pair")
    if pair:
        record = with_pair(record, from_json(RecordedPair, pair))
    uses = dict(state.uses)
    for block in data["decision"].get("used", ()):
        uses[block] = uses.get(block, 0) + 1
    uses = {block: uses[block] for block in sorted(uses)[-BLOCKS_COUNTED:]}
    versions = {**state.versions, version: fact}
    return replace(state, evaluating="", versions=versions, record=record, uses=uses)


def _evaluation_failed(state: State, data: Json, at: float) -> State:
    fact = replace(state.versions[data["version"]], end="not evaluated")
    return replace(state, evaluating="", versions={**state.versions, fact.id: fact})


def _rollout_started(state: State, data: Json, at: float) -> State:
    rollout = RolloutFact(data["rollout"], data["version"], data["plan"], "loading", 0, at, 0.0)
    return replace(state, rollout=rollout, rollouts=state.rollouts + 1, evidence={})


def _rollout_step(state: State, data: Json, at: float) -> State:
    assert state.rollout is not None
    rollout = replace(
        state.rollout,
        phase=data["phase"],
        step=data["step"],
        verdict="",
        since=0.0,
    )
    return replace(state, rollout=rollout)


def _slow_known(state: State, data: Json, at: float) -> State:
    assert state.rollout is not None
    slow_s = data["slow_s"]
    known = tuple(slow_s) if isinstance(slow_s, list) else ()  # once it was one number
    return replace(state, rollout=replace(state.rollout, slow_s=known))


def _analysed(state: State, data: Json, at: float) -> State:
    assert state.rollout is not None
    analysis = data["analysis"]
    text = tuple((item["metric"], item["verdict"], item["text"]) for item in analysis["metrics"])
    rollout = replace(state.rollout, verdict=analysis["verdict"], analysed=at, text=text)
    evidence = {name: from_json(Evidence, counts) for name, counts in data["evidence"].items()}
    return replace(state, rollout=rollout, evidence=evidence)


def _promoted(state: State, data: Json, at: float) -> State:
    version = data["version"]
    fact = replace(state.versions[version], end="promoted")
    lasts = state.pipeline_spec().rollout.watch
    watch = WatchFact(version, state.champion, at, at + lasts) if state.champion and lasts else None
    if watch is not None and state.rollout is not None and state.rollout.version == version:
        watch = replace(watch, blocks=state.rollout.blocks)
    return replace(
        state,
        champion=version,
        first=state.first or version,
        previous=state.champion,
        promoted_at=at,
        watch=watch,
        rollout=None,
        evidence={},
        paused=False,
        versions={**state.versions, version: fact},
    )


def _aborted(state: State, data: Json, at: float) -> State:
    version = data["version"]
    fact = replace(state.versions[version], end="aborted")
    return replace(state, rollout=None, evidence={}, paused=False, versions={**state.versions, version: fact})


def _rolled_back(state: State, data: Json, at: float) -> State:
    """Back to the previous champion; to none where the first one could not serve."""
    fact = replace(state.versions[state.champion], end="rolled back")
    return replace(
        state,
        champion=state.previous,
        previous="",
        watch=None,
        versions={**state.versions, fact.id: fact},
        promoted_at=at,
    )


def _paused(state: State, data: Json, at: float) -> State:
    return replace(state, paused=True)


def _resumed(state: State, data: Json, at: float) -> State:
    # Time under pause is no hold: it begins again once every replica is seen to serve the step.
    return replace(state, paused=False, rollout=_unseen(state.rollout))


def _unseen(rollout: RolloutFact | None) -> RolloutFact | None:
    return replace(rollout, since=0.0) if rollout is not None else None


def _converged(state: State, data: Json, at: float) -> State:
    rollout = state.rollout
    if rollout is not None and rollout.since == 0.0:
        rollout = replace(rollout, since=at)
    return replace(state, converged=data["generation"], rollout=rollout)


def _settled(state: State, data: Json, at: float) -> State:
    return replace(state, settled=data["generation"])


def _overwritten(state: State, data: Json, at: float) -> State:
    return replace(state, settled=0)


def _window_started(state: State, data: Json, at: float) -> State:
    return replace(state, windowing=data["end"], windowing_watermark=data["watermark"])


def _window_closed(state: State, data: Json, at: float) -> State:
    state = replace(state, window_end=data["end"], windowing=0.0)
    if not data.get("report"):
        return state
    report = from_json(WindowReport, data["report"])
    rollout, watch = state.rollout, state.watch
    if rollout is not None:
        found = paired_blocks(report.blocks, rollout.version, state.champion)
        rollout = replace(rollout, blocks=_joined(rollout.blocks, found))
    if watch is not None:
        watch = replace(watch, blocks=watched_blocks(watch, report.blocks))
    state = replace(state, window=report, rollout=rollout, watch=watch)
    if report.diagnosis is not None:
        hold = report.diagnosis.reason if report.diagnosis.action in HOLDS else ""
        return replace(state, diagnosis=report.diagnosis, hold=hold)
    if report.drift and all(one.state != "drift" for one in report.drift):
        return replace(state, hold="")
    return state


def watched_blocks(watch: WatchFact, blocks: Iterable[ShadowBlock]) -> tuple[PairedBlock, ...]:
    """The blocks of a watch with those that a window adds to them."""
    return _joined(watch.blocks, paired_blocks(blocks, watch.version, watch.against))


def _watched(state: State, data: Json, at: float) -> State:
    if state.watch is None:
        return state
    verdict, text = data["report"]["verdict"], data["report"]["text"]
    return replace(state, watch=replace(state.watch, verdict=verdict, text=text))


def _watch_ended(state: State, data: Json, at: float) -> State:
    return replace(state, watch=None)


def paired_blocks(blocks: Iterable[ShadowBlock], judged: str, against: str) -> tuple[PairedBlock, ...]:
    """Blocks that two versions both scored, whichever of them answered."""
    found = []
    for block in blocks:
        sides = {block.answered_by: block.answered, block.shadow: block.shadowed}
        if sides.keys() == {judged, against}:
            pair = PairedBlock(block.block, block.rows, block.positives, sides[judged], sides[against])
            found.append(pair)
    return tuple(found)


def _joined(old: Iterable[PairedBlock], new: Iterable[PairedBlock]) -> tuple[PairedBlock, ...]:
    """One pair a block of time, the larger one: two of the same day are no evidence of two days."""
    best: dict[str, PairedBlock] = {}
    for pair in (*old, *new):
        if pair.block not in best or pair.rows > best[pair.block].rows:
            best[pair.block] = pair
    return tuple(best[name] for name in sorted(best))[-BLOCKS_KEPT:]


def _alert(state: State, data: Json, at: float) -> State:
    alerts = (*state.alerts, (at, data["alert"], data["text"]))[-ALERTS_KEPT:]
    return replace(state, alerts=alerts)


def _noted(state: State, data: Json, at: float) -> State:
    return state


def _kept(versions: Mapping[str, VersionFact], state: State) -> dict[str, VersionFact]:
    """The newest versions and whatever serves: the journal keeps the rest."""
    serving = {state.champion, state.previous}
    newest = sorted(versions.values(), key=lambda fact: fact.at)[-VERSIONS_KEPT:]
    kept = {fact.id for fact in newest} | serving
    return {name: fact for name, fact in versions.items() if name in kept}


_FOLDS: dict[str, Any] = {
    "pipeline_started": _started,
    "pipeline_stopped": _stopped,
    "source_looked": _sighted,
    "ingest_started": _ingest_started,
    "partition_committed": _partition,
    "partition_refused": _partition,
    "ingest_ended": _ingest_ended,
    "ingest_failed": _noted,
    "retrain_wanted": _retrain_wanted,
    "retrain_waits": _waiting,
    "run_started": _run_started,
    "run_finished": _run_finished,
    "run_failed": _run_failed,
    "run_given_up": _run_given_up,
    "gate_decided": _gate_decided,
    "evaluation_failed": _evaluation_failed,
    "rollout_started": _rollout_started,
    "rollout_step": _rollout_step,
    "slow_known": _slow_known,
    "analysed": _analysed,
    "promoted": _promoted,
    "aborted": _aborted,
    "rolled_back": _rolled_back,
    "paused": _paused,
    "resumed": _resumed,
    "converged": _converged,
    "settled": _settled,
    "overwritten": _overwritten,
    "window_started": _window_started,
    "window_closed": _window_closed,
    "watched": _watched,
    "watch_ended": _watch_ended,
    "alert": _alert,
}
"""How each kind of event changes the state. The journal holds no other kinds."""
