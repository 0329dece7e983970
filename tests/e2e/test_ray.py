"""Two replicas of a Ray Serve deployment on this machine, one killed under load; then a stop by SIGTERM."""

from __future__ import annotations

import collections
import contextlib
import importlib.util
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None, reason='ray is not installed: pip install "fewstep[ray]"'
    ),
]

PICTURE = {"prompt": "a dog", "steps": 5, "width": 64, "height": 64, "save_images": False}
"""Of the fake backend's own size, so that nothing is upscaled."""
ORDER = {"prompt": "a red apple", "num_inference_steps": 60, "n": 4, "save": False}
"""The fake backend needs some tenths of a second for it."""


@dataclass
class Cluster:
    url: str
    data: Path
    process: subprocess.Popen[bytes]

    def rows(self, query: str, *values: object) -> list[tuple[object, ...]]:
        with contextlib.closing(sqlite3.connect(self.data / "fewstep.db", timeout=30)) as database:
            return database.execute(query, values).fetchall()

    def servers(self) -> dict[str, int]:
        """Ids and process ids of the replicas that are signed on and whose processes live."""
        rows = self.rows("SELECT id, process FROM servers")
        return {str(row[0]): int(str(row[1])) for row in rows if psutil.pid_exists(int(str(row[1])))}


@dataclass
class Seen:
    """What clients were told."""

    taken: list[str] = field(default_factory=list)
    drawn: list[float] = field(default_factory=list)
    """When pictures were received."""
    statuses: collections.Counter[int] = field(default_factory=collections.Counter)


def until(true: Callable[[], object], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come to be in time"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("ray")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "fewstep", "serve", "--ray", "--replicas", "2", "--engine", "fake", "--threads",
        "1", "--port", str(port), "--data", str(folder / "data"), "--grace", "2",
    ]  # fmt: skip
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            env=environment | {"OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
    found = Cluster(f"http://127.0.0.1:{port}", folder / "data", process)

    def ready() -> bool:
        assert process.poll() is None, (folder / "log").read_text()[-3000:]
        with contextlib.suppress(httpx.TransportError, sqlite3.Error):
            answer = httpx.get(f"{found.url}/readyz", timeout=5)
            return answer.status_code == 200 and len(found.servers()) == 2
        return False

    try:
        until(ready, 420)
        yield found
    finally:
        with contextlib.suppress(ProcessLookupError):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(60)
            os.killpg(process.pid, signal.SIGKILL)


def order_jobs(url: str, seen: Seen, stop: threading.Event) -> None:
    with httpx.Client(base_url=url, timeout=60) as http:
        while not stop.is_set():
            with contextlib.suppress(httpx.TransportError):
                answer = http.post("/api/v1/jobs", json=ORDER)
                seen.statuses[answer.status_code] += 1
                if answer.status_code == 202:
                    seen.taken.append(answer.json()["id"])
                elif answer.status_code == 429:
                    assert answer.json()["error"]["code"] == "queue_full", "the replica's own words"
                    stop.wait(min(2.0, float(answer.headers["Retry-After"])))


def draw(url: str, seen: Seen, stop: threading.Event) -> None:
    with httpx.Client(base_url=url, timeout=60) as http:
        while not stop.is_set():
            with contextlib.suppress(httpx.TransportError):
                answer = http.post("/sdapi/v1/txt2img", json=PICTURE)
                seen.statuses[answer.status_code] += 1
                if answer.status_code == 200:
                    assert len(answer.json()["images"]) == 1
                    seen.drawn.append(time.monotonic())
                else:
                    stop.wait(0.2)


def test_one_replica_is_killed_under_load(cluster: Cluster) -> None:
    seen, stop = Seen(), threading.Event()
    clients = [
        threading.Thread(target=work, args=(cluster.url, seen, stop), daemon=True)
        for work in (order_jobs, order_jobs, draw, draw)
    ]
    for client in clients:
        client.start()
    try:
        unfinished = "SELECT count(*) FROM jobs WHERE kind = 'generate' AND client = 'native' AND server = ? "
        unfinished += "AND state IN ('queued', 'running')"

        def busiest() -> str | None:
            counts = {one: int(str(cluster.rows(unfinished, one)[0][0])) for one in cluster.servers()}
            best = max(counts, key=lambda one: counts[one])
            return best if counts[best] >= 3 and len(seen.taken) >= 12 and seen.drawn else None

        until(busiest, 90)
        victim = busiest() or max(cluster.servers())
        os.kill(cluster.servers()[victim], signal.SIGKILL)
        killed = time.monotonic()
        until(lambda: [when for when in seen.drawn if when > killed], 90)
        time.sleep(2)
    finally:
        stop.set()
    for client in clients:
        client.join(60)
    assert set(seen.statuses) <= {200, 202, 429, 500, 503}, seen.statuses

    # Another replica takes its place, and marks what it left. Nothing that was acknowledged is missing.
    until(lambda: len(cluster.servers()) == 2 and victim not in cluster.servers(), 120)
    states: dict[str, tuple[str, str]] = {}

    def ended() -> bool:
        states.update(
            {str(i): (str(s), str(of)) for i, s, of in cluster.rows("SELECT id, state, server FROM jobs")}
        )
        return all(state not in ("queued", "running") for state, _ in states.values())

    until(ended, 90)
    assert set(seen.taken) <= set(states)
    assert {state for state, _ in states.values()} <= {"done", "cut_off", "failed"}
    lost = [one for one in seen.taken if states[one][0] == "cut_off"]
    assert lost and {states[one][1] for one in lost} == {victim}
    assert all(states[one][0] == "done" for one in seen.taken if one not in lost)

    # What was cut off is done again by whichever replica is asked.
    with httpx.Client(base_url=cluster.url, timeout=60) as http:
        for job_id in lost:
            until(lambda job_id=job_id: http.post(f"/api/v1/jobs/{job_id}/requeue").status_code == 202, 60)  # type: ignore[misc]
        for job_id in lost:
            until(lambda job_id=job_id: http.get(f"/api/v1/jobs/{job_id}").json()["state"] == "done", 60)  # type: ignore[misc]


def test_a_stop_under_load_leaves_nothing_behind(cluster: Cluster) -> None:
    taken = [httpx.post(f"{cluster.url}/api/v1/jobs", json=ORDER, timeout=60).json()["id"] for _ in range(6)]
    family = psutil.Process(cluster.process.pid).children(recursive=True)
    cluster.process.send_signal(signal.SIGTERM)
    assert cluster.process.wait(60) == 0
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive, [one.name() for one in alive]
    assert cluster.rows("SELECT count(*) FROM servers") == [(0,)], "every replica signed off"
    states = {str(row[0]): row[1] for row in cluster.rows("SELECT id, state FROM jobs")}
    assert {states[one] for one in taken} <= {"done", "cut_off", "failed"}, "none is forgotten"
