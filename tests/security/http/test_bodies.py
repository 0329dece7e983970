"""Bodies that are too large, too slow, too deep or no JSON: reliability H11, on sockets and in process."""

from __future__ import annotations

import contextlib
import json
import socket
import time
import tracemalloc

import httpx
import pytest

from fewstep.errors import UsageError
from fewstep.server.security import MalformedJson, check_json

MIB = 1 << 20


def raw(port: int, *parts: bytes, pause: float = 0.0, seconds: float = 10.0) -> bytes:
    """Send parts as they are, and return what comes back until the server closes."""
    with socket.create_connection(("127.0.0.1", port), seconds) as stream:
        answer = b""
        for part in parts:
            try:
                stream.sendall(part)
            except OSError:  # it hung up on us
                break
            time.sleep(pause)
        try:
            while more := stream.recv(65_536):
                answer += more
        except OSError:
            pass
        return answer


def head(path: str = "/sdapi/v1/txt2img", *lines: str, kind: str = "application/json") -> bytes:
    start = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Type: {kind}", *lines]
    return "\r\n".join([*start, "", ""]).encode()


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


@pytest.mark.parametrize("path", ["/sdapi/v1/txt2img", "/v1/images/generations", "/api/v1/jobs"])
@pytest.mark.parametrize("length", [MIB + 1, 10**12, 10**18])
def test_h11_a_declared_body_that_is_too_large(open_port: int, path: str, length: int) -> None:
    answer = raw(open_port, head(path, f"Content-Length: {length}"))
    assert status(answer) == 413 and b"bytes" in answer and b"connection: close" in answer.lower()


def test_h11_a_refusal_does_not_wait_for_the_body(open_port: int) -> None:
    began = time.perf_counter()
    with socket.create_connection(("127.0.0.1", open_port), 10) as stream:
        stream.sendall(head("/api/v1/jobs", f"Content-Length: {10**12}"))
        answer = b""
        while not answer.endswith(b"}"):
            answer += stream.recv(65_536)
        assert time.perf_counter() - began < 0.4  # 0.1 on a quiet machine; what follows is read for 0.5
        assert status(answer) == 413
        assert stream.recv(1) == b""
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize("chunked", [False, True], ids=["declared", "chunked"])
@pytest.mark.parametrize("path", ["/sdapi/v1/txt2img", "/api/v1/uploads"])
def test_h11_the_reason_reaches_a_client_that_sends_on(open_port: int, path: str, chunked: bool) -> None:
    """A connection that is closed on bytes not read is reset, and the reset may overtake the answer."""
    body = b"A" * (3 * MIB)
    kind = {"Content-Type": "application/json" if path.startswith("/sd") else "image/png"}
    for _ in range(5):
        content = iter([body[:MIB], body[MIB:]]) if chunked else body
        answer = httpx.post(f"http://localhost:{open_port}{path}", content=content, headers=kind)
        assert answer.status_code == 413 and "1,048,576 bytes" in answer.text


def test_h11_what_is_thrown_away_has_an_end(open_port: int) -> None:
    chunk = b"100000\r\n" + b"A" * MIB + b"\r\n"
    sent = 0
    with socket.create_connection(("127.0.0.1", open_port), 10) as stream, contextlib.suppress(OSError):
        stream.sendall(head("/api/v1/jobs", "Transfer-Encoding: chunked"))
        while sent < 1000:
            stream.sendall(chunk)
            sent += 1
    assert sent < 100


@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data; boundary=x", "image/png"])
def test_h11_a_chunked_body_that_is_too_large(open_port: int, kind: str) -> None:
    path = {"a": "/sdapi/v1/txt2img", "m": "/v1/images/edits", "i": "/api/v1/uploads"}[kind[0]]
    start = (
        b'--x\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\n'
        if kind[0] == "m"
        else b""
    )
    begin = b"%x\r\n%s\r\n" % (len(start), start) if start else b""
    chunk = b"10000\r\n" + b"A" * 65_536 + b"\r\n"
    parts = [head(path, "Transfer-Encoding: chunked", kind=kind) + begin, *[chunk] * 17]
    assert status(raw(open_port, *parts)) == 413


def test_h11_memory_does_not_follow_what_is_sent(open_port: int) -> None:
    chunk = b"100000\r\n" + b"A" * MIB + b"\r\n"
    parts = [head("/sdapi/v1/txt2img", "Transfer-Encoding: chunked"), *[chunk] * 40]
    raw(open_port, *parts[:2])
    tracemalloc.start()
    try:
        raw(open_port, *parts)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 6 * MIB  # the limit, joined, and what the sockets hold


@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data; boundary=x"])
def test_h11_a_body_that_is_too_slow(open_port: int, kind: str) -> None:
    path = "/sdapi/v1/txt2img" if kind[0] == "a" else "/v1/images/edits"
    slow = [b"{" if kind[0] == "a" else b"--x\r\n", *[b"x"] * 7]
    began = time.perf_counter()
    answer = raw(open_port, head(path, "Content-Length: 100", kind=kind), *slow, pause=0.1)
    assert status(answer) == 408 and b"0.5 seconds" in answer
    assert time.perf_counter() - began < 5


def test_h11_a_client_that_goes_away_is_no_fault(open_port: int, caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_connection(("127.0.0.1", open_port)) as stream:
        stream.sendall(head("/sdapi/v1/txt2img", "Content-Length: 100") + b"{")
    assert httpx.get(f"http://localhost:{open_port}/healthz").status_code == 200
    assert not caplog.records


@pytest.mark.parametrize("line", ["Content-Length: -1", "Content-Length: 1e3", "Content-Length: 0x10"])
def test_h11_a_length_that_is_none(open_port: int, line: str) -> None:
    assert status(raw(open_port, head("/sdapi/v1/txt2img", line))) == 400


BAD = {
    "deep arrays": (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", 422),
    "deep objects": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, 422),
    "many keys": (json.dumps({f"k{i}": 1 for i in range(50_000)}).encode(), 422),
    "many values": (b"[" + b"1," * 100_000 + b"1]", 422),
    "many strings": (json.dumps({"a": ["x"] * 100_000}).encode(), 422),
    "long integer": (b'{"steps": ' + b"9" * 10_000 + b"}", 422),
    "long fraction": (b'{"steps": 0.' + b"9" * 10_000 + b"}", 422),
    "infinite number": (b'{"steps": 1e999}', 422),
    "NaN": (b'{"steps": NaN}', 422),
    "Infinity": (b'{"steps": -Infinity}', 422),
    "two keys": (b'{"steps": 1, "steps": 2}', 422),
    "two keys in disguise": (rb'{"steps": 1, "st\u0065ps": 2}', 422),
    "two keys further in": (b'{"a": [{"b": {"c": 1, "d": "}", "c" \n: 2}}]}', 422),
    "long key": (b'{"' + b"k" * 5_000 + b'": 1}', 422),
    "white space": (b"{" + b" " * (MIB - 2) + b"}", 200),
    "quotes": (b'{"a":"' + b'\\"' * 400_000 + b'"}', 422),
    "not UTF-8": (b'{"prompt": "\xff"}', 400),
    "half a character": (b'{"prompt": "\xed\xa0\x80"}', 400),
    "UTF-16": ('{"steps": 1}'.encode("utf-16-le"), 400),
    "no end": (b'{"prompt": "x', 400),
    "no JSON": (b"steps=1", 400),
    "empty object twice": (b"{}{}", 400),
    "an array": (b"[]", 422),
    "a string": (b'"{}"', 422),
}


@pytest.mark.parametrize("name", list(BAD))
@pytest.mark.parametrize("path", ["/sdapi/v1/txt2img", "/v1/images/generations", "/api/v1/jobs"])
def test_h11_json_that_is_bad(open_port: int, path: str, name: str) -> None:
    body, expected = BAD[name]
    began = time.process_time()
    answer = httpx.post(
        f"http://localhost:{open_port}{path}", content=body, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == expected, answer.text
    assert time.process_time() - began < 0.3  # of the client and the server together
    assert expected == 200 or "error" in answer.json()
    assert len(answer.content) < 2_000


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"[" * 65 + b"]" * 65, "64 levels"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, "64 levels"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "NaN"),
        (b'{"a": 1e999}', "1e999 is too large"),
        (b'{"a": -1E+309}', "too large"),
        (b"1" * 101, "100 characters"),
    ],
)
def test_h11_the_guard_itself_says_no(text: bytes, reason: str) -> None:
    """Whatever a route's schema would have said."""
    json.loads(text)
    with pytest.raises(UsageError, match=reason):
        check_json(text)


def test_h11_the_server_still_works(open_port: int) -> None:
    body = {"prompt": "x" * 1_000_000, "steps": 3}
    answer = httpx.post(f"http://localhost:{open_port}/api/v1/jobs", json=body)
    assert answer.json() == {"steps": 3, "owner": "", "size": 1_000_000}


GOOD = [
    b"[" * 64 + b"]" * 64,
    b"1" * 100,
    b"{}",
    b"[]",
    b"1",
    b'""',
    b'{"a":{"a":{"a":[]}},"b":[{"a":1},{"a":1}]}',
    b'{"a": "NaN, \\"Infinity\\" [[[{{{ 1e999"}',
    b'{"a":"\\\\","b":"\\\\\\"","a\\"":1}',
    b'{"a": -1.5e-7, "b": 1E+30}',
    '{"é": "日本\\ud83d\\ude00"}'.encode(),
    b'\t{"a"\n:\r1}',
    b'["a","a",":","a"]',
    b'{"a":"b","b":"a"}',
    b'{"a":["b","b"],"b":"b"}',
    b'{"a":"x","c":"a"}',
]


@pytest.mark.parametrize("text", GOOD)
def test_json_that_is_good(text: bytes) -> None:
    json.loads(text)
    check_json(text)


def test_large_pictures_pass_quickly() -> None:
    body = b'{"init_images": ["' + b"iVBORw0KGgo/+=" * (2 * MIB) + b'"], "steps": 1}'
    began = time.process_time()
    check_json(body)
    assert time.process_time() - began < 0.2


def test_work_on_a_text_is_bounded() -> None:
    """Texts made to keep the scan itself busy."""
    for text in (
        b'{"a":"' + b"\\\\" * (8 * MIB) + b'"}',
        b"[" + b"9 " * (8 * MIB),
        b'"' * (16 * MIB),
        b'["a",' * MIB,
    ):
        began = time.process_time()
        try:
            check_json(text)
        except (UsageError, MalformedJson):
            pass
        assert time.process_time() - began < 0.5
