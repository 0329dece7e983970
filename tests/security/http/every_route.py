"""Every way into an application, read from its route table, so that new routes are tested by themselves."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from fastapi.routing import iter_route_contexts
from starlette.routing import BaseRoute, Host, Mount

_VALUES = {"int": "1", "float": "1.5", "uuid": "12345678-1234-5678-1234-567812345678", "path": "x/y"}


@dataclass(frozen=True)
class Way:
    kind: Literal["http", "websocket"]
    method: str
    path: str

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


def every_route(app: Any) -> list[Way]:
    """All methods and paths of an application, its routers, mounts and WebSockets; parameters filled in."""
    return list(dict.fromkeys(_ways(app.routes, "")))


def _ways(routes: Iterable[BaseRoute], prefix: str) -> Iterator[Way]:
    for context in iter_route_contexts(list(routes)):
        route: Any = context.original_route
        path = prefix + _filled(context.path or "")
        if isinstance(route, Mount | Host):
            inside = getattr(route, "routes", None) or []
            yield from _ways(inside, path)
            # What a mount answers by itself, such as files.
            yield Way("http", "GET", f"{path}/x")
            yield Way("http", "GET", f"{path}/")
        elif "WebSocket" in type(route).__name__:
            yield Way("websocket", "WS", path)
        else:
            for method in sorted(context.methods or {"GET"}):
                yield Way("http", method, path)


def _filled(path: str) -> str:
    return re.sub(r"\{[^}:]+(?::(\w+))?\}", lambda match: _VALUES.get(match[1] or "", "x"), path)
