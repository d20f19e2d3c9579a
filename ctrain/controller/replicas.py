"""Policy of the replicas: what follows from what they say. Pure, a part of `decide`.

Whether all serve the live document, whether a champion cannot be loaded, whether somebody else wrote Serve's
configuration, and the moves of the rollout under way.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from ctrain.controller.journal import Entry
from ctrain.controller.observations import alert
from ctrain.controller.quality import scales_of_one
from ctrain.controller.state import Evidence, RolloutFact, State
from ctrain.records import Analysis, LiveDocument, Observed, Pace, to_json
from ctrain.rollout import RolloutState, advance, analyse

ANALYSIS_EVERY = 10.0
"""Least seconds between two journaled analyses whose verdict is the same."""
ANALYSIS_GROWTH = 0.1
"""Share of a rollout's age by which they are further apart, so that a week of it stays short."""


def what_replicas_say(state: State, observed: Observed, now: float) -> Iterable[Entry]:
    """Events that follow from the replicas' reports."""
    live = serves_everywhere(state.document(state.epoch), observed)
    yield from _converge(state, live, observed)
    yield from _overwritten(state, observed)
    lost = _refused_champion(state, observed)
    yield from lost
    if not lost and state.rollout is not None:
        yield from _roll_out(state, state.rollout, observed, live, now)


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
            yield alert("rollout", f"{state.label(rollout.version)} withdrawn: {reason}")
            return
    ready = live and rollout.since > 0.0
    slow_s = slow_thresholds(observed)
    if rollout.phase == "loading":
        if ready and not state.paused:
            yield from _step(rollout, "shadow" if plan.shadow > 0 else "canary", 0, slow_s)
        elif now - rollout.started > plan.timeout:
            reason = "not every replica loaded the weights in time"
            yield _abort(rollout.version, reason)
            yield alert("rollout", f"{state.label(rollout.version)} withdrawn: {reason}")
        return
    if rollout.phase == "canary" and not rollout.slow_s and slow_s:
        yield Entry("slow_known", {"slow_s": list(slow_s)})
        return
    evidence = pooled(state, observed)
    arms = [item.arms for item in evidence.values()]
    pairs = [count for item in evidence.values() for count in item.pairs]
    split = state.document(state.epoch).split
    pace = Pace(now - rollout.since if rollout.since else 0.0, rollout.started + plan.timeout - now)
    scales = scales_of_one(state)
    analysis = analyse(rollout.id, rollout.phase, split, plan, arms, pairs, rollout.blocks, scales, pace)
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
        yield alert("rollout", f"{state.label(rollout.version)} rolled back: {move.reason}")


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
        return [] if any(text == old for _, _, old in state.alerts) else [alert("serving", text)]
    events = [alert("serving", text)]
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
        yield alert("serving", text)


def slow_thresholds(observed: Observed) -> tuple[float, ...]:
    """Champion's p50, p90 and p99 of the last minute, each the median over replicas; none if unknown."""
    found = []
    for quantile in ("p50", "p90", "p99"):
        known = sorted(r.latency[quantile] for r in observed.reports if r.latency.get(quantile))
        if not known:
            return ()
        found.append(known[len(known) // 2])
    return tuple(found)


def _step(rollout: RolloutFact, phase: str, step: int, slow_s: tuple[float, ...]) -> Iterable[Entry]:
    yield Entry("rollout_step", {"rollout": rollout.id, "phase": phase, "step": step})
    if phase == "canary" and slow_s:
        # From an earlier minute, so that the coins to come know nothing of them: evidence of all steps pools.
        yield Entry("slow_known", {"slow_s": list(slow_s)})


def _abort(version: str, reason: str, by: str = "rollout") -> Entry:
    return Entry("aborted", {"version": version, "by": by, "reason": reason})


def _analysed(analysis: Analysis, evidence: dict[str, Evidence]) -> Entry:
    counts = {name: to_json(item) for name, item in evidence.items()}
    return Entry("analysed", {"analysis": to_json(analysis), "evidence": counts})
