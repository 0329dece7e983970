"""Fetching a picture that a request names by URL: the only code of the server that reaches the network.

Used when ``allow_urls`` is set. A caller must not be able to make the server talk to anything that the caller
could not reach: the host's name is resolved once, every answer must be a public address, and the connection
is made to the address that was checked, so a name whose answer changes gains nothing. Redirects are checked
in the same way. All refusals read alike, so nothing is learned about names and ports behind a firewall.

`http.client` of the standard library is used because of what it does not do: it reads no proxy variables, no
.netrc and no cookies, follows no redirects, decompresses nothing, and takes a socket that is connected
already. httpx must be told not to do most of these, and pins an address only through its transport's backend.
"""

from __future__ import annotations

import http.client
import io
import ipaddress
import queue
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import SplitResult, urljoin, urlsplit

from fewstep import __version__
from fewstep.errors import DataError, TooLarge, UsageError
from fewstep.server.settings import Limits

Resolve = Callable[[str, int], Sequence[str]]
"""(host, port) -> addresses."""
Connect = Callable[[str, int, float], socket.socket]
"""(address, port, seconds) -> a connected socket."""

SECONDS: Final = 10.0
"""From the call to the last byte, redirects included."""
MAX_REDIRECTS: Final = 3

_HOST: Final = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,252})", re.IGNORECASE)
_NUMBER: Final = re.compile(r"(?:0x[0-9a-f]*|[0-9]+)\.?", re.IGNORECASE)
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class _Refused(Exception):
    """Why is for nobody but the tests."""


def fetch(
    url: str,
    what: str,
    limits: Limits,
    *,
    seconds: float = SECONDS,
    resolve: Resolve | None = None,
    connect: Connect | None = None,
) -> bytes:
    """Return what is at a URL. Blocks for up to ``seconds``.

    Args:
        url: http or https, with a public host and without a user's name.
        what: what the request calls the picture; errors begin with it.
        limits: ``max_body`` is the most bytes.
        seconds: for everything together.
        resolve: what finds a host's addresses, for tests.
        connect: what connects to an address that was checked, for tests.

    Raises:
        UsageError: a URL that is not fetched, whatever the reason.
        DataError: a public host that does not answer with a picture in time.
        TooLarge: more bytes than are taken.
    """
    deadline = time.monotonic() + seconds
    try:
        for _ in range(MAX_REDIRECTS + 1):
            answer = _get(url, what, limits, deadline, resolve or addresses, connect or _connect)
            if isinstance(answer, bytes):
                return answer
            if urlsplit(url).scheme.lower() == "https" and not answer.lower().startswith("https:"):
                raise _Refused("from https to http")
            url = answer
        raise _Refused("too many redirects")
    except _Refused as error:
        raise UsageError(
            f"{what}: this URL is not fetched; give an http or https URL of a public host, or a picture"
        ) from error
    except TimeoutError:
        raise DataError(f"{what}: nothing complete came from the URL within {seconds:g} seconds") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise DataError(f"{what}: the URL's host did not answer as one should; check the URL") from error


def is_public(address: str) -> bool:
    """Whether an address belongs to the public internet, also where it carries an IPv4 address inside.

    `ipaddress` calls 224.0.0.1, 2002:7f00:1:: and 64:ff9b::7f00:1 global, so that alone does not do.
    """
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return _is_public(parsed.ipv4_mapped)
        if parsed in _NAT64:  # what an IPv6-only network's resolver makes of an IPv4 address
            return _is_public(ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF))
        tunnelled = [parsed.sixtofour, *(parsed.teredo or ())]
        if not all(_is_public(one) for one in tunnelled if one is not None):
            return False
    return _is_public(parsed)


def addresses(host: str, port: int) -> list[str]:
    """Addresses of a host by the system's resolver."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


@dataclass(frozen=True, slots=True)
class _Target:
    parts: SplitResult
    host: str
    port: int

    @property
    def tls(self) -> bool:
        return self.parts.scheme == "https"


def _target(url: str) -> _Target:
    """Take a URL apart; everything that two parsers might read differently is refused."""
    if not url.isascii() or len(url) > 4096 or any(ord(c) <= 32 or c in '\\\x7f<>"^`{|}' for c in url):
        raise _Refused("characters")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or "@" in parts.netloc or "%" in parts.netloc:
        raise _Refused("scheme, user or zone")
    try:
        port = parts.port
    except ValueError:
        raise _Refused("port") from None
    if port is None:
        port = 443 if parts.scheme == "https" else 80
    if port not in (80, 443) and not 1024 <= port <= 65_535:  # no mail servers and the like
        raise _Refused("port")
    host = parts.hostname or ""
    if parts.netloc.startswith("["):
        ipaddress.IPv6Address(host)
    elif not _HOST.fullmatch(host):
        raise _Refused("host")
    elif _NUMBER.fullmatch(host.rstrip(".").rpartition(".")[2]):
        # 127.1, 0x7f.0.0.1 and 2130706433 are addresses for some; only four decimal numbers are for all.
        ipaddress.IPv4Address(host)
    return _Target(parts, host, port)


def _get(
    url: str, what: str, limits: Limits, deadline: float, resolve: Resolve, connect: Connect
) -> bytes | str:
    """One request: the body, or where it redirects to."""
    try:
        target = _target(url)
        found = [target.host] if _is_address(target.host) else _timed(resolve, target, deadline)
    except (ValueError, OSError) as error:
        if isinstance(error, TimeoutError):
            raise
        raise _Refused("address") from error
    if not found or not all(map(is_public, found)):
        raise _Refused("not public")
    stream = _open(target, found, deadline, connect)
    connection = http.client.HTTPConnection(target.host, target.port)
    try:
        connection.sock = _TimedSocket(stream, deadline)
        path = (target.parts.path or "/") + (f"?{target.parts.query}" if target.parts.query else "")
        default = 443 if target.tls else 80
        name = f"[{target.host}]" if ":" in target.host else target.host
        headers = {
            "Host": name if target.port == default else f"{name}:{target.port}",
            "User-Agent": f"fewstep/{__version__}",
            "Accept": "image/png, image/jpeg, image/webp",
            "Accept-Encoding": "identity",
            "Connection": "close",
        }
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        if response.status in (301, 302, 303, 307, 308):
            return urljoin(url, response.getheader("Location") or "")
        if response.status != 200:
            raise DataError(f"{what}: the URL's host answered with status {response.status}; check the URL")
        return _body(response, what, limits)
    finally:
        connection.close()
        stream.close()


def _body(response: http.client.HTTPResponse, what: str, limits: Limits) -> bytes:
    coding = (response.getheader("Content-Encoding") or "identity").strip().lower()
    if coding != "identity":
        raise DataError(f"{what}: the URL's host sends compressed data, which is not read; give another URL")
    too_large = TooLarge(f"{what}: more than {limits.max_body:,} bytes at the URL; give a smaller picture")
    if response.length is not None and response.length > limits.max_body:
        raise too_large
    data = bytearray()
    while part := response.read1(1 << 16):
        data += part
        if len(data) > limits.max_body:
            raise too_large
    if response.length or not data:
        raise DataError(f"{what}: the URL's host broke off; try again")
    return bytes(data)


def _open(target: _Target, found: Sequence[str], deadline: float, connect: Connect) -> socket.socket:
    failure: OSError | None = None
    for address in found[:4]:
        try:
            stream = connect(address, target.port, _left(deadline))
        except OSError as error:
            failure = error
            continue
        if not target.tls:
            return stream
        try:
            stream.settimeout(_left(deadline))
            return ssl.create_default_context().wrap_socket(stream, server_hostname=target.host)
        except BaseException:
            stream.close()
            raise
    raise failure or OSError("no address")


def _connect(address: str, port: int, seconds: float) -> socket.socket:
    return socket.create_connection((address, port), seconds)


def _timed(resolve: Resolve, target: _Target, deadline: float) -> Sequence[str]:
    """Resolve in a thread of its own, which is left behind at the deadline: the resolver has none."""
    answers: queue.Queue[Sequence[str] | OSError | ValueError] = queue.Queue()

    def run() -> None:
        try:
            answers.put(resolve(target.host, target.port))
        except (OSError, ValueError) as error:  # ValueError: labels that are too long
            answers.put(error)

    threading.Thread(target=run, name="fewstep-resolve", daemon=True).start()
    try:
        answer = answers.get(timeout=_left(deadline))
    except queue.Empty:
        raise TimeoutError from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


class _TimedSocket:
    """What `http.client` needs of a socket. One deadline holds for all reads, not one for each."""

    def __init__(self, stream: socket.socket, deadline: float) -> None:
        self._stream = stream
        self._deadline = deadline

    def sendall(self, data: Any) -> None:
        self._stream.settimeout(_left(self._deadline))
        self._stream.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_TimedReader(self._stream, self._deadline))

    def close(self) -> None:
        """Nothing: `http.client` closes before the body is read where no other request may follow."""


class _TimedReader(io.RawIOBase):
    def __init__(self, stream: socket.socket, deadline: float) -> None:
        self._stream = stream
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._stream.settimeout(_left(self._deadline))
        return self._stream.recv_into(buffer)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_public(address: Address) -> bool:
    return (
        address.is_global
        and not address.is_multicast
        and not address.is_reserved
        and not address.is_loopback
        and not address.is_link_local
        and not address.is_unspecified
        and not (isinstance(address, ipaddress.IPv6Address) and address.is_site_local)
    )
