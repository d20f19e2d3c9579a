"""The default network for tables: embeddings, encoded numbers with missing flags, an MLP.

Shapes: B rows, C categories, N numbers, K bins of a number, D width of an embedding.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from ctrain.models.encoder import Inputs

NUMBER_WIDTH = 8
"""Outputs of each number's piecewise-linear encoding after its own linear layer."""


class PiecewiseLinear(nn.Module):
    """Piecewise-linear encoding of N numbers over their quantile bins (Gorishniy et al., 2022).

    Takes `[B, N]` standardised numbers without NaN, gives `[B, N * NUMBER_WIDTH]`.
    """

    low: torch.Tensor
    inverse: torch.Tensor

    def __init__(self, edges: tuple[tuple[float, ...], ...]) -> None:
        super().__init__()
        bins = max(len(values) for values in edges) - 1
        low = torch.zeros(len(edges), bins)
        width = torch.full((len(edges), bins), float("inf"))  # a bin that is not there gives 0
        for row, values in enumerate(edges):
            points = torch.tensor(values)
            low[row, : len(values) - 1] = points[:-1]
            width[row, : len(values) - 1] = points[1:] - points[:-1]
        self.register_buffer("low", low)
        self.register_buffer("inverse", 1.0 / width)
        self.weight = nn.Parameter(torch.empty(len(edges), bins, NUMBER_WIDTH))
        self.bias = nn.Parameter(torch.zeros(len(edges), NUMBER_WIDTH))
        nn.init.uniform_(self.weight, -(bins**-0.5), bins**-0.5)

    def forward(self, numbers_BN: torch.Tensor) -> torch.Tensor:
        """Encode."""
        filled_BNK = ((numbers_BN.unsqueeze(-1) - self.low) * self.inverse).clamp(0.0, 1.0)
        encoded = torch.einsum("bnk,nkd->bnd", filled_BNK, self.weight) + self.bias
        return torch.relu(encoded).flatten(1)


class TabularNet(nn.Module):
    """Logits `[B]` from the encoder's matrix `[B, W]`."""

    def __init__(
        self,
        inputs: Inputs,
        hidden: tuple[int, ...] = (128, 128),
        dropout: float = 0.1,
        numbers: str = "piecewise",
    ) -> None:
        super().__init__()
        self.categories = len(inputs.categories)
        self.embeddings = nn.ModuleList(
            nn.Embedding(size, embedding_width(size)) for _, size in inputs.categories
        )
        width = sum(embedding_width(size) for _, size in inputs.categories)
        self.encoding: PiecewiseLinear | None = None
        if inputs.numbers:
            if numbers == "piecewise":
                self.encoding = PiecewiseLinear(inputs.edges)
                width += NUMBER_WIDTH * len(inputs.numbers)
            else:
                width += len(inputs.numbers)
            width += len(inputs.numbers)
        layers: list[nn.Module] = []
        for size in hidden:
            layers += [nn.Linear(width, size), nn.ReLU(), nn.Dropout(dropout)]
            width = size
        self.head = nn.Sequential(*layers, nn.Linear(width, 1))

    def forward(self, inputs_BW: torch.Tensor) -> torch.Tensor:
        """Score B rows."""
        parts = [embedding(inputs_BW[:, index].long()) for index, embedding in enumerate(self.embeddings)]
        numbers_BN = inputs_BW[:, self.categories :]
        if numbers_BN.shape[1]:
            missing_BN = torch.isnan(numbers_BN)
            filled_BN = torch.nan_to_num(numbers_BN, nan=0.0)
            parts.append(self.encoding(filled_BN) if self.encoding is not None else filled_BN)
            parts.append(missing_BN.to(filled_BN.dtype))
        logits: torch.Tensor = self.head(torch.cat(parts, dim=1))
        return logits.squeeze(-1)


def embedding_width(size: int) -> int:
    """Width of an embedding of `size` indexes: about 1.6 times the root, 16 at most."""
    return min(16, max(2, round(1.6 * math.sqrt(size))))
