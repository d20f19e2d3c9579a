"""Turn a model version into a network that scores: weights verified, shapes checked, numbers finite."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from safetensors import SafetensorError

from ctrain.errors import WeightsError
from ctrain.features import FeatureView
from ctrain.features.view import Arrays
from ctrain.models.build import build_module
from ctrain.models.encoder import Encoder, Inputs
from ctrain.records import Json, ModelVersion, WeightSet
from ctrain.registry import read_weights
from ctrain.storage.code import load_attribute
from ctrain.storage.root import Root


@dataclass(frozen=True)
class Network:
    """A version's view, encoder and module, ready to score."""

    version: ModelVersion
    view: FeatureView
    encoder: Encoder
    module: torch.nn.Module

    def probabilities(self, matrix: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """Probability of the positive class for the encoder's matrix `[B, W]`, shape [B]."""
        with torch.inference_mode():
            logits = self.module(torch.from_numpy(matrix))
            result: npt.NDArray[np.float64] = torch.sigmoid(logits.double()).numpy()
        return result

    def predict(self, arrays: Arrays) -> npt.NDArray[np.float64]:
        """Probability for raw columns: view, encoder, module."""
        return self.probabilities(self.encoder.encode(self.view(arrays)))


def load_network(root: Root, version: ModelVersion, weights: WeightSet) -> Network:
    """Load one set of weights of a version.

    Args:
        root: Where versions and code lie.
        version: The manifest.
        weights: One of its sets.

    Raises:
        CorruptArtifactError: if the bytes are not those of the manifest.
        WeightsError: as `assemble`, or if the file cannot be read.
    """
    try:
        tensors = safetensors.torch.load(read_weights(root, version, weights))
    except SafetensorError as error:
        raise WeightsError(version.id, f"unreadable weights: {error}") from None
    check_finite(version.id, tensors)
    return assemble(root, version, weights, tensors)


def check_finite(version: str, tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuse weights with infinity or NaN.

    Raises:
        WeightsError: names the tensor.
    """
    for name, tensor in tensors.items():
        # Infinity and NaN survive a sum, in one pass without a mask of the same size; a large finite
        # tensor may overflow it, so look closer then.
        if tensor.is_floating_point() and not (
            torch.isfinite(tensor.sum()) or bool(torch.isfinite(tensor).all())
        ):
            raise WeightsError(version, f"tensor {name!r} holds numbers that are not finite")


def assemble(
    root: Root,
    version: ModelVersion,
    weights: WeightSet,
    tensors: Mapping[str, torch.Tensor],
) -> Network:
    """Build a network around weights that are in memory already.

    Raises:
        WeightsError: if names, shapes or types do not fit the network, or the feature view is not the
            one it was trained with.
    """
    encoder = Encoder.from_json(weights.encoder)
    load = partial(load_attribute, root, version.code)
    view: Any = load(version.features)
    if view.hash != version.view_hash:
        raise WeightsError(version.id, f"feature view {version.features} is not the one it was trained with")
    module = restore_module(version.id, version.model, encoder.inputs, tensors, load)
    return Network(version, view, encoder, module)


def restore_module(
    version: str,
    model: Json,
    inputs: Inputs,
    tensors: Mapping[str, torch.Tensor],
    load: Callable[[str], Any] | None = None,
) -> torch.nn.Module:
    """Build the network that a spec names with these weights, ready to score.

    Args:
        version: Id of the model version, for errors.
        model: The spec's `model` as JSON.
        inputs: Layout of the matrix it takes.
        tensors: Its whole state, by name.
        load: Finds a user's factory by import path; None imports it.

    Raises:
        WeightsError: if names, shapes or types do not fit.
        UserCodeError: as `build_module`.
    """
    # ctrain's own network takes over the tensors: no copy, no random start. A user's may hold tensors
    # that its state lacks, or the same one twice; it is built as it was for training, and copied into.
    own = model["type"] == "tabular"
    with torch.device("meta") if own else nullcontext():
        module = build_module(model, inputs, load)
    for name, fresh in module.state_dict().items():
        if name in tensors and tensors[name].dtype != fresh.dtype:
            problem = f"tensor {name!r} is {tensors[name].dtype}; expected {fresh.dtype}"
            raise WeightsError(version, problem)
    try:
        module.load_state_dict(dict(tensors), strict=True, assign=own)
    except RuntimeError as error:
        raise WeightsError(version, f"weights do not fit the network: {error}") from None
    module.eval().requires_grad_(False)
    return module


def weights_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of a network's whole state in main memory, as safetensors takes it."""
    return {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in module.state_dict().items()
    }
