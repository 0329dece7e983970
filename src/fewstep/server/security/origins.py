"""Which names a request may call this server by, and which web pages may send one.

A page of another site can point its own name at 127.0.0.1 (DNS rebinding) or simply send a form there. The
first shows in the Host header, the second in Origin, which browsers add to every request that changes
something and to every WebSocket.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final
from urllib.parse import urlsplit

from starlette.types import Scope

from fewstep.errors import Forbidden, UsageError, WrongHost
from fewstep.server.caller import header_values
from fewstep.server.settings import ServerSettings, is_loopback

SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(?::([0-9]{1,5}))?")
_PAGE: Final = re.compile(r"https?://[^/\s*@?#]+")


class Origins:
    """Names and pages that a server's settings allow.

    Raises:
        UsageError: a page that is not one site.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self._hosts = {name.lower().rstrip(".") for name in settings.allowed_hosts}
        # Listening on an address that others reach, the server may be called by any address, which cannot be
        # rebound. By a name only where the settings list it.
        self._addresses = not is_loopback(settings.host)
        self._own = settings.host.strip("[]").lower()
        self.pages = tuple(_normal(origin) for origin in settings.origins)
        for page in self.pages:
            if _PAGE.fullmatch(page) is None:  # also `*` and `null`, which would be everybody's
                raise UsageError(f"origin {page}: name one site, as https://example.org")

    def check(self, scope: Scope) -> None:
        """Refuse a request for another host's name, or from a page that may not send it.

        Raises:
            WrongHost: no Host, more than one, or one that is not this server's.
            Forbidden: a foreign or opaque Origin on a WebSocket or a method that may change something.
        """
        hosts = header_values(scope, b"host")
        if len(hosts) != 1 or not self.allows_host(hosts[0]):
            raise WrongHost(
                "the Host of this request is not a name of this server; use localhost, or start the server "
                "with --allow-host NAME"
            )
        # A preflight asks for the request that would follow it.
        asks = scope["type"] == "http" and header_values(scope, b"access-control-request-method")
        if scope["type"] == "http" and scope["method"] in SAFE_METHODS and not asks:
            return
        origins = header_values(scope, b"origin")
        if not origins and "cross-site" not in header_values(scope, b"sec-fetch-site"):
            return
        if len(origins) != 1 or not self.allows_origin(origins[0], hosts[0]):
            raise Forbidden(
                "a web page of another site may not send this request; start the server with "
                "--allow-origin to allow a page"
            )

    def allows_host(self, host: str) -> bool:
        """Whether a Host header names this server."""
        match = _HOST.fullmatch(host)
        if match is None:
            return False
        name = match[1].lower().rstrip(".")
        bare = name.strip("[]")
        if is_loopback(name) or bare == self._own:
            return True
        if self._addresses and _is_address(bare):
            return True
        return not self._hosts.isdisjoint({"*", name, bare, host.lower()})

    def allows_origin(self, origin: str, host: str) -> bool:
        """Whether a page of an origin may send requests that change something to ``host``."""
        origin = _normal(origin)
        if origin in self.pages:
            return True
        scheme, separator, netloc = origin.partition("://")
        # Behind a proxy that speaks TLS our own scheme is not the browser's, so only names and ports are
        # compared. `null` is that of sandboxed frames and files: nobody's.
        if not separator or scheme not in ("http", "https"):
            return False
        return netloc == _normal(f"{scheme}://{host}").partition("://")[2]


def _normal(origin: str) -> str:
    """An origin in lower case without the default port: ``https://example.org``."""
    origin = origin.strip().lower().rstrip("/")
    try:
        parts = urlsplit(origin)
        default = {"http": 80, "https": 443}.get(parts.scheme)
        if default is not None and parts.port == default:
            return origin.rpartition(":")[0]
    except ValueError:
        pass
    return origin


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
