"""An order that was taken, as its callers hold it: how far it is, its end, and stopping it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fewstep.server.orders import Drawn, Order, Progress

if TYPE_CHECKING:
    from starlette.requests import Request

    from fewstep.engine.engine import StepReport
    from fewstep.engine.request import GenerateRequest, GenerateResult
    from fewstep.engine.tasks import Task

_log = logging.getLogger("fewstep.server")

OnProgress = Callable[[Progress], None]


class Pending:
    """An order that was taken. `future` ends with `Drawn`, or with the error that ended it."""

    def __init__(
        self, order: Order, request: GenerateRequest, job_id: str, on_progress: OnProgress | None
    ) -> None:
        self.order = order
        self.request = request
        self.id = job_id
        self.future: concurrent.futures.Future[Drawn] = concurrent.futures.Future()
        self.progress: Progress | None = None
        self._listeners: list[OnProgress] = [] if on_progress is None else [on_progress]
        self._task: Task[GenerateResult] | None = None
        self._started: float | None = None
        self.started: float | None = None
        """Seconds since 1970 when its drawing began."""

    @property
    def task(self) -> Task[GenerateResult]:
        """Its place in the queue."""
        assert self._task is not None
        return self._task

    @task.setter
    def task(self, task: Task[GenerateResult]) -> None:
        self._task = task

    def cancel(self) -> bool:
        """Leave the queue, or stop at the next step; False when it had ended."""
        return self._task is not None and self._task.cancel()

    def listen(self, listener: OnProgress) -> None:
        """Tell of every step from now on, in the worker's thread."""
        self._listeners = [*self._listeners, listener]

    def unlisten(self, listener: OnProgress) -> None:
        """Tell no more."""
        self._listeners = [one for one in self._listeners if one != listener]

    def begin(self) -> None:
        """It is being drawn from now on."""
        self._started, self.started = time.monotonic(), time.time()
        self.tell(Progress(step=0, total=0, image=0, images=self.request.n, seconds=0.0))

    def tell(self, progress: Progress) -> None:
        """Pass progress on; a listener that fails stops no drawing."""
        self.progress = progress
        for listener in self._listeners:
            try:
                listener(progress)
            except Exception:
                _log.exception("a listener of job %s failed", self.id)

    def report(self, step: StepReport, preview: Callable[[], Any]) -> None:
        """What the engine tells after a step."""
        seconds = 0.0 if self._started is None else time.monotonic() - self._started
        self.tell(
            Progress(
                step=step.index + 1, total=step.total, image=step.image, images=self.request.n,
                seconds=seconds, preview=preview,
            )
        )  # fmt: skip


class KnownJob(Exception):
    """The order was sent before with the same idempotency key; `job_id` is that of then."""

    def __init__(self, job_id: str) -> None:
        super().__init__(job_id)
        self.job_id = job_id


async def finish(pending: Pending, request: Request | None = None) -> Drawn:
    """Wait for an order as `Generator.draw` does."""
    future = asyncio.wrap_future(pending.future)
    watcher = None if request is None else asyncio.create_task(_cancel_when_gone(request, pending))
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        pending.cancel()
        # Its end is looked at, though nobody waits for it: else it would be logged as one that was missed.
        future.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        raise
    finally:
        if watcher is not None:
            watcher.cancel()


async def _cancel_when_gone(request: Request, pending: Pending) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    pending.cancel()
