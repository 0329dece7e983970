"""Jobs and history of a server, opened in a thread while the server listens already.

What they need, SQLAlchemy and SQLModel, takes half a second of one core to import. A server that waited for
it would listen that much later.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fewstep.server.database import Database
    from fewstep.server.history import History
    from fewstep.server.jobstore import JobStore


class Stores:
    """Jobs and history; whoever asks for one before it is open waits."""

    def __init__(self, database: str, outputs: Path) -> None:
        """Begin to open.

        Args:
            database: a SQLAlchemy URL.
            outputs: folder of the pictures.
        """
        self._url = database
        self._outputs = outputs
        self._error: BaseException | None = None
        self._database: Database | None = None
        self._jobs: JobStore | None = None
        self._history: History | None = None
        self._opened = threading.Event()
        threading.Thread(target=self._open, name="fewstep-stores", daemon=True).start()

    @property
    def ready(self) -> bool:
        """Whether both can be used at once; does not wait.

        Raises:
            FewstepError: they cannot be opened, and why.
        """
        if self._error is not None:
            raise self._error
        return self._opened.is_set()

    @property
    def jobs(self) -> JobStore:
        """The jobs; raises as `ready`."""
        self.wait()
        assert self._jobs is not None
        return self._jobs

    @property
    def history(self) -> History:
        """The pictures; raises as `ready`."""
        self.wait()
        assert self._history is not None
        return self._history

    def wait(self) -> None:
        """Wait until they are open; raises as `ready`."""
        self._opened.wait()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Sign this server off, which cuts off what it has not finished, and close the database."""
        self._opened.wait()
        if self._database is not None:
            try:
                if self._jobs is not None:
                    self._jobs.close()
            finally:
                self._database.close()

    def _open(self) -> None:
        try:
            from fewstep.server.database import Database
            from fewstep.server.history import History
            from fewstep.server.jobstore import JobStore

            self._database = Database(self._url)
            self._history = History(self._database, self._outputs)
            self._jobs = JobStore(self._database)
        except BaseException as error:  # raised again in every thread that asks
            self._error = error
        finally:
            self._opened.set()
