"""What the benchmarks serve: 32 numbers, a plain MLP 32-128-128-1, and requests for it."""

from __future__ import annotations

import json
import os
import time
import zlib
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


class Stalling(Mlp):
    """Stalls in some quarters of a second, each process in its own, whatever version is asked."""

    STALLED, STALL_S = 0.1, 0.003

    def __init__(self, width: int, hidden: int, extra_s: float) -> None:
        super().__init__(width, hidden)
        self._extra_s = extra_s

    def forward(self, inputs_BW: torch.Tensor) -> torch.Tensor:
        """Score B rows, after a wait."""
        quarter = int(time.monotonic() * 4)
        stalled = zlib.crc32(f"{os.getpid()}-{quarter}".encode()) < self.STALLED * 2**32
        if wait := self._extra_s + self.STALL_S * stalled:
            time.sleep(wait)
        return super().forward(inputs_BW)


def stalling(inputs: Inputs, hidden: int = 128, extra_s: float = 0.0) -> nn.Module:
    """A network whose replicas stall now and then; `extra_s` makes each answer slower."""
    return Stalling(inputs.width, hidden, extra_s)


def bodies(count: int = 256, keys: bool = True) -> list[bytes]:
    """Requests, the same at every call."""
    values = np.random.default_rng(1).standard_normal((count, len(NAMES)))
    made = []
    for at, row in enumerate(values):
        body: dict[str, Any] = {"features": dict(zip(NAMES, row.tolist(), strict=True))}
        made.append(json.dumps({"key": f"user-{at}", **body} if keys else body).encode())
    return made
