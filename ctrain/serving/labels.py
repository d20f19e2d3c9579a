"""Label store: the truth that arrives by prediction id, late, twice or corrected.

One SQLite file a pipeline, shared by its replicas: a label is on disk when its answer is sent, and
sending it again changes nothing. Joining with predictions is monitoring's work, and so is deleting what
no prediction will ask for any more.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pyarrow as pa

from ctrain.serving.ids import time_of

FILE = "labels.db"
_SCHEMA = """
create table if not exists labels (
    prediction_id text primary key,
    value real not null,
    first_at real not null,
    at real not null,
    corrections integer not null default 0
) without rowid;
create index if not exists labels_first_at on labels (first_at);
create table if not exists late (hour integer primary key, labels integer not null);
"""
_HOUR = 3600
_DELETED_AT_ONCE = 2000
"""Labels deleted in one transaction: a replica that stores one waits milliseconds for it, not seconds."""

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
        self._db = sqlite3.connect(folder / FILE, timeout=10, isolation_level=None, check_same_thread=False)
        self._db.execute("pragma journal_mode=wal")
        self._db.execute("pragma synchronous=full")
        self._db.executescript(_SCHEMA)

    def put(self, labels: Sequence[tuple[str, float]], now: float | None = None) -> list[str]:
        """Store labels, in one transaction.

        Args:
            labels: (prediction id, truth) pairs; the truth is 0 or 1.
            now: Seconds since 1970; the clock by default.

        Returns:
            One word a label: `pending` (new; joined when its prediction is found), `same`,
            `corrected` or `late` (beyond the horizon; counted and dropped).

        Raises:
            ValueError: for a truth that is neither 0 nor 1; nothing is stored then.
        """
        wrong = [name for name, value in labels if value not in (0, 1)]
        if wrong:
            raise ValueError(f"label of {wrong[0]}: expected 0 or 1")
        with self._lock:
            self._db.execute("begin immediate")
            # Only now, with the lock held: a label must not be dated into a window that was read already.
            at = time.time() if now is None else now
            try:
                results = [self._put(prediction_id, value, at) for prediction_id, value in labels]
                self._count_late(results.count("late"), at)
            except sqlite3.Error:
                self._db.execute("rollback")
                raise
            self._db.execute("commit")
        return results

    def forget(self, before: float) -> int:
        """Delete labels that first came before a time; gives their number. Writers go on beside it."""
        deleted = 0
        victims = "select prediction_id from labels where first_at < ? limit ?"
        while True:
            with self._lock:
                found = self._db.execute(
                    f"delete from labels where prediction_id in ({victims})", (before, _DELETED_AT_ONCE)
                ).rowcount
            deleted += found
            if found < _DELETED_AT_ONCE:
                break
        with self._lock:
            self._db.execute("delete from late where hour < ?", (before // _HOUR,))
        return deleted

    def late(self, start: float, end: float) -> int:
        """Labels that were dropped as late in the hours that [start, end) touches."""
        query = "select coalesce(sum(labels), 0) from late where hour >= ? and hour * ? < ?"
        with self._lock:
            found: int = self._db.execute(query, (start // _HOUR, _HOUR, end)).fetchone()[0]
        return found

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

    def _count_late(self, labels: int, at: float) -> None:
        if labels:
            more = (
                "insert into late values (?, ?) on conflict do update set labels = labels + excluded.labels"
            )
            self._db.execute(more, (at // _HOUR, labels))


def read_labels(folder: Path) -> pa.Table:
    """All labels of a pipeline, as a table of LABELS; empty if none ever came."""
    file = folder / FILE
    if not file.exists():
        return LABELS.empty_table()
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=10)) as connection:
        query = "select prediction_id, value, first_at, at, corrections from labels order by prediction_id"
        rows = connection.execute(query).fetchall()
    columns = zip(*rows, strict=True) if rows else ((),) * len(LABELS)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, LABELS, strict=True)]
    return pa.table(arrays, schema=LABELS)
