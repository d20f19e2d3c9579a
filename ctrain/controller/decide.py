"""The policy: `decide(state, observation, now)`. Pure: no clock, no Ray, no files.

Takes the folded state, one observation and the time; gives the events that follow from it, and the
answer where somebody asked. What has to be done is not remembered here: `due(state)` reads it off
the state, so a controller that crashed between an event and its consequence finds the work again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import singledispatch

from ctrain.controller.journal import Entry
from ctrain.controller.state import Evidence, State
from ctrain.errors import SpecError
from ctrain.records import (
    Analysis,
    GateDecision,
    IngestedPartition,
    Json,
    ModelVersion,
    Observed,
    Partition,
    RunRequest,
    RunStatus,
    Sighting,
    WindowReport,
    to_json,
)
from ctrain.rollout import RolloutState, advance, analyse
from ctrain.spec import PipelineSpec, parse_spec
from ctrain.spec.evaluation import HIGHER_IS_BETTER
from ctrain.spec.triggers import NewData, Performance, Schedule

ANALYSIS_EVERY = 10.0
"""Seconds between two journaled analyses whose verdict is the same."""

INGEST_ATTEMPTS = 3
INGEST_BATCH = 200
"""Partitions landed in one pass over the source."""


# --- observations: what the controller sees ---


@dataclass(frozen=True, slots=True)
class Tick:
    """Time went by."""


@dataclass(frozen=True, slots=True)
class Looked:
    """A look at the source."""

    sightings: tuple[Sighting, ...]


@dataclass(frozen=True, slots=True)
class Ingested:
    """Partitions were landed, each committed or refused."""

    key: str
    partitions: tuple[IngestedPartition, ...]


@dataclass(frozen=True, slots=True)
class IngestFailed:
    """Landing raised; nothing of it counts, and what it committed is found again by the next try."""

    key: str
    error: str


@dataclass(frozen=True, slots=True)
class RunSeen:
    """The run's own word on itself; `version` is its manifest once it has finished."""

    status: RunStatus
    version: ModelVersion | None = None


@dataclass(frozen=True, slots=True)
class Judged:
    """The gate's decision on a candidate."""

    decision: GateDecision


@dataclass(frozen=True, slots=True)
class EvaluationFailed:
    """Scoring raised."""

    version: str
    error: str


@dataclass(frozen=True, slots=True)
class Seen:
    """What the replicas say."""

    observed: Observed


@dataclass(frozen=True, slots=True)
class Settled:
    """The live document of this generation stands in Serve's own configuration."""

    generation: int


@dataclass(frozen=True, slots=True)
class Windowed:
    """A window was summarised; None if that failed."""

    end: float
    report: WindowReport | None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Operated:
    """A person asks for something."""

    verb: str
    by: str
    reason: str
    body: Json = field(default_factory=dict)


Observation = (
    Tick
    | Looked
    | Ingested
    | IngestFailed
    | RunSeen
    | Judged
    | EvaluationFailed
    | Seen
    | Settled
    | Windowed
    | Operated
)


@dataclass(frozen=True, slots=True)
class Decision:
    """Events that follow from an observation; `refusal` says why a verb had no effect."""

    events: tuple[Entry, ...] = ()
    refusal: str = ""


# --- commands: what has to be done, read off the state ---


@dataclass(frozen=True, slots=True)
class StartIngest:
    """Land these partitions."""

    key: str
    partitions: tuple[Partition, ...]


@dataclass(frozen=True, slots=True)
class StartRun:
    """Train."""

    key: str
    request: RunRequest


@dataclass(frozen=True, slots=True)
class ReleaseRun:
    """The run's result is journaled: its actor may go."""

    key: str
    run_id: str


@dataclass(frozen=True, slots=True)
class StartEvaluation:
    """Score a candidate and decide the gate."""

    key: str
    candidate: str
    champion: str


@dataclass(frozen=True, slots=True)
class StartWindow:
    """Summarise live traffic."""

    key: str
    start: float
    end: float


Command = StartIngest | StartRun | ReleaseRun | StartEvaluation | StartWindow


def due(state: State) -> tuple[Command, ...]:
    """Everything that the state asks for, in order; each key names one piece of work for ever."""
    commands: list[Command] = []
    if state.stopped or not state.spec:
        return ()
    if state.ingest is not None:
        fact = state.ingest
        commands.append(StartIngest(f"{fact.key}-{fact.attempt}", fact.partitions))
    if state.run is not None:
        request = state.run.request
        commands.append(StartRun(request.run_id, request))
    if state.last_run and (state.run is None or state.run.request.run_id != state.last_run):
        commands.append(ReleaseRun(f"release-{state.last_run}", state.last_run))
    if state.evaluating:
        key = f"evaluate-{state.evaluations}-{state.evaluating}"
        commands.append(StartEvaluation(key, state.evaluating, state.champion))
    if state.windowing:
        commands.append(StartWindow(f"window-{state.windowing:.0f}", state.window_end, state.windowing))
    return tuple(commands)


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
        return Decision(), ()
    return _decide(observation, state, now), due(state)


@singledispatch
def _decide(observation: Observation, state: State, now: float) -> Decision:
    raise TypeError(f"no policy for {type(observation).__name__}")


@_decide.register
def _(observation: Tick, state: State, now: float) -> Decision:
    spec = state.pipeline_spec()
    return _events(
        *_begin_run(state, spec, now),
        *_want_by_schedule(state, spec, now),
        *_open_window(state, spec, now),
        *_stale(state, spec),
    )


@_decide.register
def _(observation: Looked, state: State, now: float) -> Decision:
    events = []
    problems = {seen.name: seen.problem for seen in observation.sightings if seen.partition is None}
    if problems != state.problems:
        events.append(Entry("source_looked", {"problems": problems}))
        for name, problem in problems.items():
            if state.problems.get(name) != problem:
                events.append(_alert("source", f"{name or 'source'}: {problem}"))
    fresh = [
        seen.partition
        for seen in observation.sightings
        if seen.partition is not None and seen.partition.name not in state.partitions
    ]
    if fresh and state.ingest is None:
        batch = sorted(fresh, key=lambda partition: partition.name)[:INGEST_BATCH]
        key = f"ingest-{state.ingests + 1}"
        data = {"key": key, "partitions": [to_json(partition) for partition in batch], "attempt": 1}
        events.append(Entry("ingest_started", data))
    return _events(*events)


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
    text = f"{len(fact.partitions)} partitions could not be landed: {observation.error}"
    return _events(failed, Entry("ingest_ended", {"key": observation.key}), _alert("ingest", text))


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
    if version.id == state.champion:
        text = f"run {status.run_id} gave the weights that already serve ({state.label(version.id)})"
        return _events(Entry("run_given_up", {"run_id": status.run_id, "error": text}), _alert("run", text))
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
            data = {"rollout": rollout, "version": decision.version}
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
    events = [*_converge(state, observed), *_overwritten(state, observed)]
    rollout = state.rollout
    if rollout is None:
        return _events(*events)
    for report in observed.reports:
        problem = report.refused.get(rollout.version)
        if problem is not None:
            reason = f"replica {report.replica} refused the weights: {problem}"
            data = {"version": rollout.version, "by": "controller", "reason": reason}
            text = f"{state.label(rollout.version)} withdrawn: {reason}"
            return _events(Entry("aborted", data), _alert("rollout", text))
    if state.paused:
        return _events(*events)
    evidence = pooled(state, observed)
    spec = state.pipeline_spec().rollout
    if rollout.phase == "loading":
        if rollout.since > 0.0:
            phase = "shadow" if spec.shadow > 0 else "canary"
            events.append(_step(rollout.id, phase, 0, _slow_threshold(observed)))
        elif now - rollout.started > spec.timeout:
            events.append(_abort(rollout.version, "not every replica loaded the weights in time"))
        return _events(*events)
    document = state.document(state.epoch)
    arms = [count for item in evidence.values() for count in item.arms]
    pairs = [count for item in evidence.values() for count in item.pairs]
    analysis = analyse(rollout.id, rollout.phase, document.split, spec, arms, pairs)
    verdict_changed = analysis.verdict != rollout.verdict
    if verdict_changed or now - rollout.analysed >= ANALYSIS_EVERY:
        events.append(_analysed(analysis, evidence))
    if rollout.since == 0.0 and analysis.verdict != "fail":
        return _events(*events)  # the next step starts only when this one is live everywhere
    stage = RolloutState(
        id=rollout.id,
        phase=rollout.phase,
        step=rollout.step,
        started=rollout.started,
        since=rollout.since,
        paused=state.paused,
    )
    move = advance(stage, spec, analysis, now)
    if move.kind == "step":
        events.append(_step(rollout.id, move.phase, move.step, _slow_threshold(observed)))
    elif move.kind == "promote":
        data = {"version": rollout.version, "by": "rollout", "reason": move.reason}
        events.append(Entry("promoted", data))
    elif move.kind == "abort":
        if not verdict_changed:
            events.append(_analysed(analysis, evidence))
        events.append(_abort(rollout.version, move.reason))
        events.append(_alert("rollout", f"{state.label(rollout.version)} rolled back: {move.reason}"))
    return _events(*events)


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
            rested = state.run is None and now - _last_run_at(state) >= trigger.cooldown
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
    if verb == "stop":
        return _events(Entry("pipeline_stopped", who))
    if verb == "retrain":
        overrides = observation.body.get("overrides", {})
        try:
            parse_spec(overridden(state.spec, overrides), origin="the spec with these overrides")
        except SpecError as error:
            return Decision(refusal=str(error))
        data = {**who, "trigger": "operator", "overrides": overrides}
        return _events(Entry("retrain_wanted", data))
    if verb == "rollback":
        if not state.previous:
            return Decision(refusal="there is no previous champion to roll back to")
        events = [Entry("aborted", {**who, "version": rollout.version})] if rollout is not None else []
        return _events(*events, Entry("rolled_back", {**who, "version": state.champion}))
    if rollout is None:
        return Decision(refusal=f"no rollout is under way, so there is nothing to {verb}")
    if verb == "abort":
        return _events(Entry("aborted", {**who, "version": rollout.version}))
    if verb == "promote":
        if rollout.phase == "loading":
            return Decision(refusal="the challenger's weights are not loaded on every replica yet")
        return _events(Entry("promoted", {**who, "version": rollout.version}))
    if verb == "pause":
        return Decision(refusal="it is paused already") if state.paused else _events(Entry("paused", who))
    if verb == "resume":
        return _events(Entry("resumed", who)) if state.paused else Decision(refusal="it is not paused")
    return Decision(refusal=f"unknown verb {verb!r}")


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


def _converge(state: State, observed: Observed) -> Iterable[Entry]:
    if state.converged >= state.generation or observed.expected is None or not observed.expected:
        return
    document = state.document(state.epoch)
    newest = {report.replica: report for report in observed.reports}
    heard = [newest.get(replica) for replica in observed.expected]
    # Epochs rise at a take-over without changing what is served, so the generation decides.
    wanted = replace(document, epoch=0)
    if all(
        item is not None and item.serves(wanted) and item.generation >= state.generation for item in heard
    ):
        yield Entry("converged", {"generation": state.generation, "replicas": len(heard)})


def _overwritten(state: State, observed: Observed) -> Iterable[Entry]:
    """Notice that somebody else wrote Serve's configuration: no replica follows it; it is put right."""
    found = observed.configured
    calm = state.settled != 0 and state.settled == state.generation
    if calm and found is not None and found != state.settled:
        yield Entry("overwritten", {"found": found, "expected": state.settled})
        text = "an operator's configuration was deployed; it changes nothing that is live and is put right"
        yield _alert("serving", text)


def _begin_run(state: State, spec: PipelineSpec, now: float) -> Iterable[Entry]:
    wanted = state.wanted
    if wanted is None or state.busy:
        return
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
        spec=overridden(state.spec, wanted.overrides),
        code=state.code,
        dataset_version=state.dataset_version,
        partitions=tuple(matured),
        blocks=tuple(matured[-spec.evaluation.blocks :]),
        seed=int(wanted.overrides.get("training", {}).get("seed", spec.training.seed)),
        parent=state.champion,
    )
    yield _run_started(request, wanted.trigger, wanted.reason)


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
        return _events(failed, _run_started(again, trigger, f"attempt {attempt} after: {error}"))
    data = {"run_id": request.run_id, "error": error}
    tries = f"{request.attempt} attempt{'s' if request.attempt > 1 else ''}"
    text = f"run {request.run_id} given up after {tries}: {error}"
    return _events(failed, Entry("run_given_up", data), _alert("run", text))


def _run_started(request: RunRequest, trigger: str, reason: str) -> Entry:
    data = {"request": to_json(request), "trigger": trigger, "reason": reason}
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
    length = spec.monitoring.window
    if state.champion and not state.windowing and now - state.window_end >= length:
        # After an outage the windows in between are empty: begin again with the newest whole one.
        yield Entry(
            "window_started", {"end": state.window_end + length * ((now - state.window_end) // length)}
        )


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


def _step(rollout: str, phase: str, step: int, slow_s: float) -> Entry:
    data: Json = {"rollout": rollout, "phase": phase, "step": step}
    if phase == "canary" and step == 0 and slow_s > 0:
        data["slow_s"] = slow_s  # one threshold for the whole canary: evidence pools over its steps
    return Entry("rollout_step", data)


def _abort(version: str, reason: str) -> Entry:
    return Entry("aborted", {"version": version, "by": "rollout", "reason": reason})


def _analysed(analysis: Analysis, evidence: dict[str, Evidence]) -> Entry:
    counts = {name: to_json(item) for name, item in evidence.items()}
    return Entry("analysed", {"analysis": to_json(analysis), "evidence": counts})


def _alert(kind: str, text: str) -> Entry:
    return Entry("alert", {"alert": kind, "text": text})


def _events(*entries: Entry) -> Decision:
    return Decision(tuple(entries))


def _worse(metric: str, value: float, bound: float) -> bool:
    return value < bound if metric in HIGHER_IS_BETTER else value > bound


def _last_run_at(state: State) -> float:
    return max((fact.at for fact in state.versions.values()), default=0.0)
