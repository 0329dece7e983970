"""Connections on which nobody asks anything: uvicorn ends those that had an answer, and never the others."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterable
from typing import Any

SECONDS = 30.0
"""From the connection to the end of its first request's headers."""


class Idlers:
    """Remembers since when a connection has been silent.

    Args:
        seconds: see `SECONDS`.
        clock: monotonic seconds.
    """

    def __init__(self, seconds: float = SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._clock = seconds, clock
        self._since: weakref.WeakKeyDictionary[Any, float] = weakref.WeakKeyDictionary()

    def close(self, connections: Iterable[Any]) -> int:
        """Close what has sent no complete headers for too long; returns how many.

        Args:
            connections: uvicorn's protocols. ``cycle`` of one is its newest request, None before the first.
        """
        now, closed = self._clock(), 0
        for one in list(connections):
            if getattr(one, "cycle", self) is not None:  # a request, or a WebSocket, which has no cycle
                continue
            if now - self._since.setdefault(one, now) >= self._seconds:
                one.transport.close()
                closed += 1
        return closed
