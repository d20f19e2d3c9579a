"""The journal: each pipeline's append-only, hash-chained list of events, with one writer at a time.

Takes events, gives them back in order. It refuses a writer whose fencing epoch is over, a changed
request under a used idempotency key, and any edit of the past. SQLite (WAL, synchronous=FULL, every
writing transaction BEGIN IMMEDIATE) by default, PostgreSQL by URL; SQLAlchemy Core in between.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from ctrain.errors import FencedError, KeyReusedError, TamperedError
from ctrain.records import Json, canonical, sha256_of

_META = sa.MetaData()
_EVENTS = sa.Table(
    "event",
    _META,
    sa.Column("pipeline", sa.String, primary_key=True),
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("epoch", sa.Integer, nullable=False),
    sa.Column("at", sa.Float(53), nullable=False),
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("data", sa.Text, nullable=False),
    sa.Column("previous", sa.String, nullable=False),
    sa.Column("hash", sa.String, nullable=False),
)
_LEASES = sa.Table(
    "lease",
    _META,
    sa.Column("pipeline", sa.String, primary_key=True),
    sa.Column("epoch", sa.Integer, nullable=False),
    sa.Column("owner", sa.String, nullable=False),
    sa.Column("seq", sa.Integer, nullable=False),
    sa.Column("head", sa.String, nullable=False),
)
_OPERATIONS = sa.Table(
    "operation",
    _META,
    sa.Column("pipeline", sa.String, primary_key=True),
    sa.Column("key", sa.String, primary_key=True),
    sa.Column("request", sa.String, nullable=False),
    sa.Column("result", sa.Text, nullable=False),
)
_SNAPSHOTS = sa.Table(
    "snapshot",
    _META,
    sa.Column("pipeline", sa.String, primary_key=True),
    sa.Column("seq", sa.Integer, nullable=False),
    sa.Column("hash", sa.String, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("digest", sa.String, nullable=False),
)

GENESIS = "0" * 64
_WRITES = "ctrain_writes"
"""Execution option of a connection whose transaction takes SQLite's write lock from its beginning."""
_CREATING = 7_246_177
"""Number of the advisory lock that is held while tables are created."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An event before it has a place in the journal."""

    kind: str
    data: Json


@dataclass(frozen=True, slots=True)
class Event:
    """One fact of a pipeline's history."""

    seq: int
    """1, 2, 3 ... without gaps."""
    epoch: int
    """Fencing epoch of the controller that wrote it."""
    at: float
    kind: str
    data: Json
    previous: str
    """Hash of the event before; 64 zeros for the first."""
    hash: str


@dataclass(frozen=True, slots=True)
class Operation:
    """A request that must have its effect once, however often it is sent."""

    key: str
    request: Json
    result: Json
    """What the caller is told, now and at every repetition."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A fold of the first `seq` events, so that a restart need not begin at the first."""

    seq: int
    state: Json


class Journal:
    """Journal of one pipeline in one database.

    Args:
        url: SQLAlchemy URL, e.g. `sqlite:////var/ctrain/p/journal.db` or `postgresql+psycopg://...`.
        pipeline: Whose events these are; several pipelines may share a database.
    """

    def __init__(self, url: str, pipeline: str) -> None:
        self.pipeline = pipeline
        self._engine = _engine(url)
        with self._transaction() as connection:
            if self._engine.dialect.name == "postgresql":
                # Two processes that create the same table at once fail, IF NOT EXISTS or not.
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_CREATING})")
            _META.create_all(connection)

    def acquire(self, owner: str) -> int:
        """Become the writer: raise the fencing epoch by one, so that every older writer is refused.

        Returns:
            The new epoch, at least 1.
        """
        dialect = postgresql if self._engine.dialect.name == "postgresql" else sqlite
        row = {"pipeline": self.pipeline, "epoch": 0, "owner": "", "seq": 0, "head": GENESIS}
        with self._transaction() as connection:
            # The row must be there before it can be locked: two first writers would both read 0.
            connection.execute(dialect.insert(_LEASES).values(row).on_conflict_do_nothing())
            epoch = self._epoch(connection) + 1
            mine = sa.update(_LEASES).where(_LEASES.c.pipeline == self.pipeline)
            connection.execute(mine.values(epoch=epoch, owner=owner))
        return epoch

    def check(self, epoch: int) -> None:
        """Make sure that a writer still is one; a controller without news would not notice otherwise.

        Raises:
            FencedError: if a newer epoch exists.
        """
        with self._engine.connect() as connection:
            current = int(connection.execute(self._lease()).scalar() or 0)
        if current != epoch:
            raise FencedError(self.pipeline, epoch, current)

    def append(
        self,
        epoch: int,
        entries: Sequence[Entry],
        at: float,
        operation: Operation | None = None,
        accept: Callable[[list[Event]], None] = lambda events: None,
    ) -> list[Event]:
        """Write events, and the operation that caused them, in one transaction.

        Args:
            epoch: Epoch that the writer holds.
            entries: What happened, in order; may be empty where only the operation is remembered.
            at: Seconds since 1970.
            operation: The request behind the events; one that is already known writes nothing.
            accept: Sees the events before they stand for ever; what it raises undoes the write.

        Returns:
            The events as written; empty if the operation was already known.

        Raises:
            FencedError: if a newer epoch exists; nothing was written.
            KeyReusedError: if the operation's key is known with another request.
            ValueError: if an event or the operation holds what JSON cannot.
        """
        with self._transaction() as connection:
            current = self._epoch(connection)
            if current != epoch:
                raise FencedError(self.pipeline, epoch, current)
            if operation is not None:
                if self._known(connection, operation.key, operation.request) is not None:
                    return []
                connection.execute(
                    sa.insert(_OPERATIONS).values(
                        pipeline=self.pipeline,
                        key=operation.key,
                        request=sha256_of(operation.request),
                        result=canonical(operation.result),
                    )
                )
            seq, previous = self._head(connection)
            events = []
            for entry in entries:
                seq += 1
                event = self._chain(seq, epoch, at, entry, previous)
                previous = event.hash
                events.append(event)
            if events:
                connection.execute(sa.insert(_EVENTS), [self._row(event) for event in events])
                head = sa.update(_LEASES).where(_LEASES.c.pipeline == self.pipeline)
                connection.execute(head.values(seq=seq, head=previous))
            accept(events)
        return events

    def result_of(self, key: str, request: Json) -> Json | None:
        """What an operation with this key was answered, or None if it is new.

        Raises:
            KeyReusedError: if the key belongs to another request.
        """
        with self._engine.connect() as connection:
            return self._known(connection, key, request)

    def read(self, after: int = 0, limit: int | None = None) -> list[Event]:
        """Events with a sequence number above `after`, oldest first."""
        query = (
            sa.select(_EVENTS)
            .where(_EVENTS.c.pipeline == self.pipeline, _EVENTS.c.seq > after)
            .order_by(_EVENTS.c.seq)
        )
        if limit is not None:
            query = query.limit(limit)
        with self._engine.connect() as connection:
            return [_event(row) for row in connection.execute(query)]

    def newest(self) -> float:
        """Time of the newest event; 0 without any."""
        query = sa.select(sa.func.max(_EVENTS.c.at)).where(_EVENTS.c.pipeline == self.pipeline)
        with self._engine.connect() as connection:
            return float(connection.execute(query).scalar() or 0.0)

    def verify(self) -> int:
        """Check every link of the chain, and that it ends where its writer left it.

        Whoever may write to the database can also compute hashes: against that, keep the last event's
        hash elsewhere.

        Returns:
            Number of events.

        Raises:
            TamperedError: names the first event that was altered, removed or put in.
        """
        expected, previous = 0, GENESIS
        query = sa.select(_LEASES.c.seq, _LEASES.c.head).where(_LEASES.c.pipeline == self.pipeline)
        with self._engine.connect() as connection:
            # Read first: a writer may add to the journal while it is walked.
            head = connection.execute(query).first()
        while batch := self.read(after=expected, limit=1000):
            for event in batch:
                expected += 1
                if event.seq != expected:
                    raise TamperedError(self.pipeline, expected, f"is missing; event {event.seq} follows")
                if event.previous != previous:
                    raise TamperedError(self.pipeline, event.seq, "does not follow from its predecessor")
                entry = Entry(event.kind, event.data)
                if self._chain(event.seq, event.epoch, event.at, entry, previous).hash != event.hash:
                    raise TamperedError(self.pipeline, event.seq, "was altered: its hash does not fit")
                if head is not None and event.seq == head.seq and event.hash != head.head:
                    raise TamperedError(self.pipeline, event.seq, "is not the event that was written there")
                previous = event.hash
        if head is not None and expected < head.seq:
            raise TamperedError(self.pipeline, expected + 1, f"is missing; {head.seq} events were written")
        return expected

    def save_snapshot(self, epoch: int, seq: int, state: Json) -> None:
        """Keep a fold of the first `seq` events in place of the older one.

        Raises:
            FencedError: if a newer epoch exists.
        """
        with self._transaction() as connection:
            current = self._epoch(connection)
            if current != epoch:
                raise FencedError(self.pipeline, epoch, current)
            digest = self._hash_at(connection, seq)
            connection.execute(sa.delete(_SNAPSHOTS).where(_SNAPSHOTS.c.pipeline == self.pipeline))
            connection.execute(
                sa.insert(_SNAPSHOTS).values(
                    pipeline=self.pipeline,
                    seq=seq,
                    hash=digest,
                    state=canonical(state),
                    digest=sha256_of(state),
                )
            )

    def snapshot(self) -> Snapshot | None:
        """The newest snapshot whose own hash fits and that belongs to this chain, else None."""
        query = sa.select(_SNAPSHOTS).where(_SNAPSHOTS.c.pipeline == self.pipeline)
        with self._engine.connect() as connection:
            row = connection.execute(query).first()
            if row is None or self._hash_at(connection, row.seq) != row.hash:
                return None
        state = json.loads(row.state)
        return Snapshot(row.seq, state) if sha256_of(state) == row.digest else None

    def close(self) -> None:
        """Give the database's connections back."""
        self._engine.dispose()

    # --- inside a transaction ---

    @contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        writer = self._engine.connect().execution_options(**{_WRITES: True})
        with writer as connection, connection.begin():
            yield connection

    def _lease(self) -> sa.Select[Any]:
        return sa.select(_LEASES.c.epoch).where(_LEASES.c.pipeline == self.pipeline)

    def _epoch(self, connection: sa.Connection) -> int:
        """The newest epoch; nobody may raise it until this transaction ends."""
        return int(connection.execute(self._lease().with_for_update()).scalar() or 0)

    def _known(self, connection: sa.Connection, key: str, request: Json) -> Json | None:
        query = sa.select(_OPERATIONS).where(
            _OPERATIONS.c.pipeline == self.pipeline, _OPERATIONS.c.key == key
        )
        row = connection.execute(query).first()
        if row is None:
            return None
        if row.request != sha256_of(request):
            raise KeyReusedError(key)
        result: Json = json.loads(row.result)
        return result

    def _head(self, connection: sa.Connection) -> tuple[int, str]:
        query = (
            sa.select(_EVENTS.c.seq, _EVENTS.c.hash)
            .where(_EVENTS.c.pipeline == self.pipeline)
            .order_by(_EVENTS.c.seq.desc())
            .limit(1)
        )
        row = connection.execute(query).first()
        return (row.seq, row.hash) if row is not None else (0, GENESIS)

    def _hash_at(self, connection: sa.Connection, seq: int) -> str:
        if seq == 0:
            return GENESIS
        query = sa.select(_EVENTS.c.hash).where(_EVENTS.c.pipeline == self.pipeline, _EVENTS.c.seq == seq)
        return str(connection.execute(query).scalar() or "")

    def _chain(self, seq: int, epoch: int, at: float, entry: Entry, previous: str) -> Event:
        body = [self.pipeline, seq, epoch, at, entry.kind, entry.data, previous]
        return Event(seq, epoch, at, entry.kind, entry.data, previous, sha256_of(body))

    def _row(self, event: Event) -> dict[str, Any]:
        return {
            "pipeline": self.pipeline,
            "seq": event.seq,
            "epoch": event.epoch,
            "at": event.at,
            "kind": event.kind,
            "data": canonical(event.data),
            "previous": event.previous,
            "hash": event.hash,
        }


def _event(row: Any) -> Event:
    try:
        data = json.loads(row.data)
    except json.JSONDecodeError:
        data = {"unreadable": row.data}
    return Event(row.seq, row.epoch, row.at, row.kind, data, row.previous, row.hash)


def _engine(url: str) -> sa.Engine:
    if not url.startswith("sqlite"):
        return sa.create_engine(url, pool_pre_ping=True)
    file = sa.make_url(url).database
    if file and file != ":memory:":
        Path(file).parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(url, connect_args={"timeout": 30, "check_same_thread": False})

    @sa.event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # SQLAlchemy's begin event opens transactions, below
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.close()

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        # A deferred transaction that upgrades fails at once, whatever the busy timeout says; one that
        # only reads must not wait for a writer.
        writes = connection.get_execution_options().get(_WRITES, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine
