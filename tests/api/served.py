"""A whole server on a port, with the fake backend, for tests with real clients."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from fewstep.engine.backends.fake import FakeBackend
from fewstep.engine.engine import Engine
from fewstep.errors import NotFoundError
from fewstep.server.app import create_app
from fewstep.server.services import Services
from fewstep.server.settings import ServerSettings


@dataclass
class Served:
    """A server that is ready."""

    url: str
    backend: FakeBackend
    """Whose gate is open."""
    services: Services
    app: Any

    @property
    def gate(self) -> threading.Event:
        """Closed, every denoiser call waits for it."""
        assert self.backend.gate is not None
        return self.backend.gate

    @contextlib.contextmanager
    def held(self) -> Iterator[threading.Event]:
        """The gate closed, and at the end open and the server idle."""
        self.gate.clear()
        try:
            yield self.gate
        finally:
            self.gate.set()
            until(self.idle)

    def idle(self) -> bool:
        """Whether nothing waits and nothing is drawn."""
        queue = self.services.generator.queue
        return not queue.depth and not queue.running and not self.services.generator.waiting()


@contextlib.contextmanager
def serving(
    data: Path, *, students: dict[str, tuple[int, ...]] | None = None, **given: Any
) -> Iterator[Served]:
    """Serve with the fake backend until the end of the block."""
    gate = threading.Event()
    gate.set()
    backend = FakeBackend(gate=gate, students={"two": (2,), "four": (4,)} if students is None else students)

    def opener(name: str | None) -> Engine:
        if name not in (None, "fake"):
            raise NotFoundError(f"model {name!r}: not found; there are: fake")
        return Engine(backend=backend)

    settings = ServerSettings(data=data, engine="fake", grace=1.0, **given)
    app = create_app(settings, opener=opener)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        until(lambda: server.started and httpx.get(f"{url}/readyz").status_code == 200)
        yield Served(url, backend, app.state.services, app)
    finally:
        gate.set()
        server.should_exit = True
        thread.join(10)
        listener.close()


def until(true: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise AssertionError("it did not come to be in time")
        time.sleep(0.005)
