"""Reliability O09 to O12 and `kill -9`: whole servers in processes of their own, with gates and no sleeps."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil

sys.path.insert(0, str(Path(__file__).parent))

from processes import LONG, server, until

from fewstep.errors import EngineError

DRAW = {"prompt": "a red apple", "steps": 3, "width": 64, "height": 64, "seed": 7}
ORDER = {"prompt": "a red apple", "seed": 7, "num_inference_steps": 3, "student": "none"}


def together(clients: int, work: Callable[[int], Any]) -> list[threading.Thread]:
    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(clients)]
    for thread in threads:
        thread.start()
    return threads


def test_o10_o12_a_server_starts_and_drains(tmp_path: Path) -> None:
    answers: dict[int, httpx.Response] = {}
    with server(tmp_path, "--queue", "9", warm=False) as made:
        # O12: alive at once, ready when the first picture was drawn and not when the model is open.
        assert made.get("/healthz").status_code == 200
        until(lambda: made.get("/sdapi/v1/sd-models").status_code == 200, LONG)
        refused = made.get("/readyz")
        assert refused.status_code == 503 and refused.headers["Retry-After"]
        made.gate.with_suffix(".warm").touch()
        until(made.ready, LONG)

        def client(number: int) -> None:
            answers[number] = made.post("/sdapi/v1/txt2img", DRAW)

        threads = together(10, client)
        until(lambda: made.metric("fewstep_running") == 1 and made.metric("fewstep_queue_depth") == 9, LONG)
        processes = psutil.Process(made.process.pid).children(recursive=True)
        made.terminate()
        until(lambda: len(answers) == 9, LONG)  # waiting orders, while the running one is still held
        assert [one.status_code for one in answers.values()] == [503] * 9
        assert all(one.headers["Retry-After"] for one in answers.values())
        assert made.get("/healthz").status_code == 200
        assert made.get("/readyz").status_code == 503
        late = [
            made.post("/sdapi/v1/txt2img", DRAW), made.post("/api/v1/jobs", ORDER),
            made.post("/v1/images/generations", {"prompt": "a dog"}),
        ]  # fmt: skip
        assert [one.status_code for one in late] == [503] * 3
        made.gate.touch()
        for thread in threads:
            thread.join(LONG)
        finished = [one for one in answers.values() if one.status_code == 200]
        assert len(finished) == 1 and len(finished[0].json()["images"]) == 1
        assert made.ended() == 0, made.log
        assert made.calls == 1 + 3  # the warm-up, and the only picture
        assert not any(one.is_running() for one in processes)


def test_o10_a_second_signal_ends_it_within_two_seconds(tmp_path: Path) -> None:
    with server(tmp_path, "--grace", "3600") as made:
        job = made.post("/api/v1/jobs", ORDER).json()["id"]
        until(lambda: made.calls == 2, LONG)
        made.terminate()
        until(lambda: not made.ready(), LONG)
        assert made.process.poll() is None
        made.terminate()
        began = time.monotonic()
        assert made.ended() == 0, made.log
        assert time.monotonic() - began < 2.0 + 1.0  # a busy machine is given one more
        assert made.calls == 2
    with server(tmp_path) as again:  # the step was held and never ended: its job is not lost
        assert again.get(f"/api/v1/jobs/{job}").json()["state"] == "cut_off"


def test_o10_when_grace_is_over_it_stops_at_the_next_step(tmp_path: Path) -> None:
    with server(tmp_path, "--grace", "0") as made:
        job = made.post("/api/v1/jobs", ORDER).json()["id"]
        until(lambda: made.calls == 2, LONG)
        waits = made.post("/api/v1/jobs", ORDER).json()["id"]
        made.terminate()
        began = time.monotonic()
        assert made.ended() == 0, made.log
        assert time.monotonic() - began < 2.0 + 1.0
        assert made.calls == 2
    with server(tmp_path) as again:
        assert again.get(f"/api/v1/jobs/{job}").json()["state"] == "cut_off"
        told = again.get(f"/api/v1/jobs/{waits}").json()
        assert told["state"] == "cut_off" and "is stopping" in told["error"]
        assert again.post(f"/api/v1/jobs/{job}/requeue", {}).status_code == 202


def test_o11_a_server_that_is_loading_ends(tmp_path: Path) -> None:
    with server(tmp_path, warm=False) as made:
        until(lambda: made.gate.with_suffix(".calls").exists(), LONG)  # its model never comes to an end
        assert made.get("/readyz").status_code == 503
        made.terminate()
        began = time.monotonic()
        assert made.ended() == 0, made.log
        assert time.monotonic() - began < 2.0 + 1.0


def test_o09_a_server_whose_worker_is_broken_ends_with_a_status(tmp_path: Path) -> None:
    with server(tmp_path) as made:
        made.gate.touch()
        made.gate.with_suffix(".die").touch()
        statuses = set()
        end = time.monotonic() + LONG
        while made.process.poll() is None and time.monotonic() < end:
            try:
                statuses.add(made.post("/sdapi/v1/txt2img", DRAW).status_code)
            except httpx.TransportError:
                break  # it has ended
        assert made.ended() == EngineError.exit_code, made.log
        assert statuses == {503}
        assert "broke down too often" in made.log


def test_killed_with_twenty_jobs_it_loses_none_that_was_acknowledged(tmp_path: Path) -> None:
    acknowledged: list[str] = []
    with server(tmp_path, "--queue", "40") as made:
        first = made.post("/api/v1/jobs", ORDER).json()["id"]
        until(lambda: made.calls == 2, LONG)
        made.gate.touch()
        until(lambda: made.get(f"/api/v1/jobs/{first}").json()["state"] == "done", LONG)
        made.gate.unlink()
        enough = threading.Event()

        def client(number: int) -> None:
            for _ in range(10):
                try:
                    answer = made.post("/api/v1/jobs", {**ORDER, "seed": number})
                except httpx.TransportError:
                    return
                if answer.status_code != 202:
                    return
                acknowledged.append(answer.json()["id"])
                if len(acknowledged) >= 20:
                    enough.set()

        threads = together(4, client)
        assert enough.wait(LONG)
        made.process.send_signal(signal.SIGKILL)  # in the middle of a step, and of answers
        made.ended()
        for thread in threads:
            thread.join(LONG)
    assert 20 <= len(acknowledged) == len(set(acknowledged))
    with server(tmp_path, "--queue", "40") as again:
        again.gate.touch()
        assert "cut off" in again.log
        rows = {one["id"]: one for one in again.get("/api/v1/jobs", params={"limit": 200}).json()["jobs"]}
        assert rows[first]["state"] == "done"
        picture = rows[first]["result"]["images"][0]
        assert again.get(f"/api/v1/images/{picture}/file").status_code == 200
        assert {rows[job]["state"] for job in acknowledged} == {"cut_off"}
        for job in acknowledged:
            assert again.post(f"/api/v1/jobs/{job}/requeue", {}).status_code == 202
        until(lambda: again.metric('fewstep_orders_total{client="native",outcome="done"}') >= 20, LONG)
        until(
            lambda: all(again.get(f"/api/v1/jobs/{j}").json()["state"] == "done" for j in acknowledged), LONG
        )
        again.terminate()
        assert again.ended() == 0, again.log
