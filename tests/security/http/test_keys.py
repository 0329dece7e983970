"""Who is let in: reliability H01, H02 and the login page."""

from __future__ import annotations

import asyncio
import base64
import hmac
from collections.abc import Callable

import pytest
from every_route import Way, every_route
from sample_app import sample_app
from starlette.testclient import TestClient, WebSocketDenialResponse

from conftest import OTHER, SECRET, SOCKET, settings
from fewstep.errors import UsageError
from fewstep.server.security import OPEN
from fewstep.server.security.keys import Keyring
from fewstep.server.settings import ServerSettings

WAYS = every_route(sample_app(settings()))


def status(client: TestClient, way: Way, **options: object) -> int:
    if way.kind == "websocket":
        try:
            with client.websocket_connect(SOCKET + way.path, **options):
                return 101
        except WebSocketDenialResponse as refused:
            return refused.status_code
    return client.request(way.method, way.path, **options).status_code


def test_the_route_table_is_read_whole() -> None:
    found = set(map(str, WAYS))
    assert {
        "GET /metrics",
        "GET /docs",
        "GET /openapi.json",
        "POST /sdapi/v1/txt2img",
        "WS /api/v1/live",
        "GET /inner/hidden",
        "GET /files/x",
        "GET /api/v1/jobs/x",
        "POST /login",
        "POST /logout",
    } <= found


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_h01_no_route_without_a_key(make_client: Callable[..., TestClient], way: Way) -> None:
    for header in ({}, {"Authorization": "Bearer wrong-key"}, {"Authorization": f"Bearer {SECRET}x"}):
        found = status(make_client(key=None), way, headers=header)
        if way.path == "/login":
            assert found in (200, 401)
        else:
            assert (found == 401) is (way.path not in OPEN), way
    if way.path != "/login":
        assert status(make_client(), way) != 401, way


@pytest.mark.parametrize(
    "path",
    [
        "/healthz/",
        "//healthz",
        "/HEALTHZ",
        "/healthz/../metrics",
        "/login/x",
        "/nowhere",
        "/%2e/healthz",
        "/healthz%00",
        "/healthz;x",
        "/static/healthz",
    ],
)
def test_h01_open_paths_are_exact(make_client: Callable[..., TestClient], path: str) -> None:
    assert make_client(key=None).get(path).status_code == 401


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.mark.parametrize(
    ("headers", "owner"),
    [
        ({"Authorization": f"Bearer {SECRET}"}, "ann"),
        ({"Authorization": f"bearer {OTHER}"}, "bob"),
        ({"Authorization": basic("ann", SECRET)}, "ann"),
        ({"Authorization": basic("anybody", OTHER)}, "bob"),
        ({"X-API-Key": SECRET}, "ann"),
        ({"Authorization": "Bearer foreign-token", "X-API-Key": OTHER}, "bob"),
        ({"Authorization": basic(SECRET, "")}, None),
        ({"Authorization": SECRET}, None),
        ({"Authorization": "Basic %%%"}, None),
        ({"Authorization": "Bearer "}, None),
        ({"Authorization": "Bearer " + "x" * 10_000}, None),
        ({"X-API-Key": ""}, None),
        ({"X-API-Key": SECRET.upper()}, None),
        ({"Cookie": f"fewstep_session_7860={SECRET}"}, None),
    ],
)
def test_h01_how_a_key_is_sent(
    make_client: Callable[..., TestClient], headers: dict[str, str], owner: str | None
) -> None:
    answer = make_client(key=None).post("/sdapi/v1/txt2img", json={}, headers=headers)
    assert answer.status_code == (401 if owner is None else 200)
    assert owner is None or answer.json()["owner"] == owner


def test_h01_a_key_is_not_taken_from_the_address(make_client: Callable[..., TestClient]) -> None:
    assert make_client(key=None).get(f"/metrics?key={SECRET}&api_key={SECRET}").status_code == 401


def test_h01_keys_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append((a, b)) or a == b)
    ring = Keyring(settings())
    assert (ring.match(SECRET.encode()), ring.match(b"x" * 100_000)) == ("ann", None)
    # Both keys each time, also after the right one, and always as many bytes.
    assert len(compared) == 4 and {len(one) for pair in compared for one in pair} == {32}


def test_h01_a_body_is_not_read_before_it_is_refused(make_client: Callable[..., TestClient]) -> None:
    client = make_client(key=None)

    async def run() -> int:
        sent: list[dict[str, object]] = []

        async def receive() -> dict[str, object]:
            assert b"a key is needed" in sent[-1]["body"]  # type: ignore[operator]
            return {"type": "http.disconnect"}

        async def send(message: dict[str, object]) -> None:
            sent.append(message)

        headers = [
            (b"host", b"localhost"),
            (b"content-type", b"application/json"),
            (b"content-length", b"10"),
        ]
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/sdapi/v1/txt2img",
            "headers": headers,
            "query_string": b"",
            "root_path": "",
            "scheme": "http",
            "server": ("localhost", 1),
        }
        await client.app(scope, receive, send)
        return sent[0]["status"]

    assert asyncio.run(run()) == 401


def test_h01_without_keys_everybody_is_nobody(make_client: Callable[..., TestClient]) -> None:
    answer = make_client(key=None, keys=()).post("/sdapi/v1/txt2img", json={})
    assert (answer.status_code, answer.json()["owner"]) == (200, "")
    assert "needs no key" in make_client(key=None, keys=()).get("/login").text


def test_h01_a_refusal_asks_for_a_password_only_where_none_is_in_the_way(
    make_client: Callable[..., TestClient],
) -> None:
    client = make_client(key=None)
    assert client.get("/metrics").headers["www-authenticate"].startswith("Basic")
    for headers in ({"Sec-Fetch-Mode": "cors"}, {"Accept": "text/html"}):
        assert client.get("/metrics", headers=headers).headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "example.org"])  # noqa: S104
def test_h02_a_public_address_needs_a_key(host: str) -> None:
    with pytest.raises(UsageError, match="no key is set"):
        ServerSettings(host=host).check()
    ServerSettings(host=host, insecure=True).check()
    settings(host=host).check()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost", "x.localhost"])
def test_h02_the_loopback_needs_none(host: str) -> None:
    ServerSettings(host=host).check()


def log_in(client: TestClient, key: str = SECRET, **headers: str) -> object:
    return client.post("/login", data={"key": key}, headers=headers)


def test_a_browser_logs_in_and_out(make_client: Callable[..., TestClient]) -> None:
    client = make_client(key=None)
    page = client.get("/metrics", headers={"Accept": "text/html,*/*"})
    assert page.status_code == 401 and "<form" in page.text and "<script" not in page.text
    assert log_in(client, "wrong-key").status_code == 401
    entered = log_in(client)
    assert (entered.status_code, entered.headers["location"]) == (303, "/")
    cookie = entered.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie and "path=/" in cookie
    assert SECRET not in cookie and "secure" not in cookie.replace("fewstep", "")
    stolen = dict(client.cookies)
    assert client.post("/sdapi/v1/txt2img", json={}).json()["owner"] == "ann"
    with client.websocket_connect(SOCKET + "/api/v1/live") as socket:
        assert socket.receive_text() == "ann"
        socket.send_text("")
    assert "logged in as ann" in client.get("/login").text
    assert client.post("/logout").status_code == 303
    assert client.get("/metrics").status_code == 401
    client.cookies.update(stolen)
    assert client.get("/metrics").status_code == 401


def test_the_cookie_is_for_tls_where_there_is_tls() -> None:
    client = TestClient(sample_app(settings()), base_url="https://localhost:7860", follow_redirects=False)
    assert "secure" in log_in(client).headers["set-cookie"].lower()


def test_sessions_hold_after_a_restart_until_their_time_or_another_secret() -> None:
    now = [1000.0]
    token = Keyring(settings(), clock=lambda: now[0]).issue("ann")
    ring = Keyring(settings(), clock=lambda: now[0])
    assert ring.session(token) == "ann"
    body, _, signature = token.rpartition(".")
    forged = [
        body.replace("ann", "bob") + "." + signature,
        body + ".",
        body,
        "",
        ".",
        "...",
        "ann.9.x.y",
        "ann.é.x.y",
        body.replace("ann", "eve") + "." + signature,
        body + "." + signature[:-1] + "0g"[signature[-1] == "0"],
        f"ann.{10**30}.x.{signature}",
    ]
    assert [ring.session(one) for one in forged] == [None] * len(forged)
    now[0] += 8 * 86_400
    assert ring.session(token) is None
    now[0] = 1000.0
    assert Keyring(settings(keys=({"name": "ann", "secret": "another-secret"},))).session(token) is None


def test_logging_in_takes_little(make_client: Callable[..., TestClient]) -> None:
    assert log_in(make_client(key=None), "x" * 10_000).status_code == 413
    other = make_client(key=None).post("/login", content=b"key=x", headers={"Content-Type": "text/plain"})
    assert other.status_code == 415
    assert log_in(make_client(key=None), Origin="https://evil.test").status_code == 403
