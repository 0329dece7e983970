"""What the routes of a server need, opened together and closed together."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from starlette.requests import HTTPConnection

from fewstep.errors import FewstepError, NotReady
from fewstep.server.metrics import Metrics
from fewstep.server.pool import Opener, Pool

if TYPE_CHECKING:
    from fewstep.server.children import Children
    from fewstep.server.database import Database
    from fewstep.server.datasets import Datasets
    from fewstep.server.generation import Generator
    from fewstep.server.history import History
    from fewstep.server.jobstore import JobStore
    from fewstep.server.keeper import Keeper
    from fewstep.server.preferences import Keeps
    from fewstep.server.settings import ServerSettings
    from fewstep.server.styles import Styles

_log = logging.getLogger("fewstep.server")

_REST_AFTER = 4.0
"""Seconds after which students are loaded that nobody asked for yet: the studio is imported before."""


class Services:
    """Opened in a thread after the port listens, so that `/healthz` answers at once.

    Args:
        settings: how the server behaves.
        opener: opens engines; for tests.
    """

    _database: Database
    generator: Generator
    jobs: JobStore
    history: History
    children: Children
    datasets: Datasets
    preferences: Keeps
    styles: Styles
    _keeper: Keeper

    def __init__(self, settings: ServerSettings, opener: Opener | None = None) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self._opener = opener
        self._opened = threading.Event()
        self._draining = False
        self._warm = False
        self.failure: str | None = None
        """Why the server cannot work, once it is known."""

    @property
    def started(self) -> bool:
        """Whether the model has drawn its first picture."""
        return self._warm

    @property
    def ready(self) -> bool:
        """Whether orders are taken and the model has drawn its first picture."""
        return self._warm and not self._draining and self.generator.queue.healthy

    @property
    def broken(self) -> bool:
        """Whether the worker died more often than it is started again: only a new process helps."""
        return self._opened.is_set() and self.generator.queue.broken

    def open(self) -> None:
        """Open the database and the model, and draw one picture that nobody sees.

        Raises:
            FewstepError: why it cannot work; `failure` has the sentence from then on.
        """
        from fewstep.server import workplan

        pool = Pool(
            self.settings.model, engine=self.settings.engine, threads=self.settings.threads,
            rows=self.settings.batch,
            folders=(*self.settings.models_dirs, workplan.models_folder(self.settings)),
            loras=(workplan.loras_folder(self.settings), *self.settings.loras_dirs),
            embeddings=(workplan.embeddings_folder(self.settings),), opener=self._opener,
        )  # fmt: skip
        if self._opener is None:  # a test counts what is opened
            threading.Thread(target=_load_ahead, args=[pool], name="fewstep-ahead", daemon=True).start()

        from fewstep.server import childprocess, housekeeping
        from fewstep.server.children import Children, runs_folder
        from fewstep.server.database import Database
        from fewstep.server.datasets import Datasets
        from fewstep.server.generation import Generator
        from fewstep.server.history import History
        from fewstep.server.jobstore import JobStore
        from fewstep.server.keeper import Keeper
        from fewstep.server.preferences import Keeps
        from fewstep.server.styles import Styles

        try:
            self.settings.data.mkdir(parents=True, exist_ok=True)
            self._database = Database(self.settings.database_url)
            self.jobs = JobStore(self._database)
            self.history = History(self._database, self.settings.outputs)
            self.preferences = Keeps(self.settings.data, self.settings.limits)
            self.styles = Styles(self.settings.data, keyed=bool(self.settings.keys))
            self.generator = Generator(
                self.settings, pool, jobs=self.jobs, history=self.history, metrics=self.metrics,
                kept_as=self.preferences.kept_as,
            )  # fmt: skip
            self.datasets = Datasets(self.settings.data / "datasets", self.settings.limits)
            self.children = Children(
                self.settings, jobs=self.jobs, history=self.history, datasets=self.datasets
            )
            # Before their jobs are marked: one that is done again must find nobody in its folder.
            childprocess.stop_orphans(runs_folder(self.settings))
            cut_off = self.jobs.recover()
            if cut_off:
                _log.warning(
                    "%d jobs were cut off when the server stopped; they can be requeued", len(cut_off)
                )
            self._keeper = Keeper(
                self.jobs, self._cancels,
                at_start=lambda: housekeeping.find_pictures(self.history),
                daily=lambda: housekeeping.daily(self.settings, self.jobs, self.history),
            )  # fmt: skip
            self._opened.set()
            self.generator.warm_up()
            self._warm = True
        except FewstepError as error:
            self.failure = str(error)
            raise
        except Exception:
            self.failure = "the server could not start; see its log"
            raise
        if self._opener is not None:
            return  # a test counts what is drawn
        until = time.monotonic() + _REST_AFTER
        while not self._draining and time.monotonic() < until:
            time.sleep(0.05)
        try:
            self.generator.warm_rest(lambda: not self._draining and not self.generator.queue.running)
        except FewstepError as error:
            _log.warning("a student cannot be loaded: %s", error)

    def sees(self, owner: str) -> str | None:
        """Whose pictures and jobs an owner sees: its own, and everybody's where there are no keys."""
        return owner if self.settings.keys else None

    def check_open(self) -> None:
        """Refuse what comes before everything is open, or after the end has begun.

        Raises:
            NotReady: with the reason.
        """
        if self.failure is not None:
            raise NotReady(f"the server cannot work: {self.failure}")
        if not self._opened.is_set():
            raise NotReady("the server is starting: try again in a second")

    def begin_drain(self) -> None:
        """`ready` is False from now on."""
        self._draining = True

    def drain(self) -> bool:
        """Refuse waiting and new orders, and give running ones their time; whether everything has ended."""
        self.begin_drain()
        if not self._opened.is_set():
            return self.failure is not None
        self.children.begin_drain()
        return self.generator.drain(self.settings.grace) and (self._warm or self.failure is not None)

    def stop(self) -> None:
        """Tell everything that runs to stop at its next step; returns at once."""
        self.begin_drain()
        if self._opened.is_set():
            self.children.begin_drain()
            self.generator.queue.drain(0.0)

    def close(self) -> None:
        """Give running orders their time, then stop and close everything."""
        self.begin_drain()
        if not self._opened.is_set():
            return
        self.children.begin_drain()  # they save meanwhile
        self.generator.drain(self.settings.grace)
        self.children.close()
        self.generator.close()
        self._keeper.close()
        self.jobs.close()
        self._database.close()

    def _cancels(self) -> dict[str, Callable[[], object]]:
        """How each job that has not ended here is cancelled, by its id."""
        drawn: dict[str, Callable[[], object]] = {one.id: one.cancel for one in self.generator.waiting()}
        return drawn | {one.id: one.cancel for one in self.children.waiting()}


def _load_ahead(pool: Pool) -> None:
    """Begin to load what most orders are drawn with, while the rest is imported.

    That are the model itself and its student of the most steps. What fails here fails again, and is said,
    when the model is warmed up.
    """
    from fewstep.engine.request import resolve

    with contextlib.suppress(FewstepError):
        students = sorted(pool.info().students, key=lambda one: max(one.steps))
        for name in ("none", *(one.name for one in students[-1:])):
            # One by one: PyTorch loads before it returns, and the warming up need not wait for the student.
            with pool.using() as engine:
                engine.prepare(resolve(engine.info, prompt="", student=name))


def services_of(connection: HTTPConnection) -> Services:
    """For routes: ``Depends(services_of)``; HTTP and WebSocket.

    Raises:
        NotReady: the server is starting, or cannot work.
    """
    services: Services = connection.app.state.services
    services.check_open()
    return services
