"""What the demo measured: figures of the summary, and the picture of the metrics over time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score

from ctrain.demo.traffic import Answered
from ctrain.records import Json

BIN = 10.0
"""Seconds of one point of the picture."""

AUC_BIN = 30.0


@dataclass(frozen=True, slots=True)
class Figures:
    """Latency in the seconds after a decision and in the steady rest, in ms; AUC of both models."""

    steady_p50: float
    steady_p99: float
    swap_p50: float
    swap_p99: float
    champion_auc: float
    static_auc: float


def decisions(events: Sequence[Json]) -> list[tuple[float, str]]:
    """(time, words) of each event that moved traffic from one set of weights to another."""
    from datetime import datetime

    return [
        (datetime.fromisoformat(event["at"]).timestamp(), event["kind"])
        for event in events
        if event["kind"] in ("promoted", "aborted", "rolled_back")
    ]


def figures(answers: Sequence[Answered], moves: Sequence[tuple[float, str]], changed: float) -> Figures:
    """Sum up.

    Args:
        answers: All of them.
        moves: From `decisions`; their times are whole seconds.
        changed: When the first promotion under traffic happened: AUC is compared from there on.
    """
    at = np.array([answer.at for answer in answers])
    ms = np.array([answer.seconds for answer in answers]) * 1e3
    swap = np.zeros(len(at), bool)
    for moment, _ in moves:
        swap |= (at >= moment) & (at < moment + 2)
    late = [answer for answer in answers if answer.at >= changed and answer.label == answer.label]
    champion = _auc([a.label for a in late], [a.value for a in late])
    static = _auc([a.label for a in late], [a.static for a in late])
    return Figures(*_quantiles(ms[~swap]), *_quantiles(ms[swap]), champion, static)


def draw(answers: Sequence[Answered], moves: Sequence[tuple[float, str]], path: Path) -> None:
    """Draw latency, AUC and the share of each version over time."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    start = min(answer.at for answer in answers)
    at = np.array([answer.at - start for answer in answers])
    figure, (top, middle, bottom) = plt.subplots(3, 1, sharex=True, figsize=(11, 9), layout="constrained")
    seconds = np.array([answer.seconds for answer in answers]) * 1e3
    bins = (at // BIN).astype(int)
    points = np.unique(bins)
    for share, style in ((50, "-"), (99, "--")):
        values = [np.percentile(seconds[bins == point], share) for point in points]
        top.plot((points + 0.5) * BIN, values, style, label=f"p{share}")
    top.set(ylabel="latency, ms", title="Flights out of New York, 2013: one model kept fresh under traffic")
    top.set_ylim(bottom=0)
    for name in ("value", "static"):
        times, values = [], []
        for point in np.unique((at // AUC_BIN).astype(int)):
            chosen = [a for a in answers if (a.at - start) // AUC_BIN == point and a.label == a.label]
            auc = _auc([a.label for a in chosen], [getattr(a, name) for a in chosen])
            if auc == auc:
                times.append((point + 0.5) * AUC_BIN)
                values.append(auc)
        label = "what served" if name == "value" else "first model, kept static"
        middle.plot(times, values, "o-" if name == "value" else "o--", label=label)
    middle.set(ylabel="AUC of live answers")
    labels = sorted({answer.version for answer in answers}, key=lambda label: int(label[1:] or 0))
    versions = np.array([answer.version for answer in answers])
    shares = [[float(np.mean(versions[bins == point] == label)) for point in points] for label in labels]
    bottom.stackplot((points + 0.5) * BIN, shares, labels=labels, step="mid")
    bottom.set(ylabel="share of answers", xlabel="seconds", ylim=(0, 1))
    for axis in (top, middle, bottom):
        for moment, kind in moves:
            if moment >= start:
                color = "tab:green" if kind == "promoted" else "tab:red"
                line = axis.axvline(moment - start, color=color, alpha=0.6, linewidth=1)
                if axis is top:
                    line.set_label(kind.replace("_", " "))
        handles = dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))  # one a label
        axis.legend(handles.values(), handles.keys(), loc="upper left", fontsize=8)
        axis.grid(alpha=0.2)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _quantiles(values: np.ndarray) -> tuple[float, float]:  # type: ignore[type-arg]
    if not len(values):
        return float("nan"), float("nan")
    p50, p99 = np.quantile(values, [0.5, 0.99])
    return float(p50), float(p99)


def _auc(labels: list[float], values: list[float]) -> float:
    return float(roc_auc_score(labels, values)) if len(set(labels)) == 2 else float("nan")
