import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa

from ctrain.controller.journal import Entry, Journal, Operation
from ctrain.errors import FencedError, KeyReusedError, TamperedError

POSTGRES = os.environ.get("CTRAIN_TEST_POSTGRES", "")
"""URL of an empty PostgreSQL database; without it the tests run on SQLite alone."""


@pytest.fixture(params=["sqlite", "postgresql"] if POSTGRES else ["sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'journal.db'}"
        return
    yield POSTGRES
    engine = sa.create_engine(POSTGRES)
    with engine.begin() as connection:
        for table in ("event", "lease", "operation", "snapshot"):
            connection.exec_driver_sql(f"drop table {table}")
    engine.dispose()


def run(url: str, statement: str) -> None:
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql(statement)
    engine.dispose()


def entries(count: int) -> list[Entry]:
    return [Entry("alert", {"alert": "test", "text": f"é{number}"}) for number in range(count)]


def test_events_come_back_in_order_and_verify(url: str) -> None:
    journal = Journal(url, "p")
    epoch = journal.acquire("one")
    written = journal.append(epoch, entries(3), at=1.5)
    assert journal.read() == written
    assert [event.seq for event in Journal(url, "p").read(after=1)] == [2, 3]
    assert journal.verify() == 3


def test_an_older_writer_is_fenced_and_writes_nothing(url: str) -> None:
    old, new = Journal(url, "p"), Journal(url, "p")
    first = old.acquire("old")
    second = new.acquire("new")
    assert second == first + 1
    with pytest.raises(FencedError):
        old.append(first, entries(1), at=1.0)
    with pytest.raises(FencedError):
        old.save_snapshot(first, 0, {})
    assert new.read() == []


def test_pipelines_in_one_database_do_not_see_each_other(url: str) -> None:
    one, two = Journal(url, "one"), Journal(url, "two")
    one.append(one.acquire("x"), entries(2), at=1.0)
    assert two.acquire("y") == 1
    assert two.read() == []


def test_an_operation_has_its_effect_once(url: str) -> None:
    journal = Journal(url, "p")
    epoch = journal.acquire("one")
    operation = Operation("key", {"verb": "promote"}, {"ok": True})
    assert len(journal.append(epoch, entries(1), 1.0, operation)) == 1
    assert journal.append(epoch, entries(1), 2.0, operation) == []
    assert journal.result_of("key", {"verb": "promote"}) == {"ok": True}
    assert journal.result_of("other", {"verb": "promote"}) is None
    with pytest.raises(KeyReusedError):
        journal.result_of("key", {"verb": "abort"})


@pytest.mark.parametrize(
    ("edit", "seq"),
    [
        ('update event set data = \'{"alert":"x","text":"y"}\' where seq = 2', 2),
        ("update event set at = at + 1 where seq = 3", 3),
        ("update event set data = 'no json' where seq = 2", 2),
        ("delete from event where seq = 2", 2),
        ("update event set previous = hash where seq = 4", 4),
    ],
)
def test_verify_names_the_first_altered_event(url: str, edit: str, seq: int) -> None:
    journal = Journal(url, "p")
    journal.append(journal.acquire("one"), entries(5), at=1.0)
    run(url, edit)
    with pytest.raises(TamperedError) as caught:
        journal.verify()
    assert caught.value.seq == seq


def test_a_snapshot_counts_only_while_it_fits_the_chain(url: str) -> None:
    journal = Journal(url, "p")
    epoch = journal.acquire("one")
    journal.append(epoch, entries(3), at=1.0)
    journal.save_snapshot(epoch, 2, {"champion": "m"})
    found = journal.snapshot()
    assert found is not None
    assert (found.seq, found.state) == (2, {"champion": "m"})
    run(url, "update snapshot set state = '{}'")
    assert journal.snapshot() is None


def test_every_writer_that_acquires_gets_an_epoch_of_its_own(url: str) -> None:
    with ThreadPoolExecutor(6) as pool:
        epochs = list(pool.map(lambda number: Journal(url, "fresh").acquire(str(number)), range(12)))
    assert sorted(epochs) == list(range(1, 13))
