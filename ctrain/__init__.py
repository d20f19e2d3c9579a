"""ctrain: continuous training on Ray. Importing it loads neither torch nor ray."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ctrain.client import Client
    from ctrain.features import Column, FeatureView, feature_view
    from ctrain.spec import PipelineSpec, load_spec

__version__ = "0.1.0"

__all__ = ["Client", "Column", "FeatureView", "PipelineSpec", "feature_view", "load_spec"]

_HOMES = {
    "Client": "ctrain.client",
    "Column": "ctrain.features",
    "FeatureView": "ctrain.features",
    "feature_view": "ctrain.features",
    "PipelineSpec": "ctrain.spec",
    "load_spec": "ctrain.spec",
}


def __getattr__(name: str) -> Any:
    """Load a public name on first use, so that `import ctrain` stays light."""
    if name not in _HOMES:
        raise AttributeError(f"module 'ctrain' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)
