"""Build the network that a spec names."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from torch import nn

from ctrain.errors import UserCodeError
from ctrain.models.encoder import Inputs
from ctrain.models.tabular import TabularNet
from ctrain.records import Json


def build_module(model: Json, inputs: Inputs, load: Callable[[str], Any] | None = None) -> nn.Module:
    """Build a network with fresh weights.

    Args:
        model: The spec's `model` as JSON.
        inputs: Layout of the matrix it takes.
        load: Finds a user's factory by import path; None imports it.

    Raises:
        UserCodeError: if the factory is missing, raises or gives no `nn.Module`.
    """
    if model["type"] == "tabular":
        return TabularNet(inputs, tuple(model["hidden"]), model["dropout"], model["numbers"])
    path = model["factory"]
    factory = (load or _import)(path)
    try:
        module = factory(inputs, **model.get("arguments", {}))
    except Exception as error:
        remedy = "A factory takes (inputs, **arguments), as the spec's model.arguments name them"
        raise UserCodeError(path, f"failed: {type(error).__name__}: {error}", remedy) from error
    if not isinstance(module, nn.Module):
        raise UserCodeError(path, f"gave {type(module).__name__}; expected a torch.nn.Module")
    return module


def _import(path: str) -> Any:
    module, _, attribute = path.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ModuleNotFoundError, AttributeError) as error:
        raise UserCodeError(path, str(error)) from None
