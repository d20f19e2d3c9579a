"""Network of the demonstration: ctrain's tabular default, with two faults that can be switched on.

They make the loop's refusals visible: a model that has learned nothing (the gate refuses it), and one
that breaks once it meets users (the canary rolls it back). With both off it is the default network.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from ctrain.models.encoder import Inputs
from ctrain.models.tabular import TabularNet


class FaultyNet(nn.Module):
    """Logits `[B]` from the encoder's matrix `[B, W]`."""

    def __init__(self, inputs: Inputs, shuffled: bool, fault_file: str) -> None:
        super().__init__()
        self.net = TabularNet(inputs)
        self.shuffled = shuffled
        self.fault_file = Path(fault_file) if fault_file else None

    def forward(self, inputs_BW: torch.Tensor) -> torch.Tensor:
        """Score B rows; raises RuntimeError if its fault is on."""
        if self.training:
            if self.shuffled:  # the same as training on shuffled labels
                inputs_BW = inputs_BW[torch.randperm(len(inputs_BW), device=inputs_BW.device)]
        elif self.fault_file is not None and self.fault_file.exists():
            raise RuntimeError("the demonstration's fault is switched on")
        logits_B: torch.Tensor = self.net(inputs_BW)
        return logits_B


def build(inputs: Inputs, shuffled: bool = False, fault_file: str = "") -> nn.Module:
    """Factory, named by the spec as `ctrain.demo.model:build`.

    Args:
        inputs: Layout of the matrix.
        shuffled: Permute the rows of each training batch against their labels: nothing is learned.
        fault_file: While this file exists, every prediction fails. Empty means no fault.
    """
    return FaultyNet(inputs, shuffled, fault_file)
