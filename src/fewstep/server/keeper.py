"""What a server does now and then: clearing away, and so that others may share its database.

It says that it lives, looks for servers that do not and marks their jobs, and stops what was cancelled at
another server. See docs/adr/0023-many-replicas-one-database.md.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fewstep.server.jobstore import JobStore

_log = logging.getLogger("fewstep.server")

LOOK = 1.0
"""Seconds between looks for jobs that were cancelled elsewhere."""
DAY = 86_400.0
"""Seconds between two times of clearing away."""
BEAT = 15.0
"""Seconds between signs of life, as `fewstep.server.presence.BEAT`, whose import costs a database."""


class Keeper:
    """A thread; ends with `close`.

    Args:
        jobs: of this server.
        pending: what has not ended here, by the id of its job: how it is cancelled.
        at_start: done once, before anything else.
        daily: done with the first sign of life and then every `DAY`.
        look, beat, day: see `LOOK`, `BEAT` and `DAY`.
    """

    def __init__(
        self,
        jobs: JobStore,
        pending: Callable[[], Mapping[str, Callable[[], object]]],
        *,
        at_start: Callable[[], object] = lambda: None,
        daily: Callable[[], object] = lambda: None,
        look: float = LOOK,
        beat: float = BEAT,
        day: float = DAY,
    ) -> None:
        self._jobs, self._pending = jobs, pending
        self._at_start, self._daily = at_start, daily
        self._look, self._beat, self._day = look, beat, day
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fewstep-keeper", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End, after what it is at."""
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._at_start()
        except Exception:
            _log.warning("what is done at the start failed", exc_info=True)
        due = day = time.monotonic() + self._beat
        while not self._closed.wait(self._look):
            try:
                self.stop_cancelled()
                if time.monotonic() >= due:
                    due = time.monotonic() + self._beat
                    self.beat()
                if time.monotonic() >= day:
                    day = time.monotonic() + self._day
                    self._daily()
            except Exception:
                # The database is away: its next answer may be better, and drawing goes on.
                _log.warning("the database cannot be asked about other servers", exc_info=True)

    def stop_cancelled(self) -> None:
        """Stop what was cancelled at another server."""
        mine = self._pending()
        if not mine:
            return
        for job_id in self._jobs.cancelled(list(mine)):
            mine[job_id]()

    def beat(self) -> None:
        """Say that this server lives, and mark jobs of servers that do not."""
        self._jobs.beat()
        if lost := self._jobs.recover():
            _log.warning("%d jobs of a server that is gone were cut off; they can be requeued", len(lost))
