"""Jobs: on the disk before they are acknowledged, found after a crash, once per idempotency key."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fewstep.errors import ConflictError, DependencyError, NotFoundError, NotReady, OutputError, UsageError
from fewstep.server import database as databases
from fewstep.server import jobstore
from fewstep.server.database import Database
from fewstep.server.jobstore import JobStore, fingerprint
from fewstep.server.presence import BEAT, LAPSE
from fewstep.server.tables import VersionRow

ORDER = {"prompt": "a fox", "seed": 7}


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        self.now += 0.001
        return self.now


@pytest.fixture(params=["file", "memory"])
def database(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Database]:
    opened = Database("sqlite://" if request.param == "memory" else tmp_path / "data" / "fewstep.db")
    yield opened
    opened.close()


@pytest.fixture
def store(database: Database) -> JobStore:
    return JobStore(database, clock=Clock())


def add(store: JobStore, owner: str = "anna", **more: str) -> str:
    job, new = store.add(ORDER, kind="generate", client="native", owner=owner, **more)
    assert new
    return job.id


def states(store: JobStore) -> list[str]:
    return [job.state for job in reversed(store.list())]


def test_a_job_goes_from_queued_to_done(store: JobStore) -> None:
    job_id = add(store)
    assert len(job_id) == 32 and int(job_id, 16) > 0
    assert store.set_state(job_id, "running")
    assert store.set_state(job_id, "done", result={"images": ["a"]})
    job = store.get(job_id, "anna")
    assert (job.state, job.order, job.result, job.attempts) == ("done", ORDER, {"images": ["a"]}, 1)
    assert job.started is not None and job.finished is not None and job.created < job.started < job.finished


@pytest.mark.parametrize("last", ["done", "failed", "cancelled", "expired"])
def test_what_is_finished_stays(store: JobStore, last: str) -> None:
    job_id = add(store)
    assert store.set_state(job_id, last, error="wh\0y \ud800")
    for state in ("running", "done", "failed", "cancelled", "cut_off"):
        assert not store.set_state(job_id, state)
    assert (store.get(job_id, None).state, store.get(job_id, None).error) == (last, "why ?")


def test_states_and_ids_that_are_none(store: JobStore) -> None:
    with pytest.raises(UsageError, match="give one of cancelled, cut_off, done, expired, failed, running"):
        store.set_state(add(store), "finished")
    for job_id in ("0" * 32, "' OR 1=1 --", "a\0b", "\ud800"):
        for call in (store.set_state, store.get):
            with pytest.raises(NotFoundError):
                call(job_id, "done")


def test_h18_another_owners_job_is_as_unknown_as_none(store: JobStore) -> None:
    job_id = add(store, "anna")
    with pytest.raises(NotFoundError) as foreign:
        store.get(job_id, "bert")
    with pytest.raises(NotFoundError) as missing:
        store.get("0" * 32, "bert")
    assert str(foreign.value) == str(missing.value)
    with pytest.raises(NotFoundError):
        store.requeue(job_id, "bert")
    with pytest.raises(NotFoundError):
        store.list("bert", before=job_id)
    assert [*store.list("bert")] == []
    assert [job.id for job in store.list("anna")] == [job_id] == [job.id for job in store.list()]


def test_pages_hold_every_job_once_newest_first(store: JobStore) -> None:
    ids = [add(store) for _ in range(7)]
    store.set_state(ids[2], "failed")
    found: list[str] = []
    while page := store.list("anna", limit=3, before=found[-1] if found else None):
        found += [job.id for job in page]
    assert found == ids[::-1]
    assert [job.id for job in store.list(states={"failed"})] == [ids[2]]
    assert [*store.list(kind="train")] == []
    with pytest.raises(UsageError, match="limit is 0"):
        store.list(limit=0)


def test_the_same_key_and_order_are_the_same_job(store: JobStore) -> None:
    print_ = fingerprint({"prompt": "a fox", "n": 1})
    assert print_ == fingerprint({"n": 1, "prompt": "a fox"}) != fingerprint({"n": 2, "prompt": "a fox"})
    first = add(store, idempotency_key="k1", fingerprint=print_)
    again, new = store.add(
        ORDER, kind="generate", client="native", owner="anna", idempotency_key="k1", fingerprint=print_
    )
    assert (again.id, new) == (first, False)
    add(store, "bert", idempotency_key="k1", fingerprint=print_)  # keys are each owner's own
    for kind, body in (("generate", fingerprint({})), ("train", print_)):
        with pytest.raises(ConflictError, match="another request") as error:
            store.add(ORDER, kind=kind, client="x", owner="anna", idempotency_key="k1", fingerprint=body)
        assert error.value.http_status == 409
    for key in ("", "x" * 256, "a\nb"):
        with pytest.raises(UsageError, match="idempotency key of"):
            store.add(ORDER, kind="generate", client="x", owner="anna", idempotency_key=key)
    assert len(store.list()) == 2


def test_requests_with_one_key_at_the_same_moment_make_one_job(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All look before any adds: what decides is the constraint of the table."""
    looked = threading.Barrier(6)
    real = JobStore.find_idempotent
    first = threading.local()

    def find(self: JobStore, *args: str, **kwargs: str) -> object:
        found = real(self, *args, **kwargs)  # type: ignore[arg-type]
        if not hasattr(first, "done"):
            first.done = True
            looked.wait(20)
        return found

    monkeypatch.setattr(JobStore, "find_idempotent", find)
    made: list[tuple[str, bool]] = []

    def call() -> None:
        job, new = store.add(ORDER, kind="k", client="x", owner="a", idempotency_key="k", fingerprint="f")
        made.append((job.id, new))

    threads = [threading.Thread(target=call) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(made) == 6 and len({job for job, _ in made}) == 1
    assert sum(new for _, new in made) == 1


def test_a_closed_server_leaves_its_jobs_cut_off_and_another_takes_them(database: Database) -> None:
    old = JobStore(database, clock=Clock())
    ids = [add(old) for _ in range(3)]
    old.set_state(ids[0], "running")
    old.set_state(ids[1], "done")
    old.close()
    new = JobStore(database, clock=Clock())
    assert states(new) == ["cut_off", "done", "cut_off"]
    assert [*new.recover()] == []
    job = new.requeue(ids[0], "anna")
    assert (job.state, job.order, job.attempts, job.started, job.error) == ("queued", ORDER, 2, None, None)
    for busy in ids[:2]:
        with pytest.raises(ConflictError, match=r"is (queued|done)"):
            new.requeue(busy, "anna")
    assert new.set_state(ids[0], "running") and new.set_state(ids[0], "done")


def _orders_then_hangs(path: Path, ready: object) -> None:
    store = JobStore(Database(path))
    ids = [add(store) for _ in range(4)]
    store.set_state(ids[0], "done")
    store.set_state(ids[1], "running")
    ready.send(ids)  # type: ignore[attr-defined]
    signal.pause()


def test_kill_9_cuts_off_what_was_acknowledged_and_leaves_the_living_alone(tmp_path: Path) -> None:
    path = tmp_path / "fewstep.db"
    mine = JobStore(Database(path))
    own = add(mine)
    here, there = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=_orders_then_hangs, args=(path, there))
    child.start()
    assert here.poll(60)
    ids = here.recv()
    assert [*mine.recover()] == []  # it lives
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join(20)
    lost = mine.recover()
    assert [job.id for job in lost] == ids[1:]
    assert {job.id: job.state for job in mine.list()} == {
        own: "queued", ids[0]: "done", ids[1]: "cut_off", ids[2]: "cut_off", ids[3]: "cut_off",
    }  # fmt: skip
    assert [*mine.recover()] == []


def test_a_process_with_a_dead_servers_id_is_not_that_server(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = JobStore(database, clock=Clock())
    job_id = add(old)
    new = JobStore(database, clock=Clock())
    assert [*new.recover()] == []
    with database.writing() as session:
        row = session.get(jobstore.ServerRow, old.id)
        assert row is not None
        row.process_started -= 100
    assert [job.id for job in new.recover()] == [job_id]


def test_a_server_elsewhere_is_gone_when_it_is_silent(database: Database) -> None:
    clock = Clock()
    elsewhere = JobStore(database, clock=clock, host="other")
    here = JobStore(database, clock=clock, host="this")
    job_id = add(elsewhere)
    clock.now += LAPSE - 1
    assert [*here.recover()] == []
    clock.now += BEAT
    elsewhere.set_state(job_id, "running")  # a sign of life
    assert [*here.recover()] == []
    clock.now += LAPSE + 1
    assert [job.id for job in here.recover()] == [job_id]
    # It was slow and not gone: what it drew counts; what failed there does not.
    assert elsewhere.set_state(job_id, "done")
    assert here.get(job_id, None).state == "done"


def test_forget_deletes_what_finished_long_ago(database: Database) -> None:
    clock = Clock()
    store = JobStore(database, clock=clock)
    old, waiting = add(store, idempotency_key="k", fingerprint="f"), add(store)
    store.set_state(old, "done")
    clock.now += 100
    fresh = add(store)
    store.set_state(fresh, "done")
    assert store.forget(50) == 1
    assert {job.id for job in store.list()} == {waiting, fresh}
    add(store, idempotency_key="k", fingerprint="another")


def test_a_commit_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as a process can tell: the settings that decide it, on every connection."""
    database = Database(tmp_path / "a.db")
    for session in (database.reading, database.writing):
        with session() as one:
            read = {
                name: one.connection().exec_driver_sql(f"PRAGMA {name}").scalar()
                for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
            }
        assert read == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 10_000}


def test_two_that_read_and_then_write_take_turns(tmp_path: Path) -> None:
    """Without BEGIN IMMEDIATE the second fails at once with "database is locked"."""
    database = Database(tmp_path / "a.db")
    with database.writing() as session:
        session.add(VersionRow(number=-100))
    both = threading.Barrier(2)
    failures: list[Exception] = []

    def work() -> None:
        both.wait(10)
        try:
            for _ in range(25):
                with database.writing() as session:
                    count = len(session.connection().exec_driver_sql("SELECT * FROM schema_version").all())
                    session.add(VersionRow(number=-count))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert failures == []
    with database.reading() as session:
        assert len(session.connection().exec_driver_sql("SELECT * FROM schema_version").all()) == 52


def test_databases_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.db"
    newer = Database(path)
    with newer.writing() as session:
        session.add(VersionRow(number=databases.VERSION + 3))
        session.delete(session.get_one(VersionRow, databases.VERSION))
    with pytest.raises(UsageError, match="has version 4, and this fewstep knows versions up to 1: update"):
        Database(path)
    (tmp_path / "text.db").write_bytes(b"not a database at all, but long enough " * 200)
    with pytest.raises(OutputError, match=r"is broken or none .* fewstep history rebuild"):
        Database(tmp_path / "text.db")
    with pytest.raises(OutputError, match="cannot be written"):
        (tmp_path / "folder.db").mkdir()
        Database(tmp_path / "folder.db")
    for url in ("no url", "http//a", ""):
        with pytest.raises(UsageError, match="give one such as sqlite:///"):
            Database(url)
    with pytest.raises(UsageError, match="SQLAlchemy knows no oracel"):
        Database("oracel://anna:secret@host/x")
    monkeypatch.setitem(sys.modules, "psycopg2", None)
    with pytest.raises(DependencyError, match="psycopg2, which is not installed") as missing:
        Database("postgresql+psycopg2://anna:secret@host/x")
    assert "secret" not in str(missing.value)


def test_a_writer_that_does_not_let_go_is_not_waited_for_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(databases, "_BUSY_SECONDS", 0.05)
    store = JobStore(Database(tmp_path / "a.db"))
    other = sqlite3.connect(tmp_path / "a.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(NotReady, match="locked"):
        add(store)
    assert [*store.list()] == []  # readers do not wait
    other.execute("ROLLBACK")
    add(store)
    other.close()


def test_servers_that_start_at_once_make_one_database(tmp_path: Path) -> None:
    """Each with connections of its own, as processes would have them."""
    start = threading.Barrier(4)
    opened: list[Database] = []

    def open_() -> None:
        start.wait(10)
        opened.append(Database(tmp_path / "new" / "a.db"))

    threads = [threading.Thread(target=open_) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(opened) == 4
    with opened[0].reading() as session:
        assert len(session.connection().exec_driver_sql("SELECT * FROM schema_version").all()) == 1
