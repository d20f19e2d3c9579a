import pytest

from ctrain.records import Analysis
from ctrain.rollout import RolloutState, advance
from ctrain.spec.rollout import Canary

SPEC = Canary()


def look(verdict: str) -> Analysis:
    return Analysis("r", "canary", 0.05, verdict, (), 0, "so it is")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("phase", "step", "verdict", "now", "kind"),
    [
        ("shadow", 0, "fail", 1.0, "abort"),
        ("shadow", 0, "pass", 10.0, "wait"),
        ("shadow", 0, "pass", 61.0, "step"),
        ("shadow", 0, "continue", 61.0, "wait"),
        ("canary", 0, "continue", 61.0, "step"),
        ("canary", 2, "continue", 61.0, "wait"),
        ("canary", 2, "pass", 61.0, "promote"),
        ("canary", 2, "continue", 8 * 86400.0, "abort"),
    ],
)
def test_each_verdict_leads_to_its_move(phase: str, step: int, verdict: str, now: float, kind: str) -> None:
    state = RolloutState("r", phase, step, started=0.0, since=0.5)  # type: ignore[arg-type]
    assert advance(state, SPEC, look(verdict), now).kind == kind
