"""Specs for tests."""

from __future__ import annotations

from typing import Any

from ctrain.records import Json
from ctrain.spec import PipelineSpec, parse_spec


def spec(**changes: Any) -> PipelineSpec:
    """A pipeline with short steps: two judged blocks, a canary of two steps."""
    raw: Json = {
        "pipeline": "p",
        "owner": "team",
        "source": {"type": "files", "path": "/landing", "event_time": "t"},
        "features": "m:view",
        "label": {"name": "y"},
        "evaluation": {"blocks": 2},
        "rollout": {"type": "canary", "shadow": 20, "steps": [0.1, 0.5], "hold": 5.0},
    }
    raw.update(changes)
    return parse_spec(raw)
