"""A server that runs, and a browser that fails the test for what went wrong in its page.

    def test_it(studio: Studio, page: Page) -> None:   # the English page, ready
    def test_it(open_page) -> None: page = open_page("zh", viewport={"width": 390, "height": 844})

Every test here is `slow`. Playwright keeps an event loop in its thread while it is open, so the browser lives
for one module: tests of other folders that run afterwards in the same process may call `asyncio.run`.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Locator,
    Page,
    Playwright,
    Request,
    expect,
    sync_playwright,
)

from fewstep.studio.words import texts

HERE: Final = Path(__file__).parent
LONG: Final = 180.0
"""Seconds after which the server has failed to start, end, or answer; on a busy machine too."""
PATIENCE: Final = 60_000
"""Milliseconds for which a page may take to show what it is asked for."""
expect.set_options(timeout=PATIENCE)
FLAGS: Final = ("--disable-background-networking", "--disable-component-update", "--disable-sync")
# One for all: each of its own would read the system's certificates again, and nothing here is encrypted.
_HTTP: Final = httpx.Client(timeout=LONG, verify=False, trust_env=False)  # noqa: S501
ENDED: Final = {"done", "failed", "cancelled", "expired", "cut_off"}


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.slow)


@dataclass
class Studio:
    """`fewstep serve` in a process, with a data folder and a home of its own."""

    url: str
    data: Path
    process: subprocess.Popen[str]
    log: list[str]
    """Lines of its standard error so far."""

    def page(self, language: str = "en") -> str:
        return f"{self.url}/studio/{language}/"

    def get(self, path: str, **query: Any) -> Any:
        return self._json(_HTTP.get(self.url + path, params=query))

    def post(self, path: str, body: Any = None, **how: Any) -> Any:
        return self._json(_HTTP.post(self.url + path, json=body, **how))

    def request(self, method: str, path: str, body: Any = None) -> Any:
        return self._json(_HTTP.request(method, self.url + path, json=body))

    def bytes(self, path: str) -> bytes:
        answer = _HTTP.get(self.url + path)
        assert answer.is_success, f"{path}: {answer.status_code} {answer.text}"
        return answer.content

    def ended(self, job_id: str, seconds: float = LONG) -> dict[str, Any]:
        """The job, once it has ended in whatever way."""
        until = time.monotonic() + seconds
        while (job := self.get(f"/api/v1/jobs/{job_id}"))["state"] not in ENDED:
            assert time.monotonic() < until, f"not ended: {job}"
            time.sleep(0.1)
        return job

    def draw(self, prompt: str = "a red apple, noto style", **fields: Any) -> dict[str, Any]:
        """A job that has drawn; its pictures are in the history."""
        job = self.ended(self.post("/api/v1/jobs", {"prompt": prompt, "seed": 1, **fields})["id"])
        assert job["state"] == "done", job
        return job

    @staticmethod
    def _json(answer: httpx.Response) -> Any:
        assert answer.is_success, f"{answer.url}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else None


@contextlib.contextmanager
def serving(folder: Path, *options: str) -> Iterator[Studio]:
    """A server whose studio is there; told to stop at the end, it must have done so without a fault."""
    data = folder / "data"
    environment = {
        **os.environ, "HOME": str(folder), "XDG_DATA_HOME": str(folder / "share"), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    command = [sys.executable, "-m", "fewstep", "serve", "--port", "0", "--data", str(data), "--grace", "1"]
    process = subprocess.Popen(
        [*command, *options], env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    log: list[str] = []
    listening: list[str] = []

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            log.append(line)
            if found := re.search(r"listening on (http://127\.0\.0\.1:\d+)", line):
                listening.append(found[1])

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        _wait(lambda: bool(listening), process, log)
        made = Studio(listening[0], data, process, log)
        for path in ("/readyz", "/studio/en/", "/studio/zh/"):
            _wait(lambda path=path: _HTTP.get(made.url + path).status_code == 200, process, log)
        yield made
        process.send_signal(signal.SIGTERM)
        code = process.wait(LONG)
        reader.join(LONG)
        assert code in (0, -signal.SIGTERM), "".join(log)
        assert not [line for line in log if line.startswith("Traceback")], "".join(log)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(LONG)
        reader.join(LONG)
        assert process.stderr is not None
        process.stderr.close()


def _wait(done: Callable[[], bool], process: subprocess.Popen[str], log: list[str]) -> None:
    until = time.monotonic() + LONG
    while not done():
        assert process.poll() is None, "the server ended: " + "".join(log)
        assert not any("could not start" in line for line in log), "".join(log)
        assert time.monotonic() < until, "the server did not start: " + "".join(log)
        time.sleep(0.1)


@pytest.fixture(scope="session")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """The server with the bundled model that all tests of a process share."""
    with serving(tmp_path_factory.mktemp("studio")) as made:
        yield made


@pytest.fixture(scope="module")
def serve() -> Callable[..., contextlib.AbstractContextManager[Studio]]:
    """`serving`, for a server of a test's own: ``with serve(tmp_path, "--option") as studio``."""
    return serving


def launched(playwright: Playwright) -> Browser | None:
    """Chromium; None where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next((path for name in names if (path := shutil.which(name))), None)
    flags = [*FLAGS, "--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else [*FLAGS]
    return None if found is None else playwright.chromium.launch(executable_path=found, args=flags)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        opened = launched(playwright)
        if opened is None:
            why = "there is no Chromium; install it with: apt-get install chromium"
            pytest.fail(why) if os.environ.get("CI") else pytest.skip(why)
        yield opened
        opened.close()


@dataclass
class Heard:
    """What went wrong in the pages of a test. A test that provokes something says what, by `expect`."""

    host: str
    faults: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)

    def expect(self, part: str) -> None:
        """Faults with this text in them are what the test is about."""
        self.expected.append(part)

    def unexpected(self) -> list[str]:
        return [fault for fault in self.faults if not any(part in fault for part in self.expected)]

    def listen(self, context: BrowserContext) -> None:
        context.on("console", self._console)
        context.on("weberror", lambda error: self.faults.append(f"script: {error.error}"))
        context.on("request", self._request)
        context.on("requestfailed", self._failed)
        # Nothing of the studio asks by a dialog; one that opens is somebody's script.
        context.on(
            "dialog", lambda dialog: (self.faults.append(f"dialog: {dialog.message}"), dialog.dismiss())
        )

    def _console(self, message: ConsoleMessage) -> None:
        # Gradio says so of every event that it gives up itself: one that a newer replaces, or a page left.
        # Its client also closes a stream on which nothing waits, and may break off an event just begun. A
        # page that is being left closes it too, and asks for it again when something still happens in it.
        given_up = message.text.startswith(
            (
                "AbortError: signal is aborted without reason",
                "AbortError: BodyStreamBuffer was aborted",
                "Unexpected error Connection errored out.",
                "Unexpected error 404: Not Found",
            )
        )
        if message.type == "error" and not given_up:
            self.faults.append(f"console: {message.text} ({message.location.get('url', '')})")

    def _request(self, request: Request) -> None:
        parts = urlsplit(request.url)
        if parts.scheme in ("http", "https", "ws", "wss") and parts.netloc != self.host:
            self.faults.append(f"asked elsewhere: {request.url}")

    def _failed(self, request: Request) -> None:
        # Streams and pictures that a page had open when it was left are broken off by the browser.
        if request.failure != "net::ERR_ABORTED":
            self.faults.append(f"request: {request.url} {request.failure}")


def show_tab(page: Page, name: str, language: str = "en") -> Locator:
    """Open a tab as a person does, behind `…` where there is no room for it, and return its panel."""
    tab = page.locator(f"#tab-{name}-button")
    if tab.count():
        tab.click()
    else:
        page.locator("#tabs .overflow-menu > button").click()
        label = texts("page")[name][language]
        page.locator("#tabs .overflow-dropdown button").filter(has_text=re.compile(f"^{label}$")).click()
    panel = page.locator(f"#tab-{name}")
    shown = "id => getComputedStyle(document.getElementById(id)).display !== 'none'"
    page.wait_for_function(shown, arg=f"tab-{name}")
    return panel


@pytest.fixture(scope="session")
def go() -> Callable[..., Locator]:
    """``go(page, "history", language="en")``: `show_tab`."""
    return show_tab


@pytest.fixture
def heard(studio: Studio) -> Heard:
    return Heard(urlsplit(studio.url).netloc)


@pytest.fixture
def open_page(browser: Browser, studio: Studio, heard: Heard) -> Iterator[Callable[..., Page]]:
    """``open_page(language="en", *, at=studio, **options of new_context)``: a page that is ready."""
    contexts: list[BrowserContext] = []

    def opened(language: str = "en", *, at: Studio | None = None, **options: Any) -> Page:
        if at is not None:
            heard.host = urlsplit(at.url).netloc
        options.setdefault("viewport", {"width": 1280, "height": 900})
        context = browser.new_context(**options)
        contexts.append(context)
        context.set_default_timeout(PATIENCE)
        heard.listen(context)
        page = context.new_page()
        page.goto((at or studio).page(language))
        page.locator("#prompt").wait_for()
        return page

    yield opened
    found = heard.unexpected()  # before the pages go, which breaks off what they had open
    for context in contexts:
        context.close()
    assert found == []


@pytest.fixture
def page(open_page: Callable[..., Page]) -> Page:
    """The English page in a window of 1280 x 900, ready."""
    return open_page()
