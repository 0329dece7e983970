"""Applications under attack: a small one of every kind of route, in process and on a port."""

from __future__ import annotations

import contextlib
import functools
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI
from starlette.testclient import TestClient

sys.path.insert(0, str(Path(__file__).parent))

from sample_app import sample_app

from fewstep.server.settings import Key, Limits, ServerSettings

SECRET = "correct-horse-battery"  # noqa: S105
OTHER = "staple-and-more-staples"


def settings(**given: Any) -> ServerSettings:
    """Settings with two keys, unless others are given."""
    given.setdefault("keys", (Key(name="ann", secret=SECRET), Key(name="bob", secret=OTHER)))
    return ServerSettings(**given)


@contextlib.contextmanager
def served(app: FastAPI, **options: Any) -> Iterator[int]:
    """Serve an application on a port of the loopback interface."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off", **options))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started:
        assert time.monotonic() < deadline and thread.is_alive()
        time.sleep(0.01)
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(10)


guarded = functools.lru_cache(sample_app)
"""The sample application of some settings, made once."""


SOCKET = "ws://localhost:7860"
"""`TestClient` calls every other server ``testserver``."""


def client(given: ServerSettings, key: str | None = SECRET, app: FastAPI | None = None) -> TestClient:
    """A client of the sample application; it sends a key unless None."""
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    return TestClient(
        app or guarded(given), base_url="http://localhost:7860", headers=headers, follow_redirects=False
    )


@pytest.fixture
def make_client() -> Callable[..., TestClient]:
    return lambda key=SECRET, **given: client(settings(**given), key)


@pytest.fixture(scope="module")
def open_port() -> Iterator[int]:
    """A server without keys and with small limits: a megabyte in half a second."""
    limits = Limits(max_body=1 << 20, body_seconds=0.5)
    with served(sample_app(ServerSettings(limits=limits))) as port:
        yield port


_opened: list[str] | None = None


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _opened is not None and event in ("open", "os.listdir", "os.scandir"):
        _opened.append(str(arguments[0]))


@pytest.fixture(scope="session")
def audit() -> Callable[[], contextlib.AbstractContextManager[list[str]]]:
    """``with audit() as opened``: the names of all files and folders that are opened meanwhile, anywhere."""
    sys.addaudithook(_hook)  # it cannot be taken away again

    @contextlib.contextmanager
    def watch() -> Iterator[list[str]]:
        global _opened
        _opened = found = []
        try:
            yield found
        finally:
            _opened = None

    return watch
