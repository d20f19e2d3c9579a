"""Rows in the order of their scores: sorted once, shared by every metric of ranking."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


class Ranking:
    """Labels ordered by score, highest first; equal scores form one group.

    Args:
        truth: 0 or 1 as float64, or the chance of a 1, shape [B]; both must be there.
        scores: Finite, shape [B].
        weights: Of the rows, not negative; None counts each once.
    """

    def __init__(self, truth: Floats, scores: npt.NDArray[Any], weights: Floats | None = None) -> None:
        self._order = np.argsort(scores)[::-1]  # ties are one group, so their order says nothing
        ordered = scores[self._order]
        self._starts = np.concatenate([[True], ordered[1:] != ordered[:-1]])
        ends = np.append(np.flatnonzero(self._starts)[1:] - 1, len(ordered) - 1)
        positive = truth[self._order] if weights is None else (truth * weights)[self._order]
        reached = np.cumsum(positive)[ends]
        if weights is None:
            self.above = (ends + 1).astype(np.float64)
        else:
            self.above = np.cumsum(weights[self._order])[ends]
        self.positives_above = reached
        """Weight of positives down to each group, the group included, shape [G]."""
        self.negatives_above = self.above - reached
        self.positives, self.negatives = float(reached[-1]), float(self.negatives_above[-1])

    def auc(self) -> float:
        """Area under the ROC curve; ties count half."""
        rise, width = self.positives_above, np.diff(self.negatives_above, prepend=0.0)
        middle = (rise + np.concatenate([[0.0], rise[:-1]])) / 2
        return float(np.dot(width, middle) / (self.positives * self.negatives))

    def average_precision(self) -> float:
        """Mean precision over the steps of recall, without interpolation."""
        steps = np.diff(self.positives_above, prepend=0.0)
        return float(np.dot(steps, self.positives_above / self.above) / self.positives)

    def placements(self) -> tuple[Floats, Floats]:
        """Share of negatives below each row and of positives above it, ties half, shape [B] each."""
        half_negative = np.diff(self.negatives_above, prepend=0.0) / 2
        half_positive = np.diff(self.positives_above, prepend=0.0) / 2
        below = (self.negatives - self.negatives_above + half_negative) / self.negatives
        over = (self.positives_above - half_positive) / self.positives
        group = self._groups()
        return below[group], over[group]

    def auc_influence(self, truth: Floats) -> Floats:
        """What each row (of unit weight) adds to the AUC at the margin, shape [B]; sums to 0.

        Source: DeLong, DeLong and Clarke-Pearson, Comparing the areas (1988): the placement values.
        """
        auc = self.auc()
        below, over = self.placements()
        return np.where(truth == 1, (below - auc) / self.positives, (over - auc) / self.negatives)

    def average_precision_influence(self, truth: Floats) -> Floats:
        """The same for average precision: its derivative by each row's weight."""
        steps = np.diff(self.positives_above, prepend=0.0)
        precision = self.positives_above / self.above
        own = (precision - self.average_precision()) / self.positives

        def from_here_down(values: Floats) -> Floats:
            total: Floats = np.cumsum((steps * values)[::-1])[::-1] / self.positives
            return total

        lost = from_here_down(-precision / self.above)
        won = from_here_down((1 - precision) / self.above)
        group = self._groups()
        return np.where(truth == 1, (own + won)[group], lost[group])

    def _groups(self) -> npt.NDArray[np.int64]:
        """Number of each row's group, shape [B]."""
        group = np.empty(len(self._order), np.int64)
        group[self._order] = np.cumsum(self._starts) - 1
        return group
