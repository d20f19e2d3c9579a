"""Pictures: a static model's loss over time on each real set, with the alarms and verdicts on it.

A boosted model learns from the first blocks and is never retrained. Drift monitors of inputs, answers and
matured losses calibrate on the blocks after those, then judge one block at a time; at each alarm the newest
window is diagnosed against the contiguous windows before it. One PNG a set, and one line an alarm.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import matplotlib as mpl
import numpy as np
import numpy.typing as npt

mpl.use("Agg")
import matplotlib.pyplot as plt

from ctrain.monitoring.diagnosis import Events, Frame, diagnose
from ctrain.monitoring.drift import DriftMonitor
from ctrain.monitoring.summary import Layout, summarise
from ctrain.records import Diagnosis
from ctrain.spec.monitoring import Drift
from tests.datasets import NAMES, load
from tests.faults import Champion, columns_of

TRAINED = {"flights": 40, "hotel": 120, "bank": 60, "bike": 90}
"""Blocks that the model learns from."""
CALIBRATED = 42
"""Blocks after them that the monitors calibrate on."""
WINDOW = {"flights": 7, "hotel": 14, "bank": 9, "bike": 14}
"""Blocks of a window that is diagnosed, and of a point of the curve."""
PAST = 16
KINDS = {"data": "tab:blue", "prediction": "tab:orange", "concept": "tab:red"}


@dataclass(frozen=True)
class Alarm:
    kind: str
    block: int
    cause: str
    diagnosis: Diagnosis


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where the pictures go")
    parser.add_argument("--sets", default=",".join(NAMES))
    parser.add_argument("--checks", type=float, default=1000, help="checks that may hold one false alarm")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for name in asked.sets.split(","):
        alarms = picture(name, asked.folder, asked.checks, asked.seed)
        found[name] = [
            [one.kind, one.block, one.cause, one.diagnosis.verdict, one.diagnosis.action] for one in alarms
        ]
    print(json.dumps(found))


def picture(name: str, folder: Path, checks: float, seed: int) -> list[Alarm]:
    data = load(name)
    columns, labels = columns_of(name)
    kind = "binary" if data.kind == "binary" else "number"
    trained = data.rows(0, TRAINED[name])
    model = Champion({n: v[trained] for n, v in columns.items()}, labels[trained], data.kind)
    scores = model.scores(columns)
    losses = row_losses(labels, scores, kind)
    frames = [
        Frame({n: v[rows] for n, v in columns.items()}, labels[rows], scores[rows], kind)
        for rows in (data.rows(block, block + 1) for block in range(data.days))
    ]
    alarms = watch(name, frames, losses, checks, seed)
    draw(name, losses, alarms, folder)
    return alarms


def row_losses(
    labels: npt.NDArray[np.float64], scores: npt.NDArray[np.float64], kind: str
) -> npt.NDArray[np.float64]:
    """Log loss, clipped at 4, of each row; squared error of a count."""
    if kind == "number":
        return (labels - scores) ** 2
    right = np.where(labels > 0.5, scores, 1 - scores)
    return np.minimum(-np.log(np.maximum(right, 1e-9)), 4.0)


def watch(
    name: str, frames: list[Frame], losses: npt.NDArray[np.float64], checks: float, seed: int
) -> list[Alarm]:
    data = load(name)
    first = TRAINED[name]
    spec = Drift(calibration_windows=CALIBRATED)
    series = {
        "data": [frame.columns for frame in frames],
        "prediction": [{"answer": frame.scores} for frame in frames],
        "concept": [{"loss": losses[data.rows(block, block + 1)]} for block in range(data.days)],
    }
    alarms = []
    for kind, blocks in series.items():
        fitted = range(first, first + CALIBRATED)
        pooled = {n: np.concatenate([blocks[b][n] for b in fitted]) for n in blocks[first]}
        layout = Layout.fit(pooled, _segments(name, frames, fitted), kind=kind)
        summaries = [
            ("any", summarise(layout, blocks[b], _segments(name, frames, [b])))
            for b in range(first, data.days)
        ]
        monitor = DriftMonitor.begin(layout, spec, summaries[:CALIBRATED], checks=checks)
        for block, (context, summary) in enumerate(summaries[CALIBRATED:], start=first + CALIBRATED):
            report = monitor.update(context, summary)
            if report.alarm:
                cause = report.causes[0] if report.causes else None
                words = (
                    f"{cause.segment} {cause.feature} {cause.what} {cause.direction}".strip() if cause else ""
                )
                found = judge(name, frames, block, seed)
                verdict = f"{found.verdict} {found.kind}".strip()
                print(
                    f"{name} {block} {kind} [{words}] {verdict}, {found.action}: {found.reason}", flush=True
                )
                alarms.append(Alarm(kind, block, words, found))
    return sorted(alarms, key=lambda one: one.block)


def _segments(
    name: str, frames: list[Frame], blocks: range | list[int]
) -> dict[str, npt.NDArray[np.generic]]:
    names = load(name).segments
    return {n: np.concatenate([frames[block].columns[n] for block in blocks]) for n in names}


def judge(name: str, frames: list[Frame], block: int, seed: int) -> Diagnosis:
    """Diagnose the window that ends with a block against those before it; the model has seen none of them."""
    size, windows = WINDOW[name], []
    end = block + 1
    while end - size >= TRAINED[name] and len(windows) <= PAST:
        windows.append(joined(frames[end - size : end]))
        end -= size
    if not windows:
        windows = [joined(frames[TRAINED[name] : block + 1])]
    return diagnose(windows[0], windows[:0:-1], Events(), seed)


def joined(frames: list[Frame]) -> Frame:
    columns = {n: np.concatenate([frame.columns[n] for frame in frames]) for n in frames[0].columns}
    labels = np.concatenate([frame.labels for frame in frames if frame.labels is not None])
    return Frame(columns, labels, np.concatenate([frame.scores for frame in frames]), frames[0].kind)


def draw(name: str, losses: npt.NDArray[np.float64], alarms: list[Alarm], folder: Path) -> None:
    data, size = load(name), WINDOW[name]
    root = data.kind == "count"
    means = np.array([losses[data.rows(block, block + 1)].mean() for block in range(data.days)])
    starts = list(range(0, data.days - size + 1, size))
    points = [means[start : start + size] for start in starts]
    middle = np.array([point.mean() for point in points])
    error = 2.1 * np.array([point.std(ddof=1) for point in points]) / size**0.5
    low, high = middle - error, middle + error
    if root:
        low, middle, high = (np.sqrt(np.maximum(values, 0)) for values in (low, middle, high))
    at = np.array(starts) + size / 2
    figure, axes = plt.subplots(figsize=(14, 6))
    axes.fill_between(at, low, high, alpha=0.25, color="gray", label="95 % interval over blocks")
    axes.plot(at, middle, color="black", label="RMSE" if root else "log loss (clipped at 4)")
    axes.axvspan(0, TRAINED[name], color="tab:green", alpha=0.12, label="trained on")
    axes.axvspan(
        TRAINED[name], TRAINED[name] + CALIBRATED, color="tab:olive", alpha=0.12, label="calibrated on"
    )
    top = float(high.max())
    for number, one in enumerate(alarms):
        axes.axvline(one.block, color=KINDS[one.kind], alpha=0.8, lw=1)
        text = f" {one.diagnosis.verdict} {one.diagnosis.kind} ({one.cause}) "
        side = "right" if one.block > 0.8 * data.days else "left"
        height = top * (1.0 - 0.05 * (number % 10))
        axes.text(one.block, height, text, ha=side, fontsize=7, color=KINDS[one.kind])
    for kind, color in KINDS.items():
        axes.plot([], [], color=color, label=f"alarm: {kind}")
    ticks = range(0, data.days, max(1, data.days // 12))
    axes.set_xticks(
        list(ticks), [str(data.time[data.rows(b, b + 1).start])[:10] for b in ticks], rotation=30, fontsize=8
    )
    axes.set_title(f"{name}: a static model's matured loss by windows of {size} blocks")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncol=6, fontsize=8)
    axes.set_ylim(min(0.9 * float(low.min()), float(low.min())), top * 1.03)
    figure.tight_layout()
    figure.savefig(folder / f"{name}.png", dpi=90)
    plt.close(figure)


if __name__ == "__main__":
    main()
