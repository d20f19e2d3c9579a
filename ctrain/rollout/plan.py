"""The rollout as a pure state machine: which step comes after this analysis.

shadow → canary steps → promote, or abort from anywhere. It knows no counts, only the verdict.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ctrain.records import Analysis
from ctrain.spec.rollout import Canary


@dataclass(frozen=True, slots=True)
class RolloutState:
    """Where a rollout stands."""

    id: str
    phase: Literal["loading", "shadow", "canary"]
    step: int
    """Index into the spec's steps, for phase `canary`."""
    started: float
    since: float
    """When this step was live on every replica."""
    paused: bool = False


@dataclass(frozen=True, slots=True)
class Move:
    """What to do next."""

    kind: Literal["wait", "step", "promote", "abort"]
    reason: str = ""
    phase: Literal["shadow", "canary"] = "canary"
    step: int = 0


def advance(state: RolloutState, spec: Canary, analysis: Analysis, now: float) -> Move:
    """Choose the next move.

    Harm ends a rollout at once, also inside a hold. A step inside the canary moves on after its hold
    without harm; promotion asks for evidence of its own against harm beyond each margin.

    Args:
        state: Where the rollout stands; `since` > 0.
        spec: Steps, hold, time-out.
        analysis: Newest look.
        now: Seconds, on the clock of `since`.
    """
    if analysis.verdict == "fail":
        return Move("abort", analysis.reason)
    if state.paused:
        return Move("wait", "paused")
    if now - state.started > spec.timeout:
        return Move("abort", f"not enough evidence within {spec.timeout:.0f} s: {analysis.reason}")
    held = now - state.since
    if held < spec.hold:
        return Move("wait", f"{spec.hold - held:.0f} s of the hold are left")
    if state.phase == "shadow":
        if analysis.verdict == "pass":
            return Move("step", analysis.reason, "canary", 0)
        return Move("wait", analysis.reason)
    if state.step + 1 < len(spec.steps):
        return Move("step", "no evidence of harm", "canary", state.step + 1)
    if analysis.verdict == "pass":
        return Move("promote", analysis.reason)
    return Move("wait", analysis.reason)
