"""Make a classifier's scores probabilities again, from its recent matured labels; plain numbers as state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ctrain.evaluation.metrics import log_losses
from ctrain.evaluation.ranking import Floats

Method = Literal["none", "platt", "isotonic"]

FLOOR = 1e-6
MOST_KNOTS = 400
STEPS = 25


@dataclass(frozen=True, slots=True)
class Curve:
    """Score to probability."""

    kind: Method
    xs: tuple[float, ...] = ()
    """Platt: slope and intercept on the logit; isotonic: scores of the knots, rising."""
    ys: tuple[float, ...] = ()
    """Isotonic: probabilities of the knots."""

    def probabilities(self, scores: npt.NDArray[Any]) -> Floats:
        """Calibrated chance of a positive label, shape [B]."""
        raw = np.clip(np.asarray(scores, np.float64), FLOOR, 1 - FLOOR)
        if self.kind == "none":
            return raw
        if self.kind == "platt":
            slope, intercept = self.xs
            return _sigmoid(slope * np.log(raw / (1 - raw)) + intercept)
        return np.clip(np.interp(raw, self.xs, self.ys), FLOOR, 1 - FLOOR)


def fit_curve(kind: Method, scores: npt.NDArray[Any], labels: npt.NDArray[Any]) -> Curve:
    """Fit one kind of curve; with one class only, `none`.

    Args:
        kind: `platt` has two parameters, `isotonic` follows any rising curve.
        scores: In 0 to 1, shape [B].
        labels: 0 or 1, shape [B].

    Source: Platt (1999), with his smoothed targets; Zadrozny and Elkan (2002).
    """
    truth = np.asarray(labels, np.float64)
    if kind == "none" or not len(truth) or truth.min() == truth.max():
        return Curve("none")
    raw = np.clip(np.asarray(scores, np.float64), FLOOR, 1 - FLOOR)
    return _platt(raw, truth) if kind == "platt" else _isotonic(raw, truth)


def forward_losses(
    kind: Method, parts: list[tuple[Floats, Floats]], first: int
) -> tuple[list[Curve], Floats]:
    """Log loss of each block under the curve that the blocks before it give.

    Args:
        kind: Of curve.
        parts: Scores and labels of each block, oldest first.
        first: Blocks that only teach.

    Returns:
        The curve that each judged block met, and its mean loss there.
    """
    curves, losses = [], []
    for place in range(first, len(parts)):
        scores, labels = (np.concatenate([part[side] for part in parts[:place]]) for side in (0, 1))
        curve = fit_curve(kind, scores, labels)
        curves.append(curve)
        losses.append(float(log_losses(parts[place][1], curve.probabilities(parts[place][0])).mean()))
    return curves, np.array(losses)


def _platt(raw: Floats, truth: Floats) -> Curve:
    """Newton's method on two parameters."""
    logits, positives = np.log(raw / (1 - raw)), truth.sum()
    high, low = (positives + 1) / (positives + 2), 1 / (len(truth) - positives + 2)
    target = np.where(truth == 1, high, low)
    weights = np.array([1.0, 0.0])
    design = np.column_stack([logits, np.ones(len(logits))])
    for _ in range(STEPS):
        chance = _sigmoid(design @ weights)
        slope = design.T @ (chance - target)
        curvature = design.T @ (design * (chance * (1 - chance))[:, None]) + 1e-9 * np.eye(2)
        step = np.linalg.solve(curvature, slope)
        weights = weights - np.clip(step, -5, 5)
        if np.abs(step).max() < 1e-10:
            break
    return Curve("platt", tuple(map(float, weights)))


def _isotonic(raw: Floats, truth: Floats) -> Curve:
    from scipy.optimize import isotonic_regression

    order = np.argsort(raw, kind="stable")
    xs, starts = np.unique(raw[order], return_index=True)
    counts = np.diff(np.append(starts, len(raw))).astype(np.float64)
    means = np.add.reduceat(truth[order], starts) / counts
    fitted = isotonic_regression(means, weights=counts)
    level, runs = np.asarray(fitted.x), np.asarray(fitted.blocks)
    # Each step has a knot at both of its ends; between steps the curve is a line.
    places = np.column_stack([xs[runs[:-1]], xs[runs[1:] - 1]]).ravel()
    heights = np.repeat(level[runs[:-1]], 2)
    if len(places) > MOST_KNOTS:
        kept = np.unique(np.linspace(0, len(places) - 1, MOST_KNOTS).astype(int))
        places, heights = places[kept], heights[kept]
    return Curve("isotonic", tuple(map(float, places)), tuple(map(float, heights)))


def _sigmoid(logits: Floats) -> Floats:
    chance: Floats = 1 / (1 + np.exp(-np.clip(logits, -30, 30)))
    return chance
