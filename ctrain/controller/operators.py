"""Policy of the verbs: what a person may ask for, and what follows. Pure, a part of `decide`."""

from __future__ import annotations

from collections.abc import Mapping

from ctrain.controller.journal import Entry
from ctrain.controller.observations import Decision, Operated
from ctrain.controller.state import State
from ctrain.errors import SpecError
from ctrain.records import Json
from ctrain.spec import parse_spec

OVERRIDABLE = ("training", "model", "evaluation")
"""Parts of the spec that a single run may have otherwise."""


def operated(state: State, observation: Operated) -> Decision:
    """What follows from an operator's verb, or why it is refused."""
    who = {"by": observation.by, "reason": observation.reason}
    rollout, verb = state.rollout, observation.verb
    if verb == "start":
        body = observation.body
        if state.spec == body["spec"] and state.code == body["code"] and not state.stopped:
            return Decision()
        return _done(Entry("pipeline_started", {**who, "spec": body["spec"], "code": body["code"]}))
    if state.stopped or not state.spec:
        return Decision(refusal="the pipeline is stopped")
    meant = rollout.version if rollout is not None else state.champion
    named = str(observation.body.get("version", ""))
    if named not in ("", meant, state.label(meant)):
        found = "in rollout" if rollout is not None else "the champion, and nothing is in rollout"
        return Decision(refusal=f"{state.label(meant)} is {found}; {named} was named")
    withdrawn = [Entry("aborted", {**who, "version": rollout.version})] if rollout is not None else []
    if verb == "stop":
        return _done(*withdrawn, Entry("pipeline_stopped", who))
    if verb == "retrain":
        return _retrain(state, who, observation.body.get("overrides", {}))
    if verb == "rollback":
        if not state.previous and not withdrawn:
            return Decision(refusal="there is no challenger and no previous champion to roll back to")
        back = [Entry("rolled_back", {**who, "version": state.champion})] if state.previous else []
        return _done(*withdrawn, *back)
    if rollout is None:
        return Decision(refusal=f"no rollout is under way, so there is nothing to {verb}")
    if verb == "abort":
        return _done(*withdrawn)
    if verb == "promote":
        if rollout.phase == "loading":
            return Decision(refusal="the challenger's weights are not loaded on every replica yet")
        return _done(Entry("promoted", {**who, "version": rollout.version}))
    if verb == "pause":
        return Decision(refusal="it is paused already") if state.paused else _done(Entry("paused", who))
    if verb == "resume":
        return _done(Entry("resumed", who)) if state.paused else Decision(refusal="it is not paused")
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
    return _done(Entry("retrain_wanted", {**who, "trigger": "operator", "overrides": overrides}))


def overridden(spec: Json, overrides: Json) -> Json:
    """A copy of a spec with the values of `overrides` in place of its own, mapping by mapping."""
    merged = dict(spec)
    for name, value in overrides.items():
        old = merged.get(name)
        merged[name] = overridden(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _done(*entries: Entry) -> Decision:
    return Decision(tuple(entries))
