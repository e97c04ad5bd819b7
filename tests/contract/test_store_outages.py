"""A Postgres that is there, and not well: what the store says of it, and that it notices when there is a well one."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg2
import pytest
import stack
from crooked_wire import Wire, wire_to
from sqlalchemy.engine import make_url
from system import until

from batchline.errors import StoreUnavailableError
from batchline.store import postgres
from batchline.store.postgres import Database, Transaction


@pytest.fixture
def wire(database_url: str) -> Iterator[Wire]:
    port = make_url(database_url).port
    assert port
    with wire_to(port) as wire:
        yield wire


def through(wire: Wire, database_url: str) -> str:
    return make_url(database_url).set(port=wire.port).render_as_string(hide_password=False)


def test_who_may_not_write_tries_again_later_and_elsewhere(database_url: str) -> None:
    """A primary that became a standby, or was set to read only: unavailable and no bug. Its connections are given up,
    so that with several hosts in the URL the next one is made to the new primary."""
    db = Database(database_url, connections=1)
    db.run("CREATE TABLE t (n int)")
    for write in (lambda: db.run("INSERT INTO t VALUES (1)"), lambda: db.transact(insert)):
        db.run("SET default_transaction_read_only = on")
        with pytest.raises(StoreUnavailableError):
            write()
        write()
    assert db.run("SELECT count(*) FROM t") == [(2,)]
    db.close()


def insert(transaction: Transaction) -> None:
    transaction.run("INSERT INTO t VALUES (1)")


def test_a_transaction_that_was_ended_in_a_pause_is_done_again(database_url: str) -> None:
    """A process that stood still for longer than Postgres lets a transaction idle goes on with a new connection."""
    db = Database(database_url, connections=1)
    db.run("CREATE TABLE t (n int)")
    tries: list[int] = []

    def work(transaction: Transaction) -> None:
        transaction.run("INSERT INTO t VALUES (1)")
        if not tries:
            transaction.run("SET idle_in_transaction_session_timeout = 1")
            pid = transaction.run("SELECT pg_backend_pid()")[0][0]
            alive = "SELECT 1 FROM pg_stat_activity WHERE pid = %s"
            until(lambda: not stack.query(database_url, alive, [pid]), within_s=20, what="it is ended")
        tries.append(1)
        transaction.run("INSERT INTO t VALUES (2)")

    db.transact(work)
    assert db.run("SELECT n FROM t ORDER BY n") == [(1,), (2,)]
    db.close()


def test_a_connection_that_leads_nowhere_is_cut(database_url: str, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stays open and takes what is sent, as with a server or a proxy that hangs: the wait has an end, and what may
    be repeated is, on a new connection."""
    monkeypatch.setattr(postgres, "_GRACE_S", 0.5)
    db = Database(through(wire, database_url), connections=2, statement_timeout_s=0.5)
    db.run("SELECT 1")
    wire.lose()
    assert db.run("SELECT 2") == [(2,)]
    wire.lose()
    with pytest.raises(StoreUnavailableError):
        db.run("SELECT 3", repeat=False)
    db.run("CREATE TABLE t (n int)")
    lost: list[None] = []

    def work(transaction: Transaction) -> None:
        insert(transaction)
        if not lost:
            lost.append(wire.lose())

    db.transact(work)
    assert db.run("SELECT count(*) FROM t") == [(1,)]
    db.close()


def test_a_connection_that_cannot_be_had_is_tried_once(database_url: str, wire: Wire) -> None:
    """Each try may take seconds, and whoever waits holds a thread of the worker or of the API."""
    db = Database(through(wire, database_url), connections=1)
    wire.refuses = True
    with pytest.raises(StoreUnavailableError):
        db.run("SELECT 1")
    assert wire.refused == 1
    wire.refuses = False
    db.run("SELECT 1")
    wire.cut()
    assert db.run("SELECT 2") == [(2,)]
    db.close()


def test_a_table_that_is_missing_is_no_bug(database_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """The schema is being migrated, or restored, or was forgotten: unavailable, and the log says what to do, once."""
    db = Database(database_url, connections=1)
    db.run("ALTER TABLE jobs RENAME TO jobs_")
    for statement in ("SELECT FROM jobs", "SELECT nix FROM models", "SELECT FROM jobs"):
        with pytest.raises(StoreUnavailableError):
            db.run(statement)
    with pytest.raises(StoreUnavailableError):
        db.transact(lambda transaction: transaction.run("SELECT FROM jobs"))
    assert ["batchline migrate" in r.message for r in caplog.records] == [True]
    assert "jobs" in caplog.records[0].__dict__["error"]
    db.run("ALTER TABLE jobs_ RENAME TO jobs")
    assert db.run("SELECT count(*) FROM jobs") == [(0,)]
    db.close()


def test_a_table_that_somebody_else_meddles_with_is_no_bug(database_url: str) -> None:
    """Rights that were taken away, and what a rebuilt table answers: unavailable, and the connection is kept."""
    db = Database(database_url, connections=1)
    pid = db.run("SELECT pg_backend_pid()")
    db.run("SET ROLE pg_monitor")
    with pytest.raises(StoreUnavailableError):
        db.run("SELECT FROM jobs")
    with pytest.raises(StoreUnavailableError):
        db.transact(lambda transaction: transaction.run("SELECT FROM jobs"))
    db.run("RESET ROLE")
    with pytest.raises(StoreUnavailableError):
        db.run("DO $$ BEGIN RAISE EXCEPTION 'could not open relation' USING ERRCODE = 'XX000'; END $$")
    assert db.run("SELECT pg_backend_pid()") == pid
    db.close()


def test_an_answer_that_takes_its_time_is_waited_for(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is one of silence: each statement of a transaction has it anew, and the server's timeout is first."""
    monkeypatch.setattr(postgres, "_GRACE_S", 0.1)
    db = Database(database_url, connections=1, statement_timeout_s=0.6)
    db.transact(lambda transaction: [transaction.run("SELECT pg_sleep(0.4)") for _ in range(3)])
    with pytest.raises(StoreUnavailableError) as raised:
        db.run("SELECT pg_sleep(5)")
    assert isinstance(raised.value.__cause__, psycopg2.errors.QueryCanceled)
    db.close()
