"""Names and pages: reliability H03 (DNS rebinding) and H04 (requests from other sites' pages)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from starlette.testclient import TestClient, WebSocketDenialResponse

from conftest import SOCKET, settings
from fewstep.errors import UsageError
from fewstep.server.security.origins import Origins

PAGE = "https://studio.example.org"


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost:7860",
        "LOCALHOST:1",
        "localhost.",
        "a.localhost:80",
        "127.0.0.1:9",
        "127.1.2.3",
        "[::1]",
        "[::1]:7860",
    ],
)
def test_h03_names_of_the_loopback(make_client: Callable[..., TestClient], host: str) -> None:
    assert make_client().get("/metrics", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.test",
        "evil.test:7860",
        "localhost.evil.test",
        "127.0.0.1.evil.test",
        "127.0.0.1@evil.test",
        "",
        ":7860",
        "localhost:",
        "localhost:x",
        "localhost:123456",
        "192.168.1.4",
        "10.0.0.1:7860",
        "[fe80::1]",
        "0.0.0.0:7860",
        "localhost/evil.test",
        "localhost#",
        "localhost evil.test",
        "localhost,evil.test",
        "xlocalhost",
        "127.1",
        "2130706433",
        "[::1",
        "::1",
        "[::ffff:10.0.0.1]",
    ],
)
@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/login"])
def test_h03_other_names_are_refused(make_client: Callable[..., TestClient], host: str, path: str) -> None:
    answer = make_client().get(path, headers={"Host": host})
    assert answer.status_code == 421 and answer.json()["error"]["code"] == "wrong_host"


def test_h03_a_socket_too(make_client: Callable[..., TestClient]) -> None:
    for url in ("ws://evil.test/api/v1/live", "ws://testserver/api/v1/live"):
        with pytest.raises(WebSocketDenialResponse) as refused, make_client().websocket_connect(url):
            pass
        assert refused.value.status_code == 421


def test_h03_one_host_and_no_stand_in(make_client: Callable[..., TestClient]) -> None:
    both = [("Host", "localhost"), ("Host", "localhost")]
    assert make_client().get("/metrics", headers=both).status_code == 421
    forwarded = {"Host": "evil.test", "X-Forwarded-Host": "localhost", "Forwarded": "host=localhost"}
    assert make_client().get("/metrics", headers=forwarded).status_code == 421


def test_h03_names_that_the_settings_allow() -> None:
    hosts = Origins(settings(allowed_hosts=("Pictures.example.org", "other.test:8000")))
    assert [
        hosts.allows_host(h) for h in ("pictures.example.org", "pictures.example.org:1", "other.test:8000")
    ]
    assert not hosts.allows_host("other.test:8001") and not hosts.allows_host("example.org")
    assert Origins(settings(allowed_hosts=("*",))).allows_host("evil.test:7860")
    # An address cannot be made to point elsewhere, a name can.
    public = Origins(settings(host="0.0.0.0"))  # noqa: S104
    assert public.allows_host("192.168.1.4:7860") and public.allows_host("[fd00::1]")
    assert not public.allows_host("evil.test")
    assert Origins(settings(host="box.lan")).allows_host("box.lan:7860")


FOREIGN = [
    "https://evil.test",
    "null",
    "http://localhost",
    "http://localhost:7861",
    "http://127.0.0.1:7860",
    "http://localhost.evil.test:7860",
    "file://",
    "chrome-extension://abc",
    "http://localhost:7860.evil.test",
    "",
    "localhost:7860",
    "http://user@localhost:7860",
    PAGE + ".evil.test",
]


@pytest.mark.parametrize("origin", FOREIGN)
@pytest.mark.parametrize(
    "path", ["/sdapi/v1/txt2img", "/sdapi/v1/interrupt", "/v1/images/edits", "/login", "/logout"]
)
def test_h04_pages_of_other_sites(make_client: Callable[..., TestClient], origin: str, path: str) -> None:
    for given in ((), (PAGE,)):
        answer = make_client(origins=given).post(path, headers={"Origin": origin})
        assert answer.status_code == 403
        assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize("origin", FOREIGN)
def test_h04_sockets_of_other_sites(make_client: Callable[..., TestClient], origin: str) -> None:
    with (
        pytest.raises(WebSocketDenialResponse) as refused,
        make_client().websocket_connect(SOCKET + "/api/v1/live", headers={"Origin": origin}),
    ):
        pass
    assert refused.value.status_code == 403


@pytest.mark.parametrize("origin", FOREIGN)
@pytest.mark.parametrize("given", [(), (PAGE,)], ids=["none", "one"])
def test_h04_preflights_of_other_sites(
    make_client: Callable[..., TestClient], origin: str, given: tuple[str, ...]
) -> None:
    for key in (None, "correct-horse-battery"):
        asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        answer = make_client(key=key, origins=given).options("/sdapi/v1/txt2img", headers=asked)
        assert answer.status_code == 403
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_h04_two_origins_and_fetch_metadata(make_client: Callable[..., TestClient]) -> None:
    client = make_client()
    two = [("Origin", "http://localhost:7860"), ("Origin", "https://evil.test")]
    assert client.post("/sdapi/v1/interrupt", headers=two).status_code == 403
    cross = {"Sec-Fetch-Site": "cross-site"}
    assert client.post("/sdapi/v1/interrupt", headers=cross).status_code == 403
    assert client.get("/metrics", headers=cross).status_code == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "PROPFIND", "TRACE"])
def test_h04_every_method_that_may_change_something(
    make_client: Callable[..., TestClient], method: str
) -> None:
    answer = make_client().request(method, "/api/v1/jobs/1", headers={"Origin": "https://evil.test"})
    assert answer.status_code == 403


def test_h04_own_pages_and_programs(make_client: Callable[..., TestClient]) -> None:
    client = make_client()
    for headers in ({}, {"Origin": "http://localhost:7860"}, {"Sec-Fetch-Site": "same-origin"}):
        assert client.post("/sdapi/v1/interrupt", headers=headers).status_code == 200
    # Behind a proxy that speaks TLS; the default port may be there or not.
    for host, origin in (("localhost", "https://localhost"), ("localhost:443", "https://localhost")):
        assert client.post("/sdapi/v1/interrupt", headers={"Host": host, "Origin": origin}).status_code == 200


def test_h04_no_cors_headers_by_themselves(make_client: Callable[..., TestClient]) -> None:
    answer = make_client().get("/metrics", headers={"Origin": "https://evil.test"})
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_h04_a_page_that_the_settings_list(make_client: Callable[..., TestClient]) -> None:
    client = make_client(origins=(PAGE.upper() + ":443/",))
    asked = {
        "Origin": PAGE,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    preflight = make_client(key=None, origins=(PAGE,)).options("/sdapi/v1/txt2img", headers=asked)
    assert preflight.status_code == 200 and preflight.headers["access-control-allow-origin"] == PAGE
    assert "access-control-allow-credentials" not in preflight.headers
    answer = client.post("/sdapi/v1/txt2img", json={}, headers={"Origin": PAGE})
    assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == PAGE
    refused = make_client(key=None, origins=(PAGE,)).post("/sdapi/v1/txt2img", headers={"Origin": PAGE})
    assert refused.status_code == 401 and refused.headers["access-control-allow-origin"] == PAGE


@pytest.mark.parametrize(
    "origin", ["*", "null", "https://*.example.org", "example.org", "https://a/b", "file://"]
)
def test_h04_pages_are_listed_one_by_one(origin: str) -> None:
    with pytest.raises(UsageError, match="name one site"):
        Origins(settings(origins=(origin,)))


@pytest.mark.parametrize(
    "kind",
    [
        "application/x-www-form-urlencoded",
        "text/plain",
        "text/plain;x=application/json",
        "multipart/form-data;boundary=x",
        "image/png",
        "",
        "application/json; charset=utf-16",
        "application/xml",
        "text/json",
        "json",
    ],
)
@pytest.mark.parametrize(
    "path", ["/sdapi/v1/txt2img", "/v1/images/generations", "/api/v1/jobs", "/v1/images/editsx"]
)
def test_h04_only_json_where_json_is_taken(
    make_client: Callable[..., TestClient], kind: str, path: str
) -> None:
    answer = make_client().post(path, content=b'{"prompt": "x"}', headers={"Content-Type": kind})
    assert answer.status_code == 415
    assert "application/json" in answer.text


@pytest.mark.parametrize(
    "kind", ["application/json", "APPLICATION/JSON; charset=UTF-8", "application/vnd.x+json"]
)
def test_h04_json_by_its_names(make_client: Callable[..., TestClient], kind: str) -> None:
    answer = make_client().post("/api/v1/jobs", content=b'{"steps": 2}', headers={"Content-Type": kind})
    assert answer.status_code == 200


def test_h04_files_where_files_are_taken(make_client: Callable[..., TestClient]) -> None:
    client = make_client()
    assert client.post("/v1/images/edits", files={"image": b"x" * 1000}).json() == {"size": 1000}
    png = {"Content-Type": "image/png"}
    assert client.post("/api/v1/uploads", content=b"x" * 1000, headers=png).json() == {"size": 1000}
    assert client.post("/sdapi/v1/interrupt").status_code == 200
