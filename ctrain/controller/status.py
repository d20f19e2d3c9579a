"""Readings for people: the status of a pipeline, and the history of a version in words. Pure."""

from __future__ import annotations

from collections import deque
from datetime import UTC, datetime

from ctrain.controller.journal import Event, Journal
from ctrain.controller.state import State, VersionFact
from ctrain.monitoring.words import (
    diagnosis_in_words,
    estimate_in_words,
    overall_state,
    performance_in_words,
    report_in_words,
)
from ctrain.records import Json, LiveDocument, Observed, to_json


def status_of(
    state: State,
    document: LiveDocument,
    observed: Observed,
    now: float,
    error: str = "",
    progress: str = "",
) -> Json:
    """What `ctrain status --json` prints.

    Args:
        state: Fold of the journal.
        document: The live document.
        observed: What the replicas say.
        now: Seconds since 1970.
        error: Why the controller's last step failed; empty if it did not.
        progress: The run's own word on how far it is.
    """
    refused = [fact for fact in state.partitions.values() if fact.refused]
    report = state.window
    skew = report.skew if report is not None else None
    return {
        "pipeline": document.pipeline,
        "owner": state.spec.get("owner", ""),
        "epoch": document.epoch,
        "generation": document.generation,
        "converged": state.converged,
        "stopped": state.stopped,
        "paused": state.paused,
        "champion": _version(state.versions.get(state.champion), state.promoted_at, now),
        "previous": _version(state.versions.get(state.previous), 0.0, now),
        "challenger": _challenger(state, now),
        "split": document.split,
        "rollout": _rollout(state),
        "requests": {
            "answered": sum(item.answered for item in observed.reports),
            "failed": sum(item.failed for item in observed.reports),
        },
        "replicas": [
            {
                "replica": item.replica,
                "generation": item.generation,
                "serves": item.serves(document),
                "refused": item.refused,
            }
            for item in observed.reports
        ],
        "data": {
            "partitions": len(state.committed),
            "last": state.committed[-1] if state.committed else "",
            "refused": len(refused),
            "quarantined_rows": sum(fact.refused_rows for fact in state.partitions.values()),
            "problems": state.problems,
            "dataset_version": state.dataset_version,
        },
        "drift": {
            "state": _drift(state),
            "lines": [report_in_words(item) for item in report.drift] if report else [],
            "diagnosis": diagnosis_in_words(state.diagnosis) if state.diagnosis is not None else "",
            "hold": state.hold,
        },
        "quality": _quality(state),
        "skew": {"state": skew.state, "text": skew.reason} if skew is not None else None,
        "window": to_json(report) if report is not None else None,
        "run": state.run.request.run_id if state.run is not None else "",
        "progress": progress if state.run is not None else "",
        "runs": state.runs,
        "versions": [
            {"version": fact.id, "label": fact.label, "verdict": fact.verdict, "end": fact.end}
            for fact in sorted(state.versions.values(), key=lambda fact: fact.at)
        ],
        "next": _next(state),
        "alerts": [{"at": at, "alert": kind, "text": text} for at, kind, text in state.alerts],
        "events": state.seq,
        "error": error,
    }


def why(journal: Journal, state: State, version: str, limit: int, after: int = 0) -> list[Json]:
    """The newest events in words, oldest first.

    Args:
        journal: Read in pieces, whatever its length.
        state: Fold of it.
        version: Id or label, for its own history only; empty for everything.
        limit: Events at most.
        after: Sequence number that they come after.
    """
    fact = next((f for f in state.versions.values() if version in (f.id, f.label)), None)
    if version and fact is None:
        return []
    if not version:
        after = max(after, state.seq - limit)
    lines: deque[Json] = deque(maxlen=limit)
    while events := journal.read(after, limit=500):
        after = events[-1].seq
        lines.extend(_line(event) for event in events if fact is None or _concerns(event, fact))
    return list(lines)


def _line(event: Event) -> Json:
    when = datetime.fromtimestamp(event.at, UTC).isoformat(timespec="seconds")
    data = {key: value for key, value in event.data.items() if key not in ("spec", "evidence", "plan")}
    return {"seq": event.seq, "at": when, "kind": event.kind, "text": in_words(event), "data": data}


def in_words(event: Event) -> str:
    """One line for people."""
    data = event.data
    match event.kind:
        case "partition_committed" | "partition_refused":
            item = data["partition"]
            report = item["report"]
            refused = sum(report["reasons"].values())
            end = f"dataset version {item['dataset_version']}"
            if item["refused"]:
                end = f"refused: {item['refused']}"
            return f"{item['name']}: {report['accepted']:,} rows, {refused} quarantined; {end}"
        case "retrain_wanted":
            return f"{data['trigger']}: {data['reason']}"
        case "run_started":
            request = data["request"]
            names, why_run = request["partitions"], f"{data['trigger']}: {data['reason']}"
            return (
                f"{request['run_id']}: {len(names)} partitions to {names[-1]}, "
                f"{len(request['blocks'])} judged, seed {request['seed']} ({why_run})"
            )
        case "run_finished":
            return (
                f"{data['label']} ({data['version']}) from {data['rows']:,} rows in {data['seconds']:.0f} s"
            )
        case "gate_decided":
            decision = data["decision"]
            told = "".join(f"; warning: {text}" for text in decision.get("warnings", ()))
            return f"{decision['verdict'].replace('_', ' ')}: {decision['reason']}{told}"
        case "ingest_started":
            return f"{data['key']}: {len(data['partitions'])} partitions"
        case "ingest_ended":
            return str(data["key"])
        case "rollout_started":
            return str(data["rollout"])
        case "rollout_step":
            return f"{data['phase']} step {data['step'] + 1}"
        case "slow_known":
            slow_s = data["slow_s"] if isinstance(data["slow_s"], list) else [data["slow_s"]]
            shown = ", ".join(f"{seconds * 1e3:.1f}" for seconds in slow_s)
            return f"answers count as slow from {shown} ms inside the model"
        case "overwritten":
            return f"Serve's configuration holds generation {data['found']}, not {data['expected']}"
        case "watched":
            return str(data["report"]["text"])
        case "analysed":
            analysis = data["analysis"]
            return f"{analysis['phase']} {analysis['split']:.0%} {analysis['verdict']}: {analysis['reason']}"
        case "alert":
            return f"{data['alert']}: {data['text']}"
        case _:
            words = [
                f"{key} {data[key]}"
                for key in ("generation", "by", "reason", "error", "why")
                if data.get(key)
            ]
            return ", ".join(words)


def _concerns(event: Event, fact: VersionFact) -> bool:
    data = event.data
    if data.get("version") == fact.id or data.get("run_id") == fact.run_id:
        return True
    if data.get("request", {}).get("run_id") == fact.run_id:
        return True
    if data.get("decision", {}).get("version") == fact.id:
        return True
    rollout = data.get("rollout") or data.get("analysis", {}).get("rollout", "")
    return str(rollout).endswith(fact.id)


def _version(fact: VersionFact | None, since: float, now: float) -> Json | None:
    if fact is None:
        return None
    return {
        "label": fact.label,
        "version": fact.id,
        "age_s": max(0.0, now - (since or fact.at)),
        "trained_to": fact.trained_to,
        "rows": fact.rows,
        "warnings": list(fact.warnings),
    }


def _challenger(state: State, now: float) -> Json | None:
    rollout = state.rollout
    return _version(state.versions.get(rollout.version), rollout.started, now) if rollout else None


def _rollout(state: State) -> Json | None:
    rollout = state.rollout
    if rollout is None:
        return None
    steps = rollout.canary().steps
    return {
        "id": rollout.id,
        "label": state.label(rollout.version),
        "phase": rollout.phase,
        "step": rollout.step + 1 if rollout.phase == "canary" else 0,
        "steps": len(steps),
        "verdict": rollout.verdict or "continue",
        "metrics": [
            {"metric": metric, "verdict": verdict, "text": text} for metric, verdict, text in rollout.text
        ],
    }


def _quality(state: State) -> list[str]:
    """What labels and scores say of the champion, one line each."""
    lines, watch, report = [], state.watch, state.window
    if watch is not None:
        head = f"{state.label(watch.against)} stays in shadow of {state.label(watch.version)}"
        lines.append(f"{head}: {watch.text or 'no block has matured yet'}")
    if report is not None and report.performance is not None:
        lines.append(performance_in_words(report.performance))
    if report is not None and report.estimate is not None:
        lines.append(estimate_in_words(report.estimate))
    return lines


def _drift(state: State) -> str:
    if state.window is None:
        return ""
    if state.window.state == "not_enough_rows":
        return "not enough rows"
    return overall_state(state.window.drift)


def _next(state: State) -> str:
    if state.stopped:
        return "stopped"
    if state.busy:
        return state.busy
    if state.wanted is not None:
        return f"retrain ({state.wanted.reason})" + (f": waits, {state.waiting}" if state.waiting else "")
    kinds = ", ".join(trigger["type"] for trigger in state.spec.get("triggers", ()))
    return f"retrain at the next {kinds}, or now: ctrain retrain" if kinds else "retrain by operator only"
