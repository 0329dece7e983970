"""Pictures by URL: reliability H07 (off), H08 (only the public internet), H09 (only so much and so long)."""

from __future__ import annotations

import contextlib
import gzip
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from fewstep.errors import DataError, TooLarge, UsageError
from fewstep.server import urls
from fewstep.server.media import decode_text
from fewstep.server.settings import Limits

PUBLIC = "93.184.216.34"
LIMITS = Limits(max_body=100_000)


class Listener:
    """Answers every connection with the same bytes, piece by piece, and counts the connections."""

    def __init__(self, pieces: Callable[[bytes], Iterator[bytes]]) -> None:
        self.count = 0
        self.received = b""
        self.requests: list[bytes] = []
        self.asked: list[tuple[str, int]] = []
        self._pieces = pieces
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                stream, _ = self._socket.accept()
            except OSError:
                return
            self.count += 1
            threading.Thread(target=self._answer, args=(stream,), daemon=True).start()

    def _answer(self, stream: socket.socket) -> None:
        with stream, contextlib.suppress(OSError):
            request = b""
            while b"\r\n\r\n" not in request:
                if not (more := stream.recv(65_536)):
                    return
                request += more
                self.received += more
            self.requests.append(request)
            for piece in self._pieces(request):
                stream.sendall(piece)

    def connect(self, address: str, port: int, seconds: float) -> socket.socket:
        """In place of the real one: the public internet ends here."""
        self.asked.append((address, port))
        return socket.create_connection(("127.0.0.1", self.port), seconds)

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def listen() -> Iterator[Callable[..., Listener]]:
    made: list[Listener] = []

    def start(*pieces: bytes, by: Callable[[bytes], Iterator[bytes]] | None = None) -> Listener:
        made.append(Listener(by or (lambda _: iter(pieces))))
        return made[-1]

    yield start
    for one in made:
        one.close()


def get(
    listener: Listener, url: str = "http://pictures.test/a.png", seconds: float = 5.0, **given: object
) -> bytes:
    given.setdefault("resolve", lambda host, port: [PUBLIC])
    return urls.fetch(url, "image", LIMITS, seconds=seconds, connect=listener.connect, **given)


ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


@pytest.mark.parametrize(
    "url",
    [
        "http://a.test/x.png",
        "HTTPS://a.test",
        " https://a.test",
        "ftp://a",
        "file:///etc/passwd",
        "http:\\\\a.test",
        "gopher://x",
        "data://x",
    ],
)
def test_h07_urls_are_disabled(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setattr(urls, "fetch", lambda *_: pytest.fail("fetched"))
    with pytest.raises(UsageError, match="image: URLs are disabled"):
        decode_text(url, what="image", limits=LIMITS)


def test_h07_a_switch_lets_them_pass() -> None:
    asked: list[str] = []
    with pytest.raises(DataError, match="not an image"):
        decode_text(
            "http://a.test/x", what="image", limits=LIMITS, allow_urls=True,
            fetch=lambda url, what, limits: asked.append(url) or b"<html>",
        )  # fmt: skip
    assert asked == ["http://a.test/x"]


@pytest.mark.parametrize(
    "text", ["/etc/passwd", "../../etc/passwd", "C:\\x.png", "a.png", "~/x", "data:text/html,x"]
)
def test_h07_a_text_is_never_a_file(
    audit: Callable[[], contextlib.AbstractContextManager[list[str]]], text: str
) -> None:
    with audit() as opened, pytest.raises(DataError):
        decode_text(text, what="image", limits=LIMITS)
    assert opened == []


def test_a_public_picture_is_fetched(listen: Callable[..., Listener]) -> None:
    listener = listen(ANSWER)
    assert get(listener, "http://Pictures.test:8080/a/b?c=d#e") == b"hello"
    assert listener.asked == [(PUBLIC, 8080)]
    head = listener.requests[0].decode().lower()
    assert head.startswith("get /a/b?c=d http/1.1\r\nhost: pictures.test:8080\r\n")
    assert "accept-encoding: identity" in head and "cookie" not in head and "authorization" not in head


PRIVATE = [
    "127.0.0.1",
    "127.255.255.254",
    "10.0.0.1",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "0.0.0.0",  # noqa: S104
    "224.0.0.1",
    "239.1.1.1",
    "240.0.0.1",
    "255.255.255.255",
    "192.0.0.1",
    "192.0.2.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "::1",
    "::",
    "fe80::1",
    "fc00::1",
    "fd12::1",
    "fec0::1",
    "ff02::1",
    "2001:db8::1",
    "::ffff:127.0.0.1",
    "::ffff:a9fe:a9fe",
    "2002:7f00:1::",
    "2002:c0a8:101::",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::1",
    "2001:0:7f00:1::",
    "::7f00:1",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",
]
FORMS = [
    "http://2130706433/",
    "http://0x7f000001/",
    "http://0177.0.0.1/",
    "http://127.1/",
    "http://0x7f.1/",
    "http://0/",
    "http://017700000001/",
    "http://127.0.0.1./",
    "http://1.2.3.4.5/",
    "http://0x5db8d822/",
    "http://1572395042/",
    "http://[::ffff:127.0.0.1]/",
    "http://[fe80::1%25eth0]/",
    "http://[::1",
    "http://①②⑦.⓪.⓪.①/",
    "http://ｌocalhost/",
    "file:///etc/passwd",
    "ftp://pictures.test/",
    "gopher://pictures.test/",
    "javascript:x",
    "//pictures.test/x",
    "",
    "pictures.test",
    "http:///x",
    "http://",
    "http:pictures.test",
    "http://user@pictures.test/",
    "http://user:pass@pictures.test/",
    "http://pictures.test@127.0.0.1/",
    "http://pictures.test\\@127.0.0.1/",
    "http:\\\\127.0.0.1/",
    "http://127.0.0.1\\.pictures.test/",
    "http://pictures.test/\r\nX: y",
    "http://pictures .test/",
    "http://pictures.test:25/",
    "http://pictures.test:0/",
    "http://pictures.test:99999/",
    "http://pictures.test:x/",
    "http://pictures%2etest/",
    "http://-pictures.test/",
    "http://.test/",
    "http://" + "a" * 5000 + ".test/",
    "http://pictures.test/" + "a" * 5000,
    "http://pictures.test/<>",
    "http://pictures.test/\u202e",
]


def refusal(listener: Listener, url: str, **given: object) -> str:
    with pytest.raises(UsageError) as refused:
        get(listener, url, **given)
    assert listener.count == 0 and listener.asked == []
    return str(refused.value)


ONE_MESSAGE = "image: this URL is not fetched; give an http or https URL of a public host, or a picture"


@pytest.mark.parametrize("address", PRIVATE)
def test_h08_private_addresses(listen: Callable[..., Listener], address: str) -> None:
    listener = listen(ANSWER)
    literal = f"http://[{address}]/" if ":" in address else f"http://{address}/"
    assert refusal(listener, literal) == ONE_MESSAGE
    # The same address by a name, alone and hidden behind a public one.
    for found in ([address], [PUBLIC, address], [address, PUBLIC]):
        assert (
            refusal(listener, "https://pictures.test/", resolve=lambda host, port, found=found: found)
            == ONE_MESSAGE
        )


@pytest.mark.parametrize("url", FORMS, ids=lambda url: ascii(url)[:40])
def test_h08_other_forms_of_a_url(listen: Callable[..., Listener], url: str) -> None:
    assert refusal(listen(ANSWER), url) == ONE_MESSAGE


@pytest.mark.parametrize(
    "address", [PUBLIC, "8.8.8.8", "2606:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8"]
)
def test_h08_public_addresses(listen: Callable[..., Listener], address: str) -> None:
    assert urls.is_public(address)
    assert get(listen(ANSWER), resolve=lambda host, port: [address]) == b"hello"


def test_h08_names_that_are_not_known_read_alike(listen: Callable[..., Listener]) -> None:
    def unknown(host: str, port: int) -> list[str]:
        raise socket.gaierror(-2, "Name or service not known")

    assert refusal(listen(ANSWER), "http://intranet/", resolve=unknown) == ONE_MESSAGE
    assert refusal(listen(ANSWER), "http://intranet/", resolve=lambda host, port: []) == ONE_MESSAGE
    assert refusal(listen(ANSWER), "http://localhost/", resolve=None) == ONE_MESSAGE
    assert refusal(listen(ANSWER), f"http://{'a' * 70}.test/", resolve=None) == ONE_MESSAGE


def test_h08_an_answer_that_changes_gains_nothing(listen: Callable[..., Listener]) -> None:
    listener, answers = listen(ANSWER), [[PUBLIC], ["127.0.0.1"], ["127.0.0.1"]]
    asked: list[str] = []
    assert get(listener, resolve=lambda host, port: asked.append(host) or answers.pop(0)) == b"hello"
    assert asked == ["pictures.test"] and listener.asked == [(PUBLIC, 80)]


def redirect(target: str) -> bytes:
    return f"HTTP/1.1 302 Found\r\nLocation: {target}\r\nContent-Length: 0\r\n\r\n".encode("latin-1")


@pytest.mark.parametrize(
    "target",
    [
        "http://127.0.0.1/",
        "http://localhost/",
        "file:///etc/passwd",
        "//10.0.0.1/x",
        "http://[::1]/",
        "http://2130706433/",
        "ftp://pictures.test/",
        "http://u@pictures.test/",
    ],
)
def test_h08_redirects_are_checked(listen: Callable[..., Listener], target: str) -> None:
    listener = listen(redirect(target))
    with pytest.raises(UsageError) as refused:
        get(listener, resolve=lambda host, port: ["127.0.0.1"] if host == "localhost" else [PUBLIC])
    assert str(refused.value) == ONE_MESSAGE and listener.count == 1


def test_h08_redirects_to_public_hosts_are_followed_a_few_times(listen: Callable[..., Listener]) -> None:
    def by(request: bytes) -> Iterator[bytes]:
        yield (
            redirect("../b?c")
            if b"GET /a" in request
            else redirect("/loop")
            if b"loop" in request
            else ANSWER
        )

    listener = listen(by=by)
    assert get(listener, "http://pictures.test/a/x") == b"hello"
    assert b"GET /b?c" in listener.requests[1]
    with pytest.raises(UsageError):
        get(listener, "http://pictures.test/loop")
    assert listener.count == 2 + 1 + urls.MAX_REDIRECTS


def test_h08_https_is_not_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def redirected(url: str, *_: object) -> str:
        asked.append(url)
        return "http://pictures.test/b"

    monkeypatch.setattr(urls, "_get", redirected)
    with pytest.raises(UsageError) as refused:
        urls.fetch("https://pictures.test/a", "image", LIMITS, seconds=5.0)
    assert str(refused.value) == ONE_MESSAGE and asked == ["https://pictures.test/a"]


def test_h08_no_proxy_of_the_environment(
    listen: Callable[..., Listener], monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, listener = listen(ANSWER), listen(ANSWER)
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
    assert get(listener) == b"hello"
    assert (proxy.count, listener.count) == (0, 1)


def test_h08_tls_asks_for_the_name(listen: Callable[..., Listener]) -> None:
    listener = listen(ANSWER)
    with pytest.raises(DataError):
        get(listener, "https://pictures.test/", seconds=0.5)
    assert b"pictures.test" in listener.received and b"GET" not in listener.received


def test_h08_tls_is_not_given_up_by_a_redirect(listen: Callable[..., Listener]) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.wrap_socket = lambda stream, server_hostname: stream
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssl, "create_default_context", lambda: context)
        with pytest.raises(UsageError):
            get(listen(redirect("http://pictures.test/")), "https://pictures.test/")
        assert get(listen(ANSWER), "https://pictures.test/") == b"hello"


OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


def endless(piece: bytes, pause: float = 0.0) -> Iterator[bytes]:
    while True:
        yield piece
        time.sleep(pause)


def test_h09_too_much(listen: Callable[..., Listener]) -> None:
    bodies = {
        "declared": lambda _: iter([OK + b"Content-Length: 100001\r\n\r\n"]),
        "huge": lambda _: iter([OK + b"Content-Length: 99999999999999999999\r\n\r\n"]),
        "until closed": lambda _: iter([OK + b"\r\n", *[b"x" * 10_000] * 11]),
        "endless": lambda _: (p for part in ([OK + b"\r\n"], endless(b"x" * 10_000)) for p in part),
        "chunked": lambda _: (
            p for part in ([CHUNKED], endless(b"2710\r\n" + b"x" * 10_000 + b"\r\n")) for p in part
        ),
    }
    for name, by in bodies.items():
        with pytest.raises(TooLarge, match="100,000 bytes"):
            get(listen(by=by))
            pytest.fail(name)


def test_h09_too_slow(listen: Callable[..., Listener]) -> None:
    slow = {
        "nothing": lambda _: endless(b"", 0.05),
        "head": lambda _: endless(b"H", 0.05),
        "headers": lambda _: (p for part in ([OK], endless(b"X: y\r\n", 0.05)) for p in part),
        "body": lambda _: (
            p for part in ([OK + b"Content-Length: 1000\r\n\r\n"], endless(b"x", 0.05)) for p in part
        ),
    }
    for name, by in slow.items():
        began = time.monotonic()
        with pytest.raises(DataError, match=r"within 0\.3 seconds"):
            get(listen(by=by), seconds=0.3)
            pytest.fail(name)
        assert time.monotonic() - began < 2


def test_h09_slow_names(listen: Callable[..., Listener]) -> None:
    began = time.monotonic()
    with pytest.raises(DataError, match=r"within 0\.2 seconds"):
        get(listen(ANSWER), seconds=0.2, resolve=lambda host, port: time.sleep(3) or [PUBLIC])
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "gzip, identity", "x"])
def test_h09_nothing_is_decompressed(listen: Callable[..., Listener], coding: str) -> None:
    bomb = gzip.compress(b"\0" * 10_000_000)
    head = OK + f"Content-Encoding: {coding}\r\nContent-Length: {len(bomb)}\r\n\r\n".encode()
    with pytest.raises(DataError, match="compressed"):
        get(listen(head, bomb))


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200",
        redirect("")[:30],
        OK + b"Content-Length: 10\r\n\r\nhalf",
        OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        OK + b"X: y\r\n" * 200 + b"\r\n",
        OK + b"X: " + b"y" * 70_000 + b"\r\n\r\n",
        b"HTTP/1.1 206 Partial\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 F\r\n\r\n",
    ],
    ids=range(11),
)
def test_h09_answers_that_are_none(listen: Callable[..., Listener], answer: bytes) -> None:
    with pytest.raises((DataError, UsageError)) as refused:
        get(listen(answer))
    assert PUBLIC not in str(refused.value) and "\n" not in str(refused.value)


def test_h09_hosts_that_do_not_answer() -> None:
    def closed(address: str, port: int, seconds: float) -> socket.socket:
        raise ConnectionRefusedError("refused")

    with pytest.raises(DataError, match="did not answer"):
        urls.fetch(
            "http://pictures.test/", "image", LIMITS, resolve=lambda host, port: [PUBLIC], connect=closed
        )
