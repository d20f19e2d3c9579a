"""The worker's loop: one tensor, seeded permutations, AdamW under a one-cycle schedule.

Takes a float32 matrix and labels that are already in memory, gives weights. The same inputs, seed and
worker count give the same bits. Knows nothing of Ray: the caller passes what happens after an epoch.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from ctrain.errors import TrainingError
from ctrain.models.loading import weights_of
from ctrain.spec.training import Training

WARM_UP = 0.3
"""Share of the steps in which the learning rate rises."""


@dataclass
class Progress:
    """What must be saved after an epoch so that the next attempt goes on with the same bits."""

    epoch: int
    """Epochs done."""
    weights: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor] = field(default_factory=dict)
    loss: float = 0.0
    """Mean over the epoch's rows, of all ranks."""


def fit(
    module: nn.Module,
    inputs_BW: torch.Tensor,
    labels_B: torch.Tensor,
    training: Training,
    seed: int,
    run_id: str,
    *,
    rank: int = 0,
    world: int = 1,
    start: Progress | None = None,
    wrap: Callable[[nn.Module], nn.Module] = lambda module: module,
    add_up: Callable[[torch.Tensor], torch.Tensor] = lambda values: values,
    after_epoch: Callable[[Progress], None] = lambda progress: None,
) -> Progress:
    """Train to the last epoch.

    Args:
        module: Network with its initial weights, the same on every rank.
        inputs_BW: This rank's rows.
        labels_B: 0 or 1.
        training: Epochs, batch size and rates; the batch is divided among ranks.
        seed: Of the permutations, of dropout and of whatever else a network draws.
        run_id: For errors.
        rank: Of this worker.
        world: Number of workers.
        start: Progress of an earlier attempt.
        wrap: Makes the module distributed (DDP).
        add_up: Sums a tensor over all ranks; every rank calls it after each epoch.
        after_epoch: Called by every rank with the progress so far.

    Raises:
        TrainingError: if there is no row, the module's shape is wrong, or loss or weights are not finite.
    """
    if not len(labels_B):
        raise TrainingError(run_id, "no rows to train on")
    batch = max(1, min(training.batch_size // world, len(labels_B)))
    steps = max(1, len(labels_B) // batch)
    total = steps * training.epochs
    if start is not None:
        module.load_state_dict(start.weights)
    model = wrap(module)
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=training.learning_rate, weight_decay=training.weight_decay)
    if start is not None:
        restore_optimizer(optimizer, parameters, start.optimizer)
    progress = start or Progress(0, {})
    model.train()
    for epoch in range(progress.epoch, training.epochs):
        seed_everything((seed * 1_000_003 + epoch) * 1009 + rank)
        order = torch.randperm(len(labels_B))
        loss_sum = torch.zeros((), device=inputs_BW.device)
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = one_cycle((epoch * steps + step) / total, training.learning_rate)
            rows = order[step * batch : (step + 1) * batch].to(inputs_BW.device)
            optimizer.zero_grad(set_to_none=True)
            logits_B = model(inputs_BW[rows])
            if logits_B.shape != rows.shape:
                found = f"logits of shape {tuple(logits_B.shape)} for {batch} rows; expected ({batch},)"
                raise TrainingError(run_id, f"the network gave {found}")
            loss = nn.functional.binary_cross_entropy_with_logits(logits_B, labels_B[rows])
            torch.autograd.backward(loss)
            optimizer.step()
            loss_sum += loss.detach()
        rows_seen = steps * batch
        totals = add_up(torch.tensor([float(loss_sum) * batch, rows_seen], dtype=torch.float64))
        mean = float(totals[0] / totals[1])
        if not math.isfinite(mean):
            raise TrainingError(run_id, f"the loss is {mean} after epoch {epoch + 1}; lower learning_rate")
        weights = weights_of(module)
        for name, value in weights.items():
            if value.is_floating_point() and not torch.isfinite(value).all():
                problem = f"weights {name!r} are not finite after epoch {epoch + 1}; lower learning_rate"
                raise TrainingError(run_id, problem)
        progress = Progress(epoch + 1, weights, optimizer_state(optimizer, parameters), mean)
        after_epoch(progress)
    return progress


def make_deterministic() -> None:
    """Let this process choose deterministic kernels; to be called before CUDA is first used.

    An operation that has none raises RuntimeError from then on.
    """
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def seed_everything(seed: int) -> None:
    """Seed all generators that user code is likely to draw from: Python's, NumPy's and torch's."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed % 2**63)


def one_cycle(at: float, peak: float) -> float:
    """Learning rate at a share of the run: cosine up to the peak, cosine down to nothing.

    Source: Smith and Topin, Super-convergence (2018).
    """
    if at < WARM_UP:
        return peak * (0.04 + 0.96 * (1 - math.cos(math.pi * at / WARM_UP)) / 2)
    return peak * (1e-4 + (1 - 1e-4) * (1 + math.cos(math.pi * (at - WARM_UP) / (1 - WARM_UP))) / 2)


def optimizer_state(
    optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]
) -> dict[str, torch.Tensor]:
    """AdamW's state as named tensors, which safetensors can hold."""
    state = {}
    for index, parameter in enumerate(parameters):
        for name, value in optimizer.state.get(parameter, {}).items():
            state[f"{index}.{name}"] = value.detach().cpu().clone()
    return state


def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    parameters: list[nn.Parameter],
    state: dict[str, torch.Tensor],
) -> None:
    """Put `optimizer_state` back."""
    for key, value in state.items():
        index, name = key.split(".", 1)
        parameter = parameters[int(index)]
        target = value.clone() if name == "step" else value.to(parameter.device, copy=True)
        optimizer.state[parameter][name] = target
