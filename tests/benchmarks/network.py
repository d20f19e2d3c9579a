"""What the benchmarks serve: 32 numbers, a plain MLP 32-128-128-1, and requests for it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ctrain.features import Column, feature_view
from ctrain.models.encoder import Inputs

NAMES = tuple(f"x{index}" for index in range(32))


@feature_view(**{name: Column.number(minimum=-100, maximum=100) for name in NAMES})
def view(rows: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """Nothing but the columns."""
    return {name: rows[name] for name in NAMES}


class Mlp(nn.Sequential):
    """Logits `[B]` from `[B, W]`."""

    def __init__(self, width: int = len(NAMES), hidden: int = 128) -> None:
        super().__init__(
            nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1)
        )

    def forward(self, inputs_BW: torch.Tensor) -> torch.Tensor:
        """Score B rows."""
        logits: torch.Tensor = super().forward(inputs_BW)
        return logits.squeeze(-1)


def mlp(inputs: Inputs, hidden: int = 128) -> nn.Module:
    """The factory that a spec names."""
    return Mlp(inputs.width, hidden)


def bodies(count: int = 256) -> list[bytes]:
    """Requests, the same at every call."""
    values = np.random.default_rng(1).standard_normal((count, len(NAMES)))
    return [
        json.dumps({"key": f"user-{at}", "features": dict(zip(NAMES, row.tolist(), strict=True))}).encode()
        for at, row in enumerate(values)
    ]
