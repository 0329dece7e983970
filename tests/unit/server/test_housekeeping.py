"""What is cleared away once a day, and a database that is new beside pictures that are not."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from history_pictures import add

from fewstep.server import housekeeping, orderfiles
from fewstep.server.database import Database
from fewstep.server.history import History
from fewstep.server.history_search import Search
from fewstep.server.jobstore import JobStore
from fewstep.server.keeper import Keeper
from fewstep.server.orders import Order
from fewstep.server.settings import ServerSettings

PICTURE = np.zeros((24, 32, 3), np.uint8)


class Clock:
    now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(tmp_path / "fewstep.db")
    yield opened
    opened.close()


def order(folder: Path, shade: int) -> dict[str, object]:
    return orderfiles.to_json(Order(settings={"prompt": "", "init_image": PICTURE + np.uint8(shade)}), folder)


def test_pictures_of_orders_stay_while_they_are_young_or_needed(tmp_path: Path, database: Database) -> None:
    inputs, jobs = tmp_path / "inputs", JobStore(database)
    waiting, ended, young, again = (order(inputs, shade) for shade in range(4))
    jobs.add(waiting, kind="generate", client="native")
    done = jobs.add(ended, kind="generate", client="native")[0]
    jobs.set_state(done.id, "done", result={})
    old = time.time() - 2 * housekeeping.INPUTS
    for one in (waiting, ended, again):
        os.utime(inputs / f"{one['settings']['init_image']['picture']}.png", (old, old))  # type: ignore[index]
    order(inputs, 3)  # the same picture is sent once more

    housekeeping.daily(ServerSettings(data=tmp_path), jobs, History(database, tmp_path / "images"))

    for one, there in ((waiting, True), (ended, False), (young, True), (again, True)):
        path = inputs / f"{one['settings']['init_image']['picture']}.png"  # type: ignore[index]
        assert path.exists() is there


def test_trash_and_jobs_go_when_they_are_old_and_not_before(tmp_path: Path, database: Database) -> None:
    clock = Clock()
    jobs, history = JobStore(database, clock=clock), History(database, tmp_path / "images", clock=clock)
    settings = ServerSettings(data=tmp_path)
    kept, thrown = (add(history, "a fox") for _ in range(2))
    history.trash([thrown.id], None)
    job = jobs.add({}, kind="generate", client="native")[0]
    jobs.set_state(job.id, "done", result={})

    clock.now += housekeeping.TRASH - 60
    housekeeping.daily(settings, jobs, history)
    assert history.get(thrown.id, None).trashed is not None
    clock.now += 120
    housekeeping.daily(settings, jobs, history)
    assert [one.id for one in history.search(Search()).images] == [kept.id]
    assert history.search(Search(trashed=True)).images == []
    assert [one.id for one in jobs.list(None)] == [job.id]
    clock.now += housekeeping.JOBS
    housekeeping.daily(settings, jobs, history)
    assert jobs.list(None) == [] and history.get(kept.id, None).id == kept.id


def test_what_fails_keeps_nothing_else_from_being_done(
    tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    draft = tmp_path / "models" / "draft-1"
    draft.mkdir(parents=True)
    os.utime(draft, (0, 0))
    history = History(database, tmp_path / "images")
    monkeypatch.setattr(history, "purge", lambda seconds: 1 / 0)
    housekeeping.daily(ServerSettings(data=tmp_path), JobStore(database), history)
    assert not draft.exists()


def test_a_new_database_learns_of_the_pictures_that_are_there(tmp_path: Path, database: Database) -> None:
    made = add(History(database, tmp_path / "images"), "a fox")
    other = Database(tmp_path / "new.db")
    try:
        history = History(other, tmp_path / "images")
        assert history.search(Search()).images == []
        housekeeping.find_pictures(history)
        assert [one.id for one in history.search(Search(text="fox")).images] == [made.id]
    finally:
        other.close()


def test_a_database_that_knows_pictures_is_left_alone(
    tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = History(database, tmp_path / "images")
    monkeypatch.setattr("fewstep.server.history_rebuild.rebuild", lambda *a, **k: pytest.fail("rebuilt"))
    housekeeping.find_pictures(history)  # there is nothing at all
    thrown = add(history, "a fox")
    history.trash([thrown.id], None)
    housekeeping.find_pictures(history)


def test_the_keeper_does_it_at_the_start_and_every_day(database: Database) -> None:
    started, days = threading.Event(), threading.Semaphore(0)
    keeper = Keeper(
        JobStore(database), dict, at_start=started.set, daily=days.release, look=0.01, beat=0.02, day=0.03
    )
    try:
        assert started.wait(10)
        for _ in range(3):
            assert days.acquire(timeout=10)
    finally:
        keeper.close()
