"""What answers carry: headers, H05 names, H17 errors without traces, H21 no redirects to others."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from urllib.parse import quote, urlsplit

import pytest
from every_route import every_route
from hostile_names import hostile_names
from sample_app import FAILURES, sample_app
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from conftest import OTHER, SECRET, SOCKET, guarded, settings
from fewstep.server import faults

WAYS = [way for way in every_route(guarded(settings())) if way.kind == "http"]


@pytest.mark.parametrize("key", [None, SECRET], ids=["refused", "answered"])
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_h14_headers_of_every_answer(
    make_client: Callable[..., TestClient], way: object, key: str | None
) -> None:
    headers = make_client(key=key).request(way.method, way.path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["x-frame-options"] == "DENY" and headers["referrer-policy"] == "same-origin"
    assert headers["cache-control"] == "no-store" or way.path == "/api/v1/images/x"
    assert len(headers["x-request-id"]) == 32
    assert ("x-process-time" in headers) is way.path.startswith("/sdapi/")


def test_h14_pages_have_a_policy_of_their_own() -> None:
    app = sample_app(settings(keys=()), pages={"/studio": "default-src 'self'", "/inner": "img-src *"})
    client = TestClient(app, base_url="http://localhost")
    assert client.get("/inner/hidden").headers["content-security-policy"] == "img-src *"
    assert "default-src 'none'" in client.get("/metrics").headers["content-security-policy"]


@pytest.mark.parametrize("given", ["job-1234", "0123456789abcdef", "A_b-" * 16])
def test_request_ids_of_proxies_are_kept(make_client: Callable[..., TestClient], given: str) -> None:
    answer = make_client().get("/nowhere", headers={"X-Request-Id": given})
    assert answer.headers["x-request-id"] == given == answer.json()["error"]["request_id"]


@pytest.mark.parametrize(
    "given", ["short", "x" * 65, "a b c d e f", "<script>x</script>", "é" * 10, "", "x;y=z;w=1"]
)
def test_other_request_ids_are_replaced(make_client: Callable[..., TestClient], given: str) -> None:
    answer = make_client().get("/metrics", headers={"X-Request-Id": given.encode()})
    assert len(answer.headers["x-request-id"]) == 32 and answer.headers["x-request-id"].isalnum()


@pytest.mark.parametrize("name", hostile_names(), ids=lambda name: ascii(name)[:30])
def test_h05_names_open_nothing(
    make_client: Callable[..., TestClient],
    audit: Callable[[], contextlib.AbstractContextManager[list[str]]],
    name: str,
) -> None:
    client = make_client()
    client.get("/metrics")
    with audit() as opened:
        found = [
            client.get(f"/api/v1/jobs/{quote(name, safe='')}"),
            client.get(f"/api/v1/jobs/{quote(name)}"),
        ]
    assert {answer.status_code for answer in found} <= {307, 404, 405, 422}
    assert opened == []


def test_h05_there_are_enough_names() -> None:
    assert len(set(hostile_names())) >= 40


@pytest.mark.parametrize("prefix", ["/sdapi/v1", "/v1", "/api/v1"])
@pytest.mark.parametrize("kind", list(FAILURES))
def test_h17_bodies_of_faults(
    make_client: Callable[..., TestClient], caplog: pytest.LogCaptureFixture, prefix: str, kind: str
) -> None:
    answer = make_client().get(f"{prefix}/fail/{kind}")
    expected = faults.fault_of(faults.unwrapped(FAILURES[kind]))
    assert answer.status_code == expected.status
    body, text = answer.json(), answer.text
    if prefix == "/sdapi/v1":
        assert set(body) == {"error", "detail", "body", "errors"}
    elif prefix == "/v1":
        assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}
        assert body["error"]["code"] == expected.code
    else:
        assert set(body["error"]) == {"code", "message", "request_id"}
        assert body["error"]["request_id"] == answer.headers["x-request-id"]
    for inside in (
        "Traceback",
        "/home",
        "x.py",
        "fewstep/",
        "site-packages",
        "ZeroDivision",
        "secret place",
        SECRET,
    ):
        assert inside not in text
    logged = "\n".join(record.getMessage() for record in caplog.records)
    assert ("Traceback" in logged) is (expected.status == 500)
    assert expected.status != 500 or answer.headers["x-request-id"] in logged


def test_h17_when_to_come_again(make_client: Callable[..., TestClient]) -> None:
    client = make_client()
    found = {kind: client.get(f"/v1/fail/{kind}").headers for kind in FAILURES}
    assert {kind: h["retry-after"] for kind, h in found.items() if "retry-after" in h} == {
        "full": "3",
        "starting": "1",
        "memory": "5",
    }
    # What the official client reads: only what was not begun is worth sending again.
    assert {kind for kind, h in found.items() if h["x-should-retry"] == "true"} == {
        "full",
        "starting",
        "memory",
    }
    assert found["http"]["x-pot"] == "tea"


def test_h17_secrets_stay_out_of_bodies_and_the_log(
    make_client: Callable[..., TestClient], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    leak = (
        f"key {SECRET} and Bearer abcdef123456 at https://me:{OTHER}@example.org/x with hf_abcdefghijklmnop"
    )
    for kind, error in (("usage", type(FAILURES["usage"])(leak)), ("bug", ZeroDivisionError(leak))):
        monkeypatch.setitem(FAILURES, kind, error)
        answer = make_client().get(f"/api/v1/fail/{kind}")
        for inside in (SECRET, OTHER, "abcdef123456", "hf_abc"):
            assert inside not in answer.text and inside not in caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_h17_values_are_not_sent_back(make_client: Callable[..., TestClient]) -> None:
    body = {"steps": "my private text", "prompt": "a dog"}
    for path in ("/sdapi/v1/txt2img", "/v1/images/generations", "/api/v1/jobs"):
        answer = make_client().post(
            path,
            content=str(body).replace("'", '"').encode("ascii", "backslashreplace"),
            headers={"Content-Type": "application/json"},
        )
        assert answer.status_code == 422 and "private" not in answer.text and "steps" in answer.text


def test_h17_a_fault_within_a_stream_ends_it(
    make_client: Callable[..., TestClient], caplog: pytest.LogCaptureFixture
) -> None:
    with contextlib.suppress(Exception):
        assert make_client().get("/api/v1/broken-stream").text == "begun"
    assert "in the middle" in caplog.text and caplog.text.count("Traceback") == 1


def test_h17_a_fault_within_a_socket_closes_it(
    make_client: Callable[..., TestClient], caplog: pytest.LogCaptureFixture
) -> None:
    with make_client().websocket_connect(SOCKET + "/api/v1/live") as socket:
        socket.receive_text()
        socket.send_text("fail")
        with pytest.raises(WebSocketDisconnect) as closed:
            socket.receive_text()
    assert closed.value.code == 1011 and "in a socket" not in closed.value.reason
    assert "in a socket" in caplog.text


def test_streams_are_not_held_back(make_client: Callable[..., TestClient]) -> None:
    with make_client().stream("GET", "/api/v1/stream") as answer:
        assert list(answer.iter_lines()) == ["0", "1", "2"]


TARGETS = [
    "https://evil.test",
    "//evil.test",
    "/\\evil.test",
    "///evil.test/%2f..",
    "javascript:alert(1)",
    "http:evil.test",
    "\\\\evil.test",
    "/%09/evil.test",
    "https://localhost:7860@evil.test",
]
NAMES = [
    "next",
    "redirect",
    "redirect_uri",
    "url",
    "return",
    "returnTo",
    "continue",
    "goto",
    "target",
    "path",
    "u",
]


@pytest.mark.parametrize("key", [None, SECRET], ids=["without", "with"])
def test_h21_no_redirect_to_where_a_request_says(
    make_client: Callable[..., TestClient], key: str | None
) -> None:
    client = make_client(key=key)
    seen = 0
    ways = [way for way in WAYS if "/fail/" not in way.path]
    for target in TARGETS:
        query = "&".join(f"{name}={quote(target, safe='')}" for name in NAMES)
        asked = [(way.method, f"{way.path}?{query}") for way in ways if way.method != "HEAD"]
        asked += [("GET", "/" + quote(target, safe="/:\\")), ("GET", f"/inner//{quote(target, safe='/')}/")]
        asked += [("GET", "/healthz/"), ("GET", "/inner")]
        answers = [client.request(method, "http://localhost:7860" + path) for method, path in asked]
        answers.append(client.post("/login", data={"key": SECRET, **dict.fromkeys(NAMES, target)}))
        for answer in answers:
            if "location" in answer.headers:
                seen += 1
                parts = urlsplit(answer.headers["location"])
                assert parts.netloc in ("", "localhost:7860") and parts.scheme in ("", "http")
                assert "\\" not in parts.path and not parts.path.startswith("//")
            assert "refresh" not in answer.headers
    assert seen >= len(TARGETS)


def test_nothing_of_the_guard_warns(
    caplog: pytest.LogCaptureFixture, make_client: Callable[..., TestClient]
) -> None:
    with caplog.at_level(logging.DEBUG, "fewstep"):
        make_client(key=None).get("/metrics")
    assert caplog.records == []
