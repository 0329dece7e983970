"""Reliability O15 to O17: connections that do nothing, pictures that take long, and five hundred requests."""

from __future__ import annotations

import base64
import contextlib
import gc
import io
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import psutil
import pytest
import uvicorn
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "api"))

from served import Served, serving, until

from fewstep.server.app import create_app
from fewstep.server.idle import Idlers
from fewstep.server.settings import Limits, ServerSettings
from fewstep.server.stopping import Server

LONG = 60.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("sockets"), limits=Limits(body_seconds=3600)) as served:
        yield served


def slowest(client: httpx.Client, times: int = 0, during: threading.Thread | None = None) -> float:
    """The 99th percentile of `/healthz`, in seconds; ``times`` requests, or as long as a thread lives."""
    found: list[float] = []
    while len(found) < times or (during is not None and during.is_alive()):
        began = time.perf_counter()
        assert client.get("/healthz").status_code == 200
        found.append(time.perf_counter() - began)
    return float(np.percentile(found, 99))


def bound(quiet: float) -> float:
    """200 ms; on a machine where a bare answer takes long by itself, five times that."""
    return max(0.2, 5 * quiet)


def test_o15_two_hundred_connections_that_do_nothing(server: Served) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with httpx.Client(base_url=server.url, timeout=LONG) as client, contextlib.ExitStack() as stack:
        quiet = slowest(client, 50)
        for number in range(200):
            one = stack.enter_context(socket.create_connection((host, int(port)), timeout=LONG))
            if number % 4 == 1:
                one.sendall(b"GET /healthz HTTP/1.1\r\nHost: loc")  # and the rest never comes
            elif number % 4 == 2:
                one.sendall(
                    b"POST /api/v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                    b"Content-Length: 1000\r\n\r\n{"
                )
            elif number % 4 == 3:
                one.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n" * 3)  # and nobody reads
        assert slowest(client, 50) < bound(quiet)
        with contextlib.closing(socket.create_connection((host, int(port)), timeout=LONG)):
            assert httpx.get(server.url + "/healthz", timeout=LONG).status_code == 200


def test_o15_silent_connections_are_closed() -> None:
    now = 0.0
    idlers = Idlers(30.0, lambda: now)
    closed: list[str] = []

    class Connection(SimpleNamespace):
        __hash__ = object.__hash__

    def connection(name: str, **given: object) -> Connection:
        return Connection(transport=SimpleNamespace(close=lambda: closed.append(name)), **given)

    all_of_them = [connection("silent", cycle=None), connection("asked", cycle=object()), connection("ws")]
    assert idlers.close(all_of_them) == 0
    now = 29.9
    all_of_them.append(connection("later", cycle=None))
    assert idlers.close(all_of_them) == 0
    now = 30.0
    assert idlers.close(all_of_them) == 1 and closed == ["silent"]


def test_o15_the_server_closes_them(tmp_path: Path) -> None:
    app = create_app(ServerSettings(data=tmp_path, engine="fake", grace=0.0))
    ports: list[int] = []
    config = uvicorn.Config(app, port=0, log_level="critical", lifespan="off")
    made = Server(config, app.state.services, ports.append)
    made._idlers = Idlers(0.05)
    thread = threading.Thread(target=made.run, daemon=True)
    thread.start()
    until(lambda: ports)
    with socket.create_connection(("127.0.0.1", ports[0]), timeout=LONG) as silent:
        silent.sendall(b"GET /healthz HTTP/1.1\r\n")
        assert silent.recv(1) == b""
    assert httpx.get(f"http://127.0.0.1:{ports[0]}/healthz", timeout=LONG).status_code == 200
    made.should_exit = True
    thread.join(LONG)
    assert not thread.is_alive()


def test_o16_health_while_a_large_picture_is_made(server: Served) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1024, 1024, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG", compress_level=1)
    body = {
        "image": base64.b64encode(buffer.getvalue()).decode(), "upscaler_1": "Lanczos",
        "upscaling_resize": 2.0,
    }  # fmt: skip
    sizes: list[tuple[int, int]] = []

    def client() -> None:
        answer = httpx.post(f"{server.url}/sdapi/v1/extra-single-image", json=body, timeout=LONG)
        assert answer.status_code == 200, answer.text[:500]
        sizes.append(Image.open(io.BytesIO(base64.b64decode(answer.json()["image"]))).size)

    with httpx.Client(base_url=server.url, timeout=LONG) as health:
        thread = threading.Thread(target=client)
        began = time.perf_counter()
        thread.start()
        gap = slowest(health, 1, during=thread)
        # Encoding takes most of the time; on the event loop it would be one long gap. A busy machine makes
        # both longer.
        assert gap < max(0.2, (time.perf_counter() - began) / 3)
    assert sizes == [(2048, 2048)]


@pytest.mark.soak
def test_o17_five_hundred_requests_leave_nothing(server: Served) -> None:
    process = psutil.Process()
    client = httpx.Client(base_url=server.url, timeout=LONG)
    draw = {"prompt": "a red apple", "steps": 1, "width": 64, "height": 64}
    ways: list[Callable[[], httpx.Response]] = [
        lambda: client.post("/sdapi/v1/txt2img", json=draw),
        lambda: client.post("/v1/images/generations", json={"prompt": "a dog", "size": "64x64"}),
        lambda: client.post("/sdapi/v1/txt2img", json=draw | {"steps": -1}),
        lambda: client.get("/api/v1/jobs"),
    ]
    seen: list[tuple[int, int, int]] = []
    for number in range(600):
        assert ways[number % len(ways)]().status_code in (200, 422)
        if number % 25 == 24:
            gc.collect()
            seen.append((process.memory_info().rss, process.num_threads(), process.num_fds()))
    client.close()
    warm = seen[4:]  # 100 requests fill caches and pools
    assert max(threads for _, threads, _ in warm) - min(threads for _, threads, _ in warm) <= 1
    assert max(files for _, _, files in warm) - min(files for _, _, files in warm) <= 2
    slope = float(np.polyfit(np.arange(len(warm)) * 25, [memory for memory, _, _ in warm], 1)[0])
    assert slope < 8192, f"{slope:.0f} bytes per request"
