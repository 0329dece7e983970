"""Disk full, kills and crashes while pictures are kept: nothing half-written, nothing lost that was kept."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fewstep.errors import FewstepError, OutputError
from fewstep.server.database import Database
from fewstep.server.history import History
from fewstep.server.history_rebuild import rebuild
from fewstep.server.history_search import Search
from fewstep.server.jobstore import JobStore

RECORD: dict[str, Any] = {
    "fewstep": "0.1.0", "model": "m", "model_hash": "e0c5b3fbaf", "prompt": "a red apple",
    "num_inference_steps": 4, "guidance_scale": 1.0, "solver": "ddim", "seed": 3, "width": 64, "height": 64,
}  # fmt: skip
PIXELS = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
fork = multiprocessing.get_context("fork")


def opened(folder: Path) -> History:
    return History(Database(folder / "fewstep.db"), folder / "images")


def on_disk(history: History) -> list[str]:
    return sorted(path.name for path in history.root.rglob("*") if path.is_file())


def known(history: History) -> list[str]:
    return [one.id for one in history.search(Search(limit=1000)).images]


@pytest.mark.parametrize("primitive", ["write", "fsync", "replace"])
def test_o21_whichever_primitive_fails_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, primitive: str
) -> None:
    history = opened(tmp_path)
    kept = history.add(PIXELS, RECORD)
    real, state = getattr(os, primitive), {"count": 0, "fail_at": 10**9}

    def wrapped(*arguments: object) -> object:
        state["count"] += 1
        if state["count"] == state["fail_at"]:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments)

    monkeypatch.setattr(os, primitive, wrapped)
    second = history.add(PIXELS, RECORD)
    calls = state["count"]
    assert calls >= 1
    for k in range(1, calls + 1):
        state.update(count=0, fail_at=k)
        with pytest.raises(OutputError, match="No space left"):
            history.add(PIXELS, RECORD)
        assert set(known(history)) == {kept.id, second.id}
        # The last flush comes after the rename: then the picture is whole, and is removed all the same.
        assert on_disk(history) == sorted([f"{kept.id}.png", f"{second.id}.png"])
    state.update(count=0, fail_at=10**9)
    assert len(known(history)) == 2 and history.add(PIXELS, RECORD)


def test_o21_the_row_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk may also show in the database only."""
    history = opened(tmp_path)
    with history.database.reading() as session:
        session.connection().exec_driver_sql("PRAGMA max_page_count=1")
    with pytest.raises(OutputError, match="cannot be written"):
        for number in range(200):
            history.add(PIXELS, {**RECORD, "prompt": f"{number} " * 500})
    assert sorted(f"{one}.png" for one in known(history)) == on_disk(history)


def _full_disk(folder: Path, answer: Any) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (6_000, 6_000))  # a picture has 12 kB
    history = opened(folder)
    try:
        history.add(PIXELS, RECORD)
        answer.send("kept")
    except FewstepError as error:
        answer.send((type(error).__name__, on_disk(history)))
    os._exit(0)


def test_o21_a_child_whose_files_may_not_grow(tmp_path: Path) -> None:
    history = opened(tmp_path)
    here, there = fork.Pipe()
    child = fork.Process(target=_full_disk, args=(tmp_path, there))
    child.start()
    assert here.poll(60)
    assert here.recv() == ("OutputError", [])
    child.join(20)
    assert on_disk(history) == [] == known(history)
    assert history.add(PIXELS, RECORD).id in known(history)


def _keep_without_end(folder: Path, answer: Any) -> None:
    history = opened(folder)
    jobs = JobStore(history.database)
    while True:
        job, _ = jobs.add(RECORD, kind="generate", client="native")
        jobs.set_state(job.id, "running")
        kept = history.add(PIXELS, RECORD, job_id=job.id)
        jobs.set_state(job.id, "done", result={"images": [kept.id]})
        answer.send((job.id, kept.id))


def test_kills_lose_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    chance = random.Random(0)
    told: list[tuple[str, str]] = []
    opened(tmp_path).database.close()
    for _ in range(6):
        here, there = fork.Pipe()
        child = fork.Process(target=_keep_without_end, args=(tmp_path, there))
        child.start()
        assert here.poll(60)
        time.sleep(chance.uniform(0, 0.1))
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join(20)
        there.close()
        try:
            while here.poll():
                told.append(here.recv())
        except EOFError:
            pass
    assert len(told) >= 6
    history = opened(tmp_path)
    jobs = JobStore(history.database)
    cut_off = {job.id for job in jobs.recover()}
    for job_id, image_id in told:
        job = jobs.get(job_id, None)
        assert (job.state, job.result) == ("done", {"images": [image_id]})
        assert history.get(image_id, None).job_id == job_id and history.open(image_id, None)
    unfinished = {job.id for job in jobs.list(limit=1000) if job.state != "done"}
    assert unfinished == cut_off and len(cut_off) <= 6
    found = rebuild(history, only_new=True)
    assert (found.removed, found.broken, found.foreign) == (0, 0, 0) and found.added <= 6
    assert sorted(f"{one}.png" for one in known(history)) == on_disk(history)


def _crash(step: int, real: Callable[..., Any]) -> Callable[..., Any]:
    count = [0]

    def wrapped(*arguments: Any, **more: Any) -> Any:
        count[0] += 1
        if count[0] == step:
            os._exit(9)
        return real(*arguments, **more)

    return wrapped


def _throw_away_and_crash(folder: Path, image_id: str, step: int) -> None:
    os.replace = _crash(step, os.replace)
    os.unlink = _crash(step, os.unlink)
    Path.unlink = _crash(step, Path.unlink)  # type: ignore[method-assign]
    opened(folder).trash([image_id], None)
    os._exit(0)


def test_a_crash_while_throwing_away_leaves_a_picture_that_is_found_again(tmp_path: Path) -> None:
    """After every step: a rebuild knows the picture, with its tags unless it was between two places."""
    ended = 0
    for step in range(1, 5):
        folder = tmp_path / str(step)
        history = opened(folder)
        kept = history.add(PIXELS, RECORD)
        history.tag(kept.id, None, add=["blue"])
        history.database.close()
        child = fork.Process(target=_throw_away_and_crash, args=(folder, kept.id, step))
        child.start()
        child.join(60)
        ended += child.exitcode == 0
        history = opened(folder)
        rebuild(history)
        found = history.get(kept.id, None)
        assert found.tags == ("blue",) and history.open(kept.id, None)
        if found.trashed is not None:
            history.restore([kept.id], None)
        assert known(history) == [kept.id] and history.get(kept.id, None).tags == ("blue",)
    assert ended >= 1
