"""Who sent a request: what the guard found out, for routes, error bodies and logs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from starlette.requests import HTTPConnection
from starlette.types import Scope

from fewstep.server.redaction import Redactor, plain

_KEY: Final = "fewstep.caller"


@dataclass(kw_only=True, slots=True)
class Caller:
    """Of one request or WebSocket; hung on its ASGI scope."""

    request_id: str
    owner: str = ""
    """Name of the key that was used; empty without keys, and before the key was checked."""
    redact: Redactor = field(default_factory=plain)


def attach(scope: Scope, caller: Caller) -> None:
    """Hang a caller on a scope."""
    scope[_KEY] = caller


def of(connection: HTTPConnection | Scope) -> Caller:
    """The caller of a request, a WebSocket or a scope; one without id and owner where no guard stands."""
    scope: Any = connection.scope if isinstance(connection, HTTPConnection) else connection
    found = scope.get(_KEY)
    return found if isinstance(found, Caller) else Caller(request_id="")


def owner(connection: HTTPConnection | Scope) -> str:
    """Name of the key that was used; empty without keys."""
    return of(connection).owner


def request_id(connection: HTTPConnection | Scope) -> str:
    """What this request is called in answers and logs."""
    return of(connection).request_id


def path_of(scope: Scope) -> str:
    """The path below the server's root path, decoded."""
    path, root = str(scope.get("path", "")), str(scope.get("root_path", "")).rstrip("/")
    return path[len(root) :] or "/" if root and (path + "/").startswith(root + "/") else path


def header_values(scope: Scope, name: bytes) -> list[str]:
    """All values of a request's header, named in lower case."""
    return [value.decode("latin-1").strip() for key, value in scope["headers"] if key == name]
