"""Room of the rollout: plan and sequential analysis. Pure; counts in, moves out."""

from ctrain.rollout.analysis import analyse
from ctrain.rollout.plan import Move, RolloutState, advance

__all__ = ["Move", "RolloutState", "advance", "analyse"]
