"""A bounded, uniform sample of the answers of each block of time, with their features, for diagnosis.

An answer is kept if the hash of its id lies below its block's limit. When a block holds too many, its limit
is halved, so that a busy hour is in the sample as often as it is in the traffic, however windows cut it.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

SCHEMA = """
create table if not exists samples (
    prediction_id text primary key,
    rank integer not null,
    block integer not null,
    time real not null,
    value real not null,
    features text not null
) without rowid;
create index if not exists samples_block on samples (block, rank);
create table if not exists limits (block integer primary key, below integer not null);
"""

KEPT = 3_000
"""Answers of a block at least, once it had as many; twice as many at most."""

ALL = 1 << 32


class Sampled(NamedTuple):
    """One answer."""

    prediction_id: str
    time: float
    """Event time; where requests carry none, time of the answer."""
    value: float
    features: str
    """The row, as JSON."""


class BlockSamples:
    """The sample in a database that somebody else opened and commits.

    Args:
        db: Connection with SCHEMA.
        length: Of a block, in seconds.
        kept: Answers of a block.
    """

    def __init__(self, db: sqlite3.Connection, length: float, kept: int = KEPT) -> None:
        self._db, self._length, self._kept = db, length, kept
        self._limits: dict[int, int] = dict(db.execute("select block, below from limits"))

    def offer(self, answers: Iterable[Sampled]) -> None:
        """Show it some answers; the same one again changes nothing."""
        rows, seen = [], Counter[int]()
        for answer in answers:
            block = int(answer.time // self._length)
            # Ids count up, so a checksum such as CRC would keep some hours and leave others out.
            digest = hashlib.blake2b(answer.prediction_id.encode(), digest_size=4).digest()
            rank = int.from_bytes(digest, "big")
            if rank < self._limits.get(block, ALL):
                rows.append((answer.prediction_id, rank, block, answer.time, answer.value, answer.features))
                seen[block] += 1
        self._db.executemany("insert or ignore into samples values (?, ?, ?, ?, ?, ?)", rows)
        for block in seen:
            self._thin(block)

    def between(self, start: float, end: float) -> Iterator[Sampled]:
        """Answers with start <= time < end, in the order of time.

        Blocks were thinned by different limits: within each the sample is uniform.
        """
        query = (
            "select prediction_id, time, value, features from samples "
            "where block between ? and ? and time >= ? and time < ? order by time, prediction_id"
        )
        blocks = int(start // self._length), int(end // self._length)
        return (Sampled(*row) for row in self._db.execute(query, (*blocks, start, end)))

    def span(self) -> tuple[float, float] | None:
        """Times of the first and the last answer; None without any."""
        first, last = self._db.execute("select min(time), max(time) from samples").fetchone()
        return (first, last) if first is not None else None

    def forget(self, before: float) -> None:
        """Delete the blocks before the one of a time."""
        block = int(before // self._length)
        self._db.execute("delete from samples where block < ?", (block,))
        self._db.execute("delete from limits where block < ?", (block,))

    def _thin(self, block: int) -> None:
        while True:
            query = "select count(*) from samples where block = ?"
            if self._db.execute(query, (block,)).fetchone()[0] <= 2 * self._kept:
                return
            limit = self._limits.get(block, ALL) // 2
            self._limits[block] = limit
            self._db.execute("insert or replace into limits values (?, ?)", (block, limit))
            self._db.execute("delete from samples where block = ? and rank >= ?", (block, limit))
