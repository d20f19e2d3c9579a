"""Prediction log: every answer, appended as Arrow record batches by a background thread.

A replica writes files of its own (`log/predictions/<start ms>-<replica>.arrows`), each an Arrow IPC
stream; a flush hands a whole batch to the operating system, so kill -9 loses at most what came after the
last flush, and a torn last batch is left out on reading. Memory is bounded: beyond the capacity answers
are dropped and counted. Nothing here waits on a request. A file is open for an hour at most, so that old
files can be deleted beside live writers.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from pydantic_core import to_json as json_bytes

from ctrain.telemetry.log import logger

_log = logger("serving")

SCHEMA = pa.schema(
    [
        ("prediction_id", pa.string()),
        ("time", pa.float64()),  # seconds since 1970
        ("replica", pa.string()),
        ("key", pa.string()),  # null if the request had none
        ("version", pa.string()),  # id of the model version
        ("label", pa.string()),  # its name, e.g. v7
        ("slot", pa.string()),  # champion or challenger answered; shadow answered nobody
        ("rollout", pa.string()),
        ("split", pa.float64()),
        ("value", pa.float64()),  # probability
        ("threshold", pa.float64()),
        ("latency", pa.float64()),  # seconds inside the model, of the whole request
        ("features", pa.string()),  # the row, as JSON
    ]
)

_FOLDER = "predictions"
_LONGEST_OPEN = 3600.0
"""Seconds after which a file ends, whether answers came or not."""

_SURELY_CLOSED = 86400.0
"""Seconds without a change after which no writer has a file open, whatever the clocks of machines say."""


class Answer(NamedTuple):
    """One answered row; fields as in SCHEMA, without the replica."""

    prediction_id: str
    time: float
    key: str | None
    version: str
    label: str
    slot: str
    rollout: str
    split: float
    value: float
    threshold: float
    latency: float
    features: dict[str, Any]


class PredictionLog:
    """Writer of one replica.

    Args:
        folder: Log folder of the pipeline (`root.pipeline(name).log`).
        replica: Serve's id of the replica.
        flush: Seconds between flushes.
        capacity: Answers kept in memory at most.
        rotate: Bytes after which a new file begins; a file also ends after an hour.
        clock: Seconds since 1970, for tests.
    """

    def __init__(
        self,
        folder: Path,
        replica: str,
        flush: float = 1.0,
        capacity: int = 50_000,
        rotate: int = 64 << 20,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._folder = folder / _FOLDER
        self._folder.mkdir(parents=True, exist_ok=True)
        self._replica, self._flush_s, self._rotate, self._clock = replica, flush, rotate, clock
        self._waiting: deque[Answer] = deque()
        self._capacity = capacity
        self._lock = threading.Lock()
        self._sink: Any = None
        self._writer: Any = None
        self._opened = 0.0
        self._stop = threading.Event()
        self.dropped = 0
        """Answers lost: no room, or no disk."""
        self._thread = threading.Thread(target=self._run, name="prediction-log", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether its thread runs."""
        return self._thread.is_alive()

    def append(self, answer: Answer) -> None:
        """Take an answer; never blocks."""
        if len(self._waiting) >= self._capacity:
            self.dropped += 1
            return
        self._waiting.append(answer)

    def flush(self) -> None:
        """Write what waits; answers that the disk refuses are counted as dropped."""
        with self._lock:
            batch = [self._waiting.popleft() for _ in range(len(self._waiting))]
            try:
                if batch:
                    self._write(batch)
            except Exception:  # noqa: BLE001 the next batch gets a file of its own
                _log.exception("%d answers are not logged", len(batch))
                self.dropped += len(batch)
                self._end_file()
            if self._writer is not None and self._clock() - self._opened > _LONGEST_OPEN:
                self._end_file()

    def close(self) -> None:
        """Flush and end the thread."""
        self._stop.set()
        self._thread.join(timeout=5)
        self.flush()
        with self._lock:
            self._end_file()

    def _run(self) -> None:
        while not self._stop.wait(self._flush_s):
            self.flush()

    def _write(self, batch: list[Answer]) -> None:
        if self._writer is None:
            self._opened = self._clock()
            name = f"{int(self._opened * 1000):013d}-{self._replica}.arrows"
            self._sink = (self._folder / name).open("ab")
            self._writer = pa.ipc.new_stream(self._sink, SCHEMA)
        columns = dict(zip(Answer._fields, zip(*batch, strict=True), strict=True))
        columns["features"] = tuple(json_bytes(row).decode() for row in columns["features"])
        columns["replica"] = (self._replica,) * len(batch)
        arrays = [pa.array(columns[field.name], field.type) for field in SCHEMA]
        self._writer.write_batch(pa.record_batch(arrays, schema=SCHEMA))
        self._sink.flush()
        if self._sink.tell() > self._rotate:
            self._end_file()

    def _end_file(self) -> None:
        if self._writer is not None:
            with contextlib.suppress(Exception):
                self._writer.close()
                self._sink.close()
        self._writer = self._sink = None


def read_log(folder: Path, start: float, end: float) -> pa.Table:
    """Answers with start <= time < end, of all replicas, ordered by time. Holds all of them in memory.

    Args:
        folder: Log folder of the pipeline.
        start: Seconds since 1970.
        end: Seconds since 1970.

    Returns:
        A table of SCHEMA; batches torn by a killed replica are left out.
    """
    return pa.Table.from_batches(scan_log(folder, start, end), schema=SCHEMA).sort_by("time")


def scan_log(
    folder: Path, start: float, end: float, columns: Sequence[str] = SCHEMA.names
) -> Iterator[pa.RecordBatch]:
    """The same answers batch by batch, with some columns only; in the order of a replica's answers.

    Args:
        folder: Log folder of the pipeline.
        start: Seconds since 1970.
        end: Seconds since 1970.
        columns: Names of SCHEMA; `time` is always among those that come.
    """
    import pyarrow.compute as pc

    wanted = sorted(SCHEMA.get_field_index(name) for name in {*columns, "time"})
    for file in _files(folder):
        # a file's first answers may be a flush older than the file; its last ones end at its mtime
        if _opened_at(file) - 60 > end or file.stat().st_mtime + 1 < start:
            continue
        for batch in _whole_batches(file, wanted):
            times = batch.column("time")
            inside = batch.filter(pc.and_(pc.greater_equal(times, start), pc.less(times, end)))
            if inside.num_rows:
                yield inside


def forget_log(folder: Path, before: float, now: float) -> int:
    """Delete files whose answers are all older than a time, but none that may still be open.

    Args:
        folder: Log folder of the pipeline.
        before: Seconds since 1970.
        now: Seconds since 1970.

    Returns:
        How many were deleted.
    """
    limit = min(before, now - _SURELY_CLOSED)
    old = [file for file in _files(folder) if file.stat().st_mtime + 1 < limit]
    for file in old:
        file.unlink(missing_ok=True)
    return len(old)


def _files(folder: Path) -> list[Path]:
    return sorted((folder / _FOLDER).glob("*.arrows"))


def _opened_at(file: Path) -> float:
    return int(file.name.split("-", 1)[0]) / 1000


def _whole_batches(file: Path, fields: list[int]) -> Iterator[pa.RecordBatch]:
    options = pa.ipc.IpcReadOptions(included_fields=fields)
    try:
        with file.open("rb") as source, pa.ipc.open_stream(source, options=options) as reader:
            yield from reader
    except (pa.ArrowInvalid, OSError):  # torn tail: the writer was killed
        return
