"""Rows per second of `ctrain.training.loop.fit` against a hand-written loop over the same tensors.

Both train the default network for tables (20 numbers, 4 categories) with AdamW, in turn, several times;
the ratio is the median over pairs. The plain loop has a fixed learning rate, no checks and no records.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import common
import torch
from torch import nn

from ctrain.models.encoder import Inputs
from ctrain.models.tabular import TabularNet
from ctrain.spec.training import Training
from ctrain.training.loop import fit

CATEGORIES, NUMBERS = 4, 20


def network() -> TabularNet:
    torch.manual_seed(1)
    edges = tuple(tuple(torch.linspace(-3, 3, 25).tolist()) for _ in range(NUMBERS))
    inputs = Inputs(
        tuple((f"c{i}", 50) for i in range(CATEGORIES)), tuple(f"n{i}" for i in range(NUMBERS)), edges
    )
    return TabularNet(inputs)


def plain(module: nn.Module, inputs_BW: torch.Tensor, labels_B: torch.Tensor, training: Training) -> None:
    """What one writes by hand."""
    optimizer = torch.optim.AdamW(
        module.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay
    )
    module.train()
    size = training.batch_size
    for _ in range(training.epochs):
        order = torch.randperm(len(labels_B))
        for step in range(len(labels_B) // size):
            rows = order[step * size : (step + 1) * size]
            optimizer.zero_grad()
            loss = nn.functional.binary_cross_entropy_with_logits(module(inputs_BW[rows]), labels_B[rows])
            torch.autograd.backward(loss)
            optimizer.step()


def timed(work: Callable[[], object], rows: int) -> tuple[float, float]:
    """(rows a second, rows a CPU second)."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return rows / (time.perf_counter() - wall), rows / (time.process_time() - cpu)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    inputs_BW = torch.cat(
        [torch.randint(0, 50, (asked.rows, CATEGORIES)).float(), torch.randn(asked.rows, NUMBERS)], dim=1
    )
    labels_B = (torch.rand(asked.rows) < 0.3).float()
    training = Training(epochs=asked.epochs)
    rows = asked.rows // training.batch_size * training.batch_size * asked.epochs
    ways: dict[str, Callable[[], object]] = {
        "ctrain": lambda: fit(network(), inputs_BW, labels_B, training, 1, "bench"),
        "plain": lambda: plain(network(), inputs_BW, labels_B, training),
    }
    short = Training(epochs=1)
    fit(network(), inputs_BW[:20_000], labels_B[:20_000], short, 1, "warm-up")
    plain(network(), inputs_BW[:20_000], labels_B[:20_000], short)
    speeds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for repeat in range(asked.repeats):
        for name in list(ways)[:: 1 if repeat % 2 else -1]:
            speeds[name].append(timed(ways[name], rows))
        common.say(f"{repeat + 1}: " + ", ".join(f"{n} {s[-1][0]:,.0f} rows/s" for n, s in speeds.items()))
    ours, theirs = speeds["ctrain"], speeds["plain"]

    def ratio(which: int) -> float:
        return round(statistics.median(a[which] / b[which] for a, b in zip(ours, theirs, strict=True)), 4)

    common.report(
        {
            "rows_ratio_to_plain_loop": ratio(0),
            "rows_ratio_by_cpu_time": ratio(1),
            "rows_per_s": round(statistics.median(s[0] for s in ours)),
            "plain_rows_per_s": round(statistics.median(s[0] for s in theirs)),
            "pairs": [round(a[0] / b[0], 3) for a, b in zip(ours, theirs, strict=True)],
            "rows": asked.rows,
            "epochs": asked.epochs,
            "threads": asked.threads,
        }
    )


if __name__ == "__main__":
    main()
