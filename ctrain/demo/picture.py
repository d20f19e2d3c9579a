"""What the demo measured: figures of the summary, and the picture of the metrics over time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sklearn.metrics import roc_auc_score

from ctrain.demo.traffic import Answered
from ctrain.records import Json

LATENCY_BIN = 10.0
"""Seconds of one point of a curve; its p99 needs some hundreds of requests."""

AUC_BIN = 30.0

SHARE_BIN = 2.0
"""The same for the shares: a challenger may live for some seconds only."""

COLORS = {"promoted": "tab:green", "rolled back": "tab:red", "weights refused": "black"}
"""Color of each event's line."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Latency in the seconds after a decision and in the steady rest, in ms; AUC of both models."""

    steady_p50: float
    steady_p99: float
    swap_p50: float
    swap_p99: float
    champion_auc: float
    static_auc: float


class Move(NamedTuple):
    """An event that ended a rollout."""

    at: float
    """Seconds since 1970, whole ones."""
    what: str
    """One of COLORS."""


def decisions(events: Sequence[Json]) -> list[Move]:
    """What became of each rollout: promoted, rolled back, or refused before it saw traffic."""
    return [
        Move(datetime.fromisoformat(event["at"]).timestamp(), _in_words(event))
        for event in events
        if event["kind"] in ("promoted", "aborted", "rolled_back")
    ]


def _in_words(event: Json) -> str:
    if event["kind"] == "promoted":
        return "promoted"
    return "weights refused" if "refused the weights" in event["data"]["reason"] else "rolled back"


def figures(answers: Sequence[Answered], moves: Sequence[Move], changed: float) -> Figures:
    """Sum up.

    Args:
        answers: All of them.
        moves: From `decisions`; refused weights moved no traffic, so nothing is a decision there.
        changed: When the first promotion under traffic happened: AUC is compared from there on.
    """
    at = np.array([answer.at for answer in answers])
    ms = np.array([answer.seconds for answer in answers]) * 1e3
    swap = np.zeros(len(at), bool)
    for moment, what in moves:
        if what != "weights refused":
            swap |= (at >= moment) & (at < moment + 2)
    late = [answer for answer in answers if answer.at >= changed and answer.label == answer.label]
    champion = _auc([a.label for a in late], [a.value for a in late])
    static = _auc([a.label for a in late], [a.static for a in late])
    return Figures(*_quantiles(ms[~swap]), *_quantiles(ms[swap]), champion, static)


def draw(answers: Sequence[Answered], moves: Sequence[Move], path: Path) -> None:
    """Draw latency, AUC and the share of each version over time, from the first answer on."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    start = min(answer.at for answer in answers)
    at = np.array([answer.at - start for answer in answers])
    figure, axes = plt.subplots(3, 1, sharex=True, figsize=(12, 9), layout="constrained")
    _draw_latency(axes[0], answers, at)
    _draw_auc(axes[1], answers, at)
    _draw_shares(axes[2], answers, at)
    axes[0].set_title("Flights out of New York, 2013: one model kept fresh under traffic")
    end = max(at.max(), *(move.at - start for move in moves), 0.0)
    axes[2].set(xlabel="seconds", xlim=(0, 1.02 * end))  # a line at the very end is seen too
    for axis in axes:
        for moment, what in moves:
            if moment >= start:
                line = axis.axvline(moment - start, color=COLORS[what], alpha=0.7, linewidth=1)
                if axis is axes[0]:
                    line.set_label(what)
        handles = dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))  # one a label
        # beside the axis: inside it would lie on the lines
        axis.legend(handles.values(), handles.keys(), loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8)
        axis.grid(alpha=0.2)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_latency(axis: Any, answers: Sequence[Answered], at: np.ndarray) -> None:  # type: ignore[type-arg]
    ms = np.array([answer.seconds for answer in answers]) * 1e3
    bins = (at // LATENCY_BIN).astype(int)
    points = np.unique(bins)
    for share, style in ((50, "-"), (99, "--")):
        values = [np.percentile(ms[bins == point], share) for point in points]
        axis.plot((points + 0.5) * LATENCY_BIN, values, style, label=f"p{share}")
    axis.set(ylabel="latency, ms")
    axis.set_ylim(bottom=0)


def _draw_auc(axis: Any, answers: Sequence[Answered], at: np.ndarray) -> None:  # type: ignore[type-arg]
    bins = (at // AUC_BIN).astype(int)
    for name, style, label in (
        ("value", "o-", "what served"),
        ("static", "o--", "first model, kept static"),
    ):
        times, values = [], []
        for point in np.unique(bins):
            chosen = [answers[index] for index in np.flatnonzero(bins == point)]
            chosen = [a for a in chosen if a.label == a.label]
            auc = _auc([a.label for a in chosen], [getattr(a, name) for a in chosen])
            if auc == auc:
                times.append(at[bins == point].mean())
                values.append(auc)
        axis.plot(times, values, style, label=label)
    axis.set(ylabel="AUC of live answers")


def _draw_shares(axis: Any, answers: Sequence[Answered], at: np.ndarray) -> None:  # type: ignore[type-arg]
    labels = sorted({answer.version for answer in answers}, key=lambda label: int(label[1:] or 0))
    versions = np.array([answer.version for answer in answers])
    bins = (at // SHARE_BIN).astype(int)
    points = np.unique(bins)
    shares = np.array([[np.mean(versions[bins == point] == label) for point in points] for label in labels])
    bottom = np.zeros(len(points))
    for label, share in zip(labels, shares, strict=True):
        axis.bar(points * SHARE_BIN, share, SHARE_BIN, bottom, align="edge", label=label)
        bottom += share
    axis.set(ylabel="share of answers", ylim=(0, 1))


def _quantiles(values: np.ndarray) -> tuple[float, float]:  # type: ignore[type-arg]
    if not len(values):
        return float("nan"), float("nan")
    p50, p99 = np.quantile(values, [0.5, 0.99])
    return float(p50), float(p99)


def _auc(labels: list[float], values: list[float]) -> float:
    return float(roc_auc_score(labels, values)) if len(set(labels)) == 2 else float("nan")
