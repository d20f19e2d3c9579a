"""The policy: `decide(state, observation, now)`. Pure: no clock, no Ray, no files.

Takes the folded state, one observation and the time; gives the events that follow from it, and the
answer where somebody asked. What has to be done is not remembered here: `due(state)` reads it off
the state, so a controller that crashed between an event and its consequence finds the work again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from functools import singledispatch

import numpy as np

from ctrain.controller.journal import Entry
from ctrain.controller.observations import (
    Command,
    Decision,
    EvaluationFailed,
    Ingested,
    IngestFailed,
    Judged,
    Looked,
    Observation,
    Operated,
    ReleaseRun,
    RunSeen,
    Seen,
    Settled,
    StartEvaluation,
    StartIngest,
    StartRun,
    StartWindow,
    Tick,
    Windowed,
    alert,
)
from ctrain.controller.operators import operated, overridden
from ctrain.controller.quality import end_of_watch, what_blocks_say, what_diagnosis_says, what_skew_says
from ctrain.controller.replicas import what_replicas_say
from ctrain.controller.state import State
from ctrain.evaluation.cohorts import matured
from ctrain.monitoring.words import diagnosis_in_words, report_in_words
from ctrain.records import Json, Partition, RunRequest, Sighting, to_json
from ctrain.spec import PipelineSpec, parse_spec
from ctrain.spec.base import LOWER_IS_BETTER
from ctrain.spec.triggers import DriftTrigger, NewData, Performance, Schedule

TRAINS = ("retrain", "recalibrate")
"""Actions of a diagnosis that a run serves: fresh weights are calibrated anew as well. It also serves a
champion that a model of recent windows has long beaten (`aged`), though nothing is wrong with the stream."""
INGEST_ATTEMPTS = 3
INGEST_BATCH = 200
"""Partitions landed in one pass over the source."""
INGEST_PAUSE, INGEST_LONGEST = 60.0, 3600.0
"""Seconds until the next ingest after one that was given up, doubled with each in a row, and their bound."""


def due(state: State) -> tuple[Command, ...]:
    """Everything that the state asks for, in order; each key names one piece of work for ever."""
    commands: list[Command] = [ReleaseRun(f"release-{run}", run) for run in _ended_runs(state)]
    if state.stopped or not state.spec:
        return tuple(commands)
    if state.ingest is not None:
        fact = state.ingest
        commands.append(StartIngest(f"{fact.key}-{fact.attempt}", fact.partitions))
    if state.run is not None:
        request = state.run.request
        commands.append(StartRun(request.run_id, request))
    if state.evaluating:
        key = f"evaluate-{state.evaluations}-{state.evaluating}"
        commands.append(StartEvaluation(key, state.evaluating, state.champion))
    if state.windowing:
        commands.append(StartWindow(f"window-{state.windowing:.0f}", state.window_end, state.windowing))
    return tuple(commands)


def _ended_runs(state: State) -> list[str]:
    """Attempts of the newest run that are over: an actor that hangs would go on beside the next one."""
    if not state.last_run:
        return []
    base, _, newest = state.last_run.rpartition("-")
    running = state.run.request.run_id if state.run is not None else ""
    attempts = (f"{base}-{attempt}" for attempt in range(1, int(newest) + 1))
    return [run_id for run_id in attempts if run_id != running]


# --- the policy, one function an observation ---


def decide(state: State, observation: Observation, now: float) -> tuple[Decision, tuple[Command, ...]]:
    """Say what follows from an observation.

    Args:
        state: Fold of the journal.
        observation: What was seen, or asked for.
        now: Seconds since 1970, never less than the newest event's time.

    Returns:
        The events to journal, and the commands that were due before them.
    """
    if state.stopped and not isinstance(observation, Operated):
        return Decision(), due(state)
    return _decide(observation, state, now), due(state)


@singledispatch
def _decide(observation: Observation, state: State, now: float) -> Decision:
    raise TypeError(f"no policy for {type(observation).__name__}")


@_decide.register
def _(observation: Tick, state: State, now: float) -> Decision:
    spec = state.pipeline_spec()
    return _events(
        *_begin_run(state),
        *_want_by_schedule(state, spec, now),
        *_open_window(state, spec, now),
        *end_of_watch(state, now),
        *_stale(state, spec),
    )


@_decide.register
def _(observation: Looked, state: State, now: float) -> Decision:
    events = []
    fresh: list[Partition] = []
    problems: dict[str, str] = {}
    for seen in observation.sightings:
        problem = _problem(state, seen)
        if problem:
            problems[seen.name] = problem
        elif seen.partition is not None and not _handled(state, seen.partition):
            fresh.append(seen.partition)
    if problems != state.problems:
        events.append(Entry("source_looked", {"problems": problems}))
        for name, problem in problems.items():
            if state.problems.get(name) != problem:
                events.append(alert("source", f"{name or 'source'}: {problem}"))
    if fresh and state.ingest is None and now >= _next_ingest(state):
        batch = sorted(fresh, key=lambda partition: partition.name)[:INGEST_BATCH]
        if state.ingest_failures:
            # One at a time, each in turn: what cannot be landed must not keep the others out.
            batch = [batch[(state.ingest_failures - 1) % len(batch)]]
        key = f"ingest-{state.ingests + 1}"
        data = {"key": key, "partitions": [to_json(partition) for partition in batch], "attempt": 1}
        events.append(Entry("ingest_started", data))
    return _events(*events)


def _problem(state: State, seen: Sighting) -> str:
    """Why a folder of the source is not used; empty if it is, or was."""
    if seen.partition is None:
        return seen.problem
    known = state.partitions.get(seen.name)
    if known is None or known.refused or known.sha256 == seen.partition.sha256:
        return ""
    found = f"landed again with other content ({seen.partition.sha256[:12]})"
    return f"{found}; {known.sha256[:12]} stands. Land corrections as a new partition"


def _handled(state: State, partition: Partition) -> bool:
    known = state.partitions.get(partition.name)
    return known is not None and known.sha256 == partition.sha256


def _next_ingest(state: State) -> float:
    if not state.ingest_failures:
        return 0.0
    doublings = min(state.ingest_failures - 1, 10)
    return state.ingest_failed + min(INGEST_PAUSE * 2.0**doublings, INGEST_LONGEST)


@_decide.register
def _(observation: Ingested, state: State, now: float) -> Decision:
    if state.ingest is None or f"{state.ingest.key}-{state.ingest.attempt}" != observation.key:
        return Decision()  # an answer that came twice
    events = []
    for item in observation.partitions:
        kind = "partition_refused" if item.refused else "partition_committed"
        events.append(Entry(kind, {"partition": to_json(item)}))
        if item.refused:
            events.append(alert("contract", f"partition {item.name} refused: {item.refused}"))
    events.append(Entry("ingest_ended", {"key": observation.key}))
    committed = sum(1 for item in observation.partitions if not item.refused)
    fresh = state.fresh + committed
    for trigger in state.pipeline_spec().triggers:
        if isinstance(trigger, NewData) and committed and fresh >= trigger.partitions:
            newest = max(item.name for item in observation.partitions if not item.refused)
            reason = f"{fresh} new partition{'s' if fresh > 1 else ''} to {newest}"
            events.extend(_want(state, "new_data", reason))
    return _events(*events)


@_decide.register
def _(observation: IngestFailed, state: State, now: float) -> Decision:
    fact = state.ingest
    if fact is None or f"{fact.key}-{fact.attempt}" != observation.key:
        return Decision()
    failed = Entry("ingest_failed", {"key": observation.key, "error": observation.error})
    if fact.attempt < INGEST_ATTEMPTS:
        data = {
            "key": fact.key,
            "partitions": [to_json(partition) for partition in fact.partitions],
            "attempt": fact.attempt + 1,
        }
        return _events(failed, Entry("ingest_started", data))
    names = ", ".join(partition.name for partition in fact.partitions[:3])
    names += ", ..." if len(fact.partitions) > 3 else ""
    ended = Entry("ingest_ended", {"key": observation.key, "given_up": True})
    text = f"could not be landed, tried again later: {names}: {observation.error}"
    return _events(failed, ended, alert("ingest", text))


@_decide.register
def _(observation: RunSeen, state: State, now: float) -> Decision:
    fact, status = state.run, observation.status
    if fact is None or fact.request.run_id != status.run_id or status.state == "running":
        timeout = state.pipeline_spec().training.timeout
        if fact is not None and fact.request.run_id == status.run_id and now - fact.at > timeout:
            return _run_failed(state, fact.request, f"no result within {timeout:.0f} s", fact.trigger)
        return Decision()
    if status.state == "failed":
        return _run_failed(state, fact.request, status.error, fact.trigger, status.retryable)
    version = observation.version
    assert version is not None, "a finished run comes with its manifest"
    data = {
        "run_id": status.run_id,
        "version": version.id,
        "label": f"v{state.labels + 1}",
        "sha256": version.served.sha256,
        "trained_to": version.partitions[-1],
        "rows": version.rows,
        "seconds": status.seconds,
        "seed": version.seed,
        "dataset_version": version.dataset_version,
        "metrics": version.metrics,
    }
    return _events(Entry("run_finished", data))


@_decide.register
def _(observation: Judged, state: State, now: float) -> Decision:
    decision = observation.decision
    if decision.version != state.evaluating:
        return Decision()
    events = [Entry("gate_decided", {"decision": to_json(decision)})]
    label = state.label(decision.version)
    if decision.verdict == "accept":
        if decision.champion != state.champion:
            # The champion changed while the gate looked: its word is about another comparison.
            events.append(alert("gate", f"{label} was judged against another champion; held"))
        elif state.champion:
            rollout = f"{state.spec['pipeline']}-{state.rollouts + 1}-{decision.version}"
            data = {"rollout": rollout, "version": decision.version, "plan": state.spec["rollout"]}
            events.append(Entry("rollout_started", data))
        else:
            data = {"version": decision.version, "by": "gate", "reason": "first model: " + decision.reason}
            events.append(Entry("promoted", data))
    return _events(*events)


@_decide.register
def _(observation: EvaluationFailed, state: State, now: float) -> Decision:
    if observation.version != state.evaluating:
        return Decision()
    data = {"version": observation.version, "error": observation.error}
    text = f"{state.label(observation.version)} could not be evaluated: {observation.error}"
    return _events(Entry("evaluation_failed", data), alert("gate", text))


@_decide.register
def _(observation: Seen, state: State, now: float) -> Decision:
    return _events(*what_replicas_say(state, observation.observed, now))


@_decide.register
def _(observation: Settled, state: State, now: float) -> Decision:
    if observation.generation <= state.settled:
        return Decision()
    return _events(Entry("settled", {"generation": observation.generation}))


@_decide.register
def _(observation: Windowed, state: State, now: float) -> Decision:
    if observation.end != state.windowing:
        return Decision()
    report = observation.report
    data = {"end": observation.end, "report": to_json(report) if report is not None else None}
    events = [Entry("window_closed", data)]
    if report is None:
        return _events(*events, alert("monitoring", f"window not summarised: {observation.error}"))
    spec = state.pipeline_spec()
    events.extend(what_blocks_say(state, report))
    events.extend(alert("drift", report_in_words(item)) for item in report.drift if item.alarm)
    for metric, goal in spec.goals.metrics.items():
        value = report.metrics.get(metric)
        if value is not None and _worse(metric, value, goal):
            events.append(alert("goal", f"live {metric} {value:.4f} misses the goal {goal:g}"))
    events.extend(what_skew_says(state, report))
    back = any(event.kind == "rolled_back" for event in events)
    events.extend(what_diagnosis_says(state, report, now, back))
    goal_p99, p99 = spec.goals.latency_p99, report.latency.get("p99")
    if goal_p99 is not None and p99 is not None and p99 > goal_p99:
        events.append(alert("goal", f"latency p99 {p99 * 1e3:.1f} ms misses {goal_p99 * 1e3:.0f} ms"))
    for trigger in spec.triggers:
        if isinstance(trigger, Performance):
            value = report.metrics.get(trigger.metric)
            rested = state.run is None and now - state.run_at >= trigger.cooldown
            if value is not None and rested and _worse(trigger.metric, value, trigger.worse_than):
                reason = f"live {trigger.metric} {value:.4f} is worse than {trigger.worse_than:g}"
                events.extend(_want(state, "performance", reason))
        if isinstance(trigger, DriftTrigger) and report.diagnosis is not None:
            rested = state.run is None and now - state.run_at >= trigger.cooldown
            aged = report.diagnosis.kind == "aged"
            if rested and (aged or report.diagnosis.action in TRAINS):
                events.extend(_want(state, "drift", diagnosis_in_words(report.diagnosis)))
    return _events(*events)


@_decide.register
def _(observation: Operated, state: State, now: float) -> Decision:
    return operated(state, observation)


# --- parts of the policy ---


def _begin_run(state: State) -> Iterable[Entry]:
    wanted = state.wanted
    if wanted is None or state.busy:
        return
    raw = overridden(state.spec, wanted.overrides)
    spec = parse_spec(raw)
    names = matured_partitions(state, spec)
    if state.hold and wanted.trigger != "operator":
        why = f"{state.hold}; an operator's retrain begins all the same"
        if why != state.waiting:
            yield Entry("retrain_waits", {"why": why})
        return
    needed = spec.evaluation.blocks + 1
    if len(names) < needed:
        why = (
            f"{len(names)} matured partitions in the window; {needed} are needed: "
            f"{spec.evaluation.blocks} judged blocks and one to train on"
        )
        if why != state.waiting:
            yield Entry("retrain_waits", {"why": why})
        return
    request = RunRequest(
        run_id=f"{spec.pipeline}-{state.runs + 1:05d}-1",
        pipeline=spec.pipeline,
        root="",
        spec=raw,
        code=state.code,
        dataset_version=state.dataset_version,
        partitions=names,
        blocks=names[-spec.evaluation.blocks :],
        seed=spec.training.seed,
        parent=state.champion,
    )
    yield _run_started(request, wanted.trigger, wanted.reason, wanted.overrides)


def matured_partitions(state: State, spec: PipelineSpec) -> tuple[str, ...]:
    """What a run may learn from and be judged on, oldest first; nothing younger is ever read.

    A partition is used whole, so its newest row must be mature.
    """
    names = state.committed
    last = np.array([state.partitions[name].last_event for name in names], float)
    usable = matured(last, spec.label.matures_after, state.watermark)
    usable &= last > state.watermark - spec.training.window
    return tuple(name for name, use in zip(names, usable, strict=True) if use)


def _run_failed(
    state: State, request: RunRequest, error: str, trigger: str, retryable: bool = True
) -> Decision:
    failed = Entry("run_failed", {"run_id": request.run_id, "attempt": request.attempt, "error": error})
    if retryable and request.attempt < state.pipeline_spec().training.attempts:
        attempt = request.attempt + 1
        run_id = f"{request.run_id.rsplit('-', 1)[0]}-{attempt}"
        again = replace(request, run_id=run_id, attempt=attempt)
        reason = f"attempt {attempt} after: {error}"
        overrides = state.run.overrides if state.run is not None else {}
        return _events(failed, _run_started(again, trigger, reason, overrides))
    data = {"run_id": request.run_id, "error": error}
    tries = f"{request.attempt} attempt{'s' if request.attempt > 1 else ''}"
    text = f"run {request.run_id} given up after {tries}: {error}"
    return _events(failed, Entry("run_given_up", data), alert("run", text))


def _run_started(request: RunRequest, trigger: str, reason: str, overrides: Json) -> Entry:
    data = {"request": to_json(request), "trigger": trigger, "reason": reason, "overrides": overrides}
    return Entry("run_started", data)


def _want(state: State, trigger: str, reason: str) -> Iterable[Entry]:
    if state.wanted is None:
        yield Entry("retrain_wanted", {"trigger": trigger, "reason": reason})


def _want_by_schedule(state: State, spec: PipelineSpec, now: float) -> Iterable[Entry]:
    from cronsim import CronSim

    for trigger in spec.triggers:
        if isinstance(trigger, Schedule) and state.scheduled:
            after = datetime.fromtimestamp(state.scheduled, UTC)
            if next(CronSim(trigger.cron, after)).timestamp() <= now:
                reason = f"schedule {trigger.cron!r}"
                yield Entry("retrain_wanted", {"trigger": "schedule", "reason": reason})


def _open_window(state: State, spec: PipelineSpec, now: float) -> Iterable[Entry]:
    """Open the newest whole window, once the replicas have written the answers of its last moments."""
    length, passed = spec.monitoring.window, now - 2 * spec.serving.flush - state.window_end
    if state.champion and not state.windowing and passed >= length:
        # After an outage the windows in between are empty: begin again with the newest whole one.
        end = state.window_end + length * (passed // length)
        yield Entry("window_started", {"end": end, "watermark": state.watermark})


def _stale(state: State, spec: PipelineSpec) -> Iterable[Entry]:
    """Alert, once a champion, when the data it learned from is older than the goal against the newest."""
    goal, champion = spec.goals.freshness, state.versions.get(state.champion)
    learned = state.partitions.get(champion.trained_to) if champion is not None else None
    if goal is None or champion is None or learned is None:
        return
    if state.watermark - learned.last_event > goal:
        text = f"{champion.label}, trained to {champion.trained_to}, misses the freshness of {goal:.0f} s"
        if all(text != old for _, _, old in state.alerts):
            yield alert("goal", text)


def _events(*entries: Entry) -> Decision:
    return Decision(tuple(entries))


def _worse(metric: str, value: float, bound: float) -> bool:
    return value > bound if metric in LOWER_IS_BETTER else value < bound
