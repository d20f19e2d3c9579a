"""Label store: the truth that arrives by prediction id, late, twice or corrected.

One SQLite file a pipeline, shared by its replicas: a label is on disk when its answer is sent, and
sending it again changes nothing. Joining with predictions is monitoring's work.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from ctrain.serving.ids import time_of

_FILE = "labels.db"
_TABLE = """
create table if not exists labels (
    prediction_id text primary key,
    value real not null,
    first_at real not null,
    at real not null,
    corrections integer not null default 0
) without rowid
"""

LABELS = pa.schema(
    [
        ("prediction_id", pa.string()),
        ("value", pa.float64()),
        ("first_at", pa.float64()),  # when a label first came
        ("at", pa.float64()),  # when the present value came
        ("corrections", pa.int64()),
    ]
)


class LabelStore:
    """Writer of labels; safe in threads, and beside other replicas.

    Args:
        folder: Log folder of the pipeline.
        horizon: Seconds after its prediction from which a label is dropped as late.
    """

    def __init__(self, folder: Path, horizon: float = 30 * 86400.0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._horizon = horizon
        self._lock = threading.Lock()
        self._db = sqlite3.connect(folder / _FILE, timeout=10, isolation_level=None, check_same_thread=False)
        self._db.execute("pragma journal_mode=wal")
        self._db.execute("pragma synchronous=full")
        self._db.execute(_TABLE)

    def put(self, labels: Sequence[tuple[str, float]], now: float | None = None) -> list[str]:
        """Store labels, in one transaction.

        Args:
            labels: (prediction id, truth) pairs.
            now: Seconds since 1970; the clock by default.

        Returns:
            One word a label: `pending` (new; joined when its prediction is found), `same`,
            `corrected` or `late` (beyond the horizon; dropped).
        """
        at = time.time() if now is None else now
        with self._lock:
            self._db.execute("begin immediate")
            try:
                results = [self._put(prediction_id, value, at) for prediction_id, value in labels]
            except sqlite3.Error:
                self._db.execute("rollback")
                raise
            self._db.execute("commit")
        return results

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def _put(self, prediction_id: str, value: float, at: float) -> str:
        predicted = time_of(prediction_id)
        if predicted is not None and at - predicted > self._horizon:
            return "late"
        query = "select value from labels where prediction_id = ?"
        found = self._db.execute(query, (prediction_id,)).fetchone()
        if found is None:
            self._db.execute("insert into labels values (?, ?, ?, ?, 0)", (prediction_id, value, at, at))
            return "pending"
        if found[0] == value:
            return "same"
        change = "update labels set value = ?, at = ?, corrections = corrections + 1 where prediction_id = ?"
        self._db.execute(change, (value, at, prediction_id))
        return "corrected"


def read_labels(folder: Path) -> pa.Table:
    """All labels of a pipeline, as a table of LABELS; empty if none ever came."""
    file = folder / _FILE
    if not file.exists():
        return LABELS.empty_table()
    connection = sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=10)
    try:
        query = "select prediction_id, value, first_at, at, corrections from labels order by prediction_id"
        rows = connection.execute(query).fetchall()
    finally:
        connection.close()
    columns = zip(*rows, strict=True) if rows else ((),) * len(LABELS)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, LABELS, strict=True)]
    return pa.table(arrays, schema=LABELS)
