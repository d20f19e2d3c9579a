"""Answers that wait for their truth: what of the prediction log a later window still needs.

One SQLite file a pipeline, beside the labels, with one writer: the window that is summarised. A window adds
its own answers and asks which ones became ready since the window before it, so work grows with what is
new. An answer is ready once its label is there and its event is mature; what is ready as of one window's
end and was not as of the end before counts in that window, and in no other. Summarising the same window
again gives the same numbers; a window that failed leaves its answers to the next one. What a shadow would
have answered waits beside the answer, and both are judged once their whole block of time is mature.

The file is derived: without it, the next window reads the log of the whole horizon anew.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ctrain.monitoring.samples import SCHEMA as SAMPLES_SCHEMA
from ctrain.serving.labels import FILE as LABELS_FILE

FILE = "scores.db"
_SCHEMA = """
create table if not exists answers (
    prediction_id text primary key,
    time real not null,
    event real,
    champion integer not null,
    value real not null,
    version text not null,
    segments text not null
) without rowid;
create index if not exists answers_time on answers (time);
create index if not exists answers_event on answers (event) where event is not null;
create table if not exists shadows (
    prediction_id text not null,
    version text not null,
    time real not null,
    value real not null,
    primary key (prediction_id, version)
) without rowid;
create index if not exists shadows_time on shadows (time);
create table if not exists monitors (end real primary key, state blob not null);
create table if not exists marks (end real primary key, event_limit real not null, clock_limit real not null);
"""
_MATURE = "(a.event <= :event_limit or a.event is null and a.time <= :clock_limit)"
_NEWLY_MATURE = (
    "a.event > :event_before and a.event <= :event_limit",
    "a.event is null and a.time > :clock_before and a.time <= :clock_limit",
)
_READY = [
    # the label came in this window, and the answer is mature
    "select a.value v, l.value t, coalesce(a.event, a.time) e, a.segments s from truth.labels l "
    "cross join answers a using (prediction_id) "
    f"where l.first_at >= :end_before and l.first_at < :end and a.champion and {_MATURE}",
    # the label came earlier, and the answer is mature now
    *(
        "select a.value v, l.value t, coalesce(a.event, a.time) e, a.segments s from answers a "
        "cross join truth.labels l using (prediction_id) "
        f"where {newly} and a.champion and l.first_at < :end_before"
        for newly in _NEWLY_MATURE
    ),
]
_PENDING = [
    f"select count(*) from answers a where {newly} and not exists (select 1 from truth.labels l "
    "where l.prediction_id = a.prediction_id and l.first_at < :end)"
    for newly in _NEWLY_MATURE
]
_ORPHANS = (
    "select count(*) from truth.labels l where l.first_at >= :end_before and l.first_at < :end "
    "and not exists (select 1 from answers a where a.prediction_id = l.prediction_id)"
)
_IN_BLOCKS = (
    "join truth.labels l using (prediction_id) "
    "where a.champion and l.first_at < :end and (a.event >= :event_from and a.event < :event_to "
    "or a.event is null and a.time >= :clock_from and a.time < :clock_to)"
)
_RECENT = f"from answers a {_IN_BLOCKS}"
_PAIRED = f"from answers a join shadows s using (prediction_id) {_IN_BLOCKS}"
_BLOCK = "cast(coalesce(a.event, a.time) / :length as integer)"

_ASKED_AT_ONCE = 500
_STATES_KEPT = 3
"""States of the monitors that are kept: a window that is judged again begins where it began."""

SCORED_AT_MOST = 500_000
"""Ready answers of a window that its metrics are computed from; of more, every n-th."""


class Scored(NamedTuple):
    """An answer as it waits."""

    prediction_id: str
    time: float
    event: float | None
    """Event time in seconds since 1970; None where the request does not carry it."""
    champion: bool
    """Whether the champion of its time gave it; a challenger's answers are the rollout's to judge."""
    value: float
    version: str
    segments: str
    """Its segment columns as a JSON object."""


class Shadowed(NamedTuple):
    """What a shadow would have answered."""

    prediction_id: str
    version: str
    time: float
    value: float


@dataclass(frozen=True, slots=True)
class PairedRows:
    """Rows of one block of time that two versions scored."""

    start: float
    """Of the block, in seconds since 1970."""
    answered_by: str
    shadow: str
    answered: npt.NDArray[np.float64]
    """Probabilities, shape [B]."""
    shadowed: npt.NDArray[np.float64]
    truths: npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Mark:
    """How far a window went."""

    end: float
    event_limit: float
    """Events up to this time are mature."""
    clock_limit: float
    """The same for answers without an event time, by the time of the answer."""


@dataclass(frozen=True, slots=True)
class Matured:
    """Labelled answers of champions whose events are mature."""

    values: npt.NDArray[np.float64]
    truths: npt.NDArray[np.float64]
    times: npt.NDArray[np.float64]
    """Event times; where requests carry none, times of the answers."""
    segments: list[str]
    """Segment columns of each, as JSON."""
    versions: list[str]
    """Who answered."""


NOTHING = Mark(0.0, float("-inf"), float("-inf"))


@dataclass(frozen=True, slots=True)
class Ready:
    """What became ready between two marks."""

    labelled: int
    values: npt.NDArray[np.float64]
    """Probabilities of at most SCORED_AT_MOST ready answers of champions."""
    truths: npt.NDArray[np.float64]
    times: npt.NDArray[np.float64]
    """Event times; where requests carry none, times of the answers."""
    segments: list[str]
    """Segment columns of each, as JSON."""
    pending: int
    """Answers of champion and challenger that became mature without a label."""
    orphans: int
    """Labels that came for no known answer."""


def whole(limit: float, length: float) -> float:
    """End of the last whole block before a time."""
    return max(limit, 0.0) // length * length


class Scores:
    """The file, opened for one window; nothing is kept unless `commit` is called.

    Args:
        folder: Log folder of the pipeline, with its labels.
    """

    def __init__(self, folder: Path) -> None:
        self._db = sqlite3.connect(folder / FILE, timeout=60, isolation_level=None)
        self._db.execute("pragma journal_mode=wal")
        self._db.executescript(_SCHEMA)
        self._db.executescript(SAMPLES_SCHEMA)
        self._db.execute("attach ? as truth", (str(folder / LABELS_FILE),))
        self._db.execute("begin immediate")

    @property
    def db(self) -> sqlite3.Connection:
        """The connection, for what is kept beside the answers and committed with them."""
        return self._db

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def commit(self) -> None:
        """Keep what was added."""
        self._db.execute("commit")

    def before(self, end: float) -> Mark:
        """Mark of the newest window that ended before a time; `NOTHING` if there is none."""
        query = "select end, event_limit, clock_limit from marks where end < ? order by end desc limit 1"
        found = self._db.execute(query, (end,)).fetchone()
        return Mark(*found) if found else NOTHING

    def add(self, answers: Iterable[Scored]) -> None:
        """Add answers; those that are there already stay as they are."""
        self._db.executemany("insert or ignore into answers values (?, ?, ?, ?, ?, ?, ?)", answers)

    def add_shadows(self, shadows: Iterable[Shadowed]) -> None:
        """Add what shadows would have answered."""
        self._db.executemany("insert or ignore into shadows values (?, ?, ?, ?)", shadows)

    def ready(self, before: Mark, mark: Mark) -> Ready:
        """Tell what became ready after one mark, up to another one, which is remembered.

        Args:
            before: The earlier mark.
            mark: The later one.
        """
        row = (mark.end, mark.event_limit, mark.clock_limit)
        self._db.execute("insert or replace into marks values (?, ?, ?)", row)
        asked = {
            "end": mark.end, "event_limit": mark.event_limit, "clock_limit": mark.clock_limit,
            "end_before": before.end, "event_before": before.event_limit, "clock_before": before.clock_limit,
        }  # fmt: skip

        def count(query: str) -> int:
            found: int = self._db.execute(query, asked).fetchone()[0]
            return found

        ready = " union all ".join(_READY)
        labelled = count(f"select count(*) from ({ready})")
        step = -(-labelled // SCORED_AT_MOST) or 1
        cursor = self._db.execute(ready, asked)
        kept = [row for number, row in enumerate(cursor) if number % step == 0]
        scored = np.array([row[:3] for row in kept], np.float64).reshape(-1, 3)
        return Ready(
            labelled=labelled,
            values=scored[:, 0],
            truths=scored[:, 1],
            times=scored[:, 2],
            segments=[row[3] for row in kept],
            pending=sum(map(count, _PENDING)),
            orphans=count(_ORPHANS),
        )

    def recent(self, mark: Mark, length: float, blocks: int) -> Matured:
        """Labelled answers of champions in the newest whole blocks that are mature.

        Args:
            mark: What is mature.
            length: Of a block, in seconds.
            blocks: Number of blocks at most.
        """
        event_to, clock_to = whole(mark.event_limit, length), whole(mark.clock_limit, length)
        asked = {
            "end": mark.end, "event_from": event_to - blocks * length, "event_to": event_to,
            "clock_from": clock_to - blocks * length, "clock_to": clock_to,
        }  # fmt: skip
        count: int = self._db.execute(f"select count(*) {_RECENT}", asked).fetchone()[0]
        step = -(-count // SCORED_AT_MOST) or 1
        names = "a.value, l.value, coalesce(a.event, a.time), a.segments, a.version"
        cursor = self._db.execute(f"select {names} {_RECENT} order by prediction_id", asked)
        kept = [row for number, row in enumerate(cursor) if number % step == 0]
        values, truths, times = np.array([row[:3] for row in kept], np.float64).reshape(-1, 3).T
        return Matured(values, truths, times, [row[3] for row in kept], [row[4] for row in kept])

    def paired(self, before: Mark, mark: Mark, length: float) -> Iterator[PairedRows]:
        """Labelled answers that a shadow scored too, of the blocks that became mature between two marks.

        A label that comes after its block was judged counts in no block.

        Args:
            before: The earlier mark.
            mark: The later one.
            length: Of a block, in seconds; blocks begin at its multiples.
        """
        asked: dict[str, float | str] = {
            "end": mark.end, "length": length,
            "event_from": whole(before.event_limit, length), "event_to": whole(mark.event_limit, length),
            "clock_from": whole(before.clock_limit, length), "clock_to": whole(mark.clock_limit, length),
        }  # fmt: skip
        groups = self._db.execute(
            f"select {_BLOCK}, a.version, s.version, count(*) {_PAIRED} group by 1, 2, 3", asked
        ).fetchall()
        for block, version, shadow, count in groups:
            step = -(-count // SCORED_AT_MOST)
            cursor = self._db.execute(
                f"select a.value, s.value, l.value {_PAIRED} and {_BLOCK} = :block and a.version = :version "
                "and s.version = :shadow order by prediction_id",
                {**asked, "block": block, "version": version, "shadow": shadow},
            )
            rows = (row for number, row in enumerate(cursor) if number % step == 0)
            values = np.fromiter(chain.from_iterable(rows), np.float64).reshape(-1, 3).T
            yield PairedRows(block * length, version, shadow, values[0], values[1], values[2])

    def labels_of(self, prediction_ids: Sequence[str], end: float) -> npt.NDArray[np.float64]:
        """Labels of some answers that had come by a time; NaN for the others."""
        query = "select prediction_id, value from truth.labels where first_at < ? and prediction_id in "
        found = self._found(query, end, prediction_ids)
        return np.array([found.get(name, np.nan) for name in prediction_ids], np.float64)

    def shadows_of(self, prediction_ids: Sequence[str], version: str) -> npt.NDArray[np.float64]:
        """What a version in shadow would have answered; NaN where it was not asked."""
        query = "select prediction_id, value from shadows where version = ? and prediction_id in "
        found = self._found(query, version, prediction_ids)
        return np.array([found.get(name, np.nan) for name in prediction_ids], np.float64)

    def _found(self, query: str, first: float | str, names: Sequence[str]) -> dict[str, float]:
        """Values by prediction id, asked for in pieces."""
        found: dict[str, float] = {}
        for start in range(0, len(names), _ASKED_AT_ONCE):
            piece = names[start : start + _ASKED_AT_ONCE]
            places = ",".join("?" * len(piece))
            found.update(self._db.execute(f"{query} ({places})", (first, *piece)))
        return found

    def monitors(self, before: float) -> bytes | None:
        """State of the drift monitors after the newest window that ended before a time."""
        query = "select state from monitors where end < ? order by end desc limit 1"
        found = self._db.execute(query, (before,)).fetchone()
        return found[0] if found else None

    def keep_monitors(self, end: float, state: bytes) -> None:
        """Remember the monitors' state after a window; of those before it, the newest ones stay."""
        self._db.execute("insert or replace into monitors values (?, ?)", (end, state))
        newest = "select end from monitors order by end desc limit ?"
        self._db.execute(f"delete from monitors where end not in ({newest})", (_STATES_KEPT,))

    def forget(self, before: float) -> None:
        """Delete answers and marks of a time that no label reaches any more."""
        self._db.execute("delete from answers where time < ?", (before,))
        self._db.execute("delete from shadows where time < ?", (before,))
        self._db.execute("delete from marks where end < ?", (before,))
