"""Two servers on one database: signs of life, jobs cancelled elsewhere, servers that were taken for gone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlmodel import select

from fewstep.server import keeper, presence
from fewstep.server.database import Database
from fewstep.server.jobstore import JobStore
from fewstep.server.keeper import Keeper
from fewstep.server.tables import ServerRow


class Clock:
    now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(tmp_path / "fewstep.db")
    yield opened
    opened.close()


def added(store: JobStore) -> str:
    return store.add({"prompt": "a fox"}, kind="generate", client="native")[0].id


def test_what_is_cancelled_at_another_server_is_stopped_here(database: Database) -> None:
    here, there = JobStore(database), JobStore(database)
    stopped, other = added(here), added(here)
    called: list[str] = []
    reached = threading.Event()

    def cancel(job_id: str) -> None:
        called.append(job_id)
        reached.set()

    pending = {job_id: lambda job_id=job_id: cancel(job_id) for job_id in (stopped, other)}
    watching = Keeper(here, lambda: pending, look=0.01)
    try:
        assert not reached.wait(0.1)
        assert there.set_state(stopped, "cancelled", error="stopped by request")
        assert reached.wait(10)
    finally:
        watching.close()
    assert set(called) == {stopped}
    assert not here.set_state(stopped, "done", result={}), "a job that was cancelled stays cancelled"


def test_an_idle_server_lives_and_a_silent_one_is_found(database: Database) -> None:
    clock = Clock()
    idle = JobStore(database, clock=clock, host="one")
    silent = JobStore(database, clock=clock, host="two")
    lost, kept = added(silent), added(idle)
    other = JobStore(database, clock=clock, host="three")
    watching = Keeper(other, dict, look=60)
    clock.now += presence.LAPSE - 1
    idle.beat()
    clock.now += 2
    watching.beat()
    watching.close()
    assert other.get(lost, None).state == "cut_off"
    assert other.get(kept, None).state == "queued"


def test_a_server_that_was_taken_for_gone_signs_on_again(database: Database) -> None:
    clock = Clock()
    asleep = JobStore(database, clock=clock, host="one")
    other = JobStore(database, clock=clock, host="two")
    clock.now += presence.LAPSE + 1
    other.recover()
    with database.reading() as session:
        assert {row.id for row in session.exec(select(ServerRow))} == {other.id}
    job_id = added(asleep)
    assert other.recover() == []
    assert other.get(job_id, None).state == "queued", "new jobs of a server that came back are its own"
    asleep.close()
    asleep.beat()
    with database.reading() as session:
        assert {row.id for row in session.exec(select(ServerRow))} == {other.id}, "signed off for good"


def test_a_database_that_is_away_ends_no_keeper(database: Database) -> None:
    store = JobStore(database)
    asked = threading.Event()
    again = threading.Event()

    def pending() -> dict[str, object]:
        if asked.is_set():
            again.set()
        asked.set()
        raise RuntimeError("away")

    watching = Keeper(store, pending, look=0.01)  # type: ignore[arg-type]
    try:
        assert again.wait(10)
    finally:
        watching.close()


def test_beats_come_often_enough() -> None:
    assert keeper.BEAT == presence.BEAT and presence.BEAT * 3 < presence.LAPSE
