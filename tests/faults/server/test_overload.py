"""Reliability O01 to O09, O18 and O20 through HTTP, on the whole application with the fake backend held."""

from __future__ import annotations

import base64
import contextlib
import gc
import http.client
import json
import re
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.sync.client import connect

sys.path.insert(0, str(Path(__file__).parents[2] / "api"))

from served import Served, serving, until

from fewstep.server.settings import Limits

LONG = 60.0
DRAW = {"prompt": "a red apple", "steps": 4, "width": 64, "height": 64, "seed": 7}
ORDER = {"prompt": "a red apple", "seed": 7, "num_inference_steps": 4, "student": "none"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("overload"), limits=Limits(queue=8), batch=1) as served:
        yield served


class Counted:
    """What the server's metrics say more than at first."""

    def __init__(self, server: Served) -> None:
        self._server, self._before = server, self._read(server)

    @staticmethod
    def _read(server: Served) -> dict[str, float]:
        text = httpx.get(f"{server.url}/metrics").text
        return {
            name: float(value) for name, value in re.findall(r"^(fewstep_\S+) (\S+)$", text, re.MULTILINE)
        }

    def __call__(self, name: str) -> float:
        return self._read(self._server).get(f"fewstep_{name}", 0.0) - self._before.get(f"fewstep_{name}", 0.0)

    def orders(self, client: str, outcome: str) -> float:
        return self(f'orders_total{{client="{client}",outcome="{outcome}"}}')

    def rejected(self, reason: str) -> float:
        return self(f'rejected_total{{reason="{reason}"}}')


@pytest.fixture
def counted(server: Served) -> Counted:
    return Counted(server)


def post(server: Served, path: str, body: dict[str, Any], **given: Any) -> httpx.Response:
    return httpx.post(server.url + path, json=body, timeout=LONG, **given)


def job(server: Served, job_id: str) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{server.url}/api/v1/jobs/{job_id}").json()
    return found


def order(server: Served, **given: Any) -> str:
    answer = post(server, "/api/v1/jobs", {**ORDER, **given})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def one_runs(server: Served) -> str:
    """An order that is held at its first step."""
    found = order(server)
    until(server.backend.waiting.is_set)
    return found


def in_threads(works: list[Callable[[], Any]]) -> list[threading.Thread]:
    threads = [threading.Thread(target=work, daemon=True) for work in works]
    for one in threads:
        one.start()
    return threads


def client_that_leaves(server: Served, path: str, body: dict[str, Any]) -> http.client.HTTPConnection:
    """A request whose answer nobody has read yet; ``close`` hangs up."""
    host = server.url.removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=LONG)
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    return connection


def test_o01_o18_fifty_clients_and_room_for_nine(server: Served, counted: Counted) -> None:
    answers: list[httpx.Response] = []
    barrier = threading.Barrier(50)

    def client() -> None:
        barrier.wait(LONG)
        answers.append(post(server, "/api/v1/jobs", ORDER))

    calls = server.backend.calls
    with server.held():
        for thread in in_threads([client] * 50):
            thread.join(LONG)
        until(server.backend.waiting.is_set)
        queue = server.services.generator.queue
        assert (queue.running, queue.depth) == (1, 8)
        taken = [one for one in answers if one.status_code == 202]
        refused = [one for one in answers if one.status_code == 429]
        assert (len(taken), len(refused)) == (9, 41)
        assert all(int(one.headers["Retry-After"]) >= 1 for one in refused)
        assert refused[0].json()["error"]["code"] == "queue_full"
        # How long a refusal takes the server, of which other processes of the machine take the rest.
        again = [post(server, "/sdapi/v1/txt2img", DRAW) for _ in range(10)]
        assert {one.status_code for one in again} == {429}
        assert min(float(one.headers["X-Process-Time"]) for one in again) < 0.1
        assert (counted("running"), counted("queue_depth")) == (1, 8)
    ids = {one.json()["id"] for one in taken}
    assert len(ids) == 9
    until(lambda: all(job(server, one)["state"] == "done" for one in ids))
    assert all(len(job(server, one)["result"]["images"]) == 1 for one in ids)
    assert server.backend.calls - calls == 9 * 4
    assert counted.orders("native", "done") == 9 == counted("images_total")
    assert counted.rejected("full") == 41 + 10
    assert counted.orders("native", "failed") == 0
    assert counted('phase_seconds_count{phase="denoise"}') == 9


def test_o02_o03_too_late_while_waiting_and_while_running(tmp_path: Path) -> None:
    with serving(tmp_path, limits=Limits(deadline=0.5), batch=1) as server:
        counted = Counted(server)
        answers: dict[str, httpx.Response] = {}

        def client(path: str, body: dict[str, Any], name: str) -> Callable[[], None]:
            return lambda: answers.update({name: post(server, path, body)})

        calls = server.backend.calls
        with server.held():
            running = in_threads([client("/sdapi/v1/txt2img", DRAW, "running")])
            until(server.backend.waiting.is_set)
            waiting = in_threads(
                [
                    client("/sdapi/v1/txt2img", DRAW, "waiting"),
                    client("/v1/images/generations", {"prompt": "a dog", "size": "64x64"}, "other"),
                ]
            )
            for thread in waiting:
                thread.join(LONG)  # told so while the step of the first is still held
            assert [answers[name].status_code for name in ("waiting", "other")] == [504, 504]
            assert "running" not in answers
        for thread in running:
            thread.join(LONG)
        assert answers["running"].status_code == 504
        assert server.backend.calls - calls == 1  # neither of the others began, the first stopped after one
        assert counted.orders("a1111", "expired") == 2
        assert counted.orders("openai", "expired") == 1


def test_o04_a_client_that_leaves_while_its_order_waits(server: Served, counted: Counted) -> None:
    calls = server.backend.calls
    with server.held():
        first = one_runs(server)
        leaving = [
            client_that_leaves(server, "/sdapi/v1/txt2img", DRAW),
            client_that_leaves(server, "/v1/images/generations", {"prompt": "a dog", "size": "64x64"}),
        ]
        until(lambda: server.services.generator.queue.depth == 2)
        for one in leaving:
            one.close()
        until(lambda: server.services.generator.queue.depth == 0)
        assert job(server, first)["state"] == "running"
    assert server.backend.calls - calls == 4  # of the first only
    assert counted.orders("a1111", "cancelled") == 1 == counted.orders("openai", "cancelled")


def test_o04_an_order_that_is_being_recorded_is_taken_back(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, go, plain = threading.Event(), threading.Event(), server.services.generator.submit
    taken: list[Any] = []

    def slow(*given: Any, **named: Any) -> Any:
        entered.set()
        assert go.wait(LONG)
        taken.append(plain(*given, **named))
        return taken[-1]

    with server.held():
        one_runs(server)
        before = server.backend.calls
        with monkeypatch.context() as patched:
            patched.setattr(server.services.generator, "submit", slow)
            leave = _socket(server)
            assert entered.wait(LONG)
            leave()
            until(lambda: all(one.left is not None for one in server.app.state.live_sessions._all.values()))
            go.set()
            until(lambda: taken and taken[0].task.done)
        assert taken[0].task.state == "cancelled"
    assert server.backend.calls - before == 3  # of the one that ran


def _plain(server: Served) -> Callable[[], None]:
    return client_that_leaves(server, "/sdapi/v1/txt2img", DRAW | {"steps": 5}).close


def _openai(server: Served) -> Callable[[], None]:
    return client_that_leaves(server, "/v1/images/generations", {"prompt": "a dog", "size": "64x64"}).close


def _stream(server: Served) -> Callable[[], None]:
    body = {"prompt": "a dog", "size": "64x64", "stream": True, "partial_images": 2}
    return client_that_leaves(server, "/v1/images/generations", body).close


def _socket(server: Served) -> Callable[[], None]:
    stack = contextlib.ExitStack()
    url = server.url.replace("http", "ws", 1) + "/api/v1/live"
    socket = stack.enter_context(connect(url, proxy=None))
    socket.recv(LONG)
    socket.send(json.dumps({"type": "draw", "id": 1, "prompt": "a dog", "student": "none", "final": True}))
    return stack.close


@pytest.mark.parametrize("come", [_plain, _openai, _stream, _socket])
def test_o05_a_client_that_leaves_while_it_is_drawn(
    server: Served, come: Callable[[Served], Callable[[], None]]
) -> None:
    with server.held():
        leave = come(server)
        until(server.backend.waiting.is_set)
        pending = server.services.generator.current()
        assert pending is not None
        before = server.backend.calls
        leave()
        until(pending.task.cancelled)
        held = weakref.ref(pending)
        del pending
    until(lambda: server.backend.calls <= before + 1)
    assert server.backend.calls <= before + 1

    def freed() -> bool:
        gc.collect()
        return held() is None

    until(freed)


def test_o05_a_watcher_that_leaves_stops_nothing(server: Served) -> None:
    with server.held():
        mine = one_runs(server)
        pending = server.services.generator.current()
        assert pending is not None
        with httpx.stream("GET", f"{server.url}/api/v1/jobs/{mine}/events", timeout=LONG) as answer:
            lines = answer.iter_lines()  # which hangs up when it is let go of
            next(lines)
            assert len(pending._listeners) == 1
        until(lambda: not pending._listeners)
        assert not pending.task.cancelled()
    until(lambda: job(server, mine)["state"] == "done")


def picture(server: Served) -> bytes:
    answer = post(server, "/sdapi/v1/txt2img", DRAW)
    assert answer.status_code == 200, answer.text
    return base64.b64decode(answer.json()["images"][0])


@pytest.mark.parametrize(
    ("error", "status"),
    [(MemoryError(), 503), (RuntimeError("/root/secret"), 500), (ValueError("shape"), 500)],
)
def test_o08_a_failure_in_the_middle_is_one_orders_own(
    server: Served, counted: Counted, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int
) -> None:
    before, adapters, plain = picture(server), server.backend.adapters, server.backend.denoise
    calls: list[int] = []

    def failing(*args: Any, **given: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise error
        return plain(*args, **given)

    with monkeypatch.context() as patched:
        patched.setattr(server.backend, "denoise", failing)
        for path, body in (
            ("/sdapi/v1/txt2img", DRAW),
            ("/v1/images/generations", {"prompt": "a dog", "size": "64x64"}),
        ):
            calls.clear()
            answer = post(server, path, body)
            assert answer.status_code == status, answer.text
            assert ("Retry-After" in answer.headers) is (status == 503)
            assert "/root" not in answer.text and "Traceback" not in answer.text
    assert picture(server) == before
    assert server.backend.adapters == adapters
    assert counted.orders("a1111", "failed") == 1 == counted.orders("openai", "failed")
    assert counted.orders("a1111", "done") == 2
    assert server.services.ready


def test_o08_numbers_that_are_none_fail_their_order_alone(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, plain = picture(server), server.backend.denoise

    with monkeypatch.context() as patched:
        patched.setattr(server.backend, "denoise", lambda *a, **k: plain(*a, **k) * float("nan"))
        assert post(server, "/sdapi/v1/txt2img", DRAW).status_code == 500
    assert picture(server) == before


def test_o09_a_worker_that_dies(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, answers = server.backend.denoise, []

    def dying(*args: Any, **given: Any) -> Any:
        plain(*args, **given)
        raise SystemExit("the worker dies")

    with monkeypatch.context() as patched, server.held() as gate:
        patched.setattr(server.backend, "denoise", dying)
        threads = in_threads([lambda: answers.append(post(server, "/sdapi/v1/txt2img", DRAW))] * 3)
        until(lambda: server.services.generator.queue.depth == 2)
        until(server.backend.waiting.is_set)
        patched.setattr(server.backend, "denoise", plain)
        gate.set()
        for thread in threads:
            thread.join(LONG)
    assert [one.status_code for one in answers] == [503] * 3
    assert all(one.headers["Retry-After"] for one in answers)
    until(lambda: httpx.get(f"{server.url}/readyz").status_code == 200)  # it was started again by itself
    assert picture(server)


def test_o18_what_clients_and_metrics_count(server: Served, counted: Counted) -> None:
    """Every way that an order can end, counted on both sides."""
    with server.held():
        running, waiting = one_runs(server), order(server)
        for one in (waiting, running):
            assert post(server, f"/api/v1/jobs/{one}/cancel", {}).status_code == 200
    until(lambda: job(server, running)["state"] == "cancelled" == job(server, waiting)["state"])
    assert post(server, "/api/v1/jobs", ORDER | {"steps": 3}).status_code == 422  # no such field
    assert post(server, "/api/v1/jobs", ORDER | {"num_inference_steps": 10**6}).status_code == 422
    assert post(server, "/sdapi/v1/txt2img", DRAW | {"batch_size": 2}).status_code == 200
    assert counted.orders("native", "cancelled") == 2
    assert counted.orders("a1111", "done") == 1
    assert counted("images_total") == 2
    assert counted("running") == 0 == counted("queue_depth")


def test_o20_the_clock_of_the_system_decides_nothing(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = time.time
    assert server.services.generator.queue._clock is time.monotonic
    with server.held() as gate:
        first = one_runs(server)
        waits = order(server, deadline=100.0)
        for jump in (86_400.0, -86_400.0):
            monkeypatch.setattr(time, "time", lambda jump=jump: plain() + jump)
            assert job(server, first)["state"] == "running" and job(server, waits)["state"] == "queued"
        gate.set()
        until(lambda: job(server, waits)["state"] == "done")
        monkeypatch.undo()
    assert job(server, first)["state"] == "done"
