"""The studio's place in a server: a page that loads itself, the start page, and what failed said as text."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from fewstep.server.app import create_app
from fewstep.server.settings import ServerSettings
from fewstep.studio import mount
from fewstep.studio.words import COOKIE


@pytest.fixture
def attached(tmp_path: Path) -> Callable[..., TestClient]:
    def make(warm: Callable[[], bool] = lambda: False) -> TestClient:
        app = FastAPI()
        mount.attach(app, warm=warm, data=tmp_path)
        return TestClient(app, follow_redirects=False)

    return make


def page_of(client: TestClient, text: str) -> str:
    """The page of a failed start, once it has failed."""
    until = time.monotonic() + 30
    while text not in (page := client.get("/studio/en/").text):
        assert time.monotonic() < until, page
        time.sleep(0.02)
    return page


def test_before_it_is_built_a_page_says_so_and_loads_itself(attached: Callable[..., TestClient]) -> None:
    with attached() as client:
        for language, text in (
            ("en", "The studio is starting"),
            ("zh", "工作室正在启动"),
            ("xx", "is starting"),
        ):
            answer = client.get(f"/studio/{language}/")
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            assert text in answer.text and '<meta http-equiv="refresh" content="1">' in answer.text
            assert f'<html lang="{language if language != "xx" else "en"}">' in answer.text


@pytest.mark.parametrize("path", ["/", "/studio/", "/studio"])
def test_the_start_leads_to_the_visitors_language(attached: Callable[..., TestClient], path: str) -> None:
    with attached() as client:
        client.follow_redirects = path == "/studio"  # first to the one with a slash
        chinese = client.get(path, headers={"Accept-Language": "zh-CN,zh;q=0.9"})
        client.cookies.set(COOKIE, "en")
        chosen = client.get(path, headers={"Accept-Language": "zh-CN,zh;q=0.9"})
        for answer, language in ((chinese, "zh"), (chosen, "en")):
            if path == "/studio":
                assert answer.url.path == f"/studio/{language}/"
            else:
                assert answer.headers["location"] == f"/studio/{language}/"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ImportError(name="gradio"), "gradio is not installed; install it with: pip install"),
        (ImportError(name="<img src=x onerror=alert(1)>"), "is not installed"),
        (RuntimeError("a secret of the server"), "see the server"),
    ],
    ids=["import", "hostile", "other"],
)
def test_a_start_that_failed_is_said_as_text_and_the_server_lives(
    attached: Callable[..., TestClient], monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    def build(data: str) -> Any:
        raise error

    monkeypatch.setattr(mount, "_build", build)
    with attached(lambda: True) as client:
        page = page_of(client, said)
        assert "<img" not in page and "secret" not in page
        assert client.get("/favicon.ico").headers["content-type"] == "image/svg+xml"


def test_a_server_that_ends_before_it_is_warm_does_not_wait_for_the_studio(
    attached: Callable[..., TestClient],
) -> None:
    began = time.monotonic()
    with attached():
        pass
    assert time.monotonic() - began < 10


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A server with the studio's real pages, and the fake backend."""
    data = tmp_path_factory.mktemp("mount")
    settings = ServerSettings(data=data, engine="fake")
    app = create_app(settings, pages=mount.POLICIES, uploads=mount.UPLOADS)
    mount.attach(app, warm=lambda: True, data=data)
    with TestClient(app, base_url="http://127.0.0.1") as client:
        until = time.monotonic() + 180
        while client.get("/studio/en/").status_code != 200:
            assert time.monotonic() < until
            time.sleep(0.1)
        yield client


@pytest.mark.slow
def test_the_policy_lets_a_page_ask_this_server_only(built: TestClient) -> None:
    policy = built.get("/studio/en/").headers["content-security-policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    sources = {source for value in rules.values() for source in value.split()}
    assert sources <= {"'self'", "'none'", "'unsafe-inline'", "'unsafe-eval'", "data:", "blob:"}
    assert rules["default-src"] == "'self'" and rules["object-src"] == rules["frame-ancestors"] == "'none'"
    api = built.get("/api/v1/jobs").headers["content-security-policy"]
    assert "'none'" in api and "unsafe" not in api


@pytest.mark.slow
@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_built_page_loads_nothing_from_elsewhere(built: TestClient, language: str) -> None:
    page = built.get(f"/studio/{language}/").text
    loaded = re.findall(r"""<(?:script|link|img|iframe)[^>]*(?:src|href)=["']([^"']+)""", page)
    assert loaded and not [url for url in loaded if "//" in url]
    assert built.get("/manifest.json").json()["name"] == "fewstep"
    config = built.get(f"/studio/{language}/config").json()
    assert config["analytics_enabled"] is False
    assert not [sheet for sheet in config["stylesheets"] if "//" in sheet]  # Gradio's fonts are Google's


@pytest.mark.slow
def test_the_pages_functions_are_nobody_elses_api(built: TestClient) -> None:
    """Gradio's own description of them is empty, and its documents are not served."""
    info = built.get("/studio/en/gradio_api/info").json()
    assert info["named_endpoints"] == {} and info["unnamed_endpoints"] == {}
    for path in ("docs", "redoc", "openapi.json"):
        assert built.get(f"/studio/en/{path}").status_code == 404


@pytest.mark.slow
def test_files_of_the_server_are_not_gradios_to_give(built: TestClient, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    for path in (secret, Path(mount.__file__), Path("/etc/hostname")):
        answer = built.get(f"/studio/en/gradio_api/file={path}")
        assert answer.status_code in (403, 404), path


@pytest.mark.slow
def test_a_stream_of_a_session_that_is_gone_says_so_and_ends(
    built: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    """A page that is being left may ask for one; no fault of the server's, no traceback in its log."""
    answer = built.get("/studio/en/gradio_api/queue/data?session_hash=nobody")
    (event,) = answer.text.strip().split("\n\n")
    assert answer.status_code == 200 and json.loads(event.removeprefix("data: "))["session_not_found"] is True
    assert caplog.records == []
