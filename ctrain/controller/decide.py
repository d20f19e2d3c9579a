"""The policy: `decide(state, observation, now)`. Pure: no clock, no Ray, no files.

Takes the folded state, one observation and the time; gives the events that follow from it, and the
answer where somebody asked. What has to be done is not remembered here: `due(state)` reads it off
the state, so a controller that crashed between an event and its consequence finds the work again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import singledispatch

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
)
from ctrain.controller.state import Evidence, RolloutFact, State
from ctrain.errors import SpecError
from ctrain.records import (
    Analysis,
    Json,
    LiveDocument,
    Observed,
    Partition,
    RunRequest,
    Sighting,
    to_json,
)
from ctrain.rollout import RolloutState, advance, analyse
from ctrain.spec import PipelineSpec, parse_spec
from ctrain.spec.evaluation import HIGHER_IS_BETTER
from ctrain.spec.triggers import NewData, Performance, Schedule

ANALYSIS_EVERY = 10.0
"""Least seconds between two journaled analyses whose verdict is the same."""
ANALYSIS_GROWTH = 0.1
"""Share of a rollout's age by which they are further apart, so that a week of it stays short."""

INGEST_ATTEMPTS = 3
INGEST_BATCH = 200
"""Partitions landed in one pass over the source."""
INGEST_PAUSE, INGEST_LONGEST = 60.0, 3600.0
"""Seconds until the next ingest after one that was given up, doubled with each in a row, and their bound."""

OVERRIDABLE = ("training", "model", "evaluation")
"""Parts of the spec that a single run may have otherwise."""


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
                events.append(_alert("source", f"{name or 'source'}: {problem}"))
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
            events.append(_alert("contract", f"partition {item.name} refused: {item.refused}"))
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
    alert = _alert("ingest", f"could not be landed, tried again later: {names}: {observation.error}")
    return _events(failed, ended, alert)


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
            events.append(_alert("gate", f"{label} was judged against another champion; held"))
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
    return _events(Entry("evaluation_failed", data), _alert("gate", text))


@_decide.register
def _(observation: Seen, state: State, now: float) -> Decision:
    observed = observation.observed
    live = serves_everywhere(state.document(state.epoch), observed)
    seen = [*_converge(state, live, observed), *_overwritten(state, observed)]
    lost = _refused_champion(state, observed)
    if lost:
        return _events(*seen, *lost)
    if state.rollout is None:
        return _events(*seen)
    return _events(*seen, *_roll_out(state, state.rollout, observed, live, now))


def _roll_out(
    state: State, rollout: RolloutFact, observed: Observed, live: bool, now: float
) -> Iterable[Entry]:
    """Move a rollout: harm ends it at any time, the next step needs this one live on every replica."""
    plan = rollout.canary()
    for report in observed.reports:
        problem = report.refused.get(rollout.version)
        if problem is not None:
            reason = f"replica {report.replica} refused the weights: {problem}"
            yield _abort(rollout.version, reason, by="controller")
            yield _alert("rollout", f"{state.label(rollout.version)} withdrawn: {reason}")
            return
    ready = live and rollout.since > 0.0
    slow_s = _slow_threshold(observed)
    if rollout.phase == "loading":
        if ready and not state.paused:
            yield from _step(rollout, "shadow" if plan.shadow > 0 else "canary", 0, slow_s)
        elif now - rollout.started > plan.timeout:
            reason = "not every replica loaded the weights in time"
            yield _abort(rollout.version, reason)
            yield _alert("rollout", f"{state.label(rollout.version)} withdrawn: {reason}")
        return
    if rollout.phase == "canary" and not rollout.slow_s and slow_s:
        yield Entry("slow_known", {"slow_s": slow_s})
        return
    evidence = pooled(state, observed)
    arms = [item.arms for item in evidence.values()]
    pairs = [count for item in evidence.values() for count in item.pairs]
    split = state.document(state.epoch).split
    analysis = analyse(rollout.id, rollout.phase, split, plan, arms, pairs)
    stage = RolloutState(
        id=rollout.id,
        phase=rollout.phase,
        step=rollout.step,
        started=rollout.started,
        since=rollout.since,
        paused=state.paused,
    )
    move = advance(stage, plan, analysis, now)
    if not ready and move.kind in ("step", "promote"):
        move = replace(move, kind="wait")
    apart = max(ANALYSIS_EVERY, ANALYSIS_GROWTH * (now - rollout.started))
    if analysis.verdict != rollout.verdict or move.kind != "wait" or now - rollout.analysed >= apart:
        yield _analysed(analysis, evidence)
    if move.kind == "step":
        yield from _step(rollout, move.phase, move.step, slow_s)
    elif move.kind == "promote":
        yield Entry("promoted", {"version": rollout.version, "by": "rollout", "reason": move.reason})
    elif move.kind == "abort":
        yield _abort(rollout.version, move.reason)
        yield _alert("rollout", f"{state.label(rollout.version)} rolled back: {move.reason}")


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
        return _events(*events, _alert("monitoring", f"window not summarised: {observation.error}"))
    spec = state.pipeline_spec()
    drifted = [item.feature for item in report.drift if item.drifted]
    if drifted:
        events.append(_alert("drift", f"inputs moved against the reference: {', '.join(drifted)}"))
    for metric, goal in spec.goals.metrics.items():
        value = report.metrics.get(metric)
        if value is not None and _worse(metric, value, goal):
            events.append(_alert("goal", f"live {metric} {value:.4f} misses the goal {goal:g}"))
    goal_p99, p99 = spec.goals.latency_p99, report.latency.get("p99")
    if goal_p99 is not None and p99 is not None and p99 > goal_p99:
        events.append(_alert("goal", f"latency p99 {p99 * 1e3:.1f} ms misses {goal_p99 * 1e3:.0f} ms"))
    for trigger in spec.triggers:
        if isinstance(trigger, Performance):
            value = report.metrics.get(trigger.metric)
            rested = state.run is None and now - state.run_at >= trigger.cooldown
            if value is not None and rested and _worse(trigger.metric, value, trigger.worse_than):
                reason = f"live {trigger.metric} {value:.4f} is worse than {trigger.worse_than:g}"
                events.extend(_want(state, "performance", reason))
    return _events(*events)


@_decide.register
def _(observation: Operated, state: State, now: float) -> Decision:
    who = {"by": observation.by, "reason": observation.reason}
    rollout, verb = state.rollout, observation.verb
    if verb == "start":
        body = observation.body
        if state.spec == body["spec"] and state.code == body["code"] and not state.stopped:
            return Decision()
        return _events(Entry("pipeline_started", {**who, "spec": body["spec"], "code": body["code"]}))
    if state.stopped or not state.spec:
        return Decision(refusal="the pipeline is stopped")
    meant = rollout.version if rollout is not None else state.champion
    named = str(observation.body.get("version", ""))
    if named not in ("", meant, state.label(meant)):
        found = "in rollout" if rollout is not None else "the champion, and nothing is in rollout"
        return Decision(refusal=f"{state.label(meant)} is {found}; {named} was named")
    withdrawn = [Entry("aborted", {**who, "version": rollout.version})] if rollout is not None else []
    if verb == "stop":
        return _events(*withdrawn, Entry("pipeline_stopped", who))
    if verb == "retrain":
        return _retrain(state, who, observation.body.get("overrides", {}))
    if verb == "rollback":
        if not state.previous and not withdrawn:
            return Decision(refusal="there is no challenger and no previous champion to roll back to")
        back = [Entry("rolled_back", {**who, "version": state.champion})] if state.previous else []
        return _events(*withdrawn, *back)
    if rollout is None:
        return Decision(refusal=f"no rollout is under way, so there is nothing to {verb}")
    if verb == "abort":
        return _events(*withdrawn)
    if verb == "promote":
        if rollout.phase == "loading":
            return Decision(refusal="the challenger's weights are not loaded on every replica yet")
        return _events(Entry("promoted", {**who, "version": rollout.version}))
    if verb == "pause":
        return Decision(refusal="it is paused already") if state.paused else _events(Entry("paused", who))
    if verb == "resume":
        return _events(Entry("resumed", who)) if state.paused else Decision(refusal="it is not paused")
    return Decision(refusal=f"unknown verb {verb!r}", status=422)


def _retrain(state: State, who: Json, overrides: Json) -> Decision:
    """What an operator's retraining may change is checked before anything is promised."""
    if not isinstance(overrides, Mapping) or set(overrides) - set(OVERRIDABLE):
        allowed = ", ".join(OVERRIDABLE)
        problem = f"overrides: a run may have its own {allowed}; found {', '.join(map(str, overrides))}"
        return Decision(refusal=problem, status=422)
    try:
        parse_spec(overridden(state.spec, overrides), origin="the spec with these overrides")
    except SpecError as error:
        return Decision(refusal=str(error), status=422)
    if state.wanted is not None and state.wanted.trigger == "operator":
        return Decision(refusal=f"a retraining by an operator waits already: {state.wanted.reason}")
    return _events(Entry("retrain_wanted", {**who, "trigger": "operator", "overrides": overrides}))


# --- parts of the policy ---


def pooled(state: State, observed: Observed) -> dict[str, Evidence]:
    """Counts of the rollout by replica incarnation: journaled ones, overtaken by newer reports."""
    rollout = state.rollout
    evidence = dict(state.evidence)
    if rollout is None:
        return evidence
    for report in observed.reports:
        arms = tuple(count for count in report.arms if count.rollout == rollout.id)
        pairs = tuple(count for count in report.pairs if count.rollout == rollout.id)
        old = evidence.get(report.incarnation)
        if (arms or pairs) and (old is None or _total(arms, pairs) >= _total(old.arms, old.pairs)):
            evidence[report.incarnation] = Evidence(arms, pairs)
    return evidence


def _total(arms: Iterable[object], pairs: Iterable[object]) -> int:
    """Cumulative counts only grow, so a smaller sum is an older report."""
    return sum(getattr(count, "requests", 0) for count in arms) + sum(
        getattr(count, "pairs", 0) + getattr(count, "errors", 0) for count in pairs
    )


def serves_everywhere(document: LiveDocument, observed: Observed) -> bool:
    """Whether every replica that Serve means to run was seen to serve this document."""
    newest = {report.replica: report for report in observed.reports}
    heard = [newest.get(replica) for replica in observed.expected or ()]
    # Epochs rise at a take-over without changing what is served, so the generation decides.
    wanted = replace(document, epoch=0)
    return bool(heard) and all(
        item is not None and item.serves(wanted) and item.generation >= document.generation for item in heard
    )


def _converge(state: State, live: bool, observed: Observed) -> Iterable[Entry]:
    unseen = state.rollout is not None and state.rollout.since == 0.0
    if live and (state.converged < state.generation or unseen):
        replicas = len(observed.expected or ())
        yield Entry("converged", {"generation": state.generation, "replicas": replicas})


def _refused_champion(state: State, observed: Observed) -> list[Entry]:
    """A champion that no replica can load is withdrawn; one that some hold keeps serving, with an alert."""
    if not state.champion:
        return []
    refusals = {r.replica: r.refused[state.champion] for r in observed.reports if state.champion in r.refused}
    if not refusals:
        return []
    replica, problem = min(refusals.items())
    text = f"replica {replica} refuses champion {state.label(state.champion)}: {problem}"
    if any(state.champion in report.resident for report in observed.reports):
        return [] if any(text == old for _, _, old in state.alerts) else [_alert("serving", text)]
    events = [_alert("serving", text)]
    if state.rollout is not None:
        events.append(_abort(state.rollout.version, "its champion cannot be loaded", by="controller"))
    data = {"version": state.champion, "by": "controller", "reason": text}
    return [*events, Entry("rolled_back", data)]


def _overwritten(state: State, observed: Observed) -> Iterable[Entry]:
    """Notice that somebody else wrote Serve's configuration: no replica follows it; it is put right."""
    found = observed.configured
    calm = state.settled != 0 and state.settled == state.generation
    if calm and found is not None and found != state.settled:
        yield Entry("overwritten", {"found": found, "expected": state.settled})
        text = "an operator's configuration was deployed; it changes nothing that is live and is put right"
        yield _alert("serving", text)


def _begin_run(state: State) -> Iterable[Entry]:
    wanted = state.wanted
    if wanted is None or state.busy:
        return
    raw = overridden(state.spec, wanted.overrides)
    spec = parse_spec(raw)
    matured = [
        name
        for name in state.committed
        if state.partitions[name].last_event + spec.label.matures_after <= state.watermark
        and state.partitions[name].last_event > state.watermark - spec.training.window
    ]
    needed = spec.evaluation.blocks + 1
    if len(matured) < needed:
        why = (
            f"{len(matured)} matured partitions in the window; {needed} are needed: "
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
        partitions=tuple(matured),
        blocks=tuple(matured[-spec.evaluation.blocks :]),
        seed=spec.training.seed,
        parent=state.champion,
    )
    yield _run_started(request, wanted.trigger, wanted.reason, wanted.overrides)


def overridden(spec: Json, overrides: Json) -> Json:
    """A copy of a spec with the values of `overrides` in place of its own, mapping by mapping."""
    merged = dict(spec)
    for name, value in overrides.items():
        old = merged.get(name)
        merged[name] = overridden(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


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
    return _events(failed, Entry("run_given_up", data), _alert("run", text))


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
            yield _alert("goal", text)


def _slow_threshold(observed: Observed) -> float:
    """Champion's 90 % quantile of the last minute, the median over replicas; 0 if nobody knows it."""
    known = sorted(r.latency["p90"] for r in observed.reports if r.latency.get("p90"))
    return known[len(known) // 2] if known else 0.0


def _step(rollout: RolloutFact, phase: str, step: int, slow_s: float) -> Iterable[Entry]:
    yield Entry("rollout_step", {"rollout": rollout.id, "phase": phase, "step": step})
    if phase == "canary" and not rollout.slow_s and slow_s:
        # One threshold for the whole canary: evidence pools over its steps.
        yield Entry("slow_known", {"slow_s": slow_s})


def _abort(version: str, reason: str, by: str = "rollout") -> Entry:
    return Entry("aborted", {"version": version, "by": by, "reason": reason})


def _analysed(analysis: Analysis, evidence: dict[str, Evidence]) -> Entry:
    counts = {name: to_json(item) for name, item in evidence.items()}
    return Entry("analysed", {"analysis": to_json(analysis), "evidence": counts})


def _alert(kind: str, text: str) -> Entry:
    return Entry("alert", {"alert": kind, "text": text})


def _events(*entries: Entry) -> Decision:
    return Decision(tuple(entries))


def _worse(metric: str, value: float, bound: float) -> bool:
    return value < bound if metric in HIGHER_IS_BETTER else value > bound
