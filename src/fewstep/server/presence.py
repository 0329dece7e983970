"""Which servers live: each that shares a database has a row in it, and says now and then that it is there.

On its own machine a server is gone when no process has its id and start time. Of a server on another machine,
or in another container, only its silence can be known.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from typing import Final

import psutil
from sqlmodel import Session, col, delete, select, update

from fewstep.server.ids import new_id
from fewstep.server.tables import ServerRow

LAPSE: Final = 90.0
"""Seconds without a sign of life after which a server on another machine counts as gone."""
BEAT: Final = 15.0
"""Seconds between signs of life."""


class Presence:
    """The row of this process as a server. Calls belong into the caller's transactions."""

    def __init__(self, session: Session, *, clock: Callable[[], float], host: str | None = None) -> None:
        """Sign on.

        Args:
            session: one that writes.
            clock: seconds since 1970.
            host: name of this machine; that of the system when left out.
        """
        self.id = new_id()
        """Names this server, until it signs off."""
        self._clock = clock
        self._host = host or platform.node() or "localhost"
        self._seen = clock()
        self._signed_off = False
        self._sign_on(session)

    def beat(self, session: Session, *, now: bool = False) -> None:
        """Say that this server lives, when the last time is `BEAT` seconds ago or ``now`` is given."""
        time_now = self._clock()
        if now or not 0 <= time_now - self._seen < BEAT:
            told = session.exec(update(ServerRow).where(col(ServerRow.id) == self.id).values(seen=time_now))
            self._seen = time_now
            if not told.rowcount and not self._signed_off:
                # It was silent for so long (a machine that slept) that another took it for gone.
                self._sign_on(session)

    def gone(self, session: Session) -> set[str]:
        """Return the ids of servers that have signed on and live no more."""
        return {
            server.id
            for server in session.exec(select(ServerRow))
            if server.id != self.id and not self._lives(server)
        }

    def sign_off(self, session: Session) -> None:
        """Remove the row."""
        self._signed_off = True
        session.exec(delete(ServerRow).where(col(ServerRow.id) == self.id))

    def _sign_on(self, session: Session) -> None:
        started = psutil.Process().create_time()
        session.add(
            ServerRow(
                id=self.id, host=self._host, process=os.getpid(), process_started=started, seen=self._seen
            )
        )

    def _lives(self, server: ServerRow) -> bool:
        if server.host != self._host:
            return self._clock() - server.seen < LAPSE
        try:
            started = float(psutil.Process(server.process).create_time())
        except psutil.NoSuchProcess:
            return False
        except psutil.Error:
            return True
        # The start is computed from the time since boot, and a corrected clock moves it a little.
        return abs(started - server.process_started) < 2.0
