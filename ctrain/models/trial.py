"""Try a network out before it is trained: what cannot be trained, saved and served fails within a second."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import safetensors.torch
import torch
from torch import nn

from ctrain.errors import StorageError, UserCodeError, WeightsError
from ctrain.models.build import build_module
from ctrain.models.encoder import Inputs
from ctrain.models.loading import restore_module, weights_of
from ctrain.records import Json

SEED = 0
CLOSE = 1e-4
"""By how much the logits of a network and of its copy may differ: other memory, other rounding."""


def try_out(
    model: Json,
    inputs: Inputs,
    rows_BW: torch.Tensor,
    load: Callable[[str], Any] | None = None,
    device: torch.device | str = "cpu",
) -> None:
    """Build the network, train a step, save, load as a replica loads, and predict.

    Args:
        model: The spec's `model` as JSON.
        inputs: Layout of the matrix.
        rows_BW: Some rows of it, in main memory.
        load: Finds a user's factory by import path, as replicas find it; None imports it.
        device: Where the network is trained. It is served on the processor.

    Raises:
        UserCodeError: says which step failed, and how.
    """
    path = str(model.get("factory", model["type"]))
    step = "built"
    try:
        module = build_module(model, inputs, load).to(device)
        step = "trained"
        _train_step(path, module, rows_BW.to(device))
        step = "saved"
        saved = safetensors.torch.save(weights_of(module))
        step = "loaded"
        restored = restore_module(path, model, inputs, safetensors.torch.load(saved), load)
        step = "asked for predictions"
        _compare(path, module.cpu().eval(), restored, rows_BW)
    except (UserCodeError, StorageError, OSError, MemoryError, torch.OutOfMemoryError):
        raise
    except WeightsError as error:
        raise UserCodeError(path, f"cannot be {step}: {' '.join(error.problem.split())}") from error
    except Exception as error:
        raise UserCodeError(path, f"cannot be {step}: {type(error).__name__}: {error}") from error


def _train_step(path: str, module: nn.Module, rows_BW: torch.Tensor) -> None:
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise UserCodeError(path, "has no parameter that can be trained")
    logits_B = _logits(path, module.train(), rows_BW)
    torch.autograd.backward(logits_B.sum())


def _compare(path: str, module: nn.Module, restored: nn.Module, rows_BW: torch.Tensor) -> None:
    """One row and many rows, since a squeeze too many shows on one row alone."""
    for batch_BW in (rows_BW[:1], rows_BW):
        first_B, second_B = (_answer(path, network, batch_BW) for network in (module, restored))
        if not torch.allclose(first_B, second_B, rtol=CLOSE, atol=CLOSE, equal_nan=True):
            problem = "loaded from its state_dict, it gives other logits: it holds state that is not there"
            raise UserCodeError(path, problem, "Register that state as a buffer or a parameter")


def _answer(path: str, module: nn.Module, rows_BW: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(SEED)  # two answers differ only if two networks do
    with torch.inference_mode():
        return _logits(path, module, rows_BW)


def _logits(path: str, module: nn.Module, rows_BW: torch.Tensor) -> torch.Tensor:
    logits_B: object = module(rows_BW)
    if not isinstance(logits_B, torch.Tensor):
        raise UserCodeError(path, f"gave {type(logits_B).__name__}; expected a tensor of logits")
    if logits_B.shape != rows_BW.shape[:1] or not logits_B.is_floating_point():
        found = f"{logits_B.dtype} of shape {tuple(logits_B.shape)} for {len(rows_BW)} rows"
        raise UserCodeError(path, f"gave {found}; expected logits of shape ({len(rows_BW)},)")
    return logits_B
