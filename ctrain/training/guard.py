"""Tell what user code raises from what storage, memory and other workers do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from ctrain.errors import CtrainError, UserCodeError

MAY_RECOVER = (OSError, MemoryError, torch.OutOfMemoryError, torch.AcceleratorError)
"""Errors of the machine: another attempt may not meet them."""


@contextmanager
def user_code(path: str, doing: str) -> Iterator[None]:
    """Run user code; whatever it raises would be raised again by another attempt.

    Args:
        path: Import path of the code.
        doing: What it was asked for, e.g. `on partition 2013-03-01`.

    Raises:
        UserCodeError: with the exception's type and message. Errors of ctrain and of the machine pass.
    """
    try:
        yield
    except (CtrainError, *MAY_RECOVER):
        raise
    except Exception as error:
        raise UserCodeError(path, f"failed {doing}: {type(error).__name__}: {error}") from error


class Guarded(nn.Module):
    """A user's network whose exceptions are told from those of DDP around it: a lost peer raises too."""

    def __init__(self, module: nn.Module, path: str) -> None:
        super().__init__()
        self.module, self._path = module, path

    def forward(self, inputs_BW: torch.Tensor) -> torch.Tensor:
        """Logits as the network gives them."""
        with user_code(self._path, "in forward"):
            logits_B: torch.Tensor = self.module(inputs_BW)
            return logits_B
