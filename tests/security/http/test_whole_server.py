"""The same attacks on the real application: on every route that it has, so on every new one too."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import platformdirs
import pytest
from every_route import every_route
from hostile_names import hostile_names
from starlette.testclient import TestClient, WebSocketDenialResponse

import fewstep
from conftest import SECRET, SOCKET, client, settings
from fewstep.server.app import create_app
from fewstep.server.security import OPEN


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A started server with the fake engine; the client has no key of its own."""
    given = settings(data=tmp_path_factory.mktemp("data"), engine="fake", origins=("https://page.test",))
    with client(given, key=None, app=create_app(given)) as made:
        yield made


KEY = {"Authorization": f"Bearer {SECRET}"}


def test_there_are_routes(whole: TestClient) -> None:
    assert len(every_route(whole.app)) > 40


def test_h01_the_whole_server(whole: TestClient) -> None:
    for way in every_route(whole.app):
        if way.kind == "websocket":
            with (
                pytest.raises(WebSocketDenialResponse) as refused,
                whole.websocket_connect(SOCKET + way.path),
            ):
                pass
            found = refused.value.status_code
        else:
            found = whole.request(way.method, way.path).status_code
        assert (found == 401) is (way.path not in OPEN or str(way) == "POST /login"), (way, found)
    for path in ("/docs", "/redoc", "/openapi.json", "/static/x", "/file=/etc/passwd", "/config"):
        assert whole.get(path).status_code == 401


def test_h03_the_whole_server(whole: TestClient) -> None:
    for way in every_route(whole.app):
        if way.kind == "http":
            answer = whole.request(way.method, way.path, headers=KEY | {"Host": "evil.test"})
            assert answer.status_code == 421, way


def test_h04_the_whole_server(whole: TestClient) -> None:
    for way in every_route(whole.app):
        for origin in ("https://evil.test", "null"):
            if way.kind == "websocket":
                with (
                    pytest.raises(WebSocketDenialResponse) as refused,
                    whole.websocket_connect(SOCKET + way.path, headers=KEY | {"Origin": origin}),
                ):
                    pass
                assert refused.value.status_code == 403
            elif way.method not in ("GET", "HEAD"):
                answer = whole.request(way.method, way.path, headers=KEY | {"Origin": origin})
                assert answer.status_code == 403, way
                assert "access-control-allow-origin" not in answer.headers


def test_h04_no_route_takes_a_page_s_form(whole: TestClient) -> None:
    for way in every_route(whole.app):
        if way.method not in ("POST", "PUT", "PATCH", "DELETE") or way.path == "/login":
            continue
        for kind in ("application/x-www-form-urlencoded", "text/plain"):
            answer = whole.request(way.method, way.path, headers=KEY | {"Content-Type": kind}, content=b"{}")
            assert answer.status_code == 415, way


def test_h11_no_route_takes_bad_json(whole: TestClient) -> None:
    headers = KEY | {"Content-Type": "application/json"}
    for way in every_route(whole.app):
        if way.method in ("POST", "PUT", "PATCH") and way.path != "/login":
            for text, expected in ((b'{"steps": NaN}', 422), (b"[" * 10_000, 422), (b'{"a": "\xff"}', 400)):
                answer = whole.request(way.method, way.path, headers=headers, content=text)
                assert answer.status_code == expected, way


def test_h05_the_whole_server(
    whole: TestClient, audit: Callable[[], contextlib.AbstractContextManager[list[str]]]
) -> None:
    data = whole.app.state.services.settings.data
    models = platformdirs.user_data_dir("fewstep", appauthor=False)
    own = [data, models, Path(fewstep.__file__).parent, sys.prefix, sys.base_prefix]
    roots = tuple(str(Path(root).resolve()) for root in own)
    ways = [way for way in every_route(whole.app) if re.search(r"/x(/|$)", way.path)]
    assert len(ways) > 3
    with audit() as opened:
        for way in ways:
            for name in hostile_names():
                for spelling in {quote(name, safe=""), quote(name)}:
                    if spelling:
                        path = re.sub(r"/x(?:/y)?(?=/|$)", lambda _, s=spelling: f"/{s}", way.path, count=1)
                        answer = whole.request(way.method, "http://localhost:7860" + path, headers=KEY)
                        assert answer.status_code in (200, 307, 403, 404, 405, 422), (way, name, answer.text)
                        assert "root:" not in answer.text
    outside = [
        name
        for name in opened
        if name.startswith("/")
        and not str(Path(name).resolve()).startswith(roots)
        and not re.fullmatch(r"/proc/(meminfo|\d+/statm?)", name)  # memory, which /api/v1/models shows
    ]
    assert outside == []


def test_h14_the_whole_server(whole: TestClient) -> None:
    for way in every_route(whole.app):
        if way.method == "GET" and not way.path.endswith("/events"):
            headers = whole.get(way.path, headers=KEY).headers
            assert headers["x-content-type-options"] == "nosniff" and headers["x-request-id"]
            assert headers["content-security-policy"].startswith("default-src 'none'")


def test_h21_the_whole_server(whole: TestClient) -> None:
    for way in every_route(whole.app):
        if way.kind == "http" and not way.path.endswith("/events"):
            answer = whole.request(
                way.method, way.path + "?next=//evil.test&url=https://evil.test", headers=KEY
            )
            assert "evil.test" not in answer.headers.get("location", ""), way
