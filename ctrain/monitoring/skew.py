"""Skew: whether serving computed what the batch path computes, asked of answers that were given.

A bounded sample of a window's logged answers is computed again from the logged rows, the way training reads
rows: canonical columns, the version's own feature view on all rows at once, its encoder, its served weights
as they lie in storage. A request takes other ways (one row at a time, a reader of its own, weights long in
memory), so an answer that differs proves that training and serving do not compute the same.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ctrain.features import Column, columns_from_json
from ctrain.records import Json, SkewReport
from ctrain.storage import Root

Floats = npt.NDArray[np.float64]
Compute = Callable[[list[Json]], Floats]
"""The batch path of one version: rows as logged to answers, shape [B]."""

SAMPLE = 500
"""Answers of a window at most that are computed again."""
TOLERANCE = 1e-4
"""Difference of two probabilities from which on they are not the same. Weights are float32, and a product of
matrices adds in another order for one row than for many: that is a thousand times less."""
NAMED = 3
"""Versions or kinds of errors that are named at most."""


def check_skew(answers: pa.Table, batch_path: Callable[[str], Compute]) -> SkewReport:
    """Compute answers again and compare.

    Args:
        answers: Columns `version`, `value`, and `features`: the row as JSON.
        batch_path: Gives the batch path of a version. Whatever it raises says that the version cannot be
            computed any more, and whatever the path itself raises that its view refuses those rows: both are
            counted, and neither is skew.
    """
    versions = np.array(answers.column("version").to_pylist(), np.str_)
    rows = [json.loads(text) for text in answers.column("features").to_pylist()]
    given = answers.column("value").to_numpy()
    again = np.full(len(rows), np.nan)
    reached = np.zeros(len(rows), bool)
    gone, refused = Counter[str](), Counter[str]()
    for version in np.unique(versions).tolist():
        mine = np.flatnonzero(versions == version)
        try:
            compute = batch_path(version)
        except Exception as error:  # noqa: BLE001 files that are gone, or the user's code: nobody can tell
            gone[f"{version}: {type(error).__name__}"] += len(mine)
            continue
        again[mine], reached[mine] = _computed(compute, [rows[at] for at in mine], refused)
    # A value that is no number any more differs from every answer.
    differences = np.where(np.isfinite(again), np.abs(again - given), 1.0)[reached]
    return _report(differences, gone, refused)


def _computed(
    compute: Compute, rows: list[Json], refused: Counter[str]
) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Answers, and which rows have one. Only where the view refuses some row is each computed alone."""
    try:
        return compute(rows), np.ones(len(rows), bool)
    except Exception:  # noqa: BLE001 the user's code
        answers, reached = np.full(len(rows), np.nan), np.zeros(len(rows), bool)
    for at, row in enumerate(rows):
        try:
            answers[at], reached[at] = compute([row])[0], True
        except Exception as error:  # noqa: BLE001 the user's code; its words may hold what was sent
            refused[type(error).__name__] += 1
    return answers, reached


def _report(differences: Floats, gone: Counter[str], refused: Counter[str]) -> SkewReport:
    rows, skewed = len(differences), int((differences > TOLERANCE).sum())
    largest = float(differences.max()) if rows else 0.0
    words = [f"none of {gone.total() + refused.total()} answers could be computed again"]
    if rows:
        words = [f"{rows} answers computed again in batch: all alike, within {largest:.1g}"]
    if skewed:
        words = [
            f"{skewed} of {rows} answers differ from the batch path by more than {TOLERANCE:g}, "
            f"by {largest:.2g} at most"
        ]
    words += [
        f"{count} of a version that cannot be loaded ({name})" for name, count in gone.most_common(NAMED)
    ]
    words += [f"{count} rows that it cannot compute ({name})" for name, count in refused.most_common(NAMED)]
    return SkewReport(
        state="skewed" if skewed else "alike" if rows else "not_computed",
        rows=rows,
        skewed=skewed,
        share=skewed / rows if rows else 0.0,
        largest=largest,
        gone=gone.total(),
        refused=refused.total(),
        reason="; ".join(words),
    )


class BatchPath:
    """The batch path of versions as they lie in storage.

    Args:
        root: Where versions, their weights and code lie.
    """

    def __init__(self, root: Root) -> None:
        self._root = root

    def __call__(self, version: str) -> Compute:
        """The batch path of a version.

        Raises:
            StorageError: if its files are not there, or not those of its hashes.
            WeightsError, UserCodeError: if they make no network.
        """
        from ctrain.models.loading import load_network
        from ctrain.registry import read_version

        manifest = read_version(self._root, version)
        network = load_network(self._root, manifest, manifest.served)
        columns = columns_from_json(manifest.columns)
        return lambda rows: network.predict(landed_arrays(columns, rows))


def landed_arrays(columns: dict[str, Column], rows: Sequence[Json]) -> dict[str, npt.NDArray[Any]]:
    """Logged rows as a feature view takes them, read as if they had come from a file of the source."""
    from ctrain.data.convert import convert
    from ctrain.features.view import arrays_from_table

    table = {name: convert(_source(column, name, rows), column)[0] for name, column in columns.items()}
    return arrays_from_table(columns, pa.table(table))


def _source(column: Column, name: str, rows: Sequence[Json]) -> pa.Array:
    values = [row.get(name) for row in rows]
    if column.kind in ("number", "flag"):
        return pa.array([None if value is None else float(value) for value in values], pa.float64())
    return pa.array([None if value is None else str(value) for value in values], pa.string())
