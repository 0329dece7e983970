"""Servers that end while a process works for them, and processes that do not end: nothing is left running."""

from __future__ import annotations

import contextlib
import io
import json
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "unit" / "server"))

import fake_child

from fewstep.server import childprocess
from fewstep.server.children import Children, runs_folder
from fewstep.server.database import Database
from fewstep.server.datasets import Datasets
from fewstep.server.history import History
from fewstep.server.jobstore import JobStore
from fewstep.server.schemas import work
from fewstep.server.settings import ServerSettings

HERE = Path(__file__).parent
SERVER = """
import sys, time
sys.path.insert(0, {here!r})
from pathlib import Path
import test_children
with test_children.serving(Path({data!r}), {program!r}) as (children, jobs):
    job_id = children.submit(test_children.body({trigger!r}))
    print(job_id, flush=True)
    time.sleep(600)
"""


@contextlib.contextmanager
def serving(data: Path, program: str = str(fake_child.__file__)) -> Iterator[tuple[Children, JobStore]]:
    """What of a server has to do with processes."""
    settings = ServerSettings(data=data, grace=1.0, models_dirs=(data / "own",))
    (data / "own" / "base").mkdir(parents=True, exist_ok=True)
    (data / "own" / "base" / "model_index.json").write_text("{}")
    childprocess.command = lambda config: [sys.executable, program, str(config)]  # type: ignore[assignment]
    database = Database(settings.database_url)
    jobs = JobStore(database)
    datasets = Datasets(data / "datasets", settings.limits)
    buffer = io.BytesIO()
    Image.new("RGB", (20, 20)).save(buffer, "PNG")
    datasets.add("", "dog", {"one": buffer.getvalue()}, {})
    children = Children(settings, jobs=jobs, history=History(database, settings.outputs), datasets=datasets)
    try:
        yield children, jobs
    finally:
        children.begin_drain()
        children.close()
        jobs.close()
        database.close()


def body(trigger: str) -> work.TrainBody:
    return work.TrainBody(kind="train", name="x", dataset="dog", model="base", trigger=trigger)


@pytest.fixture(autouse=True)
def _real_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(childprocess, "command", childprocess.command)  # put back at the end


def until(true: Callable[[], object], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come to be in time"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def killed_server(data: Path, program: str, trigger: str) -> tuple[Path, int]:
    """Kill a server with SIGKILL while a process works for it; the job's folder and the process."""
    text = SERVER.format(here=str(HERE), data=str(data), program=program, trigger=trigger)
    server = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(text)], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    try:
        folder = data / "runs" / server.stdout.readline().strip()
        until(lambda: (folder / "run" / "samples" / "0000000300.png").exists())
        pid = int(json.loads((folder / "process.json").read_text())["pid"])
        assert alive(pid)
    finally:
        server.kill()
        server.wait()
        server.stdout.close()
    return folder, pid


def test_kill_9_of_the_server_leaves_no_process_and_what_it_had_is_saved(tmp_path: Path) -> None:
    folder, pid = killed_server(tmp_path, str(HERE / "watched_child.py"), "slow")
    until(lambda: not alive(pid))
    assert (folder / "run" / "saved").exists()


def test_kill_9_of_the_server_with_a_process_that_does_not_stop(tmp_path: Path) -> None:
    """It watches, and is killed by its own watch."""
    _, pid = killed_server(tmp_path, str(HERE / "watched_child.py"), "deaf")
    until(lambda: not alive(pid))


def test_an_orphan_is_ended_before_its_job_is_marked(tmp_path: Path) -> None:
    """One that did not notice the end of its server, with a process of its own."""
    folder, pid = killed_server(tmp_path, str(fake_child.__file__), "parent")
    grandchild = int((folder / "run" / "grandchild").read_text())
    assert alive(pid) and alive(grandchild)
    with serving(tmp_path) as (children, jobs):
        job = jobs.get(folder.name, None)
        assert job.state == "running"
        assert childprocess.stop_orphans(runs_folder(children._settings), seconds=0.5) == 1
        until(lambda: not alive(pid) and not alive(grandchild))
        assert not (folder / "process.json").exists()
        assert [one.id for one in jobs.recover()] == [folder.name]
        job = jobs.get(folder.name, None)
        assert job.state == "cut_off"
        # and it can be done again, from where it was
        children.again(job)
        again = children.pending(job.id)
        assert again is not None
        (folder / "run" / "go").touch()
        assert again.future.result(60) == {"lora": "x"}


def test_a_process_of_a_server_that_lives_is_left_alone(tmp_path: Path) -> None:
    with serving(tmp_path) as (children, _):
        job_id = children.submit(body("slow"))
        folder = children.run(job_id).folder
        until(lambda: (folder / "run" / "samples").is_dir())
        assert childprocess.stop_orphans(runs_folder(children._settings), seconds=0.1) == 0
        pid = int(json.loads((folder / "process.json").read_text())["pid"])
        assert alive(pid)


def test_a_number_that_is_somebody_elses_by_now_is_left_alone(tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        folder = tmp_path / "runs" / "job"
        folder.mkdir(parents=True)
        started = psutil.Process(other.pid).create_time()
        gone = {"pid": 2**22 + 1, "started": 0.0}
        for note in (
            {"pid": other.pid, "started": started, "server": gone},  # another program
            {"pid": other.pid, "started": started - 100, "server": gone},  # an older process' number
            {"pid": "x"},
            [],
        ):
            (folder / "process.json").write_text(json.dumps(note))
            assert childprocess.stop_orphans(tmp_path / "runs", seconds=0.1) == 0
            assert alive(other.pid)
    finally:
        other.kill()
        other.wait()


def test_o10_a_stopping_server_lets_its_process_save_and_its_job_go_on_later(tmp_path: Path) -> None:
    with serving(tmp_path) as (children, _):
        running = children.submit(body("slow"))
        waiting = children.submit(body("fast").model_copy(update={"name": "y"}))
        work_folder = children.run(running).work
        until(lambda: (work_folder / "samples").is_dir())
        begun = time.monotonic()
        children.begin_drain()
        children.close()
        assert time.monotonic() - begun < 30
        assert (work_folder / "saved").exists()
    with serving(tmp_path) as (children, jobs):
        for job_id in (running, waiting):
            job = jobs.get(job_id, None)
            assert job.state == "cut_off", job.error
            assert job.error is not None and "done again" in job.error
        (work_folder / "go").touch()
        for job_id in (running, waiting):
            children.again(jobs.get(job_id, None))
        until(lambda: all(jobs.get(one, None).state == "done" for one in (running, waiting)))


def test_a_cancelled_job_is_cancelled_also_when_the_server_stops(tmp_path: Path) -> None:
    with serving(tmp_path) as (children, jobs):
        job_id = children.submit(body("slow"))
        until(lambda: (children.run(job_id).work / "samples").is_dir())
        pending = children.pending(job_id)
        assert pending is not None and pending.cancel()
        children.begin_drain()
        children.close()
        assert jobs.get(job_id, None).state == "cancelled"


def test_a_process_that_does_not_stop_is_killed_with_all_that_it_started(tmp_path: Path) -> None:
    with serving(tmp_path) as (children, jobs):
        job_id = children.submit(body("deaf"))
        folder = children.run(job_id).folder
        until(lambda: (folder / "run" / "samples" / "0000000300.png").exists())
        pid = int(json.loads((folder / "process.json").read_text())["pid"])
        pending = children.pending(job_id)
        assert pending is not None and pending.cancel()
        until(lambda: jobs.get(job_id, None).state == "cancelled")
        assert not alive(pid) and not (folder / "process.json").exists()


@pytest.mark.parametrize("trigger", ["slow", "parent"])
def test_a_process_that_is_killed_fails_its_job_and_the_next_one_runs(tmp_path: Path, trigger: str) -> None:
    with serving(tmp_path) as (children, jobs):
        job_id = children.submit(body(trigger))
        folder = children.run(job_id).folder
        until(lambda: (folder / "run" / "samples" / "0000000300.png").exists())
        psutil.Process(int(json.loads((folder / "process.json").read_text())["pid"])).send_signal(
            signal.SIGKILL
        )
        until(lambda: jobs.get(job_id, None).state == "failed")
        error = jobs.get(job_id, None).error
        assert error is not None and "killed by signal 9" in error
        if trigger == "parent":
            grandchild = int((folder / "run" / "grandchild").read_text())
            until(lambda: not alive(grandchild))
        second = children.submit(body("fast").model_copy(update={"name": "y"}))
        until(lambda: jobs.get(second, None).state == "done")
