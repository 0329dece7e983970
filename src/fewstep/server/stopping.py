"""How a server ends: the first SIGTERM or Ctrl-C drains it, the second stops it, and a broken worker ends it.

uvicorn alone stops listening first and tells the application last: waiting orders would hold their clients
until the end, nobody could see that the server is not ready, and a second SIGTERM would be ignored.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, Protocol

import uvicorn

from fewstep.server.idle import Idlers

_log = logging.getLogger("fewstep.server")

LAST = 1.5
"""Seconds for what was told to stop at its next step; then the process ends without it."""
_ANSWERS = 5
"""Seconds for answers that are being read when everything is drawn, and for watchers of long work."""


class Stoppable(Protocol):
    """What is served: `fewstep.server.services.Services`, and `fewstep.server.early.Early` before them."""

    @property
    def broken(self) -> bool:
        """Whether only a new process helps."""

    def drain(self) -> bool:
        """Take nothing more and let what runs end; whether it all did."""

    def stop(self) -> None:
        """Tell everything that runs to stop at once."""


class Server(uvicorn.Server):
    """Listens until everything that runs has ended or its grace is over; new orders are refused meanwhile.

    Args:
        config: of uvicorn; its time for shutting down is set here.
        work: what it serves.
        on_listening: told the port once the server listens on it, which port 0 leaves to the system.
        endings: called when everything is drawn and the connections are about to be closed: they end streams
            that end by nothing else. More may be added to it while it listens.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        work: Stoppable,
        on_listening: Callable[[int], None],
        endings: Sequence[Callable[[], None]] = (),
    ) -> None:
        config.timeout_graceful_shutdown = _ANSWERS
        super().__init__(config)
        self._work = work
        self._on_listening = on_listening
        self._endings = endings
        self._idlers = Idlers()
        self._signals = 0
        self.broken = False
        """Whether it ended because what it serves was broken."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Of the first signal and of every further one, in the main thread between two of its steps."""
        self._signals += 1
        if sig == signal.SIGINT and not self._captured_signals:
            self._captured_signals.append(sig)  # raised again at the end: the shell sees a Ctrl-C
        # Locks that this very thread may hold now are taken in another.
        target = self._drain if self._signals == 1 else self._stop
        threading.Thread(target=target, name="fewstep-stop", daemon=True).start()

    async def startup(self, sockets: list[Any] | None = None) -> None:
        """Listen, and say where."""
        await super().startup(sockets)
        if self.started:
            self._on_listening(int(self.servers[0].sockets[0].getsockname()[1]))

    async def shutdown(self, sockets: list[Any] | None = None) -> None:
        """Hear no more, wait for what is being answered, and end."""
        for end in self._endings:
            end()
        await super().shutdown(sockets)

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether it is time to end."""
        if self._work.broken:
            _log.error("the server cannot go on: it ends, see its log above")
            self.broken = True
            return True
        if counter % 10 == 0:
            self._idlers.close(self.server_state.connections)
        return await super().on_tick(counter)

    def _drain(self) -> None:
        _log.info("stopping: what runs may end, nothing more is taken; the same signal again stops at once")
        calm = False
        try:
            calm = self._work.drain()
        finally:
            self.should_exit = True
        if not calm:
            self._end_soon()

    def _stop(self) -> None:
        self._end_soon()
        self._work.stop()
        self.should_exit = True

    def _end_soon(self) -> None:
        """End the process also when something comes to no end by itself: a step, a model that is loaded."""
        status = 130 if self._captured_signals else 0
        last = threading.Timer(LAST, _leave, (status,))
        last.daemon = True
        last.start()


def _leave(status: int) -> None:
    _log.warning("the server ends in the middle of a step; its job is marked as cut off at the next start")
    logging.shutdown()
    os._exit(status)
